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
    /// When the daemon was there last, or the waiting began.
    since_ms: i64,
    /// A daemon that was never reached is told at once.
    is_known: bool,
    limit: Duration,
    pause: Duration,
}

impl Patience {
    /// For a daemon that is expected to be there.
    pub(super) fn new() -> Patience {
        let clock = Clock::system();
        let since_ms = clock.now_ms();
        Patience { clock, since_ms, is_known: false, limit: AWAY_MAX, pause: PAUSE_FIRST }
    }

    /// For one that is tried so long from now, even if it is not there at first.
    pub(super) fn of(limit: Duration) -> Patience {
        Patience { is_known: true, limit, ..Patience::new() }
    }

    /// The daemon is there.
    pub(super) fn seen(&mut self) {
        self.since_ms = self.clock.now_ms();
        self.is_known = true;
    }

    /// The daemon said something new.
    pub(super) fn renew(&mut self) {
        self.seen();
        self.pause = PAUSE_FIRST;
    }

    /// Waits for a moment after a passing fault.
    ///
    /// # Errors
    /// The fault, if it is none that passes, or has lasted for too long.
    pub(super) async fn bear(&mut self, fault: Fault) -> Result<(), Fault> {
        let away_ms = self.clock.now_ms() - self.since_ms;
        if !fault.is_passing() || !self.is_known || away_ms >= millis(self.limit) {
            return Err(fault);
        }
        if self.pause == PAUSE_FIRST {
            say(&format!("{}; trying again", fault.text()));
        }
        self.rest().await;
        Ok(())
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
        let mut patience = Patience::new();
        patience.clock = Clock::manual(patience.since_ms);
        assert!(patience.bear(lost()).await.is_err());
        patience.renew();
        assert!(patience.bear(lost()).await.is_ok());
        patience.clock.advance(AWAY_MAX);
        assert!(patience.bear(lost()).await.is_err());
        patience.renew();
        assert!(patience.bear(lost()).await.is_ok());
    }
}
