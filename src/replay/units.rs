//! Virtual time: whole microseconds from the beginning, and its conversions.

const US_PER_S: f64 = 1_000_000.0;

/// Microseconds in a millisecond.
pub(super) const US_PER_MS: u64 = 1_000;

pub(super) fn us(seconds: f64) -> u64 {
    let us = (seconds * US_PER_S).round();
    // `SECONDS_MAX` keeps this far inside.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 3.2e15")]
    let us = us as u64;
    us
}

pub(super) fn ms(us: u64) -> i64 {
    i64::try_from(us / US_PER_MS).unwrap_or(i64::MAX)
}

pub(super) fn seconds(us: u64) -> f64 {
    us as f64 / US_PER_S
}
