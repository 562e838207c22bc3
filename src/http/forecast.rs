//! Where a waiting job stands, and when it might begin: for whoever looks at it, and for the client that waits for it.

use crate::domain::job::State;
use crate::store::JobView;
use crate::worker::Forecast;

use super::Edge;

/// The place of a waiting job and a guess at its begin; nothing where it cannot be told, or is beyond `ahead_max` in its lane.
pub(super) async fn forecast(edge: &Edge, job: &JobView, ahead_max: u32) -> Option<Forecast> {
    if job.state != State::Queued || job.not_before_ms.is_some() {
        return None;
    }
    let ahead = edge.store.ahead_in_lane(job.seq, ahead_max).await.ok()??;
    let now_ms = edge.clock.now_ms();
    // The worker asks the same, on the same readers: a crowd of lookers must not stand before it.
    let place = edge.status_places.acquire().await.ok()?;
    let waiting = edge.store.waiting_lanes(now_ms).await.ok()?;
    drop(place);
    let (held, policy) = (edge.residency.held(), edge.config.policy());
    edge.worker.forecast(now_ms, &waiting, &held, (&edge.inventory, &policy), (&job.lane, ahead))
}
