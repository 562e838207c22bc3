//! What makes no difference to a chain, what does, and that any bytes do no harm.

use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::hash::{BuildHasherDefault, DefaultHasher, RandomState};

const DIALECTS: [Dialect; 5] =
    [Dialect::Chat, Dialect::OpenAiChat, Dialect::Messages, Dialect::Responses, Dialect::Generate];

fn links(dialect: Dialect, body: impl AsRef<[u8]>) -> Vec<u64> {
    chain(dialect, body.as_ref(), &BuildHasherDefault::<DefaultHasher>::default())
}

/// The chain of these messages, written as JSON.
fn of(messages: &str) -> Vec<u64> {
    links(Dialect::Chat, format!(r#"{{"model":"m","messages":{messages}}}"#))
}

/// Whether the second request goes on from the first.
fn goes_on(earlier: &[u64], later: &[u64]) -> bool {
    let full = earlier.last().expect("a chain");
    later.split_last().is_some_and(|(_, beginnings)| beginnings.contains(full))
}

#[test]
fn a_request_goes_on_from_its_beginnings_and_not_from_its_equal() {
    let user = r#"{"role":"user","content":"hi"}"#;
    let first = of(&format!("[{user}]"));
    let next = of(&format!(r#"[{user},{{"role":"assistant","content":"ho"}},{user}]"#));
    assert_eq!((first.len(), next.len()), (1, 3));
    assert!(goes_on(&first, &next));
    assert!(!goes_on(&next, &first) && !goes_on(&first, &first) && !goes_on(&next, &next));
    assert_eq!(first, of(&format!("[{user}]")));
}

#[test]
fn system_messages_alone_are_no_beginning() {
    let system = r#"{"role":"System","content":"be kind"},{"role":"developer","content":"x"}"#;
    assert!(of(&format!("[{system}]")).is_empty());
    let asked = of(&format!(r#"[{system},{{"role":"user","content":"hi"}}]"#));
    assert_eq!(asked.len(), 1);
    assert_ne!(asked, of(r#"[{"role":"user","content":"hi"}]"#), "they count all the same");
    let late = of(r#"[{"role":"user","content":"hi"},{"role":"system","content":"now"}]"#);
    assert_eq!(late.len(), 2);
}

#[test]
fn another_spelling_is_the_same_message() {
    let plain = of(r#"[{"role":"user","content":"<é> \"x\" 😀"},{"role":"assistant"}]"#);
    for other in [
        r#" [ { "content" : "<é> \"x\" 😀" ,"role":"user"} , {"role":"assistant","content":""} ]"#,
        r#"[{"role":"user","content":"\u003c\u00e9\u003E \u0022x\u0022 \ud83d\ude00","name":null},{"role":"assistant","content":null}]"#,
        r#"[{"Role":"x","ROLE":"user","c\u006fntent":"<é> \"x\" 😀"},{"role":"assistant","content":[]}]"#,
        r#"[{"role":"user","content":[{"type":"text","text":"<é> \"x\" 😀"}]},{"role":"assistant","tool_calls":[1]}]"#,
        r#"[{"role":"user","content":[{"text":"<é> \"x\" 😀","cache_control":{"type":"ephemeral"},"type":"text"}]},
            {"role":"assistant","content":[{"type":"thinking","thinking":"hm"}],"thinking":"hm","images":[]}]"#,
    ] {
        assert_eq!(of(other), plain, "{other}");
    }
    let doubled =
        r#"{"messages":[],"messages":[{"role":"user","content":"x"}],"Messages":null} tail"#;
    assert_eq!(links(Dialect::Chat, doubled), of(r#"[{"role":"user","content":"x"}]"#));
}

#[test]
fn another_message_is_another_chain() {
    let all = [
        r#"[{"role":"user","content":"a"}]"#,
        r#"[{"role":"tool","content":"a"}]"#,
        r#"[{"role":"user","content":"b"}]"#,
        r#"[{"role":"user","content":"a "}]"#,
        r#"[{"role":"user","content":["a"]}]"#,
        r#"[{"role":"user","content":{"text":"a"}}]"#,
        r#"[{"role":"user","content":"a","images":["eA=="]}]"#,
        r#"[{"role":"user","content":"a","images":["eB=="]}]"#,
        r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]"#,
        r#"[{"role":"user","content":[{"type":"text","text":"b"},{"type":"text","text":"a"}]}]"#,
        r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:1"}}]}]"#,
        r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:2"}}]}]"#,
        r#"[{"role":"user","content":""}]"#,
        r#"["a"]"#,
        r#"[null]"#,
    ];
    let chains: BTreeSet<_> = all.iter().map(|messages| of(messages)).collect();
    assert_eq!(chains.len(), all.len());
    assert!(chains.iter().all(|chain| chain.len() == 1));
}

#[test]
fn parts_of_content_are_read_whatever_the_order_of_their_members() {
    let result = |rest: &str| {
        of(&format!(r#"[{{"role":"user","content":[{{"type":"tool_result",{rest}}}]}}]"#))
    };
    let plain = result(r#""tool_use_id":"t","content":[{"type":"text","text":"12"}]"#);
    let marked = r#""content":[{"cache_control":{"type":"ephemeral"},"text":"1\u0032","type":"text"}],
        "is_error":null,"tool_use_id":"t""#;
    assert_eq!(result(marked), plain);
    assert_ne!(result(r#""tool_use_id":"t","content":[{"type":"text","text":"13"}]"#), plain);
    // What serde_json does not read counts as its bytes.
    let odd = r#""content":"\ud800""#;
    assert_eq!(result(odd), result(odd));
    assert_ne!(result(odd), result(r#""content":"\ud801""#));
}

/// `/v1/responses` has items that are no messages, and may have a text in place of all.
#[test]
fn responses_go_on_over_items() {
    let input = |input: &str| links(Dialect::Responses, format!(r#"{{"input":{input}}}"#));
    let first = input(r#""what is it""#);
    let asked =
        r#"{"type":"message","role":"user","content":[{"type":"input_text","text":"what is it"}]}"#;
    let call = r#"{"type":"function_call","name":"f","arguments":"{}","call_id":"c"}"#;
    let output = |text: &str| format!(r#"{{"type":"function_call_output","output":"{text}"}}"#);
    assert_eq!(input(&format!("[{asked}]")), first);
    let thought = r#"{"type":"reasoning","summary":[]}"#;
    let second = input(&format!("[{asked},{call},{}]", output("1")));
    assert_eq!(input(&format!("[{asked},{thought},{call},{}]", output("1"))), second);
    assert_ne!(input(&format!("[{asked},{call},{}]", output("2"))), second);
    assert!(goes_on(&first, &second));
}

/// The context of a generate holds the one before it, and some hundred tokens more.
#[test]
fn contexts_go_on_by_their_tokens() {
    let context = |count: u32| {
        let tokens: Vec<u32> = (0..count).collect();
        links(Dialect::Generate, json!({ "prompt": "x", "context": tokens }).to_string())
    };
    assert!(context(63).is_empty());
    assert_eq!((context(64).len(), context(127).len(), context(64 * 300).len()), (1, 1, LINKS_MAX));
    assert!(goes_on(&context(100), &context(170)) && goes_on(&context(5_000), &context(20_000)));
    assert!(links(Dialect::Generate, r#"{"prompt":"x"}"#).is_empty());
}

#[test]
fn only_the_last_beginnings_are_handed_out_but_all_messages_count() {
    let talk = |first: &str, count: usize| {
        let messages: Vec<_> = (0..count)
            .map(|number| json!({ "role": "user", "content": if number == 0 { first } else { "go on" } }))
            .collect();
        links(Dialect::Chat, json!({ "messages": messages }).to_string())
    };
    let long = talk("a", 1_000);
    assert_eq!(long.len(), LINKS_MAX);
    assert!(goes_on(&talk("a", 998), &long));
    assert!(!goes_on(&talk("b", 998), &long));
}

#[test]
fn no_messages_no_chain() {
    for body in
        ["", "null", "[]", "{}", r#"{"messages":{}}"#, r#"{"messages":[]}"#, r#"{"messages":"x"}"#]
            .into_iter()
            .chain([
                r#"{"messages":[{"role":"user"}]"#,
                r#"{"messages":null,"input":5,"context":""}"#,
            ])
    {
        for dialect in DIALECTS {
            assert!(links(dialect, body).is_empty(), "{dialect:?} {body}");
        }
    }
    let messages = r#"{"messages":[{"role":"user","content":"x"}],"prompt":"x"}"#;
    for dialect in [Dialect::OpenAiCompletions, Dialect::Transcription, Dialect::Embed] {
        assert!(links(dialect, messages).is_empty());
    }
    let large = format!(r#"{{"messages":[{{"content":"{}"}}]}}"#, "x".repeat(BODY_BYTES_MAX));
    assert!(links(Dialect::Chat, large).is_empty());
}

/// A client must not be able to make up messages that look like another's.
#[test]
fn other_keys_make_other_hashes() {
    let body = br#"{"messages":[{"role":"user","content":"x"}]}"#;
    let keys = RandomState::new();
    assert_eq!(chain(Dialect::Chat, body, &keys), chain(Dialect::Chat, body, &keys));
    assert_ne!(chain(Dialect::Chat, body, &keys), chain(Dialect::Chat, body, &RandomState::new()));
}

/// A JSON string with some of its characters escaped, as `dice` say.
fn escaped(text: &str, dice: &[bool]) -> String {
    let mut written = String::from("\"");
    for (character, is_escaped) in text.chars().zip(dice.iter().cycle()) {
        let mut units = [0; 2];
        if *is_escaped || character.is_control() || character == '"' || character == '\\' {
            for unit in character.encode_utf16(&mut units) {
                written += &format!("\\u{unit:04x}");
            }
        } else {
            written.push(character);
        }
    }
    written + "\""
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// However a client's library writes the same messages, they are the same; each request goes on from the shorter ones
    /// and from no other.
    #[test]
    fn only_what_is_said_counts(
        said in prop::collection::vec((prop::sample::select(vec!["user", "assistant", "tool"]), any::<String>()), 1..8),
        dice in prop::collection::vec(any::<bool>(), 1..30),
        space in "[ \t\r\n]{0,3}",
    ) {
        let plain: Vec<_> =
            said.iter().map(|(role, text)| json!({ "role": role, "content": text })).collect();
        let whole = links(Dialect::OpenAiChat, json!({ "messages": plain }).to_string());
        let other: Vec<_> = said.iter().zip(dice.iter().cycle()).map(|((role, text), is_turned)| {
            let role = format!("{space}\"role\"{space}:{}", escaped(role, &dice));
            let text = format!("\"content\":{space}{}{space}", escaped(text, &dice));
            if *is_turned { format!("{{{text},{role},\"name\":null}}") } else { format!("{{{role},{text}}}") }
        }).collect();
        let other = format!("{{\"messages\":[{}],\"model\":\"m\"}}", other.join(&format!("{space},")));
        prop_assert_eq!(&links(Dialect::OpenAiChat, other), &whole);
        prop_assert_eq!(whole.len(), said.len());
        for count in 1..=plain.len() {
            let shorter = links(Dialect::OpenAiChat, json!({ "messages": plain[..count] }).to_string());
            prop_assert_eq!(shorter.as_slice(), &whole[..count]);
            prop_assert_eq!(goes_on(&shorter, &whole), count < plain.len());
            let mut changed = plain[..count].to_vec();
            changed[0]["content"] = json!(format!("{}!", said[0].1));
            let changed = links(Dialect::OpenAiChat, json!({ "messages": changed }).to_string());
            prop_assert!(!goes_on(&changed, &whole));
        }
    }

    #[test]
    fn no_bytes_make_a_chain_panic(
        noise in any::<Vec<u8>>(),
        piece in prop::collection::vec(prop::sample::select(
            vec!["{", "}", "[", "]", ",", ":", "\"role\"", "\"content\"", "\"type\"", "\"text\"", "\"\\ud8", "null", "-1"],
        ), 0..20),
    ) {
        for dialect in DIALECTS {
            for value in [noise.as_slice(), piece.concat().as_bytes()] {
                for name in ["messages", "input", "context"] {
                    let body = [format!("{{\"{name}\":[").as_bytes(), value, b"]}"].concat();
                    drop(links(dialect, body));
                    let body = [format!("{{\"{name}\":").as_bytes(), value, b"}"].concat();
                    drop(links(dialect, body));
                }
            }
        }
    }
}
