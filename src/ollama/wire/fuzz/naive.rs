//! JSON read the plain way: recursive, whole, slow. What it says is the oracle for the scanner, with which it shares no code.
//!
//! It takes what Go takes (any bytes from 0x20 on in strings, any number by its grammar), and has no opinion on what is nested
//! deeper than it wants to recurse.

use super::super::text::decode;

/// Deeper than this there is [`Read::TooDeep`] to say.
const DEPTH_MAX: usize = 200;

/// What some bytes begin with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read<'a> {
    /// White space at most.
    Blank,
    /// A whole value, and what stands behind it.
    Value(Value<'a>, &'a [u8]),
    /// The bytes ended inside a value.
    Truncated,
    /// A byte cannot stand where it stands.
    Malformed,
    /// No opinion.
    TooDeep,
}

/// A value; of an object its members in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Object(Vec<Pair<'a>>),
    Other(&'a [u8]),
}

/// A member by its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair<'a> {
    /// With its quotes.
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl Pair<'_> {
    /// The key as Go compares it with the names of fields.
    pub(crate) fn folded(&self) -> String {
        folded(&text(self.key))
    }

    /// Whether the key is exactly that name.
    pub(crate) fn is(&self, name: &str) -> bool {
        text(self.key) == name
    }
}

/// A decoded key without its case, by the rule of Go's `encoding/json`.
pub(crate) fn folded(key: &str) -> String {
    let fold = |character: char| match character {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).collect()
}

/// What a string spells, by `serde_json` where that reads it.
pub(crate) fn text(quoted: &[u8]) -> String {
    serde_json::from_slice(quoted).unwrap_or_else(|_| decode(quoted))
}

/// Reads the first value.
pub(crate) fn read(bytes: &[u8]) -> Read<'_> {
    let mut reader = Reader { bytes, at: 0 };
    reader.spaces();
    if reader.at == bytes.len() {
        return Read::Blank;
    }
    let start = reader.at;
    let mut pairs = Vec::new();
    match reader.value(0, &mut pairs) {
        Ok(()) if bytes[start] == b'{' => Read::Value(Value::Object(pairs), &bytes[reader.at..]),
        Ok(()) => Read::Value(Value::Other(&bytes[start..reader.at]), &bytes[reader.at..]),
        Err(Wrong::Truncated) => Read::Truncated,
        Err(Wrong::Malformed) => Read::Malformed,
        Err(Wrong::TooDeep) => Read::TooDeep,
    }
}

/// An object out of members.
pub(crate) fn object(pairs: &[Pair<'_>]) -> Vec<u8> {
    let members: Vec<Vec<u8>> =
        pairs.iter().map(|pair| [pair.key, b":", pair.value].concat()).collect();
    [b"{", members.join(&b","[..]).as_slice(), b"}"].concat()
}

/// A well-formed text without the white space outside its strings.
pub(crate) fn compact(json: &[u8]) -> Vec<u8> {
    let mut reader = Reader { bytes: json, at: 0 };
    let mut compact = Vec::new();
    while let Some(byte) = reader.peek() {
        let start = reader.at;
        if byte != b'"' || reader.string().is_err() {
            reader.at = start + 1;
        }
        if !is_space(byte) {
            compact.extend_from_slice(&json[start..reader.at]);
        }
    }
    compact
}

pub(crate) fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().copied().all(is_space)
}

fn is_space(byte: u8) -> bool {
    b" \t\r\n".contains(&byte)
}

enum Wrong {
    Truncated,
    Malformed,
    TooDeep,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, Wrong> {
        let byte = self.peek().ok_or(Wrong::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn spaces(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize, pairs: &mut Vec<Pair<'a>>) -> Result<(), Wrong> {
        if depth > DEPTH_MAX {
            return Err(Wrong::TooDeep);
        }
        match self.peek().ok_or(Wrong::Truncated)? {
            b'{' => self.object(depth, pairs),
            b'[' => self.array(depth),
            b'"' => self.string(),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number(),
        }
    }

    fn object(&mut self, depth: usize, pairs: &mut Vec<Pair<'a>>) -> Result<(), Wrong> {
        self.at += 1;
        self.spaces();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.spaces();
            let start = self.at;
            self.string()?;
            let key = &self.bytes[start..self.at];
            self.spaces();
            if self.next()? != b':' {
                return Err(Wrong::Malformed);
            }
            self.spaces();
            let start = self.at;
            self.value(depth + 1, &mut Vec::new())?;
            pairs.push(Pair { key, value: &self.bytes[start..self.at] });
            self.spaces();
            match self.next()? {
                b',' => {}
                b'}' => return Ok(()),
                _ => return Err(Wrong::Malformed),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Wrong> {
        self.at += 1;
        self.spaces();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.spaces();
            self.value(depth + 1, &mut Vec::new())?;
            self.spaces();
            match self.next()? {
                b',' => {}
                b']' => return Ok(()),
                _ => return Err(Wrong::Malformed),
            }
        }
    }

    fn string(&mut self) -> Result<(), Wrong> {
        if self.next()? != b'"' {
            return Err(Wrong::Malformed);
        }
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => self.escape()?,
                byte if byte < b' ' => return Err(Wrong::Malformed),
                _ => {}
            }
        }
    }

    fn escape(&mut self) -> Result<(), Wrong> {
        match self.next()? {
            b'u' => {
                for _ in 0..4 {
                    if !self.next()?.is_ascii_hexdigit() {
                        return Err(Wrong::Malformed);
                    }
                }
                Ok(())
            }
            byte if b"bfnrt\\/\"".contains(&byte) => Ok(()),
            _ => Err(Wrong::Malformed),
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Wrong> {
        for wanted in word {
            if self.next()? != *wanted {
                return Err(Wrong::Malformed);
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Wrong> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// One digit at least.
    fn digits(&mut self) -> Result<(), Wrong> {
        if !self.next()?.is_ascii_digit() {
            return Err(Wrong::Malformed);
        }
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
    }
}
