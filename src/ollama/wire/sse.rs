//! Splits a stream of server-sent events into events, without keeping their data.
//!
//! Follows the WHATWG grammar: lines end in LF, CR or CRLF; a blank line ends an event; `:` begins a
//! comment. The data of an event goes piece by piece into a [`Record`]. Used by the answer scanner.

use super::record::Record;

/// The data that ends an OpenAI stream; it is not JSON.
const DONE: &[u8] = b"[DONE]";

/// Longer than any field name and event name that means something here.
const NAME_BYTES_MAX: usize = 64;

/// One event, as far as foreman looks into it.
#[derive(Debug, Default)]
pub(super) struct SseEvent {
    /// The `event:` line, cut at 64 bytes.
    pub(super) name: Vec<u8>,
    /// What the data says as JSON.
    pub(super) record: Record,
    has_data: bool,
    /// The first bytes of the data, one more than [`DONE`] has.
    start: Vec<u8>,
}

impl SseEvent {
    /// Whether the data is exactly `[DONE]`.
    pub(super) fn is_done_mark(&self) -> bool {
        self.start == DONE
    }

    fn feed(&mut self, data: &[u8]) {
        let room = (DONE.len() + 1).saturating_sub(self.start.len());
        self.start.extend_from_slice(&data[..data.len().min(room)]);
        self.record.feed(data);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the field name, which is kept.
    Field,
    /// Behind the colon, where one space is not part of the value.
    Colon(Target),
    Value(Target),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Data,
    Event,
    Ignored,
}

/// The splitter; holds the event being read.
#[derive(Debug)]
pub(super) struct SseLines {
    place: Place,
    field: Vec<u8>,
    was_cr: bool,
    event: SseEvent,
}

impl Default for SseLines {
    fn default() -> Self {
        Self { place: Place::Field, field: Vec::new(), was_cr: false, event: SseEvent::default() }
    }
}

impl SseLines {
    /// Takes `chunk` from `*at` to the next complete event, or to its end (`None`).
    pub(super) fn next(&mut self, chunk: &[u8], at: &mut usize) -> Option<SseEvent> {
        while *at < chunk.len() {
            if std::mem::take(&mut self.was_cr) && chunk[*at] == b'\n' {
                *at += 1;
                continue;
            }
            let rest = &chunk[*at..];
            let Some(line_end) = memchr::memchr2(b'\n', b'\r', rest) else {
                self.feed(rest);
                *at = chunk.len();
                return None;
            };
            self.feed(&rest[..line_end]);
            self.was_cr = rest[line_end] == b'\r';
            *at += line_end + 1;
            if let Some(event) = self.end_line() {
                return Some(event);
            }
        }
        None
    }

    /// The event that the end of the stream left without its blank line.
    pub(super) fn finish(mut self) -> Option<SseEvent> {
        self.end_line().or_else(|| self.take_event())
    }

    fn feed(&mut self, mut piece: &[u8]) {
        if self.place == Place::Field {
            let colon = memchr::memchr(b':', piece);
            let (name, value) = piece.split_at(colon.unwrap_or(piece.len()));
            let room = NAME_BYTES_MAX.saturating_sub(self.field.len());
            self.field.extend_from_slice(&name[..name.len().min(room)]);
            if colon.is_none() {
                return;
            }
            self.place = Place::Colon(self.begin_value());
            piece = &value[1..];
        }
        if let (Place::Colon(target), Some(first)) = (self.place, piece.first()) {
            self.place = Place::Value(target);
            piece = if *first == b' ' { &piece[1..] } else { piece };
        }
        match self.place {
            Place::Value(Target::Data) => self.event.feed(piece),
            Place::Value(Target::Event) => {
                let room = NAME_BYTES_MAX.saturating_sub(self.event.name.len());
                self.event.name.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            Place::Value(Target::Ignored) | Place::Colon(_) | Place::Field => {}
        }
    }

    /// Looks at the field name, which is complete now.
    fn begin_value(&mut self) -> Target {
        match self.field.as_slice() {
            b"data" => {
                if self.event.has_data {
                    self.event.feed(b"\n");
                }
                self.event.has_data = true;
                Target::Data
            }
            b"event" => {
                self.event.name.clear();
                Target::Event
            }
            _ => Target::Ignored,
        }
    }

    fn end_line(&mut self) -> Option<SseEvent> {
        let is_blank = self.place == Place::Field && self.field.is_empty();
        if self.place == Place::Field && !is_blank {
            // A field without a colon has an empty value.
            self.begin_value();
        }
        self.place = Place::Field;
        self.field.clear();
        if is_blank { self.take_event() } else { None }
    }

    /// An event without data is none, and its name does not reach the next.
    fn take_event(&mut self) -> Option<SseEvent> {
        let event = std::mem::take(&mut self.event);
        event.has_data.then_some(event)
    }
}
