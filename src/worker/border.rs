//! What happens at a job border beside jobs: chores asked for by others, and the release of models whose time is up.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::clock;
use crate::domain::learning::{LoadError, LoadFailure, Trials};
use crate::domain::model::{LoadKey, ModelName, RunnerOptions};
use crate::domain::schedule::{Beside, Reason};
use crate::ollama::calls::Stay;
use crate::ollama::client::SendError;
use crate::ollama::residency::Entry;
use crate::store::WaitingLane;

use super::mind::Installed;
use super::refusal::given_up;
use super::run::later;
use super::watch::{LOAD_MAX, Watched};
use super::{Hands, Worker, brief};

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
    /// Make a model resident that embeds wait for.
    Embed {
        /// Which.
        model: ModelName,
        /// Dropped when it is resident, or cannot be.
        done: oneshot::Sender<()>,
    },
    /// Unload a model.
    Release {
        /// Which.
        model: ModelName,
        /// Told when it is done, or cannot be. The border is held until what is told is dropped.
        done: oneshot::Sender<BorderHold>,
    },
}

/// What became of the load of an embedder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Loaded {
    /// It is in memory.
    Yes,
    /// It could not be loaded.
    No(LoadError),
    /// Nobody knows, or the request was at fault.
    Unknown,
}

impl Worker {
    /// Does what was asked for by now, in order. What is asked for meanwhile waits for the next border: embeds that push each
    /// other out, or a warm-up that is asked for again, would keep jobs waiting for ever.
    pub(super) async fn do_chores(&mut self) {
        let waiting = std::mem::take(&mut self.put_off);
        let asked = (0..self.chores.len()).map_while(|_| self.chores.try_recv().ok());
        let chores: Vec<Chore> = waiting.into_iter().chain(asked).collect();
        let mut hold_time = HoldTime::default();
        for chore in chores {
            let hands = &self.hands;
            match chore {
                Chore::Warm => hands.warm().await,
                Chore::Embed { model, done } => {
                    // Whoever asked may have left meanwhile.
                    if done.is_closed() {
                        continue;
                    }
                    if hands.is_too_early_for(&model).await {
                        self.put_off.push(Chore::Embed { model, done });
                        continue;
                    }
                    hands.load_for_embeds(&model).await;
                    drop(done);
                }
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
    /// The canonical name of the configured embedder.
    pub(super) fn embedder(&self) -> Option<ModelName> {
        let name = self.settings.embed_model.as_deref()?;
        ModelName::parse(name).ok().map(|parsed| parsed.name)
    }

    async fn warm(&self) {
        let Some(name) = self.embedder() else { return };
        self.load_embedder(&name, Stay::Pinned).await;
        self.tools.residency.doubt();
    }

    /// Whether a model that embeds wait for would push out one that has jobs and has not stayed for its residence: like any
    /// other swap, that one would cost more loads than it serves.
    async fn is_too_early_for(&self, model: &ModelName) -> bool {
        if self.tools.residency.holds(model) {
            return false;
        }
        let (victims, now_ms) = (self.victims_of_embeds(model), self.now_ms());
        let (mind, installed) = (self.handle.mind(), Installed(&self.tools.inventory));
        let mut young = self.tools.residency.held();
        young.retain(|held| {
            victims.contains(&held.model) && mind.stays_until_ms(held, &installed) > now_ms
        });
        if young.is_empty() {
            return false;
        }
        // A store that cannot answer is no reason to wait.
        let of = self.handle.view_of(self.tools.residency.held(), &self.tools.inventory, now_ms);
        let view = self.tools.store.lanes_in_view(now_ms, of).await.unwrap_or_default();
        let ready = view.lanes.iter().filter_map(WaitingLane::ready);
        let mut wanted = ready.filter_map(|ready| Some(ready.lane.key()?.model.clone()));
        wanted.any(|model| young.iter().any(|held| held.model == model))
    }

    /// The models that have to go for one that embeds wait for.
    fn victims_of_embeds(&self, model: &ModelName) -> Vec<ModelName> {
        let key = LoadKey::new(model.clone(), RunnerOptions::default());
        let held = self.tools.residency.held();
        let trials = match (self.is_embedder(model), self.settings.policy.beside) {
            (true, _) => Trials::All,
            (false, Beside::Auto) => Trials::One,
            (false, Beside::Off) => Trials::Alone,
        };
        let installed = Installed(&self.tools.inventory);
        self.handle.mind().victims(&key, &held, &installed, trials)
    }

    /// Makes a model resident that embeds wait for, unless it is meanwhile. What cannot be loaded is left to the embeds
    /// themselves: Ollama tells them why.
    async fn load_for_embeds(&self, model: &ModelName) {
        if self.tools.residency.holds(model) {
            return;
        }
        let key = LoadKey::new(model.clone(), RunnerOptions::default());
        let installed = Installed(&self.tools.inventory);
        if self.handle.mind().cools_down(&key, &installed, self.now_ms()) {
            // Nothing makes room for what does not load anyway.
            return;
        }
        let victims = self.victims_of_embeds(model);
        if !self.is_embedder(model) {
            // A model that also generates is the worker's like any other.
            if self.swap(&victims, &key, model.as_str(), Reason::Embed).await.is_err() {
                tracing::warn!(model.name = %model, "a model that embeds wait for could not be loaded");
            }
            return;
        }
        for victim in &victims {
            self.unload_beside_jobs(victim).await;
        }
        let is_configured =
            self.embedder().is_some_and(|name| self.tools.inventory.is_same(&name, model));
        let stay = if is_configured { Stay::Pinned } else { Stay::Usual };
        self.tools.residency.set_loading(Some(model));
        let loaded = self.load_embedder(model, stay).await;
        self.tools.residency.set_loading(None);
        self.learn_beside_embedder(&key, loaded).await;
    }

    async fn load_embedder(&self, model: &ModelName, stay: Stay) -> Loaded {
        let entry = self.tools.inventory.find(model);
        let name = entry.map_or_else(|| model.to_string(), |entry| entry.display);
        let began_ms = self.now_ms();
        let key = LoadKey::new(model.clone(), RunnerOptions::default());
        let loading = self.tools.ollama.load_embedder(&name, stay, LOAD_MAX);
        let reply = tokio::select! {
            reply = self.watch(&key, loading) => reply,
            () = self.tools.tasks.forced() => return Loaded::Unknown,
        };
        match reply {
            Watched::Ended(Ok(reply), _) if reply.status == 200 => {
                tracing::info!(model.name = %name, load.ms = self.now_ms() - began_ms, "the embedding model is warm");
                return Loaded::Yes;
            }
            Watched::Ended(Ok(reply), _) => {
                let text = reply.error_text();
                tracing::warn!(model.name = %name, upstream.status = reply.status, upstream.error = %brief(&text),
                    "the embedding model could not be warmed");
                if reply.status >= 500 {
                    let (failure, status) = (LoadFailure::Refused, reply.status);
                    return Loaded::No(LoadError { failure, status, text });
                }
            }
            Watched::Ended(Err(fault), _) => {
                tracing::warn!(model.name = %name, upstream.error = %fault, "the embedding model could not be warmed");
                if let SendError::Unreachable { .. } = fault {
                    self.tools.health.lost(&fault.to_string(), self.now_ms());
                }
            }
            Watched::GivenUp(limit) => return Loaded::No(given_up(&key, limit)),
        }
        Loaded::Unknown
    }

    /// After an embedder was loaded beside worker models: asks what is left of them. One that Ollama could not load beside
    /// them does not fit, so that they make room the next time; one that it could not load alone cools down.
    async fn learn_beside_embedder(&self, key: &LoadKey, loaded: Loaded) {
        let kept = self.workers_resident();
        match loaded {
            Loaded::Yes => {
                self.handle.mind().loaded(key, None, None, self.now_ms());
                self.see_what_went(key, &kept).await;
            }
            Loaded::No(error) => self.note_failed_load(key, &kept, error),
            Loaded::Unknown => (),
        }
        self.tools.residency.doubt();
        let asked = self.tools.residency.asking();
        if let Ok(ps) = self.tools.inventory.ps(&self.tools.ollama).await {
            let is_embedder = |model: &_| self.is_embedder(model);
            self.tools.residency.reconcile(asked, &ps, is_embedder, self.now_ms());
        }
    }

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
    async fn unload_beside_jobs(&self, model: &ModelName) {
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
