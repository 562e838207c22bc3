//! The worker and the jobs that nobody waits for: one is run where nothing else is to be done, and put back, charged nothing,
//! as soon as there is. Its client may come back while it runs: then it is a job like any other. ADR 30.

use crate::domain::job::Event;
use crate::domain::model::LoadKey;
use crate::domain::schedule::{Board, Decision, Lane, decide_unattended};
use crate::store::{Claim, StoreError};

use super::mind::Installed;
use super::run::{Awaited, PS_FRESH_MS, REST_MAX, Turn, after_claims};
use super::{Hands, Worker};

impl Hands {
    /// What may be done for jobs that nobody waits for, where nothing else is to be done since `quiet_since_ms`.
    pub(super) async fn unattended(&self, quiet_since_ms: i64) -> Result<Decision, StoreError> {
        let now_ms = self.now_ms();
        let set_aside = self.tools.store.set_aside(now_ms).await?;
        let held = self.tools.residency.held();
        let (models, policy) = (Installed(&self.tools.inventory), &self.settings.policy);
        let board = self.handle.mind().board(now_ms, &set_aside.lanes, &held, &models, policy);
        Ok(match decide_unattended(&board, quiet_since_ms) {
            Decision::Idle { until_ms } => {
                let until_ms = until_ms.into_iter().chain(set_aside.next_ready_at_ms).min();
                Decision::Idle { until_ms }
            }
            decision => decision,
        })
    }
}

impl Worker {
    /// Notes whether people use the GPU. A job that waits for a key that does not load uses nothing; an embed that went straight
    /// through did.
    pub(super) fn note_use(&mut self, board: &Board) {
        let now_ms = board.now_ms;
        let may_run = board.queues.iter().any(|queue| queue.barred_until_ms <= now_ms);
        if may_run || !board.in_flight.is_empty() {
            self.quiet_since_ms = now_ms;
        }
        let embed_ended_ms = self.hands.handle.embeds().last_ended_ms().min(now_ms);
        self.quiet_since_ms = self.quiet_since_ms.max(embed_ended_ms);
    }

    /// Has jobs that nobody waits for make room, where somebody waits and has to wait for them. `None` where nothing has to be
    /// made room for.
    pub(super) fn yield_to(&self, decision: &Decision) -> Option<Turn> {
        if !self.in_flight.has_unattended() {
            return None;
        }
        match decision {
            Decision::Run { lane, .. } if self.has_place_beside(lane) => None,
            Decision::Run { .. }
            | Decision::Swap { .. }
            | Decision::LoadEmbedder { .. }
            | Decision::Hold { .. } => Some(self.interrupt_unattended()),
            Decision::Busy | Decision::Idle { .. } => None,
        }
    }

    /// Puts jobs in flight back that nobody waits for.
    pub(super) fn interrupt_unattended(&self) -> Turn {
        self.in_flight.interrupt_unattended();
        Turn::rest(REST_MAX, Awaited::Landing)
    }

    fn has_place_beside(&self, lane: &Lane) -> bool {
        let lanes = self.in_flight.lanes();
        lanes.len() < self.hands.settings.policy.parallel.max(1)
            && lanes.iter().all(|other| other == lane)
    }

    /// Runs a job that nobody waits for, where one may run. Else rests until then, or until `until_ms`.
    pub(super) async fn run_unattended(
        &mut self,
        wanted: &[LoadKey],
        until_ms: Option<i64>,
    ) -> Result<Turn, StoreError> {
        let mut decision = self.hands.unattended(self.quiet_since_ms).await?;
        let is_old = (self.hands.now_ms() - self.ps_at_ms).abs() > PS_FRESH_MS;
        let dispatches = matches!(decision, Decision::Run { .. } | Decision::Swap { .. });
        if dispatches && is_old && self.refresh_residency().await {
            decision = self.hands.unattended(self.quiet_since_ms).await?;
        }
        self.hands.handle.mind().decided(&decision, self.hands.now_ms());
        match decision {
            Decision::Run { lane, reason, .. } => {
                let claim = self.claim_unattended(&lane, Event::ClaimToWork).await?;
                if let Some(claim) = claim {
                    tracing::debug!(job.id = %claim.id, job.lane = %lane, reason = reason.name(), "job claimed");
                    let output = self.hands.handle.outputs().open_anew(claim.id);
                    output.take_off(claim.lease_epoch, claim.is_async);
                    self.take_off(claim, lane, 0);
                }
                Ok(Turn::Acted)
            }
            Decision::Swap { unload, load, reason, .. } => {
                let lane = Lane::Key(load.clone());
                let claim = self.claim_unattended(&lane, Event::ClaimToLoad).await?;
                if let Some(claim) = claim {
                    self.swap_and_dispatch(claim, &unload, &load, reason).await;
                }
                Ok(Turn::Acted)
            }
            Decision::Idle { until_ms: later_ms } => {
                let until_ms = until_ms.into_iter().chain(later_ms).min();
                Ok(Turn::rest(self.rest(wanted, until_ms).await?, Awaited::Change))
            }
            Decision::Hold { .. } | Decision::LoadEmbedder { .. } | Decision::Busy => {
                Ok(Turn::rest(self.rest(wanted, until_ms).await?, Awaited::Change))
            }
        }
    }

    async fn claim_unattended(
        &self,
        lane: &Lane,
        event: Event,
    ) -> Result<Option<Claim>, StoreError> {
        let (store, now_ms) = (&self.hands.tools.store, self.hands.now_ms());
        let claim = store.claim_set_aside(lane.to_string(), event, now_ms).await?;
        after_claims(claim.iter().len());
        Ok(claim)
    }
}
