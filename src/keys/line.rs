//! One line of the file of keys: a JSON object. What is wrong with it is told without repeating any of it: a key may stand
//! in any place by mistake.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::domain::job::Class;

use super::{Key, print};

/// Letters of a name, which stands in logs, tables and file names of those who script around it.
pub const NAME_CHARACTERS_MAX: usize = 64;

/// Letters of a key. Sixteen random ones cannot be found from their hash; more than 256 no client's field takes.
pub const KEY_CHARACTERS: std::ops::RangeInclusive<usize> = 16..=256;

/// As `FOREMAN_MAX_QUEUE`.
const QUEUED_MAX: u64 = 10_000_000;

/// As `FOREMAN_PARALLEL`.
const IN_FLIGHT_MAX: u64 = 64;

/// Members of a line. Told wherever one is unknown.
const MEMBERS: &str =
    "name, key, sha256, is_admin, priority, priority_max, queued_max, in_flight_max";

/// A line that was read.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) key: Key,
    /// Whether the key itself stands there.
    pub(super) is_plain: bool,
}

/// Reads a line.
///
/// # Errors
/// All its faults.
pub(super) fn parse(text: &str) -> Result<Line, Vec<String>> {
    let members: Members = serde_json::from_str(text).map_err(|fault| {
        vec![format!("must be one JSON object; it is none at column {}", fault.column().max(1))]
    })?;
    let mut given = Given { members: members.0, faults: Vec::new() };
    let name = given.text("name", check_name);
    let (plain, hash) = (given.text("key", check_key), given.text("sha256", check_hash));
    let has = (given.was("key"), given.was("sha256"));
    let key = Key {
        is_admin: given.flag("is_admin"),
        class: given.class("priority"),
        class_max: given.class("priority_max"),
        queued_max: given.number("queued_max", QUEUED_MAX),
        in_flight_max: given.number("in_flight_max", IN_FLIGHT_MAX),
        ..Key::plain(&name.unwrap_or_default(), [0; 32])
    };
    let mut faults = given.finish();
    let print = match (plain, hash) {
        (Some(plain), None) => Some(print(plain.as_bytes())),
        (None, Some(hash)) => unhex(&hash),
        (Some(_), Some(_)) | (None, None) => None,
    };
    if has.0 == has.1 {
        faults.push("needs one of key (the key itself) and sha256 (its SHA-256)".to_owned());
    }
    match print.filter(|_| faults.is_empty()) {
        Some(print) => Ok(Line { key: Key { print, ..key }, is_plain: has.0 }),
        None => Err(faults),
    }
}

/// The line of a key, without the key.
///
/// # Errors
/// What is wrong with the name or the key.
pub fn line(name: &str, key: &str) -> Result<String, String> {
    check_name(name).map_err(|allowed| format!("the name must be {allowed}"))?;
    check_key(key).map_err(|allowed| format!("the key must be {allowed}"))?;
    let digits: String = print(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(serde_json::json!({ "name": name, "sha256": digits }).to_string())
}

/// Whether this can be the name of a key.
///
/// # Errors
/// What is allowed.
pub fn check_name(text: &str) -> Result<(), String> {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name = (1..=NAME_CHARACTERS_MAX).contains(&text.len()) && text.bytes().all(is_letter);
    let allowed = || format!("1 to {NAME_CHARACTERS_MAX} of the characters a-z, A-Z, 0-9, ., _, -");
    is_name.then_some(()).ok_or_else(allowed)
}

/// Whether this can be a key.
///
/// # Errors
/// What is allowed.
pub fn check_key(text: &str) -> Result<(), String> {
    let (min, max) = KEY_CHARACTERS.into_inner();
    let is_key = (min..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    let allowed = || format!("{min} to {max} printable ASCII characters without spaces");
    is_key.then_some(()).ok_or_else(allowed)
}

fn check_hash(text: &str) -> Result<(), String> {
    unhex(text).map(drop).ok_or_else(|| "64 hexadecimal digits".to_owned())
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    // Of digits alone: a sign would be read as part of a number.
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut print = [0; 32];
    for (byte, pair) in print.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(print)
}

/// The members of a line, in order, doubles included: a map would keep the last of two and say nothing.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Walk)
    }
}

/// What stands in a line, taken member by member.
struct Given {
    members: Vec<(String, Value)>,
    faults: Vec<String>,
}

impl Given {
    /// Whether it was given; `null` is not.
    fn was(&self, name: &str) -> bool {
        self.members.iter().any(|(other, value)| other == name && !value.is_null())
    }

    fn take<T>(
        &mut self,
        name: &str,
        allowed: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let mut found = self.members.iter().filter(|(other, _)| other == name);
        let (_, value) = found.next()?;
        if found.next().is_some() {
            self.faults.push(format!("{name} stands there twice"));
            return None;
        }
        let value = value.clone();
        if value.is_null() {
            return None;
        }
        let taken = read(&value);
        if taken.is_none() {
            self.faults.push(format!("{name} must be {allowed}"));
        }
        taken
    }

    fn text(&mut self, name: &str, check: fn(&str) -> Result<(), String>) -> Option<String> {
        let allowed = check("").err().unwrap_or_default();
        let text = self.take(name, &allowed, |value| {
            value.as_str().filter(|text| check(text).is_ok()).map(str::to_owned)
        });
        if name == "name" && !self.was(name) {
            self.faults.push(format!("{name} is missing: {allowed}"));
        }
        text
    }

    fn flag(&mut self, name: &str) -> bool {
        self.take(name, "true or false", Value::as_bool).unwrap_or(false)
    }

    fn class(&mut self, name: &str) -> Option<Class> {
        let allowed = format!("one of {}", Class::ALL.map(Class::name).join(", "));
        self.take(name, &allowed, |value| Class::from_name(value.as_str()?))
    }

    fn number(&mut self, name: &str, max: u64) -> Option<u64> {
        let allowed = format!("a whole number from 1 to {max}");
        self.take(name, &allowed, |value| {
            value.as_u64().filter(|number| (1..=max).contains(number))
        })
    }

    fn finish(mut self) -> Vec<String> {
        let known: Vec<&str> = MEMBERS.split(", ").collect();
        for (place, (name, _)) in (1..).zip(&self.members) {
            if !known.contains(&name.as_str()) {
                self.faults.push(format!("member {place} is none of {MEMBERS}"));
            }
        }
        self.faults
    }
}
