//! The members of the first JSON value in a body, by their byte ranges.
//!
//! The iterator over a complete slice; whatever must resume between chunks uses
//! [`super::scanner::Scanner`] itself. Nothing is decoded or collected here.

use super::json::{Event, Fault, Kind, is_space};
use super::scanner::Scanner;
use super::text::key_names;
use std::ops::Range;

/// One member of the outermost object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The key with its quotes.
    pub key: Range<usize>,
    /// The value, without white space around it.
    pub value: Range<usize>,
    /// What the value is.
    pub kind: Kind,
    /// Where the comma behind it stands; `None` for the last member.
    pub comma: Option<usize>,
}

/// The first JSON value of some bytes, as far as its first byte tells.
#[derive(Debug)]
pub enum Document<'a> {
    /// An object whose members are still to be walked; only then is it known to be well formed.
    Object(Members<'a>),
    /// A well-formed value of another kind.
    Other(Kind),
}

/// Opens the first JSON value in `bytes`; what follows it is never looked at.
///
/// # Errors
///
/// Any [`Fault`].
pub fn open(bytes: &[u8]) -> Result<Document<'_>, Fault> {
    let mut scanner = Scanner::default();
    let mut at = 0;
    let Some(Event::Opens(kind)) = scanner.next(bytes, &mut at)? else {
        return Err(Fault::Missing);
    };
    if kind == Kind::Object {
        return Ok(Document::Object(Members { bytes, scanner, at }));
    }
    while scanner.next(bytes, &mut at)?.is_some() {}
    if scanner.may_end() { Ok(Document::Other(kind)) } else { Err(Fault::Truncated) }
}

/// The members of an object in their order, duplicates included.
///
/// The object is well formed only if the iterator ends without an error; an error is the last item.
#[derive(Debug)]
pub struct Members<'a> {
    bytes: &'a [u8],
    scanner: Scanner,
    at: usize,
}

impl Members<'_> {
    /// Whether nothing but white space follows the object; known once the iterator has ended.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.bytes.get(self.at..).is_some_and(|rest| rest.iter().all(|byte| is_space(*byte)))
    }

    fn read(&mut self) -> Result<Option<Member>, Fault> {
        let mut member = Member { key: 0..0, value: 0..0, kind: Kind::Null, comma: None };
        while let Some(event) = self.scanner.next(self.bytes, &mut self.at)? {
            match event {
                Event::Opens(_) => {}
                Event::KeyBegins => member.key.start = self.at,
                Event::KeyEnds => member.key.end = self.at,
                Event::ValueBegins(kind) => {
                    member.value.start = self.at;
                    member.kind = kind;
                }
                Event::ValueEnds => member.value.end = self.at,
                Event::Comma => {
                    member.comma = Some(self.at - 1);
                    return Ok(Some(member));
                }
                Event::Closes => return Ok((!member.key.is_empty()).then_some(member)),
            }
        }
        if self.scanner.may_end() { Ok(None) } else { Err(Fault::Truncated) }
    }
}

impl Iterator for Members<'_> {
    type Item = Result<Member, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.read().transpose();
        if matches!(item, Some(Err(_))) {
            self.scanner.stop();
        }
        item
    }
}

/// The elements of an array, given with its brackets, without the white space around them. What is malformed ends them.
pub fn elements(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 1;
    std::iter::from_fn(move || {
        at += array.get(at..)?.iter().position(|byte| !is_space(*byte) && *byte != b',')?;
        let start = at;
        let mut scanner = Scanner::default();
        // A closing bracket is no value, so it ends the list here.
        while scanner.next(array, &mut at).ok()?? != Event::Closes {}
        Some(&array[start..at])
    })
}

/// The value of the last member of that name that is not null, if the body is an object and whole.
#[must_use]
pub fn last_member<'a>(body: &'a [u8], name: &str) -> Option<(Kind, &'a [u8])> {
    let Ok(Document::Object(members)) = open(body) else { return None };
    let mut found = None;
    for member in members {
        let member = member.ok()?;
        if member.kind != Kind::Null && key_names(&body[member.key.clone()], name) {
            found = Some((member.kind, &body[member.value]));
        }
    }
    found
}

/// Whether an array, given with its brackets, holds anything.
#[must_use]
pub fn has_elements(array: &[u8]) -> bool {
    array.iter().skip(1).find(|byte| !is_space(**byte)).is_some_and(|byte| *byte != b']')
}

#[cfg(test)]
mod tests {
    use super::*;

    type Found<'a> = (&'a str, &'a str, Kind, Option<usize>);

    fn members(json: &str) -> Result<Vec<Found<'_>>, Fault> {
        let Document::Object(members) = open(json.as_bytes())? else { panic!("no object: {json}") };
        members
            .map(|member| {
                let member = member?;
                Ok((&json[member.key], &json[member.value], member.kind, member.comma))
            })
            .collect()
    }

    #[test]
    fn members_come_with_exact_ranges() {
        let json = " { \"a\" : 1 , \"b\":{\"a\":[2,{}]},\"a\":\"x\\\"\"\n} trailing";
        let found = members(json).unwrap();
        assert_eq!(
            found,
            [
                ("\"a\"", "1", Kind::Number, Some(11)),
                ("\"b\"", "{\"a\":[2,{}]}", Kind::Object, Some(29)),
                ("\"a\"", "\"x\\\"\"", Kind::String, None),
            ]
        );
        assert_eq!(members("{}").unwrap(), []);
    }

    #[test]
    fn only_the_first_value_counts_and_it_must_be_whole() {
        assert!(matches!(open(b"null!"), Ok(Document::Other(Kind::Null))));
        assert!(matches!(open(b"12"), Ok(Document::Other(Kind::Number))));
        assert!(matches!(open(b"{}{"), Ok(Document::Object(_))));
        for blank in ["", " \t\r\n"] {
            assert_eq!(open(blank.as_bytes()).unwrap_err(), Fault::Missing);
        }
        assert_eq!(open(b"nul").unwrap_err(), Fault::Truncated);
        assert_eq!(members("{\"a\":[1").unwrap_err(), Fault::Truncated);
        assert_eq!(members("{\"a\":1,}").unwrap_err(), Fault::Malformed);
    }

    #[test]
    fn elements_come_whole_and_bare() {
        let found = |array: &str| {
            let list =
                elements(array.as_bytes()).map(|bytes| String::from_utf8_lossy(bytes).into());
            list.collect::<Vec<String>>()
        };
        assert_eq!(
            found("[ 1 , \"a,]\" ,[2,{}],{\"b\":[3]} ,-4.5e1, null]"),
            ["1", "\"a,]\"", "[2,{}]", "{\"b\":[3]}", "-4.5e1", "null"]
        );
        for empty in ["[]", "[ \n]", "", "[", "[\"cut"] {
            assert!(found(empty).is_empty(), "{empty}");
        }
    }

    #[test]
    fn an_array_of_spaces_has_no_elements() {
        assert!(!has_elements(b"[ \n]") && !has_elements(b"[]"));
        assert!(has_elements(b"[ null]") && has_elements(b"[[]]"));
    }
}
