//! The exclusive lock beside the database, and its privacy: one daemon at a time, readable by its owner only.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::StoreError;

/// A lock held by this process until it is dropped, or the process dies.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the database at `path`.
    pub(super) fn take(path: &Path) -> Result<Lock, StoreError> {
        let lock_path = lock_path(path);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(|fault| StoreError::file(&lock_path, &fault))?;
        match try_for_a_moment(&file) {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse {
                    path: path.display().to_string(),
                    holder: holder(&mut file),
                });
            }
            Err(TryLockError::Error(fault)) => return Err(StoreError::file(&lock_path, &fault)),
        }
        keep_private(&lock_path).map_err(|fault| StoreError::file(&lock_path, &fault))?;
        // The lock is what counts. Its holder's name is a courtesy, and on a full disk there is no room for it.
        drop(file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())));
        Ok(Lock { _file: file })
    }
}

/// How long a lock that another process holds is waited for: a predecessor may be about to end, or, killed while it started a
/// child, live on in that child for a moment.
const MOMENT: Duration = Duration::from_millis(500);

/// Pause between two looks at the lock.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

#[expect(clippy::disallowed_methods, reason = "opening blocks, before anything is served")]
fn try_for_a_moment(file: &File) -> Result<(), TryLockError> {
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if waited < MOMENT => {
                std::thread::sleep(LOOK_PAUSE);
                waited += LOOK_PAUSE;
            }
            outcome => return outcome,
        }
    }
}

/// ` (process N)`, if the lock file says so.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => format!(" (process {})", text.trim()),
        _ => String::new(),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// Makes an empty file that only its owner can read; one that exists is left as it is.
pub(super) fn create_private(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    keep_private(path)
}

/// Makes a file readable by its owner only: the database holds prompts and answers. SQLite gives its side files the same
/// mode.
#[cfg(unix)]
pub(super) fn keep_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

/// On other systems the user's own folder is private already.
#[cfg(not(unix))]
pub(super) fn keep_private(_path: &Path) -> std::io::Result<()> {
    Ok(())
}
