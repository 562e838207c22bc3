//! What the worker sees before it decides: what waits, and what the upstream holds.

use crate::domain::learning::Waiting;
use crate::domain::model::{LoadKey, ModelName};
use crate::domain::schedule::{Board, Lane};
use crate::ollama::calls::PsModel;
use crate::ollama::client::SendError;
use crate::store::{LanesInView, StoreError, WaitingLane};

use super::handle::add;
use super::mind::Installed;
use super::ps_question::PsAnswer;
use super::{Hands, Worker};

/// A clock is set back by less than this all the time.
const SET_BACK_MS_MIN: i64 = 1_000;

/// Between two warnings that somebody else loads models.
const WARNING_PAUSE_MS: i64 = 60_000;

/// How often ps is asked while a key waits for others to be quiet.
const LOOK_AT_OTHERS_MS: i64 = 250;

/// Keys remembered that went missing; the first to go is forgotten. No more are resident at once.
const MISSING_MAX: usize = 64;

/// Which keys are wanted at all, be it by a job that waits for a retry.
pub(super) fn wanted(waiting: &[WaitingLane]) -> Vec<LoadKey> {
    let mut keys: Vec<LoadKey> = waiting
        .iter()
        .filter_map(|waiting| Lane::from_text(&waiting.lane)?.key().cloned())
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

impl Worker {
    /// What waits, as far as it could be chosen.
    pub(super) async fn look(&self) -> Result<LanesInView, StoreError> {
        let (tools, now_ms) = (&self.hands.tools, self.hands.now_ms());
        let of = self.hands.handle.view_of(tools.residency.held(), &tools.inventory, now_ms);
        tools.store.lanes_in_view(now_ms, of).await
    }

    /// The board of now. Jobs in flight that nobody waits for are not on it: they make room.
    pub(super) fn board(&self, waiting: &[WaitingLane]) -> Board {
        self.let_embeds_pass();
        self.hands.board(waiting, self.in_flight.attended())
    }

    /// Lets those embeds go on that need not wait any more.
    pub(super) fn let_embeds_pass(&self) {
        let hands = &self.hands;
        let (embeds, residency) = (hands.handle.embeds(), &hands.tools.residency);
        embeds.release(|key| residency.serves(key));
        // Those of a key that does not load are told so.
        let (mind, installed) = (hands.handle.mind(), Installed(&hands.tools.inventory));
        embeds.let_through(|key| mind.refusing(key, &installed, hands.now_ms()).is_some());
    }

    /// Whether an embed waits for its model since ps was last asked: somebody else may have loaded it.
    pub(super) fn must_ask_for_embeds(&self) -> bool {
        let newest_ms = self.hands.handle.embeds().newest_waiting_ms();
        newest_ms.is_some_and(|newest_ms| newest_ms >= self.ps_at_ms)
    }

    /// A clock that was set back by more than a correction: what waits and what was learned is brought back with it, so that
    /// nobody waits longer than once more his longest wait.
    pub(super) async fn notice_clock(&mut self) -> Result<(), StoreError> {
        let now_ms = self.hands.now_ms();
        if self.seen_ms - now_ms > SET_BACK_MS_MIN {
            tracing::warn!(clock.back.ms = self.seen_ms - now_ms, "the clock was set back");
            self.hands.tools.store.clamp_ready(now_ms).await?;
            self.hands.handle.mind().clock_set_back(now_ms);
            self.hands.tools.residency.clock_set_back(now_ms);
            self.quiet_since_ms = self.quiet_since_ms.min(now_ms);
            for (_, since_ms) in &mut self.missing {
                *since_ms = (*since_ms).min(now_ms);
            }
            self.others_used_at_ms = self.others_used_at_ms.min(now_ms);
        }
        self.seen_ms = now_ms;
        Ok(())
    }

    /// Forgets what an upstream that was away may have lost.
    pub(super) fn notice_outages(&mut self) {
        let outages = self.hands.tools.health.outages();
        if outages != self.outages_seen {
            // Its runners may be gone with it.
            self.outages_seen = outages;
            self.hands.tools.residency.clear();
            self.missing.clear();
            self.hands.handle.mind().forget_coolings();
        }
    }

    /// Asks ps. `false` if the upstream is away: then there is nothing to decide. A ps that is merely slow (it waits for
    /// locks during swaps) leaves what is known.
    pub(super) async fn refresh_residency(&mut self) -> bool {
        let Some(PsAnswer { asked, asked_at_ms, listed }) = self.ask_ps().await else {
            return true;
        };
        let tools = &self.hands.tools;
        match listed {
            Ok(ps) => {
                self.ps_at_ms = asked_at_ms;
                for entry in ps.iter().filter_map(|listed| tools.inventory.find(&listed.listed)) {
                    // Kept by digest; so that an embedder is known as one.
                    tools.inventory.capabilities(&entry).await;
                }
                let before = tools.residency.entries();
                let is_embedder = |model: &_| self.hands.is_embedder(model);
                let gone = tools.residency.reconcile(asked, &ps, is_embedder, self.hands.now_ms());
                let digest = |model: &_| tools.inventory.find(model).map(|entry| entry.digest);
                tools.residency.forget_replaced(&ps, digest);
                for key in gone {
                    let since_ms = before.iter().find(|entry| entry.resident.model == key.model);
                    self.notice_external_unload(&key, since_ms.map_or(0, |entry| entry.since_ms));
                }
                self.see_who_pushed_out();
                self.see_use_by_others(&ps);
                true
            }
            Err(fault @ SendError::Unreachable { .. }) => {
                tools.health.lost(&fault.to_string(), self.hands.now_ms());
                false
            }
            Err(fault) => {
                tracing::debug!(upstream.error = %fault, "ps did not answer; deciding on what is known");
                true
            }
        }
    }

    /// A key is gone that foreman did not unload. Whoever pushed it out may still be loading, and no ps shows that.
    fn notice_external_unload(&mut self, key: &LoadKey, since_ms: i64) {
        add(&self.hands.handle.counts().external_unloads);
        let now_ms = self.hands.now_ms();
        let installed = Installed(&self.hands.tools.inventory);
        self.hands.handle.mind().went_missing(key, &installed, since_ms, now_ms);
        self.missing.retain(|(other, _)| other != key);
        self.missing.push((key.clone(), since_ms));
        if self.missing.len() > MISSING_MAX {
            self.missing.remove(0);
        }
        if (now_ms - self.warned_at_ms).abs() >= WARNING_PAUSE_MS {
            self.warned_at_ms = now_ms;
            tracing::warn!(load.key = %key, "a resident model is gone though foreman did not unload it; \
                further ones are counted, and told at most once a minute");
        }
    }

    /// Where somebody else's model is in the place of a key that went missing, foreman does not fight: the key stays away
    /// for its residence.
    fn see_who_pushed_out(&mut self) {
        let entries = self.hands.tools.residency.entries();
        self.missing
            .retain(|(key, _)| entries.iter().all(|entry| entry.resident.model != key.model));
        if entries.iter().any(|entry| !entry.is_pinned && !entry.resident.is_embedder) {
            for (key, since_ms) in self.missing.drain(..) {
                let installed = Installed(&self.hands.tools.inventory);
                self.hands.handle.mind().pushed_out(&key, &installed, since_ms);
            }
        }
    }

    /// Takes note of when the models of others were used: Ollama moves the time at which it lets a model go with each use.
    /// Bans end once they are quiet. One long use cannot be seen; a load that follows then waits for it, inside Ollama.
    fn see_use_by_others(&mut self, ps: &[PsModel]) {
        let now_ms = self.hands.now_ms();
        let entries = self.hands.tools.residency.entries();
        let is_others = |listed: &&PsModel| {
            let mut entries = entries.iter();
            let entry = entries.find(|entry| entry.resident.model == listed.model);
            entry.is_none_or(|entry| !entry.is_pinned && !entry.resident.is_embedder)
        };
        let others = ps.iter().filter(is_others);
        let mut seen: Vec<String> =
            others.map(|listed| format!("{} {}", listed.listed, listed.expires_at)).collect();
        seen.sort();
        if seen != self.others {
            self.others = seen;
            self.others_used_at_ms = now_ms;
        }
        if self.in_flight.is_empty() {
            self.hands.handle.mind().others_quiet(self.others_used_at_ms, now_ms);
        }
    }

    /// When to ask ps again because of others who may be quiet by then; `None` if no key waits for that.
    pub(super) fn next_look_at_others_ms(&self) -> Option<i64> {
        let now_ms = self.hands.now_ms();
        let mind = self.hands.handle.mind();
        mind.is_banning(now_ms).then(|| {
            self.hands.tools.residency.doubt();
            now_ms + LOOK_AT_OTHERS_MS
        })
    }
}

impl Hands {
    /// The board of now, with these lanes in flight.
    pub(super) fn board(&self, waiting: &[WaitingLane], in_flight: Vec<Lane>) -> Board {
        let mut waiting: Vec<Waiting> = waiting.iter().filter_map(WaitingLane::ready).collect();
        self.add_embeds(&mut waiting);
        let tools = &self.tools;
        let (mind, held, now_ms) =
            (self.handle.mind(), tools.residency.held(), tools.clock.now_ms());
        mind.see(&held, &waiting, now_ms);
        let (models, policy) = (Installed(&tools.inventory), &self.settings.policy);
        let board = mind.board(now_ms, &waiting, &held, &models, policy);
        Board { in_flight, ..board }
    }

    /// Adds the embeds to what waits. Those of a model that also generates wait with its interactive jobs.
    fn add_embeds(&self, waiting: &mut Vec<Waiting>) {
        let serves = |key: &LoadKey| self.tools.residency.serves(key);
        for lane in self.handle.embeds().on_board(serves) {
            let is_same =
                |other: &&mut Waiting| other.lane == lane.lane && other.class == lane.class;
            match waiting.iter_mut().find(is_same) {
                Some(jobs) => {
                    jobs.jobs = jobs.jobs.saturating_add(lane.jobs);
                    jobs.ready_at_ms = jobs.ready_at_ms.min(lane.ready_at_ms);
                }
                None => waiting.push(lane),
            }
        }
    }

    /// Whether a model serves embeddings only, or is the configured embedder: never a victim.
    pub(super) fn is_embedder(&self, model: &ModelName) -> bool {
        self.embedder().is_some_and(|name| self.tools.inventory.is_same(&name, model))
            || self.tools.inventory.is_embedder(model)
    }
}
