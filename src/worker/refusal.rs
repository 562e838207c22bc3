//! Clients of a key that does not load get its last error at once, instead of waiting for one try after another.
//!
//! Called by the worker when a load has failed, for all that wait; and by `http` for each client that comes while the key's
//! breaker is open. A job that outlives its caller stays in the queue; only clients on its connection are told.

use std::time::Duration;

use crate::domain::job::JobId;
use crate::domain::learning::{LoadError, LoadFailure, OpenBreaker};
use crate::domain::model::{LoadKey, ModelName};
use crate::domain::retry::{Fault, Told};
use crate::domain::schedule::Lane;
use crate::ollama::inventory::Inventory;
use crate::store::{Refused, Refusing, StoreError};

use super::conclude::Conclusion;
use super::handle::add;
use super::mind::Installed;
use super::output::{End, Refusal};
use super::{Hands, WorkerHandle};

/// The status of a load that was given up: a gateway's, as for every silence of Ollama's.
const GIVEN_UP_STATUS: u16 = 504;

/// The end of each refusal. `http` adds when.
const SAFE: &str = "it is safe to try again";

/// Jobs refused in one write: short enough not to hold up an admission.
const REFUSED_MAX: usize = 200;

impl WorkerHandle {
    /// What a client of this lane gets instead of a place in the queue; `None` if its key may be loaded, or is being tried.
    pub fn refusal(&self, lane: &Lane, inventory: &Inventory, now_ms: i64) -> Option<Refusal> {
        let open = self.mind().refusing(lane.key()?, &Installed(inventory), now_ms)?;
        Some(refusal(&open, now_ms))
    }

    /// Refuses a job that was admitted, or joined by a client, while its key's breaker was open.
    pub async fn refuse_if_broken(
        &self,
        lane: &Lane,
        id: JobId,
        inventory: &Inventory,
        now_ms: i64,
    ) {
        match self.refusal(lane, inventory, now_ms) {
            Some(refusal) => self.refuse(lane, &[id], &refusal, now_ms).await,
            None => {
                if let Some(output) = self.outputs().find(id) {
                    output.clear_notice();
                }
            }
        }
    }

    /// Closes the breakers of a model that was deleted or replaced; of all where it is not known which.
    pub fn model_changed(&self, model: Option<&ModelName>) {
        match model {
            Some(model) => self.mind().forget_failures_of(model),
            None => self.mind().forget_coolings(),
        }
        self.wake();
    }

    /// The upstream was started anew: whatever could not be loaded may be loaded now.
    pub fn upstream_restarted(&self) {
        self.mind().forget_coolings();
        self.wake();
    }

    /// Fails those of the jobs that wait in this lane and end with their callers, and tells whoever waits for the others.
    async fn refuse(&self, lane: &Lane, ids: &[JobId], refusal: &Refusal, now_ms: i64) {
        for some in ids.chunks(REFUSED_MAX) {
            let refusing = Refusing {
                lane: lane.to_string(),
                ids: some.to_vec(),
                text: refusal.text.clone(),
                status: refusal.status,
                at_ms: now_ms,
            };
            match self.store().refuse_waiting(refusing).await {
                Ok(refused) => self.tell_refused(&refused, refusal),
                Err(fault) => log_fault(&fault),
            }
        }
    }

    fn tell_refused(&self, refused: &Refused, refusal: &Refusal) {
        for id in &refused.failed {
            tracing::warn!(job.id = %id, "job failed, its model could not be loaded");
            add(&self.counts().failed);
            self.mind().gave_up(*id);
            if let Some(output) = self.outputs().find(*id) {
                output.end(End::Broken(refusal.clone()));
                self.outputs().forget_this(*id, &output);
            }
        }
        for id in &refused.kept {
            if let Some(output) = self.outputs().find(*id) {
                let stays = format!("; job {id} stays queued, {SAFE}");
                let text = refusal.text.replace(&format!(", {SAFE}"), &stays);
                output.notify(Refusal { text, ..refusal.clone() });
            }
        }
    }
}

fn log_fault(fault: &StoreError) {
    tracing::warn!(db.error = %fault, "jobs of a key that does not load could not be failed; they wait for its next try");
}

impl Hands {
    /// A load of the worker's failed with an error. If it failed beside models that were left in memory, the next try makes
    /// room first. Its clients are told at once all the same: where memory runs out, Ollama unloads the others and tries again
    /// by itself, so it hardly ever fails because of them.
    pub(super) fn load_failed(
        &self,
        load: &LoadKey,
        kept: &[ModelName],
        error: LoadError,
    ) -> Conclusion {
        let (failure, status, text) = (error.failure, error.status, error.text.clone());
        if failure == LoadFailure::Refused && !kept.is_empty() {
            self.learn_fit(load, kept, false);
        }
        self.note_failed_load(load, &[], error);
        match self.refusal_of(load) {
            Some(refusal) => Conclusion::NotLoaded(refusal),
            None => Conclusion::failed(Fault::Told(Told::Busy), status, text),
        }
    }

    /// A load that took longer than its limit was given up. The key pauses, so that others are served.
    pub(super) fn load_given_up(&self, load: &LoadKey, limit: Duration) -> Conclusion {
        let error = given_up(load, limit);
        let text = error.text.clone();
        self.note_failed_load(load, &[], error);
        match self.refusal_of(load) {
            Some(refusal) => Conclusion::NotLoaded(refusal),
            None => Conclusion::failed(Fault::LoadGivenUp, GIVEN_UP_STATUS, text),
        }
    }

    /// A load failed. One of an embedder that failed beside other models may have failed because of them: only one that failed
    /// alone opens the breaker of its key.
    pub(super) fn note_failed_load(&self, load: &LoadKey, beside: &[ModelName], error: LoadError) {
        if !beside.is_empty() {
            self.learn_fit(load, beside, false);
            return;
        }
        let installed = Installed(&self.tools.inventory);
        let pause_ms = self.handle.mind().load_failed(load, &installed, error, self.now_ms());
        tracing::warn!(load.key = %load, load.pause.ms = pause_ms, "a key that does not load is paused");
    }

    /// The refusal of a key whose breaker is open.
    pub(super) fn refusal_of(&self, load: &LoadKey) -> Option<Refusal> {
        let (lane, inventory) = (Lane::Key(load.clone()), &self.tools.inventory);
        self.handle.refusal(&lane, inventory, self.now_ms())
    }

    /// After a load has failed: everybody who waits for the key is told, beside the worker's further work.
    pub(super) fn refuse_waiting(&self, load: &LoadKey) {
        let Some(refusal) = self.refusal_of(load) else { return };
        let (handle, lane, now_ms) = (self.handle.clone(), Lane::Key(load.clone()), self.now_ms());
        self.tools.tasks.spawn(async move {
            let ids = handle.outputs().waited_for();
            handle.refuse(&lane, &ids, &refusal, now_ms).await;
        });
    }
}

/// The error of a load that took longer than `limit`.
pub(super) fn given_up(load: &LoadKey, limit: Duration) -> LoadError {
    let text = format!(
        "{load} was not loaded within {} s (FOREMAN_LOAD_LIMIT), and its load was given up",
        limit.as_secs()
    );
    LoadError { failure: LoadFailure::Stuck, status: GIVEN_UP_STATUS, text }
}

fn refusal(open: &OpenBreaker, now_ms: i64) -> Refusal {
    // Rounded up: a client that comes back on time must not find it open still.
    let seconds = open.until_ms.saturating_sub(now_ms).saturating_add(999) / 1_000;
    let tries = match open.failures {
        1 => "tried once".to_owned(),
        failures => format!("tried {failures} times"),
    };
    let text =
        format!("{}; foreman could not load {} ({tries}), {SAFE}", open.error.text, open.key);
    Refusal {
        status: open.error.status,
        text,
        retry_after_s: Some(u64::try_from(seconds).unwrap_or(0).max(1)),
        is_told: false,
    }
}
