//! `keep_alive` as Ollama reads it: from a request's JSON, and from the environment.
//!
//! The two grammars differ (a bare `"300"` is a fault in JSON, seconds in the environment), so each
//! has its own parser (docs/ollama.md, `keep_alive`). Nothing here decides what foreman does with it.

use super::json::Kind;
use super::text;
use std::time::Duration;

const NANOS_PER_SECOND: f64 = 1e9;

/// How long a model shall stay loaded once idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// Unloads when idle; together with an empty request, unloads at once.
    Zero,
    /// Unloads this long after the last use.
    For(Duration),
    /// Never unloads by itself.
    Forever,
    /// A number of seconds that overflows Ollama's clock into the past: unloads when idle like
    /// [`KeepAlive::Zero`], but an empty request with it loads first.
    Overflow,
}

impl KeepAlive {
    /// Reads nanoseconds of a number that was not negative before it was converted.
    fn from_converted(nanos: i64) -> Self {
        match u64::try_from(nanos) {
            Ok(0) => Self::Zero,
            Ok(nanos) => Self::For(Duration::from_nanos(nanos)),
            Err(_) => Self::Overflow,
        }
    }

    /// Reads nanoseconds of a duration, where below zero means for ever.
    fn from_signed(nanos: i64) -> Self {
        if nanos < 0 { Self::Forever } else { Self::from_converted(nanos) }
    }
}

/// A `keep_alive` that Ollama refuses with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeepAliveFault {
    /// Neither a number nor a string.
    #[error("keep_alive is neither a number nor a duration")]
    Type,
    /// A number that no double can hold.
    #[error("keep_alive is out of range")]
    Range,
    /// A string that is no Go duration, such as `"-1"`, `"1d"` or `""`.
    #[error("keep_alive is not a duration with units")]
    Duration,
}

/// Reads the JSON value of a `keep_alive` member; `None` for `null`, which counts as absent.
///
/// # Errors
///
/// Any [`KeepAliveFault`]: Ollama answers 400 before it looks at the model.
pub fn parse_json(kind: Kind, value: &[u8]) -> Result<Option<KeepAlive>, KeepAliveFault> {
    match kind {
        Kind::Null => Ok(None),
        Kind::Number => {
            let seconds = text::number(value).ok_or(KeepAliveFault::Range)?;
            Ok(Some(if seconds < 0.0 {
                KeepAlive::Forever
            } else {
                KeepAlive::from_converted(text::go_int(seconds * NANOS_PER_SECOND))
            }))
        }
        Kind::String => parse_go_duration(&text::decode(value))
            .map(|nanos| Some(KeepAlive::from_signed(nanos)))
            .ok_or(KeepAliveFault::Duration),
        Kind::Bool | Kind::Object | Kind::Array => Err(KeepAliveFault::Type),
    }
}

/// Reads the form of `OLLAMA_KEEP_ALIVE`: a Go duration, or a whole number of seconds.
///
/// `None` where Ollama would silently take its default, and for seconds that overflow: whoever
/// configures foreman should be told instead.
#[must_use]
pub fn parse_environment(value: &str) -> Option<KeepAlive> {
    const NANOS: i64 = 1_000_000_000;
    let value = value.trim().trim_matches(['"', '\'']);
    let nanos = parse_go_duration(value)
        .or_else(|| value.parse::<i64>().ok().and_then(|seconds| seconds.checked_mul(NANOS)));
    nanos.map(KeepAlive::from_signed)
}

/// Parses what Go's `time.ParseDuration` parses, into nanoseconds: `1h30m`, `-1.5s`, `+.5ms`, `0`.
#[must_use]
pub fn parse_go_duration(text: &str) -> Option<i64> {
    /// The nanoseconds of the lowest duration, without the sign.
    const MAX: u64 = 1 << 63;
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u64 = 0;
    while !rest.is_empty() {
        let part;
        (part, rest) = take_part(rest)?;
        nanos = nanos.checked_add(part).filter(|nanos| *nanos <= MAX)?;
    }
    if is_negative {
        return 0_i64.checked_sub_unsigned(nanos);
    }
    i64::try_from(nanos).ok()
}

/// Takes one number with its unit off the front and returns its nanoseconds.
fn take_part(text: &str) -> Option<(u64, &str)> {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = text.split_at(digits(text));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let unit_end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit_end);
    let unit = unit_nanos(unit)?;
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    Some((whole.checked_mul(unit)?.checked_add(fraction_nanos(fraction, unit))?, rest))
}

/// The nanoseconds of the digits behind the point, in floating point as Go computes them: `0.333…h`
/// is 20 minutes there, not a nanosecond less.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a fraction of a unit is between 0 and the 3.6e12 nanoseconds of an hour"
)]
fn fraction_nanos(digits: &str, unit: u64) -> u64 {
    /// Go ignores digits once the number would leave 63 bits.
    const MAX: u64 = 1 << 63;
    let (mut value, mut scale) = (0_u64, 1.0);
    for digit in digits.bytes().map(|byte| u64::from(byte - b'0')) {
        let Some(next) = value.checked_mul(10).map(|tens| tens + digit).filter(|n| *n <= MAX)
        else {
            break;
        };
        value = next;
        scale *= 10.0;
    }
    (value as f64 * (unit as f64 / scale)) as u64
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        // Both code points that Unicode has for the sign.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(value: &str) -> Result<Option<KeepAlive>, KeepAliveFault> {
        let kind = match value.as_bytes()[0] {
            b'"' => Kind::String,
            b'n' => Kind::Null,
            b't' | b'f' => Kind::Bool,
            b'{' => Kind::Object,
            b'[' => Kind::Array,
            _ => Kind::Number,
        };
        parse_json(kind, value.as_bytes())
    }

    fn millis(millis: u64) -> KeepAlive {
        KeepAlive::For(Duration::from_millis(millis))
    }

    /// The table of docs/ollama.md, `keep_alive`, row by row.
    #[test]
    fn json_values_mean_what_they_mean_to_ollama() {
        assert_eq!(json("null"), Ok(None));
        for (value, expected) in [
            ("0.5", millis(500)),
            ("300", millis(300_000)),
            ("-1", KeepAlive::Forever),
            ("-0.5", KeepAlive::Forever),
            ("0", KeepAlive::Zero),
            ("\"0\"", KeepAlive::Zero),
            ("\"0s\"", KeepAlive::Zero),
            ("-0.0", KeepAlive::Zero),
            ("1e-10", KeepAlive::Zero),
            ("\"5m\"", millis(300_000)),
            ("\"1h30m\"", millis(5_400_000)),
            (r#""24\u0068""#, millis(86_400_000)),
            ("\"-1m\"", KeepAlive::Forever),
            ("\"-1s\"", KeepAlive::Forever),
            ("9223372036", millis(9_223_372_036_000)),
            ("9223372037", KeepAlive::Overflow),
            ("1e300", KeepAlive::Overflow),
        ] {
            assert_eq!(json(value), Ok(Some(expected)), "{value}");
        }
        for value in ["\"-1\"", "\"5\"", "\"\"", "\"1d\"", "\"forever\"", "\" 5m\"", "\"5m \""] {
            assert_eq!(json(value), Err(KeepAliveFault::Duration), "{value}");
        }
        for value in ["true", "{}", "[]"] {
            assert_eq!(json(value), Err(KeepAliveFault::Type), "{value}");
        }
        assert_eq!(json("1e999"), Err(KeepAliveFault::Range));
    }

    #[test]
    fn the_environment_also_takes_bare_seconds() {
        assert_eq!(parse_environment("-1"), Some(KeepAlive::Forever));
        assert_eq!(parse_environment(" \"300\" "), Some(millis(300_000)));
        assert_eq!(parse_environment("0"), Some(KeepAlive::Zero));
        assert_eq!(parse_environment("1h"), Some(millis(3_600_000)));
        for junk in ["", "1d", "forever", "0.5", "9223372037"] {
            assert_eq!(parse_environment(junk), None, "{junk}");
        }
    }

    #[test]
    fn go_durations_parse_as_in_go() {
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("1.5h", 5_400_000_000_000),
            ("+.5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("3us4\u{b5}s5\u{3bc}s6ns", 12_006),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("0.100000000000000000000h", 360_000_000_000),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("-2562047h47m16.854775808s", i64::MIN),
        ] {
            assert_eq!(parse_go_duration(text), Some(nanos), "{text}");
        }
        for text in ["", "3", "-", "s", ".", "-.", ".s", "+.s", "1d", "1h1", "--1s", "\u{ff11}s"]
            .into_iter()
            .chain(["9223372036854775808ns", "-9223372036854775809ns", "3000000h", "1 s"])
        {
            assert_eq!(parse_go_duration(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "[-+0-9.hmsnuµd ]{0,40}") {
            let from_environment = parse_environment(&text);
            if let Some(nanos) = parse_go_duration(&text) {
                prop_assert_eq!(from_environment, Some(KeepAlive::from_signed(nanos)));
            }
        }
    }
}
