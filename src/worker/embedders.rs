//! The loads of embedding models: for embeds that wait, and the configured one at the start.
//!
//! A load for embeds has a task of its own, so that it can go on beside running jobs. Nothing is dispatched meanwhile: one
//! load at a time, and should Ollama make room for it after all, what runs has to end.

use tokio::sync::watch;

use crate::domain::learning::{LoadError, LoadFailure};
use crate::domain::model::{LoadKey, ModelName, RunnerOptions};
use crate::ollama::calls::{Reply, Stay};
use crate::ollama::client::SendError;

use super::embeds::EmbedHold;
use super::mind::Installed;
use super::refusal::given_up;
use super::watch::{Freed, LOAD_MAX, Watched};
use super::{Hands, Worker, brief};

/// What became of the load of an embedder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Loaded {
    /// It is in memory.
    Yes,
    /// Ollama said that it cannot load it, or its load was given up.
    No(LoadError),
    /// Nobody knows, or the request was at fault.
    Unknown,
}

impl Worker {
    /// Begins the load of an embedder; the loop rests until it has ended.
    pub(super) fn load_embedder(&mut self, unload: Vec<ModelName>, load: LoadKey) {
        let hands = self.hands.clone();
        let (border, done) = (self.border.subscribe(), self.embedder_done.clone());
        self.is_loading_embedder = true;
        self.hands.tools.tasks.spawn_vital("load of an embedder", async move {
            tokio::select! {
                () = hands.load_for_embeds(&unload, &load, border) => (),
                // Nothing that was acknowledged waits for it.
                () = hands.tools.tasks.draining() => (),
            }
            if done.send(()).await.is_err() {
                tracing::trace!("the worker has stopped before a load for embeds ended");
            }
        });
    }
}

impl Hands {
    /// The canonical name of the configured embedder.
    pub(super) fn embedder(&self) -> Option<ModelName> {
        let name = self.settings.embed_model.as_deref()?;
        ModelName::parse(name).ok().map(|parsed| parsed.name)
    }

    /// Makes the configured embedder resident.
    pub(super) async fn warm(&self) {
        let Some(name) = self.embedder() else { return };
        // With nothing in flight.
        let (_, border) = watch::channel(true);
        let key = LoadKey::new(name, RunnerOptions::default());
        self.call_load(&key, Stay::Pinned, border).await;
        self.tools.residency.doubt();
    }

    /// Holds the embeds of what a load may push out, or unloads. Returns when those under way have ended.
    pub(super) async fn hold_embeds(&self, load: &LoadKey, unload: &[ModelName]) -> EmbedHold {
        let (held, installed) = (self.tools.residency.held(), Installed(&self.tools.inventory));
        let mut models = self.handle.mind().may_be_pushed_out(load, &held, &installed);
        models.extend_from_slice(unload);
        self.handle.embeds().hold(models).await
    }

    /// Has the embeds of a key that was loaded go on. Where it is not resident for all that, Ollama tells them why.
    pub(super) fn let_embeds_go(&self, key: &LoadKey) {
        let (embeds, residency) = (self.handle.embeds(), &self.tools.residency);
        match residency.serves(key) {
            true => embeds.release(|wanted| residency.serves(wanted)),
            false => embeds.let_through(|wanted| wanted == key),
        }
    }

    /// Makes an embedder resident that embeds wait for. `border` tells whether nothing is in flight.
    async fn load_for_embeds(
        &self,
        unload: &[ModelName],
        load: &LoadKey,
        border: watch::Receiver<bool>,
    ) {
        let hold = self.hold_embeds(load, unload).await;
        for victim in unload {
            self.unload_beside_jobs(victim).await;
        }
        let configured = self.embedder();
        let is_configured =
            configured.is_some_and(|name| self.tools.inventory.is_same(&name, &load.model));
        let stay = if is_configured { Stay::Pinned } else { Stay::Usual };
        let (began_ms, began_at_border) = (self.now_ms(), *border.borrow());
        self.tools.residency.set_loading(Some(&load.model));
        let loaded = self.call_load(load, stay, border).await;
        self.tools.residency.set_loading(None);
        let took_ms = self.now_ms() - began_ms;
        let is_loaded = loaded == Loaded::Yes;
        let gone = self.learn_beside_embedder(load, loaded).await;
        if is_loaded {
            // A load that waited for the end of running jobs is no measure.
            self.note_embedder_load(load, (began_at_border || gone == 0).then_some(took_ms));
        }
        drop(hold);
        self.let_embeds_go(load);
    }

    async fn call_load(
        &self,
        load: &LoadKey,
        stay: Stay,
        mut border: watch::Receiver<bool>,
    ) -> Loaded {
        let entry = self.tools.inventory.find(&load.model);
        let name = entry.map_or_else(|| load.model.to_string(), |entry| entry.display);
        let began_ms = self.now_ms();
        let loading = self.tools.ollama.load_embedder(&name, stay, LOAD_MAX);
        tokio::pin!(loading);
        let watched = async {
            // Until then a load may wait for the jobs that run, as Ollama does not push out what is in use.
            tokio::select! {
                reply = &mut loading => return Watched::Ended(reply, Freed::Nothing),
                _ = border.wait_for(|is_border| *is_border) => (),
            }
            self.watch(load, loading).await
        };
        let reply = tokio::select! {
            reply = watched => reply,
            () = self.tools.tasks.forced() => return Loaded::Unknown,
        };
        match reply {
            Watched::Ended(reply, Freed::Nothing | Freed::Everything) => {
                self.judge_load(&name, reply, self.now_ms() - began_ms)
            }
            Watched::GivenUp(limit) => Loaded::No(given_up(load, limit)),
        }
    }

    fn judge_load(&self, name: &str, reply: Result<Reply, SendError>, took_ms: i64) -> Loaded {
        match reply {
            Ok(reply) if reply.status == 200 => {
                tracing::info!(model.name = %name, load.ms = took_ms, "the embedding model is warm");
                Loaded::Yes
            }
            Ok(reply) => {
                let text = reply.error_text();
                tracing::warn!(model.name = %name, upstream.status = reply.status, upstream.error = %brief(&text),
                    "the embedding model could not be warmed");
                // A gateway's error, or a full queue, says nothing about the model.
                if reply.status < 500 || matches!(reply.status, 502..=504) {
                    return Loaded::Unknown;
                }
                Loaded::No(LoadError { failure: LoadFailure::Refused, status: reply.status, text })
            }
            Err(fault) => {
                tracing::warn!(model.name = %name, upstream.error = %fault, "the embedding model could not be warmed");
                if let SendError::Unreachable { .. } = fault {
                    self.tools.health.lost(&fault.to_string(), self.now_ms());
                }
                Loaded::Unknown
            }
        }
    }

    /// After an embedder was loaded beside other models: asks what is left of them. One that Ollama could not load beside
    /// them does not fit, so that they make room the next time; one that it could not load alone cools down. Answers how many
    /// worker models had to go.
    async fn learn_beside_embedder(&self, key: &LoadKey, loaded: Loaded) -> usize {
        let kept = self.workers_resident();
        let gone = match loaded {
            Loaded::Yes => self.see_what_went(key, &kept).await,
            Loaded::No(error) => {
                self.note_failed_load(key, &kept, error);
                0
            }
            Loaded::Unknown => 0,
        };
        self.tools.residency.doubt();
        let asked = self.tools.residency.asking();
        if let Ok(ps) = self.tools.inventory.ps(&self.tools.ollama).await {
            let is_embedder = |model: &_| self.is_embedder(model);
            self.tools.residency.reconcile(asked, &ps, is_embedder, self.now_ms());
        }
        gone
    }

    /// Takes a load into account: how long it took, where that is a measure.
    fn note_embedder_load(&self, key: &LoadKey, took_ms: Option<i64>) {
        let now_ms = self.now_ms();
        let entry = self.tools.inventory.find(&key.model);
        let size_bytes = entry.and_then(|entry| entry.size_bytes);
        self.handle.mind().loaded(key, took_ms, size_bytes, now_ms);
        if let Some(took_ms) = took_ms {
            let (store, key) = (self.tools.store.clone(), key.to_string());
            self.keep(async move { store.keep_load_time(key, took_ms, now_ms).await });
        }
    }
}
