//! What one record of an answer means, in each dialect.
//!
//! The table of end marks and error shapes; [`super::answer`] keeps the state they lead to.

use super::record::{Facts, Progress};
use super::sse::SseEvent;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    OpenAi,
    Responses,
    Messages,
}

/// What one record means for the answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Part,
    End,
    Error(String),
    Malformed,
}

/// Judges a complete native record.
pub(super) fn meaning_of_line(facts: &Facts) -> Meaning {
    match (&facts.error, facts.done) {
        (Some(text), _) => Meaning::Error(text.clone()),
        (None, Some(true)) => Meaning::End,
        (None, Some(false) | None) => Meaning::Part,
    }
}

/// Judges an event; its own `type` counts for more than the name on its `event:` line.
pub(super) fn meaning_of_event(dialect: Dialect, event: &SseEvent) -> Meaning {
    if dialect == Dialect::OpenAi && event.is_done_mark() {
        return Meaning::End;
    }
    match event.record.progress() {
        Progress::Complete => {}
        Progress::Blank => return Meaning::Part,
        Progress::Partial | Progress::Overfull | Progress::Malformed => return Meaning::Malformed,
    }
    let facts = event.record.facts();
    let kind = facts.kind.as_deref().map_or(event.name.as_slice(), str::as_bytes);
    if let Some(text) = facts.error.as_ref() {
        return Meaning::Error(text.clone());
    }
    let is_end = match dialect {
        Dialect::OpenAi => return Meaning::Part,
        Dialect::Responses => {
            matches!(kind, b"response.completed" | b"response.incomplete" | b"response.failed")
        }
        Dialect::Messages => kind == b"message_stop",
    };
    match kind {
        _ if is_end => Meaning::End,
        b"error" => Meaning::Error(facts.message.clone().unwrap_or_else(|| "error".to_owned())),
        _ => Meaning::Part,
    }
}
