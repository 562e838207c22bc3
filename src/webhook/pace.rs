//! Who is told when: a few at once of each receiver, one while it fails, and those that work before those that do not. Pure;
//! in memory only, since a new start may try everybody anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::store::{OwedTo, Try};

/// Deliveries to one receiver at once: enough that one slow reply does not hold the next job's, too few to be felt there.
pub(super) const AT_ONCE_MAX: usize = 4;

/// Deliveries in flight to all receivers; each is a connection and a body of at most some hundred KiB.
pub(super) const IN_FLIGHT_MAX: usize = 256;

/// Of those, to receivers that fail: each may take a whole limit's time, and the others must find a place meanwhile.
const FAILING_MAX: usize = IN_FLIGHT_MAX / 2;

/// Between two tries at a receiver that fails: one that is owed much and refuses at once would else be asked, and its rows
/// written, without a pause.
const FAILING_PAUSE: Duration = Duration::from_millis(50);

/// Read of each receiver's due ones: as many as may begin, behind as many as are in flight.
pub(super) const DUE_MAX: usize = 2 * AT_ONCE_MAX;

const _: () = assert!(DUE_MAX >= 2 * AT_ONCE_MAX && FAILING_MAX < IN_FLIGHT_MAX);

/// The receivers that are being told, and those that fail.
#[derive(Debug, Default)]
pub(super) struct Pace {
    receivers: BTreeMap<String, Receiver>,
}

#[derive(Debug, Default)]
struct Receiver {
    /// The deliveries under way.
    in_flight: BTreeSet<i64>,
    /// Whether its last try failed.
    is_failing: bool,
    /// Not to be tried before; 0 where it works.
    not_before_ms: i64,
}

impl Receiver {
    fn at_once(&self) -> usize {
        if self.is_failing { 1 } else { AT_ONCE_MAX }
    }
}

impl Pace {
    /// Chooses what to begin now, and notes it as begun: the first of each receiver, then the second of each, and so on.
    pub(super) fn begin(&mut self, owed: &[OwedTo], now_ms: i64) -> Vec<(String, Try)> {
        self.forget_idle(owed);
        let mut begun = Vec::new();
        for is_failing in [false, true] {
            for _ in 0..AT_ONCE_MAX {
                for owed in owed {
                    begun.extend(self.begin_one(owed, is_failing, now_ms));
                }
            }
        }
        begun
    }

    fn begin_one(&mut self, owed: &OwedTo, is_failing: bool, now_ms: i64) -> Option<(String, Try)> {
        let limit = if is_failing { FAILING_MAX } else { IN_FLIGHT_MAX };
        if self.in_flight() >= IN_FLIGHT_MAX || (is_failing && self.failing() >= limit) {
            return None;
        }
        if self.receivers.get(&owed.receiver).is_some_and(|known| known.is_failing) != is_failing {
            return None;
        }
        let known = self.receivers.entry(owed.receiver.clone()).or_default();
        if known.in_flight.len() >= known.at_once() || now_ms < known.not_before_ms {
            return None;
        }
        let next = owed.due.iter().find(|due| !known.in_flight.contains(&due.event))?;
        known.in_flight.insert(next.event);
        Some((owed.receiver.clone(), *next))
    }

    /// Notes that a delivery is no longer under way, and how it went: `None` if it was not tried.
    pub(super) fn landed(
        &mut self,
        receiver: &str,
        event: i64,
        is_taken: Option<bool>,
        now_ms: i64,
    ) {
        let Some(known) = self.receivers.get_mut(receiver) else { return };
        known.in_flight.remove(&event);
        if let Some(is_taken) = is_taken {
            let pause_ms = i64::try_from(FAILING_PAUSE.as_millis()).unwrap_or(i64::MAX);
            known.is_failing = !is_taken;
            known.not_before_ms = if is_taken { 0 } else { now_ms.saturating_add(pause_ms) };
        }
    }

    /// When something can be begun by time alone; what waits for a place waits for a landing.
    pub(super) fn next_at_ms(&self, owed: &[OwedTo], now_ms: i64) -> Option<i64> {
        let of_one = |owed: &OwedTo| {
            let known = self.receivers.get(&owed.receiver);
            let paused = known.filter(|known| {
                !owed.due.is_empty() && known.in_flight.is_empty() && known.not_before_ms > now_ms
            });
            paused.map(|known| known.not_before_ms).into_iter().chain(owed.next_at_ms).min()
        };
        owed.iter().filter_map(of_one).min()
    }

    /// Deliveries under way.
    pub(super) fn in_flight(&self) -> usize {
        self.receivers.values().map(|known| known.in_flight.len()).sum()
    }

    fn failing(&self) -> usize {
        let failing = self.receivers.values().filter(|known| known.is_failing);
        failing.map(|known| known.in_flight.len()).sum()
    }

    /// Forgets receivers that are owed nothing more.
    fn forget_idle(&mut self, owed: &[OwedTo]) {
        let owing: BTreeSet<&str> = owed.iter().map(|owed| owed.receiver.as_str()).collect();
        self.receivers
            .retain(|name, known| !known.in_flight.is_empty() || owing.contains(name.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(receiver: &str, events: std::ops::Range<i64>) -> OwedTo {
        let due = events.map(|event| Try { event, tries: 0 }).collect();
        OwedTo { receiver: receiver.to_owned(), due, next_at_ms: None }
    }

    fn begun(pace: &mut Pace, owed: &[OwedTo], now_ms: i64) -> Vec<i64> {
        pace.begin(owed, now_ms).into_iter().map(|(_, next)| next.event).collect()
    }

    #[test]
    fn a_receiver_gets_four_at_once_and_one_while_it_fails() {
        let mut pace = Pace::default();
        let all = [owed("a", 1..9)];
        assert_eq!(begun(&mut pace, &all, 0), [1, 2, 3, 4]);
        assert!(begun(&mut pace, &all, 0).is_empty());
        pace.landed("a", 1, Some(false), 0);
        assert!(begun(&mut pace, &all, 0).is_empty(), "three are under way");
        for event in 2..5 {
            pace.landed("a", event, Some(false), 0);
        }
        let later = [owed("a", 5..9)];
        assert_eq!((begun(&mut pace, &later, 0), pace.next_at_ms(&later, 0)), (vec![], Some(50)));
        assert_eq!(begun(&mut pace, &later, 50), [5]);
        assert_eq!(pace.next_at_ms(&later, 50), None, "it waits for a landing");
        pace.landed("a", 5, Some(true), 60);
        assert_eq!(begun(&mut pace, &[owed("a", 6..9)], 60), [6, 7, 8]);
    }

    #[test]
    fn each_receiver_is_begun_before_any_is_begun_twice_and_the_working_ones_first() {
        let mut pace = Pace::default();
        pace.begin(&[owed("a", 1..2)], 0);
        pace.landed("a", 1, Some(false), 0);
        let all = [owed("a", 2..4), owed("b", 10..12), owed("c", 20..22)];
        assert_eq!(begun(&mut pace, &all, 100), [10, 20, 11, 21, 2]);
    }

    #[test]
    fn the_failing_leave_places_for_the_others() {
        let mut pace = Pace::default();
        let many = |first: i64| -> Vec<OwedTo> {
            (0..300).map(|n| owed(&format!("dead{n:03}"), first + n..first + n + 1)).collect()
        };
        let all = many(0);
        let first = pace.begin(&all, 0);
        assert_eq!(first.len(), IN_FLIGHT_MAX);
        for (receiver, next) in first {
            pace.landed(&receiver, next.event, Some(false), 0);
        }
        let again = pace.begin(&many(1_000), 100);
        let failing = again.iter().filter(|(name, _)| name.as_str() < "dead256").count();
        assert_eq!((again.len(), failing), (FAILING_MAX + 44, FAILING_MAX));
        let alive = [owed("alive", 5_000..5_009)];
        let all: Vec<OwedTo> = many(1_000).into_iter().chain(alive).collect();
        assert_eq!(begun(&mut pace, &all, 200), [5_000, 5_001, 5_002, 5_003]);
    }

    #[test]
    fn a_receiver_that_is_owed_nothing_is_forgotten() {
        let mut pace = Pace::default();
        pace.begin(&[owed("a", 1..2)], 0);
        pace.landed("a", 1, Some(false), 0);
        assert!(pace.begin(&[], 0).is_empty() && pace.receivers.is_empty());
    }
}
