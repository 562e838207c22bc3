//! How long a daemon that is away is tried again: it may be restarting.

use std::time::Duration;

use crate::cli::fault::Fault;
use crate::cli::say;
use crate::clock::{Clock, millis};

/// A restart takes seconds; whoever waits for longer says so with `--timeout`.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// The first pause; it doubles.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// The longest pause: no one should wait much longer than the restart.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Whether and when to try again.
#[derive(Debug)]
pub(super) struct Patience {
    clock: Clock,
    /// When the first question since the daemon was there last came to nothing.
    away_since_ms: Option<i64>,
    /// Whether even a daemon that was never reached is tried again, instead of being told at once.
    is_expected: bool,
    limit: Duration,
    pause: Duration,
}

impl Patience {
    /// For a daemon that is expected to be there.
    pub(super) fn new() -> Patience {
        Patience {
            clock: Clock::system(),
            away_since_ms: None,
            is_expected: false,
            limit: AWAY_MAX,
            pause: PAUSE_FIRST,
        }
    }

    /// For one that is tried so long, even if it is not there at first.
    pub(super) fn of(limit: Duration) -> Patience {
        Patience { is_expected: true, limit, ..Patience::new() }
    }

    /// The daemon is there.
    pub(super) fn seen(&mut self) {
        self.away_since_ms = None;
    }

    /// The daemon said something new.
    pub(super) fn renew(&mut self) {
        self.seen();
        self.pause = PAUSE_FIRST;
    }

    /// Waits for a moment after a passing fault. A daemon that was never reached is told at once. What counts is since when there is nothing
    /// but faults, not when the daemon said something last: a question may have waited for an hour before it was cut.
    ///
    /// # Errors
    /// The fault, if it is none that passes, or has lasted for too long.
    pub(super) async fn bear(&mut self, fault: Fault, was_reached: bool) -> Result<(), Fault> {
        let is_known = self.is_expected || was_reached;
        if !fault.is_passing() || !is_known || self.is_over() {
            return Err(fault);
        }
        if self.pause == PAUSE_FIRST {
            say(&format!("{}; trying again", fault.text()));
        }
        self.rest().await;
        Ok(())
    }

    /// Whether it has been away for too long; the first time is when it begins to be.
    fn is_over(&mut self) -> bool {
        let now_ms = self.clock.now_ms();
        now_ms - *self.away_since_ms.get_or_insert(now_ms) >= millis(self.limit)
    }

    /// A pause that is longer each time, until the daemon has answered something new.
    pub(super) async fn rest(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Fault {
        Fault::Lost("away".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_was_never_there_is_told_at_once_and_one_that_left_after_a_while() {
        let mut patience = Patience { clock: Clock::manual(0), ..Patience::new() };
        assert!(patience.bear(lost(), false).await.is_err());
        patience.renew();
        assert!(patience.bear(lost(), true).await.is_ok());
        patience.clock.advance(AWAY_MAX);
        assert!(patience.bear(lost(), true).await.is_err());
        patience.renew();
        assert!(patience.bear(lost(), true).await.is_ok());
    }

    /// A question may wait for an hour before it is cut: only then the daemon begins to be away.
    #[tokio::test(start_paused = true)]
    async fn what_a_question_waited_before_it_was_cut_does_not_count() {
        let mut patience = Patience { clock: Clock::manual(0), ..Patience::new() };
        patience.seen();
        patience.clock.advance(AWAY_MAX * 60);
        assert!(patience.bear(lost(), true).await.is_ok());
        patience.clock.advance(AWAY_MAX);
        assert!(patience.bear(lost(), true).await.is_err());
    }
}
