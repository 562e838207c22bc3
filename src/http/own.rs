//! Foreman's own surface: health, readiness, status, and the trace of what ran.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response as HttpResponse, StatusCode};
use serde_json::{Value, json};

use crate::domain::route::Own;
use crate::ollama::client::full_body;
use crate::store::{READERS, StoreError};

use super::caller::Caller;
use super::{Edge, Response, status, trace};

/// Status documents and traces made at once: one reader fewer than the store has.
pub(super) const STATUS_AT_ONCE: usize = READERS - 1;

/// Answers a request to foreman itself.
pub(super) async fn answer(edge: &Arc<Edge>, own: Own, request: &Request<Incoming>) -> Response {
    let caller = Caller::of(request.extensions());
    let (code, kind, text) = match own {
        Own::Health => document(StatusCode::OK, &health(edge)),
        Own::Ready => {
            let (code, value) = ready(edge);
            document(code, &value)
        }
        Own::Status => match status_in_turn(edge, &caller).await {
            Ok(value) => document(StatusCode::OK, &value),
            Err(fault) => unread(&fault, "the status"),
        },
        // It shows what everybody runs, and when.
        Own::Trace if caller.sees_only().is_some() => {
            document(StatusCode::FORBIDDEN, &json!({ "error": ADMINS_ONLY }))
        }
        Own::Trace => match trace::last(request.uri().query()) {
            Err(allowed) => document(StatusCode::BAD_REQUEST, &json!({ "error": allowed })),
            Ok(last) => match trace_in_turn(edge, last).await {
                Ok(text) => (StatusCode::OK, NDJSON, text),
                Err(fault) => unread(&fault, "the trace"),
            },
        },
    };
    let body = if request.method() == Method::HEAD { String::new() } else { text };
    let mut response = HttpResponse::new(full_body(Bytes::from(body)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

const ADMINS_ONLY: &str = "the trace is for keys with is_admin; it is the jobs of everybody";

const JSON: &str = "application/json; charset=utf-8";
const NDJSON: &str = "application/x-ndjson";

fn document(code: StatusCode, value: &Value) -> (StatusCode, &'static str, String) {
    (code, JSON, format!("{value}\n"))
}

fn unread(fault: &StoreError, what: &str) -> (StatusCode, &'static str, String) {
    tracing::error!(db.error = %fault, "{what} could not be read");
    let text = "the database does not answer; try again";
    document(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": text }))
}

/// The trace, when it is this asker's turn.
async fn trace_in_turn(edge: &Edge, last: usize) -> Result<String, StoreError> {
    let _place = edge.status_places.acquire().await.map_err(|_| StoreError::Closed)?;
    trace::trace(edge, last).await
}

/// The status document, when it is this asker's turn.
async fn status_in_turn(edge: &Edge, caller: &Caller) -> Result<Value, StoreError> {
    let _place = edge.status_places.acquire().await.map_err(|_| StoreError::Closed)?;
    status::status(edge, caller).await
}

/// 200 while the process serves; `degraded` while the upstream does not.
fn health(edge: &Edge) -> Value {
    json!({
        "status": "ok",
        "service": "foreman",
        "instance": edge.instance,
        "version": env!("CARGO_PKG_VERSION"),
        "degraded": !edge.health.is_up(),
    })
}

/// 200 while it can take work: it is not stopping, and there is room on the disk. An upstream that is away does not keep work from being taken.
fn ready(edge: &Edge) -> (StatusCode, Value) {
    if edge.tasks.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, json!({ "ready": false, "reason": "stopping" }));
    }
    if !edge.store.has_room() {
        return (StatusCode::SERVICE_UNAVAILABLE, json!({ "ready": false, "reason": "disk full" }));
    }
    (StatusCode::OK, json!({ "ready": true, "upstream_up": edge.health.is_up() }))
}
