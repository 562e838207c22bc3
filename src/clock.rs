//! The only reader of the system's clock. Everyone else is handed a [`Clock`], so that tests can drive time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall-clock time in milliseconds since 1970 (UTC), from the system or from a test's hand.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Set in tests only: the time this clock shows.
    manual_ms: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Clock {
        Clock { manual_ms: None }
    }

    /// A clock that stands still until it is moved with [`Clock::advance`].
    pub fn manual(start_ms: i64) -> Clock {
        Clock { manual_ms: Some(Arc::new(AtomicI64::new(start_ms))) }
    }

    /// Now, in milliseconds since 1970. A clock before 1970 reads 0.
    #[expect(clippy::disallowed_methods, reason = "this is the one owner of the system's clock")]
    pub fn now_ms(&self) -> i64 {
        if let Some(manual) = &self.manual_ms {
            return manual.load(Ordering::SeqCst);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    /// Moves a manual clock; the system's clock stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Some(manual) = &self.manual_ms {
            let by_ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
            manual.fetch_add(by_ms, Ordering::SeqCst);
        }
    }
}

/// A duration as whole milliseconds, for storing and showing.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// `at_ms` as an RFC 3339 text in UTC, for JSON and people.
pub fn rfc3339(at_ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(at_ms).unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}

/// The time of an RFC 3339 text, any offset included, in milliseconds since 1970, rounded down; `None` where it is none.
pub fn from_rfc3339(text: &str) -> Option<i64> {
    let date = text.get(..DATE.len())?;
    let (clock, rest) = text.get(DATE.len()..)?.split_at_checked(CLOCK.len())?;
    let fraction = rest.strip_prefix('.').map(|rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        (digits, rest.get(digits..).unwrap_or_default())
    });
    let offset = match fraction {
        Some((0, _)) => return None,
        Some((_, offset)) => offset,
        None => rest,
    };
    let is_offset =
        matches!(offset, "Z" | "z") || follows(offset, "+00:00") || follows(offset, "-00:00");
    if !follows(date, DATE) || !follows(clock, CLOCK) || !is_offset {
        return None;
    }
    // jiff reads more than the RFC allows (names of zones, other separators), and knows the calendar.
    let at: jiff::Timestamp = text.to_ascii_uppercase().parse().ok()?;
    Some(at.as_nanosecond().div_euclid(NANOS_PER_MILLI)).and_then(|ms| i64::try_from(ms).ok())
}

/// What the parts of an RFC 3339 text look like.
const DATE: &str = "0000-00-00";
const CLOCK: &str = "T00:00:00";

const NANOS_PER_MILLI: i128 = 1_000_000;

/// Whether `text` has digits where `shape` has, and the same letters elsewhere.
fn follows(text: &str, shape: &str) -> bool {
    text.len() == shape.len()
        && text.bytes().zip(shape.bytes()).all(|(byte, wanted)| match wanted {
            b'0' => byte.is_ascii_digit(),
            letter => byte.eq_ignore_ascii_case(&letter),
        })
}

/// `at_ms` as a [`SystemTime`], for what names itself by time.
pub fn system_time(at_ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(at_ms).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual(1_000);
        assert_eq!(clock.now_ms(), 1_000);
        clock.advance(Duration::from_secs(2));
        assert_eq!(clock.now_ms(), 3_000);
        assert_eq!(rfc3339(clock.now_ms()), "1970-01-01T00:00:03.000Z");
    }

    #[test]
    fn times_are_read_as_rfc_3339_and_nothing_more() {
        for (text, at_ms) in [
            ("2026-11-24T12:00:00Z", 1_795_521_600_000),
            ("2026-11-24t14:00:00.0009+02:00", 1_795_521_600_000),
            ("2026-11-24T06:30:00.25-05:30", 1_795_521_600_250),
            ("1969-12-31T23:59:59.9999z", -1),
            ("2024-02-29T00:00:00-00:00", 1_709_164_800_000),
        ] {
            assert_eq!(from_rfc3339(text), Some(at_ms), "{text}");
        }
        for text in [
            "",
            "2026-11-24",
            "2026-11-24T12:00:00",
            "2026-11-24 12:00:00Z",
            "2026-11-24T12:00Z",
            "2026-11-24T12:00:00.Z",
            "2026-11-24T12:00:00+02",
            "2026-11-24T12:00:00+0200",
            "2026-11-24T12:00:00+02:00[Europe/Berlin]",
            "2026-11-24T12:00:00Z ",
            "2026-02-29T12:00:00Z",
            "2026-11-24T25:00:00Z",
            "2026-11-24T12:00:00+99:00",
            "+002026-11-24T12:00:00Z",
            "9999-12-31T23:59:59-23:59",
            "2026-11-24T12:00:0\u{e9}Z",
            "now",
        ] {
            assert_eq!(from_rfc3339(text), None, "{text}");
        }
        let at_ms = 1_795_521_600_123;
        assert_eq!(from_rfc3339(&rfc3339(at_ms)), Some(at_ms));
    }
}
