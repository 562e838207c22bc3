//! The way of bytes out to one client: given up when the client takes nothing for long, and known to be blocked or not, so
//! that the last words of a broken answer are not dropped with the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// How long a client may take no byte of an answer before it counts as gone. Its job is on disk; its socket is not free.
const STALL_MAX: Duration = Duration::from_secs(15 * 60);

/// How long hyper is given to flush, and how often it is looked whether it has.
const FLUSH_PAUSE: Duration = Duration::from_millis(20);

/// Whether a connection's bytes get out now. Travels with each of its requests, as an extension.
#[derive(Debug, Clone, Default)]
pub(super) struct Outflow {
    is_blocked: Arc<AtomicBool>,
}

impl Outflow {
    /// Whether bytes wait for the client to take some.
    fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    /// Returns when what was handed to hyper is out. hyper flushes while a body is pending, and drops what is unflushed when
    /// a body fails, so a body must wait for this before it fails. A client that takes nothing at all is given up by the
    /// [`StallGuard`].
    pub(super) async fn flushed(self) {
        loop {
            tokio::time::sleep(FLUSH_PAUSE).await;
            if !self.is_blocked() {
                return;
            }
        }
    }
}

/// A stream whose writes fail once the peer has taken nothing for [`STALL_MAX`].
pub(super) struct StallGuard {
    stream: TcpStream,
    outflow: Outflow,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl StallGuard {
    pub(super) fn new(stream: TcpStream) -> StallGuard {
        StallGuard { stream, outflow: Outflow::default(), stalled: None }
    }

    /// Whether this stream's bytes get out.
    pub(super) fn outflow(&self) -> Outflow {
        self.outflow.clone()
    }

    fn judge<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        self.outflow.is_blocked.store(written.is_pending(), Ordering::Relaxed);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled =
            self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline())));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a timer's own deadline; nothing reads it as time")]
fn deadline() -> Instant {
    Instant::now() + STALL_MAX
}

impl AsyncRead for StallGuard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for StallGuard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    /// Time stands still while bytes go out and runs on when nothing moves, so the limit passes at once.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut guarded = StallGuard::new(stream);
        let fault = loop {
            if let Err(fault) = guarded.write_all(&[0; 64 * 1024]).await {
                break fault;
            }
        };
        assert_eq!(fault.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }

    /// The last words of a broken answer wait for a client that takes its time, and no longer than that.
    #[tokio::test(start_paused = true)]
    async fn a_flush_waits_for_a_blocked_client() {
        let outflow = Outflow::default();
        outflow.is_blocked.store(true, Ordering::Relaxed);
        let flushed = outflow.clone().flushed();
        tokio::pin!(flushed);
        let waited = tokio::time::timeout(Duration::from_secs(60), flushed.as_mut()).await;
        assert!(waited.is_err(), "bytes still wait");
        outflow.is_blocked.store(false, Ordering::Relaxed);
        flushed.await;
    }
}
