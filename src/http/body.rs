//! Reads the request bodies that foreman must look into, within limits on size, silence and memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Edge;
use super::error::Told;

/// Memory for bodies that are being read, in KiB, over all clients. An admitted body is on disk and counts no more.
pub(super) const BUDGET_KIB: usize = 512 * 1024;

/// Silence inside a body after which its client is given up. A person's upload stalls for seconds, not for a minute.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What is read and thrown away of a body that is too large, so that the client gets to see why. Go's server does the
/// same for 256 KiB; clients that send before they read need more.
const LINGER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long that may take.
const LINGER_MAX: Duration = Duration::from_secs(5);

/// A body in memory, with its share of the budget.
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    _share: Vec<OwnedSemaphorePermit>,
}

/// Reads a whole body.
pub(super) async fn read(
    edge: &Edge,
    mut body: Incoming,
    bytes_max: u64,
) -> Result<ReadBody, Told> {
    let announced = body.size_hint().exact();
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        linger(edge, body);
        return Err(too_large(bytes_max));
    }
    let mut share = Vec::new();
    if let Some(bytes) = announced {
        share.push(take(edge, bytes)?);
    }
    let mut read = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout(SILENCE_MAX, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => {
                return Err(Told::new(StatusCode::BAD_REQUEST, "the request body broke off"));
            }
            Ok(None) => break,
            Err(_) => return Err(silent()),
        };
        let Ok(data) = frame.into_data() else { continue };
        let size = u64::try_from(read.len() + data.len()).unwrap_or(u64::MAX);
        if size > bytes_max {
            linger(edge, body);
            return Err(too_large(bytes_max));
        }
        if announced.is_none() {
            share.push(take(edge, u64::try_from(data.len()).unwrap_or(u64::MAX))?);
        }
        read.extend_from_slice(&data);
    }
    Ok(ReadBody { bytes: read.freeze(), _share: share })
}

fn take(edge: &Edge, bytes: u64) -> Result<OwnedSemaphorePermit, Told> {
    let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    let budget: &Arc<Semaphore> = &edge.body_budget;
    Arc::clone(budget).try_acquire_many_owned(kib).map_err(|_| {
        let text = "too many large requests are being read at once; nothing was stored, try again";
        Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(1)
    })
}

/// Goes on reading for a moment while the refusal is on its way: a connection closed with unread bytes is reset, and a
/// client that sends before it reads would never see the refusal.
fn linger(edge: &Edge, mut body: Incoming) {
    edge.tasks.spawn(async move {
        let discard = async {
            let mut left = LINGER_BYTES_MAX;
            while let Some(Ok(frame)) = body.frame().await {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(bytes) {
                    Some(rest) => left = rest,
                    None => break,
                }
            }
        };
        // Either way the body is dropped, and hyper closes the connection.
        drop(tokio::time::timeout(LINGER_MAX, discard).await);
    });
}

fn too_large(bytes_max: u64) -> Told {
    let text = format!(
        "the request body is larger than {bytes_max} bytes (FOREMAN_BODY_MAX); nothing was stored"
    );
    Told::new(StatusCode::PAYLOAD_TOO_LARGE, text)
}

fn silent() -> Told {
    let text = format!("no byte of the request body came for {} s", SILENCE_MAX.as_secs());
    Told::new(StatusCode::REQUEST_TIMEOUT, text)
}
