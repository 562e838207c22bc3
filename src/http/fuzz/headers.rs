//! Header lines: what crosses, what is kept, and what is read of them.
#![expect(clippy::panic, reason = "a broken promise must end the run")]

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};

use crate::guard::{Admission, Guard};
use crate::store::fuzz::kept;

use super::super::headers::{Credentials, for_upstream, from_list, to_list, token};
use super::super::prefer::{WAIT_MAX, check_key, idempotency_key, preferences};
use super::super::whom::class;

/// More lines than a server or a client takes.
const LINES_MAX: usize = 200;

/// What never crosses, with the names that `Connection` adds and those of foreman's own.
const NEVER: [&str; 13] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "origin",
    "expect",
    "content-length",
];

/// Lines as in a request's head. Those that HTTP does not allow are left out.
///
/// # Panics
/// Where something crosses or stays that must not, where the store changes a line, and where a key, a class or a wait is read
/// that is not there.
pub fn headers(input: &[u8]) {
    let mut lines: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for line in input.split(|byte| *byte == b'\n').take(LINES_MAX) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            lines.push((name, value));
        }
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &lines {
        headers.append(name, value.clone());
    }
    let list = to_list(&headers);
    assert_eq!(from_list(&list), headers);
    assert_eq!(kept(&list), Some(list));
    crosses(&lines, &headers);
    says(&lines, &headers);
    is_let_in(&headers);
}

/// Compares what crosses with the lines that are neither foreman's nor this connection's.
fn crosses(lines: &[(HeaderName, HeaderValue)], headers: &HeaderMap) {
    let named: Vec<String> = lines
        .iter()
        .filter(|(name, _)| name == "connection")
        .flat_map(|(_, value)| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    for credentials in [Credentials::Foremans, Credentials::Upstreams] {
        let mut wanted = HeaderMap::new();
        for (name, value) in lines {
            let text = name.as_str();
            let is_token = text == "authorization" || text == "x-api-key";
            let stays = NEVER.contains(&text)
                || text.starts_with("x-foreman-")
                || named.iter().any(|named| named == text)
                || (is_token && credentials == Credentials::Foremans);
            if !stays {
                wanted.append(name, value.clone());
            }
        }
        let mut crossed = headers.clone();
        for_upstream(&mut crossed, credentials);
        assert_eq!(crossed, wanted);
    }
}

/// Compares what is read of the lines with the lines.
fn says(lines: &[(HeaderName, HeaderValue)], headers: &HeaderMap) {
    let of = |wanted: &str| -> Vec<&[u8]> {
        let lines = lines.iter().filter(|(name, _)| name == wanted);
        lines.map(|(_, value)| value.as_bytes()).collect()
    };
    if let Some(token) = token(headers) {
        let is_there = |value: &&[u8]| value.ends_with(token);
        assert!(of("authorization").iter().chain(&of("x-api-key")).any(is_there));
    }
    let priority = of("x-foreman-priority");
    match class(headers) {
        Ok(class) => match priority.as_slice() {
            [] => {}
            [given] => assert!(given.eq_ignore_ascii_case(class.name().as_bytes())),
            several => panic!("{} priorities are one", several.len()),
        },
        Err(told) => assert!(!priority.is_empty() && told.text.len() < 1_000, "{}", told.text),
    }
    let preferences = preferences(headers);
    assert!(preferences.wait.is_none_or(|wait| wait <= WAIT_MAX));
    let is_said = |word: &[u8]| {
        of("prefer")
            .iter()
            .any(|line| memchr::memmem::find(&line.to_ascii_lowercase(), word).is_some())
    };
    assert!(!preferences.is_async || is_said(b"respond-async"));
    assert!(preferences.wait.is_none() || is_said(b"wait"));
    match (idempotency_key(headers), of("idempotency-key").as_slice()) {
        (Ok(None), given) => assert!(given.is_empty(), "a key is lost"),
        (Ok(Some(key)), given) => {
            assert!(given.len() == 1 && check_key(&key).is_ok());
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            let mut again = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_str(&quoted) {
                again.insert("idempotency-key", value);
            }
            assert_eq!(idempotency_key(&again), Ok(Some(key)));
        }
        (Err(_), given) => assert!(!given.is_empty()),
    }
}

/// A daemon on loopback: a foreign name is not let in, whatever stands beside it.
fn is_let_in(headers: &HeaderMap) {
    let guard = Guard::new(([127, 0, 0, 1], 11_435).into(), "box".to_owned(), "");
    let target = Uri::from_static("/api/chat");
    let hosts: Vec<&HeaderValue> = headers.get_all("host").iter().collect();
    if let Admission::Pass(_) = guard.admit(&Method::POST, headers, &target) {
        assert!(hosts.len() <= 1, "several hosts");
        assert!(hosts.first().is_none_or(|host| *host != "evil.example"));
    }
    let mut foreign = headers.clone();
    foreign.remove("host");
    foreign.insert("host", HeaderValue::from_static("evil.example:11435"));
    let told = guard.admit(&Method::POST, &foreign, &target);
    assert!(matches!(told, Admission::Refuse(_)), "let in: {told:?}");
}
