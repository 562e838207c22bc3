//! Random lives of a queue: the real store, the real learning and the real scheduler, driven in virtual time by a model of
//! the worker. Arrivals, cancellations, failures, restarts and a clock that jumps, in any order.
//!
//! More cases: `FOREMAN_TEST_LIVES=500`. A failure prints its case, and proptest keeps its seed.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use foreman::domain::dialect::Dialect;
use foreman::domain::job::{Class, Event, JobId, Kind, State};
use foreman::domain::learning::{Held, Learning, LoadError, LoadFailure, NamesOnly, Waiting};
use foreman::domain::model::{LoadKey, ModelName, RunnerOptions};
use foreman::domain::retry::Charge;
use foreman::domain::schedule::{Decision, Lane, Policy, decide};
use foreman::domain::turns::Turns;
use foreman::store::{
    Admission, Claim, Ending, Extras, GaveBack, GiveBack, Measured, NewJob, QueueLimits, Store,
    WaitingLane,
};
use proptest::prelude::*;
use proptest::test_runner::Config;
use ulid::Ulid;

/// Cases tried without the variable: some seconds.
const CASES: u32 = 40;

const BEGIN_MS: i64 = 1_700_000_000_000;

/// Longer delays count as ended: the clock was ahead when they were set.
const DELAY_MS_MAX: i64 = 120_000;

/// Something that happens.
#[derive(Debug, Clone, Copy)]
enum Act {
    Arrive {
        key: usize,
        class: usize,
        client: usize,
    },
    /// The client of some waiting job leaves.
    Leave {
        which: usize,
    },
    /// The worker takes one turn, and this becomes of what it dispatches.
    Turn(Outcome),
    Restart,
    Wait {
        ms: i64,
    },
    /// The clock is set.
    Jump {
        ms: i64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Done,
    Failed,
    Again,
    LoadFails,
}

fn any_act() -> impl Strategy<Value = Act> {
    let outcome = prop_oneof![
        6 => Just(Outcome::Done),
        1 => Just(Outcome::Failed),
        2 => Just(Outcome::Again),
        1 => Just(Outcome::LoadFails),
    ];
    prop_oneof![
        6 => (0..4_usize, 0..3_usize, 0..3_usize)
            .prop_map(|(key, class, client)| Act::Arrive { key, class, client }),
        1 => (0..50_usize).prop_map(|which| Act::Leave { which }),
        6 => outcome.prop_map(Act::Turn),
        1 => Just(Act::Restart),
        2 => (1..60_000_i64).prop_map(|ms| Act::Wait { ms }),
        1 => (-7_200_000..7_200_000_i64).prop_map(|ms| Act::Jump { ms }),
    ]
}

/// What the model knows of a job.
#[derive(Debug, Clone)]
struct Job {
    id: JobId,
    seq: i64,
    lane: String,
    class: Class,
    client: usize,
    not_before_ms: i64,
    is_waiting: bool,
    ends: u32,
}

struct Life<'a> {
    path: &'a Path,
    store: Option<Store>,
    learning: Learning,
    resident: Option<LoadKey>,
    now_ms: i64,
    jobs: Vec<Job>,
    /// The ready jobs by lane and class, and whose turn it is.
    turns: BTreeMap<(String, Class), Turns<usize>>,
    /// Which jobs are among them, and where.
    entered: BTreeMap<i64, (String, Class)>,
    /// Loads since the last job that ran.
    idle_loads: u32,
}

fn key(index: usize) -> LoadKey {
    let name = ModelName::parse(["a", "b", "c", "d"][index]).unwrap().name;
    LoadKey::new(name, RunnerOptions::default())
}

impl Life<'_> {
    fn store(&self) -> Store {
        self.store.clone().unwrap()
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Arrive { key: index, class, client } => {
                self.arrive(index, Class::ALL[class], client).await;
            }
            Act::Leave { which } => self.leave(which).await,
            Act::Turn(outcome) => self.turn(outcome).await,
            Act::Restart => self.restart().await,
            Act::Wait { ms } => self.now_ms += ms,
            Act::Jump { ms } => {
                self.now_ms += ms;
                if ms < 0 {
                    self.store().clamp_ready(self.now_ms).await.unwrap();
                    self.learning.clock_set_back(self.now_ms);
                }
            }
        }
    }

    async fn arrive(&mut self, index: usize, class: Class, client: usize) {
        let id = JobId(Ulid::from_parts(1, u128::try_from(self.jobs.len()).unwrap()));
        let lane = Lane::Key(key(index)).to_string();
        let job = NewJob {
            id,
            dialect: Dialect::Chat,
            kind: Kind::Run,
            lane: lane.clone(),
            model: "m".to_owned(),
            class,
            client: client.to_string(),
            is_streamed: false,
            path_and_query: "/api/chat".to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
            extras: Extras::default(),
        };
        let limits = QueueLimits { jobs_max: 1_000, bytes_max: 1_000, class_max: [None; 3] };
        let admitted = self.store().admit(job, limits, self.now_ms).await.unwrap();
        let Admission::Admitted { seq } = admitted else { panic!("{admitted:?}") };
        self.learning.rates.arrived(&lane, self.now_ms);
        let (not_before_ms, is_waiting) = (0, true);
        self.jobs.push(Job { id, seq, lane, class, client, not_before_ms, is_waiting, ends: 0 });
    }

    async fn leave(&mut self, which: usize) {
        let now_ms = self.now_ms;
        let store = self.store();
        let Some(job) = self.jobs.iter_mut().filter(|job| job.is_waiting).nth(which) else {
            return;
        };
        store.cancel_waiting(job.id, now_ms).await.unwrap();
        job.is_waiting = false;
        job.ends += 1;
    }

    /// The daemon dies and comes back; Ollama's memory with it.
    async fn restart(&mut self) {
        let store = self.store.take().unwrap();
        store.close().await;
        drop(store);
        self.store = Some(Store::open(self.path, self.now_ms).unwrap().0);
        self.learning = Learning::default();
        self.resident = None;
        for job in self.jobs.iter_mut().filter(|job| job.is_waiting) {
            job.class = Class::Batch;
        }
    }

    /// A delay that was seen to be over stays over, also when the clock is set back after that.
    fn end_delays(&mut self) {
        let (now_ms, latest_ms) = (self.now_ms, self.now_ms + DELAY_MS_MAX);
        let is_over = |at_ms: i64| at_ms <= now_ms || at_ms > latest_ms;
        for job in self.jobs.iter_mut().filter(|job| job.is_waiting && is_over(job.not_before_ms)) {
            job.not_before_ms = 0;
        }
    }

    /// Takes in which jobs have become ready, and which are no more, each where it waits now.
    fn take_turns(&mut self) {
        for job in &self.jobs {
            let place = (job.lane.clone(), job.class);
            let is_ready = job.is_waiting && job.not_before_ms == 0;
            if let Some(before) = self.entered.get(&job.seq).cloned()
                && (!is_ready || before != place)
            {
                self.turns.get_mut(&before).unwrap().leave(&job.client, job.seq);
                self.entered.remove(&job.seq);
            }
            if is_ready && self.entered.insert(job.seq, place.clone()).is_none() {
                self.turns.entry(place).or_default().enter(job.client, job.seq);
            }
        }
    }

    /// What the worker does in a turn, up to the end of the job.
    async fn turn(&mut self, outcome: Outcome) {
        self.end_delays();
        self.take_turns();
        let waiting = self.store().waiting_lanes(self.now_ms).await.unwrap();
        let waiting: Vec<Waiting> = waiting.iter().filter_map(WaitingLane::ready).collect();
        let resident = self.resident.iter();
        let held: Vec<Held> = resident
            .map(|key| Held {
                model: key.model.clone(),
                key: Some(key.clone()),
                is_embedder: false,
            })
            .collect();
        let policy = Policy::default();
        self.learning.see(&held, &waiting, self.now_ms);
        let board = self.learning.board(self.now_ms, &waiting, &held, &NamesOnly, &policy);
        match decide(&board) {
            Decision::LoadEmbedder { .. } => panic!("no embeds here"),
            Decision::Busy => panic!("nothing is in flight"),
            Decision::Idle { until_ms } => {
                let next = self.store().next_ready_at_ms().await.unwrap();
                let until = until_ms.into_iter().chain(next).min().unwrap_or(self.now_ms);
                self.now_ms = self.now_ms.max(until);
            }
            Decision::Hold { until_ms, .. } => {
                assert!(until_ms > self.now_ms);
                self.now_ms = until_ms;
            }
            Decision::Run { lane, class, .. } => {
                let claim = self.claim(&lane, class, Event::ClaimToWork).await;
                self.work(claim, &lane, outcome).await;
            }
            Decision::Swap { load, class, .. } => {
                let (key, model) = (load.to_string(), load.model.to_string());
                assert!(self.learning.breakers.until_ms(&key, &model) <= self.now_ms);
                let lane = Lane::Key(load.clone());
                let claim = self.claim(&lane, class, Event::ClaimToLoad).await;
                self.load(claim, load, outcome).await;
            }
        }
    }

    async fn load(&mut self, claim: Claim, load: LoadKey, outcome: Outcome) {
        self.now_ms += 4_000;
        if outcome == Outcome::LoadFails {
            let error = LoadError {
                failure: LoadFailure::Refused,
                status: 500,
                text: "out of memory".to_owned(),
            };
            let (key, model) = (load.to_string(), load.model.to_string());
            self.learning.breakers.load_failed(&key, &model, error, self.now_ms);
            self.give_back(&claim).await;
            return;
        }
        self.idle_loads += 1;
        assert!(self.idle_loads <= 1, "two loads in a row without a job between them");
        let last_seq = self.jobs.last().map_or(0, |job| job.seq);
        self.learning.breakers.close(&load.to_string());
        self.learning.load_times.measured(&load.to_string(), 4_000, None);
        self.learning.visits.began(&load.model, last_seq, self.now_ms);
        self.resident = Some(load.clone());
        let store = self.store();
        assert!(store.loaded(claim.seq, claim.lease_epoch, 4_000, self.now_ms).await.unwrap());
        self.work(claim, &Lane::Key(load), outcome).await;
    }

    /// Claims, and checks that it is the oldest ready job of the client whose turn it is in the lane and class.
    async fn claim(&mut self, lane: &Lane, class: Class, event: Event) -> Claim {
        let text = lane.to_string();
        let claim = self.store().claim(text.clone(), class, event, self.now_ms).await.unwrap();
        let claim = claim.expect("the scheduler named a lane without a ready job");
        self.end_delays();
        self.take_turns();
        let first = self.turns.get_mut(&(text.clone(), class)).and_then(Turns::take);
        assert_eq!(Some(claim.seq), first, "not the next of {text} {class:?}");
        self.entered.remove(&claim.seq);
        self.learning.classes.served(&text, class);
        let job = self.jobs.iter_mut().find(|job| job.seq == claim.seq).unwrap();
        job.is_waiting = false;
        claim
    }

    async fn work(&mut self, claim: Claim, lane: &Lane, outcome: Outcome) {
        self.idle_loads = 0;
        self.now_ms += 1_500;
        let Some(key) = lane.key() else { return };
        self.learning.rates.served(&lane.to_string(), 1_500);
        self.learning.visits.worked(&key.model, self.now_ms);
        let (event, error) = match outcome {
            Outcome::Done | Outcome::LoadFails => (Event::Complete, None),
            Outcome::Failed => (Event::Fail, Some("no".to_owned())),
            Outcome::Again => return self.give_back(&claim).await,
        };
        let ending = Ending {
            event,
            answer: None,
            error,
            error_status: None,
            measured: Measured::default(),
        };
        let store = self.store();
        assert!(
            store.finish(claim.seq, claim.lease_epoch, ending.clone(), self.now_ms).await.unwrap()
        );
        assert!(!store.finish(claim.seq, claim.lease_epoch, ending, self.now_ms).await.unwrap());
        let job = self.jobs.iter_mut().find(|job| job.seq == claim.seq).unwrap();
        job.ends += 1;
    }

    async fn give_back(&mut self, claim: &Claim) {
        let not_before_ms = self.now_ms + 3_000;
        let back = GiveBack {
            charge: Charge::Attempt,
            not_before_ms,
            error: "again".to_owned(),
            at_ms: self.now_ms,
        };
        let given = self.store().give_back(claim.seq, claim.lease_epoch, back).await.unwrap();
        assert_eq!(given, GaveBack::Queued);
        let job = self.jobs.iter_mut().find(|job| job.seq == claim.seq).unwrap();
        job.is_waiting = true;
        job.not_before_ms = not_before_ms;
    }

    /// Nothing more goes wrong: everything that waits is served, in a number of turns that is bounded by the jobs.
    async fn settle(&mut self) {
        for _ in 0..20 * self.jobs.len() + 100 {
            if self.jobs.iter().all(|job| !job.is_waiting) {
                break;
            }
            self.turn(Outcome::Done).await;
        }
        for job in &self.jobs {
            assert_eq!((job.is_waiting, job.ends), (false, 1), "{job:?}");
        }
        let overview = self.store().overview(Vec::new(), 10).await.unwrap();
        assert!(overview.lanes.is_empty() && overview.live.is_empty(), "{overview:?}");
        let ended: u64 = overview
            .jobs_by_state
            .iter()
            .filter(|(state, _)| State::from_name(state).is_some_and(State::is_final))
            .map(|(_, jobs)| jobs)
            .sum();
        assert_eq!(ended, u64::try_from(self.jobs.len()).unwrap());
    }
}

async fn live(acts: &[Act]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("foreman.db");
    let store = Some(Store::open(&path, BEGIN_MS).unwrap().0);
    let mut life = Life {
        path: &path,
        store,
        learning: Learning::default(),
        resident: None,
        now_ms: BEGIN_MS,
        jobs: Vec::new(),
        turns: BTreeMap::new(),
        entered: BTreeMap::new(),
        idle_loads: 0,
    };
    for act in acts {
        life.act(*act).await;
        life.take_turns();
    }
    life.settle().await;
    life.store().close().await;
}

#[test]
fn whatever_happens_every_job_ends_once_and_in_its_turn() {
    let cases = std::env::var("FOREMAN_TEST_LIVES").ok().and_then(|text| text.parse().ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { failure_persistence: None, ..Config::with_cases(cases.unwrap_or(CASES)) };
    proptest!(config, |(acts in prop::collection::vec(any_act(), 1..80))| {
        runtime.block_on(live(&acts));
    });
}
