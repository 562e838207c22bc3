//! Looking at one job, at once or when it has ended.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH};
use hyper::{Request, StatusCode};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;

use crate::domain::job::JobId;
use crate::store::Sought;

use super::super::forecast::forecast;
use super::super::prefer::preferences;
use super::super::problem::Problem;
use super::super::query;
use super::super::{Edge, Response};
use super::object::{Details, whole};
use super::{document, there, unread};

/// Jobs counted before one in its lane; a place beyond it is not told.
const AHEAD_MAX: u32 = 10_000;

/// `GET /jobs/{id}`.
pub(super) async fn job(
    edge: &Edge,
    id: JobId,
    request: &Request<Incoming>,
) -> Result<Response, Problem> {
    let wait = query::read(request.uri().query(), |given| given.wait("wait"))?;
    let wait = wait.or(preferences(request.headers()).wait).filter(|wait| !wait.is_zero());
    if let Some(wait) = wait {
        wait_for_end(edge, id, wait).await;
    }
    let object = object(edge, id).await?;
    let tag = tag(&object);
    let is_known = request.headers().get_all(IF_NONE_MATCH).iter().any(|known| {
        known.to_str().is_ok_and(|known| known.split(',').any(|one| is_tag(one.trim(), &tag)))
    });
    let mut response = match is_known {
        true => super::text(StatusCode::NOT_MODIFIED, "application/json; charset=utf-8", ""),
        false => document(StatusCode::OK, &object),
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    // A cache may keep it, but has to ask each time.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// Whether what a client knows is this version: compared weakly, as RFC 9110, 13.1.2 asks, or any.
fn is_tag(known: &str, tag: &str) -> bool {
    known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
}

/// Changes with every change of the object. `estimated_start` moves by itself, so it does not count.
fn tag(object: &Value) -> String {
    let mut counted = object.clone();
    if let Some(members) = counted.as_object_mut() {
        members.remove("estimated_start");
    }
    let hash = crate::ollama::wire::canonical::fingerprint(&[counted.to_string().as_bytes()]);
    let digits: String = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{digits}\"")
}

/// The job object.
pub(super) async fn object(edge: &Edge, id: JobId) -> Result<Value, Problem> {
    let sought = edge.store.job(id).await.map_err(|fault| unread(edge, &fault))?;
    let (job, attempts) = there(id, sought)?;
    let forecast = forecast(edge, &job, AHEAD_MAX).await;
    let (result, artifacts) = super::output::completion_of(edge, &job).await?;
    let details = Details { attempts, forecast, result, artifacts };
    Ok(whole(&job, &details, edge.clock.now_ms()))
}

/// Returns when the job has ended, is not there, after that time, or when the daemon stops.
pub(super) async fn wait_for_end(edge: &Edge, id: JobId, wait: Duration) {
    let ended = async {
        // Before the look: what happens after it is not missed.
        let mut events = edge.store.subscribe();
        loop {
            match edge.store.job(id).await {
                Ok(Sought::There((job, _))) if !job.state.is_final() => (),
                _ => return,
            }
            loop {
                match events.recv().await {
                    Ok(event) if event.id == id && event.to.is_final() => return,
                    Ok(_) => (),
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                }
            }
        }
    };
    tokio::select! {
        () = ended => (),
        () = tokio::time::sleep(wait) => (),
        () = edge.tasks.draining() => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_known_by_its_tag_however_it_is_told() {
        for (known, wanted) in
            [("\"a\"", true), ("W/\"a\"", true), ("*", true), ("\"b\"", false), ("a", false)]
        {
            assert_eq!(is_tag(known, "\"a\""), wanted, "{known}");
        }
    }
}
