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
    pub(super) fn for_each(fault: &rusqlite::Error) -> StoreError {
        match fault.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full,
            _ => StoreError::RolledBack(fault.to_string()),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(fault: rusqlite::Error) -> StoreError {
        match fault.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full,
            _ => StoreError::Sql(fault),
        }
    }
}
