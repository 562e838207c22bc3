//! Embeds from their arrival to their answer: which may go to Ollama now, which wait for a load, and what of that the
//! scheduler sees. They live in memory only, and never become jobs.
//!
//! An embed may go when its model is resident and not *held*. The worker holds a model from the moment when a load begins
//! that may push it out: an embed sent then would wait in Ollama behind that load, and push out what was just loaded. Called
//! by `http::embed` through a [`Ticket`], and by the worker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::clock::Clock;
use crate::domain::job::Class;
use crate::domain::learning::Waiting;
use crate::domain::model::{LoadKey, ModelName};
use crate::domain::schedule::Lane;

use super::mind::Mind;

/// The longest a load waits for the embeds that are under way on a model that it may push out. One that takes longer is
/// waited for by Ollama itself.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// All embeds. Clones share everything; nothing waits while it is locked.
#[derive(Clone)]
pub struct Embeds {
    inner: Arc<Mutex<Inner>>,
    /// Told at each end of an embed.
    ended: Arc<Notify>,
    /// Wakes the worker.
    wake: Arc<Notify>,
    mind: Mind,
    clock: Clock,
}

#[derive(Default)]
struct Inner {
    last_id: u64,
    requests: BTreeMap<u64, Request>,
    /// Models whose embeds wait for the end of a load; one entry for each hold.
    held: Vec<ModelName>,
    /// The first embed that came on a key, while any is there.
    first: BTreeMap<LoadKey, u64>,
    /// When the last embed ended.
    last_ended_ms: i64,
    /// Whether the worker waits for embeds to end.
    is_watched: bool,
    /// The worker has stopped: nobody loads anything any more.
    is_closed: bool,
}

struct Request {
    lane: Lane,
    key: LoadKey,
    since_ms: i64,
    state: State,
}

enum State {
    /// It waits for its model, or for the end of a hold.
    Waiting(oneshot::Sender<()>),
    /// Its model was found resident; it asks again.
    Released,
    /// It may go whatever is resident: its model cannot be loaded, and Ollama will say why.
    Exempt,
    /// It is at Ollama.
    Running,
}

/// One embed, from its arrival to its end. Dropping it takes it off the board.
pub struct Ticket {
    embeds: Embeds,
    id: u64,
    key: LoadKey,
}

/// Holds the embeds of some models while it lives.
pub(super) struct EmbedHold {
    embeds: Embeds,
    models: Vec<ModelName>,
}

impl Embeds {
    pub(super) fn new(wake: Arc<Notify>, mind: Mind, clock: Clock) -> Embeds {
        Embeds { inner: Arc::default(), ended: Arc::default(), wake, mind, clock }
    }

    /// Takes in an embed that has arrived. Its lane has a key.
    pub fn arrive(&self, lane: Lane, key: LoadKey) -> Ticket {
        let since_ms = self.clock.now_ms();
        let inner = &mut *self.lock();
        inner.last_id += 1;
        if matches!(lane, Lane::Embeds(_)) && !inner.first.contains_key(&key) {
            inner.first.insert(key.clone(), inner.last_id);
            self.mind.embeds_began(inner.last_id, &key.model, since_ms);
        }
        let (id, wanted) = (inner.last_id, key.clone());
        inner.requests.insert(id, Request { lane, key, since_ms, state: State::Released });
        Ticket { embeds: self.clone(), id, key: wanted }
    }

    /// Whether any embed waits for its model.
    pub(super) fn are_waiting(&self) -> bool {
        self.lock().requests.values().any(Request::is_waiting)
    }

    /// When the last embed ended, in milliseconds since 1970; 0 if none has.
    pub(super) fn last_ended_ms(&self) -> i64 {
        self.lock().last_ended_ms
    }

    /// Whether an embed waits for another key than this one.
    pub(super) fn wait_for_another(&self, key: &LoadKey) -> bool {
        self.lock().requests.values().any(|request| request.is_waiting() && request.key != *key)
    }

    /// Whether an embed waits for this key.
    pub(super) fn wait_for(&self, key: &LoadKey) -> bool {
        self.lock().requests.values().any(|request| request.is_waiting() && request.key == *key)
    }

    /// When the last embed arrived of those that wait for their model.
    pub(super) fn newest_waiting_ms(&self) -> Option<i64> {
        let inner = self.lock();
        inner.requests.values().filter(|request| request.is_waiting()).map(|one| one.since_ms).max()
    }

    /// What the scheduler sees: by lane, the embeds that wait for a load, and those under way on an embedder. `serves` tells
    /// what is resident.
    pub(super) fn on_board(&self, serves: impl Fn(&LoadKey) -> bool) -> Vec<Waiting> {
        let mut lanes: BTreeMap<Lane, Waiting> = BTreeMap::new();
        for request in self.lock().requests.values() {
            let is_seen = match (&request.lane, serves(&request.key)) {
                (Lane::Embeds(_), true) => true,
                // Those of a model that also generates pass beside its jobs.
                (Lane::Key(_) | Lane::Unload | Lane::Opaque, true) => false,
                (_, false) => request.is_waiting(),
            };
            if is_seen {
                let lane = lanes.entry(request.lane.clone()).or_insert_with(|| Waiting {
                    lane: request.lane.clone(),
                    class: Class::Interactive,
                    jobs: 0,
                    seq: 0,
                    ready_at_ms: request.since_ms,
                });
                lane.jobs += 1;
                lane.ready_at_ms = lane.ready_at_ms.min(request.since_ms);
            }
        }
        lanes.into_values().collect()
    }

    /// Has those that wait ask again whose model is resident and not held.
    pub(super) fn release(&self, serves: impl Fn(&LoadKey) -> bool) {
        let Inner { requests, held, .. } = &mut *self.lock();
        for request in requests.values_mut() {
            if request.is_waiting() && !held.contains(&request.key.model) && serves(&request.key) {
                request.go_on(State::Released);
            }
        }
    }

    /// Lets those that wait for such a key go to Ollama, whatever is resident.
    pub(super) fn let_through(&self, is_meant: impl Fn(&LoadKey) -> bool) {
        for request in self.lock().requests.values_mut() {
            if request.is_waiting() && is_meant(&request.key) {
                request.go_on(State::Exempt);
            }
        }
    }

    /// Nothing is loaded for embeds any more: all go to Ollama.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.let_through(|_| true);
    }

    /// Holds the embeds of these models, and returns when those of them that are under way have ended, or after a while.
    pub(super) async fn hold(&self, models: Vec<ModelName>) -> EmbedHold {
        let hold = self.hold_new(models);
        let drained = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if !self.are_running(&hold.models) {
                    return;
                }
                ended.await;
            }
        };
        if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
            tracing::warn!(
                limit.s = DRAIN_LIMIT.as_secs(),
                "embeds take long; a load goes on beside them"
            );
        }
        hold
    }

    /// Holds the embeds of these models that are not under way yet.
    pub(super) fn hold_new(&self, models: Vec<ModelName>) -> EmbedHold {
        self.lock().held.extend(models.iter().cloned());
        EmbedHold { embeds: self.clone(), models }
    }

    /// Has the worker woken at each end of an embed, or not.
    pub(super) fn watch(&self, watch: Watch) {
        self.lock().is_watched = watch == Watch::EachEnd;
    }

    fn are_running(&self, models: &[ModelName]) -> bool {
        let inner = self.lock();
        inner.requests.values().any(|request| {
            matches!(request.state, State::Running) && models.contains(&request.key.model)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of embeds wakes the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// Each end: a decision waits for it.
    EachEnd,
    /// Nothing.
    Nothing,
}

impl Request {
    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }

    fn go_on(&mut self, state: State) {
        if let State::Waiting(sender) = std::mem::replace(&mut self.state, state)
            && sender.send(()).is_err()
        {
            tracing::trace!("the client of an embed has left");
        }
    }
}

impl Ticket {
    /// What must be resident for it.
    pub fn key(&self) -> &LoadKey {
        &self.key
    }

    /// `None` if the embed may go as soon as it has a place; else it waits for its turn, and this ends when it is to ask
    /// again. The worker has to be woken then.
    pub fn wait(&self, serves: impl Fn(&LoadKey) -> bool) -> Option<oneshot::Receiver<()>> {
        let inner = &mut *self.embeds.lock();
        if inner.may_go(self.id, serves) {
            return None;
        }
        let (sender, turn) = oneshot::channel();
        inner.requests.get_mut(&self.id)?.state = State::Waiting(sender);
        Some(turn)
    }

    /// Begins it, with a place for it; `false` if its model was held or pushed out meanwhile.
    pub fn begin(&self, serves: impl Fn(&LoadKey) -> bool) -> bool {
        let inner = &mut *self.embeds.lock();
        let may_go = inner.may_go(self.id, serves);
        if may_go && let Some(request) = inner.requests.get_mut(&self.id) {
            request.state = State::Running;
        }
        may_go
    }

    /// Lets it go whatever is resident: nobody loads its model.
    pub fn exempt(&self) {
        if let Some(request) = self.embeds.lock().requests.get_mut(&self.id) {
            request.state = State::Exempt;
        }
    }
}

impl Inner {
    fn may_go(&self, id: u64, serves: impl Fn(&LoadKey) -> bool) -> bool {
        let Some(request) = self.requests.get(&id) else { return true };
        match request.state {
            State::Exempt | State::Running => true,
            State::Waiting(_) | State::Released => {
                self.is_closed || (!self.held.contains(&request.key.model) && serves(&request.key))
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let embeds = &self.embeds;
        let now_ms = embeds.clock.now_ms();
        let inner = &mut *embeds.lock();
        let Some(request) = inner.requests.remove(&self.id) else { return };
        if matches!(request.state, State::Running) {
            inner.last_ended_ms = now_ms;
        }
        let is_last = inner.requests.values().all(|other| other.key != request.key);
        let number = if is_last { inner.first.remove(&request.key) } else { None };
        match (&request.lane, &request.state) {
            (Lane::Embeds(_), State::Running) => {
                embeds.mind.embed_ended(number, &request.key.model, now_ms);
            }
            (_, State::Waiting(_) | State::Released | State::Exempt | State::Running) => {
                number.into_iter().for_each(|number| embeds.mind.embeds_left(number));
            }
        }
        embeds.ended.notify_waiters();
        if inner.is_watched {
            embeds.wake.notify_one();
        }
    }
}

impl Drop for EmbedHold {
    fn drop(&mut self) {
        let inner = &mut *self.embeds.lock();
        for model in &self.models {
            if let Some(index) = inner.held.iter().position(|held| held == model) {
                inner.held.swap_remove(index);
            }
        }
        self.embeds.wake.notify_one();
    }
}
