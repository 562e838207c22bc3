//! An answer as it comes, record by record: lines, events, or one value. Pure.
//!
//! Only whole records count. The error record with which foreman ends a stream that it cuts is not a part of the answer, and
//! half a record is asked for again; so the bytes that were handed on are at each moment a beginning of the answer.

use serde_json::Value;

use super::text::{error_of, text_of};

/// How an answer is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// NDJSON.
    Lines,
    /// Server-sent events.
    Events,
    /// One value, which is nothing before it is whole.
    Whole,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// A record of the answer, and the text in it.
    Part {
        /// As it came.
        bytes: Vec<u8>,
        /// What the model said.
        text: String,
    },
    /// Foreman's error record: the stream will be cut.
    Error(String),
    /// A record that was broken off before the error record.
    Broken,
}

/// Puts records together.
#[derive(Debug)]
pub(super) struct Records {
    framing: Framing,
    held: Vec<u8>,
    /// How much of `held` has been looked at for an end.
    looked: usize,
}

impl Records {
    pub(super) fn of(content_type: &str) -> Records {
        let framing = if content_type.starts_with("application/x-ndjson") {
            Framing::Lines
        } else if content_type.starts_with("text/event-stream") {
            Framing::Events
        } else {
            Framing::Whole
        };
        Records { framing, held: Vec::new(), looked: 0 }
    }

    /// Takes the next bytes; the records that are whole with them.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Record> {
        self.held.extend_from_slice(bytes);
        let end: &[u8] = match self.framing {
            Framing::Lines => b"\n",
            Framing::Events => b"\n\n",
            Framing::Whole => return Vec::new(),
        };
        let mut records = Vec::new();
        let mut from = 0;
        let mut look_from = self.looked;
        while let Some(at) = memchr::memmem::find(&self.held[look_from..], end) {
            let until = look_from + at + end.len();
            records.push(self.record(&self.held[from..until]));
            from = until;
            look_from = until;
        }
        self.held.drain(..from);
        // An end may lie across two pieces.
        self.looked = self.held.len().saturating_sub(end.len() - 1);
        records
    }

    /// What is left at the whole end of the answer.
    pub(super) fn rest(&mut self) -> Option<Record> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| self.record(&held))
    }

    fn record(&self, bytes: &[u8]) -> Record {
        let line = String::from_utf8_lossy(bytes);
        let value = match self.framing {
            Framing::Lines if line.trim().is_empty() => Some(Value::Null),
            Framing::Lines => serde_json::from_str(&line).ok(),
            Framing::Events => Some(data_of(&line)),
            Framing::Whole => Some(serde_json::from_str(&line).unwrap_or_default()),
        };
        let Some(value) = value else { return Record::Broken };
        match (self.framing, error_of(&value)) {
            // An answer that is one value may be Ollama's own error.
            (Framing::Lines | Framing::Events, Some(error)) => Record::Error(error),
            _ => Record::Part { bytes: bytes.to_vec(), text: text_of(&value) },
        }
    }
}

/// The data of an event as JSON; null where it is none, as the `[DONE]` at the end is not.
fn data_of(event: &str) -> Value {
    let data = event.lines().filter_map(|line| line.strip_prefix("data:"));
    serde_json::from_str(&data.collect::<String>()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(records: &[Record]) -> String {
        let text = |record: &Record| match record {
            Record::Part { text, .. } => text.clone(),
            Record::Error(error) => format!("<{error}>"),
            Record::Broken => "<broken>".to_owned(),
        };
        records.iter().map(text).collect()
    }

    #[test]
    fn an_error_record_and_the_half_before_it_are_no_part_of_the_answer() {
        let mut records = Records::of("application/x-ndjson");
        let bytes = b"{\"message\":{\"content\":\"a\"}}\n{\"mess\n{\"error\":\"replaced\"}\n";
        assert_eq!(texts(&records.take(bytes)), "a<broken><replaced>");
        assert_eq!(records.rest(), None);
    }

    #[test]
    fn events_are_decoded_and_their_end_mark_is_no_text() {
        let mut records = Records::of("text/event-stream");
        let bytes = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n\
            event: error\ndata: {\"type\":\"error\",\"error\":{\"message\":\"no\"}}\n\n";
        assert_eq!(texts(&records.take(bytes)), "a<no>");
    }

    #[test]
    fn one_value_counts_only_when_it_is_whole() {
        let mut records = Records::of("application/json; charset=utf-8");
        assert!(records.take(b"{\"response\":\"a").is_empty());
        assert!(records.take(b"b\"}").is_empty());
        assert_eq!(texts(&[records.rest().unwrap()]), "ab");
    }

    proptest! {
        /// However the bytes are cut into pieces, the same records come, and together they are what came.
        #[test]
        fn pieces_do_not_matter(cuts in proptest::collection::vec(1_usize..9, 1..40), is_events: bool) {
            let (kind, line) = match is_events {
                true => ("text/event-stream", "data: {\"response\":\"ab\"}\n\n"),
                false => ("application/x-ndjson", "{\"response\":\"ab\"}\n"),
            };
            let whole = line.repeat(6);
            let (mut records, mut rest, mut found) = (Records::of(kind), whole.as_bytes(), Vec::new());
            for cut in cuts.iter().cycle() {
                let (piece, left) = rest.split_at((*cut).min(rest.len()));
                found.extend(records.take(piece));
                rest = left;
                if rest.is_empty() { break; }
            }
            let bytes: Vec<u8> = found.iter().flat_map(|record| match record {
                Record::Part { bytes, .. } => bytes.clone(),
                Record::Error(_) | Record::Broken => Vec::new(),
            }).collect();
            prop_assert_eq!(texts(&found), "ab".repeat(6));
            prop_assert_eq!(bytes, whole.into_bytes());
        }
    }
}
