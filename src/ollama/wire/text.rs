//! Reading the text of JSON strings and numbers the way Go reads them.
//!
//! Called on single keys and short values that the peek wants; never on a whole body.

/// Code points that Go's case folding takes for an ASCII letter: the long s and the Kelvin sign.
const LONG_S: char = '\u{17f}';
const KELVIN: char = '\u{212a}';

/// The most bytes a character of a known name takes in a key: a `\u` escape.
const KEY_BYTES_PER_CHAR_MAX: usize = 6;

/// Whether a key, given with its quotes, names the struct field `name` for Go: without regard to
/// case, and escapes count. `name` is lower-case ASCII.
#[must_use]
pub fn key_names(key: &[u8], name: &str) -> bool {
    let raw = inside(key);
    if raw.len() == name.len() {
        return raw.eq_ignore_ascii_case(name.as_bytes());
    }
    // A key much longer than the name cannot spell it, and need not be decoded.
    raw.len() > name.len()
        && raw.len() <= name.len() * KEY_BYTES_PER_CHAR_MAX
        && decode(key).chars().map(fold).eq(name.chars())
}

/// Whether a key, given with its quotes, spells exactly `name`, as a Go map or a client matches it.
#[must_use]
pub fn key_is(key: &[u8], name: &str) -> bool {
    let raw = inside(key);
    raw == name.as_bytes()
        || (raw.len() <= name.len() * KEY_BYTES_PER_CHAR_MAX
            && raw.contains(&b'\\')
            && decode(key) == name)
}

/// A key, already decoded, as Go compares it with the names of fields.
pub(super) fn folded(key: &str) -> String {
    key.chars().map(fold).collect()
}

fn fold(character: char) -> char {
    match character {
        LONG_S => 's',
        KELVIN => 'k',
        other => other.to_ascii_lowercase(),
    }
}

fn inside(quoted: &[u8]) -> &[u8] {
    let open = quoted.strip_prefix(b"\"").unwrap_or(quoted);
    open.strip_suffix(b"\"").unwrap_or(open)
}

/// Decodes a JSON string, given with its quotes, as Go does: U+FFFD for each byte that is not UTF-8
/// and for each lone surrogate. A string that was cut off loses at most its last escape.
#[must_use]
pub fn decode(quoted: &[u8]) -> String {
    let mut rest = quoted.strip_prefix(b"\"").unwrap_or(quoted);
    let mut text = String::new();
    while let Some(stop) = memchr::memchr2(b'"', b'\\', rest) {
        push_utf8(&mut text, &rest[..stop]);
        rest = &rest[stop..];
        let Some((character, length)) = escape(rest) else { return text };
        text.push(character);
        rest = &rest[length..];
    }
    push_utf8(&mut text, rest);
    text
}

fn push_utf8(text: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        // Go replaces every bad byte by itself, Rust's lossy conversion only each bad run.
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
}

/// The escape at the start of `rest` and its length; `None` at a quote or a cut-off escape.
fn escape(rest: &[u8]) -> Option<(char, usize)> {
    const SHORT: usize = 2;
    const UNIT: usize = 6;
    let character = match rest.get(1).filter(|_| rest[0] == b'\\')? {
        b'u' => {
            let high = code_unit(rest)?;
            let units = [Some(high), code_unit(&rest[UNIT..])];
            return Some(match char::decode_utf16(units.into_iter().flatten()).next()? {
                Ok(character) => (character, UNIT * character.len_utf16()),
                Err(_) => (char::REPLACEMENT_CHARACTER, UNIT),
            });
        }
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        other => char::from(*other),
    };
    Some((character, SHORT))
}

/// The number in a `\uXXXX` at the start of `rest`.
fn code_unit(rest: &[u8]) -> Option<u16> {
    let hex = rest.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()
}

/// Reads a JSON number; `None` where Go refuses it, because a double cannot hold it.
pub(super) fn number(text: &[u8]) -> Option<f64> {
    str::from_utf8(text).ok()?.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Converts as Go on amd64 does: towards zero, and everything out of range to the lowest number.
///
/// Go leaves the overflow to the machine; arm64 would saturate instead.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked just before")]
pub(in crate::ollama) fn go_int(number: f64) -> i64 {
    /// 2^63, the first double above every `i64`.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if (-LIMIT..LIMIT).contains(&number) { number as i64 } else { i64::MIN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_match_as_go_folds_them() {
        for key in
            ["\"stream\"", "\"STREAM\"", "\"\u{17f}tream\"", r#""\u0073tream""#, r#""\u017Ftream""#]
        {
            assert!(key_names(key.as_bytes(), "stream"), "{key}");
        }
        for key in ["\"keep_alive\"", "\"\u{212a}eep_alive\"", r#""\u212aEEP\u005falive""#] {
            assert!(key_names(key.as_bytes(), "keep_alive"), "{key}");
        }
        for key in ["\"\"", "\"strea\"", "\"streams\"", "\"str\u{e9}am\"", "\"keep-alive\""] {
            assert!(!key_names(key.as_bytes(), "stream"), "{key}");
            assert!(!key_names(key.as_bytes(), "keep_alive"), "{key}");
        }
    }

    #[test]
    fn map_keys_match_exactly() {
        assert!(key_is(b"\"num_ctx\"", "num_ctx") && key_is(br#""num\u005fctx""#, "num_ctx"));
        assert!(!key_is(b"\"Num_ctx\"", "num_ctx") && !key_is(b"\"num_ctx2\"", "num_ctx"));
    }

    #[test]
    fn bad_text_becomes_the_replacement_character() {
        assert_eq!(
            decode(br#""a\ud800b\ud83d\ude00\udc00\ud800\u0041""#),
            "a\u{fffd}b😀\u{fffd}\u{fffd}A"
        );
        assert_eq!(decode(b"\"\xe2\x82x\xff\""), "\u{fffd}\u{fffd}x\u{fffd}");
        assert_eq!(decode(br#""cut \u12"#), "cut ");
        assert_eq!(decode(br#""cut \"#), "cut ");
    }

    #[test]
    fn numbers_out_of_range_follow_go() {
        assert_eq!(number(b"1e999"), None);
        assert_eq!([2.9, -2.9, 1e19, -1e19].map(go_int), [2, -2, i64::MIN, i64::MIN]);
    }

    proptest! {
        #[test]
        fn strings_decode_as_serde_decodes_them(text in any::<String>()) {
            prop_assert_eq!(decode(serde_json::json!(text).to_string().as_bytes()), text);
        }

        #[test]
        fn any_cut_off_string_decodes(text in any::<Vec<u8>>()) {
            drop(decode(&text));
        }
    }
}
