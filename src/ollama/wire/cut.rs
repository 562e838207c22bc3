//! Takes members out of a body, and touches no other byte: `keep_alive`, and foreman's own fields.
//!
//! Repeating `keep_alive` on a busy runner deadlocks Ollama (docs/ollama.md, the scheduler), so foreman
//! pins models itself and sends everything else without it. The ranges come from
//! [`super::peek::Request::keep_alive_members`] of the same body.

use super::members::Member;
use bytes::{Bytes, BytesMut};
use std::ops::Range;

/// Returns `body` without its `keep_alive` members; see [`without_members`].
#[must_use]
pub fn without_keep_alive(body: Bytes, members: &[Range<usize>]) -> Bytes {
    without_members(body, members)
}

/// Returns `body` without the bytes in `members`, which must be ascending and apart: those of [`Cuts::finish`].
///
/// Without members it is the same buffer, not a copy.
#[must_use]
pub fn without_members(body: Bytes, members: &[Range<usize>]) -> Bytes {
    if members.is_empty() {
        return body;
    }
    let mut kept = BytesMut::with_capacity(body.len());
    let mut from = 0;
    for member in members {
        kept.extend_from_slice(body.get(from..member.start).unwrap_or_default());
        from = member.end;
    }
    kept.extend_from_slice(body.get(from..).unwrap_or_default());
    kept.freeze()
}

/// What becomes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays, byte for byte.
    Kept,
    /// It goes, with one comma.
    Cut,
}

/// The ranges that take some members out and leave every other member its commas.
///
/// A run of such members goes with the comma behind it, so the member before keeps its own. Only a
/// run at the very end has no comma behind, and goes with the one before.
#[derive(Debug, Default)]
pub struct Cuts {
    ranges: Vec<Range<usize>>,
    /// The run being read: where it starts, and the comma before it.
    run: Option<(usize, Option<usize>)>,
    comma_before: Option<usize>,
    end: usize,
}

impl Cuts {
    /// Takes note of the next member.
    pub fn pass(&mut self, member: &Member, fate: Fate) {
        if fate == Fate::Cut {
            self.run = self.run.or(Some((member.key.start, self.comma_before)));
            self.end = member.value.end;
        } else if let (Some((start, _)), Some(comma)) = (self.run.take(), self.comma_before) {
            self.ranges.push(start..comma + 1);
        }
        self.comma_before = member.comma;
    }

    /// The ranges to cut, ascending and apart.
    #[must_use]
    pub fn finish(mut self) -> Vec<Range<usize>> {
        if let Some((start, comma)) = self.run {
            self.ranges.push(comma.unwrap_or(start)..self.end);
        }
        self.ranges
    }
}
