//! The commands that move a job through its life, as the rest of the program sees them. Their SQL is in [`super::life`].

use bytes::Bytes;
use rusqlite::Connection;

use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, Counters, Event, JobId, Kind};
use crate::domain::retry::Charge;

use super::answers::Answer;
use super::error::StoreError;
use super::rows::HeaderList;
use super::{Durability, Store, life};

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
    /// Whether it outlives its caller.
    pub is_async: bool,
    /// Whether it was set aside: nobody waits for it, unless its client has come back since.
    pub is_unattended: bool,
    /// An answer after this is of no use (milliseconds since 1970).
    pub deadline_ms: Option<i64>,
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
    /// The HTTP status that belongs to the error, where there is one.
    pub error_status: Option<u16>,
    /// What was measured on its last attempt.
    pub measured: Measured,
}

impl Ending {
    /// It failed without an answer.
    pub(super) fn failed(error: impl Into<String>) -> Ending {
        Ending::bare(Event::Fail, error)
    }

    /// It was cancelled.
    pub(super) fn cancelled(error: impl Into<String>) -> Ending {
        Ending::bare(Event::Cancel, error)
    }

    fn bare(event: Event, error: impl Into<String>) -> Ending {
        Ending {
            event,
            answer: None,
            error: Some(error.into()),
            error_status: None,
            measured: Measured::default(),
        }
    }
}

/// What was measured on an attempt. Times are milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// When the first byte of the answer came.
    pub first_byte_at_ms: Option<i64>,
    /// When the last one did.
    pub answered_at_ms: Option<i64>,
    /// Tokens of the prompt, as Ollama counts them.
    pub prompt_tokens: Option<u64>,
    /// Tokens generated, as Ollama counts them.
    pub output_tokens: Option<u64>,
}

/// What giving a job back came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GaveBack {
    /// It waits again.
    Queued,
    /// It had been cancelled while it ran, and is now.
    Cancelled,
    /// The lease is lost: somebody else sees to it.
    LeaseLost,
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
    /// Claims the next job of this class in a lane (clients take turns; a client's go by arrival) with a fresh lease epoch and
    /// counts the attempt; `None` if none is ready any more, or all are of owners at their caps. Survives kill -9, so a job that
    /// kills the daemon is counted.
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
        let caps = self.caps();
        let claim = move |tx: &Connection| life::claim(tx, (&lane, class), &caps, event, at_ms);
        self.write(Durability::Process, claim).await
    }

    /// Claims up to `claims_max` ready jobs of this class in a lane to be worked on, in the order of their turns, in one write.
    ///
    /// # Errors
    /// Any of the store's; then nothing was claimed.
    pub async fn claim_some(
        &self,
        lane: String,
        class: Class,
        at_ms: i64,
        claims_max: usize,
    ) -> Result<Vec<Claim>, StoreError> {
        let caps = self.caps();
        self.write(Durability::Process, move |tx| {
            let mut claims = Vec::new();
            while claims.len() < claims_max {
                match life::claim(tx, (&lane, class), &caps, Event::ClaimToWork, at_ms)? {
                    Some(claim) => claims.push(claim),
                    None => break,
                }
            }
            Ok(claims)
        })
        .await
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

    /// Puts a claimed job back into the queue, unless it was cancelled meanwhile.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn give_back(
        &self,
        seq: i64,
        epoch: i64,
        back: GiveBack,
    ) -> Result<GaveBack, StoreError> {
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
}
