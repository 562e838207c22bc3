//! The words for walking JSON: kinds of values, borders between them, and what can be wrong.
//!
//! [`super::scanner`] finds these in bytes, [`super::members`] hands out the members of an object.
//! Values are never built, only located.

/// Go's decoder gives up on deeper nesting (`maxNestingDepth`).
pub(super) const DEPTH_MAX: usize = 10_000;

/// What a value is, told by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `"…"`.
    String,
    /// A number, not yet judged for range.
    Number,
    /// `true` or `false`.
    Bool,
    /// `null`.
    Null,
    /// `{…}`.
    Object,
    /// `[…]`.
    Array,
}

/// Why bytes are not the JSON that was needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing but white space.
    #[error("no JSON value")]
    Missing,
    /// A byte that cannot stand where it stands.
    #[error("malformed JSON")]
    Malformed,
    /// Deeper than Go allows.
    #[error("JSON nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// The bytes ended inside the value.
    #[error("JSON ends early")]
    Truncated,
}

/// A border in the document; see [`super::scanner::Scanner::next`] for where the position then stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The outermost value begins, at the position.
    Opens(Kind),
    /// A key of the outermost object begins, at the position.
    KeyBegins,
    /// A key ended, just before the position.
    KeyEnds,
    /// A member's value begins, at the position.
    ValueBegins(Kind),
    /// A member's value ended, just before the position.
    ValueEnds,
    /// A comma between members, just before the position.
    Comma,
    /// The outermost value ended, just before the position. No event follows.
    Closes,
}

impl Kind {
    /// The kind of the value that begins with `byte`, if one can.
    pub(super) fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            b'"' => Self::String,
            b'{' => Self::Object,
            b'[' => Self::Array,
            b't' | b'f' => Self::Bool,
            b'n' => Self::Null,
            b'-' | b'0'..=b'9' => Self::Number,
            _ => return None,
        })
    }
}

/// Whether Go's JSON takes `byte` for white space.
#[must_use]
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}
