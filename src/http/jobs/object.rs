//! The job object: a job as JSON. The contract is docs/jobs.md.

use serde_json::{Map, Value, json};

use crate::clock::rfc3339;
use crate::domain::job::State;
use crate::store::{Attempt, JobView};
use crate::worker::Forecast;

use super::super::status::why_blocked;

/// What a list leaves out.
#[derive(Debug)]
pub(super) struct Details {
    pub(super) attempts: Vec<Attempt>,
    pub(super) forecast: Option<Forecast>,
    /// The completion, where it is inline.
    pub(super) result: Value,
    pub(super) artifacts: Value,
}

impl Default for Details {
    fn default() -> Details {
        Details { attempts: Vec::new(), forecast: None, result: Value::Null, artifacts: json!([]) }
    }
}

/// A job with everything.
pub(super) fn whole(job: &JobView, details: &Details, now_ms: i64) -> Value {
    let mut object = base(job, details.forecast.as_ref(), now_ms);
    object.insert("attempts".to_owned(), details.attempts.iter().map(attempt).collect());
    object.insert("result".to_owned(), details.result.clone());
    object.insert("artifacts".to_owned(), details.artifacts.clone());
    Value::Object(object)
}

/// A job as it stands in a list.
pub(super) fn listed(job: &JobView, now_ms: i64) -> Value {
    Value::Object(base(job, None, now_ms))
}

fn base(job: &JobView, forecast: Option<&Forecast>, now_ms: i64) -> Map<String, Value> {
    let finished_in = |state| at(job.finished_at_ms.filter(|_| job.state == state));
    let id = job.id.to_string();
    let value = json!({
        "object": "job",
        "job_id": id,
        "state": job.state.name(),
        "is_cancelling": job.is_cancelling,
        "endpoint": job.path,
        "model": job.model,
        "load_key": job.lane,
        "priority": job.class.name(),
        "owner": Some(&job.owner).filter(|owner| !owner.is_empty()),
        "is_async": job.is_async,
        "created_at": rfc3339(job.created_at_ms),
        "run_at": at(job.run_at_ms),
        "deadline": at(job.deadline_ms),
        "queued_at": rfc3339(job.queued_at_ms),
        "loading_at": at(job.claimed_at_ms.filter(|_| was_loaded(job))),
        "working_at": at(job.working_at_ms),
        "done_at": finished_in(State::Done),
        "failed_at": finished_in(State::Failed),
        "cancelled_at": finished_in(State::Cancelled),
        "not_before": at(job.not_before_ms.filter(|at_ms| *at_ms > now_ms)),
        "blocked": forecast.and_then(|forecast| forecast.blocked.as_ref()).map(why_blocked),
        "position": forecast.map(|forecast| forecast.position),
        "estimated_start":
            forecast.map(|forecast| rfc3339(now_ms.saturating_add(forecast.start_in_ms))),
        "attempt": job.attempt,
        "counters": {
            "attempts": job.counters.attempts,
            "interruptions": job.counters.interruptions,
            "deferrals": job.counters.deferrals,
        },
        "timings": timings(job),
        "usage": usage(job),
        "error": error(job),
        "metadata": job.metadata.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok()),
        "state_webhook_url": job.webhook_url,
        "idempotency_key": job.idempotency_key,
        "links": {
            "self": format!("/jobs/{id}"),
            "output": format!("/jobs/{id}/output"),
            "events": format!("/jobs/{id}/events"),
        },
    });
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn at(at_ms: Option<i64>) -> Option<String> {
    at_ms.map(rfc3339)
}

/// Whether its last attempt began with a load.
fn was_loaded(job: &JobView) -> bool {
    job.load_ms.is_some() || job.state == State::Loading
}

/// What passed between two moments; nothing where one of them did not happen. A clock that was set back makes no negative
/// times.
fn passed(from_ms: Option<i64>, to_ms: Option<i64>) -> Option<i64> {
    Some((to_ms? - from_ms?).max(0))
}

fn timings(job: &JobView) -> Value {
    json!({
        "queue_ms": passed(Some(job.queued_at_ms), job.claimed_at_ms),
        "load_ms": passed(job.claimed_at_ms, job.working_at_ms),
        "first_token_ms": passed(job.working_at_ms, job.first_byte_at_ms),
        "generate_ms": passed(job.first_byte_at_ms, job.answered_at_ms),
        "store_ms": passed(job.answered_at_ms, job.finished_at_ms),
    })
}

fn usage(job: &JobView) -> Option<Value> {
    (job.prompt_tokens.is_some() || job.output_tokens.is_some())
        .then(|| json!({ "prompt_tokens": job.prompt_tokens, "output_tokens": job.output_tokens }))
}

fn error(job: &JobView) -> Option<Value> {
    // What went wrong before an answer that is whole is history: it stands in `attempts`.
    let text = job.last_error.as_ref().filter(|_| job.state != State::Done)?;
    Some(json!({ "message": text, "status": job.error_status }))
}

fn attempt(attempt: &Attempt) -> Value {
    json!({
        "attempt": attempt.number,
        "claimed_at": rfc3339(attempt.claimed_at_ms),
        "working_at": at(attempt.working_at_ms),
        "ended_at": at(attempt.ended_at_ms),
        "outcome": match attempt.ended_in {
            Some(State::Queued) => "put_back",
            Some(state) => state.name(),
            None => "running",
        },
        "error": attempt.error,
    })
}
