//! Reads the request bodies that foreman must look into, within limits on size, silence and memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Edge;
use super::error::Told;
use super::outflow::Outflow;
use super::places::Seat;

/// Memory for large bodies that are being read, over all clients; twice the largest body if that is more. An admitted body
/// is on disk and counts no more.
const BUDGET_BYTES: u64 = 512 * 1024 * 1024;

/// The first part of each body is outside the budget: no crowd of large uploads keeps a chat of a few KiB out. Every connection
/// may have so much.
const FREE_BYTES: u64 = 32 * 1024;

/// The unit of the budget.
const SHARE_BYTES: u64 = 64 * 1024;

/// Silence inside a body after which its client is given up. A person's upload stalls for seconds, not for a minute.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Beyond [`SILENCE_MAX`], a body has to come at this pace: one that dribbles would hold its share of the budget for days. What
/// came faster earns no more than [`SILENCE_MAX`], so that nobody buys hours of silence with one burst. Less than a bad mobile
/// connection, and 128 MiB in two hours.
const PACE_BYTES_PER_S: u64 = 16 * 1024;

/// What is read and thrown away of a body that is too large, so that the client gets to see why. Go's server does the
/// same for 256 KiB; clients that send before they read need more.
const LINGER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long that may take.
const LINGER_MAX: Duration = Duration::from_secs(5);

/// The budget, in shares.
pub(super) fn budget(body_bytes_max: u64) -> Semaphore {
    let shares = BUDGET_BYTES.max(body_bytes_max.saturating_mul(2)) / SHARE_BYTES;
    Semaphore::new(usize::try_from(shares).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS))
}

/// A body in memory, with its share of the budget.
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

/// Reads a whole body.
pub(super) async fn read(
    edge: &Edge,
    parts: &Parts,
    mut body: Incoming,
    bytes_max: u64,
) -> Result<ReadBody, Told> {
    // A body that crawls may have to give way to others.
    let _uploading = parts.extensions.get::<Seat>().map(Seat::upload);
    let mut pace = Pace::begin();
    let announced = body.size_hint().exact();
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        linger(edge, parts, body);
        return Err(too_large(bytes_max));
    }
    let mut share = None;
    let mut read = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout_at(pace.until, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => {
                return Err(Told::new(StatusCode::BAD_REQUEST, "the request body broke off"));
            }
            Ok(None) => break,
            Err(_) => {
                linger(edge, parts, body);
                return Err(silent());
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        pace.came(data.len());
        let size = u64::try_from(read.len() + data.len()).unwrap_or(u64::MAX);
        if size > bytes_max {
            linger(edge, parts, body);
            return Err(too_large(bytes_max));
        }
        if let Err(told) = grow(&mut share, &edge.body_budget, size) {
            linger(edge, parts, body);
            return Err(told);
        }
        read.extend_from_slice(&data);
    }
    Ok(ReadBody { bytes: read.freeze(), _share: share })
}

/// How long the next part of a body is waited for.
struct Pace {
    until: Instant,
}

impl Pace {
    fn begin() -> Pace {
        Pace { until: now() + SILENCE_MAX }
    }

    /// So many bytes came.
    fn came(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let earned = Duration::from_micros(bytes.saturating_mul(1_000_000) / PACE_BYTES_PER_S);
        self.until = (self.until + earned.min(SILENCE_MAX)).min(now() + SILENCE_MAX);
    }
}

#[expect(clippy::disallowed_methods, reason = "the pace of an upload; nothing reads it as time")]
fn now() -> Instant {
    Instant::now()
}

/// Takes shares of the budget as the body grows. It never waits: bodies that wait for each other's shares would wait for
/// ever.
fn grow(
    share: &mut Option<OwnedSemaphorePermit>,
    budget: &Arc<Semaphore>,
    size: u64,
) -> Result<(), Told> {
    let wanted = size.saturating_sub(FREE_BYTES).div_ceil(SHARE_BYTES);
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let more = wanted.saturating_sub(share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
    if more == 0 {
        return Ok(());
    }
    let taken = u32::try_from(more)
        .ok()
        .and_then(|more| Arc::clone(budget).try_acquire_many_owned(more).ok());
    let Some(taken) = taken else {
        let text = "too many large requests are being read at once; nothing was stored, try again";
        return Err(Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(1));
    };
    match share {
        Some(share) => share.merge(taken),
        None => *share = Some(taken),
    }
    Ok(())
}

/// Goes on reading for a moment while the refusal is on its way: a connection closed with unread bytes is reset, and a
/// client that sends before it reads would never see the refusal.
pub(super) fn linger(edge: &Edge, parts: &Parts, mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let discarding = parts.extensions.get::<Outflow>().map(Outflow::discard);
    edge.tasks.spawn(async move {
        let _discarding = discarding;
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

/// The same for a request that was not taken apart.
pub(super) fn linger_over(edge: &Edge, request: Request<Incoming>) {
    let (parts, body) = request.into_parts();
    linger(edge, &parts, body);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of 30 MiB may take its time, one that dribbles may not, nor may one that has come fast so far.
    #[tokio::test(start_paused = true)]
    async fn a_body_is_waited_for_as_long_as_it_keeps_its_pace() {
        const PACE: usize = 16 * 1024;
        let (mut steady, mut burst) = (Pace::begin(), Pace::begin());
        burst.came(127 * 1024 * 1024);
        for second in 1..SILENCE_MAX.as_secs() {
            tokio::time::advance(Duration::from_secs(1)).await;
            steady.came(PACE);
            burst.came(1);
            let left = burst.until - now();
            assert!(left < SILENCE_MAX - Duration::from_secs(second - 1), "{second} {left:?}");
            assert!(steady.until - now() > SILENCE_MAX - Duration::from_secs(1), "{second}");
        }
    }

    #[test]
    fn small_bodies_are_free_and_large_ones_pay_as_they_grow() {
        let budget = Arc::new(Semaphore::new(4));
        let mut share = None;
        grow(&mut share, &budget, FREE_BYTES).unwrap();
        assert!(share.is_none());
        grow(&mut share, &budget, FREE_BYTES + 1).unwrap();
        grow(&mut share, &budget, FREE_BYTES + SHARE_BYTES).unwrap();
        assert_eq!(budget.available_permits(), 3);
        grow(&mut share, &budget, FREE_BYTES + 4 * SHARE_BYTES).unwrap();
        assert_eq!(budget.available_permits(), 0);
        assert!(grow(&mut share, &budget, FREE_BYTES + 5 * SHARE_BYTES).is_err());
        grow(&mut None, &budget, FREE_BYTES).unwrap();
        drop(share);
        assert_eq!(budget.available_permits(), 4);
    }
}
