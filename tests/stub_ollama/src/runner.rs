//! A resident runner and the right to use it.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Model;
use crate::options::RunnerOptions;
use crate::residency::Shared;

/// One loaded model. Every field is written under the scheduler's lock.
#[derive(Debug)]
pub(crate) struct Runner {
    /// Distinguishes a runner from its predecessor on the same blob.
    pub(crate) id: u64,
    /// The alias that loaded it.
    pub(crate) model: Arc<Model>,
    pub(crate) options: RunnerOptions,
    /// Requests that hold a `RunnerUse`.
    pub(crate) users: u32,
    /// Keep-alive in nanoseconds: zero or less unloads when idle, `i64::MAX` never does. An
    /// eviction works by zeroing it, and any later request with its own `keep_alive` overwrites
    /// that zero: the deadlock of Ollama issue 17408.
    pub(crate) session_ns: i64,
    /// The armed timer; `None` while in use or pinned.
    pub(crate) deadline: Option<Instant>,
    /// What `/api/ps` shows.
    pub(crate) expires_wall_ns: i128,
    pub(crate) is_healthy: bool,
    pub(crate) slots: Arc<Semaphore>,
    /// Cancelled when the process is killed.
    pub(crate) died: CancellationToken,
}

/// The right to use a runner; while it lives the runner is not idle.
#[derive(Debug)]
pub(crate) struct RunnerUse {
    pub(crate) shared: Arc<Shared>,
    pub(crate) blob: String,
    pub(crate) id: u64,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) died: CancellationToken,
}

impl RunnerUse {
    /// Kills the runner's process; `/api/ps` goes on listing it.
    pub(crate) fn kill(&self) {
        self.shared.kill(&self.blob, self.id);
    }
}

impl Drop for RunnerUse {
    fn drop(&mut self) {
        self.shared.finish(&self.blob, self.id);
    }
}
