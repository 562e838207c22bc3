//! A JSON scanner that accepts exactly what Go's `encoding/json` accepts, and builds nothing.
//!
//! It walks bytes once, in pieces of any size, and reports where the members of the outermost
//! object begin and end; values nobody asked for cost no memory. It never recurses and never needs
//! valid UTF-8. The peek runs it over whole bodies, the answer scanner over chunks as they arrive.

use super::json::{DEPTH_MAX, Event, Fault, Kind, is_space};
use memchr::memchr2;

/// Hex digits in a `\u` escape.
const HEX_DIGITS: u8 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Object,
    Array,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value must follow.
    Value,
    /// A value follows whose beginning was already reported.
    ReportedValue,
    /// After `[`: a value or `]`.
    FirstElement,
    /// After `{`: a key or `}`.
    FirstKey,
    /// After a comma in an object.
    Key,
    /// A key follows whose beginning was already reported.
    ReportedKey,
    Colon,
    /// After a value in a container.
    After,
    Text,
    Escape,
    /// Hex digits still to come.
    Hex(u8),
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8]),
    Done,
}

/// What one byte did.
enum Step {
    Take,
    TakeAnd(Event),
    /// The byte is not consumed yet.
    LeaveAnd(Event),
    Leave,
}

/// The resumable scanner for one JSON value.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    stack: Vec<Container>,
    /// Whether the string being read is a key.
    is_key: bool,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::Value, stack: Vec::new(), is_key: false }
    }
}

impl Scanner {
    /// Walks `chunk` from `*at` to the next event, or to the end of the chunk (`None`).
    ///
    /// Bytes behind the value are not consumed: once [`Event::Closes`] came, nothing moves.
    ///
    /// # Errors
    ///
    /// [`Fault::Malformed`] or [`Fault::TooDeep`], with `*at` on the byte that is wrong; the scanner must not be used
    /// afterwards.
    pub fn next(&mut self, chunk: &[u8], at: &mut usize) -> Result<Option<Event>, Fault> {
        while let Some(&byte) = chunk.get(*at) {
            if self.state == State::Text {
                skip_plain_text(chunk, at)?;
                let Some(&byte) = chunk.get(*at) else { break };
                *at += 1;
                if byte == b'\\' {
                    self.state = State::Escape;
                } else if let Some(event) = self.string_ends() {
                    return Ok(Some(event));
                }
                continue;
            }
            if self.state == State::Done {
                break;
            }
            match self.step(byte)? {
                Step::Take => *at += 1,
                Step::Leave => {}
                Step::LeaveAnd(event) => return Ok(Some(event)),
                Step::TakeAnd(event) => {
                    *at += 1;
                    return Ok(Some(event));
                }
            }
        }
        Ok(None)
    }

    /// Whether the value may end where the bytes ended: closed, or a bare number.
    #[must_use]
    pub fn may_end(&self) -> bool {
        self.state == State::Done || (self.stack.is_empty() && self.number_may_end())
    }

    /// Refuses all further bytes: the value is over for this scanner.
    pub(super) fn stop(&mut self) {
        self.stack.clear();
        self.state = State::Done;
    }

    fn number_may_end(&self) -> bool {
        matches!(self.state, State::Zero | State::Integer | State::Fraction | State::ExponentDigits)
    }

    fn step(&mut self, byte: u8) -> Result<Step, Fault> {
        if is_space(byte) && self.skips_space() {
            return Ok(Step::Take);
        }
        match self.state {
            State::FirstElement if byte == b']' => Ok(self.container_ends()),
            State::FirstKey if byte == b'}' => Ok(self.container_ends()),
            State::Value | State::FirstElement => self.value_begins(byte),
            State::ReportedValue => self.enter_value(byte),
            State::FirstKey | State::Key if byte == b'"' && self.is_outermost_object() => {
                self.state = State::ReportedKey;
                Ok(Step::LeaveAnd(Event::KeyBegins))
            }
            State::FirstKey | State::Key | State::ReportedKey if byte == b'"' => {
                self.is_key = true;
                self.state = State::Text;
                Ok(Step::Take)
            }
            State::Colon if byte == b':' => self.goes_to(State::Value),
            State::After => self.separator(byte),
            State::Escape if byte == b'u' => self.goes_to(State::Hex(HEX_DIGITS)),
            State::Escape if b"bfnrt\\/\"".contains(&byte) => self.goes_to(State::Text),
            State::Hex(1) if byte.is_ascii_hexdigit() => self.goes_to(State::Text),
            State::Hex(left) if byte.is_ascii_hexdigit() => self.goes_to(State::Hex(left - 1)),
            State::Word([next, rest @ ..]) if *next == byte => {
                self.state = State::Word(rest);
                Ok(if rest.is_empty() { take(self.value_ends()) } else { Step::Take })
            }
            _ => self.number_goes_on(byte),
        }
    }

    fn skips_space(&self) -> bool {
        use State::{After, Colon, FirstElement, FirstKey, Key, Value};
        matches!(self.state, Value | FirstElement | FirstKey | Key | Colon | After)
    }

    fn goes_to(&mut self, state: State) -> Result<Step, Fault> {
        self.state = state;
        Ok(Step::Take)
    }

    fn is_outermost_object(&self) -> bool {
        self.stack.as_slice() == [Container::Object]
    }

    fn value_begins(&mut self, byte: u8) -> Result<Step, Fault> {
        let is_outermost = self.stack.is_empty();
        if !is_outermost && !self.is_outermost_object() {
            return self.enter_value(byte);
        }
        let kind = Kind::of(byte).ok_or(Fault::Malformed)?;
        self.state = State::ReportedValue;
        let event = if is_outermost { Event::Opens(kind) } else { Event::ValueBegins(kind) };
        Ok(Step::LeaveAnd(event))
    }

    fn enter_value(&mut self, byte: u8) -> Result<Step, Fault> {
        let state = match byte {
            b'{' => return self.enter(Container::Object),
            b'[' => return self.enter(Container::Array),
            b'"' => {
                self.is_key = false;
                State::Text
            }
            b't' => State::Word(b"rue"),
            b'f' => State::Word(b"alse"),
            b'n' => State::Word(b"ull"),
            b'-' => State::Minus,
            b'0' => State::Zero,
            b'1'..=b'9' => State::Integer,
            _ => return Err(Fault::Malformed),
        };
        self.goes_to(state)
    }

    fn enter(&mut self, container: Container) -> Result<Step, Fault> {
        if self.stack.len() >= DEPTH_MAX {
            return Err(Fault::TooDeep);
        }
        self.stack.push(container);
        self.goes_to(match container {
            Container::Object => State::FirstKey,
            Container::Array => State::FirstElement,
        })
    }

    fn separator(&mut self, byte: u8) -> Result<Step, Fault> {
        match (self.stack.last(), byte) {
            (Some(Container::Object), b'}') | (Some(Container::Array), b']') => {
                Ok(self.container_ends())
            }
            (Some(Container::Array), b',') => self.goes_to(State::Value),
            (Some(Container::Object), b',') => {
                self.state = State::Key;
                Ok(take(self.is_outermost_object().then_some(Event::Comma)))
            }
            _ => Err(Fault::Malformed),
        }
    }

    fn number_goes_on(&mut self, byte: u8) -> Result<Step, Fault> {
        use State::{
            Exponent, ExponentDigits, ExponentSign, Fraction, Integer, Minus, Point, Zero,
        };
        let state = match (self.state, byte) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Integer, b'0'..=b'9') => Integer,
            (Zero | Integer, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Integer | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => ExponentDigits,
            // The byte behind a number is not part of it: it is looked at again.
            _ if self.number_may_end() => {
                return Ok(self.value_ends().map_or(Step::Leave, Step::LeaveAnd));
            }
            _ => return Err(Fault::Malformed),
        };
        self.goes_to(state)
    }

    fn string_ends(&mut self) -> Option<Event> {
        if self.is_key {
            self.state = State::Colon;
            return self.is_outermost_object().then_some(Event::KeyEnds);
        }
        self.value_ends()
    }

    fn container_ends(&mut self) -> Step {
        self.stack.pop();
        take(self.value_ends())
    }

    fn value_ends(&mut self) -> Option<Event> {
        if self.stack.is_empty() {
            self.state = State::Done;
            return Some(Event::Closes);
        }
        self.state = State::After;
        self.is_outermost_object().then_some(Event::ValueEnds)
    }
}

fn take(event: Option<Event>) -> Step {
    event.map_or(Step::Take, Step::TakeAnd)
}

/// Moves to the next quote or backslash, or to the first control character, which is an error.
fn skip_plain_text(chunk: &[u8], at: &mut usize) -> Result<(), Fault> {
    let rest = &chunk[*at..];
    let plain = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
    // Two passes that the compiler and memchr vectorise beat one that looks at each byte.
    let has_control = rest[..plain].iter().fold(false, |found, &byte| found | (byte < b' '));
    if has_control {
        *at += rest.iter().position(|byte| *byte < b' ').unwrap_or(plain);
        return Err(Fault::Malformed);
    }
    *at += plain;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Feeds the bytes in pieces and returns the events with their absolute positions.
    pub(in super::super) fn scan(pieces: &[&[u8]]) -> Result<(Vec<(Event, usize)>, bool), Fault> {
        let mut scanner = Scanner::default();
        let (mut events, mut before) = (Vec::new(), 0);
        for piece in pieces {
            let mut at = 0;
            while let Some(event) = scanner.next(piece, &mut at)? {
                events.push((event, before + at));
            }
            before += piece.len();
        }
        Ok((events, scanner.may_end()))
    }

    pub(in super::super) fn is_valid(json: &[u8]) -> bool {
        scan(&[json]).is_ok_and(|(_, may_end)| may_end)
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for json in
            ["{bad", "{\"a\":1,}", "[1,]", "{,}", "[,]", "{\"a\" 1}", "{\"a\":}", "tru", "-", "+1"]
                .into_iter()
                .chain([
                    "[01]",
                    "[1.]",
                    "[.5]",
                    "[1e]",
                    "[1e+]",
                    "// c\n1",
                    "{'a':1}",
                    "\u{feff}{}",
                    "[1 2]",
                ])
                .chain([
                    "\"\n\"",
                    "\"\\x\"",
                    "\"\\u12g4\"",
                    "\"\\u123\"",
                    "[nul]",
                    "{\"a\":1]",
                    "[}",
                    "NaN",
                ])
        {
            assert!(!is_valid(json.as_bytes()), "{json}");
        }
    }

    #[test]
    fn invalid_utf8_lone_surrogates_and_del_are_accepted() {
        assert!(is_valid(b"{\"a\":\"\xff\xc3\x7f\",\"b\":\"\\ud800\"}"));
    }

    #[test]
    fn nesting_ends_where_go_ends_it() {
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(is_valid(nested(DEPTH_MAX).as_bytes()));
        let too_deep = nested(DEPTH_MAX + 1);
        assert_eq!(scan(&[too_deep.as_bytes()]).unwrap_err(), Fault::TooDeep);
    }
}
