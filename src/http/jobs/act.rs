//! What is done to jobs: cancelled, tried again, dropped; one, or many by a filter.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};

use crate::clock::from_rfc3339;
use crate::domain::job::{Event, JobId, State};
use crate::fail_point;
use crate::ollama::client::empty_body;
use crate::store::{Cancellation, Dropping, Many, Reopening, Which};

use super::super::caller::Caller;
use super::super::intake;
use super::super::problem::{Code, Pointed, Problem};
use super::super::query;
use super::super::{Edge, Response, body};
use super::submit::{require, shown};
use super::{document, missing, stopping, unread};

/// A body that only says which jobs is a few lines.
const BODY_MAX: u64 = 64 * 1024;

/// Jobs that one call may do something to, over several writes; `has_more` says that there are more.
const COUNT_MAX: usize = 10_000;

/// `POST /jobs/{id}/cancel`.
pub(super) async fn cancel(
    edge: &Arc<Edge>,
    id: JobId,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    without_body(edge, request).await?;
    let now_ms = edge.clock.now_ms();
    let cancelled = edge.store.cancel(id, "it was cancelled while it waited", now_ms).await;
    match cancelled.map_err(|fault| unread(edge, &fault))? {
        Cancellation::Cancelled => {
            fail_point::reach("cancel.committed");
            tracing::info!(job.id = %id, "job cancelled while it waited");
            let output = edge.worker.outputs().open(id);
            edge.worker.cancelled_waiting(id, &output);
        }
        Cancellation::Cancelling => {
            fail_point::reach("cancel_running.committed");
            tracing::info!(job.id = %id, "job is being cancelled");
            // Made if the worker has not yet: it opens the same one right after its claim.
            let output = edge.worker.outputs().open(id);
            output.cancel();
            if require(edge, id).await.is_ok_and(|job| job.state.is_final()) {
                edge.worker.outputs().forget_this(id, &output);
            }
        }
        Cancellation::Ended(State::Cancelled) => (),
        Cancellation::Ended(state) => return Err(wrong_state(id, state, "cannot be cancelled")),
        Cancellation::Unknown => return Err(missing(edge, id).await),
    }
    shown(edge, StatusCode::OK, id).await
}

/// `POST /jobs/{id}/retry`.
pub(super) async fn retry(
    edge: &Arc<Edge>,
    id: JobId,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    without_body(edge, request).await?;
    ready_for_work(edge)?;
    let reopened = edge.store.reopen(id, edge.queue_limits(), edge.clock.now_ms()).await;
    match reopened.map_err(|fault| unread(edge, &fault))? {
        Reopening::Reopened(file) => {
            fail_point::reach("reopen.committed");
            tracing::info!(job.id = %id, "job goes back to the queue, by hand");
            remove(edge, &file.into_iter().collect::<Vec<_>>()).await;
            edge.worker.deadline_waits();
        }
        Reopening::WrongState(state) => {
            return Err(wrong_state(id, state, "is not one that failed or was cancelled"));
        }
        Reopening::NoRequest => {
            let text = format!("the request of job {id} is no longer kept; send it again");
            return Err(Problem::new(Code::NoRequest, text).job(id));
        }
        Reopening::Full(jobs) => {
            let text =
                format!("the queue is full ({jobs} jobs wait); the job stays as it is, try again");
            return Err(Problem::new(Code::QueueFull, text)
                .job(id)
                .retry_after(intake::FULL_RETRY_S));
        }
        Reopening::OwnerFull(jobs) => {
            let told = intake::key_full(jobs);
            return Err(Problem::from(told).job(id));
        }
        Reopening::Unknown => return Err(missing(edge, id).await),
    }
    shown(edge, StatusCode::ACCEPTED, id).await
}

/// `DELETE /jobs/{id}`.
pub(super) async fn delete(
    edge: &Arc<Edge>,
    id: JobId,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    without_body(edge, request).await?;
    match edge.store.drop_job(id).await.map_err(|fault| unread(edge, &fault))? {
        Dropping::Dropped(file) => {
            fail_point::reach("drop.committed");
            remove(edge, &file.into_iter().collect::<Vec<_>>()).await;
            let mut response = hyper::Response::new(empty_body());
            *response.status_mut() = StatusCode::NO_CONTENT;
            Ok(response)
        }
        Dropping::WrongState(state) => {
            Err(wrong_state(id, state, "cannot be dropped before it has ended; cancel it first"))
        }
        Dropping::Unknown => Err(missing(edge, id).await),
    }
}

/// `POST /jobs/retry`.
pub(super) async fn retry_many(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    let reopened: Vec<State> = Event::Reopen.sources().collect();
    let which = which(edge, request, &reopened).await?;
    ready_for_work(edge)?;
    let (mut all, now_ms) = (Many::default(), edge.clock.now_ms());
    loop {
        let many = edge.store.reopen_many(which.clone(), edge.queue_limits(), now_ms);
        if !add(&mut all, many.await.map_err(|fault| unread(edge, &fault))?) {
            break;
        }
    }
    edge.worker.deadline_waits();
    Ok(told(edge, all, "jobs go back to the queue, by hand").await)
}

/// `POST /jobs/purge`.
pub(super) async fn purge_many(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    let ended: Vec<State> = State::ALL.into_iter().filter(|state| state.is_final()).collect();
    let which = which(edge, request, &ended).await?;
    let mut all = Many::default();
    loop {
        let many = edge.store.drop_many(which.clone()).await;
        if !add(&mut all, many.map_err(|fault| unread(edge, &fault))?) {
            break;
        }
    }
    Ok(told(edge, all, "jobs dropped, by hand").await)
}

/// Adds what one write did; whether to go on with another.
fn add(all: &mut Many, many: Many) -> bool {
    all.count += many.count;
    all.files.extend(many.files);
    all.has_more = many.has_more;
    many.has_more && many.count > 0 && all.count < COUNT_MAX
}

async fn told(edge: &Edge, many: Many, what: &str) -> Response {
    tracing::info!(jobs.count = many.count, "{what}");
    remove(edge, &many.files).await;
    document(StatusCode::OK, &json!({ "count": many.count, "has_more": many.has_more }))
}

fn ready_for_work(edge: &Edge) -> Result<(), Problem> {
    if edge.tasks.is_draining() {
        return Err(stopping());
    }
    if !edge.store.has_room() {
        return Err(super::submit::no_room());
    }
    Ok(())
}

fn wrong_state(id: JobId, state: State, why: &str) -> Problem {
    let text = format!("job {id} is {}: it {why}", state.name());
    Problem::new(Code::WrongState, text).job(id)
}

/// Removes the files of answers that no row names any more. One that stays is an orphan, and goes at the next start.
async fn remove(edge: &Edge, files: &[String]) {
    let folder = edge.store.answers_folder();
    for name in files {
        if let Err(fault) = tokio::fs::remove_file(folder.join(Path::new(name))).await {
            tracing::warn!(file = %name, error = %fault, "the file of an answer could not be removed");
        }
    }
}

/// A body is not asked for; a client that sends an empty object or nothing is fine.
pub(super) async fn without_body(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
) -> Result<(), Problem> {
    query::read(request.uri().query(), |_| ())?;
    let (parts, incoming) = request.into_parts();
    body::read(edge, &parts, incoming, BODY_MAX).await?;
    Ok(())
}

/// Which jobs, by the query or by a body.
async fn which(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
    allowed: &[State],
) -> Result<Which, Problem> {
    let (parts, incoming) = request.into_parts();
    let owner = Caller::of(&parts.extensions).sees_only();
    let by_query = query::read(parts.uri.query(), |given| Which {
        states: given.states("state").unwrap_or_default(),
        model: given.text("model"),
        created_before_ms: given.time_ms("created_before"),
        owner: None,
    })?;
    let read = body::read(edge, &parts, incoming, BODY_MAX).await?;
    let by_body = of_body(&read.bytes)?;
    let says = |which: &Which| {
        [!which.states.is_empty(), which.model.is_some(), which.created_before_ms.is_some()]
    };
    if says(&by_query).iter().zip(says(&by_body)).any(|(query, body)| *query && body) {
        // Which of the two is meant must not be guessed where jobs are dropped.
        let text = "a filter stands in the query and in the body; nothing was done";
        return Err(Problem::new(Code::MalformedParameter, text));
    }
    let which = Which {
        states: if by_body.states.is_empty() { by_query.states } else { by_body.states },
        model: by_body.model.or(by_query.model),
        created_before_ms: by_body.created_before_ms.or(by_query.created_before_ms),
        owner,
    };
    let names = allowed.iter().map(|state| state.name()).collect::<Vec<_>>().join(", ");
    if which.states.is_empty() || which.states.iter().any(|state| !allowed.contains(state)) {
        let detail = format!("must be given, and of {names}");
        return Err(Problem::invalid(vec![Pointed { pointer: "/state".to_owned(), detail }]));
    }
    Ok(which)
}

fn of_body(body: &Bytes) -> Result<Which, Problem> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Which::default());
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|fault| Problem::new(Code::MalformedBody, format!("{fault}; nothing was done")))?;
    let Value::Object(members) = value else {
        let detail = "must be an object".to_owned();
        return Err(Problem::invalid(vec![Pointed { pointer: String::new(), detail }]));
    };
    let (mut which, mut faults) = (Which::default(), Vec::new());
    for (name, value) in members {
        let fault = match name.as_str() {
            _ if value.is_null() => None,
            "state" => states(&value, &mut which.states),
            "model" => match value.as_str().filter(|text| !text.is_empty()) {
                Some(text) => {
                    which.model = Some(text.to_owned());
                    None
                }
                None => Some("must be a text"),
            },
            "created_before" => match value.as_str().and_then(from_rfc3339) {
                Some(at_ms) => {
                    which.created_before_ms = Some(at_ms);
                    None
                }
                None => Some("must be a time (RFC 3339)"),
            },
            _ => Some("is unknown"),
        };
        if let Some(detail) = fault {
            let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
            faults.push(Pointed { pointer, detail: detail.to_owned() });
        }
    }
    if faults.is_empty() { Ok(which) } else { Err(Problem::invalid(faults)) }
}

/// One state, several by comma, or a list of them.
fn states(value: &Value, found: &mut Vec<State>) -> Option<&'static str> {
    const EXPECTED: &str = "must be a state, several by comma, or a list of them";
    let names: Vec<&str> = match value {
        Value::String(text) => text.split(',').collect(),
        Value::Array(items) => items.iter().map(|item| item.as_str().unwrap_or_default()).collect(),
        _ => return Some(EXPECTED),
    };
    for name in names {
        match State::from_name(name) {
            Some(state) => found.push(state),
            None => return Some(EXPECTED),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_which_jobs_and_each_fault_is_told() {
        let which = of_body(&Bytes::from_static(
            br#"{"state":"failed,cancelled","model":"m","created_before":"1970-01-01T00:00:01Z"}"#,
        ));
        let wanted = Which {
            states: vec![State::Failed, State::Cancelled],
            model: Some("m".to_owned()),
            created_before_ms: Some(1_000),
            owner: None,
        };
        assert_eq!(which, Ok(wanted));
        assert_eq!(of_body(&Bytes::from_static(b" \n")), Ok(Which::default()));
        let faulty = br#"{"state":["gone"],"model":3,"created_before":"soon","a/b":1}"#;
        let problem = of_body(&Bytes::from_static(faulty)).unwrap_err();
        let pointers: Vec<_> = problem.errors.iter().map(|error| error.pointer.as_str()).collect();
        assert_eq!(pointers, ["/state", "/model", "/created_before", "/a~1b"]);
        assert_eq!(of_body(&Bytes::from_static(b"{")).unwrap_err().code, Code::MalformedBody);
    }
}
