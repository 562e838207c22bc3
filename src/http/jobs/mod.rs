//! Foreman's asynchronous surface (docs/jobs.md): which path and method means what, and the answers of each. Errors are
//! problems (RFC 9457).
//!
//! The handlers speak to the store and to the outputs; nothing here waits for Ollama or for the worker.

mod act;
mod batch;
mod deliveries;
mod events;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod list;
mod look;
mod object;
mod output;
mod submit;
mod target;

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response as HttpResponse, StatusCode};
use serde_json::Value;

use crate::domain::job::JobId;
use crate::ollama::client::{empty_body, full_body};
use crate::store::{Sought, StoreError};

use super::caller::Caller;
use super::problem::{Code, Problem};
use super::{Edge, Response, body};

pub(super) use submit::{Native, respond_async};
use target::Target;

/// Large answers folded at once: enough that one does not hold the next up, few enough that a crowd asking for answers of
/// 256 MiB does not take the memory away.
pub(super) const FOLDS_AT_ONCE: usize = 2;

/// When to try again after a fault of the database.
const STORE_RETRY_S: u64 = 5;

/// The description of foreman's own routes.
const OPENAPI: &str = include_str!("../../../docs/openapi.json");

/// Answers a request to the asynchronous surface.
pub(super) async fn answer(edge: &Arc<Edge>, request: Request<Incoming>) -> Response {
    let target = match Target::of(request.uri().path(), request.method()) {
        Ok(target) => target,
        Err(problem) => {
            body::linger_over(edge, request);
            return problem.answer();
        }
    };
    let is_head = request.method() == Method::HEAD;
    let served = match *request.method() {
        Method::POST | Method::DELETE => {
            let serving = edge.to_the_end(serve(Arc::clone(edge), target, request));
            serving.await.unwrap_or_else(|| Err(died()))
        }
        // Who only asked takes the question along.
        _ => serve(Arc::clone(edge), target, request).await,
    };
    let mut response = served.unwrap_or_else(|problem| problem.answer());
    if is_head {
        *response.body_mut() = empty_body();
    }
    response
}

async fn serve(
    edge: Arc<Edge>,
    target: Target,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    let edge = &edge;
    let caller = Caller::of(request.extensions());
    if let Err(problem) = require_seen(edge, &caller, &target).await {
        body::linger_over(edge, request);
        return Err(problem);
    }
    match target {
        Target::Submit => submit::submit(edge, request).await,
        Target::SubmitMany => batch::submit_many(edge, request).await,
        Target::List => list::list(edge, &caller, request.uri().query()).await,
        Target::Job(id) => look::job(edge, id, &request).await,
        Target::Output(id) => output::output(edge, id, &request).await,
        Target::Artifact(id, name) => {
            output::artifact(edge, id, &name, request.uri().query()).await
        }
        Target::Request(id) => output::request(edge, id, request.uri().query()).await,
        Target::JobEvents(id) => events::of_job(edge, id, &request).await,
        Target::Events => events::all(edge, &request).await,
        Target::Cancel(id) => act::cancel(edge, id, request).await,
        Target::Retry(id) => act::retry(edge, id, request).await,
        Target::Delete(id) => act::delete(edge, id, request).await,
        Target::RetryMany => act::retry_many(edge, request).await,
        Target::PurgeMany => act::purge_many(edge, request).await,
        Target::Deliveries(of) => deliveries::list(edge, &caller, of, request.uri().query()).await,
        Target::Resend(event) => deliveries::resend(edge, event, request).await,
        Target::ResendDead => deliveries::resend_dead(edge, request).await,
        Target::OpenApi => Ok(text(StatusCode::OK, "application/json", OPENAPI)),
    }
}

/// The one place where jobs of others are hidden: what is about a job or a delivery of somebody else's is answered as if there
/// were none, before anything else of the request is looked at. What is about many asks for those of its caller.
async fn require_seen(edge: &Edge, caller: &Caller, target: &Target) -> Result<(), Problem> {
    let Some(owner) = caller.sees_only() else { return Ok(()) };
    match target {
        Target::Job(id)
        | Target::Delete(id)
        | Target::Output(id)
        | Target::Request(id)
        | Target::Artifact(id, _)
        | Target::JobEvents(id)
        | Target::Cancel(id)
        | Target::Retry(id)
        | Target::Deliveries(Some(id)) => require_own(edge, *id, owner).await,
        Target::Resend(event) => {
            let belongs = edge.store.delivery_belongs(*event, owner).await;
            match belongs.map_err(|fault| unread(edge, &fault))? {
                true => Ok(()),
                false => Err(deliveries::unknown(*event)),
            }
        }
        Target::Submit
        | Target::SubmitMany
        | Target::List
        | Target::RetryMany
        | Target::PurgeMany
        | Target::Events
        | Target::Deliveries(None)
        | Target::ResendDead
        | Target::OpenApi => Ok(()),
    }
}

/// A job that is there, or was, and belongs to this owner.
async fn require_own(edge: &Edge, id: JobId, owner: String) -> Result<(), Problem> {
    match edge.store.belongs(id, owner).await.map_err(|fault| unread(edge, &fault))? {
        true => Ok(()),
        false => Err(unknown(id)),
    }
}

/// A JSON document that changes from moment to moment.
fn document(status: StatusCode, value: &Value) -> Response {
    text(status, "application/json; charset=utf-8", format!("{value}\n"))
}

fn text(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response {
    let mut response = HttpResponse::new(full_body(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What a client is told of a question that the store did not answer.
fn unread(edge: &Edge, fault: &StoreError) -> Problem {
    match fault {
        StoreError::Closed if !edge.tasks.is_draining() => edge.tasks.break_down("store"),
        _ => tracing::error!(db.error = %fault, "the database could not be asked"),
    }
    match fault {
        StoreError::Full => {
            Problem::new(Code::DiskFull, "the disk is full; nothing was changed, try again")
        }
        _ => Problem::new(
            Code::StoreUnavailable,
            "the database does not answer; nothing was changed, try again",
        ),
    }
    .retry_after(STORE_RETRY_S)
}

/// What was sought, or that it is not there.
fn there<T>(id: JobId, sought: Sought<T>) -> Result<T, Problem> {
    match sought {
        Sought::There(found) => Ok(found),
        Sought::Purged => Err(purged(id)),
        Sought::Unknown => Err(unknown(id)),
    }
}

fn unknown(id: JobId) -> Problem {
    Problem::new(Code::UnknownJob, format!("there is no job {id}, and none was dropped lately"))
        .job(id)
}

fn purged(id: JobId) -> Problem {
    let text = format!("job {id} was there and was dropped: by its age, a purge or a delete");
    Problem::new(Code::Purged, text).job(id)
}

/// That a job is not there: dropped, or never known.
async fn missing(edge: &Edge, id: JobId) -> Problem {
    match edge.store.job(id).await {
        Ok(Sought::Purged) => purged(id),
        Ok(_) => unknown(id),
        Err(fault) => unread(edge, &fault),
    }
}

fn died() -> Problem {
    let text = "the request was not done to its end; look whether anything was stored or changed";
    Problem::new(Code::StoreUnavailable, text).retry_after(STORE_RETRY_S)
}

fn stopping() -> Problem {
    let text = "foreman is stopping; nothing was stored; it is safe to try again";
    Problem::new(Code::Stopping, text).retry_after(STORE_RETRY_S)
}
