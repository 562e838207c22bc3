//! Small bodies and answers that several roads build.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::{Response as HttpResponse, Version};

use crate::ollama::client::{Body, BodyError};
use crate::ollama::hop::strip_hop_by_hop;

use super::Response;

/// Relays an answer of the upstream's: its status, its end-to-end headers, its bytes as they come. `until_end` is held
/// until the last byte is out or the client left.
pub(super) fn relayed<T: Send + Sync + Unpin + 'static>(
    answer: HttpResponse<Incoming>,
    until_end: T,
) -> Response {
    let (mut parts, body) = answer.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    // The version is this connection's own: an upstream that speaks HTTP/1.0 does not make foreman's answer one, whose
    // cut could not be told from its end.
    parts.version = Version::HTTP_11;
    let held = Held { body: body.map_err(BodyError::from).boxed(), _until_end: until_end };
    HttpResponse::from_parts(parts, held.boxed())
}

/// An answer that keeps something alive until its last byte is out or the client left.
pub(super) fn holding<T: Send + Sync + Unpin + 'static>(
    answer: Response,
    until_end: T,
) -> Response {
    answer.map(|body| Held { body, _until_end: until_end }.boxed())
}

/// A body that keeps something alive until it ends.
struct Held<T> {
    body: Body,
    _until_end: T,
}

impl<T: Unpin> HttpBody for Held<T> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
