//! Accepts connections and serves them until the drain, then until the force.

use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::shutdown::Tasks;

use super::outflow::StallGuard;
use super::whom::Peer;
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

/// After the force, how long a connection may take to tell its client.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Pause after an accept that failed, such as for want of file descriptors: the next one would fail too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the drain begins. Connections that are open then end by themselves or with the force.
pub async fn serve(edge: Arc<Edge>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut accepted_count = 0_u64;
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
            Ok((stream, address)) => {
                accepted_count += 1;
                let peer = Peer { address: address.ip(), connection: accepted_count };
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

async fn connection(edge: Arc<Edge>, stream: TcpStream, peer: Peer) {
    // Each chunk goes out as it comes: without this a token may wait 40 ms for an acknowledgement.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let tasks = edge.tasks.clone();
    let stream = StallGuard::new(stream);
    let outflow = stream.outflow();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(outflow.clone());
        request.extensions_mut().insert(peer);
        router::handle(Arc::clone(&edge), request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_MAX)
        .max_headers(HEADER_LINES_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
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
        tracing::debug!(http.peer = %peer.address, http.connection = peer.connection, error = %fault, "connection ended");
    }
}

/// Returns a moment after the force, so that the last words to a client can go out.
async fn cut_off(tasks: &Tasks) {
    tasks.forced().await;
    tokio::time::sleep(LAST_WORDS).await;
}
