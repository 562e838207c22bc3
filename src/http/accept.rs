//! Accepts connections and serves them until the drain, then until the force.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::liveness;
use crate::shutdown::Tasks;

use super::answer::holding;
use super::outflow::{Outflow, StallGuard};
use super::places::{Place, Places, Seat};
use super::whom::Peer;
use super::{Edge, Response, router};

/// Header lines of one request: far above any client's.
const HEADER_LINES_MAX: usize = 256;

/// Bytes of one request's headers, and of the buffers of a connection, each way: twice what nginx takes. Each connection may
/// make foreman hold so much (twice, where the end of a head comes in one piece), so it is not Go's 1 MiB.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// After the force, how long a connection may take to tell its client.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Pause after an accept that failed, such as for want of file descriptors: the next one would fail too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Faults of accepting are told once in so many in a row: every ten seconds.
const FAULTS_TOLD: u64 = 200;

/// Serves until the drain begins. Connections that are open then end by themselves or with the force.
pub async fn serve(edge: Arc<Edge>, listener: TcpListener) {
    let places = Places::new(edge.connections_max);
    let (mut accepted_count, mut faults) = (0_u64, 0_u64);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = edge.tasks.draining() => return,
        };
        match accepted {
            Ok((stream, address)) => {
                (accepted_count, faults) = (accepted_count + 1, 0);
                let outflow = Outflow::default();
                let place = tokio::select! {
                    place = place(&places, &outflow) => place,
                    () = edge.tasks.draining() => return,
                };
                let peer = Peer { address: address.ip(), connection: accepted_count };
                let connection = connection(Arc::clone(&edge), stream, (place, outflow), peer);
                edge.tasks.spawn(connection);
            }
            // Whoever it was has left.
            Err(fault) if fault.kind() == io::ErrorKind::ConnectionAborted => (),
            Err(fault) => {
                if faults.is_multiple_of(FAULTS_TOLD) {
                    tracing::warn!(error = %fault, "a connection could not be accepted");
                }
                faults += 1;
                // It may be for want of a descriptor.
                places.make_room();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A place for a new connection, for which another may have to give way. Cancel-safe.
async fn place(places: &Arc<Places>, outflow: &Outflow) -> Place {
    loop {
        if let Some(place) = places.take(outflow.clone()) {
            return place;
        }
        places.make_room();
        places.changed().await;
    }
}

async fn connection(
    edge: Arc<Edge>,
    stream: TcpStream,
    (place, outflow): (Place, Outflow),
    peer: Peer,
) {
    // Each chunk goes out as it comes: without this a token may wait 40 ms for an acknowledgement.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    if let Err(fault) = liveness::detect_vanished_peer(&stream) {
        // The connection may have ended already; otherwise it is served without this.
        tracing::debug!(http.peer = %peer.address, error = %fault, "a connection is not watched");
    }
    let tasks = edge.tasks.clone();
    let seat = place.seat();
    let stream = StallGuard::new(stream, outflow.clone(), seat.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(outflow.clone());
        request.extensions_mut().insert(peer);
        serve_one(Arc::clone(&edge), request, seat.clone())
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The stream has limits of its own, one for a head and one for idleness.
        .header_read_timeout(None)
        .max_headers(HEADER_LINES_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let seat = place.seat();
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = seat.given_up() => Ok(()),
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

/// Serves a request, which its connection is busy with until the last byte of the answer has been handed out.
async fn serve_one(
    edge: Arc<Edge>,
    mut request: Request<Incoming>,
    seat: Seat,
) -> Result<Response, Infallible> {
    let serving = seat.serve();
    request.extensions_mut().insert(serving.crowd());
    request.extensions_mut().insert(seat);
    let response = router::handle(edge, request).await?;
    Ok(holding(response, serving))
}

/// Returns a moment after the force, so that the last words to a client can go out.
async fn cut_off(tasks: &Tasks) {
    tasks.forced().await;
    tokio::time::sleep(LAST_WORDS).await;
}
