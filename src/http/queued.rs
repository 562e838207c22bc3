//! The road of a queued request: read, peek, place, admit, wait, answer.
//!
//! The handler *waits for a job*; it never runs one. When its client leaves, the [`Waiter`] it holds is dropped: a job
//! that still waits is cancelled and Ollama never hears of it, one in flight is told that nobody wants its answer.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};

use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, JobId, State};
use crate::store::{FoundBy, JobView, Sought};
use crate::worker::output::{Opening, Output, Refusal};

use super::caller::Caller;
use super::error::Told;
use super::follow;
use super::intake::{self, stopping};
use super::outflow::Outflow;
use super::placement::{Known, Placement, place};
use super::plain::Plain;
use super::prefer::{idempotency_key, preferences};
use super::reach::{Reached, reach};
use super::stainless::stainless;
use super::take_in::{Asking, Taken, take_in};
use super::waiter::Waiter;
use super::waiting::{Beginning, Patience};
use super::whom::class;
use super::{Edge, Response, body, jobs, pass, search};

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const ATTACHED: HeaderName = HeaderName::from_static("x-foreman-attached");
const DUPLICATE: HeaderName = HeaderName::from_static("x-foreman-duplicate");

/// Serves a request of a queued route.
pub(super) async fn queued(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
    dialect: Dialect,
) -> Response {
    serve(edge, request, dialect).await.unwrap_or_else(|told| told.answer(dialect))
}

async fn serve(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
    dialect: Dialect,
) -> Result<Response, Told> {
    let (parts, incoming) = request.into_parts();
    if edge.tasks.is_draining() {
        body::linger(edge, &parts, incoming);
        return Err(stopping("nothing was stored"));
    }
    let said = match said(&parts) {
        Ok(said) => said,
        Err(told) => {
            body::linger(edge, &parts, incoming);
            return Err(told);
        }
    };
    let read = body::read(edge, &parts, incoming, edge.config.body_max).await?;
    if let Some(wait) = said.responds_async {
        let native = jobs::Native { dialect, class: said.class, key: said.key, wait };
        // Boxed, as what else is not for all who wait: ten thousand handlers wait, each as large as its largest step.
        return Box::pin(jobs::respond_async(edge, &parts, read.bytes, native)).await;
    }
    let plain = Plain::of(edge, dialect, &parts.headers, &read.bytes).await;
    let placement = Box::pin(place(edge, dialect, &parts.headers, &plain, Known::Asked)).await;
    if let Some(right) = search::follow_up(edge, dialect, &parts.headers, &plain, &placement) {
        tracing::debug!("ollama goes on after a search; passed beside the queue");
        return Ok(Box::pin(pass::pass_bytes(edge, parts, read.bytes, right)).await);
    }
    match placement {
        Placement::Forward(reason) => {
            // Ollama may take minutes, and the next compressed body needs the place.
            drop(plain);
            tracing::debug!(http.path = parts.uri.path(), reason, "forwarded beside the queue");
            Ok(Box::pin(pass::pass_bytes(edge, parts, read.bytes, ())).await)
        }
        Placement::Queue(_) if !edge.store.has_room() => Err(intake::no_room()),
        Placement::Queue(place) => {
            let outflow = parts.extensions.get::<Outflow>().cloned().unwrap_or_default();
            let stainless = stainless(&parts.headers);
            let patience = Patience::of(edge, dialect, &place, stainless);
            let known_by = plain.known_by(&read.bytes);
            let (class, key, lane) = (said.class, said.key, place.lane.clone());
            let asking = Asking { dialect, class, key, stainless, place, known_by };
            let taken = take_in(edge, &parts, read, asking).await;
            drop(plain);
            let taken = taken?;
            if let Taken::New(waiter) | Taken::Joined(waiter, _) = &taken {
                // Its key may be one that does not load: since before it came, or since it was looked at.
                let now_ms = edge.clock.now_ms();
                edge.worker.refuse_if_broken(&lane, waiter.id, &edge.inventory, now_ms).await;
            }
            match taken {
                Taken::New(waiter) => wait(edge, dialect, waiter, (patience, outflow)).await,
                Taken::Joined(waiter, by) => {
                    let mut response = wait(edge, dialect, waiter, (patience, outflow)).await?;
                    tell_how(response.headers_mut(), by);
                    Ok(response)
                }
                Taken::Over(job, by) => {
                    let mut response = over(dialect, &job);
                    tell_how(response.headers_mut(), by);
                    Ok(response)
                }
            }
        }
    }
}

/// What a request says to foreman in its headers.
struct Said {
    class: Class,
    key: Option<String>,
    /// An answer at once is wanted, or after this long at the latest.
    responds_async: Option<Option<std::time::Duration>>,
}

fn said(parts: &Parts) -> Result<Said, Told> {
    let preferences = preferences(&parts.headers);
    Ok(Said {
        // Somebody waits for the answer.
        class: Caller::of(&parts.extensions).class(class(&parts.headers)?, Class::Interactive),
        key: idempotency_key(&parts.headers)?,
        responds_async: preferences.is_async.then_some(preferences.wait),
    })
}

/// The answer of a job that has ended, as its route would have given it; `None` while it is open.
pub(super) async fn ended_answer(
    edge: &Arc<Edge>,
    dialect: Dialect,
    id: JobId,
    outflow: Outflow,
) -> Option<Response> {
    match reach(edge, id).await.ok()? {
        Sought::There(Reached::Kept(output, _)) => {
            wait(edge, dialect, Waiter::of_kept(edge, id, output), (None, outflow)).await.ok()
        }
        Sought::There(Reached::Ended(job)) => Some(over(dialect, &job)),
        Sought::There(Reached::Open(..)) | Sought::Purged | Sought::Unknown => None,
    }
}

/// What is told of a job that ended without an answer, to whom asks for it again: what those who waited for it were told.
fn over(dialect: Dialect, job: &JobView) -> Response {
    let told = match job.state {
        State::Cancelled => refused(&Refusal::cancelled()),
        State::Queued | State::Loading | State::Working | State::Done | State::Failed => {
            let status = job.error_status.and_then(|status| StatusCode::from_u16(status).ok());
            let why = job.last_error.as_deref().unwrap_or("it ended without an answer");
            let text = format!("job {} {}: {why}", job.id, job.state.name());
            Told::new(status.unwrap_or(StatusCode::BAD_GATEWAY), text)
        }
    };
    let mut response = told.answer(dialect);
    follow::name_job(response.headers_mut(), job.id);
    response
}

/// Tells the client that its answer is that of a job which was there.
pub(super) fn tell_how(headers: &mut HeaderMap, by: FoundBy) {
    let (name, value) = match by {
        FoundBy::Key => (REPLAYED, "true"),
        FoundBy::Return => (ATTACHED, "true"),
        FoundBy::Inflight => (DUPLICATE, "inflight"),
        FoundBy::Completed => (DUPLICATE, "completed"),
    };
    headers.insert(name, HeaderValue::from_static(value));
}

/// Waits until the answer begins, and passes it on; or begins it early, where the client's patience asks for it.
async fn wait(
    edge: &Arc<Edge>,
    dialect: Dialect,
    mut waiter: Waiter,
    (patience, outflow): (Option<Patience>, Outflow),
) -> Result<Response, Told> {
    let output = Arc::clone(&waiter.output);
    let opening = tokio::select! {
        biased;
        opening = output.opening() => opening,
        () = stopped_while_waiting(edge, &output) => {
            waiter.let_go();
            return Err(stopping(&stays(waiter.id)));
        }
        begun = begin(edge, (waiter.id, &output), patience) => {
            return Ok(follow::early_answer(dialect, begun, waiter, outflow));
        }
    };
    match opening {
        Opening::Answer(head, timings) => {
            Ok(follow::answer(dialect, (head, timings), waiter, outflow))
        }
        Opening::Refused(refusal) => {
            waiter.let_go();
            let mut response = refused(&refusal).answer(dialect);
            follow::name_job(response.headers_mut(), waiter.id);
            Ok(response)
        }
    }
}

/// Returns when the client has heard nothing for as long as it should, with what it then hears; never without a limit.
async fn begin(
    edge: &Edge,
    (id, output): (JobId, &Output),
    patience: Option<Patience>,
) -> (Patience, Beginning) {
    match patience {
        Some(patience) => {
            let beginning = patience.begin(edge, id, output).await;
            (patience, beginning)
        }
        None => std::future::pending().await,
    }
}

/// What becomes of a job while the daemon stops.
pub(super) fn stays(id: JobId) -> String {
    format!("job {id} stays queued and runs after the restart")
}

/// Returns when the daemon stops and the job is not in flight: then its client is sent away and the job stays.
pub(super) async fn stopped_while_waiting(edge: &Edge, output: &Output) {
    edge.tasks.draining().await;
    output.not_in_flight().await;
}

/// What a client is told of a job that will not be answered.
pub(super) fn refused(refusal: &Refusal) -> Told {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_GATEWAY);
    Told { status, text: refusal.text.clone(), retry_after_s: refusal.retry_after_s }
}
