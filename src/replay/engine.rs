//! The virtual day itself: one GPU, some slots, a queue, and a chooser. Time is whole microseconds from the beginning.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::domain::bound::{Window, lower_bound};
use crate::domain::job::Class;
use crate::domain::learning::{Held, Learning, NamesOnly, Waiting};
use crate::domain::model::{LoadKey, ModelName};
use crate::domain::schedule::{Beside, Decision, Lane, Policy, Reason, decide};
use crate::domain::turns::Turns;

use super::report::Report;
use super::trace::{Job, Trace, TraceFault, load_key};
use super::units::{US_PER_MS, ms, seconds, us};
use super::{Chooser, Setup};

/// Replays a trace.
///
/// # Errors
/// A key that is none.
pub fn replay(trace: &Trace, setup: &Setup) -> Result<Report, TraceFault> {
    let mut day = Day::new(trace, setup)?;
    day.run();
    Ok(day.report())
}

/// A job that has arrived.
#[derive(Debug, Clone)]
struct Arrived {
    lane: usize,
    at_us: u64,
    service_us: u64,
    source: Source,
}

/// Where a job comes from: an index into the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Arrival(usize),
    Step(usize, usize),
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(Source),
    /// The end of a job in flight.
    Ends(usize),
}

struct Day<'a> {
    trace: &'a Trace,
    setup: &'a Setup,
    slots: usize,
    keys: Vec<LoadKey>,
    load_us: Vec<u64>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    now_us: u64,
    jobs: Vec<Arrived>,
    /// By lane and class, with the turns of their clients.
    queues: BTreeMap<(usize, Class), Turns<Option<String>>>,
    /// Keys in memory, the one used last at the end.
    resident: Vec<usize>,
    in_flight: Vec<usize>,
    learning: Learning,
    holding: Option<usize>,
    waits_us: Vec<u64>,
    windows: Vec<Window<usize>>,
    latency_us: u64,
    report: Report,
}

impl<'a> Day<'a> {
    fn new(trace: &'a Trace, setup: &'a Setup) -> Result<Day<'a>, TraceFault> {
        let mut day = Day {
            trace,
            setup,
            slots: trace.slots.unwrap_or(setup.slots).max(1),
            keys: Vec::new(),
            load_us: Vec::new(),
            events: BinaryHeap::new(),
            now_us: 0,
            jobs: Vec::new(),
            queues: BTreeMap::new(),
            resident: Vec::new(),
            in_flight: Vec::new(),
            learning: Learning::default(),
            holding: None,
            waits_us: Vec::new(),
            windows: Vec::new(),
            latency_us: 0,
            report: Report::default(),
        };
        let steps = trace.loops.iter().flat_map(|client| client.steps.iter().map(|(job, _)| job));
        for job in trace.arrivals.iter().map(|arrival| &arrival.job).chain(steps) {
            day.lane(job)?;
        }
        for (index, arrival) in trace.arrivals.iter().enumerate() {
            day.events.push(Reverse((us(arrival.at_s), Event::Arrives(Source::Arrival(index)))));
        }
        for (index, client) in trace.loops.iter().enumerate() {
            if !client.steps.is_empty() {
                let first = Event::Arrives(Source::Step(index, 0));
                day.events.push(Reverse((us(client.start_s), first)));
            }
        }
        Ok(day)
    }

    /// The lane of a job, made where it is new.
    fn lane(&mut self, job: &Job) -> Result<usize, TraceFault> {
        let key = load_key(&job.key).map_err(|what| TraceFault { line: 0, what })?;
        if let Some(lane) = self.keys.iter().position(|known| *known == key) {
            return Ok(lane);
        }
        let is_it = |name: &str| load_key(name).is_ok_and(|named| named == key);
        let told = self.trace.loads_s.iter().find(|(name, _)| is_it(name));
        self.load_us.push(us(told.map_or(self.setup.load_s, |(_, load_s)| *load_s)));
        self.keys.push(key);
        Ok(self.keys.len() - 1)
    }

    fn run(&mut self) {
        loop {
            self.take_events();
            if !self.act() {
                let Some(Reverse((at_us, _))) = self.events.peek() else { return };
                self.now_us = self.now_us.max(*at_us);
            }
        }
    }

    /// Takes in what has happened by now.
    fn take_events(&mut self) {
        while let Some(Reverse((at_us, event))) = self.events.peek().copied() {
            if at_us > self.now_us {
                return;
            }
            self.events.pop();
            match event {
                Event::Arrives(source) => self.arrive(source, at_us),
                Event::Ends(job) => self.end(job),
            }
        }
    }

    fn arrive(&mut self, source: Source, at_us: u64) {
        let job = match source {
            Source::Arrival(index) => &self.trace.arrivals[index].job,
            Source::Step(client, step) => &self.trace.loops[client].steps[step].0,
        };
        let (class, service_us) = (job.class, us(job.service_s));
        // Every key was met when the day was made.
        let Ok(lane) = self.lane(&job.clone()) else { return };
        let (key, now_ms) = (self.keys[lane].to_string(), ms(at_us));
        let client = self.client(source);
        let id = job_id(self.jobs.len());
        self.learning.returns.arrived(id, client.as_deref(), &key, now_ms);
        self.learning.rates.arrived(&key, now_ms);
        if self.holding.is_some_and(|held| held == lane) {
            self.holding = None;
            self.report.hold_hits += 1;
        }
        let max_wait_ms = self.setup.policy.due_at_ms(class, 0);
        self.windows.push(Window {
            key: lane,
            from_ms: now_ms,
            until_ms: now_ms.saturating_add(max_wait_ms),
        });
        self.queues.entry((lane, class)).or_default().enter(client, number(self.jobs.len()));
        self.jobs.push(Arrived { lane, at_us, service_us, source });
    }

    /// Who asks, where the trace says so.
    fn client(&self, source: Source) -> Option<String> {
        match source {
            Source::Arrival(index) => self.trace.arrivals[index].client.clone(),
            Source::Step(client, _) => Some(self.trace.loops[client].client.clone()),
        }
    }

    fn end(&mut self, index: usize) {
        self.in_flight.retain(|job| *job != index);
        let job = self.jobs[index].clone();
        let key = self.keys[job.lane].clone();
        let now_ms = ms(self.now_us);
        self.learning.rates.served(&key.to_string(), ms(job.service_us));
        self.learning.visits.worked(&key.model, now_ms);
        self.latency_us += self.now_us - job.at_us;
        self.report.jobs += 1;
        self.report.makespan_s = seconds(self.now_us);
        self.learning.returns.ended(job_id(index), now_ms);
        let Source::Step(client, step) = job.source else { return };
        let looping = &self.trace.loops[client];
        if step + 1 < looping.steps.len() {
            let at_us = self.now_us + us(looping.steps[step].1);
            self.events.push(Reverse((at_us, Event::Arrives(Source::Step(client, step + 1)))));
        }
    }

    /// Dispatches what can be dispatched now. `false` if nothing more happens before the next event.
    fn act(&mut self) -> bool {
        let decision = match self.setup.chooser {
            Chooser::Fifo => self.plain(|_, first| first.1),
            Chooser::Drain => self.plain(|day, first| (!day.resident.contains(&first.0), first.1)),
            Chooser::Foreman => self.decide(),
        };
        if !matches!(decision, Decision::Hold { .. }) && self.holding.take().is_some() {
            self.report.hold_misses += 1;
        }
        match decision {
            Decision::Run { lane, class, .. } => self.start(&lane, class),
            Decision::Swap { unload, load, class, reason } => {
                let is_rotation = matches!(reason, Reason::Rotate { .. } | Reason::Preempt);
                self.report.rotations += u64::from(is_rotation);
                self.report.overtakings += u64::from(reason == Reason::Longest);
                self.load(&unload, &load);
                self.start(&Lane::Key(load), class);
            }
            Decision::Hold { until_ms, model } => {
                let held = self.keys.iter().position(|key| key.model == model);
                self.holding = self.holding.or(held);
                let until_us = u64::try_from(until_ms).unwrap_or(0) * US_PER_MS;
                let next_us = self.events.peek().map_or(u64::MAX, |Reverse((at_us, _))| *at_us);
                self.now_us = until_us.max(self.now_us + US_PER_MS).min(next_us.max(self.now_us));
            }
            // No trace has embeds.
            Decision::LoadEmbedder { .. } | Decision::Busy | Decision::Idle { .. } => return false,
        }
        true
    }

    /// The choice by a rank over each lane and its oldest job.
    fn plain<R: Ord>(&self, rank: impl Fn(&Day<'_>, (usize, usize)) -> R) -> Decision {
        if self.in_flight.len() >= self.setup.policy.parallel.max(1) {
            return Decision::Busy;
        }
        let heads = self
            .queues
            .iter()
            .filter_map(|((lane, class), jobs)| Some((*lane, index(jobs.oldest()?), *class)));
        let chosen = heads.min_by_key(|(lane, first, _)| (rank(self, (*lane, *first)), *first));
        let Some((lane, _, class)) = chosen else { return Decision::Idle { until_ms: None } };
        let is_alone = self.in_flight.iter().all(|job| self.jobs[*job].lane == lane);
        if !is_alone {
            return Decision::Busy;
        }
        let key = self.keys[lane].clone();
        let reason = Reason::Dry;
        if self.resident.contains(&lane) {
            return Decision::Run { lane: Lane::Key(key), class, reason };
        }
        Decision::Swap { unload: Vec::new(), load: key, class, reason }
    }

    fn decide(&mut self) -> Decision {
        let now_ms = ms(self.now_us);
        let waiting: Vec<Waiting> = self
            .queues
            .iter()
            .filter_map(|((lane, class), jobs)| {
                let first = jobs.oldest()?;
                Some(Waiting {
                    lane: Lane::Key(self.keys[*lane].clone()),
                    class: *class,
                    jobs: u64::try_from(jobs.jobs()).unwrap_or(u64::MAX),
                    seq: first,
                    ready_at_ms: ms(self.jobs[index(first)].at_us),
                })
            })
            .collect();
        let held: Vec<Held> = self
            .resident
            .iter()
            .map(|lane| Held {
                model: self.keys[*lane].model.clone(),
                key: Some(self.keys[*lane].clone()),
                is_embedder: false,
            })
            .collect();
        // With one slot there is nothing to try.
        let beside = if self.slots == 1 { Beside::Off } else { self.setup.policy.beside };
        let policy = Policy { beside, ..self.setup.policy.clone() };
        self.learning.see(&held, &waiting, now_ms);
        let mut board = self.learning.board(now_ms, &waiting, &held, &NamesOnly, &policy);
        let flying = self.in_flight.iter().map(|job| self.keys[self.jobs[*job].lane].clone());
        board.in_flight = flying.map(Lane::Key).collect();
        decide(&board)
    }

    /// Makes a key resident. Beyond the slots, what was used longest ago has to go, as with an Ollama.
    fn load(&mut self, unload: &[ModelName], load: &LoadKey) {
        let Some(lane) = self.keys.iter().position(|key| key == load) else { return };
        let keys = &self.keys;
        self.resident
            .retain(|held| !unload.contains(&keys[*held].model) && keys[*held].model != load.model);
        let tried: Vec<usize> = self.resident.clone();
        while self.resident.len() >= self.slots {
            self.resident.remove(0);
        }
        self.resident.push(lane);
        let names =
            |lanes: &[usize]| lanes.iter().map(|lane| keys[*lane].model.to_string()).collect();
        if tried.len() + 1 > self.resident.len() {
            let mut set: BTreeSet<String> = names(&tried);
            set.insert(load.model.to_string());
            self.learning.fits.observe(set, false);
        }
        self.learning.fits.observe(names(&self.resident), true);
        self.now_us += self.load_us[lane];
        self.report.loads += 1;
        self.report.loading_s += seconds(self.load_us[lane]);
        self.learning.load_times.measured(&load.to_string(), ms(self.load_us[lane]), None);
        self.take_events();
        let waiting = self.queues.iter().filter(|((queue, _), _)| *queue == lane);
        let gate_seq = waiting.filter_map(|(_, jobs)| jobs.newest()).max().unwrap_or(0);
        self.learning.visits.began(&load.model, gate_seq, ms(self.now_us));
    }

    fn start(&mut self, lane: &Lane, class: Class) {
        let Some(key) = lane.key() else { return };
        let Some(lane) = self.keys.iter().position(|known| known == key) else { return };
        let Some(jobs) = self.queues.get_mut(&(lane, class)) else { return };
        let taken = match self.setup.chooser {
            Chooser::Fifo | Chooser::Drain => jobs.take_oldest(),
            Chooser::Foreman => jobs.take(),
        };
        let Some(job) = taken.map(index) else { return };
        self.learning.classes.served(&key.to_string(), class);
        if let Some(place) = self.resident.iter().position(|held| *held == lane) {
            let held = self.resident.remove(place);
            self.resident.push(held);
        }
        self.waits_us.push(self.now_us - self.jobs[job].at_us);
        let max_wait_ms = self.setup.policy.due_at_ms(class, 0);
        let wait_ms = ms(self.now_us - self.jobs[job].at_us);
        self.report.late += u64::from(wait_ms > max_wait_ms);
        self.in_flight.push(job);
        let end_us = self.now_us + self.jobs[job].service_us;
        self.events.push(Reverse((end_us, Event::Ends(job))));
    }

    fn report(mut self) -> Report {
        self.waits_us.sort_unstable();
        let count = self.waits_us.len();
        let rank = (count * 95).div_ceil(100).saturating_sub(1);
        self.report.p95_wait_s = self.waits_us.get(rank).copied().map_or(0.0, seconds);
        self.report.longest_wait_s = self.waits_us.last().copied().map_or(0.0, seconds);
        self.report.mean_latency_s = seconds(self.latency_us) / (self.report.jobs.max(1) as f64);
        self.report.bound = lower_bound(&self.windows, self.slots);
        self.report
    }
}

/// The arrival number of a job, from its place in the list of those that have arrived.
fn number(job: usize) -> i64 {
    i64::try_from(job).unwrap_or(i64::MAX)
}

/// The reverse of [`number`].
fn index(seq: i64) -> usize {
    usize::try_from(seq).unwrap_or(usize::MAX)
}

fn job_id(job: usize) -> u128 {
    u128::try_from(job).unwrap_or(u128::MAX)
}
