//! The loop: look, decide, act. It registers for the wake-up before it looks, so that no job is overlooked.

use std::time::Duration;

use crate::clock;
use crate::domain::job::{Class, Event, Kind};
use crate::domain::model::{LoadKey, ModelName};
use crate::domain::schedule::{Board, Decision, Lane, LaneHead, Reason, decide};
use crate::ollama::client::SendError;
use crate::store::{Claim, StoreError};

use super::Worker;
use super::conclude::Conclusion;
use super::handle::add;

/// How long a job on a resident key waits for an embed that loads a model by itself. Such a job cannot wedge Ollama, it
/// only stands in the load's way.
const FOREIGN_PATIENCE: Duration = Duration::from_secs(10);

/// How often ps is asked meanwhile.
const FOREIGN_POLL: Duration = Duration::from_millis(100);

/// How old what ps said may be when a job is dispatched on it.
const PS_FRESH_MS: i64 = 5_000;

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
        let outages = self.tools.health.outages();
        if outages != self.outages_seen {
            // Its runners may be gone with it.
            self.outages_seen = outages;
            self.tools.residency.clear();
        }
        let tasks = self.tools.tasks.clone();
        tokio::select! {
            () = self.do_chores() => (),
            () = tasks.forced() => return Ok(Turn::Acted),
        }
        if self.tools.residency.is_stale() && !self.refresh_residency().await {
            return Ok(Turn::Acted);
        }
        let (mut board, wanted) = self.board().await?;
        tokio::select! {
            () = self.release_idle(&wanted) => (),
            () = tasks.forced() => return Ok(Turn::Acted),
        }
        board.resident = self.tools.residency.board();
        let mut decision = decide(&board);
        if decision == Decision::Idle {
            return Ok(Turn::Idle { until: self.rest(&wanted).await? });
        }
        let has_waited = self.wait_for_foreign_loads(&decision).await;
        // A clock that was set back makes it old, too.
        let is_old = (self.now_ms() - self.ps_at_ms).abs() > PS_FRESH_MS;
        if has_waited || is_old || matches!(decision, Decision::Swap { .. }) {
            // A load decision is made on what ps says now, not on what it said at the last poll; and a model that was
            // resident a while ago may have gone, with an Ollama that was restarted or for somebody else's load.
            let is_there = self.refresh_residency().await;
            if !is_there || (has_waited && self.tools.residency.is_stale()) {
                // Away, or too busy making room to say what it has: nothing to decide on yet.
                return Ok(Turn::Acted);
            }
            board.resident = self.tools.residency.board();
            decision = decide(&board);
        }
        if self.tools.tasks.is_draining() {
            return Ok(Turn::Acted);
        }
        self.act(decision).await
    }

    async fn act(&mut self, decision: Decision) -> Result<Turn, StoreError> {
        match decision {
            Decision::Idle => Ok(Turn::Acted),
            Decision::Run { lane, reason } => self.serve(lane, reason).await,
            Decision::Swap { unload, load, reason } => {
                let lane = Lane::Key(load.clone()).to_string();
                let claim = self.claim(&lane, Event::ClaimToLoad).await?;
                if let Some(claim) = claim {
                    self.swap_and_run(claim, &unload, &load, reason).await;
                }
                Ok(Turn::Acted)
            }
        }
    }

    /// Waits while an embed makes Ollama load a model by itself: what is dispatched now would wait behind it, or, with the pin
    /// of a load, wedge it (ollama/ollama#17408). Whether there was anything to wait for. A load of foreman's own waits as
    /// long as a load may take, a job on a resident key only a moment. Ps is asked meanwhile: once the embedder is resident,
    /// further embeds of it are not waited for.
    async fn wait_for_foreign_loads(&mut self, decision: &Decision) -> bool {
        let is_swap = matches!(decision, Decision::Swap { .. });
        let (patience, given_up) = match is_swap {
            true => (self.settings.load_limit, self.given_up_load),
            false => (
                FOREIGN_PATIENCE.min(self.settings.load_limit),
                self.passed_load.max(self.given_up_load),
            ),
        };
        let waited = tokio::time::timeout(patience, self.foreign_loads_over(given_up)).await;
        if let Ok(has_waited) = waited {
            return has_waited;
        }
        let last = self.tools.residency.last_foreign_load();
        match is_swap {
            true => self.given_up_load = last,
            false => self.passed_load = last,
        }
        tracing::warn!(
            waited.s = patience.as_secs(),
            "an embed of a model that is not resident does not end; going on"
        );
        true
    }

    /// Returns when no embed with a ticket above `given_up` is loading a model by itself, or there is nothing to wait with.
    /// Whether it had to wait.
    async fn foreign_loads_over(&mut self, given_up: u64) -> bool {
        let residency = self.tools.residency.clone();
        let tasks = self.tools.tasks.clone();
        let mut has_waited = false;
        loop {
            tokio::select! {
                biased;
                () = residency.no_foreign_loads(given_up) => return has_waited,
                () = tasks.draining() => return true,
                () = tokio::time::sleep(FOREIGN_POLL) => (),
            }
            has_waited = true;
            if !self.refresh_residency().await {
                return true;
            }
        }
    }

    /// What waits, and which keys are wanted at all, be it by a job that waits for a retry.
    async fn board(&self) -> Result<(Board, Vec<LoadKey>), StoreError> {
        let mut board = Board { resident: self.tools.residency.board(), ..Board::default() };
        let mut wanted = Vec::new();
        for waiting in self.tools.store.waiting_lanes(self.now_ms()).await? {
            let Some(lane) = Lane::from_text(&waiting.lane) else {
                tracing::debug!(job.lane = %waiting.lane, "jobs wait in a lane that this version cannot read");
                continue;
            };
            if let Lane::Key(key) = &lane
                && !wanted.contains(key)
            {
                wanted.push(key.clone());
            }
            let Some(head) = waiting.head else { continue };
            match board.lanes.iter_mut().find(|known| known.lane == lane) {
                Some(known) => known.oldest_seq = known.oldest_seq.min(head.seq),
                None => board.lanes.push(LaneHead { lane, oldest_seq: head.seq }),
            }
        }
        Ok((board, wanted))
    }

    /// Claims the next job of a lane: the most urgent class first.
    async fn claim(&self, lane: &str, event: Event) -> Result<Option<Claim>, StoreError> {
        for class in Class::ALL {
            let claim = self.tools.store.claim(lane.to_owned(), class, event, self.now_ms());
            if let Some(claim) = claim.await? {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// How long there is nothing to do unless something happens.
    async fn rest(&self, wanted: &[LoadKey]) -> Result<Duration, StoreError> {
        let now_ms = self.now_ms();
        let next_ready = self.tools.store.next_ready_at_ms(now_ms).await?;
        let next = next_ready.into_iter().chain(self.next_release_at_ms(wanted)).min();
        let wait_ms = next.map_or(i64::MAX, |at_ms| (at_ms - now_ms).max(1));
        Ok(Duration::from_millis(u64::try_from(wait_ms).unwrap_or(1)))
    }

    async fn serve(&mut self, lane: Lane, reason: Reason) -> Result<Turn, StoreError> {
        let claim = self.claim(&lane.to_string(), Event::ClaimToWork).await?;
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
        self.after_attempt(&claim, &conclusion).await;
        self.conclude(claim, output, conclusion).await;
        Ok(Turn::Acted)
    }

    async fn swap_and_run(
        &mut self,
        claim: Claim,
        unload: &[ModelName],
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
        match self.tools.store.loaded(claim.seq, claim.lease_epoch, now_ms - began_ms, now_ms).await
        {
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
        self.conclude(claim, output, conclusion).await;
    }

    /// What a job that ran without a key of its own did to the memory.
    async fn after_attempt(&self, claim: &Claim, conclusion: &Conclusion) {
        match claim.kind {
            Kind::Run | Kind::Load => (),
            Kind::Unload => {
                let model = ModelName::parse(&claim.model).ok().map(|parsed| parsed.name);
                if let (Some(model), Conclusion::Whole) = (model, conclusion) {
                    // Ollama answers at once and unloads later: the next job must not meet a runner that is going.
                    self.wait_until_gone(&model).await;
                    self.tools.residency.unloaded(&model);
                }
                // Also when it went well: it takes a runner of the same blob with other adapters, too.
                self.tools.residency.doubt();
            }
            Kind::Opaque => self.tools.residency.doubt(),
        }
    }

    /// Asks ps. `false` if the upstream is away: then there is nothing to decide. A ps that is merely slow (it waits for
    /// locks during swaps) leaves what is known.
    pub(super) async fn refresh_residency(&mut self) -> bool {
        let asked_at_ms = self.now_ms();
        let tools = &self.tools;
        let asked = tools.residency.asking();
        match tools.inventory.ps(&tools.ollama).await {
            Ok(ps) => {
                self.ps_at_ms = asked_at_ms;
                for entry in ps.iter().filter_map(|listed| tools.inventory.find(&listed.model)) {
                    // Kept by digest; so that an embedder is known as one.
                    tools.inventory.capabilities(&entry).await;
                }
                let is_embedder = |model: &_| self.is_embedder(model);
                let gone = tools.residency.reconcile(asked, &ps, is_embedder, self.now_ms());
                let digest = |model: &_| tools.inventory.find(model).map(|entry| entry.digest);
                tools.residency.forget_replaced(&ps, digest);
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
    pub(super) fn is_embedder(&self, model: &ModelName) -> bool {
        self.embedder().is_some_and(|name| self.tools.inventory.is_same(&name, model))
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
