//! The writer thread: the only read-write connection, fed by a bounded channel, committing in groups.
//!
//! It takes one write, then whatever else is already waiting (no timer, so an idle store adds no delay), runs them in
//! one `BEGIN IMMEDIATE … COMMIT`, each in a savepoint of its own, and only then answers. A batch in which nobody asked
//! for [`Durability::Synced`] is committed without a flush: it survives the death of the process, not of the machine.

use std::sync::Mutex;
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::error::StoreError;
use super::events::Publisher;

/// Writes that may wait for the writer; beyond it callers wait for a place. Four full batches.
const WAITING_MAX: usize = 1_024;

/// Writes in one transaction: enough to spread one flush thinly, few enough to keep the transaction short.
const BATCH_MAX: usize = 256;

/// Writes after which the write-ahead log is folded into the database, after the answers are out. About a thousand
/// pages, SQLite's own default.
const CHECKPOINT_WRITES: usize = 500;

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
}

struct Write {
    durability: Durability,
    work: Box<dyn Work>,
}

/// One write: run inside the transaction, then told how the transaction went.
trait Work: Send {
    fn run(&mut self, connection: &Connection);
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
    fn run(&mut self, connection: &Connection) {
        if let Some(work) = self.work.take() {
            self.outcome = Some(in_savepoint(connection, work));
        }
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
    pub(super) fn start(
        connection: Connection,
        publisher: Publisher,
    ) -> Result<Writer, StoreError> {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || run(&connection, publisher, receiver))
            .map_err(|fault| StoreError::File {
                path: "store-writer".to_owned(),
                fault: fault.to_string(),
            })?;
        Ok(Writer { sender: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
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

fn run(connection: &Connection, mut publisher: Publisher, mut receiver: mpsc::Receiver<Write>) {
    let mut writes_since_checkpoint = 0;
    while let Some(first) = receiver.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX {
            match receiver.try_recv() {
                Ok(next) => batch.push(next),
                Err(_) => break,
            }
        }
        writes_since_checkpoint += batch.len();
        commit(connection, batch);
        publisher.publish(connection);
        if writes_since_checkpoint >= CHECKPOINT_WRITES {
            writes_since_checkpoint = 0;
            checkpoint(connection, "PASSIVE");
        }
    }
    checkpoint(connection, "TRUNCATE");
}

/// Runs a batch in one transaction and answers every caller.
fn commit(connection: &Connection, mut batch: Vec<Write>) {
    let is_synced = batch.iter().any(|write| write.durability == Durability::Synced);
    let committed = try_commit(connection, &mut batch, is_synced);
    if committed.is_err() && !connection.is_autocommit() {
        drop(connection.execute_batch("ROLLBACK"));
    }
    if let Err(fault) = &committed {
        tracing::error!(db.error = %fault, db.writes = batch.len(), "a write transaction was rolled back");
    }
    for write in batch {
        write.work.answer(committed.as_ref().map(|&()| ()).map_err(StoreError::for_each));
    }
}

fn try_commit(
    connection: &Connection,
    batch: &mut [Write],
    is_synced: bool,
) -> Result<(), rusqlite::Error> {
    let level = if is_synced { "FULL" } else { "NORMAL" };
    connection.pragma_update(None, "synchronous", level)?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    for write in batch {
        write.work.run(connection);
        if connection.is_autocommit() {
            // A full disk or an I/O error ended the transaction: what ran before is gone, what follows must not run
            // alone.
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL),
                Some("the transaction was rolled back by SQLite".to_owned()),
            ));
        }
    }
    connection.execute_batch("COMMIT")
}

fn checkpoint(connection: &Connection, mode: &str) {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    if let Err(fault) = connection.query_row(&sql, [], |_| Ok(())) {
        tracing::warn!(db.error = %fault, "the write-ahead log could not be folded in");
    }
}
