//! What a client says in headers about how it wants to be served: `Prefer` (RFC 7240) and `Idempotency-Key`.
//!
//! A preference that cannot be understood is ignored, as the RFC asks; a key that cannot is an error, because a request
//! without its key would be done twice.

use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::problem::{Code, Problem};

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The header of a key; lower case.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Characters of an idempotency key; clients send UUIDs, or a name and a number.
pub const KEY_LENGTH_MAX: usize = 255;

/// The longest wait for a job to end: what proxies and clients still take for one answer.
pub const WAIT_MAX: Duration = Duration::from_mins(5);

/// What of `Prefer` foreman knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preferences {
    /// `respond-async`: take the job, and answer at once.
    pub is_async: bool,
    /// `wait=N`: answer within that time; at most [`WAIT_MAX`].
    pub wait: Option<Duration>,
}

/// Reads all `Prefer` lines. Of a preference that comes twice the first counts.
#[must_use]
pub fn preferences(headers: &HeaderMap) -> Preferences {
    let mut found = Preferences::default();
    let mut has_wait = false;
    for line in headers.get_all(PREFER) {
        for preference in split(line.as_bytes(), b',') {
            // What stands behind a semicolon are parameters; those two have none.
            let Some(preference) = split(preference, b';').next() else { continue };
            let (name, value) = named(preference);
            if name.eq_ignore_ascii_case(b"respond-async") && value.is_empty() {
                found.is_async = true;
            } else if name.eq_ignore_ascii_case(b"wait") && !has_wait {
                has_wait = true;
                found.wait = seconds(&value).map(|wait| wait.min(WAIT_MAX));
            }
        }
    }
    found
}

/// Reads `Idempotency-Key`: a structured string (`"a key"`, with `\"` and `\\`) or the bare key.
///
/// # Errors
/// `malformed-header` for anything but one key of 1 to 255 printable ASCII characters.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut lines = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(first) = lines.next() else { return Ok(None) };
    let key = match lines.next() {
        Some(_) => Err("comes more than once"),
        None => key_of(first),
    };
    key.map(Some).map_err(|fault| {
        let text = format!("Idempotency-Key {fault}; nothing was stored");
        Problem::new(Code::MalformedHeader, text)
    })
}

/// Whether `key` can be an idempotency key; used for the header and for the field of a job.
///
/// # Errors
/// What is wrong with it.
pub fn check_key(key: &str) -> Result<(), &'static str> {
    if key.is_empty() || key.len() > KEY_LENGTH_MAX {
        return Err("must have 1 to 255 characters");
    }
    match key.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        true => Ok(()),
        false => Err("must be printable ASCII"),
    }
}

fn key_of(line: &HeaderValue) -> Result<String, &'static str> {
    let line = line.as_bytes().trim_ascii();
    let key = match line.strip_prefix(b"\"") {
        Some(quoted) => unescaped(quoted).ok_or("is no string: its quotes or escapes are wrong")?,
        None => line.to_vec(),
    };
    let key = String::from_utf8(key).map_err(|_| "must be printable ASCII")?;
    check_key(&key)?;
    Ok(key)
}

/// The content of a structured string (RFC 9651, 3.3.3), given without its first quote.
fn unescaped(quoted: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    loop {
        match bytes.next()? {
            b'"' => return bytes.next().is_none().then_some(text),
            b'\\' => text.push(*bytes.next().filter(|byte| matches!(byte, b'"' | b'\\'))?),
            byte => text.push(*byte),
        }
    }
}

/// The parts of a header between separators that are not inside quotes.
fn split(mut rest: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let (mut is_quoted, mut is_escaped) = (false, false);
        let end = rest.iter().position(|byte| {
            let was_escaped = std::mem::replace(&mut is_escaped, false);
            match byte {
                _ if was_escaped => {}
                b'\\' if is_quoted => is_escaped = true,
                b'"' => is_quoted = !is_quoted,
                byte => return *byte == separator && !is_quoted,
            }
            false
        });
        let part = &rest[..end.unwrap_or(rest.len())];
        match end {
            Some(end) => rest = &rest[end + 1..],
            None => is_over = true,
        }
        Some(part.trim_ascii())
    })
}

/// A preference's name and value; an empty value is none.
fn named(preference: &[u8]) -> (&[u8], Vec<u8>) {
    let Some(equals) = preference.iter().position(|byte| *byte == b'=') else {
        return (preference, Vec::new());
    };
    let (name, value) = (preference[..equals].trim_ascii(), preference[equals + 1..].trim_ascii());
    let quoted = value.strip_prefix(b"\"").and_then(unescaped);
    (name, quoted.unwrap_or_else(|| value.to_vec()))
}

fn seconds(digits: &[u8]) -> Option<Duration> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // More digits than a number has are a very long wait.
    let seconds = str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX);
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(name: &HeaderName, lines: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name.clone(), HeaderValue::from_bytes(line).unwrap());
        }
        headers
    }

    #[test]
    fn preferences_are_read_from_any_number_of_lines() {
        for (lines, is_async, wait_s) in [
            (&[][..], false, None),
            (&["respond-async"], true, None),
            (&["Respond-Async, WAIT=10"], true, Some(10)),
            (&["foo; bar=\"a, respond-async\"", "wait = \"7\" ; x"], false, Some(7)),
            (&["return=minimal", "respond-async;q=1"], true, None),
            (&["respond-async=\"\", wait=0"], true, Some(0)),
            (&["respond-async=1"], false, None),
            (&["wait=3, wait=4", "wait=5"], false, Some(3)),
            (&["wait=soon, wait=4"], false, None),
            (&["wait=-1"], false, None),
            (&["wait=99999999999999999999999"], false, Some(300)),
            (&["a=\"\\\", wait=1", ",,;=, respond-async"], true, None),
        ] {
            let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
            let wait = wait_s.map(Duration::from_secs);
            let found = preferences(&headers(&PREFER, &lines));
            assert_eq!(found, Preferences { is_async, wait }, "{lines:?}");
        }
    }

    #[test]
    fn a_key_is_a_string_or_bare() {
        let read = |line: &[u8]| idempotency_key(&headers(&IDEMPOTENCY_KEY, &[line]));
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
        let longest = "k".repeat(KEY_LENGTH_MAX);
        for (line, key) in [
            ("\"8e03978e-40d5\"", "8e03978e-40d5"),
            (" bare key ", "bare key"),
            (r#""a \" and \\ b""#, r#"a " and \ b"#),
            (r#"a"b"#, r#"a"b"#),
            (&longest, &longest),
        ] {
            assert_eq!(read(line.as_bytes()).unwrap().as_deref(), Some(key), "{line}");
        }
        let (long, quoted) = ("k".repeat(256), format!("\"{}\"", "\\\"".repeat(256)));
        for line in
            ["", "\"\"", "\"a", "\"a\"b", r#""\a""#, "\"", "\"\\", "é", "a\tb", &long, &quoted]
        {
            let problem = read(line.as_bytes()).unwrap_err();
            assert_eq!(problem.code, Code::MalformedHeader, "{line}");
            assert!(problem.detail.starts_with("Idempotency-Key "));
        }
        assert!(read(b"\xff").is_err());
        let twice = headers(&IDEMPOTENCY_KEY, &[b"a", b"a"]);
        assert!(idempotency_key(&twice).unwrap_err().detail.contains("more than once"));
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_a_panic(line in "[ -~\u{e9}]{0,40}") {
            let bytes = line.as_bytes();
            let _found = preferences(&headers(&PREFER, &[bytes]));
            if let Ok(Some(key)) = idempotency_key(&headers(&IDEMPOTENCY_KEY, &[bytes])) {
                prop_assert!(check_key(&key).is_ok());
            }
        }

        #[test]
        fn a_key_that_is_written_as_a_string_is_read_back(key in "[ -~]{1,255}") {
            let escaped = key.replace('\\', "\\\\").replace('"', "\\\"");
            let found = idempotency_key(&headers(&IDEMPOTENCY_KEY, &[format!("\"{escaped}\"").as_bytes()]));
            prop_assert_eq!(found.unwrap().unwrap(), key);
        }
    }
}
