//! The list of jobs, newest first, by filters and a cursor.

use hyper::StatusCode;
use hyper::header::{HeaderValue, LINK};
use serde_json::{Value, json};

use crate::domain::job::JobId;
use crate::store::{Filter, Sought};

use super::super::problem::Problem;
use super::super::query::{self, Parameters};
use super::super::{Edge, Response};
use super::object::listed;
use super::{document, there, unread};

const LIMIT_DEFAULT: u32 = 20;
const LIMIT_MAX: u32 = 100;

/// `GET /jobs`.
pub(super) async fn list(edge: &Edge, query: Option<&str>) -> Result<Response, Problem> {
    let (filter, after, limit) = query::read(query, |given| {
        let limit = given.limit("limit", LIMIT_MAX).unwrap_or(LIMIT_DEFAULT);
        (filter(given), given.parsed::<JobId>("after", "the id of a job"), limit)
    })?;
    if let Some(after) = after {
        // A cursor that is gone must not begin again at the newest.
        let sought: Sought<_> =
            edge.store.job(after).await.map_err(|fault| unread(edge, &fault))?;
        there(after, sought)?;
    }
    let jobs_max = usize::try_from(limit).unwrap_or(usize::MAX);
    let page =
        edge.store.list(filter, after, jobs_max).await.map_err(|fault| unread(edge, &fault))?;
    let now_ms = edge.clock.now_ms();
    let data: Vec<Value> = page.jobs.iter().map(|job| listed(job, now_ms)).collect();
    let id = |job: Option<&crate::store::JobView>| job.map(|job| job.id.to_string());
    let last_id = id(page.jobs.last());
    let mut response = document(
        StatusCode::OK,
        &json!({
            "object": "list",
            "data": data,
            "first_id": id(page.jobs.first()),
            "last_id": last_id,
            "has_more": page.has_more,
        }),
    );
    if let Some(last_id) = last_id.filter(|_| page.has_more) {
        let next = next_page(query, &last_id);
        if let Ok(link) = HeaderValue::from_str(&format!("<{next}>; rel=\"next\"")) {
            response.headers_mut().insert(LINK, link);
        }
    }
    Ok(response)
}

/// The filters of a list.
pub(super) fn filter(given: &mut Parameters<'_>) -> Filter {
    Filter {
        states: given.states("state").unwrap_or_default(),
        model: given.text("model"),
        class: given.class("priority"),
        is_async: given.flag("is_async"),
        created_after_ms: given.time_ms("created_after"),
        created_before_ms: given.time_ms("created_before"),
    }
}

/// The same question behind that job.
fn next_page(query: Option<&str>, last_id: &str) -> String {
    let kept = query
        .unwrap_or_default()
        .split('&')
        .filter(|part| !part.is_empty() && !part.starts_with("after="));
    let after = format!("after={last_id}");
    let parts: Vec<&str> = kept.chain([after.as_str()]).collect();
    format!("/jobs?{}", parts.join("&"))
}
