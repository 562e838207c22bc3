//! Watches one JSON record of an answer for the few top-level members that matter.
//!
//! Fed in pieces of any size; a record of many megabytes costs no more than the caps below. Content
//! cannot fool it: members of inner objects and text inside strings are never looked at.

use super::answer::Usage;
use super::json::{Event, Kind, is_space};
use super::members::{Document, open};
use super::scanner::Scanner;
use super::text::{decode, key_is};

/// Enough for every key of interest, even if each character were escaped.
const KEY_BYTES_MAX: usize = 128;

/// How much of a value is kept: an error text is for a person, the rest is shorter anyway.
const VALUE_BYTES_MAX: usize = 4 * 1024;

/// How far a record has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// White space at most.
    Blank,
    Partial,
    /// One complete value, white space around it at most.
    Complete,
    /// A complete value with more than white space behind it.
    Overfull,
    Malformed,
}

/// The members that tell what a record is.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// `done`, of native records.
    pub(super) done: Option<bool>,
    /// The text of `error`, unless that is `null` or empty; at most 4 KiB of JSON are read.
    pub(super) error: Option<String>,
    /// `message`, if it is a string: the text of an error event.
    pub(super) message: Option<String>,
    /// `type`, of events.
    pub(super) kind: Option<String>,
    pub(super) usage: Usage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Done,
    Error,
    Message,
    Type,
    EvalCount,
    PromptEvalCount,
    LoadDuration,
    Usage,
}

const FIELDS: [(&str, Field); 8] = [
    ("done", Field::Done),
    ("error", Field::Error),
    ("message", Field::Message),
    ("type", Field::Type),
    ("eval_count", Field::EvalCount),
    ("prompt_eval_count", Field::PromptEvalCount),
    ("load_duration", Field::LoadDuration),
    ("usage", Field::Usage),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    Nothing,
    Key,
    Value(Field, Kind),
}

/// The watch over one record.
#[derive(Debug)]
pub(super) struct Record {
    scanner: Scanner,
    progress: Progress,
    facts: Facts,
    keeping: Keeping,
    kept: Vec<u8>,
    field: Option<Field>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            scanner: Scanner::default(),
            progress: Progress::Blank,
            facts: Facts::default(),
            keeping: Keeping::Nothing,
            kept: Vec::new(),
            field: None,
        }
    }
}

impl Record {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while self.progress != Progress::Malformed {
            let from = at;
            let event = self.scanner.next(bytes, &mut at);
            self.keep(&bytes[from..at]);
            match event {
                Ok(Some(event)) => self.note(event),
                Ok(None) => break,
                Err(_) => self.progress = Progress::Malformed,
            }
        }
        if self.progress == Progress::Complete && !bytes[at..].iter().all(|&byte| is_space(byte)) {
            self.progress = Progress::Overfull;
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// Says that no byte will follow: a bare number is complete only now.
    pub(super) fn end(&mut self) {
        if self.progress == Progress::Partial && self.scanner.may_end() {
            self.progress = Progress::Complete;
        }
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Opens(_) => self.progress = Progress::Partial,
            Event::KeyBegins => self.keeping = Keeping::Key,
            Event::KeyEnds => {
                let field = FIELDS.iter().find(|(name, _)| key_is(&self.kept, name));
                self.field = field.map(|(_, field)| *field);
                self.drop_kept();
            }
            Event::ValueBegins(kind) => {
                let field = self.field.take();
                self.keeping = field.map_or(Keeping::Nothing, |field| Keeping::Value(field, kind));
            }
            Event::ValueEnds => {
                if let Keeping::Value(field, kind) = self.keeping {
                    self.learn(field, kind);
                }
                self.drop_kept();
            }
            Event::Comma => {}
            Event::Closes => self.progress = Progress::Complete,
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let bytes_max = match self.keeping {
            Keeping::Nothing => return,
            Keeping::Key => KEY_BYTES_MAX,
            Keeping::Value(..) => VALUE_BYTES_MAX,
        };
        let room = bytes_max.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn drop_kept(&mut self) {
        self.keeping = Keeping::Nothing;
        self.kept.clear();
    }

    fn learn(&mut self, field: Field, kind: Kind) {
        let kept = self.kept.as_slice();
        let text = || (kind == Kind::String).then(|| decode(kept));
        let count = || str::from_utf8(kept).ok().and_then(|digits| digits.parse().ok());
        match field {
            Field::Done => self.facts.done = (kind == Kind::Bool).then_some(kept == b"true"),
            Field::Error => self.facts.error = error_text(kind, kept),
            Field::Message => self.facts.message = text(),
            Field::Type => self.facts.kind = text(),
            Field::EvalCount => self.facts.usage.eval_count = count(),
            Field::PromptEvalCount => self.facts.usage.prompt_eval_count = count(),
            Field::LoadDuration => self.facts.usage.load_duration_ns = count(),
            Field::Usage if kind == Kind::Object => {
                let (prompt, output) = usage_of(kept);
                self.facts.usage.prompt_eval_count = prompt;
                self.facts.usage.eval_count = output;
            }
            Field::Usage => {}
        }
    }
}

/// The text of an `error` member: a string on `/api`, an object with a `message` on `/v1`.
fn error_text(kind: Kind, value: &[u8]) -> Option<String> {
    let text = match kind {
        Kind::Null => return None,
        Kind::String => decode(value),
        Kind::Object => message_of(value).unwrap_or_else(|| lossy(value)),
        Kind::Number | Kind::Bool | Kind::Array => lossy(value),
    };
    (!text.is_empty()).then_some(text)
}

/// The tokens of a prompt and of an answer in a `usage` object of /v1: OpenAI's names, or Anthropic's.
fn usage_of(object: &[u8]) -> (Option<u64>, Option<u64>) {
    const PROMPT: [&str; 2] = ["prompt_tokens", "input_tokens"];
    const OUTPUT: [&str; 2] = ["completion_tokens", "output_tokens"];
    let Ok(Document::Object(members)) = open(object) else { return (None, None) };
    let (mut prompt, mut output) = (None, None);
    for member in members.map_while(Result::ok) {
        let key = &object[member.key.clone()];
        let count = || str::from_utf8(&object[member.value.clone()]).ok()?.parse().ok();
        if PROMPT.iter().any(|name| key_is(key, name)) {
            prompt = count();
        } else if OUTPUT.iter().any(|name| key_is(key, name)) {
            output = count();
        }
    }
    (prompt, output)
}

fn lossy(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// The `message` of an error object; found even if the object was cut off behind it.
fn message_of(object: &[u8]) -> Option<String> {
    let Ok(Document::Object(members)) = open(object) else { return None };
    members
        .map_while(Result::ok)
        .find(|member| {
            member.kind == Kind::String && key_is(&object[member.key.clone()], "message")
        })
        .map(|member| decode(&object[member.value]))
}
