//! Sockets: listening, going down, and cutting connections.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::faults::Cut;
use crate::routes;
use crate::world::World;

/// Tries to get the old port back after being down; somebody may still hold it for a moment.
const BIND_TRIES: u32 = 100;
const BIND_PAUSE: Duration = Duration::from_millis(20);
/// Lets the answer to `/_stub/down` out before the connection is cut.
const DOWN_DELAY: Duration = Duration::from_millis(20);

/// Orders to the listening task.
#[derive(Debug)]
pub(crate) enum Command {
    /// Close the listener and cut every connection.
    Down(oneshot::Sender<()>),
    /// Listen again on the same port.
    Up(oneshot::Sender<io::Result<()>>),
    /// Go down soon, for this long.
    DownFor(Duration),
}

/// What a handler can do to its own connection.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    is_reset: AtomicBool,
}

impl Wire {
    /// Chooses how the connection ends once it is dropped.
    pub(crate) fn close_by(&self, cut: Cut) {
        self.is_reset.store(cut == Cut::Reset, Ordering::Relaxed);
    }
}

/// A socket that can end with a reset.
struct Socket {
    stream: TcpStream,
    wire: Arc<Wire>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.wire.is_reset.load(Ordering::Relaxed) {
            // Without it the close is an orderly one, and the test that wanted a reset says so.
            drop(self.stream.set_zero_linger());
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Accepts connections and follows commands until every sender of commands is gone.
pub(crate) async fn run(
    world: Arc<World>,
    listener: TcpListener,
    address: SocketAddr,
    mut commands: mpsc::Receiver<Command>,
) {
    let mut server =
        Server { world, address, listener: Some(listener), connections: JoinSet::new() };
    let mut down_for: Option<(Instant, Duration)> = None;
    let mut up_at: Option<Instant> = None;
    loop {
        tokio::select! {
            stream = accept(server.listener.as_ref()) => server.serve(stream),
            Some(ended) = server.connections.join_next() => server.note(ended),
            () = maybe_sleep(down_for.map(|(at, _)| at)) => {
                up_at = down_for.take().map(|(at, time)| at + time);
                server.go_down().await;
            }
            () = maybe_sleep(up_at) => {
                up_at = None;
                drop(server.come_up().await);
            }
            command = commands.recv() => match command {
                None => return,
                Some(Command::Down(done)) => {
                    server.go_down().await;
                    // Whoever asked may have stopped waiting.
                    done.send(()).unwrap_or_default();
                }
                Some(Command::Up(done)) => drop(done.send(server.come_up().await)),
                Some(Command::DownFor(time)) => down_for = Some((Instant::now() + DOWN_DELAY, time)),
            },
        }
    }
}

async fn maybe_sleep(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits for a connection; for ever while the stub is down.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Out of file descriptors: wait for some to come back.
            Err(_) => sleep(BIND_PAUSE).await,
        }
    }
}

struct Server {
    world: Arc<World>,
    address: SocketAddr,
    listener: Option<TcpListener>,
    connections: JoinSet<()>,
}

impl Server {
    fn serve(&mut self, stream: TcpStream) {
        let world = Arc::clone(&self.world);
        self.connections.spawn(async move {
            // Without it small chunks wait for acknowledgements; a failure only costs time.
            drop(stream.set_nodelay(true));
            let wire = Arc::new(Wire::default());
            let socket = Socket { stream, wire: Arc::clone(&wire) };
            let service = service_fn(move |request| {
                routes::serve(Arc::clone(&world), Arc::clone(&wire), request)
            });
            // An error here is the client leaving or a scripted cut; the log has both.
            drop(
                hyper::server::conn::http1::Builder::new()
                    .title_case_headers(true)
                    .serve_connection(TokioIo::new(socket), service)
                    .await,
            );
        });
    }

    fn note(&self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended
            && let Ok(payload) = error.try_into_panic()
        {
            self.world.board.note_panic(payload);
        }
    }

    async fn go_down(&mut self) {
        self.world.board.going_down(true);
        self.listener = None;
        self.connections.abort_all();
        while let Some(ended) = self.connections.join_next().await {
            self.note(ended);
        }
        self.world.board.going_down(false);
    }

    async fn come_up(&mut self) -> io::Result<()> {
        if self.listener.is_some() {
            return Ok(());
        }
        let mut tries = 1;
        self.listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break Some(listener),
                Err(error) if tries >= BIND_TRIES => return Err(error),
                Err(_) => sleep(BIND_PAUSE).await,
            }
            tries += 1;
        };
        Ok(())
    }
}
