//! What the worker has learned and remembers, shared with whoever admits jobs: what is learned about models and clients,
//! what is held, and the last decisions with their reasons.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::domain::job::JobId;
use crate::domain::learning::{Held, LearnedGap, Learning, Models, Waiting};
use crate::domain::model::{LoadKey, ModelName};
use crate::domain::schedule::{Board, Decision, Lane, Policy};
use crate::domain::whom::ClientId;
use crate::ollama::inventory::Inventory;
use crate::store::Learned;

/// Decisions remembered for `foreman status --explain`: the last few minutes of a busy day.
const DECISIONS_MAX: usize = 50;

/// Between the names of a set of models in the store. No digest and no name holds it.
const BETWEEN_NAMES: char = '\n';

/// In the place of a client, in the source of embeds. No client id is this.
const EMBEDS: &str = "embeds";

/// A job that was admitted.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// Its public name.
    pub id: JobId,
    /// Its arrival number.
    pub seq: i64,
    /// The lane it waits in.
    pub lane: &'a Lane,
    /// Who asked.
    pub client: ClientId,
}

/// The shared memory. Clones share everything; nothing waits while it is locked.
#[derive(Debug, Clone)]
pub(super) struct Mind {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    learning: Learning,
    /// The last arrival number given out.
    last_seq: i64,
    holding: Option<ModelName>,
    hold_hits: u64,
    hold_misses: u64,
    decisions: VecDeque<Explained>,
}

/// A decision that was acted on.
#[derive(Debug, Clone, PartialEq)]
struct Explained {
    at_ms: i64,
    decision: &'static str,
    subject: String,
    reason: &'static str,
    because: String,
}

impl Mind {
    /// Begins with what earlier runs have learned.
    pub(super) fn new(learned: &Learned, last_seq: i64) -> Mind {
        let mut inner = Inner { last_seq, ..Inner::default() };
        for (key, times_ms) in &learned.load_times {
            for took_ms in times_ms {
                inner.learning.load_times.measured(key, *took_ms, None);
            }
        }
        for (source, gaps) in &learned.gaps {
            for gap_ms in gaps {
                inner.learning.returns.learn(source, *gap_ms);
            }
        }
        for (models, fits) in &learned.fits {
            let set = models.split(BETWEEN_NAMES).map(str::to_owned).collect();
            inner.learning.fits.observe(set, *fits);
        }
        Mind { inner: Arc::new(Mutex::new(inner)) }
    }

    /// A job was admitted. Answers what was learned from it.
    pub(super) fn arrived(&self, arrival: &Arrival<'_>, now_ms: i64) -> Option<LearnedGap> {
        let inner = &mut *self.lock();
        inner.last_seq = inner.last_seq.max(arrival.seq);
        let key = arrival.lane.key()?;
        if inner.holding.as_ref() == Some(&key.model) {
            inner.holding = None;
            inner.hold_hits += 1;
        }
        let text = key.to_string();
        let client = arrival.client.to_string();
        inner.learning.rates.arrived(&text, now_ms);
        inner.learning.returns.arrived(arrival.id.0.0, Some(&client), &text, now_ms)
    }

    /// Jobs were admitted that follow on nothing; this is the last arrival number.
    pub(super) fn admitted(&self, last_seq: i64) {
        let inner = &mut *self.lock();
        inner.last_seq = inner.last_seq.max(last_seq);
    }

    /// What a load of a lane's key and a job of it are expected to take, in milliseconds.
    pub(super) fn expected_ms(&self, lane: &str) -> (i64, i64) {
        let learning = &self.lock().learning;
        (learning.load_times.expected_ms(lane, None), learning.rates.expected_service_ms(lane))
    }

    /// A job on a key has ended with an answer; `service_ms` is what it took, where that is a measure.
    pub(super) fn served(&self, id: JobId, key: &LoadKey, service_ms: Option<i64>, now_ms: i64) {
        let inner = &mut *self.lock();
        let text = key.to_string();
        if let Some(service_ms) = service_ms {
            inner.learning.rates.served(&text, service_ms);
        }
        inner.learning.visits.worked(&key.model, now_ms);
        inner.learning.returns.ended(id.0.0, now_ms);
    }

    /// A job has ended without one.
    pub(super) fn gave_up(&self, id: JobId) {
        self.lock().learning.returns.cancelled(id.0.0);
    }

    /// An embed came while no other was there for its model. `number` stands for all that come until none is there.
    pub(super) fn embeds_began(&self, number: u64, model: &ModelName, now_ms: i64) {
        let inner = &mut *self.lock();
        if inner.holding.as_ref() == Some(model) {
            inner.holding = None;
            inner.hold_hits += 1;
        }
        let (number, text) = (u128::from(number), model.to_string());
        // Embeds come often: what is learned of them is learned again soon after a restart, and not kept.
        let learned = inner.learning.returns.arrived(number, Some(EMBEDS), &text, now_ms);
        tracing::trace!(?learned, "embeds go on");
    }

    /// An embed has ended; `number` is that of its like, if no other is there for its model.
    pub(super) fn embed_ended(&self, number: Option<u64>, model: &ModelName, now_ms: i64) {
        let inner = &mut *self.lock();
        inner.learning.visits.worked(model, now_ms);
        if let Some(number) = number {
            inner.learning.returns.ended(u128::from(number), now_ms);
        }
    }

    /// The last embed of these left without an answer.
    pub(super) fn embeds_left(&self, number: u64) {
        self.lock().learning.returns.cancelled(u128::from(number));
    }

    /// What is in memory and may be pushed out by the load of a key.
    pub(super) fn may_be_pushed_out(
        &self,
        key: &LoadKey,
        held: &[Held],
        models: &dyn Models,
    ) -> Vec<ModelName> {
        self.lock().learning.may_be_pushed_out(key, held, models)
    }

    /// A load succeeded: everything that waits now is its gate. `took_ms` is `None` where it only confirmed what was there.
    pub(super) fn loaded(
        &self,
        key: &LoadKey,
        took_ms: Option<i64>,
        size_bytes: Option<i64>,
        now_ms: i64,
    ) {
        let inner = &mut *self.lock();
        let text = key.to_string();
        if let Some(took_ms) = took_ms {
            inner.learning.load_times.measured(&text, took_ms, size_bytes);
        }
        inner.learning.coolings.loaded(&text);
        inner.learning.breakers.close(&text);
        match took_ms {
            Some(_) => inner.learning.visits.began(&key.model, inner.last_seq, now_ms),
            None => inner.learning.visits.confirmed(&key.model, inner.last_seq, now_ms),
        }
    }

    /// The keys that may not be loaded now, whatever their deadlines.
    pub(super) fn barred(&self, models: &dyn Models, now_ms: i64) -> BTreeSet<String> {
        let broken = self.open_breakers(models, now_ms).into_iter().map(|open| open.key);
        let banned = self.with_learning(|learning| {
            learning.coolings.barred(now_ms).map(str::to_owned).collect::<Vec<_>>()
        });
        broken.chain(banned).collect()
    }

    /// The upstream was started anew: whatever could not be loaded may be loaded now.
    pub(super) fn forget_coolings(&self) {
        let learning = &mut self.lock().learning;
        learning.coolings.clear();
        learning.breakers.clear();
    }

    /// Models were seen in memory together, or one of them had to go. Answers what is worth keeping.
    pub(super) fn fits(&self, set: BTreeSet<String>, fits: bool) -> Option<String> {
        let names: Vec<String> = set.iter().cloned().collect();
        let is_news = self.lock().learning.fits.observe(set, fits);
        is_news.then(|| names.join(&BETWEEN_NAMES.to_string()))
    }

    /// The clock was set back.
    pub(super) fn clock_set_back(&self, now_ms: i64) {
        self.lock().learning.clock_set_back(now_ms);
    }

    /// Takes in what is in memory, and what waits for it.
    pub(super) fn see(&self, held: &[Held], waiting: &[Waiting], now_ms: i64) {
        self.lock().learning.see(held, waiting, now_ms);
    }

    /// The board of now.
    pub(super) fn board(
        &self,
        now_ms: i64,
        waiting: &[Waiting],
        held: &[Held],
        models: &dyn Models,
        policy: &Policy,
    ) -> Board {
        self.lock().learning.board(now_ms, waiting, held, models, policy)
    }

    /// Remembers what was decided, and whether a hold was worth it.
    pub(super) fn decided(&self, decision: &Decision, now_ms: i64) {
        let inner = &mut *self.lock();
        if let Decision::Hold { model, .. } = decision {
            if inner.holding.as_ref() == Some(model) {
                return;
            }
            inner.holding = Some(model.clone());
        } else if !matches!(decision, Decision::Busy) && inner.holding.take().is_some() {
            inner.hold_misses += 1;
        }
        match decision {
            Decision::Run { lane, class, .. } => {
                inner.learning.classes.served(&lane.to_string(), *class);
            }
            Decision::Swap { load, class, .. } => {
                inner.learning.classes.served(&load.to_string(), *class);
            }
            Decision::LoadEmbedder { .. }
            | Decision::Hold { .. }
            | Decision::Busy
            | Decision::Idle { .. } => (),
        }
        if let Some(explained) = explain(decision, now_ms) {
            tracing::debug!(decision = explained.decision, job.lane = %explained.subject, reason = explained.reason,
                "decided: {}", explained.because);
            inner.decisions.push_back(explained);
            if inner.decisions.len() > DECISIONS_MAX {
                inner.decisions.pop_front();
            }
        }
    }

    /// The last decisions and the holds, for the status document.
    pub(super) fn as_json(&self) -> Value {
        let inner = self.lock();
        let decisions = inner.decisions.iter().rev().map(|explained| {
            json!({
                "at": rfc3339(explained.at_ms),
                "decision": explained.decision,
                "lane": explained.subject,
                "reason": explained.reason,
                "because": explained.because,
            })
        });
        json!({
            "holding": inner.holding.as_ref().map(ToString::to_string),
            "hold_hits": inner.hold_hits,
            "hold_misses": inner.hold_misses,
            "decisions": decisions.collect::<Vec<_>>(),
        })
    }

    /// Reads or changes what was learned.
    pub(super) fn with_learning<T>(&self, act: impl FnOnce(&mut Learning) -> T) -> T {
        act(&mut self.lock().learning)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn explain(decision: &Decision, now_ms: i64) -> Option<Explained> {
    let (name, subject, reason) = match decision {
        Decision::Run { lane, reason, .. } => ("run", lane.to_string(), *reason),
        Decision::Swap { load, unload, reason, .. } => {
            let name = if unload.is_empty() { "load" } else { "swap" };
            (name, load.to_string(), *reason)
        }
        Decision::LoadEmbedder { load, unload, reason } => {
            let name = if unload.is_empty() { "load" } else { "swap" };
            (name, load.to_string(), *reason)
        }
        Decision::Hold { until_ms, model } => {
            let wait_ms = until_ms - now_ms;
            return Some(Explained {
                at_ms: now_ms,
                decision: "hold",
                subject: model.to_string(),
                reason: "hold",
                because: format!("its clients are likely to be back; kept for up to {wait_ms} ms"),
            });
        }
        Decision::Busy | Decision::Idle { .. } => return None,
    };
    let because = reason.told(now_ms);
    Some(Explained { at_ms: now_ms, decision: name, subject, reason: reason.name(), because })
}

/// What the inventory knows of models, as the learning wants it.
pub(super) struct Installed<'a>(pub(super) &'a Inventory);

impl Models for Installed<'_> {
    fn size_bytes(&self, model: &ModelName) -> Option<i64> {
        self.0.find(model)?.size_bytes
    }

    fn identity(&self, model: &ModelName) -> String {
        let digest = self.0.find(model).map(|entry| entry.digest);
        digest.filter(|digest| !digest.is_empty()).unwrap_or_else(|| model.to_string())
    }
}
