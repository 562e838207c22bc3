//! Room on the file system of the database: how much is free, whether new jobs may be taken, and the ballast, a file that
//! only takes space, to be given up when the disk is full so that what runs can still be finished (ADR 15).
//!
//! SQLite cannot dig itself out of a full disk: it can neither delete a row nor fold its log in. Asked by `http` before
//! each admission, looked after by `app`, told by the writer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Store;
use super::error::StoreError;
use super::lock::keep_private;

/// The ballast takes this part of the floor, so that its going never looks like room for new jobs.
const BALLAST_OF_FLOOR: u64 = 4;

/// More than the outcomes of what runs, a sweep and a checkpoint need together.
const BALLAST_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// With less than this free a database cannot be opened: its lock, its index and the recovery need a little.
const START_MIN_BYTES: u64 = 4 * 1024 * 1024;

/// The unit in which a file's blocks are counted, whatever those of its file system are (`stat(2)`).
const STAT_BLOCK_BYTES: u64 = 512;

/// What was seen at the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that foreman may still write; 0 before the first look.
    pub free_bytes: u64,
    /// Below this nothing new is taken; 0 is off.
    pub free_min_bytes: u64,
    /// Whether new jobs are taken.
    pub has_room: bool,
}

/// The room of one database.
#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    ballast: PathBuf,
    free_min: AtomicU64,
    free: AtomicU64,
    has_room: AtomicBool,
    /// Held while the ballast is made or given up: a look must not make it again from what it saw before it went.
    turn: Mutex<()>,
}

impl Space {
    /// The room of the database at `path`, without a floor. Called by whoever holds the lock, before the
    /// database is opened: on a full disk that takes the ballast of the last run.
    pub(super) fn beside(path: &Path) -> Space {
        let mut ballast = path.as_os_str().to_owned();
        ballast.push(".ballast");
        let space = Space {
            folder: path.parent().unwrap_or(Path::new("/")).to_owned(),
            ballast: PathBuf::from(ballast),
            free_min: AtomicU64::new(0),
            free: AtomicU64::new(0),
            has_room: AtomicBool::new(true),
            turn: Mutex::new(()),
        };
        if free_bytes(&space.folder).is_ok_and(|free| free < START_MIN_BYTES) {
            space.give_ballast_up();
        }
        space
    }

    /// The disk is full: nothing new is taken until a look finds it above the floor. Without a floor each write finds out
    /// by itself.
    pub(super) fn refuse(&self) {
        if self.free_min.load(Ordering::SeqCst) > 0 {
            self.has_room.store(false, Ordering::SeqCst);
        }
    }

    /// Gives the ballast's room to whatever is written next.
    pub(super) fn give_ballast_up(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match std::fs::remove_file(&self.ballast) {
            Ok(()) => tracing::warn!(path = %self.ballast.display(),
                "the disk is full; the ballast was given up so that what runs can be finished"),
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => (),
            Err(fault) => {
                tracing::error!(path = %self.ballast.display(), error = %fault, "the ballast could not be given up");
            }
        }
    }

    fn room(&self) -> Room {
        Room {
            free_bytes: self.free.load(Ordering::SeqCst),
            free_min_bytes: self.free_min.load(Ordering::SeqCst),
            has_room: self.has_room.load(Ordering::SeqCst),
        }
    }

    /// Measures, decides, and makes the ballast where it is missing and there is room for both. Blocks.
    fn look(&self) -> std::io::Result<Room> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let free_min = self.free_min.load(Ordering::SeqCst);
        let free = free_bytes(&self.folder)?;
        self.free.store(free, Ordering::SeqCst);
        self.has_room.store(free >= free_min, Ordering::SeqCst);
        let wanted = ballast_bytes(free_min);
        if allocated_bytes(&self.ballast) < wanted && free >= free_min.saturating_add(wanted) {
            self.make_ballast(wanted);
        }
        Ok(self.room())
    }

    /// Not having one costs the last jobs of a full disk a wait, no more: it is tried again at the next look.
    fn make_ballast(&self, bytes: u64) {
        let made = File::create(&self.ballast)
            .and_then(|file| keep_private(&self.ballast).and_then(|()| allocate(&file, bytes)));
        if let Err(fault) = made {
            tracing::warn!(path = %self.ballast.display(), error = %fault, "the ballast could not be made");
            drop(std::fs::remove_file(&self.ballast));
        }
    }
}

impl Store {
    /// Sets the floor of free space, in bytes, and looks for the first time; 0 is no floor. Blocks.
    pub fn keep_free(&self, free_min_bytes: u64) {
        let space = &self.shared.space;
        space.free_min.store(free_min_bytes, Ordering::SeqCst);
        if let Err(fault) = space.look() {
            tracing::warn!(error = %fault, "the free space of the database's disk is not known");
        }
    }

    /// Whether there is room for a new job, as of the last look. Costs nothing; asked before each admission.
    pub fn has_room(&self) -> bool {
        self.shared.space.has_room.load(Ordering::SeqCst)
    }

    /// What was seen at the last look.
    pub fn room(&self) -> Room {
        self.shared.space.room()
    }

    /// Looks how much room there is, off the async threads.
    ///
    /// # Errors
    /// The file system does not say; then everything stays as it was.
    pub async fn look_for_room(&self) -> Result<Room, StoreError> {
        let space = Arc::clone(&self.shared.space);
        let folder = space.folder.clone();
        let looked = tokio::task::spawn_blocking(move || space.look()).await;
        let looked = looked.map_err(std::io::Error::other).and_then(|room| room);
        looked.map_err(|fault| StoreError::file(&folder, &fault))
    }
}

fn ballast_bytes(free_min: u64) -> u64 {
    (free_min / BALLAST_OF_FLOOR).min(BALLAST_MAX_BYTES)
}

/// What an ordinary user may still write: the reserve of root is not foreman's.
fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    let seen = rustix::fs::statvfs(folder)?;
    Ok(seen.f_bavail.saturating_mul(seen.f_frsize))
}

/// What a file really takes; one that is not there takes nothing.
fn allocated_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |file| file.blocks().saturating_mul(STAT_BLOCK_BYTES))
}

/// Takes real space: a file with holes would give none back.
fn allocate(file: &File, bytes: u64) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    if rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes).is_ok() {
        return Ok(());
    }
    fill(file, bytes)
}

/// Writes bytes that no file system can make smaller.
fn fill(mut file: &File, bytes: u64) -> std::io::Result<()> {
    use std::io::Write;
    const PIECE_BYTES: usize = 1024 * 1024;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    while piece.len() < PIECE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.extend_from_slice(&state.to_le_bytes());
    }
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
        file.write_all(piece.get(..part).unwrap_or(&piece))?;
        left = left.saturating_sub(u64::try_from(part).unwrap_or(left));
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_ballast_is_real_and_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::beside(&folder.path().join("a.db"));
        let ballast = folder.path().join("a.db.ballast");
        assert!(space.look().unwrap().has_room && !ballast.exists(), "no floor, no ballast");
        space.free_min.store(8 * MIB, Ordering::SeqCst);
        space.look().unwrap();
        assert!(allocated_bytes(&ballast) >= 2 * MIB, "{}", allocated_bytes(&ballast));
        space.refuse();
        space.give_ballast_up();
        assert!(!space.room().has_room && !ballast.exists());
        let room = space.look().unwrap();
        assert!(room.has_room && room.free_bytes > 8 * MIB);
        assert!(allocated_bytes(&ballast) >= 2 * MIB);
    }

    #[test]
    fn below_the_floor_nothing_is_taken_and_no_ballast_made() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::beside(&folder.path().join("a.db"));
        space.free_min.store(u64::MAX, Ordering::SeqCst);
        assert!(!space.look().unwrap().has_room);
        assert_eq!(allocated_bytes(&space.ballast), 0);
        space.free_min.store(0, Ordering::SeqCst);
        assert!(space.look().unwrap().has_room);
        space.refuse();
        assert!(space.room().has_room, "without a floor each write finds out by itself");
    }

    #[test]
    fn where_space_cannot_be_reserved_it_is_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fill(file.as_file(), 3 * MIB + 5).unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), 3 * MIB + 5);
        assert!(allocated_bytes(file.path()) >= 3 * MIB);
    }
}
