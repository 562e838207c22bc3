//! The only room that speaks SQL: one writer thread with group commit, a few read-only connections, and functions
//! named as the questions and commands of the domain. Called by `worker` and `http`.
//!
//! A write is acknowledged only after its transaction was committed; a [`Durability::Synced`] one only after it
//! reached the disk. Nothing here knows HTTP or Ollama.

mod admission;
mod answers;
mod board;
mod by_hand;
mod deadlines;
mod deliveries;
mod error;
mod events;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod jobs;
mod lanes;
mod learning;
mod life;
mod lock;
mod log;
mod outbox;
mod overview;
mod owners;
mod recovery;
mod refusals;
mod retention;
mod rows;
mod schema;
mod set_aside;
mod space;
mod trace;
mod turns;
mod view;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rusqlite::{Connection, OpenFlags, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::fail_point;

pub use admission::{
    Admission, Extras, FoundBy, Hash, Idempotency, Likeness, NewJob, QueueLimit, QueueLimits,
    Webhook,
};
pub use answers::{Answer, AnswerBody};
pub use board::{DueBefore, Extent, LanesInView, ViewOf};
pub use by_hand::{Cancellation, Dropping, MANY_MAX, Many, Reopening, Which};
pub use deliveries::{DeliveryState, ManyResent, Resending, Try, Undelivered};
pub use error::StoreError;
pub use events::{EVENTS_MAX, Page, Transition};
pub use jobs::{Claim, Ending, GaveBack, GiveBack, Measured};
pub use lanes::{WaitingHead, WaitingLane};
pub use learning::Learned;
pub use outbox::{
    DeliveryCounts, DeliveryView, ListedDeliveries, OwedTo, Telling, WhichDeliveries,
};
pub use overview::{LaneSummary, OpenJob, Overview};
pub use owners::{Cap, Caps};
pub use recovery::Recovered;
pub use refusals::{Refused, Refusing};
pub use retention::{EndedBefore, Swept};
pub use rows::HeaderList;
pub use set_aside::SetAside;
pub use space::Room;
pub use trace::FinishedJob;
pub use view::{AnswerSummary, Attempt, Filter, JobView, Listed, Sought};
pub use writer::Durability;

/// How many read-only connections there are. Who asks on behalf of clients leaves one for the worker's decisions.
pub const READERS: usize = 3;

/// The open database of one daemon. Cloning is cheap; all clones share the writer.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    writer: writer::Writer,
    space: Arc<space::Space>,
    readers: Mutex<Vec<Connection>>,
    free_readers: Arc<Semaphore>,
    /// Places for those who ask on behalf of clients.
    lookers: Semaphore,
    listeners: events::Listeners,
    caps: RwLock<Arc<Caps>>,
    path: PathBuf,
    /// Held until the last clone is gone: a second daemon on the same database is refused.
    _lock: lock::Lock,
}

impl Store {
    /// Opens the database, creating it and its folder where missing, takes the exclusive lock, migrates, and puts every
    /// job that was in flight back into the queue. Blocks; call it before serving.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it open; [`StoreError::Newer`] if a newer foreman wrote it; else the
    /// fault of the file system or of SQLite.
    pub fn open(path: &Path, now_ms: i64) -> Result<(Store, Recovered), StoreError> {
        schema::require_sound_sqlite()?;
        let path = &real_path(path)?;
        let lock = lock::Lock::take(path)?;
        let space = Arc::new(space::Space::beside(path));
        let mut connection = Connection::open(path)?;
        lock::keep_private(path).map_err(|fault| StoreError::file(path, &fault))?;
        schema::prepare(&connection)?;
        schema::migrate(&mut connection)?;
        let recovered = {
            let tx = connection.transaction()?;
            let recovered = recovery::recover(&tx, now_ms)?;
            fail_point::reach("recovery.uncommitted");
            tx.commit()?;
            fail_point::reach("recovery.committed");
            recovered
        };
        let readers = (0..READERS).map(|_| open_reader(path)).collect::<Result<Vec<_>, _>>()?;
        let listeners = events::Listeners::new();
        let publisher = events::Publisher::new(&connection, listeners.clone())?;
        let bench = writer::Bench::new(path.clone(), Arc::clone(&space), publisher);
        let shared = Shared {
            writer: writer::Writer::start(connection, bench)?,
            space,
            readers: Mutex::new(readers),
            free_readers: Arc::new(Semaphore::new(READERS)),
            lookers: Semaphore::new(READERS - 1),
            listeners,
            caps: RwLock::default(),
            path: path.to_owned(),
            _lock: lock,
        };
        Ok((Store { shared: Arc::new(shared) }, recovered))
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The folder beside the database that holds answers too large for a row.
    pub fn answers_folder(&self) -> PathBuf {
        let mut name = self.shared.path.as_os_str().to_owned();
        name.push(".answers");
        PathBuf::from(name)
    }

    /// Runs `work` in the next write transaction and returns when that was committed (and, if asked, synced).
    ///
    /// Cancellation: dropping the future does not take the write back.
    ///
    /// # Errors
    /// Whatever `work` returns, undone by itself; [`StoreError::RolledBack`] if the whole batch failed to commit: then
    /// nothing of it happened and it may be tried again.
    pub(crate) async fn write<T, F>(&self, durability: Durability, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.shared.writer.write(durability, work).await
    }

    /// Runs `question` on a read-only connection, off the async threads, in one short read transaction.
    pub(crate) async fn read<T, F>(&self, question: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let free = Arc::clone(&self.shared.free_readers);
        let place = free.acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let mut reader = Reader::take(Arc::clone(&self.shared), place)?;
        // The reader goes with the question, not with whoever asked: an asker may leave before the answer.
        let answer = tokio::task::spawn_blocking(move || {
            let tx = reader.connection()?.transaction()?;
            question(&tx)
        });
        answer.await.map_err(|fault| StoreError::Strange(format!("a question died: {fault}")))?
    }

    /// Returns when no more can be written: the store was closed, or its disk or its file has failed for good. Cancel-safe.
    pub async fn ended(&self) {
        self.shared.writer.ended().await;
    }

    /// The same on behalf of a client. However many ask, one connection is left for the worker's decisions.
    pub(crate) async fn look<T, F>(&self, question: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let _place = self.shared.lookers.acquire().await.map_err(|_| StoreError::Closed)?;
        self.read(question).await
    }

    /// Waits for what was handed in, folds the write-ahead log into the database, and ends the writer thread. Later
    /// writes are [`StoreError::Closed`].
    pub async fn close(&self) {
        self.shared.writer.close().await;
    }
}

/// A read-only connection on loan. Dropping it gives connection and place back together.
struct Reader {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    fn take(shared: Arc<Shared>, place: OwnedSemaphorePermit) -> Result<Reader, StoreError> {
        let connection = shared.lock_readers().pop();
        let connection = match connection {
            Some(connection) => connection,
            None => open_reader(&shared.path)?,
        };
        Ok(Reader { shared, connection: Some(connection), _place: place })
    }

    fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        self.connection.as_mut().ok_or(StoreError::Closed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.lock_readers().extend(self.connection.take());
    }
}

impl Shared {
    fn lock_readers(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The database's own path, its folder made where missing: by whatever link it is named, it has one lock.
fn real_path(path: &Path) -> Result<PathBuf, StoreError> {
    let fault_at = |path: &Path| {
        let path = path.to_owned();
        move |fault: std::io::Error| StoreError::file(&path, &fault)
    };
    if path.exists() {
        return path.canonicalize().map_err(fault_at(path));
    }
    if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
        std::fs::create_dir_all(folder).map_err(fault_at(folder))?;
    }
    // Made before it is named: a link to a file that is yet to be is followed, too.
    lock::create_private(path).map_err(fault_at(path))?;
    path.canonicalize().map_err(fault_at(path))
}

fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "query_only", "ON")?;
    connection.busy_timeout(schema::BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(schema::STATEMENTS_CACHED);
    Ok(connection)
}

#[cfg(test)]
mod tests;
