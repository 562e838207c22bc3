//! A check of the tests on the worker at rest: a fresh decision on what is stored must say rest, too. What it finds is a
//! *lost wake-up*: something could run, and nothing told the worker of it. Called by the loop at each rest; it changes
//! nothing, and in release builds there is none.

#[cfg(debug_assertions)]
use std::time::Duration;

use crate::domain::schedule::Lane;
#[cfg(debug_assertions)]
use crate::domain::schedule::{Decision, decide};

use super::Hands;
use super::run::Awaited;

/// Between two looks at a resting worker.
#[cfg(debug_assertions)]
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// So many looks in a row must find something to do: a wake-up that is on its way arrives long before, and the longest rest
/// is many times as long.
#[cfg(debug_assertions)]
const FOUND_MAX: u32 = 8;

/// A rest of the worker.
#[cfg_attr(not(debug_assertions), expect(dead_code, reason = "only debug builds look"))]
pub(super) struct RestCheck {
    pub(super) hands: Hands,
    /// The lanes of the jobs in flight that somebody waits for.
    pub(super) in_flight: Vec<Lane>,
    /// Since when there is nothing to do but for what nobody waits for; `None` while anything is in flight.
    pub(super) quiet_since_ms: Option<i64>,
    pub(super) awaited: Awaited,
}

impl RestCheck {
    /// Returns when a wake-up was lost, after an error in the log. Cancel-safe.
    #[cfg(debug_assertions)]
    pub(super) async fn lost_wake_up(self) {
        let mut found = 0;
        loop {
            tokio::time::sleep(LOOK_PAUSE).await;
            match self.overlooked().await {
                Some(_) if found < FOUND_MAX => found += 1,
                Some(decision) => {
                    tracing::error!(?decision, worker.awaited = ?self.awaited, worker.in_flight = ?self.in_flight,
                        "lost wake-up: the worker rests although something could be done");
                    return;
                }
                None => found = 0,
            }
        }
    }

    /// Never returns.
    #[cfg(not(debug_assertions))]
    pub(super) async fn lost_wake_up(self) {
        std::future::pending().await
    }

    /// What could be done now.
    #[cfg(debug_assertions)]
    async fn overlooked(&self) -> Option<Decision> {
        let tools = &self.hands.tools;
        if self.awaited == Awaited::Landing || !tools.health.is_up() || tools.tasks.is_draining() {
            return None;
        }
        let waiting = tools.store.waiting_lanes(self.hands.now_ms()).await.ok()?;
        let decision = decide(&self.hands.board(&waiting, self.in_flight.clone()));
        match (&decision, self.awaited) {
            (Decision::Run { .. }, _)
            | (Decision::Swap { .. } | Decision::LoadEmbedder { .. }, Awaited::Change) => {
                Some(decision)
            }
            // A hold was decided until a time; as that passes without a return, a swap may come to seem better before.
            (Decision::Swap { .. } | Decision::LoadEmbedder { .. }, _) => None,
            (Decision::Idle { .. }, _) => self.overlooked_of_nobodys().await,
            (Decision::Hold { .. } | Decision::Busy, _) => None,
        }
    }

    /// What could be done for a job that nobody waits for.
    #[cfg(debug_assertions)]
    async fn overlooked_of_nobodys(&self) -> Option<Decision> {
        let decision = self.hands.unattended(self.quiet_since_ms?).await.ok()?;
        matches!(decision, Decision::Run { .. } | Decision::Swap { .. }).then_some(decision)
    }
}
