//! A swap, in foreman's own steps: unload the chosen victims, watch ps until they are gone, load the new key with exactly
//! its options and the pin. Ollama is never left to choose a victim, and no client's connection carries a load.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use crate::domain::learning::{LoadError, LoadFailure, Models};
use crate::domain::model::{LoadKey, ModelName};
use crate::domain::retry::{Fault, Told, told_by_status};
use crate::domain::schedule::Reason;
use crate::fail_point;
use crate::ollama::client::SendError;
use crate::store::StoreError;

use super::conclude::Conclusion;
use super::handle::add;
use super::mind::Installed;
use super::watch::{Freed, LOAD_MAX, Watched};
use super::{Hands, brief};

/// The longest an unloaded model may stay in ps before the load goes ahead: Ollama gives its memory 5 s to come back, and
/// a runner that has not died after six times that will not.
const GONE_LIMIT: Duration = Duration::from_secs(30);

/// So many questions to ps without an answer between them are enough: it stalls for up to 5 s while Ollama swaps.
const UNANSWERED_MAX: u32 = 6;

/// How often ps is asked while a model goes: first at once, then less and less often.
const GONE_PAUSE_FIRST: Duration = Duration::from_millis(10);
const GONE_PAUSE_MAX: Duration = Duration::from_millis(250);

impl Hands {
    /// Makes `load` resident, under the name `asked` of the job at hand where that makes the same runner. Dropped only when
    /// the end is forced.
    ///
    /// A load that Ollama refuses with a 4xx is let through: the job itself will be told the same in its own shape.
    pub(super) async fn swap(
        &self,
        unload: &[ModelName],
        load: &LoadKey,
        asked: &str,
        reason: Reason,
    ) -> Result<(), Conclusion> {
        self.tools.residency.set_loading(Some(&load.model));
        let outcome = tokio::select! {
            outcome = self.swap_steps(unload, load, asked, reason) => outcome,
            () = self.tools.tasks.forced() => {
                self.tools.residency.doubt();
                Err(Conclusion::Stopped("foreman was stopped while it loaded the model".to_owned()))
            }
        };
        self.tools.residency.set_loading(None);
        self.handle.mind().load_ended(load, self.now_ms());
        if outcome.is_err() {
            self.refuse_waiting(load);
        }
        outcome
    }

    async fn swap_steps(
        &self,
        unload: &[ModelName],
        load: &LoadKey,
        asked: &str,
        reason: Reason,
    ) -> Result<(), Conclusion> {
        // Held to the end of the load, so that nobody pushes out what has just been loaded.
        let _hold = self.hold_embeds(load, unload).await;
        let began_ms = self.now_ms();
        for victim in unload {
            // A victim that stays would leave the choice to Ollama: the swap is tried again later instead.
            self.unload(victim).await?;
        }
        let mut kept = self.workers_beside(&load.model);
        let installed = self.tools.inventory.find(&load.model);
        let request = self.tools.inventory.load_request(asked, load);
        fail_point::reach("load.before");
        self.handle.mind().load_begins(load);
        let loading = self.tools.ollama.load(&request, LOAD_MAX);
        let reply = match self.watch(load, loading).await {
            Watched::Ended(reply, Freed::Nothing) => reply,
            Watched::Ended(reply, Freed::Everything) => {
                // They were unloaded by foreman, so nothing is learned about them.
                kept.clear();
                reply
            }
            Watched::GivenUp(limit) => {
                self.tools.residency.doubt();
                return Err(self.load_given_up(load, limit));
            }
        };
        let now_ms = self.now_ms();
        match reply {
            Ok(reply) if reply.status == 200 => {
                fail_point::reach("load.after");
                let took_ms = now_ms - began_ms;
                self.tools.residency.loaded(load, self.settings.keep_alive, now_ms);
                let size_bytes = installed.and_then(|entry| entry.size_bytes);
                self.note_load(load, reason, took_ms, size_bytes);
                let gone = self.see_what_went(load, &kept).await;
                if !unload.is_empty() || gone > 0 {
                    add(&self.handle.counts().swaps);
                }
                let unloaded = unload.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                tracing::info!(load.key = %load, load.ms = took_ms, load.reason = reason.name(),
                    load.unloaded = %unloaded, "model loaded");
                Ok(())
            }
            Ok(reply) if reply.status < 500 => {
                self.tools.residency.doubt();
                Ok(())
            }
            Ok(reply) => {
                self.tools.residency.doubt();
                let text = reply.error_text();
                tracing::warn!(load.key = %load, upstream.status = reply.status, upstream.error = %brief(&text), "load failed");
                let failure = match told_by_status(reply.status, &text) {
                    Told::Busy => LoadFailure::Busy,
                    Told::Final | Told::Passing => LoadFailure::Refused,
                };
                let error = LoadError { failure, status: reply.status, text };
                Err(self.load_failed(load, &kept, error))
            }
            Err(fault) => {
                self.tools.residency.doubt();
                let conclusion = self.call_fault(&format!("loading {load}"), &fault).await;
                let Conclusion::Failed { fault: Fault::Cut, status, text } = conclusion else {
                    return Err(conclusion);
                };
                // Ollama lives: the connection broke because of this load.
                let error = LoadError { failure: LoadFailure::Refused, status, text };
                Err(self.load_failed(load, &kept, error))
            }
        }
    }

    /// The worker models in memory.
    pub(super) fn workers_resident(&self) -> Vec<ModelName> {
        let held = self.tools.residency.held();
        held.into_iter().filter(|held| !held.is_embedder).map(|held| held.model).collect()
    }

    /// The worker models in memory beside one that is to be loaded. It may be there itself, to be confirmed: it does not stand
    /// in its own way.
    fn workers_beside(&self, load: &ModelName) -> Vec<ModelName> {
        let mut beside = self.workers_resident();
        beside.retain(|model| !self.tools.inventory.is_same(model, load));
        beside
    }

    /// Takes a load into account. One that only confirmed what was there is no measure of a load.
    fn note_load(&self, load: &LoadKey, reason: Reason, took_ms: i64, size_bytes: Option<i64>) {
        let now_ms = self.now_ms();
        let mind = self.handle.mind();
        if reason == Reason::Confirm {
            mind.loaded(load, None, size_bytes, now_ms);
            return;
        }
        add(&self.handle.counts().loads);
        mind.loaded(load, Some(took_ms), size_bytes, now_ms);
        let (store, key) = (self.tools.store.clone(), load.to_string());
        self.keep(async move { store.keep_load_time(key, took_ms, now_ms).await });
    }

    /// What became of the models that were left in memory for a load: learns from it whether they fit, and answers how many
    /// worker models had to go. Embedders count for what fits: Ollama takes what has the shortest `keep_alive`, and that
    /// is an embedder that came for a while.
    pub(super) async fn see_what_went(&self, load: &LoadKey, kept: &[ModelName]) -> usize {
        let embedders = self.embedders_resident(load);
        if kept.is_empty() && embedders.is_empty() {
            return 0;
        }
        if self.tools.inventory.is_ps_slow() {
            // The next answer will tell what is left.
            self.tools.residency.doubt();
            return 0;
        }
        let Ok(ps) = self.tools.inventory.ps(&self.tools.ollama).await else { return 0 };
        let inventory = &self.tools.inventory;
        let is_gone =
            |model: &&ModelName| ps.iter().all(|listed| !inventory.is_same(&listed.model, model));
        let gone: Vec<&ModelName> = kept.iter().chain(&embedders).filter(is_gone).collect();
        self.learn_fit(load, kept, gone.is_empty());
        for model in &gone {
            self.tools.residency.unloaded(model);
        }
        if !gone.is_empty() {
            // What is left was seen together.
            let left: Vec<ModelName> =
                kept.iter().filter(|model| !is_gone(model)).cloned().collect();
            self.learn_fit(load, &left, true);
        }
        kept.iter().filter(is_gone).count()
    }

    /// The embedders in memory beside what is loaded.
    fn embedders_resident(&self, load: &LoadKey) -> Vec<ModelName> {
        let held = self.tools.residency.held().into_iter().filter(|held| held.is_embedder);
        held.map(|held| held.model).filter(|model| *model != load.model).collect()
    }

    /// Remembers whether a load fitted beside `kept` and the embedders in memory.
    pub(super) fn learn_fit(&self, load: &LoadKey, kept: &[ModelName], fits: bool) {
        let installed = Installed(&self.tools.inventory);
        let embedders = self.embedders_resident(load);
        let models = kept.iter().chain(&embedders).chain([&load.model]);
        let set: BTreeSet<String> = models.map(|model| installed.identity(model)).collect();
        if let Some(models) = self.handle.mind().fits(set, fits) {
            let (store, now_ms) = (self.tools.store.clone(), self.now_ms());
            self.keep(async move { store.keep_fit(models, fits, now_ms).await });
        }
    }

    /// Keeps something learned over a restart, beside the worker's further work. Losing it costs a measurement.
    pub(super) fn keep(
        &self,
        writing: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) {
        self.tools.tasks.spawn(async move {
            if let Err(fault) = writing.await {
                tracing::debug!(db.error = %fault, "what was learned is not kept");
            }
        });
    }

    /// What a call of foreman's own that got no answer means for the job it was made for.
    async fn call_fault(&self, call: &str, fault: &SendError) -> Conclusion {
        let text = format!("{call}: {fault}");
        match fault {
            SendError::Unreachable { .. } => {
                self.tools.health.lost(&text, self.now_ms());
                Conclusion::failed(Fault::Unreachable, 502, text)
            }
            SendError::Late { .. } => Conclusion::failed(Fault::Silent, 504, text),
            SendError::Body(_) | SendError::Broken { .. } | SendError::Strange { .. } => {
                Conclusion::failed(self.cut_or_died().await, 502, text)
            }
        }
    }

    /// Asks Ollama to unload a model and waits until ps no longer lists it. Its embeds are held meanwhile. A model that was deleted while it was resident
    /// can no longer be unloaded by name: that is logged and no fault.
    pub(super) async fn unload(&self, model: &ModelName) -> Result<(), Conclusion> {
        let began_ms = self.now_ms();
        let _hold = self.handle.embeds().hold_new(vec![model.clone()]);
        fail_point::reach("unload.before");
        let reply = match self.tools.ollama.unload(model.as_str()).await {
            Ok(reply) => reply,
            Err(fault) => {
                self.tools.residency.doubt();
                return Err(self.call_fault(&format!("unloading {model}"), &fault).await);
            }
        };
        if reply.status == 200 {
            self.wait_until_gone(model).await;
            fail_point::reach("unload.after");
            self.tools.residency.unloaded(model);
            tracing::debug!(model.name = %model, unload.ms = self.now_ms() - began_ms, "model unloaded");
            return Ok(());
        }
        let text = reply.error_text();
        tracing::warn!(model.name = %model, upstream.status = reply.status, upstream.error = %brief(&text),
            "a resident model could not be unloaded");
        self.tools.residency.doubt();
        match reply.status {
            400..500 => Ok(()),
            status => Err(Conclusion::failed(Fault::Told(passing(status, &text)), status, text)),
        }
    }

    pub(super) async fn wait_until_gone(&self, model: &ModelName) {
        if self.tools.inventory.is_ps_slow() {
            // Nobody can tell. Ollama waits by itself for the memory of what it unloads.
            return;
        }
        if tokio::time::timeout(GONE_LIMIT, self.gone(model)).await.is_err() {
            tracing::warn!(model.name = %model, limit.s = GONE_LIMIT.as_secs(),
                "an unloaded model is still listed; going on all the same");
        }
    }

    /// Returns when ps no longer lists the model under any of its names, or has said nothing for a while, or the upstream is
    /// away.
    async fn gone(&self, model: &ModelName) {
        let (mut pause, mut unanswered) = (GONE_PAUSE_FIRST, 0);
        while unanswered < UNANSWERED_MAX {
            let inventory = &self.tools.inventory;
            match inventory.ps(&self.tools.ollama).await {
                Ok(ps) if ps.iter().all(|entry| !inventory.is_same(&entry.model, model)) => return,
                Err(SendError::Unreachable { .. }) => return,
                Ok(_) => unanswered = 0,
                Err(_) => unanswered += 1,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(GONE_PAUSE_MAX);
        }
    }

    /// Tells a connection that broke from an upstream that died, by asking the upstream.
    pub(super) async fn cut_or_died(&self) -> Fault {
        match self.tools.ollama.ping().await {
            Ok(()) => Fault::Cut,
            Err(fault) => {
                self.tools.health.lost(&fault.to_string(), self.now_ms());
                Fault::UpstreamDied
            }
        }
    }
}

/// A 5xx to a load or an unload: it may go better the next time, memory comes back, a driver recovers.
fn passing(status: u16, text: &str) -> Told {
    match told_by_status(status, text) {
        Told::Final => Told::Passing,
        told => told,
    }
}
