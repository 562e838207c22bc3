//! The tables, their migrations, and the settings of a connection.
//!
//! The hot row is small (`job`); bodies live apart (`request`, `answer`), so that a claim rewrites one small page. The
//! partial indexes grow with what waits, not with history. Migrations are append-only; the version is `user_version`.

use std::time::Duration;

use rusqlite::Connection;

use crate::fail_point;

use super::error::StoreError;

/// How long a statement waits for a human with the sqlite3 shell or a backup tool; foreman itself has one writer.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// SQLite before 3.51.3 can corrupt a database in WAL mode when two connections meet at a log reset.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// `application_id` of a foreman database ("fman"), so that `file` and people can tell.
const APPLICATION_ID: i32 = 0x666d_616e;

/// Pages in the write-ahead log (16 MB) at which SQLite folds it in by itself.
const LOG_PAGES_MAX: i64 = 4_000;

/// The log is cut back to this after it has grown beyond it.
const JOURNAL_BYTES_MAX: i64 = 64 * 1024 * 1024;

/// Prepared statements kept by a connection: more than there are, so that none is parsed twice.
pub(super) const STATEMENTS_CACHED: usize = 128;

pub(super) const MIGRATIONS: [&str; 7] = [
    include_str!("migrations/1.sql"),
    include_str!("migrations/2.sql"),
    include_str!("migrations/3.sql"),
    include_str!("migrations/4.sql"),
    include_str!("migrations/5.sql"),
    include_str!("migrations/6.sql"),
    include_str!("migrations/7.sql"),
];

/// Refuses a SQLite with the known corruption bug; only a foreman built against the system's SQLite can have one.
pub(super) fn require_sound_sqlite() -> Result<(), StoreError> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        return Err(StoreError::Strange(format!(
            "SQLite {} has a corruption bug in WAL mode; 3.51.3 or newer is needed",
            rusqlite::version()
        )));
    }
    Ok(())
}

/// Sets a read-write connection up. `auto_vacuum` must come before the first table.
pub(super) fn prepare(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // On macOS a plain fsync does not reach the platter.
    connection.pragma_update(None, "fullfsync", "ON")?;
    connection.pragma_update(None, "checkpoint_fullfsync", "ON")?;
    // The writer checkpoints by itself, after the answers are out; this bounds the log between two of those when bodies
    // are large.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", LOG_PAGES_MAX, |_| Ok(()))?;
    connection.pragma_update_and_check(
        None,
        "journal_size_limit",
        JOURNAL_BYTES_MAX,
        |_| Ok(()),
    )?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    connection.pragma_update(None, "cell_size_check", "ON")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    Ok(())
}

/// Brings the schema to the newest version, one transaction a step.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for (version, sql) in (1_i64..).zip(MIGRATIONS) {
        if version <= found {
            continue;
        }
        let tx = connection.transaction()?;
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "user_version", version)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        fail_point::reach("migration.uncommitted");
        tx.commit()?;
        fail_point::reach("migration.committed");
    }
    Ok(())
}
