//! The store as its users understand it: jobs in a list, no SQL. `machine` compares the two.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::domain::job::State;
use crate::domain::retry::INTERRUPTIONS_MAX;
use crate::domain::turns::Turns;

/// A delay that seems longer was given while the clock was ahead.
const DELAY_MS_MAX: i64 = 120_000;

/// A job of the model.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) seq: i64,
    pub(super) new: NewJob,
    pub(super) state: State,
    pub(super) class: Class,
    pub(super) is_async: bool,
    pub(super) is_lost: bool,
    pub(super) is_cancelling: bool,
    pub(super) not_before_ms: i64,
    pub(super) run_at_ms: i64,
    pub(super) created_at_ms: i64,
    pub(super) ready_at_ms: i64,
    pub(super) deadline_ms: Option<i64>,
    pub(super) counters: [u32; 3],
    pub(super) epoch: i64,
    pub(super) has_request: bool,
    /// When it ended last.
    pub(super) ended_at_ms: i64,
    /// From, to, lease.
    pub(super) log: Vec<(Option<State>, State, i64)>,
    /// How many of its webhooks were delivered.
    pub(super) delivered: usize,
}

impl Known {
    pub(super) fn owes(&self) -> usize {
        if self.new.extras.webhook.is_some() { self.log.len() - self.delivered } else { 0 }
    }

    fn is_in_flight(&self) -> bool {
        matches!(self.state, State::Loading | State::Working)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Queued && self.not_before_ms == 0
    }

    pub(super) fn is_scheduled(&self) -> bool {
        self.not_before_ms != 0 && self.not_before_ms == self.run_at_ms
    }
}

/// All that there is.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) jobs: Vec<Known>,
    pub(super) purged: BTreeSet<JobId>,
    last_seq: i64,
    /// The ready jobs by lane and class, and whose turn it is.
    pub(super) turns: BTreeMap<(String, Class), Turns<String>>,
    /// Which jobs are among them, and where.
    pub(super) entered: BTreeMap<i64, (String, Class)>,
    /// What a subscriber sees.
    pub(super) live: Vec<(JobId, Option<State>, State)>,
}

impl Model {
    pub(super) fn find(&mut self, id: JobId) -> Option<&mut Known> {
        self.jobs.iter_mut().find(|job| job.new.id == id)
    }

    pub(super) fn waiting(&self) -> u64 {
        u64::try_from(self.jobs.iter().filter(|job| job.state == State::Queued).count()).unwrap()
    }

    fn enter(&mut self, index: usize, to: State, now_ms: i64) {
        let job = &mut self.jobs[index];
        job.log.push((Some(job.state), to, job.epoch));
        self.live.push((job.new.id, Some(job.state), to));
        job.state = to;
        if to.is_final() {
            job.is_cancelling = false;
            job.ended_at_ms = now_ms;
            job.has_request = match to {
                State::Failed => true,
                State::Cancelled => job.is_async,
                _ => false,
            };
        }
    }

    /// A job that is there already and will do.
    fn find_same(&mut self, new: &NewJob) -> Option<Admission> {
        let extras = &new.extras;
        if let Some(given) = &extras.idempotency {
            let has_key =
                |known: &&Idempotency| (&known.scope, &known.key) == (&given.scope, &given.key);
            let found = self
                .jobs
                .iter()
                .find_map(|job| Some((job, job.new.extras.idempotency.as_ref().filter(has_key)?)));
            if let Some((job, known)) = found {
                let id = job.new.id;
                return Some(match known.fingerprint == given.fingerprint {
                    true => Admission::Found { id, by: FoundBy::Key },
                    false => Admission::KeyTaken { id },
                });
            }
        }
        let lost = self.jobs.iter_mut().find(|job| {
            extras.attach_key.is_some()
                && job.new.extras.attach_key == extras.attach_key
                && job.is_lost
                && !job.is_cancelling
                && !matches!(job.state, State::Failed | State::Cancelled)
        });
        if let Some(job) = lost {
            job.is_lost = false;
            if job.state != State::Done {
                job.class = new.class;
            }
            return Some(Admission::Found { id: job.new.id, by: FoundBy::Return });
        }
        if let Some(likeness) = extras.likeness {
            let like = self.jobs.iter().rev().find(|job| {
                let does = match job.state {
                    State::Queued | State::Loading | State::Working => {
                        job.is_async == extras.is_async
                    }
                    State::Done => likeness.takes_done,
                    State::Failed | State::Cancelled => false,
                };
                job.new.extras.likeness.is_some_and(|known| known.hash == likeness.hash)
                    && !job.is_cancelling
                    && does
            });
            if let Some(job) = like {
                let by =
                    if job.state == State::Done { FoundBy::Completed } else { FoundBy::Inflight };
                return Some(Admission::Found { id: job.new.id, by });
            }
        }
        None
    }

    pub(super) fn admit(&mut self, new: &NewJob, limits: QueueLimits, now_ms: i64) -> Admission {
        if let Some(found) = self.find_same(new) {
            return found;
        }
        let extras = &new.extras;
        if self.waiting() >= limits.jobs_max {
            return Admission::Full { jobs: self.waiting(), limit: QueueLimit::Jobs };
        }
        self.last_seq += 1;
        let run_at_ms = if extras.run_at_ms > now_ms { extras.run_at_ms } else { 0 };
        self.live.push((new.id, None, State::Queued));
        self.jobs.push(Known {
            seq: self.last_seq,
            new: new.clone(),
            state: State::Queued,
            class: new.class,
            is_async: extras.is_async,
            is_lost: false,
            is_cancelling: false,
            not_before_ms: run_at_ms,
            run_at_ms,
            created_at_ms: now_ms,
            ready_at_ms: now_ms.max(run_at_ms),
            deadline_ms: extras.deadline_ms,
            counters: [0; 3],
            epoch: 0,
            has_request: true,
            ended_at_ms: 0,
            log: vec![(None, State::Queued, 0)],
            delivered: 0,
        });
        Admission::Admitted { seq: self.last_seq }
    }

    pub(super) fn end_delays(&mut self, now_ms: i64) {
        for job in self.jobs.iter_mut().filter(|job| job.state == State::Queued) {
            let is_strange = !job.is_scheduled() && job.not_before_ms > now_ms + DELAY_MS_MAX;
            if job.not_before_ms != 0 && (job.not_before_ms <= now_ms || is_strange) {
                job.not_before_ms = 0;
                job.ready_at_ms = job.ready_at_ms.min(now_ms);
            }
        }
        self.settle();
    }

    /// The job of a lane and class that has been ready longest.
    pub(super) fn head(&self, lane: &str, class: Class) -> Option<&Known> {
        let ready = self
            .jobs
            .iter()
            .filter(|job| job.is_ready() && (job.new.lane.as_str(), job.class) == (lane, class));
        ready.min_by_key(|job| (job.ready_at_ms, job.seq))
    }

    pub(super) fn claim(
        &mut self,
        lane: &str,
        class: Class,
        event: Event,
        now_ms: i64,
    ) -> Option<(i64, i64)> {
        self.end_delays(now_ms);
        let seq = self.turns.get_mut(&(lane.to_owned(), class))?.take()?;
        self.entered.remove(&seq);
        let index = self.jobs.iter().position(|job| job.seq == seq)?;
        let job = &mut self.jobs[index];
        job.epoch += 1;
        job.counters[0] += 1;
        let epoch = job.epoch;
        self.enter(index, State::Queued.after(event)?, now_ms);
        Some((seq, epoch))
    }

    /// A job in flight under this lease.
    fn leased(&self, seq: i64, epoch: i64) -> Option<usize> {
        self.jobs.iter().position(|job| (job.seq, job.epoch) == (seq, epoch) && job.is_in_flight())
    }

    pub(super) fn loaded(&mut self, seq: i64, epoch: i64, now_ms: i64) -> bool {
        let index =
            self.leased(seq, epoch).filter(|index| self.jobs[*index].state == State::Loading);
        index.map(|index| self.enter(index, State::Working, now_ms)).is_some()
    }

    pub(super) fn give_back(&mut self, seq: i64, epoch: i64, back: &GiveBack) -> GaveBack {
        let Some(index) = self.leased(seq, epoch) else { return GaveBack::LeaseLost };
        let job = &mut self.jobs[index];
        if job.is_cancelling {
            self.enter(index, State::Cancelled, back.at_ms);
            return GaveBack::Cancelled;
        }
        match back.charge {
            Charge::Attempt => (),
            Charge::Interruption => {
                (job.counters[0], job.counters[1]) = (job.counters[0] - 1, job.counters[1] + 1)
            }
            Charge::Deferral => {
                (job.counters[0], job.counters[2]) = (job.counters[0] - 1, job.counters[2] + 1)
            }
            Charge::Nothing => job.counters[0] -= 1,
        }
        job.not_before_ms = if back.not_before_ms > back.at_ms { back.not_before_ms } else { 0 };
        job.ready_at_ms = job.created_at_ms.max(back.not_before_ms);
        self.enter(index, State::Queued, back.at_ms);
        GaveBack::Queued
    }

    pub(super) fn finish(&mut self, seq: i64, epoch: i64, event: Event, now_ms: i64) -> bool {
        let Some(index) = self.leased(seq, epoch) else { return false };
        let to = self.jobs[index].state.after(event);
        to.map(|to| self.enter(index, to, now_ms)).is_some()
    }

    pub(super) fn cancel(&mut self, id: JobId, is_by_hand: bool, now_ms: i64) -> Cancellation {
        let Some(index) = self.jobs.iter().position(|job| job.new.id == id) else {
            return Cancellation::Unknown;
        };
        match self.jobs[index].state {
            State::Queued => {
                self.enter(index, State::Cancelled, now_ms);
                Cancellation::Cancelled
            }
            State::Loading | State::Working => {
                self.jobs[index].is_cancelling |= is_by_hand;
                Cancellation::Cancelling
            }
            ended => Cancellation::Ended(ended),
        }
    }

    pub(super) fn reopen(&mut self, id: JobId, limits: QueueLimits, now_ms: i64) -> Reopening {
        let waiting = self.waiting();
        let Some(index) = self.jobs.iter().position(|job| job.new.id == id) else {
            return Reopening::Unknown;
        };
        let job = &mut self.jobs[index];
        if job.state.after(Event::Reopen).is_none() {
            return Reopening::WrongState(job.state);
        }
        if !job.has_request {
            return Reopening::NoRequest;
        }
        if waiting >= limits.jobs_max {
            return Reopening::Full(waiting);
        }
        (job.is_async, job.is_lost, job.counters) = (true, false, [0; 3]);
        (job.not_before_ms, job.run_at_ms, job.ready_at_ms) = (0, 0, now_ms);
        job.deadline_ms = job.deadline_ms.filter(|deadline_ms| *deadline_ms > now_ms);
        self.enter(index, State::Queued, now_ms);
        Reopening::Reopened(None)
    }

    pub(super) fn drop_job(&mut self, id: JobId) -> Dropping {
        let Some(job) = self.find(id) else { return Dropping::Unknown };
        if !job.state.is_final() {
            return Dropping::WrongState(job.state);
        }
        self.drop_where(|job| job.new.id == id);
        Dropping::Dropped(None)
    }

    /// Drops these; how many.
    fn drop_where(&mut self, goes: impl Fn(&Known) -> bool) -> usize {
        let (gone, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.jobs).into_iter().partition(goes);
        self.jobs = left;
        let count = gone.len();
        self.purged.extend(gone.into_iter().map(|job| job.new.id));
        count
    }

    pub(super) fn sweep(&mut self, before: EndedBefore) -> usize {
        self.drop_where(|job| {
            let bound_ms =
                if job.state == State::Failed { before.failed_ms } else { before.over_ms };
            job.state.is_final() && job.ended_at_ms < bound_ms && job.owes() == 0
        })
    }

    pub(super) fn expire(&mut self, now_ms: i64) -> BTreeSet<JobId> {
        let is_over = |job: &Known| {
            job.state == State::Queued
                && job.deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms)
        };
        let mut over: Vec<usize> =
            (0..self.jobs.len()).filter(|index| is_over(&self.jobs[*index])).collect();
        over.sort_by_key(|index| (self.jobs[*index].deadline_ms, self.jobs[*index].seq));
        for index in &over {
            self.enter(*index, State::Failed, now_ms);
        }
        over.iter().map(|index| self.jobs[*index].new.id).collect()
    }

    /// What an opening does. Nobody listens yet.
    pub(super) fn recover(&mut self, now_ms: i64) -> Recovered {
        let mut recovered = Recovered { waiting: self.waiting(), ..Recovered::default() };
        for index in 0..self.jobs.len() {
            let job = &mut self.jobs[index];
            if job.is_ready() {
                job.ready_at_ms = job.ready_at_ms.min(now_ms);
            }
            if job.state == State::Queued && !job.is_async && !job.is_lost {
                (job.class, job.is_lost) = (Class::Batch, true);
            } else if job.is_in_flight() && job.is_cancelling {
                self.enter(index, State::Cancelled, now_ms);
                recovered.cancelled += 1;
            } else if job.is_in_flight() {
                job.counters[1] += 1;
                if job.counters[1] >= INTERRUPTIONS_MAX {
                    self.enter(index, State::Failed, now_ms);
                    recovered.given_up += 1;
                    continue;
                }
                job.counters[0] -= 1;
                (job.not_before_ms, job.ready_at_ms) = (0, job.ready_at_ms.min(now_ms));
                if !job.is_async {
                    (job.class, job.is_lost) = (Class::Batch, true);
                }
                self.enter(index, State::Queued, now_ms);
                recovered.requeued += 1;
            }
        }
        self.live.clear();
        recovered
    }
}
