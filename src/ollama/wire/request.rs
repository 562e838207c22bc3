//! The types of a request that was looked at: what it wants, or why Ollama will refuse it.
//!
//! Made by [`super::peek::peek`] only; admission, placement and the attempt read them.

use super::json::Fault;
use super::keep_alive::{KeepAlive, KeepAliveFault};
use super::options::OptionsFault;
use crate::domain::model::RunnerOptions;
use std::ops::Range;

/// Which members a body has, by the route it came in on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `POST /api/chat`.
    Chat,
    /// `POST /api/generate`.
    Generate,
    /// `POST /api/embed`.
    Embed,
    /// `POST /api/embeddings`.
    Embeddings,
    /// Any `POST /v1/…` with a JSON body: only `model` and `stream` are read there.
    V1,
}

/// What a look at a body found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peek {
    /// Ollama will say no by itself; forward the bytes as they are.
    Refused(Refusal),
    /// A request that may need the GPU.
    Request(Request),
}

/// Why Ollama will certainly refuse a body; short, for logs, without any of the client's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An empty body, or spaces only.
    #[error("missing request body")]
    MissingBody,
    /// Not JSON.
    #[error(transparent)]
    Json(Fault),
    /// JSON, but neither an object nor `null`.
    #[error("request body is not a JSON object")]
    NotAnObject,
    /// No model named.
    #[error("model is required")]
    MissingModel,
    /// A member of a type that Go cannot decode.
    #[error("{0} has the wrong type")]
    WrongType(&'static str),
    /// A `keep_alive` outside the grammar.
    #[error(transparent)]
    KeepAlive(KeepAliveFault),
    /// A known option of the wrong type.
    #[error("option {0} has the wrong type")]
    OptionType(&'static str),
    /// A number in `options` that no double can hold.
    #[error("option out of range")]
    OptionRange,
}

/// The parts of a request that foreman acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The model as the client spelled it; not trimmed, never empty.
    pub model: String,
    /// Whether the answer comes as a stream; a native request streams unless it says no.
    pub stream: bool,
    /// The options of the runner it asks for, as given: what they mean depends on the model's file.
    pub options: RunnerOptions,
    /// How long the client wants the model kept; `None` leaves it as it is.
    pub keep_alive: Option<KeepAlive>,
    /// The bytes to cut so that no top-level `keep_alive` remains and the rest stays valid JSON:
    /// ascending, apart from each other, neighbouring members in one range with their commas.
    pub keep_alive_members: Vec<Range<usize>>,
    /// Whether it carries no work: a chat without messages or a generate without a prompt, which
    /// only loads the model, or unloads it when `keep_alive` is zero.
    pub is_empty: bool,
    /// The capabilities it needs of the model.
    pub wants: Wants,
}

impl Request {
    /// Whether Ollama takes this as the command to unload the model.
    #[must_use]
    pub fn is_unload(&self) -> bool {
        self.is_empty && self.keep_alive == Some(KeepAlive::Zero)
    }
}

/// What a native request certainly needs its model to be able to do; all false on `/v1`, where
/// Ollama's own translation decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// Call tools: `tools` is not empty.
    pub tools: bool,
    /// Think: `think` is true or a level.
    pub thinking: bool,
    /// Fill in the middle: `suffix` is not empty.
    pub insert: bool,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Missing => Self::MissingBody,
            Fault::Malformed | Fault::TooDeep | Fault::Truncated => Self::Json(fault),
        }
    }
}

impl From<OptionsFault> for Refusal {
    fn from(fault: OptionsFault) -> Self {
        match fault {
            OptionsFault::Json(fault) => Self::from(fault),
            OptionsFault::Range => Self::OptionRange,
        }
    }
}
