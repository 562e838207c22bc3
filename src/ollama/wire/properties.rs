//! Property tests of the wire: random JSON, random splits, random spellings.
//!
//! `serde_json` is the oracle wherever it agrees with Go. A failing case prints its seed.

use super::answer::{AnswerKind, AnswerScanner, ScanState, Usage, Verdict};
use super::cut::without_keep_alive;
use super::peek::{Peek, Shape, peek};
use super::scanner::tests::{is_valid, scan};
use bytes::Bytes;
use proptest::prelude::*;

/// JSON texts and near misses: a serialised value with a few bytes changed.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<f64>().prop_map(|n| serde_json::json!(n).to_string()),
        any::<String>().prop_map(|s| serde_json::json!(s).to_string()),
    ];
    let value = leaf.prop_recursive(4, 24, 4, |inner| {
        let spaced = (inner, "[ \t\r\n]{0,2}").prop_map(|(value, space)| space + &value);
        prop_oneof![
            prop::collection::vec(spaced.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(" ,"))),
            prop::collection::vec(spaced, 0..4)
                .prop_map(|v| v.iter().map(|v| format!("\"k\\n\" :{v}")).collect::<Vec<_>>())
                .prop_map(|v| format!("{{ {}}}", v.join(","))),
        ]
    });
    let change =
        (any::<prop::sample::Index>(), prop::sample::select(b"{}[],:\"\\ 01-.eEntu\x01".to_vec()));
    (value, prop::collection::vec(change, 0..2)).prop_map(|(value, changes)| {
        let mut bytes = value.into_bytes();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn validity_agrees_with_serde_json_where_that_agrees_with_go(text in texts()) {
        let mut oracle = serde_json::Deserializer::from_slice(&text)
            .into_iter::<serde::de::IgnoredAny>();
        let expected = oracle.next().is_some_and(|value| value.is_ok());
        // serde wants a delimiter behind a bare word or number; Go ignores whatever follows.
        let is_container = text.first().is_some_and(|byte| b"{[".contains(byte));
        if is_container || expected {
            prop_assert_eq!(is_valid(&text), expected);
        }
    }

    #[test]
    fn any_split_gives_the_same_events(text in texts(), cuts in any::<[prop::sample::Index; 3]>()) {
        let mut cuts = cuts.map(|cut| cut.index(text.len() + 1));
        cuts.sort_unstable();
        let pieces = [&text[..cuts[0]], &text[cuts[0]..cuts[1]], &text[cuts[1]..cuts[2]], &text[cuts[2]..]];
        prop_assert_eq!(scan(&pieces), scan(&[&text]));
    }
}

/// The members of an object with `keep_alive` members put in, spelled in every way Go accepts.
fn spelled_members() -> impl Strategy<Value = Vec<(String, bool)>> {
    let key = prop_oneof![
        Just("keep_alive"),
        Just("KEEP_alive"),
        Just("Keep\\u005fAlive"),
        Just("\u{212a}eep_alive"),
        Just("\\u212aeep_aliv\\u0045"),
    ];
    let value = prop::sample::select(vec!["-1", "0", "\"5m\"", "null", "1e3"]);
    let cut = (key, value).prop_map(|(key, value)| (key.to_owned(), value.to_owned(), true));
    let kept = ("[a-z]{1,3}", any::<f64>()).prop_map(|(key, number)| {
        let value = serde_json::json!({"keep_alive": [number, "}, \"keep_alive\":"]});
        (key, value.to_string(), false)
    });
    let space = "[ \t\r\n]{0,2}";
    let member = (prop_oneof![cut, kept], space, space, space, space).prop_map(
        |((key, value, is_cut), a, b, c, d)| (format!("{a}\"{key}\"{b}:{c}{value}{d}"), is_cut),
    );
    prop::collection::vec(member, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn cutting_keep_alive_leaves_the_rest_as_it_was(members in spelled_members(), tail in "[ x}]{0,3}") {
        let mut members = members;
        members.push(("\"model\":\"m\"".into(), false));
        members.rotate_right(1);
        let texts: Vec<_> = members.iter().map(|(text, _)| text.as_str()).collect();
        let object = format!("{{{}}}", texts.join(","));
        let body = Bytes::from(format!("{object}{tail}"));
        let Peek::Request(request) = peek(Shape::Embed, &body) else {
            return Err(TestCaseError::fail("refused"));
        };
        let ranges = request.keep_alive_members;
        prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        let result = without_keep_alive(body.clone(), &ranges);
        prop_assert!(result.ends_with(tail.as_bytes()));
        let left = &result[..result.len() - tail.len()];
        let kept: Vec<_> = members.iter().filter(|m| !m.1).map(|m| m.0.as_str()).collect();
        let wanted: serde_json::Value = serde_json::from_str(&format!("{{{}}}", kept.join(","))).unwrap();
        prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(left).unwrap(), wanted);
        // Nothing but the cut members' own text and white space is missing.
        for text in kept {
            prop_assert!(memchr::memmem::find(left, text.trim().as_bytes()).is_some());
        }
        let Peek::Request(again) = peek(Shape::Embed, &result) else {
            return Err(TestCaseError::fail("refused after the cut"));
        };
        prop_assert_eq!((again.keep_alive, again.keep_alive_members), (None, vec![]));
    }

    #[test]
    fn no_bytes_make_the_peek_panic(body in prop_oneof![texts(), any::<Vec<u8>>()]) {
        for shape in [Shape::Chat, Shape::Generate, Shape::Embed, Shape::Embeddings, Shape::V1] {
            if let Peek::Request(request) = peek(shape, &body) {
                drop(without_keep_alive(body.clone().into(), &request.keep_alive_members));
            }
        }
    }

    #[test]
    fn any_split_of_an_answer_gives_the_same_verdict(
        pieces in prop::collection::vec(prop::sample::select(ANSWER_PIECES), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        kind in prop::sample::select(KINDS),
    ) {
        let bytes = pieces.concat().into_bytes();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let chunks: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        let each_byte: Vec<_> = bytes.chunks(1).collect();
        let whole = judge(kind, &[&bytes]);
        prop_assert_eq!(&judge(kind, &chunks), &whole);
        prop_assert_eq!(&judge(kind, &each_byte), &whole);
    }
}

/// Found beside the fuzz target: the first count stayed if a chunk ended between the two.
#[test]
fn a_count_that_is_taken_back_is_so_in_any_chunks() {
    let body = br#"{"eval_count":3,"done":false,"done":null,"eval_count":null}"#;
    let by_bytes: Vec<_> = body.chunks(1).collect();
    assert_eq!(judge(AnswerKind::JsonBody, &by_bytes), judge(AnswerKind::JsonBody, &[body]));
}

const KINDS: &[AnswerKind] = &[
    AnswerKind::NativeStream,
    AnswerKind::OpenAiStream,
    AnswerKind::ResponsesStream,
    AnswerKind::MessagesStream,
    AnswerKind::JsonBody,
    AnswerKind::Opaque,
];

/// Whole, broken and misleading parts of every dialect.
const ANSWER_PIECES: &[&str] = &[
    "{\"done\":false}\n",
    "{\"done\":true,\"eval_count\":3}",
    "{\"error\":\"boom \\u00e9\"}\n",
    "\n",
    "\r\n",
    "\r",
    "x",
    "{\"message\":{\"content\":\"{\\\"done\\\":true}\"},\"done\":",
    "true",
    "}\n",
    "1",
    " ",
    "data: [DONE]\n\n",
    "data:[DONE]",
    "\n\n",
    "data: {\"choices\":[]}\n\n",
    "data: {\"error\":{\"message\":\"no\"}}\r\n\r\n",
    ": hi\n\n",
    "event: message_stop\n",
    "data: {\"type\":\"message_stop\"}\n\n",
    "data: {\"type\":\n",
    "data: \"response.completed\"}\r\r",
    "event: error\ndata: {\"type\":\"error\",\"message\":\"m\"}\n\n",
    "data\n\n",
];

fn judge(kind: AnswerKind, chunks: &[&[u8]]) -> (ScanState, u64, Usage, Option<bool>, Verdict) {
    let mut scanner = AnswerScanner::new(kind);
    for chunk in chunks {
        scanner.feed(chunk);
    }
    let before = (scanner.state().clone(), scanner.records_before_error());
    (before.0, before.1, scanner.usage(), scanner.done_member(), scanner.finish())
}
