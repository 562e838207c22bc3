//! The body of a queued answer: follows the job's output at the client's own pace.
//!
//! A broken answer ends with an error record in the dialect's shape and then with an error of the body, on which hyper
//! cuts the connection without the last chunk: of all endings that is the one every client notices.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Response as HttpResponse;
use hyper::StatusCode;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use sync_wrapper::SyncWrapper;

use crate::domain::dialect::Dialect;
use crate::domain::job::JobId;
use crate::ollama::client::{Body, BodyError};
use crate::worker::output::{End, Follower, Head, Next, Opening, Timings};

use super::Response;
use super::error::{Form, in_band, relayed_in_band};
use super::headers;
use super::intake::stopping;
use super::outflow::Outflow;
use super::queued::{refused, stays};
use super::records::Records;
use super::waiter::Waiter;
use super::waiting::{Beginning, Heard, Patience};

const JOB_ID: HeaderName = HeaderName::from_static("x-foreman-job-id");
const QUEUE_MS: HeaderName = HeaderName::from_static("x-foreman-queue-ms");
const LOAD_MS: HeaderName = HeaderName::from_static("x-foreman-load-ms");

/// The answer of a job: Ollama's status, headers and bytes, and foreman's own headers.
pub(super) fn answer(
    dialect: Dialect,
    (head, timings): (Head, Timings),
    waiter: Waiter,
    outflow: Outflow,
) -> Response {
    let id = waiter.id;
    let follower = Follower::new(Arc::clone(&waiter.output), timings.attempt);
    let body = FollowBody {
        shape: (dialect, Form::of_stream(dialect)),
        waiter: Some(waiter),
        outflow,
        records: records(dialect, &head),
        step: Step::reading(follower),
    };
    let mut response = HttpResponse::new(body.boxed());
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = headers::from_list(&head.headers);
    name_job(response.headers_mut(), id);
    response.headers_mut().insert(QUEUE_MS, HeaderValue::from(timings.queue_ms));
    response.headers_mut().insert(LOAD_MS, HeaderValue::from(timings.load_ms));
    response
}

/// An answer that begins before the job does: the headers Ollama would send, and bytes to ignore until its own come.
pub(super) fn early_answer(
    dialect: Dialect,
    (patience, beginning): (Patience, Beginning),
    mut waiter: Waiter,
    outflow: Outflow,
) -> Response {
    match patience.form {
        Form::Lines | Form::Events => waiter.begun(),
        // A client waits for all of it before it has anything.
        Form::Value => (),
    }
    let Beginning { mut headers, bytes } = beginning;
    name_job(&mut headers, waiter.id);
    let first = Heard::Nothing(bytes);
    let body = FollowBody {
        shape: (dialect, patience.form),
        waiter: Some(waiter),
        outflow,
        records: Records::none(),
        step: Step::Waiting(Pending::new(std::future::ready(first)), Arc::new(patience)),
    };
    let mut response = HttpResponse::new(body.boxed());
    *response.headers_mut() = headers;
    response
}

/// The rest of an answer that comes, for somebody who only looks: their leaving means nothing to the job.
pub(super) fn observed(
    dialect: Dialect,
    follower: Follower,
    head: &Head,
    outflow: Outflow,
) -> Body {
    let body = FollowBody {
        shape: (dialect, Form::of_stream(dialect)),
        waiter: None,
        outflow,
        records: records(dialect, head),
        step: Step::reading(follower),
    };
    body.boxed()
}

/// The rest of an answer that is whole: exactly so many bytes.
pub(super) fn kept(follower: Follower, bytes: u64) -> Body {
    KeptBody { left: bytes, reading: Pending::new(read(follower)) }.boxed()
}

/// Tells the client the id of its job.
pub(super) fn name_job(headers: &mut HeaderMap, id: JobId) {
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(JOB_ID, value);
    }
}

/// The records of an answer. Of a route that is not known nothing is held back, whatever it calls its bytes.
fn records(dialect: Dialect, head: &Head) -> Records {
    match dialect {
        Dialect::Other(_) => Records::new(&Head { headers: Vec::new(), ..*head }),
        _ => Records::new(head),
    }
}

async fn read(mut follower: Follower) -> (Follower, Next) {
    let next = follower.next().await;
    (follower, next)
}

struct FollowBody {
    /// How an error is told.
    shape: (Dialect, Form),
    /// The client the job is for; none for somebody who only looks.
    waiter: Option<Waiter>,
    outflow: Outflow,
    records: Records,
    step: Step,
}

/// What a step of a body waits for. A body must be [`Sync`], and what it waits for need not be: nobody shares it.
struct Pending<T>(SyncWrapper<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T> Pending<T> {
    fn new(future: impl Future<Output = T> + Send + 'static) -> Pending<T> {
        Pending(SyncWrapper::new(Box::pin(future)))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<T> {
        self.0.get_mut().as_mut().poll(context)
    }
}

enum Step {
    /// The headers are out; waits for the answer to begin.
    Waiting(Pending<Heard>, Arc<Patience>),
    /// Waits for the next bytes.
    Reading(Pending<(Follower, Next)>),
    /// Waits for the whole of an error answer that came behind early headers.
    Gathering(Pending<Vec<u8>>),
    /// The error record was handed to hyper; waits until it is out, or will never be.
    Flushing(Pending<()>),
    /// Cuts the connection.
    Cutting,
    /// Nothing more.
    Ended,
}

impl Step {
    fn reading(follower: Follower) -> Step {
        Step::Reading(Pending::new(read(follower)))
    }

    fn waiting(waiter: &Waiter, patience: Arc<Patience>) -> Step {
        let (edge, output) = (Arc::clone(waiter.edge()), Arc::clone(&waiter.output));
        let hearing = Arc::clone(&patience).hear(edge, waiter.id, output);
        Step::Waiting(Pending::new(hearing), patience)
    }
}

/// The bytes of an error answer; Ollama's are a sentence, and no more than a MiB is kept of any.
async fn gather(mut follower: Follower) -> Vec<u8> {
    let mut body = Vec::new();
    while let Next::Bytes(bytes) = follower.next().await {
        body.extend_from_slice(&bytes);
    }
    body
}

impl FollowBody {
    fn let_go(&mut self) {
        if let Some(waiter) = &mut self.waiter {
            waiter.let_go();
        }
    }

    /// What a client that waits is sent; the next step follows from it.
    fn hear(&mut self, heard: Heard, patience: Arc<Patience>) -> Option<Bytes> {
        let waiter = self.waiter.as_ref()?;
        match heard {
            Heard::Nothing(bytes) => {
                self.step = Step::waiting(waiter, patience);
                Some(bytes)
            }
            Heard::Opening(Opening::Answer(head, timings)) => {
                let follower = Follower::new(Arc::clone(&waiter.output), timings.attempt);
                if (200..300).contains(&head.status) {
                    self.records = records(self.shape.0, &head);
                    self.step = Step::reading(follower);
                } else {
                    self.step = Step::Gathering(Pending::new(gather(follower)));
                }
                None
            }
            Heard::Opening(Opening::Refused(refusal)) => {
                self.last_words(&refused(&refusal).sentence())
            }
            Heard::Stopping => {
                let told = stopping(&stays(waiter.id));
                self.last_words(&told.sentence())
            }
        }
    }

    /// What a step of reading gives to send; the next step follows from it.
    fn take(&mut self, follower: Follower, next: Next) -> Option<Bytes> {
        match next {
            Next::Bytes(bytes) => {
                self.step = Step::reading(follower);
                self.records.take(bytes)
            }
            Next::End(End::Whole) => {
                self.let_go();
                self.step = Step::Ended;
                self.records.rest()
            }
            // Ollama's own error record, which may have come without its line end.
            Next::End(End::Broken(refusal)) if refusal.is_told => {
                self.break_off();
                self.records.rest()
            }
            Next::End(End::Broken(refusal)) => self.last_words(&refusal.text),
        }
    }

    /// The last record of a broken answer. How a route that is not known tells an error inside its bytes is not known either:
    /// the cut tells it.
    fn last_words(&mut self, text: &str) -> Option<Bytes> {
        self.break_off();
        match self.shape {
            (Dialect::Other(_), _) => None,
            shape => Some(in_band(shape, text, self.records.line_start)),
        }
    }

    fn break_off(&mut self) {
        self.let_go();
        self.step = Step::Flushing(Pending::new(self.outflow.clone().flushed()));
    }

    /// One step; `Ready(None)` where it gave nothing to send.
    fn step(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match &mut self.step {
            Step::Waiting(hearing, patience) => {
                let heard = ready!(hearing.poll(context));
                let patience = Arc::clone(patience);
                Poll::Ready(self.hear(heard, patience).map(Ok))
            }
            Step::Reading(reading) => {
                let (follower, next) = ready!(reading.poll(context));
                Poll::Ready(self.take(follower, next).map(Ok))
            }
            Step::Gathering(gathering) => {
                let body = ready!(gathering.poll(context));
                self.break_off();
                Poll::Ready(Some(Ok(relayed_in_band(self.shape, &body))))
            }
            Step::Flushing(flushed) => {
                ready!(flushed.poll(context));
                self.step = Step::Cutting;
                Poll::Ready(None)
            }
            Step::Cutting => {
                self.step = Step::Ended;
                Poll::Ready(Some(Err("the answer broke off".into())))
            }
            Step::Ended => Poll::Ready(None),
        }
    }
}

impl HttpBody for FollowBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if matches!(self.step, Step::Ended) {
                return Poll::Ready(None);
            }
            if let Some(piece) = ready!(self.step(context)) {
                return Poll::Ready(Some(piece.map(Frame::data)));
            }
        }
    }
}

/// A kept answer on its way out, of a known length.
struct KeptBody {
    left: u64,
    reading: Pending<(Follower, Next)>,
}

impl HttpBody for KeptBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let Poll::Ready((follower, next)) = self.reading.poll(context) else {
            return Poll::Pending;
        };
        match next {
            Next::Bytes(bytes) => {
                self.left = self.left.saturating_sub(u64::try_from(bytes.len()).unwrap_or(0));
                self.reading = Pending::new(read(follower));
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            // Its file is gone or cannot be read: the connection is cut short of its length.
            Next::End(_) => Poll::Ready(Some(Err("the kept answer cannot be read".into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
