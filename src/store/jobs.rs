//! The commands that move a job through its life, as the rest of the program sees them. Their SQL is in [`super::life`].

use bytes::Bytes;

use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, Counters, Event, JobId, Kind};
use crate::domain::retry::Charge;

use super::answers::Answer;
use super::error::StoreError;
use super::rows::HeaderList;
use super::{Durability, Store, life};

/// A job about to be admitted.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its public name.
    pub id: JobId,
    /// The wire shape of its request.
    pub dialect: Dialect,
    /// What the worker has to do.
    pub kind: Kind,
    /// The lane it waits in, as text.
    pub lane: String,
    /// The model as the client wrote it; empty if it could not be read.
    pub model: String,
    /// How urgent it is.
    pub class: Class,
    /// Who asked: an opaque id; empty where nobody knows.
    pub client: String,
    /// Whether its answer is a stream.
    pub is_streamed: bool,
    /// Path and query as the client sent them.
    pub path_and_query: String,
    /// End-to-end request headers.
    pub headers: HeaderList,
    /// The original body.
    pub body: Bytes,
}

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Jobs in state `queued`.
    pub jobs_max: u64,
    /// Sum of their request bodies.
    pub bytes_max: u64,
    /// Jobs of each class in state `queued`, in the order of [`Class::ALL`]; `None` where only `jobs_max` holds.
    pub class_max: [Option<u64>; 3],
}

/// The limit that an admission would have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLimit {
    /// [`QueueLimits::jobs_max`].
    Jobs,
    /// [`QueueLimits::bytes_max`].
    Bytes,
    /// [`QueueLimits::class_max`] of this class.
    Class(Class),
}

/// The answer to an admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is in the queue, on disk.
    Admitted {
        /// Its arrival number.
        seq: i64,
    },
    /// The queue is full; nothing was stored.
    Full {
        /// Jobs that wait; of the class, where its own limit was reached.
        jobs: u64,
        /// What there was no more room for.
        limit: QueueLimit,
    },
}

/// What cancelling a waiting job came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancellation {
    /// It is cancelled.
    Cancelled,
    /// It was claimed or has ended: the worker sees to it.
    NotWaiting,
    /// There is no such job: it was never admitted.
    Unknown,
}

/// A job taken by the worker, with all that is needed to run it.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Arrival number: the database's own key.
    pub seq: i64,
    /// Public name.
    pub id: JobId,
    /// The fence: every later write names it.
    pub lease_epoch: i64,
    /// What to do.
    pub kind: Kind,
    /// The wire shape.
    pub dialect: Dialect,
    /// The model as the client wrote it.
    pub model: String,
    /// Whether its answer is a stream.
    pub is_streamed: bool,
    /// The counters, this attempt included.
    pub counters: Counters,
    /// When it was admitted.
    pub created_at_ms: i64,
    /// When it was claimed.
    pub claimed_at_ms: i64,
    /// Path and query as the client sent them.
    pub path_and_query: String,
    /// End-to-end request headers.
    pub headers: HeaderList,
    /// The original body.
    pub body: Bytes,
}

/// How a job ends.
#[derive(Debug, Clone)]
pub struct Ending {
    /// [`Event::Complete`], [`Event::Fail`] or [`Event::Cancel`].
    pub event: Event,
    /// The upstream's answer, where there was a whole one (an error answer is one too).
    pub answer: Option<Answer>,
    /// Why it failed, for people.
    pub error: Option<String>,
}

/// How a job goes back to the queue.
#[derive(Debug, Clone)]
pub struct GiveBack {
    /// Which counter pays.
    pub charge: Charge,
    /// Not to be tried before; up to `at_ms`, it is ready at once.
    pub not_before_ms: i64,
    /// Why, for people.
    pub error: String,
    /// Now.
    pub at_ms: i64,
}

impl Store {
    /// Admits a job. When this returns `Admitted`, the job is on disk and will be served, whatever dies.
    ///
    /// # Errors
    /// [`StoreError::Full`] and [`StoreError::RolledBack`]: nothing was stored, the client may try again.
    pub async fn admit(
        &self,
        job: NewJob,
        limits: QueueLimits,
        at_ms: i64,
    ) -> Result<Admission, StoreError> {
        self.write(Durability::Synced, move |tx| life::admit(tx, &job, limits, at_ms)).await
    }

    /// Claims the oldest ready job of this class in a lane with a fresh lease epoch and counts the attempt; `None` if none
    /// is ready any more. Survives kill -9, so a job that kills the daemon is counted.
    ///
    /// # Errors
    /// Any of the store's; then nothing was claimed.
    pub async fn claim(
        &self,
        lane: String,
        class: Class,
        event: Event,
        at_ms: i64,
    ) -> Result<Option<Claim>, StoreError> {
        self.write(Durability::Process, move |tx| life::claim(tx, &lane, class, event, at_ms)).await
    }

    /// Moves a claimed job from `loading` to `working`; making its key resident took `load_ms` milliseconds. `false` if
    /// the lease is no longer ours. Survives kill -9.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn loaded(
        &self,
        seq: i64,
        epoch: i64,
        load_ms: i64,
        at_ms: i64,
    ) -> Result<bool, StoreError> {
        self.write(Durability::Process, move |tx| life::loaded(tx, seq, epoch, load_ms, at_ms))
            .await
    }

    /// Puts a claimed job back into the queue. `false` if the lease is lost.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn give_back(
        &self,
        seq: i64,
        epoch: i64,
        back: GiveBack,
    ) -> Result<bool, StoreError> {
        self.write(Durability::Process, move |tx| life::give_back(tx, seq, epoch, &back)).await
    }

    /// Records the one outcome of a claimed job, with its answer, synced. `false` if the lease is lost: then somebody
    /// else's outcome stands and this one must not be announced.
    ///
    /// # Errors
    /// Any of the store's; nothing was recorded, try again.
    pub async fn finish(
        &self,
        seq: i64,
        epoch: i64,
        ending: Ending,
        at_ms: i64,
    ) -> Result<bool, StoreError> {
        self.write(Durability::Synced, move |tx| life::finish(tx, seq, epoch, &ending, at_ms)).await
    }

    /// Cancels a job that still waits.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn cancel_waiting(&self, id: JobId, at_ms: i64) -> Result<Cancellation, StoreError> {
        self.write(Durability::Process, move |tx| life::cancel_waiting(tx, id, at_ms)).await
    }
}
