//! What clients made by Stainless (the libraries of OpenAI and Anthropic) say of themselves: that they try again, and how
//! long they wait. They close the connection before they try again.

use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName};

/// How often this request was sent before.
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

/// How many seconds the client waits for bytes (Python).
const READ_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-read-timeout");

/// How many seconds it waits for an answer (JavaScript).
const TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-timeout");

/// A client that tries again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stainless {
    /// Whether it sent this request before.
    pub(super) is_retry: bool,
    /// How long it waits before it closes, if it says so.
    pub(super) gives_up_after: Option<Duration>,
}

/// What a client says of itself; `None` where it is none of those, or says it in no way that is known.
pub(super) fn stainless(headers: &HeaderMap) -> Option<Stainless> {
    let retries: u32 = headers.get(RETRY_COUNT)?.to_str().ok()?.trim().parse().ok()?;
    let limits = [READ_TIMEOUT, TIMEOUT].map(|name| seconds(headers, &name));
    Some(Stainless { is_retry: retries > 0, gives_up_after: limits.into_iter().flatten().min() })
}

/// A limit above zero; "None" and the like are none.
fn seconds(headers: &HeaderMap, name: &HeaderName) -> Option<Duration> {
    let seconds: f64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok().filter(|limit| !limit.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn read(lines: &[(&'static str, &'static str)]) -> Option<Stainless> {
        let lines = lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        stainless(&lines.collect())
    }

    #[test]
    fn a_client_says_how_often_it_tried_and_how_long_it_waits() {
        assert_eq!(read(&[("x-stainless-read-timeout", "600")]), None);
        for (lines, is_retry, limit_ms) in [
            (&[("x-stainless-retry-count", "0")][..], false, None),
            (
                &[("x-stainless-retry-count", "2"), ("x-stainless-read-timeout", "600")],
                true,
                Some(600_000),
            ),
            (
                &[("x-stainless-retry-count", "1"), ("x-stainless-timeout", "1.5")],
                true,
                Some(1_500),
            ),
            (&[("x-stainless-retry-count", "1"), ("x-stainless-read-timeout", "None")], true, None),
            (&[("x-stainless-retry-count", "1"), ("x-stainless-read-timeout", "-3")], true, None),
            (
                &[("x-stainless-retry-count", "1"), ("x-stainless-read-timeout", "1e300")],
                true,
                None,
            ),
            (&[("x-stainless-retry-count", "1"), ("x-stainless-read-timeout", "0")], true, None),
        ] {
            let gives_up_after = limit_ms.map(Duration::from_millis);
            assert_eq!(read(lines), Some(Stainless { is_retry, gives_up_after }), "{lines:?}");
        }
        for count in ["", "-1", "one", "1, 2", "99999999999"] {
            assert_eq!(read(&[("x-stainless-retry-count", count)]), None, "{count}");
        }
    }
}
