//! Takes a request in: it becomes a job of its own, or waits for one that is there already.

use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::http::request::Parts;

use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, JobId, Kind, State};
use crate::domain::schedule::Lane;
use crate::domain::whom::Whom;
use crate::fail_point;
use crate::store::{Admission, Cancellation, Extras, FoundBy, JobView, NewJob, Sought};
use crate::worker::Arrival;
use crate::worker::output::Output;

use super::Edge;
use super::body::ReadBody;
use super::error::Told;
use super::intake::{self, Asked, Asker, Marks, marks, new_job};
use super::placement::Place;
use super::queued::refused;
use super::reach::{Reached, reach};
use super::stainless::Stainless;
use super::waiter::{Leaves, Waiter};

/// How often a request is admitted anew because the job it was found equal to was cancelled in that moment.
const JOINS_MAX: usize = 3;

/// A request with its place.
pub(super) struct Asking {
    pub(super) dialect: Dialect,
    pub(super) class: Class,
    pub(super) key: Option<String>,
    /// What a client says that tries again by itself.
    pub(super) stainless: Option<Stainless>,
    pub(super) place: Place,
    /// What the body says, by which it is known again.
    pub(super) known_by: Bytes,
}

/// What became of a request.
pub(super) enum Taken {
    /// A job of its own.
    New(Waiter),
    /// It waits for the answer of a job that was there.
    Joined(Waiter, FoundBy),
    /// The job that was there has ended without an answer.
    Over(Box<JobView>, FoundBy),
}

/// Stores the job, or joins the one that is there. When this returns, the job is on disk.
///
/// It goes on though the client leaves on the way: then the [`Waiter`] it ends with is dropped, wherever it came from. (A job that
/// was found for a client which left right then had nobody who waited, and nobody who left.)
pub(super) async fn take_in(
    edge: &Arc<Edge>,
    parts: &Parts,
    read: ReadBody,
    asking: Asking,
) -> Result<Taken, Told> {
    let asker = Asker::of(edge, parts);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let taken = edge.to_the_end(take(Arc::clone(edge), asker, (path, read), asking));
    let died = || Err(Told::new(StatusCode::SERVICE_UNAVAILABLE, "the request died; try again"));
    taken.await.unwrap_or_else(died)
}

async fn take(
    edge: Arc<Edge>,
    asker: Asker,
    (path, read): (String, ReadBody),
    asking: Asking,
) -> Result<Taken, Told> {
    let request = (asking.dialect, path.as_str(), &asking.known_by);
    let mut marks = marks(&edge, &asker, request, (&asking.place.model, asking.key.clone())).await;
    // A client's own load or unload is done each time it is asked for.
    marks.likeness = marks.likeness.filter(|_| asking.place.kind == Kind::Run);
    let leaves = leaves(&marks, asking.stainless);
    if let (Leaves::Lingering(request), Some(Stainless { is_retry: true, .. })) =
        (leaves, asking.stainless)
        && let Some(waiter) = edge.lingering.take(&request)
    {
        log_joined(waiter.id, FoundBy::Return, &asker);
        return Ok(Taken::Joined(waiter.back(request), FoundBy::Return));
    }
    let refusal = edge.worker.refusal(&asking.place.lane, &edge.inventory, edge.clock.now_ms());
    if let Some(refusal) = refusal.filter(|_| marks.idempotency.is_none()) {
        // One with an idempotency key may be there already, with an answer.
        return Err(refused(&refusal));
    }
    for _ in 0..JOINS_MAX {
        let extras = Extras {
            is_async: leaves == Leaves::Going,
            idempotency: marks.idempotency.clone(),
            attach_key: marks.attach_key,
            likeness: marks.likeness,
            ..Extras::default()
        };
        let asked = Asked {
            dialect: asking.dialect,
            path_and_query: path.clone(),
            body: read.bytes.clone(),
            class: asking.class,
            place: asking.place.clone(),
            extras,
        };
        match admit(&edge, &asker, asked, leaves).await? {
            Intake::New(waiter) => return Ok(Taken::New(waiter)),
            Intake::Found(id, by) => {
                if let Some(taken) = join(&edge, id, by, leaves).await? {
                    log_joined(id, by, &asker);
                    return Ok(taken);
                }
            }
        }
    }
    let text =
        "the job of an equal request was cancelled again and again; nothing was stored, try again";
    Err(Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(1))
}

/// What it will mean that the client leaves.
fn leaves(marks: &Marks, stainless: Option<Stainless>) -> Leaves {
    match (&marks.idempotency, marks.attach_key, stainless) {
        // Who sends a key will be back for the answer.
        (Some(_), _, _) => Leaves::Going,
        (None, Some(request), Some(_)) => Leaves::Lingering(request),
        (None, _, _) => Leaves::Cancelled,
    }
}

fn log_joined(id: JobId, by: FoundBy, asker: &Asker) {
    tracing::info!(job.id = %id, by = ?by, http.connection = asker.whom.connection, "joined a job");
}

enum Intake {
    New(Waiter),
    Found(JobId, FoundBy),
}

async fn admit(
    edge: &Arc<Edge>,
    asker: &Asker,
    asked: Asked,
    leaves: Leaves,
) -> Result<Intake, Told> {
    let lane = asked.place.lane.clone();
    let job = new_job(edge, asker, asked);
    // The waiter exists before the job does, so that its output does when the worker claims it.
    let mut waiter = Waiter::new(edge, job.id, leaves);
    match store(edge, job, &lane, asker.whom).await {
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
    edge: &Edge,
    job: NewJob,
    lane: &Lane,
    whom: Whom,
) -> Result<Option<(JobId, FoundBy)>, Told> {
    let (id, dialect, class) = (job.id, job.dialect, job.class);
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
                job.owner = intake::owned(&owner),
                http.connection = whom.connection,
                "job admitted"
            );
            let arrival = Arrival { id, seq, lane, client: whom.client };
            edge.worker.arrived(&arrival, edge.clock.now_ms());
            return Ok(None);
        }
        Ok(Admission::Found { id, by }) => {
            // One that was set aside waits in the queue again, which no change of state tells.
            edge.worker.wake();
            Ok(Some((id, by)))
        }
        Ok(Admission::KeyTaken { id }) => Err(intake::key_taken(id)),
        Ok(Admission::Full { jobs, limit }) => Err(intake::queue_full(jobs, limit)),
        Err(fault) => Err(intake::not_stored(edge, &fault)),
    };
    edge.worker.outputs().forget(id);
    outcome
}

/// Joins a job that is there. `None` if it was cancelled in this moment: then it is not found again.
async fn join(
    edge: &Arc<Edge>,
    id: JobId,
    by: FoundBy,
    leaves: Leaves,
) -> Result<Option<Taken>, Told> {
    let is_by_key = by == FoundBy::Key;
    match reach(edge, id).await.map_err(|fault| intake::not_stored(edge, &fault))? {
        // A key leads to its job whatever becomes of that.
        Sought::There(Reached::Open(output, _)) if is_by_key => {
            let waiter = Waiter::of(edge, id, output, Leaves::Going);
            Ok(Some(Taken::Joined(waiter, by)))
        }
        Sought::There(Reached::Open(output, _)) => {
            match Waiter::join(edge, id, Arc::clone(&output), leaves) {
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
