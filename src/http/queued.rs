//! The road of a queued request: read, peek, place, admit, wait, answer.
//!
//! The handler *waits for a job*; it never runs one. When its client leaves, the [`Waiter`] it holds is dropped: a job
//! that still waits is cancelled and Ollama never hears of it, one in flight is told that nobody wants its answer.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};
use ulid::Ulid;

use crate::clock;
use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, JobId};
use crate::fail_point;
use crate::ollama::wire::chain::chain;
use crate::store::{Admission, Cancellation, NewJob, QueueLimit, StoreError};
use crate::worker::Arrival;
use crate::worker::output::{Opening, Output, Refusal};

use super::body::ReadBody;
use super::error::Told;
use super::follow;
use super::headers;
use super::outflow::Outflow;
use super::placement::{Place, Placement, place};
use super::whom::{class, whom};
use super::{Edge, Response, body, pass};

/// When to try again after a full queue: about what a few short jobs take.
const FULL_RETRY_S: u64 = 10;

/// When to try again while the disk is full: somebody has to make room, or old jobs have to be dropped.
const NO_ROOM_RETRY_S: u64 = 30;

/// Pause between tries to cancel a job whose client is gone: a full disk may get room.
const CANCEL_PAUSE: Duration = Duration::from_secs(1);

/// When to try again after a stop: a restart takes a few seconds.
const STOPPING_RETRY_S: u64 = 5;

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
    let class = match class(&parts.headers) {
        Ok(class) => class,
        Err(told) => {
            body::linger(edge, incoming);
            return Err(told);
        }
    };
    let read = body::read(edge, incoming, edge.config.body_max).await?;
    match place(edge, dialect, &parts.headers, &read.bytes).await {
        Placement::Forward(reason) => {
            tracing::debug!(http.path = parts.uri.path(), reason, "forwarded beside the queue");
            Ok(pass::pass_bytes(edge, parts, read.bytes).await)
        }
        Placement::Queue(_) if !edge.store.has_room() => Err(no_room()),
        Placement::Queue(place) => {
            let outflow = parts.extensions.get::<Outflow>().cloned().unwrap_or_default();
            let waiter = admit(edge, dialect, parts, read, place, class).await?;
            wait(edge, dialect, waiter, outflow).await
        }
    }
}

/// Stores the job. When this returns, it is on disk.
async fn admit(
    edge: &Arc<Edge>,
    dialect: Dialect,
    mut parts: Parts,
    read: ReadBody,
    place: Place,
    class: Class,
) -> Result<Waiter, Told> {
    let now_ms = edge.clock.now_ms();
    let id = JobId(Ulid::from_datetime(clock::system_time(now_ms)));
    let path_and_query = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let whom = whom(&parts, pass::credentials(edge));
    headers::for_upstream(&mut parts.headers, pass::credentials(edge));
    let job = NewJob {
        id,
        dialect,
        kind: place.kind,
        lane: place.lane.to_string(),
        model: place.model,
        class,
        client: whom.client.to_string(),
        is_streamed: place.is_streamed,
        path_and_query,
        headers: headers::to_list(&parts.headers),
        body: read.bytes.clone(),
    };
    // The waiter exists before the job does, so that a client that leaves during the commit is noticed.
    let mut waiter = Waiter::new(edge, id);
    let admission = edge.store.admit(job, edge.queue_limits(), now_ms).await;
    let refused = match admission {
        Ok(Admission::Admitted { seq }) => {
            fail_point::reach("admit.committed");
            tracing::info!(
                job.id = %id,
                job.seq = seq,
                job.lane = %place.lane,
                job.dialect = dialect.name(),
                job.class = class.name(),
                job.client = %whom.client,
                http.connection = whom.connection,
                "job admitted"
            );
            let chain = chain(dialect, &read.bytes, &edge.chain_keys);
            let arrival = Arrival { id, seq, lane: &place.lane, whom, chain: &chain };
            edge.worker.arrived(&arrival, edge.clock.now_ms());
            return Ok(waiter);
        }
        Ok(Admission::Full { jobs, limit }) => queue_full(jobs, limit),
        Err(fault) => not_stored(edge, &fault),
    };
    waiter.let_go();
    edge.worker.outputs().forget(id);
    Err(refused)
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
async fn stopped_while_waiting(edge: &Edge, output: &Output) {
    edge.tasks.draining().await;
    output.not_in_flight().await;
}

fn refused(refusal: &Refusal) -> Told {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_GATEWAY);
    Told { status, text: refusal.text.clone(), retry_after_s: refusal.retry_after_s }
}

fn queue_full(jobs: u64, limit: QueueLimit) -> Told {
    let queue = match limit {
        QueueLimit::Jobs | QueueLimit::Bytes => "the queue".to_owned(),
        QueueLimit::Class(class) => format!("the queue of class {}", class.name()),
    };
    let text = format!("{queue} is full ({jobs} jobs wait); nothing was stored, try again later");
    Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(FULL_RETRY_S)
}

fn no_room() -> Told {
    let text = "the disk of foreman's database is full; nothing was stored, try again later";
    Told::new(StatusCode::INSUFFICIENT_STORAGE, text).retry_after(NO_ROOM_RETRY_S)
}

fn not_stored(edge: &Edge, fault: &StoreError) -> Told {
    if matches!(fault, StoreError::Closed) && !edge.tasks.is_draining() {
        edge.tasks.break_down("store");
    }
    tracing::error!(db.error = %fault, "a job could not be stored");
    if matches!(fault, StoreError::Full) {
        return no_room();
    }
    let text = "foreman could not store the request; nothing was sent to ollama, try again later";
    Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(FULL_RETRY_S)
}

fn stopping(what: &str) -> Told {
    let text = format!("foreman is stopping; {what}; it is safe to try again");
    Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(STOPPING_RETRY_S)
}

/// A client that waits for a job. Dropping it means the client is gone.
pub(super) struct Waiter {
    edge: Arc<Edge>,
    pub(super) id: JobId,
    pub(super) output: Arc<Output>,
    is_waiting: bool,
}

impl Waiter {
    fn new(edge: &Arc<Edge>, id: JobId) -> Waiter {
        let output = edge.worker.outputs().open(id);
        output.follow();
        Waiter { edge: Arc::clone(edge), id, output, is_waiting: true }
    }

    /// From here on the client's leaving means nothing: it has its answer, or the job goes on without it.
    pub(super) fn let_go(&mut self) {
        self.is_waiting = false;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // While the daemon stops, connections are closed by foreman, not by their clients: the jobs stay.
        let tasks = &self.edge.tasks;
        let is_over = self.output.has_ended();
        let is_cut_by_us =
            tasks.is_forced() || (tasks.is_draining() && !self.output.is_in_flight());
        if !self.is_waiting || is_over || is_cut_by_us {
            return;
        }
        self.output.abandon();
        let (edge, id) = (Arc::clone(&self.edge), self.id);
        let tasks = edge.tasks.clone();
        tasks.spawn(async move {
            while let Err(fault) = cancel(&edge, id).await {
                tracing::warn!(job.id = %id, db.error = %fault, "job not cancelled; trying again");
                tokio::select! {
                    () = tokio::time::sleep(CANCEL_PAUSE) => (),
                    () = edge.tasks.draining() => return,
                }
            }
        });
    }
}

/// Cancels a job whose client left while it waited.
async fn cancel(edge: &Edge, id: JobId) -> Result<(), StoreError> {
    fail_point::reach("cancel.before");
    match edge.store.cancel_waiting(id, edge.clock.now_ms()).await? {
        Cancellation::Cancelled => {
            fail_point::reach("cancel.committed");
            tracing::info!(job.id = %id, "job cancelled, its client left while it waited");
            edge.worker.cancelled(id);
            edge.worker.outputs().forget(id);
        }
        // The worker sees the abandoned output, and forgets it in the end.
        Cancellation::NotWaiting => (),
        Cancellation::Unknown => edge.worker.outputs().forget(id),
    }
    Ok(())
}
