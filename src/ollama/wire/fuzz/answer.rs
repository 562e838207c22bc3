//! An answer: whether it is whole, however it is cut into chunks, and what it folds into.

use super::super::answer::{AnswerKind, AnswerScanner, ScanState, Usage, Verdict};
use super::super::fold::fold;
use super::super::unstreamed::is_half;
use super::Dice;
use super::naive::{self, Pair, Read, Value};
use crate::domain::dialect::Dialect;

const KINDS: [AnswerKind; 6] = [
    AnswerKind::NativeStream,
    AnswerKind::OpenAiStream,
    AnswerKind::ResponsesStream,
    AnswerKind::MessagesStream,
    AnswerKind::JsonBody,
    AnswerKind::Opaque,
];

/// The most of an error that is kept; in answers that are longer, its text is not compared.
const ERROR_BYTES_MAX: usize = 4 * 1024;

/// An answer in every kind.
///
/// # Panics
/// Where a split into chunks changes what is told, or where that is not what the naive reader says.
pub fn answer(bytes: &[u8]) {
    let mut dice = Dice::of(bytes);
    let cut = dice.roll(bytes.len() + 1);
    for kind in KINDS {
        let told = judge(kind, &[bytes]);
        assert_eq!(judge(kind, &bytes.chunks(1).collect::<Vec<_>>()), told, "{kind:?} by bytes");
        assert_eq!(judge(kind, &pieces(bytes, &mut dice)), told, "{kind:?} in pieces");
        let Some(wanted) = expected(kind, bytes) else { continue };
        let can_be_cut = bytes.len() >= ERROR_BYTES_MAX;
        let (told_is, wanted_is) =
            (short(told.verdict, can_be_cut), short(wanted.verdict, can_be_cut));
        assert_eq!(told_is, wanted_is, "{kind:?}");
        // A record without its end is judged when the answer ends, and counted by then only.
        if let Some(records) = wanted.records.filter(|_| bytes.ends_with(b"\n\n")) {
            assert_eq!(told.records, records, "{kind:?}: records before an error");
        }
        // What came so far is not called whole before its mark.
        let begun = judge(kind, &[&bytes[..cut]]);
        if begun.state == ScanState::Whole {
            let is_marked = expected(kind, &bytes[..cut]).is_none_or(|wanted| wanted.is_marked);
            assert!(is_marked, "{kind:?}: whole without its mark after {cut} bytes");
        }
    }
    folding(bytes);
    for dialect in Dialect::QUEUED {
        let _is_half = is_half(dialect, bytes);
    }
}

/// All that a scanner tells.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    state: ScanState,
    records: u64,
    usage: Usage,
    done: Option<bool>,
    verdict: Verdict,
}

fn judge(kind: AnswerKind, chunks: &[&[u8]]) -> Told {
    let mut scanner = AnswerScanner::new(kind);
    for chunk in chunks {
        scanner.feed(chunk);
    }
    Told {
        state: scanner.state().clone(),
        records: scanner.records_before_error(),
        usage: scanner.usage(),
        done: scanner.done_member(),
        verdict: scanner.finish(),
    }
}

/// A few cuts anywhere; empty chunks among them.
fn pieces<'a>(bytes: &'a [u8], dice: &mut Dice) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = (0..4).map(|_| dice.roll(bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// What the naive reader says.
struct Expected {
    verdict: Verdict,
    is_marked: bool,
    /// `None` where nobody counts.
    records: Option<u64>,
}

/// `None` where the naive reader has no opinion.
fn expected(kind: AnswerKind, bytes: &[u8]) -> Option<Expected> {
    let parts = match kind {
        AnswerKind::Opaque | AnswerKind::OpaqueStream => {
            return Some(Expected { verdict: Verdict::Whole, is_marked: true, records: None });
        }
        AnswerKind::JsonBody => return body(bytes),
        AnswerKind::NativeStream => lines(bytes)?,
        AnswerKind::OpenAiStream | AnswerKind::ResponsesStream | AnswerKind::MessagesStream => {
            events(bytes).iter().map(|event| event_part(kind, event)).collect::<Option<_>>()?
        }
    };
    Some(over(&parts))
}

/// What one record is.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Content,
    Mark,
    Error(String),
    Malformed,
    /// Of lines the last one: the answer ended inside it.
    CutOff,
}

/// An error counts whatever stands around it; else what is malformed; else whether all is there.
fn over(parts: &[Part]) -> Expected {
    let error = parts.iter().find_map(|part| match part {
        Part::Error(text) => Some(text.clone()),
        Part::Content | Part::Mark | Part::Malformed | Part::CutOff => None,
    });
    let is_marked = parts.contains(&Part::Mark);
    let verdict = match error {
        Some(text) => Verdict::Error(text),
        None if parts.contains(&Part::Malformed) => Verdict::Malformed,
        None if is_marked && !parts.contains(&Part::CutOff) => Verdict::Whole,
        None => Verdict::Cut,
    };
    let before = parts.iter().take_while(|part| !matches!(part, Part::Error(_)));
    let records = before.filter(|part| matches!(part, Part::Content | Part::Mark)).count();
    Expected { verdict, is_marked, records: u64::try_from(records).ok() }
}

fn body(bytes: &[u8]) -> Option<Expected> {
    let verdict = match naive::read(bytes) {
        Read::TooDeep => return None,
        Read::Value(_, rest) if naive::is_blank(rest) => Verdict::Whole,
        Read::Value(..) | Read::Malformed => Verdict::Malformed,
        Read::Blank | Read::Truncated => Verdict::Cut,
    };
    let is_marked = verdict == Verdict::Whole;
    Some(Expected { verdict, is_marked, records: None })
}

fn lines(bytes: &[u8]) -> Option<Vec<Part>> {
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let mut parts = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        match naive::read(line) {
            Read::TooDeep => return None,
            Read::Blank => {}
            Read::Malformed => parts.push(Part::Malformed),
            Read::Truncated if index + 1 == lines.len() => parts.push(Part::CutOff),
            Read::Truncated => parts.push(Part::Malformed),
            Read::Value(value, rest) => {
                let is_done = last(&value, "done") == Some(b"true");
                parts.push(match error(&value) {
                    Some(text) => Part::Error(text),
                    None if is_done => Part::Mark,
                    None => Part::Content,
                });
                if !naive::is_blank(rest) {
                    parts.push(Part::Malformed);
                }
            }
        }
    }
    Some(parts)
}

struct Event {
    name: Vec<u8>,
    data: Vec<u8>,
}

/// The events of a stream, a last one without its blank line included.
fn events(bytes: &[u8]) -> Vec<Event> {
    let mut text = Vec::new();
    for (at, byte) in bytes.iter().copied().enumerate() {
        match byte {
            b'\r' if bytes.get(at + 1) == Some(&b'\n') => {}
            b'\r' => text.push(b'\n'),
            other => text.push(other),
        }
    }
    let mut events = Vec::new();
    let (mut name, mut data) = (Vec::new(), None::<Vec<u8>>);
    // The blank line at the end stands for the one that the end is.
    for line in text.split(|byte| *byte == b'\n').chain([&b""[..]]) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"" if colon == line.len() => {
                if let Some(data) = data.take() {
                    events.push(Event { name: name.clone(), data });
                }
                name.clear();
            }
            b"event" => name = value.to_vec(),
            b"data" => {
                data = Some(match data {
                    Some(before) => [&before[..], b"\n", value].concat(),
                    None => value.to_vec(),
                });
            }
            _ => {}
        }
    }
    events
}

fn event_part(kind: AnswerKind, event: &Event) -> Option<Part> {
    if kind == AnswerKind::OpenAiStream && event.data == b"[DONE]" {
        return Some(Part::Mark);
    }
    let value = match naive::read(&event.data) {
        Read::TooDeep => return None,
        Read::Blank => return Some(Part::Content),
        Read::Value(value, rest) if naive::is_blank(rest) => value,
        Read::Value(..) | Read::Truncated | Read::Malformed => return Some(Part::Malformed),
    };
    if let Some(text) = error(&value) {
        return Some(Part::Error(text));
    }
    let own = last(&value, "type").filter(|kind| kind.starts_with(b"\"")).map(naive::text);
    let name = own.map_or_else(|| event.name.clone(), String::into_bytes);
    let marks: &[&[u8]] = match kind {
        AnswerKind::ResponsesStream => {
            &[b"response.completed", b"response.incomplete", b"response.failed"]
        }
        AnswerKind::MessagesStream => &[b"message_stop"],
        _ => return Some(Part::Content),
    };
    if marks.contains(&name.as_slice()) {
        return Some(Part::Mark);
    }
    if name == b"error" {
        let message = last(&value, "message").filter(|text| text.starts_with(b"\""));
        return Some(Part::Error(message.map_or_else(|| "error".to_owned(), naive::text)));
    }
    Some(Part::Content)
}

/// The text of an `error` member that says something.
fn error(value: &Value<'_>) -> Option<String> {
    let error = last(value, "error")?;
    let lossy = || String::from_utf8_lossy(error).into_owned();
    let text = match error.first()? {
        b'n' => return None,
        b'"' => naive::text(error),
        b'{' => match naive::read(error) {
            Read::Value(Value::Object(pairs), _) => {
                let is_message =
                    |pair: &&Pair<'_>| pair.value.starts_with(b"\"") && pair.is("message");
                pairs.iter().find(is_message).map_or_else(lossy, |pair| naive::text(pair.value))
            }
            _ => lossy(),
        },
        _ => lossy(),
    };
    (!text.is_empty()).then_some(text)
}

/// The last member of that very name.
fn last<'a>(value: &Value<'a>, name: &str) -> Option<&'a [u8]> {
    let Value::Object(pairs) = value else { return None };
    pairs.iter().rev().find(|pair| pair.is(name)).map(|pair| pair.value)
}

/// An error whose text may have been cut is only an error.
fn short(verdict: Verdict, can_be_cut: bool) -> Verdict {
    match verdict {
        Verdict::Error(_) if can_be_cut => Verdict::Error(String::new()),
        other => other,
    }
}

/// What is folded is whole, is JSON, and has the texts of all records in one.
fn folding(bytes: &[u8]) {
    let Ok(Some(folded)) = fold(bytes) else { return };
    let told = judge(AnswerKind::NativeStream, &[bytes]);
    assert_eq!((&told.verdict, told.done), (&Verdict::Whole, Some(true)), "folded");
    let whole = naive::read(&folded);
    assert!(matches!(whole, Read::Value(Value::Object(_), b"") | Read::TooDeep), "{folded:?}");
    let records: Result<Vec<serde_json::Value>, _> = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !naive::is_blank(line))
        .map(serde_json::from_slice)
        .collect();
    let (Ok(records), Ok(folded)) = (records, serde_json::from_slice(&folded)) else { return };
    let folded: serde_json::Value = folded;
    for pointer in ["/response", "/message/content"] {
        let texts = records.iter().filter_map(|record| record.pointer(pointer)?.as_str());
        let joined: String = texts.collect();
        if !joined.is_empty() {
            assert_eq!(folded.pointer(pointer).and_then(|text| text.as_str()), Some(&joined[..]));
        }
    }
}
