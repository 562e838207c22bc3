//! Fails waiting jobs when their deadline has passed. One that runs is stopped by its own attempt.

use std::sync::Arc;
use std::time::Duration;

use crate::fail_point;
use crate::http::Edge;

/// The longest sleep: the clock that deadlines are told in may be set meanwhile.
const LOOK_PAUSE: Duration = Duration::from_secs(60);

/// Pause after a fault of the store's.
const FAULT_PAUSE: Duration = Duration::from_secs(1);

/// Looks at each deadline until the drain.
pub(super) async fn run(edge: Arc<Edge>) {
    loop {
        let pause = look(&edge).await;
        tokio::select! {
            // A nearer deadline that came during the look is told now.
            () = edge.worker.new_deadline() => (),
            () = tokio::time::sleep(pause) => (),
            () = edge.tasks.draining() => return,
        }
    }
}

/// Ends what is over; how long there is nothing more to do.
async fn look(edge: &Edge) -> Duration {
    let next_ms = match edge.store.next_deadline_ms().await {
        Ok(Some(next_ms)) => next_ms,
        Ok(None) => return LOOK_PAUSE,
        Err(_) => return FAULT_PAUSE,
    };
    let now_ms = edge.clock.now_ms();
    if next_ms > now_ms {
        let left_ms = u64::try_from(next_ms - now_ms).unwrap_or(u64::MAX);
        return Duration::from_millis(left_ms).min(LOOK_PAUSE);
    }
    match edge.store.expire(now_ms).await {
        Ok(expired) => {
            if !expired.is_empty() {
                fail_point::reach("expire.committed");
            }
            for id in &expired {
                tracing::warn!(job.id = %id, "job failed, its deadline passed while it waited");
                edge.worker.expired(*id);
            }
            Duration::ZERO
        }
        Err(fault) => {
            tracing::warn!(db.error = %fault, "jobs whose deadline passed could not be ended; trying again");
            FAULT_PAUSE
        }
    }
}
