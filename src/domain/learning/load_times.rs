//! How long the load of a key takes, measured from foreman's own loads.

use std::collections::BTreeMap;

/// Loads remembered per key. The median of five forgets a cold disk quickly and is not led astray by one.
const SAMPLES_MAX: usize = 5;

/// What a load is taken to need before anything was measured.
const UNMEASURED_MS: i64 = 10_000;

/// No load is taken to have taken longer: the clock was set, or the machine slept. Residence and pauses are multiples of it.
const MEASURED_MS_MAX: i64 = 15 * 60 * 1_000;

/// Loads whose speed is remembered, over all keys.
const SPEEDS_MAX: usize = 9;

/// Keys remembered; keys beyond it push out the first by name. A box has tens.
const KEYS_MAX: usize = 4_096;

/// Load times by key text.
#[derive(Debug, Clone, Default)]
pub struct LoadTimes {
    by_key: BTreeMap<String, Vec<i64>>,
    bytes_per_ms: Vec<i64>,
}

impl LoadTimes {
    /// Takes a measured load in: `took_ms` for a model of `size_bytes`, where known.
    pub fn measured(&mut self, key: &str, took_ms: i64, size_bytes: Option<i64>) {
        if !self.by_key.contains_key(key) && self.by_key.len() >= KEYS_MAX {
            self.by_key.pop_first();
        }
        let times = self.by_key.entry(key.to_owned()).or_default();
        let took_ms = took_ms.clamp(0, MEASURED_MS_MAX);
        times.push(took_ms);
        if times.len() > SAMPLES_MAX {
            times.remove(0);
        }
        if let Some(bytes) = size_bytes.filter(|bytes| *bytes > 0) {
            self.bytes_per_ms.push((bytes / took_ms.max(1)).max(1));
            if self.bytes_per_ms.len() > SPEEDS_MAX {
                self.bytes_per_ms.remove(0);
            }
        }
    }

    /// What a load of the key is expected to take: the median of its last loads, else its size over the speed of other
    /// loads, else [`UNMEASURED_MS`].
    pub fn expected_ms(&self, key: &str, size_bytes: Option<i64>) -> i64 {
        if let Some(median) = self.by_key.get(key).and_then(|times| median(times)) {
            return median;
        }
        let speed = median(&self.bytes_per_ms);
        match (size_bytes, speed) {
            (Some(bytes), Some(speed)) if bytes > 0 => (bytes / speed.max(1)).max(1),
            _ => UNMEASURED_MS,
        }
    }
}

/// The middle one, the upper of two.
fn median(values: &[i64]) -> Option<i64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_slept_in_a_load_is_not_a_load_of_hours() {
        let mut times = LoadTimes::default();
        times.measured("a", 8 * 60 * 60 * 1_000, None);
        assert_eq!(times.expected_ms("a", None), MEASURED_MS_MAX);
    }

    #[test]
    fn the_median_of_the_last_five_counts_then_size_then_a_guess() {
        let mut times = LoadTimes::default();
        assert_eq!(times.expected_ms("a", Some(1_000)), UNMEASURED_MS);
        for took_ms in [90_000, 4_000, 5_000, 6_000, 5_000, 5_000] {
            times.measured("a", took_ms, Some(10_000_000));
        }
        assert_eq!(times.expected_ms("a", None), 5_000);
        assert_eq!(times.expected_ms("b", Some(20_000_000)), 10_000);
        assert_eq!(times.expected_ms("b", None), UNMEASURED_MS);
    }
}
