//! A request's body: the peek, the cut of `keep_alive`, and which bodies are equal.
#![expect(clippy::panic, reason = "a broken promise must end the run")]

use bytes::Bytes;

use super::super::canonical::{Fingerprint, duplicate_key, is_deterministic};
use super::super::cut::without_keep_alive;
use super::super::json::Fault;
use super::super::peek::{Peek, Refusal, Request, Shape, peek};
use super::super::sole::sole_value;
use super::naive::{self, Pair, Read, Value};
use crate::domain::dialect::Dialect;

const SHAPES: [Shape; 5] =
    [Shape::Chat, Shape::Generate, Shape::Embed, Shape::Embeddings, Shape::V1];

/// The field that is cut.
const KEEP_ALIVE: &str = "keep_alive";

/// A body in every shape.
///
/// # Panics
/// Where the peek reads something else than the naive reader, where the cut changes anything but `keep_alive`, and where
/// bodies of one meaning are not equal.
pub fn request(body: &[u8]) {
    let seen = naive::read(body);
    for shape in SHAPES {
        match peek(shape, body) {
            Peek::Request(request) => is_right(shape, body, &seen, &request),
            Peek::Refused(refusal) => is_refused(&seen, refusal),
        }
    }
    let is_alone = match &seen {
        Read::Value(_, rest) => Some(naive::is_blank(rest)),
        Read::Blank | Read::Truncated | Read::Malformed => Some(false),
        Read::TooDeep => None,
    };
    assert!(is_alone.is_none_or(|is_alone| sole_value(body).is_ok() == is_alone));
    equality(body, &seen);
    for dialect in Dialect::QUEUED {
        let _is_taken = is_deterministic(dialect, body);
    }
}

fn is_refused(seen: &Read<'_>, refusal: Refusal) {
    let is_json_fault = matches!(refusal, Refusal::Json(_) | Refusal::MissingBody);
    match seen {
        Read::Blank => assert_eq!(refusal, Refusal::MissingBody),
        Read::Value(value, _) => {
            assert!(!is_json_fault, "{refusal}: it is JSON");
            let is_object = matches!(value, Value::Object(_));
            assert!(!(is_object && refusal == Refusal::NotAnObject), "it is an object");
        }
        // A wrong member before the bad byte may be told in its place.
        Read::Truncated => assert!(refusal != Refusal::Json(Fault::Malformed), "it is cut off"),
        Read::Malformed => assert!(refusal != Refusal::Json(Fault::Truncated), "it is malformed"),
        Read::TooDeep => {}
    }
}

fn is_right(shape: Shape, body: &[u8], seen: &Read<'_>, request: &Request) {
    let (pairs, tail) = match seen {
        Read::Value(Value::Object(pairs), tail) => (pairs, tail),
        Read::TooDeep => return,
        Read::Value(Value::Other(_), _) | Read::Blank | Read::Truncated | Read::Malformed => {
            panic!("{request:?} out of what is no object")
        }
    };
    let mut models = pairs.iter().filter(|pair| pair.folded() == "model" && pair.value != b"null");
    assert_eq!(models.next_back().map(|pair| naive::text(pair.value)), Some(request.model.clone()));
    let mut streams = pairs.iter().filter(|pair| pair.folded() == "stream");
    let has_stream = !matches!(shape, Shape::Embed | Shape::Embeddings);
    if let Some(word @ (b"true" | b"false")) =
        streams.next_back().map(|pair| pair.value).filter(|_| has_stream)
    {
        assert_eq!(request.stream, word == b"true");
    }

    let left = without_keep_alive(Bytes::copy_from_slice(body), &request.keep_alive_members);
    let is_kept = |pair: &&Pair<'_>| shape == Shape::V1 || pair.folded() != KEEP_ALIVE;
    let wanted: Vec<Pair<'_>> = pairs.iter().filter(is_kept).cloned().collect();
    assert_eq!(naive::read(&left), Read::Value(Value::Object(wanted), tail), "{left:?}");
    let object = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    if let (true, Some(mut whole)) = (naive::is_blank(tail), object(body)) {
        if let Some(map) = whole.as_object_mut().filter(|_| shape != Shape::V1) {
            map.retain(|key, _| naive::folded(key) != KEEP_ALIVE);
        }
        assert_eq!(object(&left), Some(whole));
    }
    let rest = Request { keep_alive: None, keep_alive_members: Vec::new(), ..request.clone() };
    match peek(shape, &left) {
        Peek::Request(again) => assert_eq!(again, rest, "after the cut"),
        // An unload may have options that are wrong, and is none any more without its `keep_alive`.
        Peek::Refused(refusal) => {
            let is_of_options = matches!(refusal, Refusal::OptionType(_));
            assert!(request.is_unload() && is_of_options, "{refusal} after the cut");
        }
    }
}

/// Space, escapes, the order of members and `keep_alive` make no difference; one member more does.
fn equality(body: &[u8], seen: &Read<'_>) {
    let key = duplicate_key(&[], body);
    let (value, tail) = match seen {
        Read::Value(value, tail) => (value, tail),
        Read::TooDeep => return,
        Read::Blank | Read::Truncated | Read::Malformed => return assert_eq!(key, None),
    };
    assert!(key.is_some(), "a value has a key");
    let first = &body[..body.len() - tail.len()];
    let equals = |other: &[u8]| duplicate_key(&[], other) == key;
    assert!(equals(&naive::compact(first)), "space makes a difference");
    let Value::Object(pairs) = value else { return };
    let mut kept: Vec<Pair<'_>> =
        pairs.iter().filter(|pair| pair.folded() != KEEP_ALIVE).cloned().collect();
    assert!(equals(&naive::object(&kept)), "keep_alive makes a difference");
    let spelled: Vec<Vec<u8>> = kept.iter().map(|pair| escaped(pair.key)).collect();
    let pairs = kept.iter().zip(&spelled).map(|(pair, key)| Pair { key, value: pair.value });
    assert!(equals(&naive::object(&pairs.collect::<Vec<_>>())), "escapes make a difference");
    let mut names: Vec<String> = kept.iter().map(Pair::folded).collect();
    names.sort_unstable();
    if names.windows(2).all(|pair| pair[0] != pair[1]) {
        kept.reverse();
        assert!(equals(&naive::object(&kept)), "the order of members makes a difference");
    }
    kept.push(Pair { key: b"\"one more\"", value: b"1" });
    let more: Option<Fingerprint> = duplicate_key(&[], &naive::object(&kept));
    assert_ne!(more, key, "a member makes no difference");
}

/// A key with each character as an escape; as it is where it spells no text.
fn escaped(key: &[u8]) -> Vec<u8> {
    let Ok(text) = serde_json::from_slice::<String>(key) else { return key.to_vec() };
    let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    format!("\"{units}\"").into_bytes()
}
