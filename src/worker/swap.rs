//! A swap, in foreman's own steps: unload the chosen victims, watch ps until they are gone, load the new key with exactly
//! its options and the pin. Ollama is never left to choose a victim, and no client's connection carries a load.

use std::time::Duration;

use crate::domain::model::{LoadKey, ModelName};
use crate::domain::retry::{Fault, Told, told_by_status};
use crate::domain::schedule::Reason;
use crate::ollama::client::SendError;

use super::conclude::Conclusion;
use super::handle::add;
use super::{Worker, brief};

/// The longest an unloaded model may stay in ps before the load goes ahead: Ollama gives its memory 5 s to come back, and
/// a runner that has not died after six times that will not.
const GONE_LIMIT: Duration = Duration::from_secs(30);

/// How often ps is asked while a model goes: first at once, then less and less often.
const GONE_PAUSE_FIRST: Duration = Duration::from_millis(10);
const GONE_PAUSE_MAX: Duration = Duration::from_millis(250);

impl Worker {
    /// Makes `load` resident. Dropped only when the end is forced.
    ///
    /// A load that Ollama refuses with a 4xx is let through: the job itself will be told the same in its own shape.
    pub(super) async fn swap(
        &self,
        unload: &[ModelName],
        load: &LoadKey,
        reason: Reason,
    ) -> Result<(), Conclusion> {
        self.tools.residency.set_loading(Some(&load.model));
        let outcome = tokio::select! {
            outcome = self.swap_steps(unload, load, reason) => outcome,
            () = self.tools.tasks.forced() => {
                self.tools.residency.doubt();
                Err(Conclusion::Stopped("foreman was stopped while it loaded the model".to_owned()))
            }
        };
        self.tools.residency.set_loading(None);
        outcome
    }

    async fn swap_steps(
        &self,
        unload: &[ModelName],
        load: &LoadKey,
        reason: Reason,
    ) -> Result<(), Conclusion> {
        let began_ms = self.now_ms();
        for victim in unload {
            // A victim that stays would leave the choice to Ollama: the swap is tried again later instead.
            self.unload(victim).await?;
        }
        let installed = self.tools.inventory.find(&load.model);
        let name = installed.map_or_else(|| load.model.to_string(), |entry| entry.display);
        let reply = self.tools.ollama.load(&name, load, self.settings.load_limit).await;
        let now_ms = self.now_ms();
        match reply {
            Ok(reply) if reply.status == 200 => {
                self.tools.residency.loaded(load, self.settings.keep_alive, now_ms);
                if reason != Reason::Confirm {
                    add(&self.handle.counts().loads);
                }
                if !unload.is_empty() {
                    add(&self.handle.counts().swaps);
                }
                let unloaded = unload.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                tracing::info!(load.key = %load, load.ms = now_ms - began_ms, load.reason = reason.name(),
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
                let fault = Fault::Told(passing(reply.status, &text));
                Err(Conclusion::failed(fault, reply.status, text))
            }
            Err(fault) => {
                self.tools.residency.doubt();
                Err(self.call_fault(&format!("loading {load}"), &fault).await)
            }
        }
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

    /// Asks Ollama to unload a model and waits until ps no longer lists it. A model that was deleted while it was resident
    /// can no longer be unloaded by name: that is logged and no fault.
    pub(super) async fn unload(&self, model: &ModelName) -> Result<(), Conclusion> {
        let began_ms = self.now_ms();
        let reply = match self.tools.ollama.unload(model.as_str()).await {
            Ok(reply) => reply,
            Err(fault) => {
                self.tools.residency.doubt();
                return Err(self.call_fault(&format!("unloading {model}"), &fault).await);
            }
        };
        if reply.status == 200 {
            self.wait_until_gone(model).await;
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
        if tokio::time::timeout(GONE_LIMIT, self.gone(model)).await.is_err() {
            tracing::warn!(model.name = %model, limit.s = GONE_LIMIT.as_secs(),
                "an unloaded model is still listed; going on all the same");
        }
    }

    /// Returns when ps no longer lists the model under any of its names, or the upstream is away.
    async fn gone(&self, model: &ModelName) {
        let mut pause = GONE_PAUSE_FIRST;
        loop {
            let inventory = &self.tools.inventory;
            match inventory.ps(&self.tools.ollama).await {
                Ok(ps) if ps.iter().all(|entry| !inventory.is_same(&entry.model, model)) => return,
                Err(SendError::Unreachable { .. }) => return,
                Ok(_) | Err(_) => tokio::time::sleep(pause).await,
            }
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
