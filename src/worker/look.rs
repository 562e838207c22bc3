//! What the worker sees before it decides: what waits, and what the upstream holds.

use crate::domain::learning::Waiting;
use crate::domain::model::{LoadKey, ModelName};
use crate::domain::schedule::{Board, Lane};
use crate::ollama::client::SendError;
use crate::store::{StoreError, WaitingLane};

use super::handle::add;
use super::mind::Installed;
use super::ps_question::PsAnswer;
use super::{Hands, Worker};

/// A clock is set back by less than this all the time.
const SET_BACK_MS_MIN: i64 = 1_000;

/// Between two warnings that somebody else loads models.
const WARNING_PAUSE_MS: i64 = 60_000;

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
    /// The board of now. Jobs in flight that nobody waits for are not on it: they make room.
    pub(super) fn board(&self, waiting: &[WaitingLane]) -> Board {
        self.hands.board(waiting, self.in_flight.attended())
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
        self.hands.handle.mind().went_missing(key, since_ms, now_ms);
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
                self.hands.handle.mind().pushed_out(&key, since_ms);
            }
        }
    }
}

impl Hands {
    /// The board of now, with these lanes in flight.
    pub(super) fn board(&self, waiting: &[WaitingLane], in_flight: Vec<Lane>) -> Board {
        let waiting: Vec<Waiting> = waiting.iter().filter_map(WaitingLane::ready).collect();
        let tools = &self.tools;
        let (mind, held, now_ms) =
            (self.handle.mind(), tools.residency.held(), tools.clock.now_ms());
        mind.see(&held, &waiting, now_ms);
        let (models, policy) = (Installed(&tools.inventory), &self.settings.policy);
        let board = mind.board(now_ms, &waiting, &held, &models, policy);
        Board { in_flight, ..board }
    }

    /// Whether a model serves embeddings only, or is the configured embedder: never a victim.
    pub(super) fn is_embedder(&self, model: &ModelName) -> bool {
        self.embedder().is_some_and(|name| self.tools.inventory.is_same(&name, model))
            || self.tools.inventory.is_embedder(model)
    }
}
