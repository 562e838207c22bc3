//! The bytes of one job's answer, kept as they come: one writer (the attempt), any number of followers from any offset.
//!
//! The writer never waits for a follower, so a slow client never holds the upstream up. The first
//! [`MEMORY_BYTES_MAX`] bytes stay in memory; beyond it everything is in a file as well, and followers read from there.
//! Until [`Output::show`] nothing is visible and the writer may start over. The answer of a job that outlives its caller may
//! start over later, too: the bytes belong to an attempt, and whoever follows one that is replaced is told and cut.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

mod follower;
mod parts;
mod progress;
mod spill;

pub use follower::{BeyondEnd, Follower, Next};
pub use parts::{End, Head, Kept, Opening, Refusal, Timings};

use crate::store::Measured;

/// Bytes of an answer kept in memory. Nearly all answers are smaller; ten thousand waiting clients hold none yet.
pub const MEMORY_BYTES_MAX: u64 = 1024 * 1024;

/// One job's answer.
#[derive(Debug)]
pub struct Output {
    inner: Mutex<Inner>,
    changed: Notify,
    abandoned: CancellationToken,
    spill_path: PathBuf,
    bytes_max: u64,
}

#[derive(Debug, Default)]
struct Inner {
    head: Option<Head>,
    timings: Timings,
    chunks: Vec<Bytes>,
    file: Option<Arc<File>>,
    /// Where that file is.
    file_path: PathBuf,
    bytes: u64,
    is_shown: bool,
    /// A client waits, or has waited, for it. Nobody waits for a job that a restart brought back: its stream may start
    /// over as long as nobody does.
    is_followed: bool,
    /// Clients that wait for it now.
    waiters: usize,
    /// The job outlives its caller.
    is_async: bool,
    is_in_flight: bool,
    /// The attempt is to end for a job that somebody waits for; what came of it is not shown.
    is_interrupted: bool,
    /// Somebody cancelled the job, rather than leaving it.
    is_cancelled: bool,
    /// Records of the stream so far: about as many as tokens.
    records: u64,
    measured: Measured,
    /// The end mark or an error record is among the bytes: what is left is framing.
    is_decided: bool,
    /// The bytes are not kept: no file may stay.
    is_discarded: bool,
    /// What whoever waits is told, though the job goes on without them.
    notice: Option<Refusal>,
    end: Option<End>,
}

/// Why bytes could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Beyond the limit for answers.
    #[error("the answer is larger than {0} bytes")]
    TooLong(u64),
    /// The disk would not take them.
    #[error("the answer could not be kept on disk: {0}")]
    Disk(String),
}

impl Output {
    /// An empty output. `spill_path` is where a large answer goes, with the number of its attempt behind it; `bytes_max` is the most it may hold.
    pub fn new(spill_path: PathBuf, bytes_max: u64) -> Output {
        Output {
            inner: Mutex::default(),
            changed: Notify::new(),
            abandoned: CancellationToken::new(),
            spill_path,
            bytes_max,
        }
    }

    /// The kept answer of an ended job, whole from the start.
    pub fn kept(head: Head, timings: Timings, kept: Kept) -> Output {
        let (chunks, file, bytes) = match kept {
            Kept::Memory(body) => {
                let bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
                (vec![body], None, bytes)
            }
            Kept::File(file, bytes) => (Vec::new(), Some(Arc::new(file)), bytes),
        };
        let output = Output::new(PathBuf::new(), 0);
        *output.lock() = Inner {
            head: Some(head),
            timings,
            chunks,
            file,
            bytes,
            is_shown: true,
            end: Some(End::Whole),
            ..Inner::default()
        };
        output
    }

    /// Notes that the job was claimed, for this attempt.
    pub fn take_off(&self, attempt: i64, is_async: bool) {
        let mut inner = self.lock();
        inner.is_in_flight = true;
        inner.notice = None;
        inner.is_interrupted = false;
        inner.is_async = is_async;
        inner.timings.attempt = attempt;
    }

    /// Notes that the job went back to the queue. Whoever follows the attempt is told and cut; what came of it is dropped, since
    /// a job may wait long for the next one.
    pub fn put_back(&self) {
        self.lock().is_in_flight = false;
        self.start_over(Timings::default());
        self.changed.notify_waiters();
    }

    /// Whether the worker has the job.
    pub fn is_in_flight(&self) -> bool {
        self.lock().is_in_flight
    }

    /// Returns when the worker does not have the job. Cancel-safe.
    pub async fn not_in_flight(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.is_in_flight() {
                return;
            }
            changed.await;
        }
    }

    /// Throws a hidden answer away, for a new attempt; the answer of a job that outlives its caller also where it was shown.
    pub fn start_over(&self, timings: Timings) {
        let mut inner = self.lock();
        if (inner.is_shown && !inner.is_async) || inner.end.is_some() {
            return;
        }
        if inner.file.is_some() {
            drop(std::fs::remove_file(&inner.file_path));
        }
        *inner = Inner {
            timings,
            is_in_flight: inner.is_in_flight,
            is_followed: inner.is_followed,
            waiters: inner.waiters,
            is_async: inner.is_async,
            is_interrupted: inner.is_interrupted,
            is_cancelled: inner.is_cancelled,
            ..Inner::default()
        };
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Sets status and headers. Still hidden.
    pub fn begin(&self, head: Head) {
        self.lock().head = Some(head);
    }

    /// Keeps the next bytes.
    ///
    /// # Errors
    /// [`KeepError::TooLong`] beyond the limit, [`KeepError::Disk`] if the file cannot be written.
    pub async fn push(self: &Arc<Self>, chunk: Bytes) -> Result<(), KeepError> {
        let chunk_bytes = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        let (must_spill, attempt) = {
            let mut inner = self.lock();
            if inner.bytes.saturating_add(chunk_bytes) > self.bytes_max {
                return Err(KeepError::TooLong(self.bytes_max));
            }
            let fits = inner.bytes + chunk_bytes <= MEMORY_BYTES_MAX;
            if fits {
                inner.bytes += chunk_bytes;
                inner.chunks.push(chunk.clone());
            }
            (!fits, inner.timings.attempt)
        };
        if must_spill {
            let output = Arc::clone(self);
            tokio::task::spawn_blocking(move || output.spill(attempt, &chunk))
                .await
                .map_err(|fault| KeepError::Disk(fault.to_string()))?
                .map_err(|fault| KeepError::Disk(fault.to_string()))?;
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// Notes that a client waits for it.
    pub fn follow(&self) {
        let mut inner = self.lock();
        inner.is_followed = true;
        inner.waiters += 1;
    }

    /// Notes that one more client waits for it, unless the last one has left: then it says no.
    pub fn join(&self) -> bool {
        let mut inner = self.lock();
        if self.is_abandoned() {
            return false;
        }
        inner.is_followed = true;
        inner.waiters += 1;
        true
    }

    /// Notes that a client no longer waits for it.
    pub fn unfollow(&self) {
        let mut inner = self.lock();
        inner.waiters = inner.waiters.saturating_sub(1);
    }

    /// Whether a client waits for it now.
    pub fn has_waiters(&self) -> bool {
        self.lock().waiters > 0
    }

    /// Tells those who wait for the beginning that it will not come soon. The job goes on without them.
    pub fn notify(&self, notice: Refusal) {
        self.lock().notice = Some(notice);
        self.changed.notify_waiters();
    }

    /// Takes such a notice back, for clients that come later.
    pub fn clear_notice(&self) {
        self.lock().notice = None;
    }

    /// Notes that a client has left. If it was the last one, the attempt is told in the same moment that nobody wants the
    /// answer any more, and nobody can join.
    pub fn leave(&self) -> bool {
        let mut inner = self.lock();
        inner.waiters = inner.waiters.saturating_sub(1);
        if inner.waiters == 0 {
            self.abandon();
        }
        inner.waiters == 0
    }

    /// Whether the job outlives its caller.
    pub fn is_async(&self) -> bool {
        self.lock().is_async
    }

    /// Makes the answer visible from its first byte on, if anybody waits for it or the job outlives its caller. From here on
    /// it must not start over unseen.
    pub fn show(&self) {
        let mut inner = self.lock();
        inner.is_shown |= (inner.is_followed || inner.is_async) && !inner.is_interrupted;
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Whether a client may have seen a byte.
    pub fn is_shown(&self) -> bool {
        self.lock().is_shown
    }

    /// Ends the answer, and shows it.
    pub fn end(&self, end: End) {
        let mut inner = self.lock();
        if inner.end.is_none() {
            inner.is_shown |= end == End::Whole;
            inner.end = Some(end);
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// How long the job waited and loaded.
    pub fn timings(&self) -> Timings {
        self.lock().timings
    }

    /// Whether nothing more will come.
    pub fn has_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Status and headers, once begun.
    pub fn head(&self) -> Option<Head> {
        self.lock().head.clone()
    }

    /// The whole content if it is in memory; `None` if it is in the file.
    pub fn in_memory(&self) -> Option<Bytes> {
        let inner = self.lock();
        if inner.file.is_some() {
            return None;
        }
        let mut chunks = inner.chunks.iter();
        match (chunks.next(), inner.chunks.len()) {
            (None, _) => Some(Bytes::new()),
            (Some(only), 1) => Some(only.clone()),
            (Some(_), _) => Some(Bytes::from(inner.chunks.concat())),
        }
    }

    /// Tells the attempt that nobody wants the answer any more.
    pub fn abandon(&self) {
        self.abandoned.cancel();
    }

    /// Tells the attempt that somebody cancelled the job.
    pub fn cancel(&self) {
        self.lock().is_cancelled = true;
        self.abandon();
    }

    /// Whether somebody cancelled the job.
    pub fn is_cancelled(&self) -> bool {
        self.lock().is_cancelled
    }

    /// Whether nobody wants it any more.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.is_cancelled()
    }

    /// Returns when nobody wants it any more, unless it is decided by then: a client that closes on the end mark has its
    /// answer. Cancel-safe.
    pub async fn abandoned(&self) {
        self.abandoned.cancelled().await;
        if self.lock().is_decided {
            std::future::pending::<()>().await;
        }
    }

    /// Notes, before the bytes are shown, that the end mark or an error record is among them.
    pub fn decide(&self) {
        self.lock().is_decided = true;
    }

    /// Waits for the beginning of the answer, or for its refusal. Cancel-safe.
    pub async fn opening(&self) -> Opening {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(opening) = self.opening_now() {
                return opening;
            }
            changed.await;
        }
    }

    fn opening_now(&self) -> Option<Opening> {
        let inner = self.lock();
        match (&inner.head, &inner.end) {
            (None, None) if !inner.is_in_flight => inner.notice.clone().map(Opening::Refused),
            (Some(head), _) if inner.is_shown => Some(Opening::Answer(head.clone(), inner.timings)),
            (_, Some(End::Broken(refusal))) => Some(Opening::Refused(refusal.clone())),
            (None, Some(End::Whole)) => Some(Opening::Refused(Refusal {
                status: 502,
                text: "the answer has no head".to_owned(),
                retry_after_s: None,
                is_told: false,
            })),
            (_, None) | (Some(_), Some(End::Whole)) => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
