//! When a key is likely to be wanted again: the gaps from the end of its last answer to its next request, by who asks.
//!
//! What asks for a key is a [`Source`]: all requests of one client identity for that key, be it one program or several that
//! look alike. A gap of a source runs from the moment when its last open job was answered to its next request. It needs no
//! sign of which request follows on which answer: closed loops on one key have the shortest of their think times, and
//! arrivals without a memory have exponential gaps, so both are judged by what they are. A client thinks as long whether or
//! not its key stays resident, so a gap is known whole, however late the request comes; a source that is still idle counts by
//! how long it has been idle.
//!
//! A client's first request for a key is one of the *newcomers*, a source of its own: programs whose identity changes with
//! each request are told by it.
//!
//! Pure, and used by `domain::learning` only, for `worker` and `replay`.

mod source;
mod survival;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::domain::schedule::Absence;

use source::{Activity, Beside, Source, keep_gap};
use survival::{Expected, are_longer, real};

/// Sources remembered; beyond it the one used longest ago goes. Some hundred clients with some tens of keys.
const SOURCES_MAX: usize = 10_000;

/// Sources that are expected; beyond it the one answered longest ago is given up.
const EXPECTED_MAX: usize = 1_024;

/// A source that is idle for longer does not come back as far as holding is concerned, which is a matter of seconds.
const GONE_AFTER_MS: i64 = 300_000;

/// Sources of one key that are judged, those answered last: so many make a return certain anyway.
const JUDGED_MAX: usize = 64;

/// A client with fewer gaps borrows from those it had while busy, then from the other clients of its key, else from those of
/// all keys.
const OWN_MIN: usize = 2;

/// How many gaps are borrowed.
const BORROWED_FROM_KEY: usize = 4;
const BORROWED_FROM_ALL: usize = 6;

/// A source is taken for several closed loops if its answers are followed on more often than not.
const FOLLOWED_SHARE_MIN: f64 = 0.5;

/// Points of a curve beside its beginning.
const CURVE_STEPS: i64 = 20;

/// Added to each point so that a gap that ends exactly there has ended.
const AFTER_MS: i64 = 10;

/// A gap worth keeping over a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearnedGap {
    /// The text of the source, for [`Returns::learn`].
    pub source: String,
    /// The gap in milliseconds.
    pub gap_ms: i64,
}

/// A job that has not ended.
#[derive(Debug, Clone)]
struct OpenJob {
    key: String,
    client: Option<String>,
    /// Whether it counts among the newcomers of its key.
    is_first: bool,
}

impl OpenJob {
    /// The sources it belongs to.
    fn sources(&self) -> impl Iterator<Item = Source> {
        let own = self.client.as_ref().map(|client| Source::client(&self.key, client));
        let newcomers = self.is_first.then(|| Source::newcomers(&self.key));
        own.into_iter().chain(newcomers)
    }
}

/// Which keys will be wanted again, and when.
#[derive(Debug, Clone, Default)]
pub struct Returns {
    sources: BTreeMap<Source, Activity>,
    /// The last gaps of a key, of whichever clients.
    by_key: BTreeMap<String, VecDeque<Option<i64>>>,
    /// By the number of the job. Bounded by the queue.
    open: BTreeMap<u128, OpenJob>,
    /// How many of them each client has.
    open_by_client: BTreeMap<String, usize>,
    /// Sources of which a request is expected, by the end of their last answer.
    answered: BTreeSet<(i64, Source)>,
    /// Sources with an open job.
    busy: BTreeSet<Source>,
    uses: BTreeSet<(u64, Source)>,
    uses_counted: u64,
}

impl Returns {
    /// Takes in a request for `key`; `client` is who asks, where that is known. Answers what was learned from it.
    pub fn arrived(
        &mut self,
        job: u128,
        client: Option<&str>,
        key: &str,
        now_ms: i64,
    ) -> Option<LearnedGap> {
        self.give_up(now_ms);
        let own = client.map(|client| Source::client(key, client));
        let known = own.filter(|own| self.sources.contains_key(own));
        let open = OpenJob {
            key: key.to_owned(),
            client: client.map(str::to_owned),
            is_first: known.is_none(),
        };
        if known.is_some() {
            self.forget_as_newcomer(key, client);
        }
        let asking = known.unwrap_or_else(|| Source::newcomers(key));
        let learned = self.sources.get(&asking).and_then(|asking| asking.quiet_gap_ms(now_ms));
        if let Some(gap_ms) = learned {
            self.learn_of(&asking, Some(gap_ms));
        }
        let beside = self.beside(&open);
        open.sources().for_each(|source| self.request(source, now_ms, beside));
        if let Some(client) = &open.client {
            *self.open_by_client.entry(client.clone()).or_default() += 1;
        }
        self.open.insert(job, open);
        learned.map(|gap_ms| LearnedGap { source: asking.text(), gap_ms })
    }

    /// Whether the client of a new job waits for an answer on another key.
    fn beside(&self, job: &OpenJob) -> Beside {
        let Some(client) = &job.client else { return Beside::Nothing };
        let open = self.open_by_client.get(client).copied().unwrap_or(0);
        let here = self.sources.get(&Source::client(&job.key, client));
        match open > here.map_or(0, |activity| activity.open) {
            true => Beside::Waiting,
            false => Beside::Nothing,
        }
    }

    /// A client that came back by itself is no longer expected among the newcomers.
    fn forget_as_newcomer(&mut self, key: &str, client: Option<&str>) {
        let newcomers = Source::newcomers(key);
        let Some(activity) = self.sources.get_mut(&newcomers) else { return };
        if activity.answered.as_deref() == client
            && let Some(answered_at_ms) = activity.answered_at_ms.take()
        {
            self.answered.remove(&(answered_at_ms, newcomers));
        }
    }

    fn request(&mut self, source: Source, now_ms: i64, beside: Beside) {
        self.touch(&source);
        let Some(activity) = self.sources.get_mut(&source) else { return };
        if let Some(answered_at_ms) = activity.answered_at_ms {
            self.answered.remove(&(answered_at_ms, source.clone()));
        }
        activity.request(now_ms, beside);
        self.busy.insert(source);
    }

    /// Makes a source the last used, and forgets the one used longest ago, if there are too many.
    fn touch(&mut self, source: &Source) {
        self.uses_counted += 1;
        let activity = self.sources.entry(source.clone()).or_default();
        self.uses.remove(&(activity.used, source.clone()));
        activity.used = self.uses_counted;
        self.uses.insert((activity.used, source.clone()));
        if self.sources.len() > SOURCES_MAX
            && let Some((_, oldest)) = self.uses.pop_first()
        {
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, source: &Source) {
        self.busy.remove(source);
        let answered_at_ms =
            self.sources.remove(source).and_then(|activity| activity.answered_at_ms);
        if let Some(answered_at_ms) = answered_at_ms {
            self.answered.remove(&(answered_at_ms, source.clone()));
        }
    }

    /// A job was answered, well or badly. Unknown jobs, such as those from before a restart, are passed over.
    ///
    /// To be called as soon as the answer is whole, before it is committed: who reads a stream may be back before that.
    pub fn ended(&mut self, job: u128, now_ms: i64) {
        let Some(open) = self.close(job) else { return };
        for source in open.sources() {
            let Some(activity) = self.sources.get_mut(&source) else { continue };
            if let Some(answered_at_ms) = activity.answered_at_ms {
                self.answered.remove(&(answered_at_ms, source.clone()));
            }
            activity.answer(now_ms, open.client.as_ref());
            self.answered.insert((now_ms, source.clone()));
            self.rest(&source);
        }
        self.give_up(now_ms);
    }

    /// A job ended without an answer: no request follows on it.
    pub fn cancelled(&mut self, job: u128) {
        let Some(open) = self.close(job) else { return };
        for source in open.sources() {
            if let Some(activity) = self.sources.get_mut(&source) {
                activity.open = activity.open.saturating_sub(1);
            }
            self.rest(&source);
        }
    }

    fn close(&mut self, job: u128) -> Option<OpenJob> {
        let open = self.open.remove(&job)?;
        if let Some(client) = &open.client
            && let Some(count) = self.open_by_client.get_mut(client)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.open_by_client.remove(client);
            }
        }
        Some(open)
    }

    /// A source without an open job is busy no more.
    fn rest(&mut self, source: &Source) {
        if self.sources.get(source).is_none_or(|activity| activity.open == 0) {
            self.busy.remove(source);
        }
    }

    /// A source that is idle for too long has gone for good: a gap without an end. The same for the one that was answered
    /// longest ago, if there are too many.
    fn give_up(&mut self, now_ms: i64) {
        while let Some((answered_at_ms, source)) = self.answered.first().cloned() {
            if self.answered.len() <= EXPECTED_MAX && now_ms - answered_at_ms <= GONE_AFTER_MS {
                return;
            }
            self.answered.pop_first();
            let Some(activity) = self.sources.get_mut(&source) else { continue };
            activity.answered_at_ms = None;
            if activity.open == 0 {
                self.learn_of(&source, None);
            }
        }
    }

    /// Nobody is away by another clock.
    pub fn clock_set_back(&mut self) {
        self.answered.clear();
        for activity in self.sources.values_mut() {
            activity.answered_at_ms = None;
        }
    }

    /// Takes in a gap that is remembered from an earlier run, by the text of its source. Any other text is passed over.
    pub fn learn(&mut self, source: &str, gap_ms: Option<i64>) {
        let Some(source) = Source::from_text(source) else { return };
        self.touch(&source);
        self.learn_of(&source, gap_ms);
    }

    fn learn_of(&mut self, source: &Source, gap_ms: Option<i64>) {
        if let Some(activity) = self.sources.get_mut(source) {
            activity.learn(gap_ms);
        }
        if source.client.is_some() {
            keep_gap(self.by_key.entry(source.key.clone()).or_default(), gap_ms);
            if self.by_key.len() > SOURCES_MAX {
                self.by_key.pop_first();
            }
        }
    }

    /// How likely it is that nobody has asked for the key, at steps up to `longest_ms` from now. `arrivals_per_ms` is how
    /// often somebody did lately.
    ///
    /// Sources whose gaps are mostly longer than `longest_ms` are judged together, by that rate: the shape of a few long gaps
    /// is chance. So are the newcomers while their gaps are few.
    pub fn absence(
        &self,
        key: &str,
        now_ms: i64,
        longest_ms: i64,
        arrivals_per_ms: f64,
    ) -> Vec<Absence> {
        let mut expected = Vec::new();
        let mut rate = 0.0;
        for (since_ms, source) in self.idle(key) {
            let gaps_ms = self.gaps_ms(source);
            let is_rare = are_longer(&gaps_ms, longest_ms);
            if is_rare.unwrap_or(source.client.is_none()) {
                rate = arrivals_per_ms;
            } else {
                expected.extend(Expected::new(gaps_ms, now_ms - since_ms));
            }
        }
        let busy = self.followed_by_nobody(key);
        let point = |step: i64| {
            let wait_ms = longest_ms.saturating_mul(step) / CURVE_STEPS;
            let idle: f64 = expected.iter().map(|one| one.is_idle_still(wait_ms)).product();
            let probability = idle * busy * (-rate * real(wait_ms)).exp();
            Absence { wait_ms: wait_ms + AFTER_MS, probability }
        };
        (0..=CURVE_STEPS).map(point).collect()
    }

    /// The idle sources of a key whose request is expected, with the ends of their last answers, the latest first. A client
    /// that waits for an answer on another key is not expected, unless it was seen to ask for this one meanwhile.
    fn idle(&self, key: &str) -> impl Iterator<Item = (i64, &Source)> {
        let of_key = self.answered.iter().rev().filter(move |(_, source)| source.key == key);
        let idle = of_key.filter(|(_, source)| {
            let Some(activity) = self.sources.get(source) else { return false };
            let is_waiting = source
                .client
                .as_ref()
                .is_some_and(|client| self.open_by_client.contains_key(client));
            activity.open == 0 && (activity.asks_beside() || !is_waiting)
        });
        idle.map(|(since_ms, source)| (*since_ms, source)).take(JUDGED_MAX)
    }

    /// How likely it is that no request follows on the last answers to the busy sources of a key before the next answer.
    fn followed_by_nobody(&self, key: &str) -> f64 {
        let busy = self.busy.range(Source::newcomers(key)..).take_while(|busy| busy.key == key);
        let shares = busy.take(JUDGED_MAX).filter_map(|busy| self.sources.get(busy));
        shares.map(|activity| 1.0 - activity.followed_share).product()
    }

    /// The gaps a source is judged by: its own, and while those of a client are few, borrowed ones.
    fn gaps_ms(&self, source: &Source) -> Vec<Option<i64>> {
        let Some(activity) = self.sources.get(source) else { return Vec::new() };
        let mut gaps_ms: Vec<Option<i64>> = activity.gaps_ms.iter().copied().collect();
        if source.client.is_none() {
            return gaps_ms;
        }
        if gaps_ms.len() < OWN_MIN && activity.followed_share > FOLLOWED_SHARE_MIN {
            gaps_ms.extend(activity.busy_gaps_ms.iter().copied().map(Some));
        }
        if gaps_ms.len() < OWN_MIN {
            let of_key = self.by_key.get(&source.key).into_iter().flatten();
            gaps_ms.extend(of_key.rev().take(BORROWED_FROM_KEY));
        }
        if gaps_ms.is_empty() {
            let latest = self.by_key.values().flat_map(|gaps_ms| gaps_ms.iter().rev().take(2));
            gaps_ms.extend(latest.take(BORROWED_FROM_ALL));
        }
        gaps_ms
    }
}
