//! Answer bodies: whole, chunked, or produced while they are sent; and how they are cut.
//!
//! A produced body owns its producer, so that a client that leaves drops the producer with
//! everything it holds. After every chunk the body pauses once, which makes hyper flush: one
//! write per line, as Ollama does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::board::{Entry, count};
use crate::faults::Cut;
use crate::log::End;
use crate::server::Wire;

/// Go sends a Content-Length only for what fits its first buffer.
const WHOLE_BYTES_MAX: usize = 2048;

/// Where the bytes come from.
pub(crate) enum Content {
    /// One piece with a Content-Length.
    Whole(Bytes),
    /// One piece without a Content-Length.
    Chunked(Bytes),
    /// Pieces made on the way.
    Flow(Flow),
}

impl Content {
    /// Chooses as Go does: Content-Length only below 2 KiB.
    pub(crate) fn sized(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.len() < WHOLE_BYTES_MAX { Self::Whole(bytes) } else { Self::Chunked(bytes) }
    }

    pub(crate) fn empty() -> Self {
        Self::Whole(Bytes::new())
    }
}

/// A body made by a future that sends its chunks one by one.
pub(crate) struct Flow {
    producer: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    chunks: mpsc::Receiver<Bytes>,
}

/// The producer's end of a flow.
pub(crate) struct Chunks(mpsc::Sender<Bytes>);

impl Chunks {
    /// Sends a chunk; empty ones are dropped, because HTTP would end the body there.
    pub(crate) async fn send(&self, chunk: impl Into<Bytes>) {
        let chunk = chunk.into();
        if !chunk.is_empty() {
            // The flow owns both ends: when nobody receives, this future is dropped as well.
            drop(self.0.send(chunk).await);
        }
    }
}

impl Flow {
    /// Starts a flow. Nothing runs until it is polled.
    pub(crate) fn new<F>(produce: impl FnOnce(Chunks) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, chunks) = mpsc::channel(1);
        Self { producer: Some(Box::pin(produce(Chunks(sender)))), chunks }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(producer) = &mut self.producer
            && producer.as_mut().poll(cx).is_ready()
        {
            self.producer = None;
        }
        // With the producer gone its sender is gone, so this ends after the last chunk.
        self.chunks.poll_recv(cx)
    }
}

/// A body that records how it ended.
pub(crate) struct AnswerBody {
    content: Option<Content>,
    entry: Option<Entry>,
    wire: Arc<Wire>,
    /// Bytes still allowed, if the answer is to be cut.
    cut: Option<(u64, Cut)>,
    must_pause: bool,
}

impl AnswerBody {
    pub(crate) fn new(
        content: Content,
        mut entry: Option<Entry>,
        wire: Arc<Wire>,
        cut: Option<(u64, Cut)>,
    ) -> Self {
        let has_no_body = matches!(&content, Content::Whole(bytes) if bytes.is_empty());
        if has_no_body && let Some(entry) = &mut entry {
            entry.close(End::Complete);
        }
        // Pausing first lets the headers out before a cut at byte 0.
        Self { content: Some(content), entry, wire, must_pause: cut.is_some(), cut }
    }

    /// Records the end for an answer whose body hyper will not poll (HEAD).
    pub(crate) fn close(&mut self) {
        self.end(End::Complete);
    }

    fn end(&mut self, end: End) {
        if let Some(entry) = &mut self.entry {
            entry.close(end);
        }
    }

    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.content.take() {
            None => Poll::Ready(None),
            Some(Content::Whole(bytes) | Content::Chunked(bytes)) => {
                Poll::Ready(Some(bytes).filter(|bytes| !bytes.is_empty()))
            }
            Some(Content::Flow(mut flow)) => {
                let polled = flow.poll_next(cx);
                if !matches!(polled, Poll::Ready(None)) {
                    self.content = Some(Content::Flow(flow));
                }
                polled
            }
        }
    }

    fn sent(&self, bytes: usize) {
        if let Some(entry) = &self.entry {
            entry.set(|entry| {
                entry.sent_bytes += count(bytes);
                entry.sent_chunks += 1;
            });
        }
    }

    fn cut_now(&mut self, cut: Cut) -> io::Error {
        self.content = None;
        self.end(End::Cut);
        self.wire.close_by(cut);
        io::Error::other("cut by a scripted fault")
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if std::mem::take(&mut self.must_pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some((0, cut)) = self.cut {
            return Poll::Ready(Some(Err(self.cut_now(cut))));
        }
        let Poll::Ready(chunk) = self.poll_content(cx) else { return Poll::Pending };
        let Some(mut chunk) = chunk else {
            self.end(End::Complete);
            return Poll::Ready(None);
        };
        if let Some((left, _)) = &mut self.cut {
            chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= count(chunk.len());
        }
        self.must_pause = true;
        self.sent(chunk.len());
        // A body with a length is not polled again after its last byte.
        if self.content.is_none() && !matches!(self.cut, Some((0, _))) {
            self.end(End::Complete);
        }
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            None => self.cut.is_none(),
            Some(Content::Whole(bytes)) => bytes.is_empty() && self.cut.is_none(),
            Some(Content::Chunked(_) | Content::Flow(_)) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Some(Content::Whole(bytes)) => SizeHint::with_exact(count(bytes.len())),
            Some(Content::Chunked(_) | Content::Flow(_)) | None => SizeHint::default(),
        }
    }
}
