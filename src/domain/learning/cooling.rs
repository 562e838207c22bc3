//! Keys that may not be loaded for a while because somebody beside foreman pushed them out. (A key whose load failed has a
//! [breaker](super::Breakers).)
//!
//! Foreman does not fight whoever uses the same Ollama, and does not wait for them where they are done: a ban ends when the
//! others are quiet.

use std::collections::BTreeMap;

use crate::domain::schedule::RESIDENCE_LOADS;

/// A key that went missing waits for this many of its load times: somebody else's load, which may be under way, may take
/// longer than its own.
const MISSING_LOADS: i64 = 2;

/// The longest of these waits: a load time that was never measured is a guess of ten seconds.
const MISSING_MS_MAX: i64 = 5_000;

/// The others are quiet when none of their models was used for as long as the key's load takes, but no longer than this: most
/// programs ask again within two seconds, or leave the GPU alone for much longer.
const QUIET_MS_MAX: i64 = 2_000;

/// The longest ban. Eight load times of the slowest models are longer, but a clock may be set, and no class should wait so long.
const BAN_MS_MAX: i64 = 300_000;

/// Keys remembered; beyond it the first by name goes. A box has tens.
const KEYS_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy)]
struct Ban {
    until_ms: i64,
    ends: Ends,
}

#[derive(Debug, Clone, Copy)]
enum Ends {
    /// Once the others are quiet for as long as a load of the key takes.
    OnceQuiet { load_ms: i64 },
    /// With its time: nobody knows who the others are.
    InTime,
}

/// Bans by key text.
#[derive(Debug, Clone, Default)]
pub struct Coolings(BTreeMap<String, Ban>);

impl Coolings {
    /// Somebody else pushed the key out, which foreman had loaded at `since_ms` in `load_ms`. It is not loaded again before its
    /// residence has passed, or the others are quiet: foreman never fights faster.
    pub fn pushed_out(&mut self, key: &str, since_ms: i64, load_ms: i64) {
        self.bar(key, stays_until_ms(since_ms, load_ms), Ends::OnceQuiet { load_ms });
    }

    /// A key that foreman had loaded at `since_ms` in `load_ms` is gone, and nothing is there in its place. Somebody else's
    /// load may be under way, which no list shows before it has ended, so the key waits for that a while; not longer than
    /// its residence, and so not at all if that has passed.
    pub fn went_missing(&mut self, key: &str, since_ms: i64, load_ms: i64, now_ms: i64) {
        let waits_ms = load_ms.saturating_mul(MISSING_LOADS).min(MISSING_MS_MAX);
        let seen_by_ms = now_ms.saturating_add(waits_ms);
        self.bar(key, stays_until_ms(since_ms, load_ms).min(seen_by_ms), Ends::InTime);
    }

    /// The models of others were last used, or seen for the first time, at `used_at_ms`, and nothing of foreman's runs: the bans
    /// of keys for which that is long enough ago end. Returns when the next one does, if they stay quiet.
    pub fn others_quiet(&mut self, used_at_ms: i64, now_ms: i64) -> Option<i64> {
        let end_ms = |ban: &Ban| match ban.ends {
            Ends::OnceQuiet { load_ms } => {
                let quiet_at_ms = used_at_ms.saturating_add(load_ms.clamp(0, QUIET_MS_MAX));
                quiet_at_ms.min(ban.until_ms)
            }
            Ends::InTime => ban.until_ms,
        };
        self.0.retain(|_, ban| end_ms(ban) > now_ms);
        self.0.values().map(end_ms).min()
    }

    /// Whether any key may not be loaded.
    pub fn is_empty(&self, now_ms: i64) -> bool {
        self.0.values().all(|ban| ban.until_ms <= now_ms)
    }

    /// Until when the key may not be loaded; in the past if it may.
    pub fn until_ms(&self, key: &str) -> i64 {
        self.0.get(key).map_or(0, |ban| ban.until_ms)
    }

    /// The keys that may not be loaded now.
    pub fn barred(&self, now_ms: i64) -> impl Iterator<Item = &str> {
        let barred = self.0.iter().filter(move |(_, ban)| ban.until_ms > now_ms);
        barred.map(|(key, _)| key.as_str())
    }

    /// No ban ends later than the longest one from now.
    pub fn clock_set_back(&mut self, now_ms: i64) {
        for ban in self.0.values_mut() {
            ban.until_ms = ban.until_ms.min(now_ms.saturating_add(BAN_MS_MAX));
        }
    }

    /// Lets a key be loaded again: it is resident.
    pub fn loaded(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// Lets every key be loaded again: the upstream was started anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    fn bar(&mut self, key: &str, until_ms: i64, ends: Ends) {
        if !self.0.contains_key(key) && self.0.len() >= KEYS_MAX {
            self.0.pop_first();
        }
        let banned_until_ms = self.until_ms(key);
        self.0.insert(key.to_owned(), Ban { until_ms: banned_until_ms.max(until_ms), ends });
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
        coolings.went_missing("c", 90_000, 10_000, 90_000);
        assert_eq!(coolings.until_ms("c"), 95_000, "a guess makes nobody wait for long");
    }

    /// The ban was eight times a load time that nobody had measured: 80 s on an idle GPU.
    #[test]
    fn a_ban_ends_when_the_others_are_quiet() {
        let mut coolings = Coolings::default();
        coolings.pushed_out("a", 0, 10_000);
        coolings.pushed_out("fast", 0, 1_000);
        assert_eq!(coolings.others_quiet(3_000, 3_500), Some(4_000));
        assert_eq!(coolings.others_quiet(3_000, 4_000), Some(5_000));
        assert_eq!(coolings.until_ms("fast"), 0);
        assert_eq!(coolings.others_quiet(4_900, 5_000), Some(6_900), "they went on");
        assert_eq!(coolings.others_quiet(4_900, 6_900), None);
        assert!(coolings.is_empty(6_900) && coolings.until_ms("a") == 0);
    }
}
