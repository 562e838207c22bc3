//! The body of a queued answer: follows the job's output at the client's own pace.
//!
//! A broken answer ends with an error record in the dialect's shape and then with an error of the body, on which hyper
//! cuts the connection without the last chunk: of all endings that is the one every client notices.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Response as HttpResponse;
use hyper::StatusCode;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::domain::dialect::Dialect;
use crate::domain::job::JobId;
use crate::ollama::client::{Body, BodyError};
use crate::worker::output::{End, Follower, Head, Next, Refusal, Timings};

use super::Response;
use super::error::in_stream;
use super::headers;
use super::outflow::Outflow;
use super::records::Records;
use super::waiter::Waiter;

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
        dialect,
        waiter: Some(waiter),
        outflow,
        records: records(dialect, &head),
        step: Step::Reading(Box::pin(read(follower))),
    };
    let mut response = HttpResponse::new(body.boxed());
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = headers::from_list(&head.headers);
    name_job(response.headers_mut(), id);
    response.headers_mut().insert(QUEUE_MS, HeaderValue::from(timings.queue_ms));
    response.headers_mut().insert(LOAD_MS, HeaderValue::from(timings.load_ms));
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
        dialect,
        waiter: None,
        outflow,
        records: records(dialect, head),
        step: Step::Reading(Box::pin(read(follower))),
    };
    body.boxed()
}

/// The rest of an answer that is whole: exactly so many bytes.
pub(super) fn kept(follower: Follower, bytes: u64) -> Body {
    KeptBody { left: bytes, reading: Box::pin(read(follower)) }.boxed()
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
    dialect: Dialect,
    /// The client the job is for; none for somebody who only looks.
    waiter: Option<Waiter>,
    outflow: Outflow,
    records: Records,
    step: Step,
}

enum Step {
    /// Waits for the next bytes.
    Reading(Pin<Box<dyn Future<Output = (Follower, Next)> + Send + Sync>>),
    /// The error record was handed to hyper; waits until it is out, or will never be.
    Flushing(Pin<Box<dyn Future<Output = ()> + Send + Sync>>),
    /// Cuts the connection.
    Cutting,
    /// Nothing more.
    Ended,
}

impl FollowBody {
    fn let_go(&mut self) {
        if let Some(waiter) = &mut self.waiter {
            waiter.let_go();
        }
    }

    /// What a step of reading gives to send; the next step follows from it.
    fn take(&mut self, follower: Follower, next: Next) -> Option<Bytes> {
        match next {
            Next::Bytes(bytes) => {
                self.step = Step::Reading(Box::pin(read(follower)));
                self.records.take(bytes)
            }
            Next::End(End::Whole) => {
                self.let_go();
                self.step = Step::Ended;
                self.records.rest()
            }
            Next::End(End::Broken(refusal)) => self.break_off(&refusal),
        }
    }

    /// The last record of a broken answer, where there is one to send.
    fn break_off(&mut self, refusal: &Refusal) -> Option<Bytes> {
        self.let_go();
        self.step = Step::Flushing(Box::pin(self.outflow.clone().flushed()));
        match refusal.is_told {
            // Ollama's own error record, which may have come without its line end.
            true => self.records.rest(),
            // How a route that is not known tells an error inside its bytes is not known either: the cut tells it.
            false if matches!(self.dialect, Dialect::Other(_)) => None,
            false => Some(in_stream(self.dialect, &refusal.text, self.records.line_start)),
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
            match &mut self.step {
                Step::Reading(reading) => {
                    let Poll::Ready((follower, next)) = reading.as_mut().poll(context) else {
                        return Poll::Pending;
                    };
                    if let Some(bytes) = self.take(follower, next) {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
                Step::Flushing(flushed) => {
                    if flushed.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    self.step = Step::Cutting;
                }
                Step::Cutting => {
                    self.step = Step::Ended;
                    return Poll::Ready(Some(Err("the answer broke off".into())));
                }
                Step::Ended => return Poll::Ready(None),
            }
        }
    }
}

/// A kept answer on its way out, of a known length.
struct KeptBody {
    left: u64,
    reading: Pin<Box<dyn Future<Output = (Follower, Next)> + Send + Sync>>,
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
        let Poll::Ready((follower, next)) = self.reading.as_mut().poll(context) else {
            return Poll::Pending;
        };
        match next {
            Next::Bytes(bytes) => {
                self.left = self.left.saturating_sub(u64::try_from(bytes.len()).unwrap_or(0));
                self.reading = Box::pin(read(follower));
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
