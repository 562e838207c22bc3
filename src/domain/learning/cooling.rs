//! Keys that may not be loaded for a while: their load failed, or somebody beside foreman keeps pushing them out.

use std::collections::BTreeMap;

use crate::domain::schedule::RESIDENCE_LOADS;

/// The pause after a first failed load; it doubles with each further one.
const COOL_DOWN_FIRST_MS: i64 = 5_000;

/// The longest pause: memory may come back at any time, and one attempt delays the others by its own time only.
const COOL_DOWN_MAX_MS: i64 = 300_000;

/// A key that went missing waits for this many of its load times: somebody else's load, which may be under way, may take
/// longer than its own.
const MISSING_LOADS: i64 = 2;

/// Keys remembered; beyond it the first by name goes. A box has tens.
const KEYS_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy, Default)]
struct Cooling {
    failures: u32,
    until_ms: i64,
}

/// Pauses by key text.
#[derive(Debug, Clone, Default)]
pub struct Coolings(BTreeMap<String, Cooling>);

impl Coolings {
    /// A load failed with an error of the upstream's. Answers how long the key cools down, in milliseconds.
    pub fn failed(&mut self, key: &str, now_ms: i64) -> i64 {
        let cooling = self.of(key);
        let doublings = cooling.failures.min(16);
        let pause_ms = (COOL_DOWN_FIRST_MS << doublings).min(COOL_DOWN_MAX_MS);
        cooling.failures += 1;
        cooling.until_ms = now_ms.saturating_add(pause_ms);
        pause_ms
    }

    /// A load succeeded: the next failure is a first one again.
    pub fn loaded(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// Somebody else pushed the key out, which foreman had loaded at `since_ms` in `load_ms`. It is not loaded again before its
    /// residence has passed: foreman never fights faster.
    pub fn pushed_out(&mut self, key: &str, since_ms: i64, load_ms: i64) {
        self.bar(key, stays_until_ms(since_ms, load_ms));
    }

    /// A key that foreman had loaded at `since_ms` in `load_ms` is gone, and nothing is there in its place. Somebody else's
    /// load may be under way, which no list shows before it has ended, so the key waits for that a while; not longer than
    /// its residence, and so not at all if that has passed.
    pub fn went_missing(&mut self, key: &str, since_ms: i64, load_ms: i64, now_ms: i64) {
        let seen_by_ms = now_ms.saturating_add(load_ms.saturating_mul(MISSING_LOADS));
        self.bar(key, stays_until_ms(since_ms, load_ms).min(seen_by_ms));
    }

    /// Until when the key may not be loaded; in the past if it may.
    pub fn until_ms(&self, key: &str) -> i64 {
        self.0.get(key).map_or(0, |cooling| cooling.until_ms)
    }

    /// The keys that may not be loaded now.
    pub fn barred(&self, now_ms: i64) -> impl Iterator<Item = &str> {
        let barred = self.0.iter().filter(move |(_, cooling)| cooling.until_ms > now_ms);
        barred.map(|(key, _)| key.as_str())
    }

    /// No pause ends later than the longest one from now.
    pub fn clock_set_back(&mut self, now_ms: i64) {
        for cooling in self.0.values_mut() {
            cooling.until_ms = cooling.until_ms.min(now_ms.saturating_add(COOL_DOWN_MAX_MS));
        }
    }

    /// Lets every key be loaded again: the upstream was started anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    fn bar(&mut self, key: &str, until_ms: i64) {
        let cooling = self.of(key);
        cooling.until_ms = cooling.until_ms.max(until_ms);
    }

    fn of(&mut self, key: &str) -> &mut Cooling {
        if !self.0.contains_key(key) && self.0.len() >= KEYS_MAX {
            self.0.pop_first();
        }
        self.0.entry(key.to_owned()).or_default()
    }
}

/// The end of the residence of what was loaded at `since_ms` in `load_ms`.
pub(super) fn stays_until_ms(since_ms: i64, load_ms: i64) -> i64 {
    since_ms.saturating_add(load_ms.saturating_mul(RESIDENCE_LOADS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_a_load_that_succeeds_resets_them() {
        let mut coolings = Coolings::default();
        let pauses: Vec<i64> = (0..9).map(|_| coolings.failed("a", 1_000)).collect();
        assert_eq!(pauses[..3], [5_000, 10_000, 20_000]);
        assert_eq!(pauses[8], COOL_DOWN_MAX_MS);
        assert_eq!(coolings.until_ms("a"), 1_000 + COOL_DOWN_MAX_MS);
        coolings.loaded("a");
        assert_eq!(coolings.until_ms("a"), 0);
        assert_eq!(coolings.failed("a", 0), 5_000);
    }

    #[test]
    fn a_key_pushed_out_stays_away_for_its_residence() {
        let mut coolings = Coolings::default();
        coolings.pushed_out("a", 10_000, 2_000);
        assert_eq!(coolings.until_ms("a"), 26_000);
    }

    #[test]
    fn a_key_gone_without_a_successor_waits_a_while_within_its_residence() {
        let mut coolings = Coolings::default();
        coolings.went_missing("a", 10_000, 2_000, 11_000);
        assert_eq!(coolings.until_ms("a"), 15_000);
        coolings.pushed_out("a", 10_000, 2_000);
        assert_eq!(coolings.until_ms("a"), 26_000);
        coolings.went_missing("a", 10_000, 2_000, 12_000);
        assert_eq!(coolings.until_ms("a"), 26_000, "it is never shortened");
        coolings.went_missing("b", 10_000, 2_000, 90_000);
        assert!(coolings.until_ms("b") < 90_000, "its residence has passed");
    }
}
