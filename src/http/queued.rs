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
use crate::domain::job::{Class, JobId, Kind, State};
use crate::domain::schedule::Lane;
use crate::domain::whom::Whom;
use crate::fail_point;
use crate::ollama::wire::chain::chain;
use crate::store::{Admission, Cancellation, Extras, FoundBy, JobView, NewJob, Sought};
use crate::worker::Arrival;
use crate::worker::output::{Opening, Output, Refusal};

use super::body::ReadBody;
use super::caller::Caller;
use super::error::Told;
use super::follow;
use super::intake::{self, Asked, Asker, marks, new_job, stopping};
use super::outflow::Outflow;
use super::placement::{Known, Place, Placement, place};
use super::prefer::{idempotency_key, preferences};
use super::reach::{Reached, reach};
use super::waiter::{Leaves, Waiter};
use super::whom::class;
use super::{Edge, Response, body, jobs, pass};

/// How often a request is admitted anew because the job it was found equal to was cancelled in that moment.
const JOINS_MAX: usize = 3;

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
        body::linger(edge, incoming);
        return Err(stopping("nothing was stored"));
    }
    let said = match said(&parts) {
        Ok(said) => said,
        Err(told) => {
            body::linger(edge, incoming);
            return Err(told);
        }
    };
    let read = body::read(edge, incoming, edge.config.body_max).await?;
    if let Some(wait) = said.responds_async {
        let native = jobs::Native { dialect, class: said.class, key: said.key, wait };
        return jobs::respond_async(edge, &parts, read.bytes, native).await;
    }
    match place(edge, dialect, &parts.headers, &read.bytes, Known::Asked).await {
        Placement::Forward(reason) => {
            tracing::debug!(http.path = parts.uri.path(), reason, "forwarded beside the queue");
            Ok(pass::pass_bytes(edge, parts, read.bytes).await)
        }
        Placement::Queue(_) if !edge.store.has_room() => Err(intake::no_room()),
        Placement::Queue(place) => {
            let outflow = parts.extensions.get::<Outflow>().cloned().unwrap_or_default();
            let asking = Asking { dialect, class: said.class, key: said.key, place };
            match take_in(edge, &parts, read, asking).await? {
                Taken::New(waiter) => wait(edge, dialect, waiter, outflow).await,
                Taken::Joined(waiter, by) => {
                    let mut response = wait(edge, dialect, waiter, outflow).await?;
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

/// A request with its place.
struct Asking {
    dialect: Dialect,
    class: Class,
    key: Option<String>,
    place: Place,
}

/// What became of a request.
enum Taken {
    /// A job of its own.
    New(Waiter),
    /// It waits for the answer of a job that was there.
    Joined(Waiter, FoundBy),
    /// The job that was there has ended without an answer.
    Over(Box<JobView>, FoundBy),
}

/// Stores the job, or joins the one that is there. When this returns, the job is on disk.
async fn take_in(
    edge: &Arc<Edge>,
    parts: &Parts,
    read: ReadBody,
    asking: Asking,
) -> Result<Taken, Told> {
    let asker = Asker::of(edge, parts);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let request = (asking.dialect, path, &read.bytes);
    let mut marks = marks(edge, &asker, request, (&asking.place.model, asking.key.clone())).await;
    // A client's own load or unload is done each time it is asked for.
    marks.likeness = marks.likeness.filter(|_| asking.place.kind == Kind::Run);
    for _ in 0..JOINS_MAX {
        let extras = Extras {
            // Who sends a key will be back for the answer.
            is_async: marks.idempotency.is_some(),
            idempotency: marks.idempotency.clone(),
            attach_key: marks.attach_key,
            likeness: marks.likeness,
            ..Extras::default()
        };
        let asked = Asked {
            dialect: asking.dialect,
            path_and_query: path.to_owned(),
            body: read.bytes.clone(),
            class: asking.class,
            place: asking.place.clone(),
            extras,
        };
        match admit(edge, &asker, asked).await? {
            Intake::New(waiter) => return Ok(Taken::New(waiter)),
            Intake::Found(id, by) => {
                if let Some(taken) = join(edge, id, by).await? {
                    tracing::info!(job.id = %id, by = ?by, http.connection = asker.whom.connection, "joined a job");
                    return Ok(taken);
                }
            }
        }
    }
    let text =
        "the job of an equal request was cancelled again and again; nothing was stored, try again";
    Err(Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(1))
}

enum Intake {
    New(Waiter),
    Found(JobId, FoundBy),
}

async fn admit(edge: &Arc<Edge>, asker: &Asker, asked: Asked) -> Result<Intake, Told> {
    let (lane, is_async) = (asked.place.lane.clone(), asked.extras.is_async);
    let job = new_job(edge, asker, asked);
    // The waiter exists before the job does, so that a client that leaves during the commit is noticed.
    let leaves = if is_async { Leaves::Going } else { Leaves::Cancelled };
    let mut waiter = Waiter::new(edge, job.id, leaves);
    let storing = store(Arc::clone(edge), job, lane, asker.whom);
    let stored = match leaves {
        // Whose client leaves is cancelled, by a write behind this one.
        Leaves::Cancelled => storing.await,
        Leaves::Going => {
            let died =
                || Err(Told::new(StatusCode::SERVICE_UNAVAILABLE, "the request died; try again"));
            edge.to_the_end(storing).await.unwrap_or_else(died)
        }
    };
    match stored {
        Ok(None) => Ok(Intake::New(waiter)),
        Ok(Some((id, by))) => {
            waiter.let_go();
            Ok(Intake::Found(id, by))
        }
        Err(told) => {
            waiter.let_go();
            Err(told)
        }
    }
}

/// Stores a job and tells the worker of it; or the one that is there already, and the output is forgotten that waited for
/// this one.
async fn store(
    edge: Arc<Edge>,
    job: NewJob,
    lane: Lane,
    whom: Whom,
) -> Result<Option<(JobId, FoundBy)>, Told> {
    let (id, dialect, class, body) = (job.id, job.dialect, job.class, job.body.clone());
    let (client, owner) = (job.client.clone(), job.extras.owner.clone());
    let admission = edge.store.admit(job, edge.queue_limits(), edge.clock.now_ms()).await;
    let outcome = match admission {
        Ok(Admission::Admitted { seq }) => {
            fail_point::reach("admit.committed");
            tracing::info!(
                job.id = %id,
                job.seq = seq,
                job.lane = %lane,
                job.dialect = dialect.name(),
                job.class = class.name(),
                job.client = %client,
                job.owner = %owner,
                http.connection = whom.connection,
                "job admitted"
            );
            let chain = chain(dialect, &body, &edge.chain_keys);
            let arrival = Arrival { id, seq, lane: &lane, whom, chain: &chain };
            edge.worker.arrived(&arrival, edge.clock.now_ms());
            return Ok(None);
        }
        Ok(Admission::Found { id, by }) => Ok(Some((id, by))),
        Ok(Admission::KeyTaken { id }) => Err(intake::key_taken(id)),
        Ok(Admission::Full { jobs, limit }) => Err(intake::queue_full(jobs, limit)),
        Err(fault) => Err(intake::not_stored(&edge, &fault)),
    };
    edge.worker.outputs().forget(id);
    outcome
}

/// Joins a job that is there. `None` if it was cancelled in this moment: then it is not found again.
async fn join(edge: &Arc<Edge>, id: JobId, by: FoundBy) -> Result<Option<Taken>, Told> {
    let is_by_key = by == FoundBy::Key;
    match reach(edge, id).await.map_err(|fault| intake::not_stored(edge, &fault))? {
        // A key leads to its job whatever becomes of that.
        Sought::There(Reached::Open(output, _)) if is_by_key => {
            let waiter = Waiter::of(edge, id, output, Leaves::Going);
            Ok(Some(Taken::Joined(waiter, by)))
        }
        Sought::There(Reached::Open(output, _)) => {
            match Waiter::join(edge, id, Arc::clone(&output)) {
                Some(waiter) => Ok(Some(Taken::Joined(waiter, by))),
                None => end_abandoned(edge, id, &output).await.map(|()| None),
            }
        }
        Sought::There(Reached::Kept(output, _)) => {
            Ok(Some(Taken::Joined(Waiter::of_kept(edge, id, output), by)))
        }
        Sought::There(Reached::Ended(job)) if job.state == State::Cancelled && !is_by_key => {
            Ok(None)
        }
        Sought::There(Reached::Ended(job)) => Ok(Some(Taken::Over(job, by))),
        Sought::Purged | Sought::Unknown => Ok(None),
    }
}

/// Writes that a job is cancelled which its last client has just left, ahead of whoever else is about to.
async fn end_abandoned(edge: &Edge, id: JobId, output: &Arc<Output>) -> Result<(), Told> {
    let cancelled = edge.store.cancel(id, "the client left", edge.clock.now_ms()).await;
    match cancelled.map_err(|fault| intake::not_stored(edge, &fault))? {
        Cancellation::Cancelled => edge.worker.cancelled_waiting(id, output),
        Cancellation::Cancelling | Cancellation::Ended(_) | Cancellation::Unknown => (),
    }
    Ok(())
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
            wait(edge, dialect, Waiter::of_kept(edge, id, output), outflow).await.ok()
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

/// Waits until the answer begins, and passes it on.
async fn wait(
    edge: &Arc<Edge>,
    dialect: Dialect,
    mut waiter: Waiter,
    outflow: Outflow,
) -> Result<Response, Told> {
    let output = Arc::clone(&waiter.output);
    let opening = tokio::select! {
        opening = output.opening() => opening,
        () = stopped_while_waiting(edge, &output) => {
            waiter.let_go();
            let id = waiter.id;
            return Err(stopping(&format!("job {id} stays queued and runs after the restart")));
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

/// Returns when the daemon stops and the job is not in flight: then its client is sent away and the job stays.
pub(super) async fn stopped_while_waiting(edge: &Edge, output: &Output) {
    edge.tasks.draining().await;
    output.not_in_flight().await;
}

fn refused(refusal: &Refusal) -> Told {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_GATEWAY);
    Told { status, text: refusal.text.clone(), retry_after_s: refusal.retry_after_s }
}
