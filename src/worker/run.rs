//! The loop: look, decide, act. It registers for the wake-up before it looks, so that no job is overlooked.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::domain::job::{Class, Event};
use crate::domain::model::{LoadKey, ModelName};
use crate::domain::retry::Fault;
use crate::domain::schedule::{Board, Decision, Lane, Reason, decide};
use crate::fail_point;
use crate::store::{Claim, Extent, StoreError, WaitingLane};

use super::conclude::Conclusion;
use super::embeds::Watch;
use super::output::Output;
use super::rest_check::RestCheck;
use super::{Hands, Worker};

/// How old what ps said may be when a job is dispatched on it.
pub(super) const PS_FRESH_MS: i64 = 5_000;

/// Pause after a fault of the store's, so that a full disk is not asked a thousand times a second.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// The longest the idle worker sleeps without looking: for a clock that is set ahead meanwhile. No wake-up is missed
/// ([`super::rest_check`]).
pub(super) const REST_MAX: Duration = Duration::from_secs(30);

/// What a turn came to.
pub(super) enum Turn {
    /// Something was done; look again.
    Acted,
    /// Nothing can be dispatched now: nothing is ready, a key is held, or a job in flight has to end first.
    Rest {
        /// For this long, unless woken.
        until: Duration,
        /// What would end it before.
        awaited: Awaited,
    },
}

/// What a resting worker waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The end of a job in flight, whatever else changes.
    Landing,
    /// The return of a client for which a key is held.
    Return,
    /// A change of what waits.
    Change,
}

impl Turn {
    pub(super) fn rest(until: Duration, awaited: Awaited) -> Turn {
        Turn::Rest { until, awaited }
    }
}

impl Worker {
    /// Serves jobs until the drain. Jobs in flight are finished by themselves, or given back when the end is forced.
    pub async fn run(mut self) {
        let tasks = self.hands.tools.tasks.clone();
        while !tasks.is_draining() {
            tokio::select! {
                () = self.hands.tools.health.up() => (),
                () = tasks.draining() => break,
            }
            while let Ok(seq) = self.landed.try_recv() {
                self.land(seq);
            }
            if self.embedder_loaded.try_recv().is_ok() {
                self.is_loading_embedder = false;
            }
            let (wake, moved) = (self.hands.handle.waking(), self.hands.tools.store.moved());
            let (woken, moved) = (wake.notified(), moved.notified());
            tokio::pin!(woken, moved);
            woken.as_mut().enable();
            moved.as_mut().enable();
            let (rest, awaited) = match self.turn().await {
                Ok(Turn::Acted) => continue,
                Ok(Turn::Rest { until, awaited }) => (until.min(REST_MAX), awaited),
                Err(StoreError::Closed) => {
                    tasks.break_down("store");
                    continue;
                }
                Err(fault) => {
                    tracing::error!(db.error = %fault, "the worker cannot read the queue; it tries again");
                    (STORE_PAUSE, Awaited::Landing)
                }
            };
            let (hands, in_flight) = (self.hands.clone(), self.in_flight.attended());
            let quiet_since_ms = self.in_flight.is_empty().then_some(self.quiet_since_ms);
            let check = RestCheck { hands, in_flight, quiet_since_ms, awaited };
            tokio::select! {
                () = woken => (),
                () = moved => (),
                () = check.lost_wake_up() => (),
                Some(seq) = self.landed.recv() => self.land(seq),
                Some(()) = self.embedder_loaded.recv() => self.is_loading_embedder = false,
                () = tokio::time::sleep(rest) => (),
                () = tasks.draining() => (),
            }
        }
        self.hands.handle.embeds().close();
        tracing::debug!("the worker has stopped");
    }

    fn land(&mut self, seq: i64) {
        self.in_flight.land(seq);
        self.border.send_replace(self.in_flight.is_empty());
    }

    /// One look and what follows from it.
    async fn turn(&mut self) -> Result<Turn, StoreError> {
        let is_border = self.in_flight.is_empty();
        let embeds = self.hands.handle.embeds().clone();
        // From here on each end of an embed is told, so that none is missed.
        embeds.watch(Watch::EachEnd);
        if self.is_loading_embedder {
            return Ok(Turn::rest(REST_MAX, Awaited::Landing));
        }
        let is_full = self.in_flight.len() >= self.hands.settings.policy.parallel.max(1);
        let has_chores = !is_border && !self.chores.is_empty();
        let is_busy = is_full && !embeds.are_waiting() && !self.in_flight.has_unattended();
        if has_chores || is_busy {
            self.let_embeds_pass();
            // Whoever asked for a chore waits, too.
            return Ok(self.interrupt_unattended());
        }
        let tasks = self.hands.tools.tasks.clone();
        self.notice_outages();
        self.notice_clock().await?;
        if is_border {
            tokio::select! {
                () = self.do_chores() => (),
                () = tasks.forced() => return Ok(Turn::Acted),
            }
        }
        let must_ask = self.hands.tools.residency.is_stale() || self.must_ask_for_embeds();
        if must_ask && !self.refresh_residency().await {
            return Ok(Turn::Acted);
        }
        let mut view = self.look().await?;
        if is_border {
            let wanted = super::look::wanted(&view.lanes);
            tokio::select! {
                () = self.hands.release_idle(&wanted) => (),
                () = tasks.forced() => return Ok(Turn::Acted),
            }
        }
        let mut board = self.board(&view.lanes);
        let mut decision = decide(&board);
        // A clock that was set back makes it old, too.
        let is_old = (self.hands.now_ms() - self.ps_at_ms).abs() > PS_FRESH_MS;
        let loads = matches!(decision, Decision::Swap { .. } | Decision::LoadEmbedder { .. });
        let dispatches = matches!(decision, Decision::Run { .. });
        if loads || (dispatches && is_old) {
            // A load decision is made on what ps says now, not on what it said at the last poll; and a model that was
            // resident a while ago may have gone, with an Ollama that was restarted or for somebody else's load.
            if !self.refresh_residency().await {
                return Ok(Turn::Acted);
            }
            // What of a long queue is in view depends on what is in memory.
            if view.extent == Extent::Part {
                view = self.look().await?;
            }
            board = self.board(&view.lanes);
            decision = decide(&board);
        }
        if tasks.is_draining() {
            return Ok(Turn::Acted);
        }
        self.note_use(&board);
        if let Some(turn) = self.yield_to(&decision) {
            return Ok(turn);
        }
        self.hands.handle.mind().decided(&decision, self.hands.now_ms());
        self.act(decision, &board, &view.lanes).await
    }

    async fn act(
        &mut self,
        decision: Decision,
        board: &Board,
        waiting: &[WaitingLane],
    ) -> Result<Turn, StoreError> {
        let embeds = self.hands.handle.embeds().clone();
        if !matches!(decision, Decision::Hold { .. } | Decision::Idle { until_ms: Some(_) }) {
            embeds.watch(Watch::Nothing);
        }
        match decision {
            // A slot may be free for a job whose delay ends meanwhile, or for one that goes first once it is late.
            Decision::Busy => {
                let until = self.rest_until(board.next_due_at_ms()).await?;
                Ok(Turn::rest(until, Awaited::Change))
            }
            Decision::Idle { until_ms } => {
                let wanted = super::look::wanted(waiting);
                match self.in_flight.is_empty() {
                    true => self.run_unattended(&wanted, until_ms).await,
                    false => Ok(Turn::rest(self.rest(&wanted, until_ms).await?, Awaited::Change)),
                }
            }
            Decision::Hold { until_ms, .. } => {
                // A job of the held key may be among those whose delay ends meanwhile.
                Ok(Turn::rest(self.rest_until(Some(until_ms)).await?, Awaited::Return))
            }
            Decision::Run { lane, class, reason } => self.dispatch(lane, class, reason).await,
            Decision::LoadEmbedder { unload, load, .. } => {
                self.load_embedder(unload, load);
                Ok(Turn::Acted)
            }
            Decision::Swap { unload, load, class, reason } => {
                let text = Lane::Key(load.clone()).to_string();
                match self.claim_to_load(text, class).await? {
                    Some(claim) => self.swap_and_dispatch(claim, &unload, &load, reason).await,
                    None => self.swap_for_embeds(&unload, &load).await,
                }
                Ok(Turn::Acted)
            }
        }
    }

    async fn claim_to_load(&self, lane: String, class: Class) -> Result<Option<Claim>, StoreError> {
        let (store, now_ms) = (&self.hands.tools.store, self.hands.now_ms());
        let claim = store.claim(lane, class, Event::ClaimToLoad, now_ms).await?;
        after_claims(claim.iter().len());
        Ok(claim)
    }

    async fn dispatch(
        &mut self,
        lane: Lane,
        class: Class,
        reason: Reason,
    ) -> Result<Turn, StoreError> {
        // All free places at once, in one write: each write waits for the flush that is under way. What takes off together
        // runs side by side, so nobody else waits longer for it.
        let free = self.hands.settings.policy.parallel.saturating_sub(self.in_flight.len()).max(1);
        let claims_max = if lane.key().is_some() { free } else { 1 };
        let store = &self.hands.tools.store;
        let now_ms = self.hands.now_ms();
        let claims = store.claim_some(lane.to_string(), class, now_ms, claims_max).await?;
        after_claims(claims.len());
        for claim in claims {
            tracing::debug!(job.id = %claim.id, job.lane = %lane, reason = reason.name(), "job claimed");
            let output = self.hands.handle.outputs().open_anew(claim.id);
            output.take_off(claim.lease_epoch, claim.is_async);
            self.take_off(claim, lane.clone(), 0);
        }
        Ok(Turn::Acted)
    }

    pub(super) async fn swap_and_dispatch(
        &mut self,
        claim: Claim,
        unload: &[ModelName],
        load: &LoadKey,
        reason: Reason,
    ) {
        let hands = &self.hands;
        tracing::debug!(job.id = %claim.id, load.key = %load, reason = reason.name(), "job claimed to load");
        let output = hands.handle.outputs().open_anew(claim.id);
        output.take_off(claim.lease_epoch, claim.is_async);
        let began_ms = hands.now_ms();
        if output.is_abandoned() {
            // A waiter that left before the start causes no load.
            hands.conclude(claim, output, Conclusion::Abandoned).await;
            return;
        }
        if claim.deadline_ms.is_some_and(|deadline_ms| deadline_ms <= began_ms) {
            hands.conclude(claim, output, Conclusion::late()).await;
            return;
        }
        if !hands.swap_for(&claim, &output, (unload, load, reason)).await {
            return;
        }
        let now_ms = hands.now_ms();
        let load_ms = now_ms - began_ms;
        match hands.tools.store.loaded(claim.seq, claim.lease_epoch, load_ms, now_ms).await {
            Ok(true) => {
                fail_point::reach("loaded.committed");
                self.take_off(claim, Lane::Key(load.clone()), load_ms);
            }
            Ok(false) => tracing::error!(job.id = %claim.id, "the lease of a loading job was lost"),
            Err(fault) => {
                // Uncharged, a disk that fails here each time would have it loaded for ever.
                let conclusion = Conclusion::failed(Fault::Unnoted, 503, fault.to_string());
                hands.conclude(claim, output, conclusion).await;
            }
        }
    }

    /// Loads a model that also generates, as far as is known, where only embeds wait for it.
    async fn swap_for_embeds(&mut self, unload: &[ModelName], load: &LoadKey) {
        let hands = &self.hands;
        if !hands.handle.embeds().wait_for(load) {
            return;
        }
        if let Some(entry) = hands.tools.inventory.find(&load.model) {
            // An Ollama whose tags do not tell is asked, once for a digest.
            hands.tools.inventory.capabilities(&entry).await;
        }
        if hands.is_embedder(&load.model) {
            self.load_embedder(unload.to_vec(), load.clone());
            return;
        }
        if hands.swap(unload, load, load.model.as_str(), Reason::Embed).await.is_err() {
            tracing::warn!(load.key = %load, "a model that embeds wait for could not be loaded");
        }
        hands.let_embeds_go(load);
    }

    /// Starts a claimed job; the loop goes on meanwhile.
    pub(super) fn take_off(&mut self, claim: Claim, lane: Lane, load_ms: i64) {
        let (seq, hands, landing) = (claim.seq, self.hands.clone(), self.landing.clone());
        let unattended = claim.is_unattended.then(|| hands.handle.outputs().open(claim.id));
        self.in_flight.take_off(seq, lane.clone(), unattended);
        self.border.send_replace(false);
        self.hands.tools.tasks.spawn_vital("job", async move {
            hands.fly(claim, &lane, load_ms).await;
            if landing.send(seq).await.is_err() {
                tracing::trace!("the worker has stopped before the job ended");
            }
        });
    }

    /// How long there is nothing to do unless something happens.
    pub(super) async fn rest(
        &self,
        wanted: &[LoadKey],
        until_ms: Option<i64>,
    ) -> Result<Duration, StoreError> {
        let release = self.hands.next_release_at_ms(wanted);
        // Only where a job waits for it: nobody else needs to know whether others are quiet.
        let look = until_ms.and_then(|_| self.next_look_at_others_ms());
        self.rest_until(release.into_iter().chain(until_ms).chain(look).min()).await
    }

    /// How long until then, or until the delay of a job ends.
    async fn rest_until(&self, until_ms: Option<i64>) -> Result<Duration, StoreError> {
        let now_ms = self.hands.now_ms();
        let next_ready = self.hands.tools.store.next_ready_at_ms().await?;
        let next = next_ready.into_iter().chain(until_ms).min();
        let wait_ms = next.map_or(i64::MAX, |at_ms| (at_ms - now_ms).max(1));
        Ok(Duration::from_millis(u64::try_from(wait_ms).unwrap_or(1)))
    }
}

impl Hands {
    /// Swaps for a claimed job. `false` if the job is concluded by then: the swap failed, or its deadline passed.
    async fn swap_for(
        &self,
        claim: &Claim,
        output: &Arc<Output>,
        (unload, load, reason): (&[ModelName], &LoadKey, Reason),
    ) -> bool {
        let conclude = |conclusion| self.conclude(claim.clone(), Arc::clone(output), conclusion);
        let swapping = self.swap(unload, load, &claim.model, reason);
        tokio::pin!(swapping);
        tokio::select! {
            swapped = &mut swapping => match swapped {
                Ok(_) => return true,
                Err(conclusion) => conclude(conclusion).await,
            },
            () = self.deadline(claim.deadline_ms) => {
                conclude(Conclusion::late()).await;
                // The load itself is not given up: Ollama is in the middle of it, and others may want the model.
                drop(swapping.await);
            }
        }
        false
    }
}

/// Between a claim and whatever follows from it.
pub(super) fn after_claims(claims: usize) {
    if claims > 0 {
        fail_point::reach("claim.committed");
    }
}

/// Milliseconds a claim's job has waited since it was admitted.
pub(super) fn waited_ms(claim: &Claim) -> i64 {
    (claim.claimed_at_ms - claim.created_at_ms).max(0)
}

/// `now` plus a delay, in milliseconds since 1970.
pub(super) fn later(now_ms: i64, delay: Duration) -> i64 {
    now_ms.saturating_add(clock::millis(delay))
}
