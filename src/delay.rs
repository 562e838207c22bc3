//! The delays before another try: exponential, capped, with jitter on the upper half.
//!
//! The one user of the `backoff` crate, which only computes here; attempt and time are kept by the store (docs/adrs/0006-backoff.md). Called by `worker`
//! and `webhook`.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

/// After this many steps every delay is at its cap.
const STEPS_MAX: u32 = 32;

/// How delays grow from one failure to the next.
#[derive(Debug, Clone, Copy)]
pub struct Growth {
    factor: f64,
    max: Duration,
}

impl Growth {
    /// Of the tries of a job: they double, and none is longer than a person waits for a retry.
    pub const JOB: Growth = Growth { factor: 2.0, max: Duration::from_secs(60) };

    /// Of the tries of a webhook: four times as long each, so that ten of them outlast most of a day without asking often.
    pub const WEBHOOK: Growth = Growth { factor: 4.0, max: Duration::from_secs(6 * 60 * 60) };

    /// The longest delay.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The delay before the try after the `failures`-th failure. `chance` in 0..=1 is the caller's randomness: at 0 the
    /// delay is half, at 1 it is whole.
    pub fn delay(&self, failures: u32, first: Duration, chance: f64) -> Duration {
        let mut growing = ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            // The crate's own jitter reads its own randomness; it is switched off.
            randomization_factor: 0.0,
            multiplier: self.factor,
            max_interval: self.max,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        let mut whole = first;
        for _ in 0..failures.clamp(1, STEPS_MAX) {
            whole = growing.next_backoff().unwrap_or(self.max);
        }
        let whole = whole.min(self.max);
        whole / 2 + whole.mul_f64(chance.clamp(0.0, 1.0) / 2.0)
    }
}

/// Some chance, from the random part of a fresh ULID: jitter needs no better source.
pub fn chance() -> f64 {
    const STEPS: u16 = 1_000;
    let random = ulid::Ulid::generate().random() % u128::from(STEPS);
    f64::from(u16::try_from(random).unwrap_or(0)) / f64::from(STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: Duration = Duration::from_secs(1);

    #[test]
    fn delays_grow_up_to_the_cap() {
        let whole = |n| Growth::JOB.delay(n, FIRST, 1.0).as_secs();
        assert_eq!((1..9).map(whole).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 60, 60]);
        let first = Duration::from_secs(5);
        let whole = |n| Growth::WEBHOOK.delay(n, first, 1.0).as_secs();
        let wanted = [5, 20, 80, 320, 1_280, 5_120, 20_480, 21_600, 21_600];
        assert_eq!((1..10).map(whole).collect::<Vec<_>>(), wanted);
    }

    proptest! {
        #[test]
        fn a_delay_lies_between_half_and_whole(failures in 0_u32..5_000, chance in 0.0_f64..1.0) {
            for growth in [Growth::JOB, Growth::WEBHOOK] {
                let whole = growth.delay(failures, FIRST, 1.0);
                let some = growth.delay(failures, FIRST, chance);
                prop_assert!(some >= whole / 2 && some <= whole);
                prop_assert!(some <= growth.max());
            }
        }

        #[test]
        fn a_chance_is_a_chance(_ in 0_u8..50) {
            let chance = chance();
            prop_assert!((0.0..=1.0).contains(&chance));
        }
    }
}
