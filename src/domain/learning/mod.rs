//! What foreman learns while it works, and the board it makes of that: load times, service times, who comes back, which
//! models fit beside each other, which keys must cool down.
//!
//! Pure: times are passed in, what is worth keeping over a restart is answered and stored by the caller. The worker has one,
//! and `replay` one per simulated day.

mod blocked;
mod breaker;
mod classes;
mod cooling;
mod embedders;
mod load_times;
mod rates;
mod returns;
mod visits;

use std::collections::BTreeMap;

pub use blocked::{Blocked, BlockedBecause};
pub use breaker::{Breakers, LoadError, LoadFailure, OpenBreaker};
pub use classes::Classes;
pub use cooling::Coolings;
pub use load_times::LoadTimes;
pub use rates::Rates;
pub use returns::{LearnedGap, Returns};
pub use visits::{VisitSoFar, Visits};

use super::job::Class;
use super::model::{LoadKey, ModelName};
use super::schedule::{Beside, Board, Fits, Head, Lane, Policy, Queue, Resident, Visit};

/// Everything learned.
#[derive(Debug, Clone, Default)]
pub struct Learning {
    /// How long loads take.
    pub load_times: LoadTimes,
    /// How long jobs take and how often they come.
    pub rates: Rates,
    /// Who comes back.
    pub returns: Returns,
    /// What fits beside each other.
    pub fits: Fits,
    /// What must not be loaded yet because somebody else pushed it out.
    pub coolings: Coolings,
    /// What must not be loaded yet because its load failed.
    pub breakers: Breakers,
    /// What is known of each model's time in memory.
    pub visits: Visits,
    /// Which class of a lane was served when.
    pub classes: Classes,
}

/// A class of a lane with the job that has been ready longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The lane.
    pub lane: Lane,
    /// The class.
    pub class: Class,
    /// How many wait.
    pub jobs: u64,
    /// Arrival number of the one that has been ready longest.
    pub seq: i64,
    /// Since when it may run.
    pub ready_at_ms: i64,
}

/// How many models never seen beside a key are left in memory for its load, to learn whether they fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trials {
    /// None, and none that is known to fit either: one worker model at a time.
    Alone,
    /// None.
    None,
    /// One.
    One,
    /// All: for an embedder, which is small.
    All,
}

impl Trials {
    fn within(self, beside: Beside) -> Trials {
        match beside {
            Beside::Auto => self,
            Beside::Off => Trials::Alone,
        }
    }

    fn count(self) -> Option<usize> {
        match self {
            Trials::Alone => None,
            Trials::None => Some(0),
            Trials::One => Some(1),
            Trials::All => Some(usize::MAX),
        }
    }
}

/// A model in memory, as the upstream and foreman's own loads tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its canonical name.
    pub model: ModelName,
    /// The key it was loaded with, where foreman knows it.
    pub key: Option<LoadKey>,
    /// Whether it serves embeddings only. It makes room only for what is known not to fit beside it.
    pub is_embedder: bool,
}

impl Held {
    /// The name under which it is learned about: its key's, where that is known.
    fn text(&self) -> String {
        self.key.as_ref().map_or_else(|| self.model.to_string(), ToString::to_string)
    }
}

/// What is known of models beside what was learned.
pub trait Models {
    /// The size of a model's weights in bytes, where known.
    fn size_bytes(&self, model: &ModelName) -> Option<i64>;
    /// What tells a model from another of that name: its digest, or the name where that is unknown.
    fn identity(&self, model: &ModelName) -> String;
}

/// Models of which nothing but the names are known.
#[derive(Debug, Clone, Copy)]
pub struct NamesOnly;

impl Models for NamesOnly {
    fn size_bytes(&self, _model: &ModelName) -> Option<i64> {
        None
    }

    fn identity(&self, model: &ModelName) -> String {
        model.to_string()
    }
}

impl Learning {
    /// The clock was set back to `now_ms`: nothing remembered may lie in the future, where it would never come.
    pub fn clock_set_back(&mut self, now_ms: i64) {
        self.visits.clock_set_back(now_ms);
        self.coolings.clock_set_back(now_ms);
        self.breakers.clock_set_back(now_ms);
        self.rates.clock_set_back();
        self.returns.clock_set_back();
    }

    /// Takes in what is in memory: the visit of what is there for the first time begins, with what waits for it; that of what
    /// is gone is over.
    pub fn see(&mut self, held: &[Held], waiting: &[Waiting], now_ms: i64) {
        self.visits.retain(|model| held.iter().any(|held| held.model == *model));
        for held in held {
            let is_its =
                |waiting: &&Waiting| waiting.lane.key().is_some_and(|key| key.model == held.model);
            let jobs = waiting.iter().filter(is_its).map(|waiting| waiting.jobs).sum();
            self.visits.seen(&held.model, jobs, now_ms);
        }
    }

    /// Until when a model in memory stays, whoever wants its place; in the past if nothing is known of it.
    pub fn stays_until_ms(&self, held: &Held, models: &dyn Models) -> i64 {
        let Some(visit) = self.visits.of(&held.model) else { return 0 };
        cooling::stays_until_ms(visit.since_ms, self.load_ms(held, models))
    }

    fn load_ms(&self, held: &Held, models: &dyn Models) -> i64 {
        self.load_times.expected_ms(&held.text(), models.size_bytes(&held.model))
    }

    /// The board for a decision.
    pub fn board(
        &self,
        now_ms: i64,
        waiting: &[Waiting],
        held: &[Held],
        models: &dyn Models,
        policy: &Policy,
    ) -> Board {
        let resident: Vec<Resident> =
            held.iter().map(|held| self.resident(held, now_ms, models)).collect();
        let queues = self.queues(waiting, held, models, policy);
        Board { now_ms, queues, resident, in_flight: Vec::new(), policy: policy.clone() }
    }

    fn resident(&self, held: &Held, now_ms: i64, models: &dyn Models) -> Resident {
        let so_far = self.visits.of(&held.model).copied().unwrap_or(VisitSoFar::unseen(now_ms));
        let (key, load_ms) = (held.text(), self.load_ms(held, models));
        let arrivals_per_ms = self.rates.arrivals_per_ms(&key, now_ms);
        let visit = Visit {
            since_ms: so_far.since_ms,
            gate_seq: so_far.gate_seq,
            gate_left: so_far.gate_left(),
            load_ms,
            service_ms: self.rates.expected_service_ms(&key),
            dry_since_ms: so_far.dry_since_ms,
            arrivals_per_ms,
            absence: self.returns.absence(&key, now_ms, load_ms, arrivals_per_ms),
        };
        Resident {
            model: held.model.clone(),
            key: held.key.clone(),
            is_embedder: held.is_embedder,
            visit,
        }
    }

    fn queues(
        &self,
        waiting: &[Waiting],
        held: &[Held],
        models: &dyn Models,
        policy: &Policy,
    ) -> Vec<Queue> {
        let mut heads: BTreeMap<&Lane, Vec<&Waiting>> = BTreeMap::new();
        for waiting in waiting {
            heads.entry(&waiting.lane).or_default().push(waiting);
        }
        let of_lane = |(lane, waiting): (&Lane, Vec<&Waiting>)| {
            let text = key_text(lane);
            let head = |waiting: &Waiting| Head {
                class: waiting.class,
                seq: waiting.seq,
                ready_at_ms: waiting.ready_at_ms,
                due_at_ms: policy.due_in_lane_at_ms(lane, waiting.class, waiting.ready_at_ms),
                jobs: waiting.jobs,
                served: self.classes.last_served(&text, waiting.class),
            };
            let mut heads: Vec<Head> = waiting.into_iter().map(head).collect();
            heads.sort_by_key(|head| head.class);
            self.queue(lane, heads, held, models, policy.beside)
        };
        heads.into_iter().map(of_lane).collect()
    }

    fn queue(
        &self,
        lane: &Lane,
        heads: Vec<Head>,
        held: &[Held],
        models: &dyn Models,
        beside: Beside,
    ) -> Queue {
        let text = key_text(lane);
        let (victims, unload) = self.must_go(lane, held, models, beside);
        let size_bytes = lane.key().and_then(|key| models.size_bytes(&key.model));
        let load_ms = self.load_times.expected_ms(&text, size_bytes);
        let due_at_ms = heads.iter().map(|head| head.due_at_ms).min().unwrap_or(i64::MAX);
        let blocked = lane.key().and_then(|key| {
            // What is there was pushed out by nobody.
            let is_held = held.iter().any(|held| held.model == key.model);
            let latest_ms = if is_held { 0 } else { due_at_ms.saturating_sub(load_ms) };
            self.blocked(key, models, latest_ms)
        });
        Queue {
            lane: lane.clone(),
            heads,
            load_ms,
            service_ms: self.rates.expected_service_ms(&text),
            victims,
            unload,
            barred_until_ms: blocked.map_or(0, |blocked| blocked.until_ms),
        }
    }

    /// What has to go for a lane as far as is known, and what of that is unloaded before its load.
    fn must_go(
        &self,
        lane: &Lane,
        held: &[Held],
        models: &dyn Models,
        beside: Beside,
    ) -> (Vec<ModelName>, Vec<ModelName>) {
        match lane {
            Lane::Embeds(key) => {
                let tried = self.embedder_trials(key, models);
                let victims = |trials| self.victims_of_embedder(key, held, models, trials);
                (victims(Trials::None), victims(tried))
            }
            Lane::Key(_) | Lane::Unload | Lane::Opaque => {
                let victims =
                    |trials: Trials| self.victims(lane.key(), held, models, trials.within(beside));
                (victims(Trials::None), victims(Trials::One))
            }
        }
    }

    /// Which models must go before a key is loaded: its own model with other options, and what does not fit beside it, of the
    /// embedders only what is known not to. Of the others, what was used last stays rather than what was not; of those never
    /// seen beside it as many stay as are tried. All but embedders go for a request without a key: nobody knows what it loads.
    pub fn victims(
        &self,
        wanted: Option<&LoadKey>,
        held: &[Held],
        models: &dyn Models,
        trials: Trials,
    ) -> Vec<ModelName> {
        let workers = || held.iter().filter(|held| !held.is_embedder);
        let Some(wanted) = wanted else {
            return workers().map(|held| held.model.clone()).collect();
        };
        let (embedders, mut victims) = self.embedders_beside(wanted, held, models);
        let Some(trials) = trials.count() else {
            victims.extend(workers().map(|held| held.model.clone()));
            return victims;
        };
        let mut others: Vec<&Held> = workers().filter(|held| held.model != wanted.model).collect();
        others.sort_by_key(|held| {
            let used_ms = self.visits.of(&held.model).map_or(0, |visit| visit.dry_since_ms);
            (std::cmp::Reverse(used_ms), held.model.clone())
        });
        let others = others.iter().map(|held| models.identity(&held.model));
        let kept = self.fits.keep(&models.identity(&wanted.model), embedders, others, trials);
        let is_victim = |held: &&Held| {
            held.model == wanted.model || !kept.contains(&models.identity(&held.model))
        };
        victims.extend(workers().filter(is_victim).map(|held| held.model.clone()));
        victims
    }
}

/// The name under which a lane is learned about: embeds of a model share its load times with its jobs.
fn key_text(lane: &Lane) -> String {
    lane.key().map_or_else(|| lane.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The load time of a key with options was looked up under the bare name, and taken for unmeasured.
    #[test]
    fn a_key_with_options_stays_for_its_own_load_times() {
        let key: LoadKey = "a:latest num_ctx=8192".parse().unwrap();
        let held = Held { model: key.model.clone(), key: Some(key.clone()), is_embedder: false };
        let mut learning = Learning::default();
        assert_eq!(learning.stays_until_ms(&held, &NamesOnly), 0, "nothing is known of it");
        learning.load_times.measured(&key.to_string(), 400, None);
        learning.visits.began(&key.model, 1, 5_000);
        assert_eq!(learning.stays_until_ms(&held, &NamesOnly), 5_000 + 8 * 400);
    }
}
