//! A body of `POST /jobs`, and the same as one of `POST /jobs/batch`.
#![expect(clippy::panic, reason = "a broken promise must end the run")]

use bytes::Bytes;

use crate::domain::dialect::Dialect;
use crate::ollama::wire::fuzz::naive::{self, Pair, Read, Value};
use crate::ollama::wire::peek::{Peek, Shape, peek};
use crate::webhook::check_url;

use super::super::prefer::check_key;
use super::super::problem::Problem;
use super::super::submission::{Rejection, Submission, parse, split};

/// 2026-11-24: what times are judged against.
const NOW_MS: i64 = 1_795_521_600_000;

/// Foreman's fields beside a request.
const FIELDS: [&str; 6] =
    ["state_webhook_url", "priority", "run_at", "deadline", "metadata", "idempotency_key"];

/// Items of a batch that are looked at.
const ITEMS_MAX: usize = 20;

/// Bytes of one pointer with all that may be escaped, and of the names that may stand around it.
const POINTER_BYTES_MAX: usize = 2_000;

/// Submissions.
///
/// # Panics
/// Where a job's body is anything but the request without foreman's fields, where a field is taken that was not given, and
/// where a refusal does not tell what is wrong.
pub fn submission(input: &[u8]) {
    let body = Bytes::copy_from_slice(input);
    one(&body);
    if let Ok(items) = split(&body) {
        for item in items.iter().take(ITEMS_MAX) {
            assert!(memchr::memmem::find(&body, item).is_some());
            one(item);
        }
    }
}

fn one(body: &Bytes) {
    let seen = naive::read(body);
    let is_json = match &seen {
        Read::Value(_, rest) => Some(naive::is_blank(rest)),
        Read::Blank | Read::Truncated | Read::Malformed => Some(false),
        Read::TooDeep => None,
    };
    match parse(body, NOW_MS) {
        Ok(submission) => match seen {
            Read::Value(Value::Object(pairs), _) => is_right(&submission, &pairs),
            Read::TooDeep => {}
            other => panic!("a submission out of {other:?}"),
        },
        Err(Rejection::NotJson(wrong)) => {
            assert!(is_json != Some(true), "{wrong}: it is JSON");
            assert!(wrong.line >= 1 && wrong.column >= 1);
        }
        Err(Rejection::Invalid(faults)) => {
            assert!(is_json != Some(false) && !faults.is_empty());
            for fault in &faults {
                let pointer = &fault.pointer;
                assert!(pointer.is_empty() || pointer.starts_with('/'), "{pointer}");
                assert!(pointer.len() < POINTER_BYTES_MAX && !fault.detail.is_empty());
            }
            let problem = Problem::from(Rejection::Invalid(faults));
            assert!(serde_json::to_vec(&problem).is_ok());
        }
    }
}

fn is_right(submission: &Submission, pairs: &[Pair<'_>]) {
    let given = |name: &str| pairs.iter().find(|pair| pair.is(name)).map(|pair| pair.value);
    let wanted: Vec<Pair<'_>> = match given("endpoint") {
        None => {
            let is_ollamas = |pair: &&Pair<'_>| FIELDS.iter().all(|name| !pair.is(name));
            pairs.iter().filter(is_ollamas).cloned().collect()
        }
        Some(_) => match naive::read(given("body").unwrap_or_default()) {
            Read::Value(Value::Object(pairs), b"") => pairs,
            other => panic!("a body out of {other:?}"),
        },
    };
    match naive::read(&submission.body) {
        Read::Value(Value::Object(pairs), rest) => {
            assert_eq!(pairs, wanted, "the job's body");
            assert!(naive::is_blank(rest));
        }
        other => panic!("a job's body is {other:?}"),
    }
    let shape = match submission.dialect {
        Dialect::Chat => Shape::Chat,
        Dialect::Generate => Shape::Generate,
        _ => Shape::V1,
    };
    assert_eq!(peek(shape, &submission.body), Peek::Request(submission.request.clone()));
    let text = |name: &str| given(name).filter(|value| *value != b"null").map(naive::text);
    assert_eq!(submission.idempotency_key, text("idempotency_key"));
    assert_eq!(
        submission.webhook.as_ref().map(|webhook| webhook.url.clone()),
        text("state_webhook_url")
    );
    assert_eq!(submission.class.name(), text("priority").unwrap_or("normal".to_owned()));
    assert!(submission.idempotency_key.as_deref().is_none_or(|key| check_key(key).is_ok()));
    assert!(submission.webhook.as_ref().is_none_or(|webhook| check_url(&webhook.url).is_ok()));
    assert!(submission.deadline_ms.is_none_or(|deadline| deadline > NOW_MS));
    assert_eq!(submission.run_at_ms.is_some(), text("run_at").is_some());
    if let Some(metadata) = &submission.metadata {
        let read = serde_json::from_str::<serde_json::Value>(metadata);
        let wanted = serde_json::from_slice(given("metadata").unwrap_or_default());
        assert!(
            read.is_ok_and(|read| wanted.is_ok_and(|wanted: serde_json::Value| wanted == read))
        );
    }
}
