//! The watch over foreman's own loads: an Ollama that neither answers nor changes anything is wedged, and is helped out.
//!
//! A pin repeated on a busy runner, or a runner that hangs, can leave Ollama's scheduler waiting for ever (docs/ollama.md).
//! Unloading what is resident frees it. A load that merely takes long is left alone as long as something changes in ps.

use std::future::Future;
use std::time::Duration;

use crate::ollama::client::SendError;

use super::Hands;
use super::handle::add;

/// How often ps is asked while a load is watched: a small part of the limit, but not more often than ps can stand.
const LOOKS_PER_LIMIT: u32 = 20;
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(50);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(15);

/// The longest a load may go on, however much changes meanwhile.
pub(super) const LOAD_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// What a watched call came to.
pub(super) enum Watched<T> {
    /// It ended.
    Ended(T),
    /// Nothing came and nothing changed for the limit. The call was given up.
    Wedged,
}

impl Hands {
    /// Waits for a call of foreman's own that makes Ollama load. Dropping it gives the call up.
    pub(super) async fn watch<T>(&self, call: impl Future<Output = T>) -> Watched<T> {
        tokio::pin!(call);
        let limit = self.settings.load_limit;
        let pause = (limit / LOOKS_PER_LIMIT).clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX).min(limit);
        let mut seen: Option<Vec<String>> = None;
        let mut silent = Duration::ZERO;
        while silent < limit {
            tokio::select! {
                outcome = &mut call => return Watched::Ended(outcome),
                () = tokio::time::sleep(pause) => silent += pause,
            }
            let looked = tokio::select! {
                outcome = &mut call => return Watched::Ended(outcome),
                looked = self.in_memory() => looked,
            };
            // A ps that hangs changes nothing.
            if let Ok(now) = looked
                && seen.as_ref() != Some(&now)
            {
                if seen.is_some() {
                    silent = Duration::ZERO;
                }
                seen = Some(now);
            }
        }
        Watched::Wedged
    }

    async fn in_memory(&self) -> Result<Vec<String>, SendError> {
        let ps = self.tools.ollama.ps().await?;
        let mut names: Vec<String> =
            ps.iter().map(|listed| format!("{} {}", listed.listed, listed.digest)).collect();
        names.sort();
        Ok(names)
    }

    /// Frees a wedged Ollama: everything in its memory is unloaded, by foreman's own unloads, embedders too.
    pub(super) async fn unwedge(&self, what: &str) {
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
    pub(super) fn warm_again(&self) {
        if self.settings.embed_model.is_some() {
            self.handle.warm();
        }
    }
}
