//! The write-ahead log: folding it into the database, and a connection that can be trusted after the disk failed. Called by
//! the writer only.

use std::path::Path;

use rusqlite::Connection;

use crate::fail_point;

use super::error::StoreError;
use super::schema;

/// What a checkpoint came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Folded {
    /// All that was committed is in the database.
    Whole,
    /// Something is left in the log; that is no fault, the log is longer, no more.
    Partly,
}

/// Folds the log into the database.
///
/// # Errors
/// A fault of the disk or the file; any other leaves the log as it is.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> Result<Folded, StoreError> {
    fail_point::reach("checkpoint.before");
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let pages = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
    let folded = connection.query_row(&sql, [], pages).map_err(StoreError::from);
    fail_point::reach("checkpoint.after");
    match folded {
        Ok((in_log, folded)) if in_log == folded => Ok(Folded::Whole),
        Ok(_) => Ok(Folded::Partly),
        Err(fault) if fault.is_of_the_disk() => Err(fault),
        Err(fault) => {
            tracing::warn!(db.error = %fault, "the write-ahead log could not be folded in");
            Ok(Folded::Partly)
        }
    }
}

/// A new connection after an I/O error. What the failed flush should have brought to the disk may be gone from the
/// system's cache as "written": so the file is checked, and all that was committed is copied out of the log and flushed
/// again (ADR 16). The readers' connections stay: with them stays the log's index, which knows nothing of the batch that
/// failed.
///
/// # Errors
/// The disk or the file cannot be trusted: the daemon is better started anew.
pub(super) fn reopen(path: &Path, connection: Connection) -> Result<Connection, StoreError> {
    tracing::warn!(db.path = %path.display(), "the disk failed; opening the database anew");
    // A connection that cannot be closed is left: the new one is what counts.
    drop(connection.close());
    let connection = Connection::open(path)?;
    schema::prepare(&connection)?;
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(StoreError::Damaged(found));
    }
    // Waits for readers, as long as the busy timeout says.
    if checkpoint(&connection, "TRUNCATE")? == Folded::Partly {
        return Err(StoreError::Io("the log could not be flushed again".to_owned()));
    }
    tracing::info!(db.path = %path.display(), "the database is sound; going on");
    Ok(connection)
}
