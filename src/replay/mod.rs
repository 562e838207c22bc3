//! Days in virtual time: a trace goes through the same `domain::schedule` and the same learning as the daemon's jobs.
//!
//! Traces are recorded or made up; what becomes of one is measured. Nothing here knows a clock, a database or an Ollama.

mod engine;
mod report;
mod table;
mod trace;
mod units;

use crate::domain::schedule::Policy;

pub use engine::replay;
pub use report::{Report, as_json, mean};
pub use table::{Form, Replayed, Workload, lines, suite, workload_of};
pub use trace::{Arrival, Job, Loop, Trace, TraceFault};

/// The machine a trace is replayed on.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Who chooses.
    pub chooser: Chooser,
    /// The rules of `domain::schedule`.
    pub policy: Policy,
    /// Keys that fit in memory at once; the trace's own number goes before.
    pub slots: usize,
    /// What loading a key takes where the trace does not say, in seconds.
    pub load_s: f64,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { chooser: Chooser::Foreman, policy: Policy::default(), slots: 1, load_s: 10.0 }
    }
}

/// Who chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chooser {
    /// First come, first served, as an Ollama does by itself.
    Fifo,
    /// Everything for what is resident, then the key of the oldest waiter.
    Drain,
    /// `domain::schedule`.
    Foreman,
}

impl Chooser {
    /// All of them.
    pub const ALL: [Chooser; 3] = [Chooser::Fifo, Chooser::Drain, Chooser::Foreman];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Chooser::Fifo => "fifo",
            Chooser::Drain => "drain",
            Chooser::Foreman => "foreman",
        }
    }

    /// The chooser of that name.
    pub fn from_name(name: &str) -> Option<Chooser> {
        Chooser::ALL.into_iter().find(|chooser| chooser.name() == name)
    }
}

#[cfg(test)]
mod tests;
