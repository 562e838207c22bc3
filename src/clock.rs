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
}
