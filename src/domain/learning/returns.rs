//! Which clients come back to a key, and how soon: the gaps between the end of a job and the request that follows on it.
//!
//! Which request follows on which job is told from outside (`domain::threads`). Gaps are kept by *group* (who asks, and which key was used), since what one client
//! runs behaves alike. A client thinks as long whether or not its key stays resident, so a gap is known whole when it comes
//! back, however late; who has not come back yet counts by how long he is away.

use std::collections::BTreeMap;

use crate::domain::schedule::Absence;

/// Gaps remembered per group.
const GAPS_MAX: usize = 32;

/// Groups remembered; beyond it the one used longest ago goes. Some hundred clients with some tens of keys.
const GROUPS_MAX: usize = 10_000;

/// Ended jobs watched that nothing followed on yet; beyond it the one that ended longest ago goes.
const AWAY_MAX: usize = 1_024;

/// Whoever is away longer does not come back as far as holding is concerned, which is a matter of seconds.
const GONE_AFTER_MS: i64 = 300_000;

/// Clients of one key that are expected, the last to go: so many make a return certain anyway.
const EXPECTED_MAX: usize = 64;

/// A group with fewer gaps borrows from the other clients of its key, else from all.
const OWN_MIN: usize = 2;

/// How many gaps are borrowed.
const BORROWED_FROM_KEY: usize = 4;
const BORROWED_FROM_ALL: usize = 6;

/// How many made-up gaps, exponential with the mean of the real ones, smooth a handful of real ones.
const PRIOR_GAPS: f64 = 3.0;

/// Points of a curve beside its beginning.
const CURVE_STEPS: i64 = 20;

/// Added to each point so that a gap that ends exactly there has ended.
const AFTER_MS: i64 = 10;

/// Who asked for a job that has ended.
#[derive(Debug, Clone)]
struct Away {
    group: String,
    key: String,
    since_ms: i64,
}

/// Gaps of one group, oldest first; `None` is a client that went on with another key.
#[derive(Debug, Clone, Default)]
struct Gaps {
    gaps_ms: Vec<Option<i64>>,
    used: u64,
}

/// Who comes back, and when.
#[derive(Debug, Clone, Default)]
pub struct Returns {
    groups: BTreeMap<String, Gaps>,
    by_key: BTreeMap<String, Vec<Option<i64>>>,
    /// By the number of the job that ended.
    away: BTreeMap<u128, Away>,
    clock: u64,
}

impl Returns {
    /// A job has ended; its client may be back for `key`.
    pub fn went_away(&mut self, job: u128, group: &str, key: &str, now_ms: i64) {
        self.give_up(now_ms);
        let away = Away { group: group.to_owned(), key: key.to_owned(), since_ms: now_ms };
        self.away.insert(job, away);
    }

    /// Who is away too long has gone for good: a gap without an end. The same for whoever is away longest, if there are too
    /// many.
    fn give_up(&mut self, now_ms: i64) {
        let mut gone: Vec<(i64, u128)> =
            self.away.iter().map(|(job, away)| (away.since_ms, *job)).collect();
        gone.sort_unstable();
        let surplus = gone.len().saturating_sub(AWAY_MAX - 1);
        for (index, (since_ms, job)) in gone.into_iter().enumerate() {
            if index >= surplus && now_ms - since_ms <= GONE_AFTER_MS {
                break;
            }
            if let Some(away) = self.away.remove(&job) {
                self.learn(&away.group, &away.key, None);
            }
        }
    }

    /// A request for `key` follows on a job that has ended. Answers what was learned: the group, and the gap, or `None` in
    /// its place if the client went on with another key.
    pub fn came_back(
        &mut self,
        job: u128,
        key: &str,
        now_ms: i64,
    ) -> Option<(String, Option<i64>)> {
        let away = self.away.remove(&job)?;
        let gap_ms = (away.key == key).then(|| (now_ms - away.since_ms).max(0));
        self.learn(&away.group, &away.key, gap_ms);
        Some((away.group, gap_ms))
    }

    /// Nobody is away by another clock.
    pub fn clock_set_back(&mut self) {
        self.away.clear();
    }

    /// Takes a gap in, seen now or remembered from an earlier run.
    pub fn learn(&mut self, group: &str, key: &str, gap_ms: Option<i64>) {
        self.clock += 1;
        let used = self.clock;
        let gaps = self.groups.entry(group.to_owned()).or_default();
        gaps.used = used;
        keep(&mut gaps.gaps_ms, gap_ms);
        keep(self.by_key.entry(key.to_owned()).or_default(), gap_ms);
        if self.groups.len() > GROUPS_MAX {
            let oldest = self.groups.iter().min_by_key(|(_, gaps)| gaps.used);
            if let Some(group) = oldest.map(|(group, _)| group.clone()) {
                self.groups.remove(&group);
            }
        }
        if self.by_key.len() > GROUPS_MAX {
            self.by_key.pop_first();
        }
    }

    /// How likely it is that none of the key's clients has come back, at steps up to `longest_ms` from now.
    pub fn absence(&self, key: &str, now_ms: i64, longest_ms: i64) -> Vec<Absence> {
        let mut away: Vec<&Away> = self.away.values().filter(|away| away.key == key).collect();
        away.sort_by_key(|away| std::cmp::Reverse(away.since_ms));
        let expected: Vec<Expected> = away
            .into_iter()
            .take(EXPECTED_MAX)
            .filter_map(|away| Expected::new(self.gaps(away), (now_ms - away.since_ms).max(0)))
            .collect();
        (0..=CURVE_STEPS)
            .map(|step| {
                let wait_ms = longest_ms.saturating_mul(step) / CURVE_STEPS;
                let product = expected.iter().map(|expected| expected.is_away_still(wait_ms));
                Absence { wait_ms: wait_ms + AFTER_MS, probability: product.product() }
            })
            .collect()
    }

    /// The gaps a client is judged by: its group's own, and while those are few, some of the other clients' of its key, else
    /// of anybody's.
    fn gaps(&self, away: &Away) -> Vec<Option<i64>> {
        let own = self.groups.get(&away.group).map_or(&[][..], |gaps| &gaps.gaps_ms);
        let mut gaps = own.to_vec();
        if gaps.len() < OWN_MIN {
            let of_key = self.by_key.get(&away.key).map_or(&[][..], Vec::as_slice);
            gaps.extend(of_key.iter().rev().take(BORROWED_FROM_KEY));
        }
        if gaps.is_empty() {
            let latest = self.by_key.values().flat_map(|gaps| gaps.iter().rev().take(2));
            gaps.extend(latest.take(BORROWED_FROM_ALL));
        }
        gaps
    }
}

fn keep(gaps: &mut Vec<Option<i64>>, gap_ms: Option<i64>) {
    gaps.push(gap_ms);
    if gaps.len() > GAPS_MAX {
        gaps.remove(0);
    }
}

/// One client that may be back.
struct Expected {
    gaps: Vec<Option<i64>>,
    away_ms: i64,
    mean_ms: f64,
    returning: f64,
}

impl Expected {
    /// `None` where nobody of its kind ever came back.
    fn new(gaps: Vec<Option<i64>>, away_ms: i64) -> Option<Expected> {
        let count = gaps.iter().flatten().count();
        let known = f64::from(u16::try_from(count).unwrap_or(u16::MAX));
        if count == 0 {
            return None;
        }
        let sum: i64 = gaps.iter().flatten().sum();
        let mean_ms = (real(sum) / known).max(MEAN_MS_MIN);
        let all = f64::from(u16::try_from(gaps.len()).unwrap_or(u16::MAX));
        Some(Expected { gaps, away_ms, mean_ms, returning: known / (all + 0.5) })
    }

    /// How likely it is that it is still away after another `wait_ms`, given that it is away now.
    fn is_away_still(&self, wait_ms: i64) -> f64 {
        (self.survival(self.away_ms + wait_ms) / self.survival(self.away_ms)).min(1.0)
    }

    fn survival(&self, away_ms: i64) -> f64 {
        let longer =
            self.gaps.iter().filter(|gap| gap.is_none_or(|gap_ms| gap_ms > away_ms)).count();
        let longer = f64::from(u16::try_from(longer).unwrap_or(u16::MAX));
        let all = f64::from(u16::try_from(self.gaps.len()).unwrap_or(u16::MAX));
        let tail = 1.0 - self.returning * (1.0 - (-real(away_ms) / self.mean_ms).exp());
        (longer + PRIOR_GAPS * tail) / (all + PRIOR_GAPS)
    }
}

/// A program that asks again at once still needs a moment.
const MEAN_MS_MIN: f64 = 50.0;

fn real(span_ms: i64) -> f64 {
    span_ms as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(curve: &[Absence], wait_ms: i64) -> f64 {
        curve.iter().take_while(|point| point.wait_ms <= wait_ms).last().unwrap().probability
    }

    #[test]
    fn a_client_seen_returning_is_expected_and_one_who_never_did_is_not() {
        let mut returns = Returns::default();
        returns.went_away(1, "ann a", "a", 0);
        assert!(at(&returns.absence("a", 0, 8_000), 8_010) > 0.99, "nobody is known yet");
        assert_eq!(returns.came_back(1, "a", 500), Some(("ann a".to_owned(), Some(500))));
        returns.went_away(1, "ann a", "a", 1_000);
        assert!(at(&returns.absence("a", 1_000, 8_000), 2_000) < 0.4);
        assert!(at(&returns.absence("b", 1_000, 8_000), 8_010) > 0.99, "another key");
    }

    #[test]
    fn a_client_that_goes_on_with_another_key_is_not_expected_back() {
        let mut returns = Returns::default();
        for _ in 0..5 {
            returns.went_away(1, "ann a", "a", 0);
            assert_eq!(returns.came_back(1, "b", 200), Some(("ann a".to_owned(), None)));
        }
        returns.went_away(1, "ann a", "a", 0);
        assert!(at(&returns.absence("a", 0, 8_000), 8_010) > 0.99);
    }

    #[test]
    fn who_is_away_longer_than_ever_before_is_expected_less() {
        let mut returns = Returns::default();
        for _ in 0..20 {
            returns.went_away(1, "ann a", "a", 0);
            returns.came_back(1, "a", 500);
        }
        returns.went_away(1, "ann a", "a", 0);
        let fresh = at(&returns.absence("a", 0, 1_000), 1_010);
        let late = at(&returns.absence("a", 30_000, 1_000), 1_010);
        assert!(fresh < 0.1 && late > 0.9, "{fresh} {late}");
    }

    #[test]
    fn curves_fall_and_stay_between_one_and_nothing() {
        let mut returns = Returns::default();
        for (job, gap_ms) in (0..40_u128).zip([100, 5_000, 900, 30_000].into_iter().cycle()) {
            returns.went_away(job, "ann a", "a", 0);
            returns.came_back(job, "a", gap_ms);
            returns.went_away(job, "ann a", "a", 40_000);
        }
        let curve = returns.absence("a", 41_000, 8_000);
        assert!(curve.windows(2).all(|pair| pair[0].probability >= pair[1].probability));
        assert!(curve.iter().all(|point| (0.0..=1.0).contains(&point.probability)));
    }
}
