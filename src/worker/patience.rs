//! How long an attempt is waited for: what ends one that says nothing, or that comes too late.

use std::time::Duration;

use crate::domain::model::LoadKey;
use crate::store::Claim;

use super::Hands;
use super::output::Output;

/// How long an answer may stay silent after its upstream was away and came back without its model.
const RETURN_GRACE: Duration = Duration::from_secs(5);

/// How many idle limits an unstreamed answer that nobody waits for may take to begin: an hour with the default.
const UNFOLLOWED_PATIENCE: u32 = 6;

/// How many idle limits it may stay silent where the model is still there. A connection that survived goes on, and an
/// unstreamed answer is silent to its end; a dead one is mostly ended by the system's keepalive. What is left is a
/// connection that something in between has forgotten.
const LISTED_PATIENCE: u32 = 6;

/// How long a deadline is waited for by the timer alone: the clock it is told in may be set meanwhile.
const CLOCK_LOOK: Duration = Duration::from_secs(60);

impl Hands {
    /// Returns when the deadline has passed; never without one. A clock that is set is looked at again each minute.
    pub(super) async fn deadline(&self, deadline_ms: Option<i64>) {
        let Some(deadline_ms) = deadline_ms else { return std::future::pending().await };
        loop {
            let left_ms = deadline_ms.saturating_sub(self.now_ms());
            match u64::try_from(left_ms) {
                Ok(left_ms @ 1..) => {
                    tokio::time::sleep(Duration::from_millis(left_ms).min(CLOCK_LOOK)).await;
                }
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Returns when the upstream went away and came back, and nothing more of this answer came after that. A host that sleeps
    /// or a network that breaks leaves a connection that looks open and never says anything again; without this an
    /// unstreamed job would hold the worker for ever.
    pub(super) async fn left_behind(&self, output: &Output, key: Option<&LoadKey>) {
        loop {
            self.tools.health.returned().await;
            let bytes = output.bytes();
            let idle_limit = self.settings.idle_limit;
            let grace = match self.has_lost(key).await {
                true => idle_limit.min(RETURN_GRACE),
                false => idle_limit * LISTED_PATIENCE,
            };
            tokio::time::sleep(grace).await;
            if output.bytes() == bytes {
                return;
            }
        }
    }

    /// Whether the upstream no longer holds the key: it was started anew, and the job's runner died with it.
    async fn has_lost(&self, key: Option<&LoadKey>) -> bool {
        let Some(key) = key else { return false };
        let inventory = &self.tools.inventory;
        let ps = inventory.ps(&self.tools.ollama).await;
        ps.is_ok_and(|ps| ps.iter().all(|listed| !inventory.is_same(&listed.model, &key.model)))
    }

    /// How long the beginning of an answer is waited for. An unstreamed answer comes at the end of the work, however long
    /// that is, and its client can leave; but nobody would ever end the wait for one whose client a restart has cut off.
    pub(super) fn head_limit(&self, claim: &Claim, output: &Output) -> Option<Duration> {
        let idle_limit = self.settings.idle_limit;
        match (claim.is_streamed, output.is_followed()) {
            (true, _) => Some(idle_limit),
            (false, true) => None,
            (false, false) => Some(idle_limit * UNFOLLOWED_PATIENCE),
        }
    }
}
