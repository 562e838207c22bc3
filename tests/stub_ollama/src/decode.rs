//! A JSON reader that accepts and refuses what Go's decoder accepts and refuses, in its words.
//!
//! Called by the routes on whole request bodies. It reads the first value only; what follows is
//! ignored, as `json.Decoder.Decode` does.

use crate::json::{Json, Object};

/// Nesting allowed; Go allows 10 000, but no request needs it and recursion needs stack.
const DEPTH_MAX: usize = 500;

/// Why a body is not JSON.
#[derive(Debug, PartialEq)]
pub(crate) enum DecodeError {
    /// Nothing but white space: Go's `io.EOF`.
    Empty,
    /// Go's text for a malformed value.
    Syntax(String),
}

/// Reads the first JSON value of `bytes`.
pub(crate) fn decode(bytes: &[u8]) -> Result<Json, DecodeError> {
    let mut reader = Reader { bytes, at: 0 };
    reader.skip_space();
    if reader.peek().is_none() {
        return Err(DecodeError::Empty);
    }
    reader.value(0).map_err(DecodeError::Syntax)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Read<T> = Result<T, String>;

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Looks at the next byte, or fails because the body ends inside a value.
    fn need(&self) -> Read<u8> {
        self.peek().ok_or_else(|| "unexpected EOF".to_owned())
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Read<Json> {
        if depth > DEPTH_MAX {
            return Err("exceeded max depth".to_owned());
        }
        self.skip_space();
        match self.need()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.text().map(Json::Text),
            b't' => self.literal("true", Json::Bool(true)),
            b'f' => self.literal("false", Json::Bool(false)),
            b'n' => self.literal("null", Json::Null),
            b'-' | b'0'..=b'9' => self.number(),
            other => Err(unexpected(other, "looking for beginning of value")),
        }
    }

    fn object(&mut self, depth: usize) -> Read<Json> {
        self.at += 1;
        let mut object = Object::new();
        self.skip_space();
        if self.need()? == b'}' {
            self.at += 1;
            return Ok(Json::Object(object));
        }
        loop {
            self.skip_space();
            let next = self.need()?;
            if next != b'"' {
                return Err(unexpected(next, "looking for beginning of object key string"));
            }
            let key = self.text()?;
            self.skip_space();
            let next = self.need()?;
            if next != b':' {
                return Err(unexpected(next, "after object key"));
            }
            self.at += 1;
            let value = self.value(depth + 1)?;
            object = object.with(&key, value);
            self.skip_space();
            let next = self.need()?;
            self.at += 1;
            match next {
                b',' => {}
                b'}' => return Ok(Json::Object(object)),
                other => return Err(unexpected(other, "after object key:value pair")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Read<Json> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_space();
        if self.need()? == b']' {
            self.at += 1;
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_space();
            let next = self.need()?;
            self.at += 1;
            match next {
                b',' => {}
                b']' => return Ok(Json::Array(items)),
                other => return Err(unexpected(other, "after array element")),
            }
        }
    }

    fn literal(&mut self, word: &str, value: Json) -> Read<Json> {
        for expected in word.bytes() {
            let next = self.need()?;
            if next != expected {
                let place = format!("in literal {word} (expecting {})", quote(expected));
                return Err(unexpected(next, &place));
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn number(&mut self) -> Read<Json> {
        let start = self.at;
        if self.need()? == b'-' {
            self.at += 1;
        }
        match self.need()? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits(),
            other => return Err(unexpected(other, "in numeric literal")),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits_needed("after decimal point in numeric literal")?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits_needed("in exponent of numeric literal")?;
        }
        Ok(Json::Number(String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()))
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn digits_needed(&mut self, place: &str) -> Read<()> {
        let next = self.need()?;
        if !next.is_ascii_digit() {
            return Err(unexpected(next, place));
        }
        self.digits();
        Ok(())
    }

    fn text(&mut self) -> Read<String> {
        self.at += 1;
        let mut raw = Vec::new();
        loop {
            let next = self.need()?;
            self.at += 1;
            match next {
                b'"' => return Ok(String::from_utf8_lossy(&raw).into_owned()),
                b'\\' => self.escape(&mut raw)?,
                0..=0x1f => return Err(unexpected(next, "in string literal")),
                other => raw.push(other),
            }
        }
    }

    fn escape(&mut self, raw: &mut Vec<u8>) -> Read<()> {
        let next = self.need()?;
        self.at += 1;
        match next {
            b'"' | b'\\' | b'/' => raw.push(next),
            b'b' => raw.push(8),
            b'f' => raw.push(12),
            b'n' => raw.push(b'\n'),
            b'r' => raw.push(b'\r'),
            b't' => raw.push(b'\t'),
            b'u' => {
                let c = self.unicode_escape()?;
                raw.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other => return Err(unexpected(other, "in string escape code")),
        }
        Ok(())
    }

    /// Reads the digits after `\u`; a surrogate without its partner becomes U+FFFD.
    fn unicode_escape(&mut self) -> Read<char> {
        let first = self.hex4()?;
        if !(0xd800..0xe000).contains(&first) {
            return Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        let before = self.at;
        if first < 0xdc00 && self.bytes[self.at..].starts_with(b"\\u") {
            self.at += 2;
            let second = self.hex4()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = before;
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn hex4(&mut self) -> Read<u32> {
        let mut code = 0;
        for _ in 0..4 {
            let next = self.need()?;
            let digit = char::from(next)
                .to_digit(16)
                .ok_or_else(|| unexpected(next, "in \\u hexadecimal character escape"))?;
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

fn unexpected(byte: u8, place: &str) -> String {
    format!("invalid character {} {place}", quote(byte))
}

/// Quotes one byte as Go's `quoteChar` does: as the Latin-1 rune of that value.
fn quote(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        7 => r"'\a'".to_owned(),
        8 => r"'\b'".to_owned(),
        11 => r"'\v'".to_owned(),
        12 => r"'\f'".to_owned(),
        0..=0x1f | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!("'\\u{byte:04x}'"),
        other => format!("'{}'", char::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(body: &str) -> String {
        match decode(body.as_bytes()) {
            Ok(value) => value.encode(),
            Err(DecodeError::Empty) => "EOF".to_owned(),
            Err(DecodeError::Syntax(text)) => text,
        }
    }

    #[test]
    fn malformed_bodies_fail_in_go_s_words() {
        for (body, expected) in [
            ("{bad", "invalid character 'b' looking for beginning of object key string"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("trap", "invalid character 'a' in literal true (expecting 'u')"),
            ("{\"a\":\"\\x\"}", "invalid character 'x' in string escape code"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("\u{1f}", "invalid character '\\x1f' looking for beginning of value"),
            ("{\"a\":", "unexpected EOF"),
            (" \n", "EOF"),
        ] {
            assert_eq!(text_of(body), expected, "{body:?}");
        }
    }

    #[test]
    fn go_s_leniency_is_kept() {
        assert_eq!(text_of("{\"a\":1} trailing"), "{\"a\":1}");
        assert_eq!(text_of("\"\\ud800x\""), "\"\u{fffd}x\"");
        assert_eq!(text_of("\"\\ud83d\\ude00\""), "\"😀\"");
        assert_eq!(decode(b"\"\xff\""), Ok(Json::Text("\u{fffd}".to_owned())));
        let body = decode(br#"{"Model":"a","MODEL":"b"}"#).unwrap();
        assert_eq!(body.as_object().unwrap().get("model"), Some(&Json::Text("b".to_owned())));
    }

    #[test]
    fn the_encoder_escapes_like_go() {
        assert_eq!(text_of(r#""<a>&\u0001""#), r#""\u003ca\u003e\u0026\u0001""#);
    }
}
