//! How long jobs of a key take, and how often they come.

use std::collections::{BTreeMap, VecDeque};

/// What a job is taken to need before any was measured.
const UNMEASURED_SERVICE_MS: i64 = 5_000;

/// Services averaged per key.
const SERVICES_MAX: usize = 20;

/// Arrivals remembered per key.
const ARRIVALS_MAX: usize = 32;

/// Fewer arrivals than this tell no rate.
const ARRIVALS_MIN: usize = 8;

/// Keys remembered; a new one beyond it pushes out the first by name. A box has tens.
const KEYS_MAX: usize = 4_096;

/// Service times and arrival times by key text.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    by_key: BTreeMap<String, KeyRates>,
}

#[derive(Debug, Clone, Default)]
struct KeyRates {
    services_ms: VecDeque<i64>,
    arrivals_ms: VecDeque<i64>,
}

impl Rates {
    /// Notes a job that ran, and how long it took once its key was resident.
    pub fn served(&mut self, key: &str, service_ms: i64) {
        keep(&mut self.of(key).services_ms, service_ms.max(0), SERVICES_MAX);
    }

    /// Notes an arrival.
    pub fn arrived(&mut self, key: &str, now_ms: i64) {
        keep(&mut self.of(key).arrivals_ms, now_ms, ARRIVALS_MAX);
    }

    /// Arrivals by another clock tell no rate.
    pub fn clock_set_back(&mut self) {
        for rates in self.by_key.values_mut() {
            rates.arrivals_ms.clear();
        }
    }

    /// What a job of the key is expected to take.
    pub fn expected_service_ms(&self, key: &str) -> i64 {
        let Some(rates) = self.by_key.get(key) else { return UNMEASURED_SERVICE_MS };
        let count = i64::try_from(rates.services_ms.len()).unwrap_or(1);
        match count {
            0 => UNMEASURED_SERVICE_MS,
            count => rates.services_ms.iter().sum::<i64>() / count,
        }
    }

    /// Arrivals per millisecond up to now. 0 while there are too few to tell.
    pub fn arrivals_per_ms(&self, key: &str, now_ms: i64) -> f64 {
        self.by_key.get(key).map_or(0.0, |rates| rate(&rates.arrivals_ms, now_ms))
    }

    fn of(&mut self, key: &str) -> &mut KeyRates {
        if !self.by_key.contains_key(key) && self.by_key.len() >= KEYS_MAX {
            self.by_key.pop_first();
        }
        self.by_key.entry(key.to_owned()).or_default()
    }
}

fn keep(values: &mut VecDeque<i64>, value: i64, most: usize) {
    values.push_back(value);
    if values.len() > most {
        values.pop_front();
    }
}

/// The time since the last arrival counts too, so that a source that has dried up is noticed.
fn rate(arrivals_ms: &VecDeque<i64>, now_ms: i64) -> f64 {
    let Some(first_ms) = arrivals_ms.front() else { return 0.0 };
    if arrivals_ms.len() < ARRIVALS_MIN {
        return 0.0;
    }
    // A burst that is over must not count as a steady flow: what came lately counts too.
    let lately_ms = arrivals_ms.iter().rev().nth(ARRIVALS_MIN - 1).unwrap_or(first_ms);
    per_ms(arrivals_ms.len(), now_ms - first_ms).min(per_ms(ARRIVALS_MIN, now_ms - lately_ms))
}

/// So many arrivals in such a time.
fn per_ms(arrivals: usize, span_ms: i64) -> f64 {
    let span_ms = i32::try_from(span_ms.max(100)).unwrap_or(i32::MAX);
    let gaps = u16::try_from(arrivals.saturating_sub(1)).unwrap_or(u16::MAX);
    f64::from(gaps) / f64::from(span_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_some_arrivals_and_falls_while_none_come() {
        let mut rates = Rates::default();
        for at_ms in (0..7).map(|n| n * 1_000) {
            rates.arrived("a", at_ms);
        }
        assert_eq!(rates.arrivals_per_ms("a", 7_000), 0.0);
        rates.arrived("a", 7_000);
        let all = rates.arrivals_per_ms("a", 7_000);
        assert!((all - 0.001).abs() < 1e-9, "{all}");
        assert!(rates.arrivals_per_ms("a", 70_000) < 0.000_2);
    }

    /// A burst of one-shot requests was waited for long after it had ended.
    #[test]
    fn a_burst_that_is_over_is_no_steady_flow() {
        let mut rates = Rates::default();
        for _ in 0..24 {
            rates.arrived("a", 0);
        }
        for at_ms in (1..=8).map(|n| n * 2_000) {
            rates.arrived("a", at_ms);
        }
        let all = rates.arrivals_per_ms("a", 17_000);
        assert!(all < 0.000_6, "{all}");
    }

    #[test]
    fn the_mean_of_the_last_services_is_expected() {
        let mut rates = Rates::default();
        assert_eq!(rates.expected_service_ms("a"), UNMEASURED_SERVICE_MS);
        for service_ms in [100, 200, 300] {
            rates.served("a", service_ms);
        }
        assert_eq!(rates.expected_service_ms("a"), 200);
    }
}
