//! The bytes of one connection, both ways. Out to its client they are given up when it takes nothing for long, and known to be
//! blocked or not, so that the last words of a broken answer are not dropped with the connection. In from it, a request's head
//! is given up that does not come to its end, and a connection that stays idle. What only comes to be thrown away is no head.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::places::{Phase, Seat};

/// How long a client may take no byte of an answer before it counts as gone. Its job is on disk; its socket is not free.
const STALL_MAX: Duration = Duration::from_secs(15 * 60);

/// How long a connection may be idle. Longer than the idle pools of usual clients (Go keeps 90 s), so that foreman is not the one
/// that closes under them.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// How long a head may take from its first byte to its last. It fits into a packet or two; a bad mobile connection that loses
/// some needs seconds.
const HEAD_MAX: Duration = Duration::from_secs(30);

/// How long hyper is given to flush, and how often it is looked whether it has.
const FLUSH_PAUSE: Duration = Duration::from_millis(20);

/// Whether a connection's bytes get out now, and whether what comes in is wanted. Travels with each of its requests, as an
/// extension.
#[derive(Debug, Clone, Default)]
pub(super) struct Outflow {
    /// Since when; `None` if they get out.
    blocked: Arc<Mutex<Option<Instant>>>,
    /// Bodies whose rest is being thrown away.
    discarding: Arc<AtomicUsize>,
}

/// A body whose rest is being thrown away. Dropping it tells that this is over.
#[derive(Debug)]
pub(super) struct Discarding(Outflow);

impl Drop for Discarding {
    fn drop(&mut self) {
        self.0.discarding.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Outflow {
    /// Whether bytes wait for the client to take some.
    pub(super) fn is_blocked(&self) -> bool {
        self.lock().is_some()
    }

    /// How long the client has taken none of the bytes that wait for it; `None` if none wait.
    pub(super) fn blocked_for(&self) -> Option<Duration> {
        self.lock().map(|since| now().saturating_duration_since(since))
    }

    /// Tells what a write came to: whether the client took some.
    pub(super) fn wrote(&self, some: bool) {
        let mut blocked = self.lock();
        match (some, &*blocked) {
            (true, Some(_)) => *blocked = None,
            (false, None) => *blocked = Some(now()),
            (true, None) | (false, Some(_)) => (),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that what comes now is the rest of a body which is thrown away: its answer may be out before it ends.
    pub(super) fn discard(&self) -> Discarding {
        self.discarding.fetch_add(1, Ordering::Relaxed);
        Discarding(self.clone())
    }

    fn is_discarding(&self) -> bool {
        self.discarding.load(Ordering::Relaxed) > 0
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

/// A stream whose writes fail once the peer has taken nothing for [`STALL_MAX`], and its reads once it has been idle for
/// [`IDLE_MAX`] or in a head for [`HEAD_MAX`].
pub(super) struct StallGuard {
    stream: TcpStream,
    outflow: Outflow,
    stalled: Option<Pin<Box<Sleep>>>,
    seat: Seat,
    /// The limit of the phase with this number.
    overdue: Option<(u64, Pin<Box<Sleep>>)>,
}

impl StallGuard {
    pub(super) fn new(stream: TcpStream, outflow: Outflow, seat: Seat) -> StallGuard {
        StallGuard { stream, outflow, stalled: None, seat, overdue: None }
    }

    /// Whether nothing has come for longer than it may.
    fn poll_overdue(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (phase, turn) = self.seat.phase();
        let limit = match phase {
            Phase::Idle => IDLE_MAX,
            Phase::Head => HEAD_MAX,
            // A request has been taken: what it waits for has limits of its own.
            Phase::Serving | Phase::Upload => return Poll::Pending,
        };
        let overdue = match &mut self.overdue {
            Some((of, overdue)) if *of == turn => overdue,
            other => {
                let sleep = Box::pin(tokio::time::sleep_until(deadline(limit)));
                &mut other.insert((turn, sleep)).1
            }
        };
        overdue.as_mut().poll(context)
    }

    fn judge<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        self.outflow.wrote(written.is_ready());
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline(STALL_MAX))));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn deadline(limit: Duration) -> Instant {
    now() + limit
}

#[expect(clippy::disallowed_methods, reason = "a timer's own deadline; nothing reads it as time")]
fn now() -> Instant {
    Instant::now()
}

impl AsyncRead for StallGuard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let had = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) if self.outflow.is_discarding() => Poll::Ready(Ok(())),
            Poll::Ready(Ok(())) => {
                Poll::Ready(self.seat.read(buffer.filled().len().saturating_sub(had)))
            }
            Poll::Ready(Err(fault)) => Poll::Ready(Err(fault)),
            Poll::Pending => {
                self.poll_overdue(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
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
    use super::super::places::{Place, Places};
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Time stands still while bytes go out and runs on when nothing moves, so the limit passes at once.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (mut guarded, _place) = guarded(stream);
        let fault = loop {
            if let Err(fault) = guarded.write_all(&[0; 64 * 1024]).await {
                break fault;
            }
        };
        assert_eq!(fault.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }

    fn guarded(stream: TcpStream) -> (StallGuard, Place) {
        let outflow = Outflow::default();
        let place = Places::new(1).take(outflow.clone()).unwrap();
        (StallGuard::new(stream, outflow, place.seat()), place)
    }

    /// A byte a second would keep a limit on silence away for ever; a head has one limit as a whole, and so has idleness. A
    /// request that is being served has neither.
    #[tokio::test(start_paused = true)]
    async fn a_head_that_dribbles_and_an_idle_connection_are_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut guarded, place) = guarded(listener.accept().await.unwrap().0);
        let seat = place.seat();
        let serving = seat.serve();
        let silent = tokio::time::timeout(IDLE_MAX * 2, guarded.read_u8()).await;
        assert!(silent.is_err(), "who waits for an answer says nothing");
        drop(serving);
        let idle_since = deadline(Duration::ZERO);
        assert_eq!(guarded.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(idle_since.elapsed() >= IDLE_MAX && idle_since.elapsed() < IDLE_MAX * 2);
        let head_since = deadline(Duration::ZERO);
        let fault = loop {
            client.write_all(b"x").await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Err(fault) = read_all(&mut guarded).await {
                break fault;
            }
        };
        assert_eq!(fault.kind(), io::ErrorKind::TimedOut);
        assert!(head_since.elapsed() < IDLE_MAX);
    }

    /// Reads what is there.
    async fn read_all(guarded: &mut StallGuard) -> io::Result<()> {
        loop {
            let read = tokio::time::timeout(Duration::from_millis(1), guarded.read_u8()).await;
            match read {
                Ok(Ok(_)) => (),
                Ok(Err(fault)) => return Err(fault),
                Err(_) => return Ok(()),
            }
        }
    }

    /// The last words of a broken answer wait for a client that takes its time, and no longer than that.
    #[tokio::test(start_paused = true)]
    async fn a_flush_waits_for_a_blocked_client() {
        let outflow = Outflow::default();
        outflow.wrote(false);
        let flushed = outflow.clone().flushed();
        tokio::pin!(flushed);
        let waited = tokio::time::timeout(Duration::from_secs(60), flushed.as_mut()).await;
        assert!(waited.is_err(), "bytes still wait");
        outflow.wrote(true);
        flushed.await;
    }
}
