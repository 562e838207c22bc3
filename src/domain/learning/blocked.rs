//! Why a key that is wanted is not loaded now, and until when.

use super::breaker::LoadFailure;
use super::{Learning, Models};
use crate::domain::model::LoadKey;

/// Why a key is not loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockedBecause {
    /// Its load failed.
    Broken,
    /// Its load was given up as stuck.
    Stuck,
    /// Ollama's own queue was full.
    Busy,
    /// A load that follows on failed ones is under way.
    Probed,
    /// Somebody beside foreman pushed it out, and is using the GPU.
    PushedOut,
}

impl BlockedBecause {
    /// The stable name, in JSON.
    pub fn name(self) -> &'static str {
        match self {
            BlockedBecause::Broken => "broken",
            BlockedBecause::Stuck => "stuck",
            BlockedBecause::Busy => "busy",
            BlockedBecause::Probed => "probed",
            BlockedBecause::PushedOut => "pushed-out",
        }
    }
}

/// A key that is not loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocked {
    /// Why.
    pub because: BlockedBecause,
    /// Until when (milliseconds since 1970); [`i64::MAX`] until its probe ends.
    pub until_ms: i64,
}

impl Learning {
    /// Why a key is not loaded, be it in the past; `None` if nothing was ever in its way.
    ///
    /// Somebody else's use of the GPU makes no job late: after `latest_ms` the key may be loaded.
    pub fn blocked(&self, key: &LoadKey, models: &dyn Models, latest_ms: i64) -> Option<Blocked> {
        let text = key.to_string();
        // Of most keys nothing is known, and there may be ten thousand.
        let identity = match self.breakers.knows(&text) {
            true => models.identity(&key.model),
            false => String::new(),
        };
        let broken_until_ms = self.breakers.until_ms(&text, &identity);
        let banned_until_ms = self.coolings.until_ms(&text).min(latest_ms);
        if banned_until_ms > broken_until_ms {
            let because = BlockedBecause::PushedOut;
            return Some(Blocked { because, until_ms: banned_until_ms });
        }
        let because = match (broken_until_ms, self.breakers.failure(&text, &identity)?) {
            (i64::MAX, _) => BlockedBecause::Probed,
            (_, LoadFailure::Refused) => BlockedBecause::Broken,
            (_, LoadFailure::Stuck) => BlockedBecause::Stuck,
            (_, LoadFailure::Busy) => BlockedBecause::Busy,
        };
        Some(Blocked { because, until_ms: broken_until_ms })
    }
}
