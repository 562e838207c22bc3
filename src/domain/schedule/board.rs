//! What the scheduler sees: the queue by lane, the memory of the upstream, what is in flight, and the rules it plays by.
//! Times are milliseconds since 1970 on one clock; spans are milliseconds.

use crate::domain::job::Class;
use crate::domain::model::{LoadKey, ModelName};

use super::Lane;

/// What the scheduler sees.
#[derive(Debug, Clone, Default)]
pub struct Board {
    /// Now.
    pub now_ms: i64,
    /// The lanes that have a ready job, in any order.
    pub queues: Vec<Queue>,
    /// What the upstream holds in memory, as far as known.
    pub resident: Vec<Resident>,
    /// The lanes of the jobs in flight, one entry a job.
    pub in_flight: Vec<Lane>,
    /// The rules.
    pub policy: Policy,
}

impl Board {
    /// When the next waiting job passes its due time: by that the order may change without anything happening.
    pub fn next_due_at_ms(&self) -> Option<i64> {
        let heads = self.queues.iter().flat_map(|queue| &queue.heads);
        heads.map(|head| head.due_at_ms).filter(|due_at_ms| *due_at_ms > self.now_ms).min()
    }
}

/// A lane with its longest waiting jobs. In a lane of embeds whose model is resident, the embeds under way count as waiting.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// The lane.
    pub lane: Lane,
    /// The longest waiting job of each class that has a ready one, most urgent class first. Never empty.
    pub heads: Vec<Head>,
    /// What making its key resident is expected to take.
    pub load_ms: i64,
    /// What one of its jobs is expected to take, once its key is resident.
    pub service_ms: i64,
    /// Models that have to make room for its key, as far as is known; none for a key that fits beside what is resident.
    pub victims: Vec<ModelName>,
    /// Those of them to unload before the load. The others were never seen beside the key: they are left, to learn whether
    /// they have to go.
    pub unload: Vec<ModelName>,
    /// Not to be loaded before: its load failed, or somebody else keeps pushing it out. In the past: may be loaded.
    pub barred_until_ms: i64,
}

/// One class in a lane, with the job of it that has been ready longest.
///
/// By that job it is judged what is late, and what a visit owes. Which one runs is another matter: clients take turns
/// (`domain::turns`), and the store knows whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The class.
    pub class: Class,
    /// Arrival number. Arrival is the order of insertion, not a clock.
    pub seq: i64,
    /// Since when it may run: its arrival, or the end of its last delay.
    pub ready_at_ms: i64,
    /// By when it should be running.
    pub due_at_ms: i64,
    /// How many jobs of this class wait in the lane.
    pub jobs: u64,
    /// Grows with each job served: when this class was last, in this lane. 0: never, as far as known.
    pub served: u64,
}

impl Queue {
    /// How many jobs wait in the lane.
    pub fn jobs(&self) -> u64 {
        self.heads.iter().map(|head| head.jobs).sum()
    }

    /// How many are kept waiting while its key is not resident. Embeds count as one, however many: they go to Ollama together as
    /// soon as their model is there, and a flow of them would else end every hold.
    pub fn waiters(&self) -> u64 {
        match self.lane {
            Lane::Embeds(_) => 1,
            Lane::Key(_) | Lane::Unload | Lane::Opaque => self.jobs(),
        }
    }

    /// The class to serve next: the most urgent one, or one with a job past its due time. Those take turns, the one served
    /// longest ago first, so that a thousand late jobs neither wait for ever nor make everybody else late.
    pub fn first(&self, now_ms: i64) -> Option<&Head> {
        let best = self.class();
        let is_overdue = |head: &Head| head.due_at_ms <= now_ms;
        let contenders = self.heads.iter().filter(|head| head.class == best || is_overdue(head));
        contenders.min_by_key(|head| {
            (head.served, !is_overdue(head), head.due_at_ms, head.class, head.seq)
        })
    }

    /// The head that is due first.
    pub fn earliest(&self) -> Option<&Head> {
        self.heads.iter().min_by_key(|head| (head.due_at_ms, head.seq))
    }

    /// The most urgent class that waits.
    pub fn class(&self) -> Class {
        self.heads.iter().map(|head| head.class).min().unwrap_or(Class::Batch)
    }

    /// What all its waiting jobs are expected to take.
    pub fn work_ms(&self) -> i64 {
        self.service_ms.saturating_mul(i64::try_from(self.jobs()).unwrap_or(i64::MAX))
    }
}

/// A model the upstream holds in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Resident {
    /// Its canonical name.
    pub model: ModelName,
    /// The key it was loaded with; `None` where foreman did not load it, so that its runner options are unknown.
    pub key: Option<LoadKey>,
    /// Whether it serves embeddings only. It makes room only for what is known not to fit beside it.
    pub is_embedder: bool,
    /// What is known of its time in memory.
    pub visit: Visit,
}

/// The time from a load to the next swap away.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Visit {
    /// When the load finished.
    pub since_ms: i64,
    /// The last arrival number that waited for the key when the load finished: jobs up to it are the *gate*, which is
    /// served before the key may be rotated away. A job that was put off since then has left the gate.
    pub gate_seq: i64,
    /// How many jobs are still to be served until they are as many as waited then: jobs of other clients that came later take
    /// their turns in between, and must not make the gate longer for those who wait for other keys.
    pub gate_left: u64,
    /// What loading it took, or is expected to take.
    pub load_ms: i64,
    /// What one of its jobs is expected to take.
    pub service_ms: i64,
    /// Since when it has had nothing to do; meaningful while its lane is empty.
    pub dry_since_ms: i64,
    /// Jobs that arrive for it per millisecond, from whomever.
    pub arrivals_per_ms: f64,
    /// How likely it is that nobody has asked for it by then, seen from now: ascending waits, falling probabilities.
    pub absence: Vec<Absence>,
}

/// A point of the curve of absence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Absence {
    /// A wait from now.
    pub wait_ms: i64,
    /// The probability that nobody has come back by then, 0 to 1.
    pub probability: f64,
}

/// The rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long a job of each class should wait at most, by [`Class::ALL`].
    pub max_wait_ms: [i64; 3],
    /// How long an embed should wait at most for a model that does not fit beside what is resident.
    pub embed_wait_ms: i64,
    /// Whether and how long a dry key is kept.
    pub hold: Hold,
    /// Jobs of one key in flight at once.
    pub parallel: usize,
    /// Whether worker models are tried beside each other.
    pub beside: Beside,
}

/// Whether worker models are tried beside each other. Embedders always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Each pair once: the first load of one while the other is resident unloads nothing, and what becomes of it is
    /// remembered.
    Auto,
    /// Never: one worker model at a time, and Ollama never chooses what has to go.
    Off,
}

/// Whether and how long a dry key is kept while others wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// As long as it is worth it.
    Auto,
    /// Never.
    Off,
    /// This long, whoever is expected, unless a waiter becomes urgent.
    Fixed {
        /// In milliseconds.
        ms: i64,
    },
}

impl Default for Policy {
    fn default() -> Policy {
        const MINUTE_MS: i64 = 60_000;
        Policy {
            max_wait_ms: [2 * MINUTE_MS, 10 * MINUTE_MS, 6 * 60 * MINUTE_MS],
            embed_wait_ms: 20_000,
            hold: Hold::Auto,
            parallel: 1,
            beside: Beside::Auto,
        }
    }
}

impl Policy {
    /// By when what waits in a lane since `ready_at_ms` should be running.
    pub fn due_in_lane_at_ms(&self, lane: &Lane, class: Class, ready_at_ms: i64) -> i64 {
        match lane {
            Lane::Embeds(_) => ready_at_ms.saturating_add(self.embed_wait_ms),
            Lane::Key(_) | Lane::Unload | Lane::Opaque => self.due_at_ms(class, ready_at_ms),
        }
    }

    /// By when a job that became ready at `ready_at_ms` should be running.
    pub fn due_at_ms(&self, class: Class, ready_at_ms: i64) -> i64 {
        let index = Class::ALL.iter().position(|other| *other == class).unwrap_or(0);
        ready_at_ms.saturating_add(self.max_wait_ms[index])
    }
}
