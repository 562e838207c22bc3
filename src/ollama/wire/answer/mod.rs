//! Tells whether an answer is whole, from its bytes as they arrive.
//!
//! The end of an HTTP answer proves nothing: Ollama ends streams cleanly that never got to their end
//! mark (docs/ollama.md, answers). So each dialect's mark is looked for, as a top-level member of a
//! parsed record and never as a substring, in chunks cut anywhere and in bounded memory. The worker
//! feeds this while it relays; it never changes a byte.

use super::meaning::{Dialect, Meaning, meaning_of_event, meaning_of_line};
use super::record::{Progress, Record};
use super::sse::SseLines;

/// How an answer says that it is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// `/api/chat` and `/api/generate`: NDJSON, whole after a record with `"done":true`.
    NativeStream,
    /// `/v1/chat/completions` and `/v1/completions`: events, whole after `data: [DONE]`.
    OpenAiStream,
    /// `/v1/responses`: events, whole after `response.completed`, `.incomplete` or `.failed`.
    ResponsesStream,
    /// `/v1/messages`: events, whole after `message_stop`.
    MessagesStream,
    /// An unstreamed answer: whole if it is exactly one JSON value.
    JsonBody,
    /// Anything else: whole if its framing was, which the caller knows.
    Opaque,
    /// The same, with bytes that are of use as they come.
    OpaqueStream,
}

/// What the bytes so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScanState {
    /// No end yet.
    Open,
    /// The end mark was seen.
    Whole,
    /// Ollama reported an error inside the answer: its text, at most 4 KiB.
    Error(String),
    /// A record is not JSON; the answer can no longer be whole.
    Malformed,
}

/// What the complete bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is there.
    Whole,
    /// Ollama reported an error inside the answer: its text, at most 4 KiB.
    Error(String),
    /// The bytes ended before the end mark, or inside a record.
    Cut,
    /// A record is not JSON.
    Malformed,
}

/// Counters of the last native record that had them; Ollama leaves zeros out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens generated.
    pub eval_count: Option<u64>,
    /// Tokens of the prompt that were evaluated.
    pub prompt_eval_count: Option<u64>,
    /// Nanoseconds from Ollama's taking the request to having a runner.
    pub load_duration_ns: Option<u64>,
}

/// The scanner of one answer.
#[derive(Debug)]
pub struct AnswerScanner {
    framing: Framing,
    state: ScanState,
    usage: Usage,
    done: Option<bool>,
    records: u64,
}

#[derive(Debug)]
enum Framing {
    Lines(Line),
    Events(Dialect, SseLines),
    Body(Record),
    Opaque,
}

/// The NDJSON line being read.
#[derive(Debug, Default)]
struct Line {
    record: Record,
    is_judged: bool,
}

impl AnswerScanner {
    /// Makes a scanner that has seen nothing.
    #[must_use]
    pub fn new(kind: AnswerKind) -> Self {
        let framing = match kind {
            AnswerKind::NativeStream => Framing::Lines(Line::default()),
            AnswerKind::OpenAiStream => Framing::Events(Dialect::OpenAi, SseLines::default()),
            AnswerKind::ResponsesStream => Framing::Events(Dialect::Responses, SseLines::default()),
            AnswerKind::MessagesStream => Framing::Events(Dialect::Messages, SseLines::default()),
            AnswerKind::JsonBody => Framing::Body(Record::default()),
            AnswerKind::Opaque | AnswerKind::OpaqueStream => Framing::Opaque,
        };
        let (usage, done) = (Usage::default(), None);
        Self { framing, state: ScanState::Open, usage, done, records: 0 }
    }

    /// Takes the next bytes of the answer, cut anywhere.
    pub fn feed(&mut self, chunk: &[u8]) {
        match std::mem::replace(&mut self.framing, Framing::Opaque) {
            Framing::Lines(mut line) => {
                for (index, piece) in chunk.split(|byte| *byte == b'\n').enumerate() {
                    if index > 0 {
                        self.end_line(&mut line);
                    }
                    line.record.feed(piece);
                    self.judge_line(&mut line);
                }
                self.framing = Framing::Lines(line);
            }
            Framing::Events(dialect, mut lines) => {
                let mut at = 0;
                while let Some(mut event) = lines.next(chunk, &mut at) {
                    // A number is whole only where something ends it.
                    event.record.end();
                    self.learn(&event.record);
                    self.apply(meaning_of_event(dialect, &event));
                }
                self.framing = Framing::Events(dialect, lines);
            }
            Framing::Body(mut record) => {
                record.feed(chunk);
                self.state = body_state(&record);
                // Not on the way: what a later member takes back would depend on the chunks.
                if matches!(record.progress(), Progress::Complete | Progress::Overfull) {
                    self.learn(&record);
                }
                self.framing = Framing::Body(record);
            }
            Framing::Opaque => {}
        }
    }

    /// What the bytes so far say; an error stays, whatever follows it.
    #[must_use]
    pub fn state(&self) -> &ScanState {
        &self.state
    }

    /// How many complete records (lines, events) of an answer came, not counting errors and what
    /// follows one. Above zero, a client may have read part of an answer. Streams only.
    #[must_use]
    pub fn records_before_error(&self) -> u64 {
        self.records
    }

    /// The counters seen so far: those of the final record once the state is [`ScanState::Whole`].
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The last top-level `done` of a native answer, streamed or not. An unstreamed answer with
    /// `false` is a complete JSON value around an answer that broke off.
    #[must_use]
    pub fn done_member(&self) -> Option<bool> {
        self.done
    }

    /// Judges the answer once its last byte was fed. Whether the HTTP framing was complete too is
    /// for the caller to add.
    #[must_use]
    pub fn finish(mut self) -> Verdict {
        match std::mem::replace(&mut self.framing, Framing::Opaque) {
            Framing::Lines(mut line) => {
                line.record.end();
                self.judge_line(&mut line);
                if line.record.progress() == Progress::Partial {
                    self.state = cut_off(self.state);
                }
            }
            Framing::Events(dialect, lines) => {
                if let Some(mut event) = lines.finish() {
                    event.record.end();
                    self.learn(&event.record);
                    self.apply(meaning_of_event(dialect, &event));
                }
            }
            Framing::Body(mut record) => {
                record.end();
                self.state = body_state(&record);
            }
            Framing::Opaque => self.state = ScanState::Whole,
        }
        match self.state {
            ScanState::Open => Verdict::Cut,
            ScanState::Whole => Verdict::Whole,
            ScanState::Error(text) => Verdict::Error(text),
            ScanState::Malformed => Verdict::Malformed,
        }
    }

    fn end_line(&mut self, line: &mut Line) {
        line.record.end();
        self.judge_line(line);
        if line.record.progress() == Progress::Partial {
            self.apply(Meaning::Malformed);
        }
        *line = Line::default();
    }

    /// Judges a line as soon as its value is closed, so that the end mark does not wait for a newline
    /// (an answer to an empty chat has none).
    fn judge_line(&mut self, line: &mut Line) {
        match line.record.progress() {
            Progress::Blank | Progress::Partial => {}
            Progress::Malformed => self.apply(Meaning::Malformed),
            Progress::Complete => self.judge_value(line),
            Progress::Overfull => {
                self.judge_value(line);
                self.apply(Meaning::Malformed);
            }
        }
    }

    fn judge_value(&mut self, line: &mut Line) {
        if std::mem::replace(&mut line.is_judged, true) {
            return;
        }
        self.learn(&line.record);
        self.apply(meaning_of_line(line.record.facts()));
    }

    fn learn(&mut self, record: &Record) {
        let facts = record.facts();
        self.done = facts.done.or(self.done);
        if facts.usage != Usage::default() {
            self.usage = facts.usage;
        }
    }

    fn apply(&mut self, meaning: Meaning) {
        if matches!(self.state, ScanState::Error(_)) {
            return;
        }
        match meaning {
            Meaning::Error(text) => self.state = ScanState::Error(text),
            Meaning::Malformed => self.state = ScanState::Malformed,
            Meaning::Part => self.records += 1,
            Meaning::End => {
                self.records += 1;
                if self.state == ScanState::Open {
                    self.state = ScanState::Whole;
                }
            }
        }
    }
}

/// The state of a stream that ended inside a record: an end mark before it does not count.
fn cut_off(state: ScanState) -> ScanState {
    if state == ScanState::Whole { ScanState::Open } else { state }
}

fn body_state(record: &Record) -> ScanState {
    match record.progress() {
        Progress::Blank | Progress::Partial => ScanState::Open,
        Progress::Complete => ScanState::Whole,
        Progress::Overfull | Progress::Malformed => ScanState::Malformed,
    }
}

#[cfg(test)]
mod tests;
