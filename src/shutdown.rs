//! The two steps of stopping, and the one place where tasks are spawned, so that a stop can wait for each of them.
//!
//! *Drain*: no new work is begun; what runs may finish. *Force*: what still runs is dropped. The first signal drains,
//! the second one, or the end of the grace time, forces. Every long task watches both.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks and tells them to stop. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    drain: CancellationToken,
    force: CancellationToken,
}

impl Tasks {
    /// Spawns a task that [`Tasks::finished`] waits for.
    #[expect(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.tracker.track_future(task));
    }

    /// Begins the drain.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Begins the drain, if it has not begun, and forces the end.
    pub fn force(&self) {
        self.drain.cancel();
        self.force.cancel();
    }

    /// Whether no new work may be begun.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Whether what runs is being cut off.
    pub fn is_forced(&self) -> bool {
        self.force.is_cancelled()
    }

    /// Returns when the drain begins. Cancel-safe.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Returns when the end is forced. Cancel-safe.
    pub async fn forced(&self) {
        self.force.cancelled().await;
    }

    /// Returns when every task has ended. Call it after [`Tasks::drain`].
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
