//! Submitting one job: `POST /jobs`, and `Prefer: respond-async` on a native route.
//!
//! Nothing here waits for Ollama or for the worker: a model is placed by what the last poll said, and a job of one that is
//! not known is taken all the same; it fails with Ollama's own error.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};

use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, Counters, JobId, Kind, State};
use crate::fail_point;
use crate::ollama::wire::canonical::fingerprint;
use crate::store::{Admission, Extras, FoundBy, Idempotency, JobView, Likeness, NewJob, Sought};

use super::super::error::Told;
use super::super::follow;
use super::super::intake::{self, Asked, Asker, hashed, marks, new_job};
use super::super::placement::{Known, Placement, place, place_request};
use super::super::plain::Plain;
use super::super::prefer::idempotency_key;
use super::super::problem::{Code, Problem};
use super::super::queued::{ended_answer, tell_how};
use super::super::submission::{Submission, parse};
use super::super::{Edge, Response, body, outflow::Outflow, pass};
use super::object::{Details, whole};
use super::{document, look, stopping, there, unread};

/// The route that POST /jobs is, in the fingerprint of its requests.
const ROUTE: &[u8] = b"/jobs";

/// A native request that wants its answer later.
pub(in super::super) struct Native {
    pub(in super::super) dialect: Dialect,
    pub(in super::super) class: Class,
    pub(in super::super) key: Option<String>,
    /// How long it waits for its answer before.
    pub(in super::super) wait: Option<Duration>,
}

/// `POST /jobs`.
pub(super) async fn submit(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    let (parts, incoming) = request.into_parts();
    if edge.tasks.is_draining() {
        body::linger(edge, &parts, incoming);
        return Err(stopping());
    }
    let key = match idempotency_key(&parts.headers) {
        Ok(key) => key,
        Err(problem) => {
            body::linger(edge, &parts, incoming);
            return Err(problem);
        }
    };
    let read = body::read(edge, &parts, incoming, edge.config.body_max).await?;
    let now_ms = edge.clock.now_ms();
    let submitted = read.bytes.clone();
    let mut submission = hashed(move || Some(parse(&submitted, now_ms)), read.bytes.len())
        .await
        .ok_or_else(died)??;
    submission.agree_on_key(key)?;
    let asker = Asker::of(edge, &parts);
    let model = intake::model_digest(&edge.inventory, &submission.request.model);
    let (duplicates, scope) = (edge.config.duplicates, asker.scope.clone());
    let (hashed_of, bytes) = (submission.clone(), read.bytes.clone());
    let prints = move || Some(Prints::of(&hashed_of, &bytes, (duplicates, &scope, &model)));
    let prints = hashed(prints, read.bytes.len()).await.ok_or_else(died)?;
    let job = job_of(edge, &asker, submission, prints).await;
    let admitted = admit(edge, job).await?;
    Ok(accepted(edge, admitted).await)
}

fn died() -> Problem {
    Problem::new(
        Code::StoreUnavailable,
        "the request could not be read; nothing was stored, try again",
    )
    .retry_after(1)
}

/// By what a submission is known when it comes again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prints {
    fingerprint: [u8; 32],
    likeness: Option<Likeness>,
}

impl Prints {
    /// Hashes a submission: its bytes as they came, and for duplicates what it means.
    pub(super) fn of(
        submission: &Submission,
        bytes: &Bytes,
        (duplicates, scope, model): (crate::config::Duplicates, &str, &str),
    ) -> Prints {
        let fields = submission.fields_fingerprint();
        let parts: [&[u8]; 4] =
            [submission.path.as_bytes(), scope.as_bytes(), model.as_bytes(), &fields];
        let is_work = !submission.request.is_empty && !submission.request.is_unload();
        let likeness =
            || intake::likeness(duplicates, submission.dialect, &parts, &submission.body);
        Prints {
            fingerprint: fingerprint(&[ROUTE, bytes]),
            likeness: is_work.then(likeness).flatten(),
        }
    }
}

/// The job of a submission.
pub(super) async fn job_of(
    edge: &Edge,
    asker: &Asker,
    submission: Submission,
    prints: Prints,
) -> NewJob {
    let placement =
        place_request(edge, submission.dialect, submission.request.clone(), Known::Last).await;
    let place = match placement {
        Placement::Queue(place) => place,
        // Of what was checked, only this is left: it never touches the GPU, and runs by itself.
        Placement::Forward(_) => super::super::placement::alone(&submission.request),
    };
    let idempotency = submission.idempotency_key.map(|key| Idempotency {
        scope: asker.scope.clone(),
        key,
        fingerprint: prints.fingerprint,
    });
    let extras = Extras {
        // Said by the asker's key.
        owner: String::new(),
        is_async: true,
        run_at_ms: submission.run_at_ms.unwrap_or(0),
        deadline_ms: submission.deadline_ms,
        webhook: submission.webhook,
        metadata: submission.metadata,
        idempotency,
        attach_key: None,
        likeness: prints.likeness,
    };
    let mut job = new_job(
        edge,
        asker,
        Asked {
            dialect: submission.dialect,
            path_and_query: submission.path.to_owned(),
            body: submission.body,
            // Nobody waits for it on a connection.
            class: asker.caller.class(submission.class, Class::Normal),
            place,
            extras,
        },
    );
    // What was said of the submission's own body does not hold for the one that was cut out of it.
    job.headers.retain(|(name, _)| !OF_THE_ENVELOPE.contains(&name.as_str()));
    job.headers.push(("content-type".to_owned(), b"application/json".to_vec()));
    job
}

/// Headers that belong to the submission and not to the request in it.
const OF_THE_ENVELOPE: [&str; 5] =
    ["content-type", "prefer", "idempotency-key", "accept", "accept-encoding"];

/// A job that was taken, or found to be there.
pub(super) struct Taken {
    pub(super) id: JobId,
    pub(super) by: Option<FoundBy>,
    /// It as it was admitted; `None` if it was there.
    new: Option<Box<JobView>>,
}

async fn admit(edge: &Edge, job: NewJob) -> Result<Taken, Problem> {
    if !edge.store.has_room() {
        return Err(no_room());
    }
    let now_ms = edge.clock.now_ms();
    let mut new = view_of(&job, now_ms);
    let (lane, class, client) = (job.lane.clone(), job.class, job.client.clone());
    let admission = edge.store.admit(job, edge.queue_limits(), now_ms).await;
    let admission = admission.map_err(|fault| unread(edge, &fault))?;
    if let Admission::Admitted { seq } = admission {
        fail_point::reach("admit.committed");
        tracing::info!(job.id = %new.id, job.seq = seq, job.lane = %lane, job.class = class.name(),
            job.client = %client, job.owner = intake::owned(&new.owner), "job submitted");
        new.seq = seq;
        edge.worker.submitted(seq);
        if new.deadline_ms.is_some() {
            edge.worker.deadline_waits();
        }
    }
    let id = new.id;
    taken(admission, id, Some(new))
}

pub(super) fn no_room() -> Problem {
    intake::no_room().into()
}

/// What an admission came to.
pub(super) fn taken(
    admission: Admission,
    id: JobId,
    new: Option<JobView>,
) -> Result<Taken, Problem> {
    match admission {
        Admission::Admitted { .. } => Ok(Taken { id, by: None, new: new.map(Box::new) }),
        Admission::Found { id, by } => Ok(Taken { id, by: Some(by), new: None }),
        Admission::KeyTaken { id } => {
            let text = format!(
                "the idempotency key was used with another request (job {id}); nothing was stored, use a new key"
            );
            Err(Problem::new(Code::IdempotencyMismatch, text).job(id))
        }
        Admission::Full { jobs, limit } => Err(intake::queue_full(jobs, limit).into()),
    }
}

/// 202 and the job object.
async fn accepted(edge: &Edge, taken: Taken) -> Response {
    let now_ms = edge.clock.now_ms();
    let object = match &taken.new {
        Some(new) => Ok(whole(new, &Details::default(), now_ms)),
        None => look::object(edge, taken.id).await,
    };
    let mut response = match object {
        Ok(object) => document(StatusCode::ACCEPTED, &object),
        Err(problem) => return problem.answer(),
    };
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(&format!("/jobs/{}", taken.id)) {
        headers.insert(LOCATION, location);
    }
    follow::name_job(headers, taken.id);
    if let Some(by) = taken.by {
        tell_how(headers, by);
    }
    response
}

/// A new job as it would be read back.
fn view_of(job: &NewJob, now_ms: i64) -> JobView {
    let run_at_ms = Some(job.extras.run_at_ms).filter(|at_ms| *at_ms > now_ms);
    let (path, _) = job.path_and_query.split_once('?').unwrap_or((&job.path_and_query, ""));
    JobView {
        seq: 0,
        id: job.id,
        state: State::Queued,
        is_cancelling: false,
        path: path.to_owned(),
        dialect: job.dialect,
        model: job.model.clone(),
        lane: job.lane.clone(),
        class: job.class,
        owner: job.extras.owner.clone(),
        is_async: job.extras.is_async,
        is_streamed: job.is_streamed,
        attempt: 0,
        counters: Counters::default(),
        created_at_ms: now_ms,
        queued_at_ms: now_ms,
        run_at_ms,
        deadline_ms: job.extras.deadline_ms,
        not_before_ms: run_at_ms,
        claimed_at_ms: None,
        working_at_ms: None,
        first_byte_at_ms: None,
        answered_at_ms: None,
        finished_at_ms: None,
        load_ms: None,
        prompt_tokens: None,
        output_tokens: None,
        last_error: None,
        error_status: None,
        metadata: job.extras.metadata.clone(),
        webhook_url: job.extras.webhook.as_ref().map(|webhook| webhook.url.clone()),
        idempotency_key: job.extras.idempotency.as_ref().map(|idempotency| idempotency.key.clone()),
        answer: None,
    }
}

const APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Serves a native request with `Prefer: respond-async`.
pub(in super::super) async fn respond_async(
    edge: &Arc<Edge>,
    parts: &Parts,
    body: Bytes,
    native: Native,
) -> Result<Response, Told> {
    let plain = Plain::of(edge, native.dialect, &parts.headers, &body).await;
    let place = match place(edge, native.dialect, &parts.headers, &plain, Known::Last).await {
        Placement::Queue(place) => place,
        Placement::Forward(reason) => {
            // Ollama may take minutes, and the next compressed body needs the place.
            drop(plain);
            tracing::debug!(http.path = parts.uri.path(), reason, "forwarded beside the queue");
            let mut again = Request::new(()).into_parts().0;
            again.clone_from(parts);
            return Ok(pass::pass_bytes(edge, again, body, ()).await);
        }
    };
    let asker = Asker::of(edge, parts);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let request = (native.dialect, path, &plain.known_by(&body));
    let is_work = place.kind == Kind::Run;
    let marks = marks(edge, &asker, request, (&place.model, native.key)).await;
    drop(plain);
    let extras = Extras {
        is_async: true,
        idempotency: marks.idempotency,
        likeness: marks.likeness.filter(|_| is_work),
        ..Extras::default()
    };
    let asked = Asked {
        dialect: native.dialect,
        path_and_query: path.to_owned(),
        body,
        class: native.class,
        place,
        extras,
    };
    let (admitting, job) = (Arc::clone(edge), new_job(edge, &asker, asked));
    let taken = edge.to_the_end(async move { admit(&admitting, job).await }).await;
    let taken = taken.unwrap_or_else(|| Err(super::died())).map_err(Told::from)?;
    if let Some(wait) = native.wait {
        look::wait_for_end(edge, taken.id, wait).await;
        let outflow = parts.extensions.get::<Outflow>().cloned().unwrap_or_default();
        if let Some(mut response) = ended_answer(edge, native.dialect, taken.id, outflow).await {
            if let Some(by) = taken.by {
                tell_how(response.headers_mut(), by);
            }
            return Ok(response);
        }
    }
    let mut response = accepted(edge, taken).await;
    response.headers_mut().insert(APPLIED, HeaderValue::from_static("respond-async"));
    Ok(response)
}

/// The job object of a job that is there, for whoever acted on it.
pub(super) async fn shown(edge: &Edge, status: StatusCode, id: JobId) -> Result<Response, Problem> {
    Ok(document(status, &look::object(edge, id).await?))
}

/// Whether a job is there at all.
pub(super) async fn require(edge: &Edge, id: JobId) -> Result<JobView, Problem> {
    let sought: Sought<_> = edge.store.job(id).await.map_err(|fault| unread(edge, &fault))?;
    there(id, sought).map(|(job, _)| job)
}
