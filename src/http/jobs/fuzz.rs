//! Fuzz target of the paths and queries of foreman's own routes. Called by `crate::fuzz` only.

use hyper::Method;

use crate::domain::job::JobId;

use super::super::caller::Caller;
use super::super::prefer::WAIT_MAX;
use super::super::problem::{Code, Problem};
use super::super::query;
use super::list::filter;
use super::target::Target;

/// The longest detail: names and values are told short, but there may be dozens of them.
const DETAIL_BYTES_MAX: usize = 100_000;

/// The largest page of a list.
const LIMIT_MAX: u32 = 100;

/// A target as in a request line: a path, `?` and a query.
///
/// # Panics
/// Where a value is taken that is out of range, where a parameter is lost without a word, and where a refusal grows with what
/// came.
pub fn route(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::PUT] {
        match Target::of(path, &method) {
            // An id may come in small letters.
            Ok(Target::Job(id)) => {
                let last = path.rsplit('/').next().unwrap_or_default();
                assert_eq!(last.parse().ok(), Some(id), "{path}");
            }
            Ok(_) => {}
            Err(problem) => is_short(&problem, input),
        }
    }
    let read = query::read(query, |given| {
        let limit = given.limit("limit", LIMIT_MAX);
        assert!(limit.is_none_or(|limit| (1..=LIMIT_MAX).contains(&limit)));
        let wait = given.wait("wait");
        assert!(wait.is_none_or(|wait| wait <= WAIT_MAX));
        let after = given.parsed::<JobId>("after", "the id of a job");
        let filter = filter(given, &Caller::anybody());
        assert!(filter.states.len() <= 8 && filter.model.as_deref() != Some(""));
        (limit, wait, after, filter)
    });
    let names: Vec<String> = form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .map(|(name, _)| name.into_owned())
        .collect();
    match read {
        Ok((limit, wait, after, filter)) => {
            let taken = [
                limit.is_some(),
                wait.is_some(),
                after.is_some(),
                !filter.states.is_empty(),
                filter.model.is_some(),
                filter.class.is_some(),
                filter.is_async.is_some(),
                filter.created_after_ms.is_some(),
                filter.created_before_ms.is_some(),
            ];
            let taken = taken.into_iter().filter(|is_taken| *is_taken).count();
            assert_eq!(taken, names.len(), "a parameter is lost: {names:?}");
        }
        Err(problem) => {
            assert_eq!(problem.code, Code::MalformedParameter);
            is_short(&problem, input);
        }
    }
}

fn is_short(problem: &Problem, input: &[u8]) {
    assert!(problem.detail.len() < DETAIL_BYTES_MAX.min(10 * input.len() + 1_000));
    assert!(serde_json::to_vec(problem).is_ok());
}
