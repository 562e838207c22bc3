//! The certified lower bound on loads: how often any schedule at all must load to start every job in time. Pure.
//!
//! It judges schedules after the fact and takes no part in a decision. It must never exceed what some schedule that
//! keeps every window can reach.

use std::collections::HashMap;
use std::hash::Hash;

/// A job as the bound sees it: what must be resident, and when the job may start.
///
/// Both ends belong to the window, so a job that starts in the very millisecond `until_ms` is in time. What counts is
/// the start of the service, since that is when the key must be resident; the service may end later. A window that
/// ends before it begins can be kept by nobody: it tells that its key is needed once, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window<K> {
    /// What must be resident when the job starts.
    pub key: K,
    /// When the job arrived, in milliseconds of any clock that all windows share.
    pub from_ms: i64,
    /// The latest start: the arrival plus what the job may wait. `i64::MAX` where there is no limit.
    pub until_ms: i64,
}

/// Answers with a number of loads below which no schedule gets that starts each job inside its window.
///
/// `slots` is how many keys can be resident at once (0 is taken as 1). Nothing is resident at the beginning. The bound
/// is `min(slots, distinct keys)` plus the best sum, over disjoint closed intervals of time, of
/// `max(0, d(I) - slots)`, where `d(I)` counts the keys with a job whose whole window lies inside `I`. Without limits
/// on waiting it is the number of distinct keys.
///
/// *Why no schedule beats it.* Take any schedule that keeps the windows and put off each unload until a load needs the
/// room: that adds no load and moves no job. Now memory never shrinks, and it ends with `min(slots, distinct)` keys
/// from none, so loads = unloads + `min(slots, distinct)`. Each of the `d(I)` keys is resident at some time in `I`,
/// whether it was loaded there or came over the border. At most `slots` of them still are when `I` ends, so at least
/// `d(I) - slots` unloads lie in `I`; and no unload lies in two disjoint intervals.
///
/// *Why the intervals share no millisecond.* With a millisecond in common an unload in it would count for both, and
/// a fast upstream can serve, swap and serve again within one.
///
/// *What it does not say.* A schedule that starts jobs late may load less often: show the number of late jobs beside
/// it. Clients that wait for an answer before they ask again arrive when the schedule lets them, so the bound is for
/// these arrivals and not for what another schedule would have made of the same clients. For a stretch of a longer
/// life, with keys resident at its beginning, only the bound less `min(slots, distinct)` is certain.
///
/// Takes O(n log n + n k) time for n windows with k distinct keys, and O(n) memory.
pub fn lower_bound<K: Eq + Hash>(windows: &[Window<K>], slots: usize) -> u64 {
    let slots = slots.max(1);
    // How many of the first `starts` are at or before the latest start of a window of the key that has ended.
    let mut reach: HashMap<&K, usize> = windows.iter().map(|window| (&window.key, 0)).collect();
    let distinct = reach.len();

    let mut by_end: Vec<&Window<K>> =
        windows.iter().filter(|window| window.from_ms <= window.until_ms).collect();
    by_end.sort_unstable_by_key(|window| window.until_ms);
    // An interval gains nothing by beginning between two starts, or by ending between two ends.
    let mut starts: Vec<i64> = by_end.iter().map(|window| window.from_ms).collect();
    starts.sort_unstable();
    starts.dedup();

    let mut best = 0;
    // For each start up to now: the best sum of intervals that end before it, plus d(from that start to now).
    let mut sums: Vec<usize> = Vec::with_capacity(starts.len());
    for window in by_end {
        // `best` covers the ends before this one, and no such end is at or after a start that is still to be opened:
        // that end would have opened it.
        while starts.get(sums.len()).is_some_and(|start| *start <= window.until_ms) {
            sums.push(best);
        }
        let opened = starts.partition_point(|start| *start <= window.from_ms);
        let reached = reach.entry(&window.key).or_insert(0);
        // The key counts from each start up to its latest one, once: over the whole sweep a key touches each start
        // at most once.
        for sum in sums.get_mut(*reached..opened).into_iter().flatten() {
            *sum += 1;
            best = best.max(sum.saturating_sub(slots));
        }
        *reached = opened.max(*reached);
    }
    u64::try_from(best + distinct.min(slots)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The random windows lie between 0 and this, so that all packings can be tried.
    const LAST_MS: i64 = 8;

    fn window(key: u8, from_ms: i64, until_ms: i64) -> Window<u8> {
        Window { key, from_ms, until_ms }
    }

    /// Keys 1, 2, 1, 2, ...: each arrives a second after the one before, and may wait so long.
    fn alternating(jobs: i64, max_wait_ms: i64) -> Vec<Window<u8>> {
        (0..jobs)
            .map(|at| {
                let key = if at % 2 == 0 { 1 } else { 2 };
                window(key, at * 1_000, at * 1_000 + max_wait_ms)
            })
            .collect()
    }

    #[test]
    fn nothing_needs_no_load() {
        assert_eq!(lower_bound::<u8>(&[], 1), 0);
    }

    #[test]
    fn without_a_limit_on_waiting_each_key_is_loaded_once() {
        let mut windows = alternating(100, 0);
        windows.push(window(3, 50, 50));
        for window in &mut windows {
            window.until_ms = i64::MAX;
        }
        for slots in 1..5 {
            assert_eq!(lower_bound(&windows, slots), 3, "{slots} slots");
        }
    }

    /// The bound is safe, not exact: the five pairs are five intervals of two keys, and with the load at the start that
    /// is six, where these ten jobs cost ten loads.
    #[test]
    fn jobs_that_cannot_wait_cost_a_swap_for_every_pair() {
        let windows = alternating(10, 0);
        assert_eq!(lower_bound(&windows, 1), 5 + 1);
        assert_eq!(lower_bound(&windows, 2), 2);
        assert_eq!(fewest_loads(&windows, 1, 0), Some(10));
    }

    /// Neighbours need an interval as long as the second between them and the second one's wait. With the millisecond
    /// between intervals, the pairs that count begin at seconds 0, 3, 6, 9, or at 0, 5, 10, or only once.
    #[test]
    fn the_longer_jobs_can_wait_the_fewer_swaps_they_cost() {
        assert_eq!(lower_bound(&alternating(12, 1_000), 1), 4 + 1);
        assert_eq!(lower_bound(&alternating(12, 3_000), 1), 3 + 1);
        assert_eq!(lower_bound(&alternating(12, 100_000), 1), 1 + 1);
    }

    #[test]
    fn a_round_of_three_keys_costs_two_swaps_with_one_slot_and_one_with_two() {
        let windows: Vec<Window<u8>> = (0..4)
            .flat_map(|round| (1..=3).map(move |key| window(key, round * 10, round * 10 + 9)))
            .collect();
        assert_eq!(lower_bound(&windows, 1), 4 * 2 + 1);
        assert_eq!(lower_bound(&windows, 2), 4 + 2);
        assert_eq!(lower_bound(&windows, 3), 3);
        assert_eq!(lower_bound(&windows, 0), lower_bound(&windows, 1), "no slot is taken as one");
    }

    /// The key that is resident over the border is not loaded again: A, B | B, A takes three loads, not four.
    #[test]
    fn a_key_resident_over_the_border_of_two_intervals_is_not_counted_again() {
        let windows = [window(1, 0, 4), window(2, 0, 4), window(2, 5, 9), window(1, 5, 9)];
        assert_eq!(lower_bound(&windows, 1), 3);
        assert_eq!(fewest_loads(&windows, 1, 1), Some(3));
    }

    /// All four jobs can start at 5, the two of a key together: two loads. Had the intervals 0 to 5 and 5 to 10 counted
    /// as disjoint, the answer would have been three.
    #[test]
    fn windows_that_touch_are_not_disjoint() {
        let windows = [window(1, 0, 5), window(2, 0, 5), window(1, 5, 10), window(2, 5, 10)];
        assert_eq!(lower_bound(&windows, 1), 2);
        assert_eq!(fewest_loads(&windows, 1, 0), Some(2));
    }

    #[test]
    fn a_window_that_ends_before_it_begins_only_tells_of_its_key() {
        let windows = [window(1, 0, 9), window(2, 5, 4)];
        assert_eq!(lower_bound(&windows, 1), 1);
        assert_eq!(lower_bound(&windows, 2), 2);
    }

    #[test]
    fn keys_may_be_texts() {
        let texts = ["a", "b"].map(|key| Window { key: key.to_owned(), from_ms: 0, until_ms: 1 });
        assert_eq!(lower_bound(&texts, 1), 2);
    }

    /// The definition, by trying every packing: at each millisecond either leave it out or end an interval somewhere.
    fn best_packing(windows: &[Window<u8>], slots: u64, from_ms: i64) -> u64 {
        if from_ms > LAST_MS {
            return 0;
        }
        let with_interval = (from_ms..=LAST_MS).map(|until_ms| {
            let inside: BTreeSet<u8> = windows
                .iter()
                .filter(|window| from_ms <= window.from_ms && window.until_ms <= until_ms)
                .filter(|window| window.from_ms <= window.until_ms)
                .map(|window| window.key)
                .collect();
            let inside = u64::try_from(inside.len()).unwrap();
            inside.saturating_sub(slots) + best_packing(windows, slots, until_ms + 1)
        });
        with_interval.max().unwrap().max(best_packing(windows, slots, from_ms + 1))
    }

    fn distinct(windows: &[Window<u8>]) -> u64 {
        let keys: BTreeSet<u8> = windows.iter().map(|window| window.key).collect();
        u64::try_from(keys.len()).unwrap()
    }

    /// The fewest loads of any schedule in which each job starts in its window and then keeps the server for
    /// `service_ms`; `None` if there is no such schedule.
    ///
    /// Tries each order of the jobs and each choice of victims. For one order, starting each job as early as it can be
    /// loses nothing, and so does unloading only for room. Loads take no time, and with a service of 0 any number of
    /// jobs can start in one millisecond: what no such schedule can reach, no slower one can.
    fn fewest_loads(windows: &[Window<u8>], slots: usize, service_ms: i64) -> Option<u64> {
        let mut search = Search { slots, service_ms, fewest: None };
        search.start_one_of(windows.to_vec(), i64::MIN, Vec::new(), 0);
        search.fewest
    }

    struct Search {
        slots: usize,
        service_ms: i64,
        fewest: Option<u64>,
    }

    impl Search {
        fn start_one_of(
            &mut self,
            waiting: Vec<Window<u8>>,
            now_ms: i64,
            resident: Vec<u8>,
            loads: u64,
        ) {
            if self.fewest.is_some_and(|fewest| fewest <= loads) {
                return;
            }
            if waiting.is_empty() {
                self.fewest = Some(loads);
            }
            for (index, next) in waiting.iter().enumerate() {
                let start_ms = now_ms.max(next.from_ms);
                if start_ms > next.until_ms {
                    continue;
                }
                let mut rest = waiting.clone();
                rest.remove(index);
                let free_ms = start_ms + self.service_ms;
                if resident.contains(&next.key) {
                    self.start_one_of(rest, free_ms, resident.clone(), loads);
                    continue;
                }
                for kept in self.kept(&resident) {
                    let resident = [kept, vec![next.key]].concat();
                    self.start_one_of(rest.clone(), free_ms, resident, loads + 1);
                }
            }
        }

        /// What may stay resident when one more key is loaded: all of it if there is room, else all but each victim.
        fn kept(&self, resident: &[u8]) -> Vec<Vec<u8>> {
            if resident.len() < self.slots {
                return vec![resident.to_vec()];
            }
            resident
                .iter()
                .map(|victim| resident.iter().copied().filter(|key| key != victim).collect())
                .collect()
        }
    }

    /// Windows of a few keys between 0 and `LAST_MS`; one in eight or so ends before it begins.
    fn any_windows() -> impl Strategy<Value = Vec<Window<u8>>> {
        let any_window = (0_u8..5, 0..=LAST_MS, -1..=5_i64).prop_map(|(key, from_ms, wait_ms)| {
            window(key, from_ms, (from_ms + wait_ms).clamp(0, LAST_MS))
        });
        proptest::collection::vec(any_window, 0..14)
    }

    /// Few enough windows that all schedules can be tried, none of which ends before it begins.
    fn few_windows() -> impl Strategy<Value = Vec<Window<u8>>> {
        let any_window = (0_u8..4, 0_i64..6, 0_i64..5)
            .prop_map(|(key, from_ms, wait_ms)| window(key, from_ms, from_ms + wait_ms));
        proptest::collection::vec(any_window, 0..8)
    }

    proptest! {
        /// The sweep finds what trying every packing finds.
        #[test]
        fn it_is_the_best_of_all_packings(windows in any_windows(), slots in 1_usize..4) {
            let slots_u64 = u64::try_from(slots).unwrap();
            let expected = best_packing(&windows, slots_u64, 0) + distinct(&windows).min(slots_u64);
            prop_assert_eq!(lower_bound(&windows, slots), expected);
        }

        /// The promise itself: whoever keeps the windows loads at least so often, however fast loads and services are.
        #[test]
        fn no_schedule_that_keeps_the_windows_loads_less(windows in few_windows(), slots in 1_usize..4) {
            let bound = lower_bound(&windows, slots);
            let fewest = fewest_loads(&windows, slots, 0);
            prop_assert!(fewest.is_some_and(|fewest| bound <= fewest), "{bound} > {fewest:?}");
            if let Some(fewest) = fewest_loads(&windows, slots, 1) {
                prop_assert!(bound <= fewest, "{bound} > {fewest}");
            }
        }

        /// Waiting longer can only save loads, and so can more room; one more job can only cost.
        #[test]
        fn patience_and_room_never_raise_it_and_jobs_never_lower_it(
            windows in few_windows(), slots in 1_usize..4, more_ms in proptest::collection::vec(0_i64..6, 8),
        ) {
            let bound = lower_bound(&windows, slots);
            let patient: Vec<Window<u8>> = windows.iter().zip(&more_ms)
                .map(|(window, more_ms)| Window { until_ms: window.until_ms + more_ms, ..window.clone() })
                .collect();
            prop_assert!(lower_bound(&patient, slots) <= bound);
            prop_assert!(lower_bound(&windows, slots + 1) <= bound);
            if let Some((_, fewer)) = windows.split_last() {
                prop_assert!(lower_bound(fewer, slots) <= bound);
            }
        }

        /// At least a load for each key, at most one for each job, and the order of the list does not matter.
        #[test]
        fn it_lies_between_the_keys_and_the_jobs_in_any_order(windows in any_windows(), slots in 1_usize..4) {
            let bound = lower_bound(&windows, slots);
            let backwards: Vec<Window<u8>> = windows.iter().rev().cloned().collect();
            prop_assert_eq!(bound, lower_bound(&backwards, slots));
            prop_assert!(bound <= u64::try_from(windows.len()).unwrap());
            if windows.iter().all(|window| window.from_ms <= window.until_ms) {
                prop_assert!(bound >= distinct(&windows));
            }
        }

        /// Only the order of the times matters, so neither end of the clock is special.
        #[test]
        fn the_ends_of_the_clock_are_times_like_others(windows in any_windows(), slots in 1_usize..4) {
            let times_ms = [i64::MIN, i64::MIN + 1, -1, 0, 1, 60_000, 60_001, i64::MAX - 1, i64::MAX];
            let at = |ms: i64| times_ms[usize::try_from(ms).unwrap()];
            let moved: Vec<Window<u8>> = windows.iter()
                .map(|window| Window { key: window.key, from_ms: at(window.from_ms), until_ms: at(window.until_ms) })
                .collect();
            prop_assert_eq!(lower_bound(&moved, slots), lower_bound(&windows, slots));
        }
    }
}
