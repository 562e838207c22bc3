//! Accepts connections and serves them until the drain, then until the force.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};

use crate::shutdown::Tasks;

use super::{Edge, router};

/// Connections at once: ten thousand waiting clients and room beside them. More wait in the system's backlog.
const CONNECTIONS_MAX: usize = 16_384;

/// How long a request's headers, or the next request on an idle connection, may take. Longer than the idle pools of
/// usual clients (Go keeps 90 s), so that foreman is never the one that closes under them.
const HEADERS_MAX: Duration = Duration::from_secs(120);

/// Header lines of one request: far above any client's.
const HEADER_LINES_MAX: usize = 256;

/// Bytes of one request's headers, and of the read buffer. Go's server allows 1 MiB.
const HEADER_BYTES_MAX: usize = 1024 * 1024;

/// How long a client may take no byte of an answer before it counts as gone. Its job is on disk; its socket is not free.
const STALL_MAX: Duration = Duration::from_secs(15 * 60);

/// After the force, how long a connection may take to tell its client.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Pause after an accept that failed, such as for want of file descriptors: the next one would fail too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the drain begins. Connections that are open then end by themselves or with the force.
pub async fn serve(edge: Arc<Edge>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            () = edge.tasks.draining() => return,
        };
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = edge.tasks.draining() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let served = Arc::clone(&edge);
                edge.tasks.spawn(async move {
                    connection(served, stream, peer).await;
                    drop(place);
                });
            }
            Err(fault) => {
                tracing::warn!(error = %fault, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(edge: Arc<Edge>, stream: TcpStream, peer: SocketAddr) {
    // Each chunk goes out as it comes: without this a token may wait 40 ms for an acknowledgement.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let tasks = edge.tasks.clone();
    let service = service_fn(move |request| router::handle(Arc::clone(&edge), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_MAX)
        .max_headers(HEADER_LINES_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(StallGuard::new(stream)), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = tasks.draining() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = cut_off(&tasks) => Ok(()),
            }
        }
    };
    if let Err(fault) = outcome {
        tracing::debug!(http.peer = %peer, error = %fault, "connection ended");
    }
}

/// Returns a moment after the force, so that the last words to a client can go out.
async fn cut_off(tasks: &Tasks) {
    tasks.forced().await;
    tokio::time::sleep(LAST_WORDS).await;
}

/// A stream whose writes fail once the peer has taken nothing for [`STALL_MAX`].
struct StallGuard {
    stream: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl StallGuard {
    fn new(stream: TcpStream) -> StallGuard {
        StallGuard { stream, stalled: None }
    }

    fn judge<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
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
}
