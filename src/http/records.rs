//! Hands a stream on record by record, so that a stream that breaks off never shows its client half a record.
//!
//! Ollama writes whole records, so nothing is held back in practice; only a connection cut in the middle of one leaves a
//! tail, and that tail is dropped: the error record that follows must be readable.

use bytes::{Bytes, BytesMut};
use hyper::header::CONTENT_TYPE;

use crate::worker::output::Head;

use super::error::LineStart;

/// The longest part of a record that is held back. A longer record is passed on as it comes.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// The state of one stream's records.
#[derive(Debug)]
pub(super) struct Records {
    /// What ends a record; empty where the answer has none.
    end: &'static [u8],
    held: BytesMut,
    /// Whether what was handed on ends with a whole record.
    pub(super) line_start: LineStart,
}

impl Records {
    /// The records of an answer, by its content type: lines, events, or none.
    pub(super) fn new(head: &Head) -> Records {
        let content_type = head.headers.iter().find(|(name, _)| name == CONTENT_TYPE.as_str());
        let end: &[u8] = match content_type.map(|(_, value)| value.as_slice()) {
            Some(value) if value.starts_with(b"application/x-ndjson") => b"\n",
            Some(value) if value.starts_with(b"text/event-stream") => b"\n\n",
            _ => b"",
        };
        Records { end, held: BytesMut::new(), line_start: LineStart::Yes }
    }

    /// No records: nothing is known of the answer yet.
    pub(super) fn none() -> Records {
        Records { end: b"", held: BytesMut::new(), line_start: LineStart::Yes }
    }

    /// Takes the next bytes; what can be handed on now, if anything.
    pub(super) fn take(&mut self, bytes: Bytes) -> Option<Bytes> {
        if self.end.is_empty() || (self.held.is_empty() && bytes.ends_with(self.end)) {
            self.line_start = LineStart::Yes;
            return Some(bytes);
        }
        self.held.extend_from_slice(&bytes);
        let whole = memchr::memmem::rfind(&self.held, self.end).map(|at| at + self.end.len());
        let ready = match whole {
            Some(whole) => {
                self.line_start = LineStart::Yes;
                self.held.split_to(whole)
            }
            None if self.held.len() > HELD_BYTES_MAX => {
                self.line_start = LineStart::No;
                self.held.split()
            }
            None => return None,
        };
        Some(ready.freeze())
    }

    /// What is held at a whole end.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        (!self.held.is_empty()).then(|| self.held.split().freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines() -> Records {
        let headers = vec![("content-type".to_owned(), b"application/x-ndjson".to_vec())];
        Records::new(&Head { status: 200, headers })
    }

    #[test]
    fn a_whole_record_is_handed_on_as_it_came_and_half_a_one_is_not() {
        let mut records = lines();
        let whole = Bytes::from_static(b"{}\n");
        assert_eq!(records.take(whole.clone()), Some(whole));
        assert_eq!(records.take(Bytes::from_static(b"{\"a\":")), None);
        assert_eq!(
            records.take(Bytes::from_static(b"1}\n{")),
            Some(Bytes::from_static(b"{\"a\":1}\n"))
        );
        assert_eq!(records.line_start, LineStart::Yes);
    }

    #[test]
    fn a_very_long_record_is_passed_on_as_it_comes() {
        let mut records = lines();
        let long = Bytes::from(vec![b'x'; HELD_BYTES_MAX + 1]);
        assert_eq!(records.take(long.clone()), Some(long));
        assert_eq!(records.line_start, LineStart::No);
    }

    proptest! {
        /// However a stream is cut into chunks, its bytes come out in order and complete at a whole end.
        #[test]
        fn no_byte_is_lost_or_moved(pieces in proptest::collection::vec("[ab\n]{0,9}", 0..20)) {
            let mut records = lines();
            let mut out = Vec::new();
            for piece in &pieces {
                if let Some(bytes) = records.take(Bytes::from(piece.clone().into_bytes())) {
                    out.extend_from_slice(&bytes);
                    prop_assert!(bytes.is_empty() || bytes.ends_with(b"\n"));
                }
            }
            out.extend(records.rest().into_iter().flatten());
            prop_assert_eq!(out, pieces.concat().into_bytes());
        }
    }
}
