//! What is remembered about loads that failed, and about keys that somebody else pushed out. Part of [`Mind`].

use crate::domain::learning::{Blocked, LoadError, Models, OpenBreaker};
use crate::domain::model::{LoadKey, ModelName};

use super::mind::Mind;

/// A load limit is doubled at most this often: 64 times the limit is longer than anybody waits.
const LIMIT_DOUBLINGS_MAX: u32 = 6;

impl Mind {
    /// A load failed. Returns how long its key pauses, in milliseconds.
    pub(super) fn load_failed(
        &self,
        key: &LoadKey,
        models: &dyn Models,
        error: LoadError,
        now_ms: i64,
    ) -> i64 {
        let (text, model) = (key.to_string(), models.identity(&key.model));
        self.with_learning(|learning| learning.breakers.load_failed(&text, &model, error, now_ms))
    }

    /// A load of a key begins.
    pub(super) fn load_begins(&self, key: &LoadKey) {
        self.with_learning(|learning| learning.breakers.load_begins(&key.to_string()));
    }

    /// A load of a key has ended, perhaps without telling anything about it.
    pub(super) fn load_ended(&self, key: &LoadKey, now_ms: i64) {
        self.with_learning(|learning| learning.breakers.load_abandoned(&key.to_string(), now_ms));
    }

    /// How long a load of a key may take without a sign of life, where `limit_ms` was configured: longer for large models and
    /// slow disks, and twice as long after each load that was given up.
    pub(super) fn load_limit_ms(&self, key: &LoadKey, models: &dyn Models, limit_ms: i64) -> i64 {
        let (text, model) = (key.to_string(), models.identity(&key.model));
        let size_bytes = models.size_bytes(&key.model);
        self.with_learning(|learning| {
            let patience_ms = learning.load_times.patience_ms(&text, size_bytes);
            let doublings = learning.breakers.stuck(&text, &model).min(LIMIT_DOUBLINGS_MAX);
            limit_ms.max(patience_ms).saturating_mul(1 << doublings)
        })
    }

    /// The breaker of a key, if it is open and refuses clients.
    pub(super) fn refusing(
        &self,
        key: &LoadKey,
        models: &dyn Models,
        now_ms: i64,
    ) -> Option<OpenBreaker> {
        let (text, model) = (key.to_string(), models.identity(&key.model));
        let open = self.with_learning(|learning| learning.breakers.open(&text, &model, now_ms))?;
        open.refuses_clients().then_some(open)
    }

    /// All breakers that are open.
    pub(super) fn open_breakers(&self, models: &dyn Models, now_ms: i64) -> Vec<OpenBreaker> {
        let identity = |key: &str| {
            let key: Option<LoadKey> = key.parse().ok();
            key.map_or_else(String::new, |key| models.identity(&key.model))
        };
        self.with_learning(|learning| learning.breakers.all_open(identity, now_ms))
    }

    /// Closes the breakers of a model that was deleted or replaced.
    pub(super) fn forget_failures_of(&self, model: &ModelName) {
        self.with_learning(|learning| learning.breakers.close_model(model.as_str()));
    }

    /// Why a key is not loaded now, where its most urgent job must begin to load by `latest_ms`; `None` if it may be.
    pub(super) fn blocked(
        &self,
        key: &LoadKey,
        models: &dyn Models,
        latest_ms: i64,
        now_ms: i64,
    ) -> Option<Blocked> {
        let blocked = self.with_learning(|learning| learning.blocked(key, models, latest_ms))?;
        (blocked.until_ms > now_ms).then_some(blocked)
    }

    /// Somebody beside foreman pushed a key out.
    pub(super) fn pushed_out(&self, key: &LoadKey, models: &dyn Models, since_ms: i64) {
        let (text, size_bytes) = (key.to_string(), models.size_bytes(&key.model));
        self.with_learning(|learning| {
            let load_ms = learning.load_times.expected_ms(&text, size_bytes);
            learning.coolings.pushed_out(&text, since_ms, load_ms);
        });
    }

    /// A key is gone that foreman did not unload, and nothing is there in its place.
    pub(super) fn went_missing(
        &self,
        key: &LoadKey,
        models: &dyn Models,
        since_ms: i64,
        now_ms: i64,
    ) {
        let (text, size_bytes) = (key.to_string(), models.size_bytes(&key.model));
        self.with_learning(|learning| {
            let load_ms = learning.load_times.expected_ms(&text, size_bytes);
            learning.coolings.went_missing(&text, since_ms, load_ms, now_ms);
        });
    }

    /// Whether somebody else's use of the GPU keeps a key from being loaded.
    pub(super) fn is_banning(&self, now_ms: i64) -> bool {
        self.with_learning(|learning| !learning.coolings.is_empty(now_ms))
    }

    /// The models of others were last used at `used_at_ms`. Returns when the next ban ends if they stay quiet.
    pub(super) fn others_quiet(&self, used_at_ms: i64, now_ms: i64) -> Option<i64> {
        self.with_learning(|learning| learning.coolings.others_quiet(used_at_ms, now_ms))
    }
}
