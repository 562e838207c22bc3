//! The loop: look, decide, act. It registers for the wake-up before it looks, so that no job is overlooked.

use std::time::Duration;

use crate::clock;
use crate::domain::job::{Event, Kind};
use crate::domain::model::LoadKey;
use crate::domain::schedule::{Board, Decision, Lane, LaneHead, Reason, decide};
use crate::ollama::client::SendError;
use crate::store::{Claim, StoreError};

use super::Worker;
use super::conclude::Conclusion;
use super::handle::add;

/// Pause after a fault of the store's, so that a full disk is not asked a thousand times a second.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// The longest the idle worker sleeps without looking: nothing needs it, but a missed wake-up would cost no more.
const REST_MAX: Duration = Duration::from_secs(30);

impl Worker {
    /// Serves jobs until the drain. A running job is finished, or given back when the end is forced.
    pub async fn run(mut self) {
        while !self.tools.tasks.is_draining() {
            tokio::select! {
                () = self.tools.health.up() => (),
                () = self.tools.tasks.draining() => break,
            }
            let wake = self.handle.waking();
            let woken = wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            match self.turn().await {
                Ok(Turn::Acted) => (),
                Ok(Turn::Idle { until }) => {
                    tokio::select! {
                        () = woken => (),
                        () = tokio::time::sleep(until.min(REST_MAX)) => (),
                        () = self.tools.tasks.draining() => (),
                    }
                }
                Err(StoreError::Closed) => self.tools.tasks.break_down("store"),
                Err(fault) => {
                    tracing::error!(db.error = %fault, "the worker cannot read the queue; it tries again");
                    tokio::time::sleep(STORE_PAUSE).await;
                }
            }
        }
        tracing::debug!("the worker has stopped");
    }

    /// One look and what follows from it.
    async fn turn(&mut self) -> Result<Turn, StoreError> {
        let tasks = self.tools.tasks.clone();
        tokio::select! {
            () = self.do_chores() => (),
            () = tasks.forced() => return Ok(Turn::Acted),
        }
        if self.tools.residency.is_stale() && !self.refresh_residency().await {
            return Ok(Turn::Acted);
        }
        let mut board = self.board().await?;
        tokio::select! {
            () = self.release_idle(&board) => (),
            () = tasks.forced() => return Ok(Turn::Acted),
        }
        board.resident = self.tools.residency.board();
        let mut decision = decide(&board);
        if matches!(decision, Decision::Swap { .. }) {
            // A load decision is made on what ps says now, not on what it said at the last poll.
            if !self.refresh_residency().await {
                return Ok(Turn::Acted);
            }
            board.resident = self.tools.residency.board();
            decision = decide(&board);
        }
        match decision {
            Decision::Idle => Ok(Turn::Idle { until: self.rest().await? }),
            Decision::Run { lane, reason } => self.serve(lane, reason).await,
            Decision::Swap { unload, load, reason } => {
                let lane = Lane::Key(load.clone()).to_string();
                let claim = self.tools.store.claim(lane, Event::ClaimToLoad, self.now_ms()).await?;
                if let Some(claim) = claim {
                    self.swap_and_run(claim, &unload, &load, reason).await;
                }
                Ok(Turn::Acted)
            }
        }
    }

    async fn board(&self) -> Result<Board, StoreError> {
        let lanes = self.tools.store.ready_lanes(self.now_ms()).await?;
        let lanes = lanes
            .into_iter()
            .map(|ready| LaneHead {
                lane: Lane::from_text(&ready.lane),
                oldest_seq: ready.oldest_seq,
            })
            .collect();
        Ok(Board { lanes, resident: self.tools.residency.board() })
    }

    /// How long there is nothing to do unless something happens.
    async fn rest(&self) -> Result<Duration, StoreError> {
        let now_ms = self.now_ms();
        let next_ready = self.tools.store.next_ready_at_ms(now_ms).await?;
        let next = next_ready.into_iter().chain(self.next_release_at_ms()).min();
        let wait_ms = next.map_or(i64::MAX, |at_ms| (at_ms - now_ms).max(1));
        Ok(Duration::from_millis(u64::try_from(wait_ms).unwrap_or(1)))
    }

    async fn serve(&mut self, lane: Lane, reason: Reason) -> Result<Turn, StoreError> {
        let text = lane.to_string();
        let claim = self.tools.store.claim(text, Event::ClaimToWork, self.now_ms()).await?;
        let Some(claim) = claim else { return Ok(Turn::Acted) };
        tracing::debug!(job.id = %claim.id, job.lane = %lane, reason = reason.name(), "job claimed");
        let output = self.handle.outputs().open(claim.id);
        output.take_off();
        let conclusion = match output.is_abandoned() {
            true => Conclusion::Abandoned,
            false => {
                let key = match lane {
                    Lane::Key(key) => Some(key),
                    Lane::Unload | Lane::Opaque => None,
                };
                self.attempt(&claim, &output, key.as_ref(), 0).await
            }
        };
        self.after_attempt(&claim);
        self.conclude(claim, output, conclusion).await;
        Ok(Turn::Acted)
    }

    async fn swap_and_run(
        &mut self,
        claim: Claim,
        unload: &[crate::domain::model::ModelName],
        load: &LoadKey,
        reason: Reason,
    ) {
        tracing::debug!(job.id = %claim.id, load.key = %load, reason = reason.name(), "job claimed to load");
        let output = self.handle.outputs().open(claim.id);
        output.take_off();
        if output.is_abandoned() {
            // A waiter that left before the start causes no load.
            self.conclude(claim, output, Conclusion::Abandoned).await;
            return;
        }
        let began_ms = self.now_ms();
        if let Err(conclusion) = self.swap(unload, load, reason).await {
            self.conclude(claim, output, conclusion).await;
            return;
        }
        let now_ms = self.now_ms();
        match self.tools.store.loaded(claim.seq, claim.lease_epoch, now_ms).await {
            Ok(true) => (),
            Ok(false) => {
                tracing::error!(job.id = %claim.id, "the lease of a loading job was lost");
                return;
            }
            Err(fault) => {
                self.conclude(claim, output, Conclusion::Stopped(fault.to_string())).await;
                return;
            }
        }
        let conclusion = match output.is_abandoned() {
            true => Conclusion::Abandoned,
            false => self.attempt(&claim, &output, Some(load), now_ms - began_ms).await,
        };
        self.after_attempt(&claim);
        self.conclude(claim, output, conclusion).await;
    }

    /// What a job does to what is known of the memory, whatever came of it.
    fn after_attempt(&self, claim: &Claim) {
        match claim.kind {
            Kind::Run | Kind::Load => (),
            // Both may have changed what is resident.
            Kind::Unload | Kind::Opaque => self.tools.residency.doubt(),
        }
    }

    /// Asks ps. `false` if the upstream is away: then there is nothing to decide. A ps that is merely slow (it waits for
    /// locks during swaps) leaves what is known.
    pub(super) async fn refresh_residency(&self) -> bool {
        let tools = &self.tools;
        let asked = tools.residency.asking();
        match tools.ollama.ps().await {
            Ok(ps) => {
                let is_embedder = |model: &_| self.is_embedder(model);
                let gone = tools.residency.reconcile(asked, &ps, is_embedder, self.now_ms());
                for key in gone {
                    add(&self.handle.counts().external_unloads);
                    tracing::warn!(load.key = %key, "a resident model is gone though foreman did not unload it");
                }
                true
            }
            Err(fault @ SendError::Unreachable { .. }) => {
                tools.health.lost(&fault.to_string(), self.now_ms());
                false
            }
            Err(fault) => {
                tracing::debug!(upstream.error = %fault, "ps did not answer; deciding on what is known");
                true
            }
        }
    }

    /// Whether a model serves embeddings only, or is the configured embedder: never a victim.
    pub(super) fn is_embedder(&self, model: &crate::domain::model::ModelName) -> bool {
        self.embedder().is_some_and(|name| name == *model)
            || self.tools.inventory.is_embedder(model)
    }
}

/// What a turn came to.
enum Turn {
    /// Something was done; look again.
    Acted,
    /// Nothing is ready.
    Idle {
        /// For this long, unless woken.
        until: Duration,
    },
}

/// Milliseconds a claim's job has waited since it was admitted.
pub(super) fn waited_ms(claim: &Claim) -> i64 {
    (claim.claimed_at_ms - claim.created_at_ms).max(0)
}

/// `now` plus a delay, in milliseconds since 1970.
pub(super) fn later(now_ms: i64, delay: Duration) -> i64 {
    now_ms.saturating_add(clock::millis(delay))
}
