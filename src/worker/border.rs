//! What happens at a job border beside jobs: chores asked for by others, and the release of models whose time is up.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::clock;
use crate::domain::model::{LoadKey, ModelName};
use crate::ollama::residency::Entry;

use super::run::later;
use super::{Hands, Worker};

/// Pause before an idle model that would not go is asked again.
const RELEASE_PAUSE: Duration = Duration::from_secs(30);

/// The longest a border is held for others, all together: a delete or a copy takes milliseconds, a create seconds; one that
/// quantizes takes minutes, and is not waited for to its end. Who asks for many at once keeps jobs waiting no longer than that.
const HOLD_LIMIT: Duration = Duration::from_secs(60);

/// Keeps the worker at its border, with nothing in flight, while it lives.
#[derive(Debug)]
pub struct BorderHold {
    _ended: oneshot::Sender<()>,
}

/// What is left of the time for which one border may be held. It begins with the first hold.
#[derive(Default)]
struct HoldTime(Option<Pin<Box<Sleep>>>);

impl HoldTime {
    /// Holds the border until whoever asked is done with it, or has left, or the time is over.
    async fn hold_for(&mut self, asker: oneshot::Sender<BorderHold>) {
        let (ended, end) = oneshot::channel();
        if asker.send(BorderHold { _ended: ended }).is_err() {
            return;
        }
        let over = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(HOLD_LIMIT)));
        tokio::select! {
            biased;
            _ = end => (),
            () = over.as_mut() => {
                let limit_s = HOLD_LIMIT.as_secs();
                tracing::warn!(limit.s = limit_s, "a held border was not given back; going on");
            }
        }
    }
}

/// Something to do at the next border, with nothing in flight.
#[derive(Debug)]
pub(super) enum Chore {
    /// Make the configured embedder resident and pin it.
    Warm,
    /// Unload a model.
    Release {
        /// Which.
        model: ModelName,
        /// Told when it is done, or cannot be. The border is held until what is told is dropped.
        done: oneshot::Sender<BorderHold>,
    },
}

impl Worker {
    /// Does what was asked for by now, in order. What is asked for meanwhile waits for the next border: a warm-up that is asked
    /// for again would keep jobs waiting for ever.
    pub(super) async fn do_chores(&mut self) {
        let chores: Vec<Chore> =
            (0..self.chores.len()).map_while(|_| self.chores.try_recv().ok()).collect();
        let mut hold_time = HoldTime::default();
        for chore in chores {
            let hands = &self.hands;
            match chore {
                Chore::Warm => hands.warm().await,
                Chore::Release { model, done } => {
                    if hands.tools.residency.holds(&model) && !done.is_closed() {
                        hands.unload_beside_jobs(&model).await;
                    }
                    hold_time.hold_for(done).await;
                }
            }
        }
    }
}

impl Hands {
    /// Unloads what has been idle for too long, or was to go as soon as nobody waits for it.
    pub(super) async fn release_idle(&self, wanted: &[LoadKey]) {
        let now_ms = self.now_ms();
        for entry in self.tools.residency.entries() {
            let is_due = release_at_ms(&entry).is_some_and(|at_ms| at_ms <= now_ms);
            if is_due && !is_wanted(&entry, wanted) {
                tracing::info!(model.name = %entry.resident.model, "releasing an idle model");
                self.unload_beside_jobs(&entry.resident.model).await;
            }
        }
    }

    /// An unload that no job waits for: if it does not succeed, residency is in doubt, and it is tried again in time.
    pub(super) async fn unload_beside_jobs(&self, model: &ModelName) {
        if self.unload(model).await.is_err() {
            tracing::warn!(model.name = %model, "a model could not be unloaded; it is tried again later");
        }
        if self.tools.residency.holds(model) {
            self.tools.residency.touch(model, later(self.now_ms(), RELEASE_PAUSE));
        }
    }

    /// When the next idle model that no job wants is to go.
    pub(super) fn next_release_at_ms(&self, wanted: &[LoadKey]) -> Option<i64> {
        let entries = self.tools.residency.entries();
        let idle = entries.iter().filter(|entry| !is_wanted(entry, wanted));
        idle.filter_map(release_at_ms).min()
    }
}

/// Whether a job waits for this model, be it for a retry.
fn is_wanted(entry: &Entry, wanted: &[LoadKey]) -> bool {
    wanted.iter().any(|key| key.model == entry.resident.model)
}

/// When an entry is to go if nobody uses it; `None` is never. What foreman did not load is not foreman's to release.
fn release_at_ms(entry: &Entry) -> Option<i64> {
    if !entry.is_pinned || entry.resident.is_embedder {
        return None;
    }
    if entry.is_released_when_dry {
        return Some(entry.used_at_ms);
    }
    entry.idle_limit.map(|limit| entry.used_at_ms.saturating_add(clock::millis(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of many slow creates held the border for the whole limit, one behind another.
    #[tokio::test(start_paused = true)]
    async fn many_holds_keep_jobs_waiting_no_longer_than_one() {
        let mut hold_time = HoldTime::default();
        let (asker, asked) = oneshot::channel();
        let gives_back = async { drop(asked.await) };
        tokio::join!(hold_time.hold_for(asker), gives_back);
        let mut kept = Vec::new();
        let holds = async {
            for _ in 0..3 {
                let (asker, asked) = oneshot::channel();
                kept.push(asked);
                hold_time.hold_for(asker).await;
            }
        };
        let held = tokio::time::timeout(HOLD_LIMIT + Duration::from_secs(1), holds).await;
        assert!(held.is_ok(), "they took more than one limit");
        assert_eq!(kept.len(), 3);
    }
}
