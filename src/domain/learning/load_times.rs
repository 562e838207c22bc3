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

/// A load is slow, not stuck, up to this many times what measured loads let expect: from a cold disk the same model takes many
/// times as long as from memory.
const SLOWER_MAX: i64 = 4;

/// The slowest disk or network that models are loaded from, in bytes per millisecond (50 MB/s).
const SLOWEST_BYTES_PER_MS: i64 = 50_000;

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

    /// What a load of the key is expected to take: the median of its last loads, else of those of its model with other options,
    /// else its size over the speed of other loads, else [`UNMEASURED_MS`].
    pub fn expected_ms(&self, key: &str, size_bytes: Option<i64>) -> i64 {
        let own = self.by_key.get(key).or_else(|| self.of_model(key));
        if let Some(median) = own.and_then(|times| median(times)) {
            return median;
        }
        let speed = median(&self.bytes_per_ms);
        match (size_bytes, speed) {
            (Some(bytes), Some(speed)) if bytes > 0 => (bytes / speed.max(1)).max(1),
            _ => UNMEASURED_MS,
        }
    }

    /// Load times of the model of a key, with whatever options.
    fn of_model(&self, key: &str) -> Option<&Vec<i64>> {
        let model = model_of(key);
        let near = self.by_key.range(model.to_owned()..);
        let (_, times) = near
            .take_while(|(other, _)| other.starts_with(model))
            .find(|(other, _)| model_of(other) == model)?;
        Some(times)
    }

    /// How long a load of the key may take before it counts as stuck, by its size and by what was measured; 0 if nothing is
    /// known.
    pub fn patience_ms(&self, key: &str, size_bytes: Option<i64>) -> i64 {
        let longest = self.by_key.get(key).and_then(|times| times.iter().max());
        let slowest = self.bytes_per_ms.iter().min();
        let size_bytes = size_bytes.unwrap_or(0).max(0);
        let by_speed_ms = slowest.map_or(0, |speed| size_bytes / (*speed).max(1));
        let measured_ms = longest.map_or(0, |longest| *longest).max(by_speed_ms);
        measured_ms.saturating_mul(SLOWER_MAX).max(size_bytes / SLOWEST_BYTES_PER_MS)
    }
}

/// The model in the text of a key; its options follow after a space.
fn model_of(key: &str) -> &str {
    key.split(' ').next().unwrap_or(key)
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

    /// A model of 400 GB on a slow disk was given up after ten minutes, again and again.
    #[test]
    fn a_large_model_and_a_slow_disk_are_given_time() {
        let mut times = LoadTimes::default();
        assert_eq!(times.patience_ms("a", None), 0);
        assert_eq!(times.patience_ms("a", Some(400_000_000_000)), 8_000_000);
        times.measured("a", 300_000, Some(3_000_000_000));
        assert_eq!(times.patience_ms("a", None), 4 * 300_000, "by its own loads");
        assert_eq!(times.patience_ms("b", Some(6_000_000_000)), 4 * 600_000, "by the disk's speed");
    }

    /// A key that was never loaded stayed for eight times ten seconds, though its model loads in one.
    #[test]
    fn other_options_of_a_model_load_as_it_does() {
        let mut times = LoadTimes::default();
        times.measured("a:latest num_ctx=8", 1_000, None);
        times.measured("a:latest2", 9_000, None);
        assert_eq!(times.expected_ms("a:latest", None), 1_000);
        assert_eq!(times.expected_ms("a:latest num_ctx=9", None), 1_000);
        assert_eq!(times.expected_ms("a", None), UNMEASURED_MS);
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
