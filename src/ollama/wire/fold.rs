//! Folds a streamed native answer into the one object that `"stream": false` would have given.
//!
//! As Ollama does it (`server/routes.go`): the last record, with the texts of all records joined, their tool calls and
//! logprobs in one list. The bytes of texts and values are taken over as they are. Memory holds what was folded and one
//! record, never the stream. Called for an answer as an artifact, on a thread that may wait for a file.

use std::io::{self, BufRead, BufReader, Read};

use super::json::{Kind, is_space};
use super::members::{Document, Member, has_elements, open};
use super::text::key_is;

/// How much of a stream is read at once.
const READ_BYTES: usize = 64 * 1024;

/// The members of a record in Ollama's order (`api/types.go`); what is not named here stays where it is.
const RECORD_ORDER: &[&str] = &[
    "model",
    "remote_model",
    "remote_host",
    "created_at",
    "message",
    "response",
    "thinking",
    "done",
    "done_reason",
    "context",
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
    "tool_calls",
    "_debug_info",
    "logprobs",
];

/// The members of a `message` in Ollama's order.
const MESSAGE_ORDER: &[&str] =
    &["role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"];

/// Folds the bytes of a whole streamed answer of `/api/chat` or `/api/generate`.
///
/// `None` if it is anything else: events, an error, a stream without its last record, or with more behind that.
///
/// # Errors
///
/// Whatever reading gives.
pub fn fold(answer: impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut answer = BufReader::with_capacity(READ_BYTES, answer);
    let mut folded = Folded::default();
    let mut last: Option<Vec<u8>> = None;
    let mut line = Vec::new();
    loop {
        // Looked at before it is read: what begins otherwise may be one line of many megabytes.
        if !answer.fill_buf()?.first().is_none_or(|byte| *byte == b'{' || is_space(*byte)) {
            return Ok(None);
        }
        line.clear();
        if answer.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.iter().all(|byte| is_space(*byte)) {
            continue;
        }
        match folded.take(&line) {
            _ if last.is_some() => return Ok(None),
            None => return Ok(None),
            Some(Place::Inside) => {}
            Some(Place::Last) => last = Some(std::mem::take(&mut line)),
        }
    }
    Ok(last.and_then(|last| folded.finish(&last)))
}

/// Where a record stands in its stream.
enum Place {
    Inside,
    Last,
}

/// What grew over the records, as JSON without the quotes and brackets around it.
#[derive(Default)]
struct Folded {
    has_message: bool,
    role: Option<Vec<u8>>,
    content: Vec<u8>,
    message_thinking: Vec<u8>,
    message_calls: Vec<u8>,
    response: Vec<u8>,
    thinking: Vec<u8>,
    calls: Vec<u8>,
    logprobs: Vec<u8>,
}

impl Folded {
    /// Takes one record; `None` if it is none.
    fn take(&mut self, line: &[u8]) -> Option<Place> {
        let mut place = Place::Inside;
        for (member, key) in members_of(line)? {
            let value = &line[member.value.clone()];
            match name_in(RECORD_ORDER, key) {
                Some("message") => self.take_message(value)?,
                Some("response") => add_text(&mut self.response, &member, value),
                Some("thinking") => add_text(&mut self.thinking, &member, value),
                Some("tool_calls") => add_list(&mut self.calls, &member, value),
                Some("logprobs") => add_list(&mut self.logprobs, &member, value),
                Some("done") if value == b"true" => place = Place::Last,
                Some("done") => place = Place::Inside,
                _ if key_is(key, "error") && member.kind != Kind::Null => return None,
                _ => {}
            }
        }
        Some(place)
    }

    fn take_message(&mut self, message: &[u8]) -> Option<()> {
        for (member, key) in members_of(message)? {
            let value = &message[member.value.clone()];
            match name_in(MESSAGE_ORDER, key) {
                Some("role") if self.role.is_none() => self.role = Some(value.to_vec()),
                Some("content") => add_text(&mut self.content, &member, value),
                Some("thinking") => add_text(&mut self.message_thinking, &member, value),
                Some("tool_calls") => add_list(&mut self.message_calls, &member, value),
                _ => {}
            }
        }
        self.has_message = true;
        Some(())
    }

    /// The last record with everything in its place.
    fn finish(self, last: &[u8]) -> Option<Vec<u8>> {
        let mut record = Object::of(RECORD_ORDER, last)?;
        if self.has_message {
            let message = record.get("message").unwrap_or_else(|| b"{}".to_vec());
            let mut message = Object::of(MESSAGE_ORDER, &message)?;
            if let Some(role) = self.role {
                message.put("role", role);
            }
            message.put("content", quoted(&self.content));
            message.put_grown("thinking", &self.message_thinking, quoted);
            message.put_grown("tool_calls", &self.message_calls, bracketed);
            record.put("message", message.written());
        }
        record.put_grown("response", &self.response, quoted);
        record.put_grown("thinking", &self.thinking, quoted);
        record.put_grown("tool_calls", &self.calls, bracketed);
        record.put_grown("logprobs", &self.logprobs, bracketed);
        Some(record.written())
    }
}

/// The members of the object in `bytes` with their keys; `None` if it is not one object and nothing more.
fn members_of(bytes: &[u8]) -> Option<Vec<(Member, &[u8])>> {
    let Document::Object(mut members) = open(bytes).ok()? else { return None };
    let mut found = Vec::new();
    for member in &mut members {
        let member = member.ok()?;
        let key = &bytes[member.key.clone()];
        found.push((member, key));
    }
    members.is_alone().then_some(found)
}

fn name_in(order: &[&'static str], key: &[u8]) -> Option<&'static str> {
    order.iter().copied().find(|name| key_is(key, name))
}

/// Joins texts by their bytes: escapes are whole within each.
fn add_text(text: &mut Vec<u8>, member: &Member, value: &[u8]) {
    if member.kind == Kind::String {
        text.extend_from_slice(&value[1..value.len() - 1]);
    }
}

fn add_list(list: &mut Vec<u8>, member: &Member, value: &[u8]) {
    if member.kind == Kind::Array && has_elements(value) {
        if !list.is_empty() {
            list.push(b',');
        }
        list.extend_from_slice(value[1..value.len() - 1].trim_ascii());
    }
}

fn quoted(text: &[u8]) -> Vec<u8> {
    [b"\"", text, b"\""].concat()
}

fn bracketed(list: &[u8]) -> Vec<u8> {
    [b"[", list, b"]"].concat()
}

/// An object that is put together: its members as JSON, in their order.
struct Object {
    order: &'static [&'static str],
    members: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Object {
    fn of(order: &'static [&'static str], bytes: &[u8]) -> Option<Object> {
        let members = members_of(bytes)?.into_iter();
        let members = members.map(|(member, key)| (key.to_vec(), bytes[member.value].to_vec()));
        Some(Object { order, members: members.collect() })
    }

    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.members.iter().find(|(key, _)| key_is(key, name)).map(|(_, value)| value.clone())
    }

    /// Puts what grew in place of the last record's share; Ollama leaves out what is empty.
    fn put_grown(&mut self, name: &str, grown: &[u8], written: fn(&[u8]) -> Vec<u8>) {
        if !grown.is_empty() {
            self.put(name, written(grown));
        }
    }

    /// Replaces a member, or adds it behind the last that Ollama writes before it.
    fn put(&mut self, name: &str, value: Vec<u8>) {
        if let Some(member) = self.members.iter_mut().find(|(key, _)| key_is(key, name)) {
            member.1 = value;
            return;
        }
        let rank = self.rank(quoted(name.as_bytes()).as_slice());
        let is_before = |key: &[u8]| self.rank(key).is_some() && self.rank(key) < rank;
        let at = self.members.iter().rposition(|(key, _)| is_before(key)).map_or(0, |at| at + 1);
        self.members.insert(at, (quoted(name.as_bytes()), value));
    }

    fn rank(&self, key: &[u8]) -> Option<usize> {
        self.order.iter().position(|name| key_is(key, name))
    }

    fn written(&self) -> Vec<u8> {
        let members: Vec<Vec<u8>> =
            self.members.iter().map(|(key, value)| [key, &b":"[..], value].concat()).collect();
        [b"{", members.join(&b","[..]).as_slice(), b"}"].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn folded(stream: impl AsRef<[u8]>) -> Option<String> {
        fold(stream.as_ref()).unwrap().map(|bytes| String::from_utf8(bytes).unwrap())
    }

    /// The body of a recorded answer, without its head and the sizes of its chunks.
    fn recorded(name: &str) -> String {
        let path = format!("{}/tests/fixtures/ollama-wire/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let exchange = std::fs::read_to_string(path).unwrap();
        let answer = exchange.split_once("---- answer").unwrap().1;
        let lines = answer.lines().filter(|line| line.starts_with('{'));
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// The names in their order, and the value without what differs from run to run.
    fn comparable(object: &str) -> (Vec<String>, Value) {
        let keys = members_of(object.as_bytes()).unwrap();
        let keys = keys.iter().map(|(_, key)| String::from_utf8(key.to_vec()).unwrap()).collect();
        let mut value: Value = serde_json::from_str(object).unwrap();
        let map = value.as_object_mut().unwrap();
        map.retain(|key, _| !key.ends_with("_duration") && key != "created_at");
        (keys, value)
    }

    #[test]
    fn a_recorded_stream_becomes_the_recorded_unstreamed_answer() {
        let one = folded(recorded("chat-stream")).unwrap();
        assert_eq!(comparable(&one), comparable(recorded("chat-ns").trim()));
        let generated: Value =
            serde_json::from_str(&folded(recorded("generate-stream")).unwrap()).unwrap();
        assert_eq!(generated["response"], "Hi-level\nHi");
        assert_eq!(generated["context"].as_array().unwrap().len(), 14);
    }

    #[test]
    fn an_unstreamed_answer_stays_as_it_is() {
        for name in ["chat-ns", "load-generate", "unload", "q1-gemma-b-ns"] {
            let answer = recorded(name);
            assert_eq!(folded(&answer).as_deref(), Some(answer.trim()), "{name}");
        }
    }

    #[test]
    fn thinking_tool_calls_and_logprobs_are_gathered() {
        let stream = concat!(
            r#"{"model":"m","message":{"role":"assistant","content":"","thinking":"h\u006d"},"done":false}"#,
            "\r\n\n",
            r#"{"model":"m","message":{"role":"x","content":"a","thinking":"\n","tool_calls":[{"n":1.0}, {"n":2}]},"done":false,"logprobs":[{"l":-0.10}]}"#,
            "\n",
            r#"{"model":"m","message":{"content":"é","tool_calls":[{"n":3}]},"done":false,"logprobs":[{"l":2}]}"#,
            "\n",
            r#"{"model":"m","new":{"x":1},"message":{"content":"","later":1},"done":true,"eval_count":3}"#,
        );
        let wanted = concat!(
            r#"{"model":"m","new":{"x":1},"message":{"role":"assistant","content":"aé","thinking":"h\u006d\n","#,
            r#""tool_calls":[{"n":1.0}, {"n":2},{"n":3}],"later":1},"done":true,"eval_count":3,"#,
            r#""logprobs":[{"l":-0.10},{"l":2}]}"#,
        );
        let found = folded(stream).unwrap();
        let message = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(message(&found), message(wanted));
        assert!(found.contains(r#""message":{"role":"assistant","content":"aé","thinking":"#));
        let generate = "{\"response\":\"a\",\"thinking\":\"t\",\"done\":false}\n{\"response\":\"b\",\"done\":true}\n";
        assert_eq!(folded(generate).unwrap(), r#"{"response":"ab","thinking":"t","done":true}"#);
    }

    #[test]
    fn anything_else_is_not_folded() {
        for other in [
            "",
            "\n \n",
            "data: {\"done\":true}\n\n",
            "[{\"done\":true}]",
            "{\"done\":false}\n",
            "{\"done\":true}\n{\"done\":true}\n",
            "{\"done\":true} x\n",
            "{\"done\":false}\n{\"error\":\"boom\"}\n",
            "{\"done\":false}\nnope\n{\"done\":true}\n",
            "{\"done\":true",
            "{\"message\":1,\"done\":true}",
        ] {
            assert_eq!(folded(other), None, "{other:?}");
        }
        for name in ["v1-chat-stream", "runner-killed-midstream", "unknown-model"] {
            assert_eq!(folded(recorded(name)), None, "{name}");
        }
    }

    /// A stream that never ends where it does not have to be read.
    #[test]
    fn other_streams_are_left_alone_at_once() {
        let endless = io::repeat(b'x');
        assert_eq!(fold(endless).unwrap(), None);
    }

    #[test]
    fn a_stream_of_many_megabytes_is_folded() {
        let part =
            "{\"message\":{\"role\":\"assistant\",\"content\":\"0123456789\"},\"done\":false}\n";
        let last = "{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true}\n";
        let stream = [part.repeat(100_000).as_str(), last].concat();
        assert!(folded(&stream).unwrap().len() > 1_000_000);
    }

    proptest! {
        #[test]
        fn texts_are_joined_whatever_they_hold(texts in prop::collection::vec(any::<String>(), 0..8)) {
            let mut stream = String::new();
            for text in &texts {
                let part = json!({"message": {"role": "assistant", "content": text}, "done": false});
                stream.push_str(&format!("{part}\n"));
            }
            stream.push_str("{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true}\n");
            let found: Value = serde_json::from_str(&folded(&stream).unwrap()).unwrap();
            prop_assert_eq!(found["message"]["content"].as_str().unwrap(), texts.concat());
        }

        #[test]
        fn any_bytes_are_folded_or_not_without_a_panic(
            pieces in prop::collection::vec(prop::sample::select(PIECES), 0..10),
            noise in any::<Vec<u8>>(),
        ) {
            let stream = [pieces.concat().as_bytes(), &noise].concat();
            if let Some(one) = fold(stream.as_slice()).unwrap() {
                prop_assert!(members_of(&one).is_some());
            }
            drop(fold(pieces.concat().as_bytes()));
        }
    }

    const PIECES: &[&str] = &[
        "{\"done\":true}",
        "{\"done\":false,\"message\":{\"content\":\"x\\ud800\",\"tool_calls\":[ ]}}",
        "{\"response\":\"\\\"\",\"logprobs\":[null , {}],\"done\":true}",
        "{\"response\":1,\"thinking\":null}",
        "\n",
        "{",
        "}",
        " ",
    ];
}
