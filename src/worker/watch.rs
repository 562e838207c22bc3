//! The watch over foreman's own loads: tells a slow load from one that is stuck, and helps a stuck Ollama out.
//!
//! A pin repeated on a busy runner can leave Ollama's scheduler waiting for ever (docs/ollama.md): a load waits for a model
//! that does not go. Unloading what is resident frees it, and the load goes on. A load with nothing in its way is merely slow, or
//! its runner hangs; no answer of Ollama's tells which. It is left alone while nobody else needs the GPU, for a while.

use std::future::Future;
use std::time::Duration;

use crate::clock;
use crate::domain::model::LoadKey;
use crate::ollama::client::SendError;

use super::Hands;
use super::handle::add;
use super::mind::Installed;

/// How often ps is asked while a load is watched: a small part of the limit, but not more often than ps can stand.
const LOOKS_PER_LIMIT: u32 = 20;
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(50);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(15);

/// The longest a load may go on, however much changes meanwhile.
pub(super) const LOAD_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// After Ollama was freed, the load gets this part of its limit again: a freed one begins within two seconds.
const LIMIT_SHARE_ONCE_FREED: u32 = 2;

/// A load for which nobody else has to wait may take this many limits.
const LIMITS_ALONE: u32 = 4;

/// What a watched call came to.
pub(super) enum Watched<T> {
    /// It ended.
    Ended(T, Freed),
    /// It took longer than this without a sign of life. The call was given up.
    GivenUp(Duration),
}

/// What was unloaded while a load was watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freed {
    /// Nothing.
    Nothing,
    /// Everything that Ollama held.
    Everything,
}

/// What Ollama shows while it loads.
struct Signs {
    seen: Option<Vec<String>>,
    silent: Duration,
    freed: Freed,
}

impl Hands {
    /// Waits for a call of foreman's own that makes Ollama load a key. Dropping it gives the call up.
    pub(super) async fn watch<T>(
        &self,
        key: &LoadKey,
        call: impl Future<Output = T>,
    ) -> Watched<T> {
        let mut signs = Signs { seen: None, silent: Duration::ZERO, freed: Freed::Nothing };
        let watched = self.watch_for(key, call, &mut signs).await;
        // Only now: who waits to have it warm would count as somebody who needs the GPU.
        if signs.freed == Freed::Everything && self.embedder().as_ref() != Some(&key.model) {
            self.warm_again();
        }
        watched
    }

    async fn watch_for<T>(
        &self,
        key: &LoadKey,
        call: impl Future<Output = T>,
        signs: &mut Signs,
    ) -> Watched<T> {
        tokio::pin!(call);
        let limit = self.load_limit(key);
        let pause = (limit / LOOKS_PER_LIMIT).clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX).min(limit);
        loop {
            tokio::select! {
                outcome = &mut call => return Watched::Ended(outcome, signs.freed),
                () = tokio::time::sleep(pause) => signs.silent += pause,
            }
            tokio::select! {
                outcome = &mut call => return Watched::Ended(outcome, signs.freed),
                looked = self.in_memory() => signs.take(looked),
            }
            if self.is_stuck(key, limit, signs).await {
                return Watched::GivenUp(signs.silent);
            }
        }
    }

    /// Whether a load has to be given up. Frees Ollama first, where something may be in the way of the load.
    async fn is_stuck(&self, key: &LoadKey, limit: Duration, signs: &mut Signs) -> bool {
        match signs.freed {
            Freed::Nothing if signs.silent < limit => return false,
            Freed::Nothing if signs.may_be_blocked() => {
                self.unwedge(&key.to_string()).await;
                *signs = Signs { seen: None, silent: Duration::ZERO, freed: Freed::Everything };
                return false;
            }
            Freed::Everything if signs.silent < limit / LIMIT_SHARE_ONCE_FREED => return false,
            Freed::Nothing | Freed::Everything => (),
        }
        signs.silent >= limit * LIMITS_ALONE || self.do_others_wait(key).await
    }

    /// How long a load of the key may take without a sign of life.
    fn load_limit(&self, key: &LoadKey) -> Duration {
        let installed = Installed(&self.tools.inventory);
        let limit_ms = clock::millis(self.settings.load_limit);
        let limit_ms = self.handle.mind().load_limit_ms(key, &installed, limit_ms);
        Duration::from_millis(u64::try_from(limit_ms).unwrap_or(0)).min(LOAD_MAX)
    }

    /// Whether anybody waits for the GPU but for this key. A store that cannot answer is no reason to give a load up.
    async fn do_others_wait(&self, key: &LoadKey) -> bool {
        if self.handle.has_chores() || self.handle.embeds().wait_for_another(key) {
            return true;
        }
        let now_ms = self.now_ms();
        let lanes = self.tools.store.waiting_lanes(now_ms).await.unwrap_or_default();
        let barred = self.handle.mind().barred(&Installed(&self.tools.inventory), now_ms);
        let own = key.to_string();
        lanes.iter().any(|waiting| {
            waiting.head.is_some() && waiting.lane != own && !barred.contains(&waiting.lane)
        })
    }

    async fn in_memory(&self) -> Result<Vec<String>, SendError> {
        let ps = self.tools.ollama.ps().await?;
        let mut names: Vec<String> =
            ps.iter().map(|listed| format!("{} {}", listed.listed, listed.digest)).collect();
        names.sort();
        Ok(names)
    }

    /// Frees a wedged Ollama: everything in its memory is unloaded, by foreman's own unloads, embedders too.
    async fn unwedge(&self, what: &str) {
        add(&self.handle.counts().wedges);
        tracing::error!(
            limit.s = self.settings.load_limit.as_secs(),
            "ollama neither answers nor changes anything while it loads {what}; unloading what it holds"
        );
        let ps = self.tools.ollama.ps().await.unwrap_or_default();
        let known = self.tools.residency.entries().into_iter().map(|entry| entry.resident.model);
        let mut models: Vec<_> = ps.into_iter().map(|listed| listed.model).chain(known).collect();
        models.sort();
        models.dedup();
        for model in models {
            if self.unload(&model).await.is_err() {
                tracing::warn!(model.name = %model, "a model of a wedged ollama could not be unloaded");
            }
        }
        self.tools.residency.clear();
    }

    /// Has the configured embedder loaded again after all was unloaded. Not after a wedge in its own load: it would be the
    /// next one, and so on.
    fn warm_again(&self) {
        if self.settings.embed_model.is_some() {
            self.handle.warm();
        }
    }
}

impl Signs {
    /// Takes in what ps says. One that hangs changes nothing.
    fn take(&mut self, looked: Result<Vec<String>, SendError>) {
        let Ok(now) = looked else { return };
        if self.seen.as_ref() == Some(&now) {
            return;
        }
        if self.seen.is_some() {
            self.silent = Duration::ZERO;
        }
        self.seen = Some(now);
    }

    /// Whether the load may wait for a model to go: one is there, or nobody knows.
    fn may_be_blocked(&self) -> bool {
        self.seen.as_ref().is_none_or(|seen| !seen.is_empty())
    }
}
