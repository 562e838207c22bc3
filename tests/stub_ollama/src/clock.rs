//! The stub's time: monotonic for the log, wall clock for answers, frozen on request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// 2026-01-01T00:00:00Z, what a frozen clock shows.
const FIXED_NS: i128 = 1_767_225_600_000_000_000;
const NANOS_PER_SECOND: i128 = 1_000_000_000;
const SECONDS_PER_DAY: i128 = 86_400;

/// One stub's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    is_fixed: bool,
}

impl Clock {
    pub(crate) fn new(is_fixed: bool) -> Self {
        Self { started: Instant::now(), is_fixed }
    }

    /// Returns the time since the stub started; never frozen.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// Returns nanoseconds since 1970.
    pub(crate) fn wall_ns(&self) -> i128 {
        if self.is_fixed {
            return FIXED_NS;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i128::try_from(since.as_nanos()).unwrap_or(FIXED_NS)
    }

    /// Returns the wall clock as Go prints it in JSON.
    pub(crate) fn now_text(&self) -> String {
        rfc3339(self.wall_ns())
    }

    /// Returns seconds since 1970, as the `/v1` shapes use.
    pub(crate) fn now_seconds(&self) -> i64 {
        i64::try_from(self.wall_ns() / NANOS_PER_SECOND).unwrap_or(i64::MAX)
    }
}

/// Writes a time as Go's `RFC3339Nano` does: UTC, no trailing zeros in the fraction.
pub(crate) fn rfc3339(wall_ns: i128) -> String {
    let seconds = wall_ns.div_euclid(NANOS_PER_SECOND);
    let fraction = wall_ns.rem_euclid(NANOS_PER_SECOND);
    let (year, month, day) = civil(seconds.div_euclid(SECONDS_PER_DAY));
    let second = seconds.rem_euclid(SECONDS_PER_DAY);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if fraction > 0 {
        let digits = format!("{fraction:09}");
        text.push('.');
        text.push_str(digits.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Turns days since 1970 into a date (Howard Hinnant's `civil_from_days`).
fn civil(days: i128) -> (i128, i128, i128) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_go_prints_them() {
        assert_eq!(rfc3339(FIXED_NS), "2026-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_323_818_462_446_570), "2026-11-22T05:03:38.46244657Z");
        assert_eq!(rfc3339(FIXED_NS + i128::from(i64::MAX)), "2318-04-12T23:47:16.854775807Z");
    }
}
