//! What can go wrong with the store, by what the caller can do about it.

use std::path::Path;

use rusqlite::ErrorCode;

/// A failed question or command.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the database.
    #[error("the database {path} is in use by another foreman{holder}")]
    InUse {
        /// The database.
        path: String,
        /// ` (process N)` where known, else empty.
        holder: String,
    },
    /// A newer foreman wrote it.
    #[error(
        "the database has schema version {found}, this foreman knows {known}: use the newer foreman"
    )]
    Newer {
        /// Found in the file.
        found: i64,
        /// The newest this program knows.
        known: i64,
    },
    /// The disk is full. Nothing of the write happened; it may be tried again when there is room.
    #[error("the disk of the database is full")]
    Full,
    /// The disk failed. The write is not acknowledged; whether it is on the disk is known only after the next start.
    #[error("the disk of the database failed: {0}")]
    Io(String),
    /// The file is damaged, or is no database: no write can be trusted to it.
    #[error(
        "the database is damaged ({0}): stop foreman, keep copies of the file and of its -wal file, and rescue what \
         can be read with `sqlite3 FILE .recover | sqlite3 RESCUED`; or move them away to begin with an empty queue"
    )]
    Damaged(String),
    /// The batch was rolled back. Nothing of the write happened; it may be tried again.
    #[error("the write was rolled back: {0}")]
    RolledBack(String),
    /// The store was closed.
    #[error("the database is closed")]
    Closed,
    /// A row does not read as what it should be.
    #[error("the database holds a value foreman does not know: {0}")]
    Strange(String),
    /// A fault of the file system.
    #[error("{path}: {fault}")]
    File {
        /// The file or folder.
        path: String,
        /// What the system said.
        fault: String,
    },
    /// Any other fault of SQLite.
    #[error("SQLite: {0}")]
    Sql(rusqlite::Error),
}

impl StoreError {
    /// A fault of the file system at `path`.
    pub(crate) fn file(path: &Path, fault: &std::io::Error) -> StoreError {
        StoreError::File { path: path.display().to_string(), fault: fault.to_string() }
    }

    /// The same fault for each of several callers of one failed batch.
    pub(super) fn for_each(&self) -> StoreError {
        match self {
            StoreError::Full => StoreError::Full,
            StoreError::Io(fault) => StoreError::Io(fault.clone()),
            StoreError::Damaged(fault) => StoreError::Damaged(fault.clone()),
            other => StoreError::RolledBack(other.to_string()),
        }
    }

    /// Whether it is of the disk or the file, and not of the one write that met it.
    pub(super) fn is_of_the_disk(&self) -> bool {
        match self {
            StoreError::Full | StoreError::Io(_) | StoreError::Damaged(_) => true,
            StoreError::InUse { .. }
            | StoreError::Newer { .. }
            | StoreError::RolledBack(_)
            | StoreError::Closed
            | StoreError::Strange(_)
            | StoreError::File { .. }
            | StoreError::Sql(_) => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(fault: rusqlite::Error) -> StoreError {
        let extended = fault.sqlite_error().map(|error| error.extended_code);
        if extended == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) {
            // The index of the log could not grow: there is no other reason for it than a full disk.
            return StoreError::Full;
        }
        match fault.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full,
            Some(ErrorCode::SystemIoFailure) => StoreError::Io(fault.to_string()),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Damaged(fault.to_string())
            }
            _ => StoreError::Sql(fault),
        }
    }
}
