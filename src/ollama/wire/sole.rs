//! Bytes that must be one JSON value and nothing else, and where they stop being it.
//!
//! Ollama reads the first value and ignores what follows; foreman's own routes promise JSON, and tell a person the line
//! and the column of what is wrong with it.

use super::json::{Event, Fault, Kind, is_space};
use super::scanner::Scanner;

/// Where and why bytes are not one JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{fault} at line {line}, column {column}")]
pub struct NotJson {
    /// What is wrong.
    pub fault: Fault,
    /// The line, counted from 1.
    pub line: usize,
    /// The column, counted from 1 in characters.
    pub column: usize,
}

/// The kind of the one value in `bytes`; white space around it is allowed.
///
/// # Errors
///
/// [`NotJson`] with the place of the first byte that is wrong, or of the end where something is missing.
pub fn sole_value(bytes: &[u8]) -> Result<Kind, NotJson> {
    let mut scanner = Scanner::default();
    let mut at = 0;
    read(&mut scanner, bytes, &mut at).map_err(|fault| locate(bytes, at, fault))
}

fn read(scanner: &mut Scanner, bytes: &[u8], at: &mut usize) -> Result<Kind, Fault> {
    let Some(Event::Opens(kind)) = scanner.next(bytes, at)? else { return Err(Fault::Missing) };
    while scanner.next(bytes, at)?.is_some() {}
    if !scanner.may_end() {
        return Err(Fault::Truncated);
    }
    match bytes[*at..].iter().position(|byte| !is_space(*byte)) {
        None => Ok(kind),
        Some(more) => {
            *at += more;
            Err(Fault::Malformed)
        }
    }
}

fn locate(bytes: &[u8], at: usize, fault: Fault) -> NotJson {
    let before = &bytes[..at.min(bytes.len())];
    let line_start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
    let line = memchr::memchr_iter(b'\n', before).count() + 1;
    let column = String::from_utf8_lossy(&before[line_start..]).chars().count() + 1;
    NotJson { fault, line, column }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_wrong_is_found_by_line_and_column() {
        for (text, fault, line, column) in [
            ("", Fault::Missing, 1, 1),
            (" \n ", Fault::Missing, 2, 2),
            ("{\"a\":1,}", Fault::Malformed, 1, 8),
            ("{\n  \"\u{e9}\": tru }", Fault::Malformed, 2, 11),
            ("{\"a\":\"x\ny\"}", Fault::Malformed, 1, 8),
            ("{} {}", Fault::Malformed, 1, 4),
            ("{}\n]", Fault::Malformed, 2, 1),
            ("{\"a\":", Fault::Truncated, 1, 6),
            ("nope", Fault::Malformed, 1, 2),
        ] {
            let found = sole_value(text.as_bytes()).unwrap_err();
            assert_eq!(found, NotJson { fault, line, column }, "{text:?}");
        }
        let deep = "[".repeat(20_000);
        assert_eq!(sole_value(deep.as_bytes()).unwrap_err().fault, Fault::TooDeep);
    }

    #[test]
    fn one_value_of_any_kind_is_taken() {
        for (text, kind) in [(" {} \n", Kind::Object), ("[1]", Kind::Array), ("12", Kind::Number)] {
            assert_eq!(sole_value(text.as_bytes()), Ok(kind));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in any::<Vec<u8>>()) {
            if let Err(wrong) = sole_value(&bytes) {
                prop_assert!(wrong.line >= 1 && wrong.column >= 1);
            }
        }
    }
}
