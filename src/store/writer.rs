//! The writer thread: the only read-write connection, fed by a bounded channel, committing in groups.
//!
//! It takes one write, then whatever else is already waiting (no timer, so an idle store adds no delay), runs them in
//! one `BEGIN IMMEDIATE … COMMIT`, each in a savepoint of its own, and only then answers. A batch in which nobody asked
//! for [`Durability::Synced`] is committed without a flush: it survives the death of the process, not of the machine.
//!
//! What fails for the disk's sake fails the whole batch, and is then seen to (ADR 15, 16): a full disk gets the ballast,
//! an I/O error a new connection, and what that does not help ends the thread, and with it the daemon.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;

use super::error::StoreError;
use super::events::Publisher;
use super::log::{checkpoint, reopen};
use super::space::Space;

/// Writes that may wait for the writer; beyond it callers wait for a place. Four full batches.
const WAITING_MAX: usize = 1_024;

/// Writes in one transaction: enough to spread one flush thinly, few enough to keep the transaction short.
const BATCH_MAX: usize = 256;

/// Writes after which the write-ahead log is folded into the database, after the answers are out. About a thousand
/// pages, SQLite's own default.
const CHECKPOINT_WRITES: usize = 500;

/// An I/O error within this time after the last one is no accident: the daemon is better started anew, on what is on disk.
const IO_FAULTS_APART_MS: i64 = 60_000;

/// What a write must survive before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of this process (kill -9).
    Process,
    /// The loss of power: flushed to disk.
    Synced,
}

/// The handle of the writer thread.
pub(super) struct Writer {
    sender: Mutex<Option<mpsc::Sender<Write>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Closes with the thread.
    alive: watch::Receiver<()>,
}

struct Write {
    durability: Durability,
    work: Box<dyn Work>,
}

/// One write: run inside the transaction, then told how the transaction went.
trait Work: Send {
    /// The fault is of the disk or the file: the batch must not be committed.
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError>;
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct TypedWork<T, F> {
    work: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Work for TypedWork<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError> {
        if let Some(work) = self.work.take() {
            match in_savepoint(connection, work) {
                Err(fault) if fault.is_of_the_disk() => return Err(fault),
                outcome => self.outcome = Some(outcome),
            }
        }
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let outcome = match committed {
            Ok(()) => self.outcome.unwrap_or(Err(StoreError::Closed)),
            Err(fault) => Err(fault),
        };
        // A caller that no longer waits does not take its write back.
        drop(self.reply.send(outcome));
    }
}

/// Undoes one failed write without touching the others of its batch.
fn in_savepoint<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.execute_batch("SAVEPOINT one")?;
    let outcome = work(connection);
    match outcome {
        Ok(_) => connection.execute_batch("RELEASE one")?,
        // After a full disk SQLite has rolled the whole transaction back: there is no savepoint to return to.
        Err(_) if connection.is_autocommit() => (),
        Err(_) => connection.execute_batch("ROLLBACK TO one; RELEASE one")?,
    }
    outcome
}

impl Writer {
    /// Starts the thread on the one read-write connection.
    pub(super) fn start(connection: Connection, bench: Bench) -> Result<Writer, StoreError> {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let (living, alive) = watch::channel(());
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                bench.run(connection, receiver);
                drop(living);
            })
            .map_err(|fault| StoreError::File {
                path: "store-writer".to_owned(),
                fault: fault.to_string(),
            })?;
        let (sender, thread) = (Mutex::new(Some(sender)), Mutex::new(Some(thread)));
        Ok(Writer { sender, thread, alive })
    }

    /// Returns when the thread has ended, whatever ended it. Cancel-safe.
    pub(super) async fn ended(&self) {
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
    }

    /// See `Store::write`.
    pub(super) async fn write<T, F>(&self, durability: Durability, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let sender = lock(&self.sender).clone().ok_or(StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let work = Box::new(TypedWork { work: Some(work), outcome: None, reply });
        sender.send(Write { durability, work }).await.map_err(|_| StoreError::Closed)?;
        drop(sender);
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Ends the thread once it has done what was handed in.
    pub(super) async fn close(&self) {
        drop(lock(&self.sender).take());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the store's writer thread panicked");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What the thread works with, beside its connection.
pub(super) struct Bench {
    path: PathBuf,
    space: Arc<Space>,
    publisher: Publisher,
    clock: Clock,
    /// When the disk failed last.
    io_fault_at_ms: Option<i64>,
}

impl Bench {
    /// For the database at `path`.
    pub(super) fn new(path: PathBuf, space: Arc<Space>, publisher: Publisher) -> Bench {
        Bench { path, space, publisher, clock: Clock::system(), io_fault_at_ms: None }
    }

    fn run(mut self, mut connection: Connection, mut receiver: mpsc::Receiver<Write>) {
        let mut writes_since_checkpoint = 0;
        while let Some(first) = receiver.blocking_recv() {
            let mut batch = next_batch(first, &mut receiver);
            writes_since_checkpoint += batch.len();
            let mut outcome = commit(&connection, &mut batch);
            if matches!(outcome, Err(StoreError::Full)) {
                // Before its callers know: they come again at once.
                self.make_way(&mut receiver);
            }
            answer(batch, &outcome);
            if outcome.is_ok() {
                self.publisher.publish(&connection);
            }
            if outcome.is_ok() && writes_since_checkpoint >= CHECKPOINT_WRITES {
                writes_since_checkpoint = 0;
                outcome = checkpoint(&connection, "PASSIVE").map(drop);
                if matches!(outcome, Err(StoreError::Full)) {
                    self.make_way(&mut receiver);
                }
            }
            let Err(fault) = outcome else { continue };
            connection = match self.see_to(fault, connection) {
                Ok(connection) => connection,
                Err(fault) => {
                    tracing::error!(db.path = %self.path.display(), db.error = %fault, "the database is given up");
                    return;
                }
            };
        }
        if let Err(fault) = checkpoint(&connection, "TRUNCATE") {
            tracing::warn!(db.error = %fault, "the write-ahead log is left for the next start");
        }
    }

    /// The disk is full: no new job is taken, and what runs gets the ballast's room.
    fn make_way(&self, receiver: &mut mpsc::Receiver<Write>) {
        self.space.refuse();
        // What was let in before that must not take the room meant for outcomes. Those come again.
        while let Ok(write) = receiver.try_recv() {
            write.work.answer(Err(StoreError::Full));
        }
        self.space.give_ballast_up();
    }

    /// Does what can be done about a fault; the connection to go on with.
    fn see_to(
        &mut self,
        fault: StoreError,
        connection: Connection,
    ) -> Result<Connection, StoreError> {
        match fault {
            StoreError::Io(_) => {
                let now_ms = self.clock.now_ms();
                let last_ms = self.io_fault_at_ms.replace(now_ms);
                if last_ms.is_some_and(|at_ms| (now_ms - at_ms).abs() < IO_FAULTS_APART_MS) {
                    return Err(fault);
                }
                reopen(&self.path, connection)
            }
            StoreError::Damaged(_) => Err(fault),
            StoreError::Full
            | StoreError::InUse { .. }
            | StoreError::Newer { .. }
            | StoreError::RolledBack(_)
            | StoreError::Closed
            | StoreError::Strange(_)
            | StoreError::File { .. }
            | StoreError::Sql(_) => Ok(connection),
        }
    }
}

fn next_batch(first: Write, receiver: &mut mpsc::Receiver<Write>) -> Vec<Write> {
    let mut batch = vec![first];
    while batch.len() < BATCH_MAX {
        match receiver.try_recv() {
            Ok(next) => batch.push(next),
            Err(_) => break,
        }
    }
    batch
}

/// Runs a batch in one transaction. Nobody was answered yet when it returns.
fn commit(connection: &Connection, batch: &mut [Write]) -> Result<(), StoreError> {
    let is_synced = batch.iter().any(|write| write.durability == Durability::Synced);
    let committed = try_commit(connection, batch, is_synced);
    if committed.is_err() && !connection.is_autocommit() {
        drop(connection.execute_batch("ROLLBACK"));
    }
    if let Err(fault) = &committed {
        tracing::error!(db.error = %fault, db.writes = batch.len(), "a write transaction was rolled back");
    }
    committed
}

fn answer(batch: Vec<Write>, committed: &Result<(), StoreError>) {
    for write in batch {
        write.work.answer(committed.as_ref().map(|&()| ()).map_err(StoreError::for_each));
    }
}

fn try_commit(
    connection: &Connection,
    batch: &mut [Write],
    is_synced: bool,
) -> Result<(), StoreError> {
    let level = if is_synced { "FULL" } else { "NORMAL" };
    connection.pragma_update(None, "synchronous", level)?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    for write in batch {
        write.work.run(connection)?;
        if connection.is_autocommit() {
            // What ran before is gone, what follows must not run alone.
            return Err(StoreError::RolledBack("SQLite ended the transaction".to_owned()));
        }
    }
    Ok(connection.execute_batch("COMMIT")?)
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    /// Has a write meet this fault; what its caller is told.
    async fn meet(store: &Store, fault: StoreError) -> StoreError {
        store.write::<(), _>(Durability::Synced, move |_| Err(fault)).await.unwrap_err()
    }

    async fn writes(store: &Store) -> bool {
        store.write(Durability::Synced, |_| Ok(())).await.is_ok()
    }

    #[tokio::test]
    async fn an_io_error_costs_its_batch_and_a_second_one_soon_after_ends_the_writer() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
        let fault = || StoreError::Io("on purpose".to_owned());
        assert!(matches!(meet(&store, fault()).await, StoreError::Io(_)));
        assert!(writes(&store).await, "on the new connection");
        assert!(matches!(meet(&store, fault()).await, StoreError::Io(_)));
        store.ended().await;
        assert!(!writes(&store).await);
    }

    #[tokio::test]
    async fn a_damaged_database_ends_the_writer_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let (store, _) = Store::open(&path, 0).unwrap();
        meet(&store, StoreError::Damaged("on purpose".to_owned())).await;
        store.ended().await;
        store.close().await;
        drop(store);
        std::fs::write(&path, [b'x'; 8_192]).unwrap();
        let fault = Store::open(&path, 0).err().unwrap();
        assert!(matches!(fault, StoreError::Damaged(_)) && fault.to_string().contains(".recover"));
    }

    #[tokio::test]
    async fn a_full_disk_gets_the_ballast_and_refuses_until_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let (store, _) = Store::open(&path, 0).unwrap();
        store.keep_free(4 * 1024 * 1024);
        let ballast = folder.path().join("a.db.ballast");
        assert!(store.has_room() && ballast.exists());
        assert!(matches!(meet(&store, StoreError::Full).await, StoreError::Full));
        assert!(writes(&store).await, "outcomes are written on");
        assert!(!store.has_room() && !ballast.exists());
        store.look_for_room().await.unwrap();
        assert!(store.has_room() && ballast.exists());
    }
}
