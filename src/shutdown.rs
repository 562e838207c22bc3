//! The two steps of stopping, and the one place where tasks are spawned, so that a stop can wait for each of them.
//!
//! *Drain*: no new work is begun; what runs may finish. *Force*: what still runs is dropped. The first signal drains,
//! the second one, or the end of the grace time, forces. Every long task watches both.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks and tells them to stop. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    drain: CancellationToken,
    force: CancellationToken,
    is_broken: Arc<AtomicBool>,
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

    /// Spawns a task the daemon cannot do without: if it panics, the daemon ends, and whoever supervises it starts it anew
    /// on the queue as it is on disk. A daemon that accepts jobs nobody serves would be worse.
    #[expect(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
    pub fn spawn_vital<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = tokio::spawn(self.tracker.track_future(task));
        let tasks = self.clone();
        tokio::spawn(async move {
            if running.await.is_err_and(|fault| fault.is_panic()) {
                tasks.break_down(name);
            }
        });
    }

    /// Ends the daemon because a part of it is gone.
    pub fn break_down(&self, part: &str) {
        tracing::error!(part, "a part of foreman has died; ending, so that it can be started anew");
        self.is_broken.store(true, Ordering::SeqCst);
        self.force();
    }

    /// Whether the daemon ends because a part of it is gone.
    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::SeqCst)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vital_task_that_panics_ends_the_daemon() {
        let tasks = Tasks::default();
        tasks.spawn_vital("fine", async {});
        tasks.spawn_vital("doomed", async { panic!("on purpose") });
        tasks.draining().await;
        assert!(tasks.is_broken() && tasks.is_forced());
        tasks.finished().await;
    }
}
