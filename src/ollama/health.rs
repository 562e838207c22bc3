//! Whether the upstream is there. One monitor task owns the answer; everyone else watches it or tells it a suspicion.
//!
//! An upstream that is away (a laptop that sleeps) is a state of the daemon, not a fault of a job: the worker pauses and
//! the monitor probes, said plainly in the log once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::calls::METADATA_WAIT;
use super::client::Ollama;

/// What is known about the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// It was not asked yet.
    Unknown,
    /// It serves.
    Up {
        /// Its version; `unknown` where it does not say, or has not yet.
        version: String,
        /// Since when, in milliseconds since 1970.
        since_ms: i64,
    },
    /// It does not.
    Down {
        /// Why, for people.
        reason: String,
        /// Since when, in milliseconds since 1970.
        since_ms: i64,
    },
}

/// The shared state.
#[derive(Clone)]
pub struct Health {
    state: Arc<watch::Sender<Upstream>>,
    suspicion: Arc<Notify>,
    /// How often it went down, or was not known yet.
    outages: Arc<AtomicU64>,
    /// A question for the version is out.
    is_asking_version: Arc<AtomicBool>,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            state: Arc::new(watch::Sender::new(Upstream::Unknown)),
            suspicion: Arc::default(),
            outages: Arc::new(AtomicU64::new(1)),
            is_asking_version: Arc::default(),
        }
    }
}

impl Health {
    /// The state now.
    pub fn now(&self) -> Upstream {
        self.state.borrow().clone()
    }

    /// Whether the upstream serves, as far as known.
    pub fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), Upstream::Up { .. })
    }

    /// How often the upstream went away so far. Whoever remembers an older number knows nothing of its memory any more.
    pub fn outages(&self) -> u64 {
        self.outages.load(Ordering::SeqCst)
    }

    /// Returns when the upstream serves. Cancel-safe.
    pub async fn up(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as this `Health`, so the wait cannot fail.
        drop(state.wait_for(|state| matches!(state, Upstream::Up { .. })).await);
    }

    /// Returns when the upstream does not serve. Cancel-safe.
    pub async fn away(&self) {
        let mut state = self.state.subscribe();
        drop(state.wait_for(|state| matches!(state, Upstream::Down { .. })).await);
    }

    /// Returns when the upstream went away and has come back. Cancel-safe.
    pub async fn returned(&self) {
        self.away().await;
        self.up().await;
    }

    /// Tells that a connection could not be made: the upstream counts as down until a probe succeeds.
    pub fn lost(&self, reason: &str, now_ms: i64) {
        self.go_down(reason, now_ms);
        self.suspicion.notify_one();
    }

    /// Tells that the upstream may have gone: it is asked now, not at the next poll.
    pub fn suspect(&self) {
        self.suspicion.notify_one();
    }

    /// Waits for a suspicion or the end of `pause`, whichever is first.
    pub async fn pause(&self, pause: Duration) {
        drop(tokio::time::timeout(pause, self.suspicion.notified()).await);
    }

    /// Asks the upstream once and notes the outcome. Whether it has just come up. It is up once it answers `GET /`; for its
    /// version nothing waits longer than a moment ([`Self::learn_version`]).
    pub async fn probe(&self, ollama: &Ollama, now_ms: impl Fn() -> i64) -> Probed {
        match ollama.ping().await {
            Ok(()) if self.is_up() => Probed::StillUp,
            Ok(()) => {
                let said = tokio::time::timeout(METADATA_WAIT, ollama.version()).await;
                let version =
                    said.ok().and_then(Result::ok).unwrap_or_else(|| "unknown".to_owned());
                tracing::info!(upstream.url = %ollama.url(), upstream.version = %version, "ollama is up");
                self.state.send_replace(Upstream::Up { version, since_ms: now_ms() });
                Probed::CameUp
            }
            Err(fault) => {
                self.go_down(&fault.to_string(), now_ms());
                Probed::Down
            }
        }
    }

    /// Asks for the version and notes it, unless that was asked and is not answered yet. A version that cannot be had leaves
    /// the one known last.
    pub async fn learn_version(&self, ollama: &Ollama) {
        if self.is_asking_version.swap(true, Ordering::SeqCst) {
            return;
        }
        let said = ollama.version().await;
        self.is_asking_version.store(false, Ordering::SeqCst);
        let Ok(version) = said else { return };
        self.state.send_if_modified(|state| match state {
            Upstream::Up { version: known, .. } if *known != version => {
                *known = version;
                true
            }
            Upstream::Up { .. } | Upstream::Unknown | Upstream::Down { .. } => false,
        });
    }

    fn go_down(&self, reason: &str, now_ms: i64) {
        let mut is_another_reason = false;
        let went_down = self.state.send_if_modified(|state| match state {
            // Still away, though for something else: what is told must help with what is wrong now.
            Upstream::Down { reason: known, .. } => {
                is_another_reason = known != reason;
                if is_another_reason {
                    *known = reason.to_owned();
                }
                false
            }
            Upstream::Unknown | Upstream::Up { .. } => {
                self.outages.fetch_add(1, Ordering::SeqCst);
                *state = Upstream::Down { reason: reason.to_owned(), since_ms: now_ms };
                true
            }
        });
        if went_down {
            tracing::warn!(upstream.error = %reason, "ollama does not answer; jobs wait until it is back");
        } else if is_another_reason {
            tracing::info!(upstream.error = %reason, "ollama still does not answer, now for another reason");
        }
    }
}

/// The outcome of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// It has come up, for the first time or again.
    CameUp,
    /// It was up and is.
    StillUp,
    /// It does not answer.
    Down,
}
