//! The bytes of a job: its answer, kept or followed while it comes, its completion as one value, and its request.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Request, Response as HttpResponse, StatusCode};
use serde_json::{Value, json};
use tokio::sync::SemaphorePermit;

use crate::completion;
use crate::domain::job::{JobId, State};
use crate::ollama::client::full_body;
use crate::store::{Answer, AnswerBody, JobView};
use crate::worker::output::{BeyondEnd, Follower, Head, Opening, Output, Timings};

use super::super::follow;
use super::super::outflow::Outflow;
use super::super::problem::{Code, Problem};
use super::super::query;
use super::super::queued::stopped_while_waiting;
use super::super::reach::{Reached, reach};
use super::super::{Edge, Response};
use super::{stopping, there, unread};

const ATTEMPT: HeaderName = HeaderName::from_static("x-foreman-attempt");
const STATUS: HeaderName = HeaderName::from_static("x-foreman-status");

/// When to ask again for an answer that is not whole.
const UNFINISHED_RETRY_S: u64 = 5;

/// Looks at a job that ended while it was looked at.
const LOOKS_MAX: usize = 5;

/// The one artifact there is.
const COMPLETION: &str = "completion";

/// What is asked for.
struct Wanted {
    is_followed: bool,
    offset: u64,
    attempt: Option<i64>,
}

/// `GET /jobs/{id}/output`.
pub(super) async fn output(
    edge: &Arc<Edge>,
    id: JobId,
    request: &Request<Incoming>,
) -> Result<Response, Problem> {
    let wanted = query::read(request.uri().query(), |given| Wanted {
        is_followed: given.flag("stream").unwrap_or(false),
        offset: given.parsed("offset", "a number of bytes").unwrap_or(0),
        attempt: given.limit("attempt", u32::MAX).map(i64::from),
    })?;
    if wanted.offset > 0 && wanted.attempt.is_none() {
        let text = "an offset belongs to an attempt: attempt must stand beside it";
        return Err(Problem::new(Code::MalformedParameter, text));
    }
    for _ in 0..LOOKS_MAX {
        let sought = reach(edge, id).await.map_err(|fault| unread(edge, &fault))?;
        match there(id, sought)? {
            Reached::Kept(output, job) => return kept(&output, &job, &wanted),
            Reached::Ended(job) => return Err(no_answer(&job)),
            Reached::Open(_, job) if !wanted.is_followed => return Err(not_finished(&job)),
            Reached::Open(output, job) => {
                require_attempt(&job, current(&job, &output), &wanted)?;
                let opening = tokio::select! {
                    opening = output.opening() => opening,
                    () = stopped_while_waiting(edge, &output) => return Err(stopping()),
                };
                // A refusal is the end of the job, which is looked at as any other end.
                if let Opening::Answer(head, timings) = opening {
                    require_attempt(&job, timings.attempt, &wanted)?;
                    return live(edge, &job, (output, head, timings), &wanted, request);
                }
            }
        }
    }
    let text = format!("job {id} changes too fast to be followed; try again");
    Err(Problem::new(Code::NotFinished, text).job(id).retry_after(1))
}

/// The attempt of an open job; 0 while it waits. One that was claimed has its number before its output does.
fn current(job: &JobView, output: &Output) -> i64 {
    match (output.timings().attempt, job.state) {
        (0, State::Loading | State::Working) => job.attempt,
        (attempt, _) => attempt,
    }
}

/// The attempt asked for must be the current one.
fn require_attempt(job: &JobView, current: i64, wanted: &Wanted) -> Result<(), Problem> {
    match wanted.attempt {
        Some(attempt) if attempt != current => Err(replaced(job, attempt, current)),
        _ => Ok(()),
    }
}

fn replaced(job: &JobView, wanted: i64, current: i64) -> Problem {
    let id = job.id;
    let text = match current {
        0 => format!(
            "attempt {wanted} of job {id} is not running; what came of it is void, begin anew"
        ),
        current => format!(
            "attempt {wanted} of job {id} is not its current one, which is {current}; what came of it is void, begin anew"
        ),
    };
    let problem = Problem::new(Code::AttemptReplaced, text).job(id);
    match u32::try_from(current) {
        // To name the last one would send the client back to it.
        Ok(0) | Err(_) => problem,
        Ok(current) => problem.attempt(current),
    }
}

fn beyond(job: &JobView, BeyondEnd(bytes): BeyondEnd) -> Problem {
    let text = format!("the answer of job {} has {bytes} bytes", job.id);
    Problem::new(Code::OffsetBeyondAnswer, text).job(job.id)
}

fn no_answer(job: &JobView) -> Problem {
    let why = job.last_error.as_deref().unwrap_or("nothing is known of why");
    let text = format!("job {} is {} and has no answer: {why}", job.id, job.state.name());
    Problem::new(Code::NoAnswer, text).job(job.id)
}

fn not_finished(job: &JobView) -> Problem {
    let text = format!(
        "job {} is {}: its answer is not whole yet; follow it with ?stream=true, or ask again later",
        job.id,
        job.state.name()
    );
    Problem::new(Code::NotFinished, text).job(job.id).retry_after(UNFINISHED_RETRY_S)
}

/// An answer that is whole, from an offset on.
fn kept(output: &Arc<Output>, job: &JobView, wanted: &Wanted) -> Result<Response, Problem> {
    require_attempt(job, job.attempt, wanted)?;
    let follower = Follower::behind(Arc::clone(output), job.attempt, wanted.offset)
        .map_err(|fault| beyond(job, fault))?;
    let head = output.head().unwrap_or(Head { status: 200, headers: Vec::new() });
    let left = output.bytes().saturating_sub(wanted.offset);
    let mut response = HttpResponse::new(follow::kept(follower, left));
    name(&mut response, job, job.attempt, &head);
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(left));
    Ok(response)
}

/// An answer that comes.
fn live(
    edge: &Arc<Edge>,
    job: &JobView,
    (output, head, timings): (Arc<Output>, Head, Timings),
    wanted: &Wanted,
    request: &Request<Incoming>,
) -> Result<Response, Problem> {
    let follower = Follower::behind(output, timings.attempt, wanted.offset)
        .map_err(|fault| beyond(job, fault))?;
    let outflow = request.extensions().get::<Outflow>().cloned().unwrap_or_default();
    tracing::debug!(job.id = %job.id, answer.offset = wanted.offset, up_s = edge.started_at_ms, "followed");
    let mut response = HttpResponse::new(follow::observed(job.dialect, follower, &head, outflow));
    name(&mut response, job, timings.attempt, &head);
    Ok(response)
}

fn name(response: &mut Response, job: &JobView, attempt: i64, head: &Head) {
    let headers = response.headers_mut();
    let content_type = head.headers.iter().find(|(name, _)| name == CONTENT_TYPE.as_str());
    let content_type = content_type.and_then(|(_, value)| HeaderValue::from_bytes(value).ok());
    let unknown = HeaderValue::from_static("application/octet-stream");
    headers.insert(CONTENT_TYPE, content_type.unwrap_or(unknown));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ATTEMPT, HeaderValue::from(attempt));
    headers.insert(STATUS, HeaderValue::from(head.status));
    follow::name_job(headers, job.id);
}

/// `GET /jobs/{id}/artifacts/{name}`.
pub(super) async fn artifact(
    edge: &Arc<Edge>,
    id: JobId,
    name: &str,
    query: Option<&str>,
) -> Result<Response, Problem> {
    query::read(query, |_| ())?;
    let sought = reach(edge, id).await.map_err(|fault| unread(edge, &fault))?;
    let reached = there(id, sought)?;
    if name != COMPLETION {
        let name: String = name.chars().take(64).collect();
        let text = format!("job {id} has no artifact {name:?}, only {COMPLETION}");
        return Err(Problem::new(Code::UnknownArtifact, text).job(id));
    }
    match reached {
        Reached::Open(_, job) => Err(not_finished(&job)),
        Reached::Kept(_, job) if job.state == State::Done => {
            let Some(bytes) = folded(edge, &job).await? else {
                return output_as_is(edge, id).await;
            };
            let mut response = HttpResponse::new(full_body(bytes.bytes));
            let kind = HeaderValue::from_str(&bytes.content_type);
            let headers = response.headers_mut();
            headers
                .insert(CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/json")));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            follow::name_job(headers, id);
            Ok(response)
        }
        Reached::Kept(_, job) | Reached::Ended(job) => Err(no_answer(&job)),
    }
}

/// An answer that is its own completion.
async fn output_as_is(edge: &Arc<Edge>, id: JobId) -> Result<Response, Problem> {
    let sought = reach(edge, id).await.map_err(|fault| unread(edge, &fault))?;
    let wanted = Wanted { is_followed: false, offset: 0, attempt: None };
    match there(id, sought)? {
        Reached::Kept(output, job) => kept(&output, &job, &wanted),
        Reached::Open(_, job) | Reached::Ended(job) => Err(no_answer(&job)),
    }
}

/// The bytes of a completion that had to be folded.
struct Folded {
    content_type: String,
    bytes: Bytes,
}

async fn folded(edge: &Edge, job: &JobView) -> Result<Option<Folded>, Problem> {
    let Some(answer) = edge.store.answer(job.id).await.map_err(|fault| unread(edge, &fault))?
    else {
        return Ok(None);
    };
    let _place = place_to_fold(edge, &answer).await?;
    let bytes = completion::folded(&answer, edge.store.answers_folder()).await;
    let bytes = bytes.map_err(|fault| unread(edge, &fault))?;
    Ok(bytes.map(|bytes| Folded { content_type: completion::JSON.to_owned(), bytes }))
}

/// The turn of one that may be large; those in a row are small.
async fn place_to_fold<'edge>(
    edge: &'edge Edge,
    answer: &Answer,
) -> Result<Option<SemaphorePermit<'edge>>, Problem> {
    match answer.body {
        AnswerBody::Inline(_) => Ok(None),
        AnswerBody::File { .. } => {
            edge.fold_places.acquire().await.map(Some).map_err(|_| stopping())
        }
    }
}

/// The result and the artifacts of a job.
pub(super) async fn completion_of(edge: &Edge, job: &JobView) -> Result<(Value, Value), Problem> {
    if job.state != State::Done {
        return Ok((Value::Null, json!([])));
    }
    let Some(answer) = edge.store.answer(job.id).await.map_err(|fault| unread(edge, &fault))?
    else {
        return Ok((Value::Null, json!([])));
    };
    let _place = place_to_fold(edge, &answer).await?;
    let completion = completion::of(&answer, edge.store.answers_folder()).await;
    let completion = completion.map_err(|fault| unread(edge, &fault))?;
    let artifacts = completion.artifacts(job.id);
    Ok((completion.inline.unwrap_or(Value::Null), artifacts))
}

/// `GET /jobs/{id}/request`.
pub(super) async fn request(
    edge: &Arc<Edge>,
    id: JobId,
    query: Option<&str>,
) -> Result<Response, Problem> {
    query::read(query, |_| ())?;
    match edge.store.request(id).await.map_err(|fault| unread(edge, &fault))? {
        Some((_, body)) => {
            Ok(super::text(StatusCode::OK, "application/json; charset=utf-8", Bytes::from(body)))
        }
        None => {
            let sought = edge.store.job(id).await.map_err(|fault| unread(edge, &fault))?;
            let (job, _) = there(id, sought)?;
            let text = format!("job {id} is {}: its request is no longer kept", job.state.name());
            Err(Problem::new(Code::NoRequest, text).job(id))
        }
    }
}
