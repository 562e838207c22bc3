//! The delays before another try: exponential, capped, with jitter on the upper half. The one user of the `backoff`
//! crate, which only computes here; attempt and time are kept by the store (docs/adrs/0006-backoff.md).

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

/// No delay is longer: a person waits for a retry.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// After this many doublings every delay is at the cap.
const DOUBLINGS_MAX: u32 = 32;

/// The delay before the try after the `failures`-th failure. `chance` in 0..=1 is the caller's randomness: at 0 the
/// delay is half, at 1 it is whole.
pub(super) fn delay(failures: u32, first: Duration, chance: f64) -> Duration {
    let mut doubling = ExponentialBackoff {
        current_interval: first,
        initial_interval: first,
        // The crate's own jitter reads its own randomness; it is switched off.
        randomization_factor: 0.0,
        multiplier: 2.0,
        max_interval: DELAY_MAX,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    let mut whole = first;
    for _ in 0..failures.clamp(1, DOUBLINGS_MAX) {
        whole = doubling.next_backoff().unwrap_or(DELAY_MAX);
    }
    let whole = whole.min(DELAY_MAX);
    whole / 2 + whole.mul_f64(chance.clamp(0.0, 1.0) / 2.0)
}

/// Some chance, from the random part of a fresh ULID: jitter needs no better source.
pub(super) fn chance() -> f64 {
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
    fn delays_double_up_to_the_cap() {
        let whole: Vec<u64> = (1..9).map(|n| delay(n, FIRST, 1.0).as_secs()).collect();
        assert_eq!(whole, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    proptest! {
        #[test]
        fn a_delay_lies_between_half_and_whole(failures in 0_u32..5_000, chance in 0.0_f64..1.0) {
            let whole = delay(failures, FIRST, 1.0);
            let some = delay(failures, FIRST, chance);
            prop_assert!(some >= whole / 2 && some <= whole);
            prop_assert!(some <= DELAY_MAX);
        }

        #[test]
        fn a_chance_is_a_chance(_ in 0_u8..50) {
            let chance = chance();
            prop_assert!((0.0..=1.0).contains(&chance));
        }
    }
}
