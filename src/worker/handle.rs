//! What the rest of the program may ask of the worker, and what it counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::domain::job::JobId;
use crate::domain::model::ModelName;
use crate::shutdown::Tasks;
use crate::store::Store;

use super::Tools;
use super::border::{BorderHold, Chore};
use super::embeds::Embeds;
use super::mind::{Arrival, Mind};
use super::output::{End, Output, Refusal};
use super::outputs::Outputs;
use super::searches::Searches;

/// The worker, from outside. Clones share everything.
#[derive(Clone)]
pub struct WorkerHandle {
    outputs: Arc<Outputs>,
    wake: Arc<Notify>,
    deadlines: Arc<Notify>,
    counts: Arc<Counts>,
    chores: mpsc::Sender<Chore>,
    mind: Mind,
    searches: Searches,
    embeds: Embeds,
    store: Store,
    tasks: Tasks,
}

/// What happened since the daemon started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Keys made resident.
    pub loads: AtomicU64,
    /// Loads that pushed another worker model out.
    pub swaps: AtomicU64,
    /// Times the upstream was stuck in a load and had to be freed.
    pub wedges: AtomicU64,
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
            "wedges": read(&self.wedges),
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
    pub(super) fn new(
        outputs: Arc<Outputs>,
        chores: mpsc::Sender<Chore>,
        mind: Mind,
        tools: &Tools,
    ) -> WorkerHandle {
        let wake: Arc<Notify> = Arc::default();
        WorkerHandle {
            outputs,
            deadlines: Arc::default(),
            counts: Arc::default(),
            chores,
            searches: Searches::default(),
            embeds: Embeds::new(Arc::clone(&wake), mind.clone(), tools.clock.clone()),
            wake,
            mind,
            store: tools.store.clone(),
            tasks: tools.tasks.clone(),
        }
    }

    /// The database.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// What was learned.
    pub(super) fn mind(&self) -> &Mind {
        &self.mind
    }

    /// Tells the worker of a job that was admitted: who asked is taken in, and the worker woken.
    pub fn arrived(&self, arrival: &Arrival<'_>, now_ms: i64) {
        if let Some(learned) = self.mind.arrived(arrival, now_ms) {
            let store = self.store.clone();
            self.tasks.spawn(async move {
                if let Err(fault) =
                    store.keep_gap(learned.source, Some(learned.gap_ms), now_ms).await
                {
                    tracing::debug!(db.error = %fault, "a gap that was learned is not kept");
                }
            });
        }
        self.wake();
    }

    /// The last decisions and the holds, for the status document.
    pub fn explanation(&self) -> Value {
        self.mind.as_json()
    }

    /// The embeds.
    pub fn embeds(&self) -> &Embeds {
        &self.embeds
    }

    /// The outputs of open jobs.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// The jobs for which Ollama may search by itself.
    pub fn searches(&self) -> &Searches {
        &self.searches
    }

    /// The counts.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Tells the worker that there is something new to look at.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Tells whoever watches the deadlines of waiting jobs that one may have come to wait.
    pub fn deadline_waits(&self) {
        self.deadlines.notify_one();
    }

    /// Returns when one may have come to wait. Cancel-safe: what is told while nobody listens is told then.
    pub async fn new_deadline(&self) {
        self.deadlines.notified().await;
    }

    /// The wake-up itself, for the worker's own waiting.
    pub(super) fn waking(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Takes note of a job that was cancelled before the worker saw it, and tells whoever waits for it.
    pub fn cancelled_waiting(&self, id: JobId, output: &Arc<Output>) {
        add(&self.counts.cancelled);
        self.mind.gave_up(id);
        output.end(End::Broken(Refusal::cancelled()));
        self.outputs.forget_this(id, output);
    }

    /// Takes note of a job whose deadline passed before the worker saw it, and tells whoever waits for it.
    pub fn expired(&self, id: JobId) {
        add(&self.counts.failed);
        self.mind.gave_up(id);
        if let Some(output) = self.outputs.find(id) {
            output.end(End::Broken(Refusal::late()));
            self.outputs.forget_this(id, &output);
        }
    }

    /// Tells the worker of a job that outlives its caller, with the last arrival number given out: nothing follows on it.
    pub fn submitted(&self, last_seq: i64) {
        self.mind.admitted(last_seq);
        self.wake();
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

    /// Whether somebody waits for a border.
    pub(super) fn has_chores(&self) -> bool {
        self.chores.capacity() < self.chores.max_capacity()
    }

    /// Has the configured embedder warmed at the next job border. A full list of chores holds one already.
    pub fn warm(&self) {
        if self.chores.try_send(Chore::Warm).is_ok() {
            self.wake();
        }
    }
}
