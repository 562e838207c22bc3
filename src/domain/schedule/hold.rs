//! How long a key that has run dry is kept while others wait: anticipation, as disk schedulers know it (Iyer and Druschel,
//! SOSP 2001), with the wait chosen by what it is worth.
//!
//! Swapping away and back costs two loads. That time is lost to at least two: the job that comes back, and the one the
//! GPU was taken away for and is taken away from again. Waiting costs each waiter the time waited. So a wait of `w` is
//! worth `P(return <= w) * 2 * (load there + load back) - waiters * E[min(return, w)]`, in milliseconds of waiting. Where
//! arrivals have no memory, that comes to a hold only if they are frequent and hardly anyone waits.

use super::board::{Absence, Visit};

/// Who is delayed by a pair of loads, at least.
const DELAYED_BY_A_SWAP: f64 = 2.0;

/// The wait worth most, in milliseconds from now; `None` if none is worth anything.
///
/// `pair_ms` is what the two loads take, `waiters` how many jobs wait for other keys, `longest_ms` the longest wait allowed.
pub(super) fn best_wait(visit: &Visit, pair_ms: i64, waiters: u64, longest_ms: i64) -> Option<i64> {
    let saved = DELAYED_BY_A_SWAP * real(pair_ms);
    let cost_rate = f64::from(u32::try_from(waiters).unwrap_or(u32::MAX));
    let mut best: Option<(i64, f64)> = None;
    let mut before = Absence { wait_ms: 0, probability: 1.0 };
    let mut expected_ms = 0.0;
    for point in visit.absence.iter().take_while(|point| point.wait_ms <= longest_ms) {
        expected_ms += before.probability * real(point.wait_ms - before.wait_ms);
        before = *point;
        let worth = (1.0 - point.probability) * saved - cost_rate * expected_ms;
        if point.wait_ms > 0 && worth > best.map_or(0.0, |(_, most)| most) {
            best = Some((point.wait_ms, worth));
        }
    }
    best.map(|(wait_ms, _)| wait_ms)
}

/// How likely it is that nobody comes back within `wait_ms`.
pub(super) fn absence_at(visit: &Visit, wait_ms: i64) -> f64 {
    let reached = visit.absence.iter().take_while(|point| point.wait_ms <= wait_ms).last();
    reached.map_or(1.0, |point| point.probability)
}

/// A span as a real number. Spans are far below 2^53 ms, so nothing is lost.
pub(super) fn real(span_ms: i64) -> f64 {
    span_ms as f64
}
