//! The `options` object of a native request, typed as Ollama types it.
//!
//! Only the runner options are kept; of the others only the type matters, because a wrong one is an
//! error that Ollama tells without the GPU. Unknown options are ignored there and here.

use super::json::{Fault, Kind};
use super::members::{Document, Member, open};
use super::text::{go_int, key_is, number};
use crate::domain::model::RunnerOptions;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Integer,
    Float,
    Boolean,
    /// An array; that its elements are strings is left for Ollama to say.
    Array,
}

/// Every option of Ollama's `api.Options`; in a Go map keys match exactly, case included.
///
/// The runner options come first, in the order [`OptionsDraft::runner_options`] takes them.
const KNOWN: [(&str, Type); 20] = [
    ("num_ctx", Type::Integer),
    ("num_batch", Type::Integer),
    ("num_gpu", Type::Integer),
    ("num_thread", Type::Integer),
    ("main_gpu", Type::Integer),
    ("draft_num_predict", Type::Integer),
    ("use_mmap", Type::Boolean),
    ("num_keep", Type::Integer),
    ("seed", Type::Integer),
    ("num_predict", Type::Integer),
    ("top_k", Type::Integer),
    ("repeat_last_n", Type::Integer),
    ("top_p", Type::Float),
    ("min_p", Type::Float),
    ("typical_p", Type::Float),
    ("temperature", Type::Float),
    ("repeat_penalty", Type::Float),
    ("presence_penalty", Type::Float),
    ("frequency_penalty", Type::Float),
    ("stop", Type::Array),
];

/// What the last member of a name said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Given {
    /// Nothing, or `null`: Ollama keeps its default either way. (It also stops taking the context
    /// for automatic then, which only matters where the default does not fit the GPU.)
    #[default]
    Absent,
    Number(i64),
    Switch(bool),
    /// Of the right type and of no consequence for the runner.
    Other,
    WrongType,
}

/// The options map of one request. Go decodes a repeated `options` member into the same map, so one
/// draft takes them all, and `null` starts it anew.
#[derive(Debug, Default)]
pub(super) struct OptionsDraft {
    known: [Given; KNOWN.len()],
}

/// Why an options object is refused as a whole, before single types are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OptionsFault {
    Json(Fault),
    /// A number that no double can hold.
    Range,
}

impl OptionsDraft {
    /// Merges an object, given with its braces, into the map.
    pub(super) fn merge(&mut self, object: &[u8]) -> Result<(), OptionsFault> {
        let Document::Object(members) = open(object).map_err(OptionsFault::Json)? else {
            return Ok(());
        };
        for member in members {
            self.set(object, &member.map_err(OptionsFault::Json)?)?;
        }
        Ok(())
    }

    fn set(&mut self, object: &[u8], member: &Member) -> Result<(), OptionsFault> {
        let key = &object[member.key.clone()];
        let value = &object[member.value.clone()];
        let parsed = match member.kind {
            // Go decodes every value of the map, so even an unknown option must be in range.
            Kind::Number => Some(number(value).ok_or(OptionsFault::Range)?),
            Kind::Null | Kind::Bool | Kind::String | Kind::Array | Kind::Object => None,
        };
        if let Some(index) = KNOWN.iter().position(|(name, _)| key_is(key, name)) {
            self.known[index] = given(KNOWN[index].1, member.kind, parsed, value);
        }
        Ok(())
    }

    /// The name of an option that Ollama would refuse for its type, if there is one.
    pub(super) fn wrong_type(&self) -> Option<&'static str> {
        let mut known = KNOWN.iter().zip(&self.known);
        known.find_map(|((name, _), given)| (*given == Given::WrongType).then_some(*name))
    }

    /// The runner options, `shift` left open.
    pub(super) fn runner_options(&self) -> RunnerOptions {
        let [num_ctx, num_batch, num_gpu, num_thread, main_gpu, draft_num_predict, use_mmap, ..] =
            self.known;
        RunnerOptions {
            num_ctx: num_ctx.number(),
            num_batch: num_batch.number(),
            num_gpu: num_gpu.number(),
            num_thread: num_thread.number(),
            main_gpu: main_gpu.number(),
            draft_num_predict: draft_num_predict.number(),
            use_mmap: match use_mmap {
                Given::Switch(value) => Some(value),
                Given::Absent | Given::Number(_) | Given::Other | Given::WrongType => None,
            },
            shift: None,
        }
    }
}

impl Given {
    fn number(self) -> Option<i64> {
        match self {
            Self::Number(value) => Some(value),
            Self::Absent | Self::Switch(_) | Self::Other | Self::WrongType => None,
        }
    }
}

fn given(wanted: Type, kind: Kind, parsed: Option<f64>, value: &[u8]) -> Given {
    match (wanted, kind, parsed) {
        (_, Kind::Null, _) => Given::Absent,
        (Type::Integer, _, Some(parsed)) => Given::Number(go_int(parsed)),
        (Type::Float, _, Some(_)) => Given::Other,
        (Type::Boolean, Kind::Bool, _) => Given::Switch(value == b"true"),
        (Type::Array, Kind::Array, _) => Given::Other,
        _ => Given::WrongType,
    }
}
