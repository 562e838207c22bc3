//! Submitting many jobs in one call: checked and hashed on all cores, inserted in the order given, in one transaction. One bad
//! item has its own error and harms no other.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{Request, StatusCode};
use serde_json::{Value, json};

use crate::fail_point;
use crate::store::{FoundBy, NewJob};

use super::super::intake::{Asker, model_digest};
use super::super::prefer::IDEMPOTENCY_KEY;
use super::super::problem::{Code, Problem};
use super::super::submission::{Rejection, Submission, parse_all, split};
use super::super::{Edge, Response, body};
use super::submit::{Prints, Taken, job_of, no_room, taken};
use super::{document, stopping, unread};

/// An item that was checked and hashed, or what is wrong with it.
type Checked = Result<(Submission, Prints), Rejection>;

/// `POST /jobs/batch`.
pub(super) async fn submit_many(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    let (parts, incoming) = request.into_parts();
    if edge.tasks.is_draining() {
        body::linger(edge, &parts, incoming);
        return Err(stopping());
    }
    if parts.headers.contains_key(IDEMPOTENCY_KEY) {
        body::linger(edge, &parts, incoming);
        let text = "a batch has no Idempotency-Key: each item has its own idempotency_key; nothing was stored";
        return Err(Problem::new(Code::MalformedHeader, text));
    }
    let read = body::read(edge, &parts, incoming, edge.config.body_max).await?;
    let asker = Asker::of(edge, &parts);
    let checked = check(edge, &asker, read.bytes.clone()).await?;
    require_small_headers(edge, &asker, checked.len())?;
    if !edge.store.has_room() {
        return Err(no_room());
    }
    let mut outcomes: Vec<Result<Taken, Problem>> = Vec::with_capacity(checked.len());
    let mut jobs: Vec<(usize, NewJob)> = Vec::new();
    for (index, item) in checked.into_iter().enumerate() {
        match item {
            Ok((submission, prints)) => {
                jobs.push((index, job_of(edge, &asker, submission, prints).await));
                outcomes.push(Err(Problem::new(Code::StoreUnavailable, "not stored")));
            }
            Err(rejection) => outcomes.push(Err(rejection.into())),
        }
    }
    admit_all(edge, jobs, &mut outcomes).await?;
    Ok(told(&outcomes))
}

/// The headers of the call stand with each of its jobs. All these copies may take as much as a body: else one MiB of headers
/// above ten thousand small items took ten GiB.
fn require_small_headers(edge: &Edge, asker: &Asker, items: usize) -> Result<(), Problem> {
    let lines = asker.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    let copies = lines.sum::<usize>().saturating_mul(items);
    if u64::try_from(copies).is_ok_and(|copies| copies <= edge.config.body_max) {
        return Ok(());
    }
    let text = format!(
        "the headers of a batch stand with each of its jobs, and would take {copies} bytes, above {}; nothing was stored",
        edge.config.body_max
    );
    Err(Problem::new(Code::BodyTooLarge, text))
}

async fn check(edge: &Edge, asker: &Asker, bytes: Bytes) -> Result<Vec<Checked>, Problem> {
    let (now_ms, duplicates, scope) =
        (edge.clock.now_ms(), edge.config.duplicates, asker.scope.clone());
    let inventory = edge.inventory.clone();
    let work = move || {
        let items = split(&bytes)?;
        let digest = |model: &str| model_digest(&inventory, model);
        let prints = |submission: &Submission, item: &Bytes| {
            let model = digest(&submission.request.model);
            Prints::of(submission, item, (duplicates, &scope, &model))
        };
        Ok(parse_all(&items, now_ms, prints))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(checked) => checked,
        Err(_) => {
            let text = "the batch could not be read; nothing was stored, try again";
            Err(Problem::new(Code::StoreUnavailable, text).retry_after(1))
        }
    }
}

async fn admit_all(
    edge: &Edge,
    jobs: Vec<(usize, NewJob)>,
    outcomes: &mut [Result<Taken, Problem>],
) -> Result<(), Problem> {
    if jobs.is_empty() {
        return Ok(());
    }
    let places: Vec<_> = jobs.iter().map(|(index, job)| (*index, job.id)).collect();
    let jobs: Vec<NewJob> = jobs.into_iter().map(|(_, job)| job).collect();
    let now_ms = edge.clock.now_ms();
    let admissions = edge.store.admit_all(jobs, edge.queue_limits(), now_ms).await;
    let admissions = admissions.map_err(|fault| unread(edge, &fault))?;
    let mut last_seq = 0;
    for ((index, id), admission) in places.into_iter().zip(admissions) {
        if let crate::store::Admission::Admitted { seq } = admission {
            last_seq = seq;
        }
        if let Some(outcome) = outcomes.get_mut(index) {
            *outcome = taken(admission, id, None);
        }
    }
    if last_seq > 0 {
        fail_point::reach("admit.committed");
        tracing::info!(
            jobs.submitted = outcomes.len(),
            job.seq = last_seq,
            "jobs submitted in a batch"
        );
        edge.worker.submitted(last_seq);
        edge.worker.deadline_waits();
    }
    Ok(())
}

/// 202 if any was accepted, else the status of the first error; an empty batch is accepted.
fn told(outcomes: &[Result<Taken, Problem>]) -> Response {
    let accepted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let first = outcomes.iter().find_map(|outcome| outcome.as_ref().err());
    let first = first.filter(|_| accepted == 0);
    let status = first.map_or(StatusCode::ACCEPTED, |first| first.code.status());
    let jobs: Vec<Value> =
        outcomes.iter().enumerate().map(|(index, outcome)| item(index, outcome)).collect();
    let value = json!({
        "object": "batch",
        "accepted": accepted,
        "rejected": outcomes.len() - accepted,
        "jobs": jobs,
    });
    let mut response = document(status, &value);
    if let Some(seconds) = first.and_then(|first| first.retry_after_s) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn item(index: usize, outcome: &Result<Taken, Problem>) -> Value {
    match outcome {
        Ok(taken) => {
            let found_by = match taken.by {
                None | Some(FoundBy::Return) => None,
                Some(FoundBy::Key) => Some("key"),
                Some(FoundBy::Inflight) => Some("inflight"),
                Some(FoundBy::Completed) => Some("completed"),
            };
            let id = taken.id.to_string();
            json!({ "index": index, "job_id": id, "url": format!("/jobs/{id}"), "found_by": found_by })
        }
        Err(problem) => json!({ "index": index, "error": problem }),
    }
}
