//! Why what waits in a lane is not loaded now: for the status, for whoever looks at a job, and for its estimate.

use crate::domain::learning::{BlockedBecause, OpenBreaker};
use crate::domain::model::LoadKey;
use crate::domain::schedule::Lane;
use crate::ollama::inventory::Inventory;

use super::WorkerHandle;
use super::forecast::Scene;
use super::mind::Installed;

/// What stands in a lane's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedLane {
    /// A stable name.
    pub reason: &'static str,
    /// A sentence for people.
    pub because: String,
    /// Until when (milliseconds since 1970); `None` where that depends on what is under way.
    pub until_ms: Option<i64>,
}

impl WorkerHandle {
    /// Why the key of a lane is not loaded now; `None` if it may be.
    pub fn blocked(&self, lane: &Lane, scene: &Scene<'_>) -> Option<BlockedLane> {
        let Scene { inventory, policy, now_ms, .. } = *scene;
        let key = lane.key()?;
        let text = lane.to_string();
        let heads = scene.view.lanes.iter().filter(|waiting| waiting.lane == text);
        let due_at_ms = heads
            .filter_map(|waiting| Some((waiting.class, waiting.head?)))
            .map(|(class, head)| policy.due_at_ms(class, head.ready_at_ms))
            .min();
        let (load_ms, _) = self.mind().expected_ms(&text);
        let latest_ms = due_at_ms.map_or(i64::MAX, |due_at_ms| due_at_ms.saturating_sub(load_ms));
        let installed = Installed(inventory);
        let blocked = self.mind().blocked(key, &installed, latest_ms, now_ms)?;
        Some(BlockedLane {
            reason: blocked.because.name(),
            because: self.sentence(key, blocked.because, &installed, now_ms),
            until_ms: Some(blocked.until_ms).filter(|until_ms| *until_ms < i64::MAX),
        })
    }

    fn sentence(
        &self,
        key: &LoadKey,
        because: BlockedBecause,
        installed: &Installed<'_>,
        now_ms: i64,
    ) -> String {
        match because {
            BlockedBecause::Broken | BlockedBecause::Stuck | BlockedBecause::Busy => {
                let open = self.mind().open_breakers(installed, now_ms);
                let text = key.to_string();
                let open = open.into_iter().find(|open| open.key == text);
                open.map_or_else(String::new, |open| {
                    let times = if open.failures == 1 { "once" } else { "again and again" };
                    format!("its load failed {times}: {}", open.error.text)
                })
            }
            BlockedBecause::Probed => "its load is being tried again".to_owned(),
            BlockedBecause::PushedOut => {
                "its model was pushed out by somebody else who uses ollama, and is loaded again once they are quiet"
                    .to_owned()
            }
        }
    }

    /// The keys that do not load.
    pub fn broken(&self, inventory: &Inventory, now_ms: i64) -> Vec<OpenBreaker> {
        self.mind().open_breakers(&Installed(inventory), now_ms)
    }
}
