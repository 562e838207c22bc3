//! Scripted misbehaviour: which request goes wrong, how often, and how.
//!
//! A fault matches by path, by model, or both, lets `skip` matching requests pass and then hits
//! `times` of them. Faults about loading are taken when a load starts, all others when a request
//! has been read.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::names::Name;

/// Faults armed at once; more than any test scripts.
const FAULTS_MAX: usize = 10_000;

/// When an error answer is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the scheduler is asked.
    BeforeLoad,
    /// After the model is resident. Only meaningful on paths that use a model.
    AfterLoad,
}

/// How a TCP connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// An orderly close, which still leaves the HTTP message incomplete.
    Fin,
    /// A reset.
    Reset,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Waits this long before the request is looked at (`/api/ps` stalling).
    Stall(Duration),
    /// Accepts the request and never answers.
    HangBeforeHeaders,
    /// Closes the connection without an answer.
    CutBeforeHeaders(Cut),
    /// Sends this many chunks, then nothing, keeping the slot.
    HangAfterChunks(u32),
    /// Answers with an error.
    Answer {
        /// HTTP status.
        status: u16,
        /// Text, put into the error shape of the path.
        text: String,
        /// `Retry-After` in seconds.
        retry_after_seconds: Option<u32>,
        /// Before or after the load.
        stage: Stage,
    },
    /// Cuts the connection after this many bytes of the answer's body.
    CutAfterBytes {
        /// Body bytes that still arrive.
        bytes: u64,
        /// How it is cut.
        cut: Cut,
    },
    /// Sends this many chunks, then ends the stream cleanly without `done`.
    EndWithoutDone(u32),
    /// Sends this many chunks, then the in-band error, then ends cleanly.
    ErrorAfterChunks {
        /// Chunks before it.
        chunks: u32,
        /// The text; `None` is Ollama's own for a crashed runner.
        text: Option<String>,
    },
    /// Kills the runner after this many chunks; 0 is before the first byte, a 500.
    KillRunner(u32),
    /// Makes a load take this long.
    SlowLoad(Duration),
    /// Makes a load fail with a 500 of this text, after its usual time.
    FailLoad(String),
}

/// One scripted fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Exact path; `None` matches every path.
    pub path: Option<String>,
    /// Model by any spelling; `None` matches every request.
    pub model: Option<String>,
    /// Matching requests that pass first.
    pub skip: u64,
    /// Matching requests that are hit after that.
    pub times: u64,
    /// What happens to them.
    pub action: Action,
}

impl Fault {
    /// Creates a fault that hits the next request, whatever it is.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self { path: None, model: None, skip: 0, times: 1, action }
    }

    /// Hits only this path.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Hits only this model.
    #[must_use]
    pub fn model(mut self, model: &str) -> Self {
        self.model = Some(model.to_owned());
        self
    }

    /// Lets this many matching requests pass first.
    #[must_use]
    pub fn skip(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Hits this many matching requests.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Hits every matching request until cleared.
    #[must_use]
    pub fn forever(self) -> Self {
        self.times(u64::MAX)
    }

    fn matches(&self, path: Option<&str>, model: Option<&str>) -> bool {
        let path_fits = match (&self.path, path) {
            (Some(wanted), Some(path)) => wanted == path,
            (Some(_) | None, None) | (None, Some(_)) => true,
        };
        let model_fits = match (&self.model, model) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wanted), Some(model)) => key(wanted) == key(model),
        };
        path_fits && model_fits
    }
}

fn key(raw: &str) -> String {
    Name::parse_with_source(raw).map_or_else(|_| raw.to_lowercase(), |(name, _)| name.key())
}

/// What happens in the middle of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Midway {
    Hang,
    End,
    Fail(Option<String>),
    Kill,
}

/// An error answer to give instead of a real one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) text: String,
    pub(crate) retry_after_seconds: Option<u32>,
}

/// Everything scripted for one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) stall: Option<Duration>,
    pub(crate) hangs: bool,
    pub(crate) cut_before_headers: Option<Cut>,
    pub(crate) refusal_before: Option<Refusal>,
    pub(crate) refusal_after: Option<Refusal>,
    pub(crate) midway: Option<(u32, Midway)>,
    pub(crate) cut_after: Option<(u64, Cut)>,
}

/// Everything scripted for one load.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadPlan {
    pub(crate) time: Option<Duration>,
    pub(crate) failure: Option<String>,
}

/// A gate that work waits at while it is shut.
#[derive(Debug, Default)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Gate {
    pub(crate) fn shut(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(false);
    }

    /// Waits until the gate is open.
    pub(crate) async fn pass(&self) {
        // The sender lives as long as the gate, so this only ends by the gate being open.
        drop(self.0.subscribe().wait_for(|is_shut| !is_shut).await);
    }
}

/// The armed faults of one stub, and its gates.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    armed: Mutex<Vec<Fault>>,
    /// Loads do not finish while it is shut.
    pub(crate) loads: Gate,
    /// Neither tokens nor embeddings come while it is shut.
    pub(crate) tokens: Gate,
}

impl Faults {
    pub(crate) fn arm(&self, fault: Fault) {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if armed.len() < FAULTS_MAX {
            armed.push(fault);
        }
    }

    pub(crate) fn clear(&self) {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Counts a request against the armed faults and returns what hits it.
    pub(crate) fn take_request(&self, path: &str, model: Option<&str>) -> Plan {
        let mut plan = Plan::default();
        for action in self.take(Some(path), model, |action| !is_about_loading(action)) {
            plan.add(action);
        }
        plan
    }

    /// Counts a load against the armed faults and returns what hits it.
    pub(crate) fn take_load(&self, model: &str) -> LoadPlan {
        let mut plan = LoadPlan::default();
        for action in self.take(None, Some(model), is_about_loading) {
            match action {
                Action::SlowLoad(time) => plan.time = Some(time),
                Action::FailLoad(text) => plan.failure = Some(text),
                _ => {}
            }
        }
        plan
    }

    fn take(
        &self,
        path: Option<&str>,
        model: Option<&str>,
        wanted: impl Fn(&Action) -> bool,
    ) -> Vec<Action> {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hits = Vec::new();
        for fault in armed.iter_mut() {
            if !wanted(&fault.action) || !fault.matches(path, model) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 {
                fault.times = if fault.times == u64::MAX { u64::MAX } else { fault.times - 1 };
                hits.push(fault.action.clone());
            }
        }
        armed.retain(|fault| fault.times > 0);
        hits
    }
}

fn is_about_loading(action: &Action) -> bool {
    matches!(action, Action::SlowLoad(_) | Action::FailLoad(_))
}

impl Plan {
    fn add(&mut self, action: Action) {
        match action {
            Action::Stall(time) => self.stall = Some(time),
            Action::HangBeforeHeaders => self.hangs = true,
            Action::CutBeforeHeaders(cut) => self.cut_before_headers = Some(cut),
            Action::HangAfterChunks(chunks) => self.midway = Some((chunks, Midway::Hang)),
            Action::EndWithoutDone(chunks) => self.midway = Some((chunks, Midway::End)),
            Action::ErrorAfterChunks { chunks, text } => {
                self.midway = Some((chunks, Midway::Fail(text)));
            }
            Action::KillRunner(chunks) => self.midway = Some((chunks, Midway::Kill)),
            Action::CutAfterBytes { bytes, cut } => self.cut_after = Some((bytes, cut)),
            Action::Answer { status, text, retry_after_seconds, stage } => {
                let refusal = Some(Refusal { status, text, retry_after_seconds });
                match stage {
                    Stage::BeforeLoad => self.refusal_before = refusal,
                    Stage::AfterLoad => self.refusal_after = refusal,
                }
            }
            // Taken by `take_load`.
            Action::SlowLoad(_) | Action::FailLoad(_) => {}
        }
    }
}
