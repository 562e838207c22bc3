//! Where a waiting job stands, and when it might begin: for whoever looks at it, and for the client that waits for it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::domain::job::{JobId, State};
use crate::domain::learning::Held;
use crate::domain::schedule::Policy;
use crate::store::{Extent, JobView, LanesInView, StoreError};
use crate::worker::{Forecast, OfJob, Scene};

use super::Edge;

/// The place of a waiting job and a guess at its begin; nothing where it cannot be told, or is beyond `ahead_max` in its lane.
pub(super) async fn forecast(edge: &Edge, job: &JobView, ahead_max: u32) -> Option<Forecast> {
    if job.state != State::Queued || job.not_before_ms.is_some() {
        return None;
    }
    let ahead = edge.store.ahead_in_lane(job.seq, ahead_max).await.ok()??;
    let now_ms = edge.clock.now_ms();
    let (held, policy) = (edge.residency.held(), edge.config.policy());
    // The worker asks the same, on the same readers: a crowd of lookers must not stand before it.
    let place = edge.status_places.acquire().await.ok()?;
    let view = edge
        .store
        .lanes_in_view(now_ms, edge.worker.view_of(held.clone(), &edge.inventory, now_ms))
        .await;
    let view = view.ok()?;
    let due_before = match view.extent {
        Extent::Whole => None,
        Extent::Part => edge.store.due_before(job.lane.clone(), policy.max_wait_ms).await.ok()?,
    };
    drop(place);
    let (inventory, lane) = (&edge.inventory, job.lane.as_str());
    let scene = Scene { now_ms, view: &view, held: &held, inventory, policy: &policy };
    edge.worker.forecast(&scene, &OfJob { lane, ahead, due_before })
}

/// The order of service, and what it was made of.
pub(super) struct ServiceOrder {
    /// The first lanes in the order in which they would be served if nothing else arrived.
    pub(super) order: Vec<String>,
    view: LanesInView,
    held: Vec<Held>,
    now_ms: i64,
}

impl ServiceOrder {
    /// What it was made of, for more questions about it.
    pub(super) fn scene<'a>(&'a self, edge: &'a Edge, policy: &'a Policy) -> Scene<'a> {
        let (view, held, inventory) = (&self.view, self.held.as_slice(), &edge.inventory);
        Scene { now_ms: self.now_ms, view, held, inventory, policy }
    }
}

/// The order of service: all lanes of a queue of few, else at least `lanes_max` where there are as many.
pub(super) async fn service_order(
    edge: &Edge,
    now_ms: i64,
    lanes_max: usize,
) -> Result<ServiceOrder, StoreError> {
    let (held, policy) = (edge.residency.held(), edge.config.policy());
    let view = edge
        .store
        .lanes_in_view(now_ms, edge.worker.view_of(held.clone(), &edge.inventory, now_ms))
        .await?;
    let inventory = &edge.inventory;
    let scene = Scene { now_ms, view: &view, held: &held, inventory, policy: &policy };
    let mut order = edge.worker.service_order(&scene);
    match view.extent {
        Extent::Whole => (),
        Extent::Part => {
            let first: HashSet<String> = order.iter().cloned().collect();
            let due = edge.store.lanes_by_due(policy.max_wait_ms, lanes_max).await?;
            order.extend(due.into_iter().filter(|lane| !first.contains(lane)));
        }
    }
    Ok(ServiceOrder { order, view, held, now_ms })
}

/// Places that are known: far more than anybody waits for patiently.
const PLACES_MAX: usize = 1_000;

/// How old they may be. Ten thousand clients that wait ask all the time.
const PLACES_AGE_MS: i64 = 1_000;

/// The places of the jobs that wait, as they were looked up last.
pub(super) struct Queue {
    /// One at a time looks; the others wait for what it sees.
    looking: Semaphore,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    at_ms: i64,
    places: HashMap<String, u64>,
}

impl Queue {
    pub(super) fn new() -> Queue {
        Queue { looking: Semaphore::new(1), seen: Mutex::default() }
    }

    /// Looks for a job among what was seen; `None` where that is too old, or where a new look may find it.
    fn find(&self, id: JobId, now_ms: i64) -> Option<Option<u64>> {
        let seen = self.lock();
        // What was seen later than now was seen before the clock was set back.
        if !(0..PLACES_AGE_MS).contains(&(now_ms - seen.at_ms)) {
            return None;
        }
        match seen.places.get(&id.to_string()) {
            Some(place) => Some(Some(*place)),
            None if seen.places.len() < PLACES_MAX => None,
            None => Some(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a waiting job in the order of service, from 1, at most a second old; `None` beyond the first
/// [`PLACES_MAX`], and for what is not ready.
pub(super) async fn place_in_queue(edge: &Edge, id: JobId) -> Option<u64> {
    let asked_at_ms = edge.clock.now_ms();
    if let Some(place) = edge.queue.find(id, asked_at_ms) {
        return place;
    }
    let _turn = edge.queue.looking.acquire().await.ok()?;
    let now_ms = edge.clock.now_ms();
    let seen_at_ms = edge.queue.lock().at_ms;
    // Who had the turn before may have looked meanwhile.
    if seen_at_ms <= asked_at_ms || seen_at_ms > now_ms {
        // What cannot be looked up is not told; the client waits all the same.
        let places = look(edge, now_ms).await.unwrap_or_default();
        *edge.queue.lock() = Seen { at_ms: now_ms, places };
    }
    edge.queue.lock().places.get(&id.to_string()).copied()
}

async fn look(edge: &Edge, now_ms: i64) -> Result<HashMap<String, u64>, StoreError> {
    let order = service_order(edge, now_ms, PLACES_MAX).await?.order;
    let overview = edge.store.overview(order, PLACES_MAX).await?;
    let ready = overview.waiting.into_iter().filter(|job| job.not_before_ms == 0);
    Ok(ready.map(|job| job.id).zip(1..).collect())
}
