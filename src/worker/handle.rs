//! What the rest of the program may ask of the worker, and what it counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::domain::model::ModelName;

use super::border::{BorderHold, Chore};
use super::outputs::Outputs;

/// The worker, from outside. Clones share everything.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    outputs: Arc<Outputs>,
    wake: Arc<Notify>,
    counts: Arc<Counts>,
    chores: mpsc::Sender<Chore>,
}

/// What happened since the daemon started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Keys made resident.
    pub loads: AtomicU64,
    /// Loads that pushed another worker model out.
    pub swaps: AtomicU64,
    /// Keys that went away though foreman did not unload them.
    pub external_unloads: AtomicU64,
    /// Jobs done.
    pub done: AtomicU64,
    /// Jobs failed.
    pub failed: AtomicU64,
    /// Jobs cancelled.
    pub cancelled: AtomicU64,
    /// Attempts that were put back into the queue.
    pub retries: AtomicU64,
}

impl Counts {
    /// For the status document.
    pub fn as_json(&self) -> Value {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        json!({
            "loads": read(&self.loads),
            "swaps": read(&self.swaps),
            "external_unloads": read(&self.external_unloads),
            "done": read(&self.done),
            "failed": read(&self.failed),
            "cancelled": read(&self.cancelled),
            "retries": read(&self.retries),
        })
    }
}

/// Adds one.
pub(super) fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl WorkerHandle {
    pub(super) fn new(outputs: Arc<Outputs>, chores: mpsc::Sender<Chore>) -> WorkerHandle {
        WorkerHandle { outputs, wake: Arc::default(), counts: Arc::default(), chores }
    }

    /// The outputs of open jobs.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// The counts.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Tells the worker that there is something new to look at.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// The wake-up itself, for the worker's own waiting.
    pub(super) fn waking(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Counts a job that was cancelled before the worker saw it.
    pub fn count_cancelled(&self) {
        add(&self.counts.cancelled);
    }

    /// Has a model unloaded at the next job border; returns when that was done, or could not be. Nothing is dispatched
    /// while the returned hold lives, so that the model is not loaded again before it is changed.
    pub async fn release(&self, model: ModelName) -> Option<BorderHold> {
        let (done, finished) = oneshot::channel();
        self.chores.send(Chore::Release { model, done }).await.ok()?;
        self.wake();
        // A worker that is gone has nothing in flight either.
        finished.await.ok()
    }

    /// Has the configured embedder warmed at the next job border. A full list of chores holds one already.
    pub fn warm(&self) {
        if self.chores.try_send(Chore::Warm).is_ok() {
            self.wake();
        }
    }
}
