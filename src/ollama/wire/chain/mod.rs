//! Whether a conversation goes on, told without keeping a word of it: a hash for each beginning of a request's messages.
//!
//! Each hash covers all messages up to its own (`h_i = H(h_{i-1}, message_i)`), so two are equal only where the whole
//! beginnings are. A request goes on from a served one if the served one's last hash is among its own, its own last one left
//! out: what is equal is a repetition. Called once for each queued request; who compares is `domain::threads`.
//!
//! What is hashed is what the model reads of a message and every client sends again as it was: the role, the texts of the
//! content, its other parts and pictures. Text is hashed as it decodes, so escapes, white space, the order of members and
//! nulls make no difference, nor does a text stand alone or as the only part of a list. Left out, because clients drop or move
//! it from turn to turn: thoughts, and the marks of Anthropic's prompt cache. Left out too: `tool_calls`, which some libraries
//! write anew (a message that holds nothing else still counts as one), and the `system` and `instructions` beside the
//! messages, which often hold the time of day.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Range;

use serde_json::Value;

use super::json::Kind;
use super::members::{Document, Member, elements, last_member, open};
use super::text::{decode, key_names};
use crate::domain::dialect::Dialect;

#[cfg(test)]
mod tests;

/// Hashes handed out, the last ones: a conversation grows by a few messages from one request to the next, an agent's by the
/// results of a few tools.
pub const LINKS_MAX: usize = 256;

/// Larger bodies have no chain: it is only a hint, and other clients wait meanwhile.
///
/// This much takes 5 ms in long texts or pictures, 150 ms in messages of a few words, and 300 ms in the smallest pieces
/// somebody could think of (measured, optimised); a million tokens of talk are half of it.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Tokens of a `context` that count as one message: so the last [`LINKS_MAX`] cover 16,384 tokens.
const TOKENS_PER_LINK: usize = 64;

/// The role of a text that stands for a whole list of messages.
const USER: &str = "user";

/// Hashes the beginnings of a request's messages, the shortest first, the last one for all of them.
///
/// Beginnings of nothing but system messages are left out, as many requests share them. Empty where a request has no
/// messages, where the body is not whole JSON, and above 8 MiB. `context` of a generate counts in steps of 64 tokens, and
/// what is left over not at all: the context of a request is the beginning of the next one's.
///
/// `keys` must be the same for hashes that are compared; one `RandomState` for the process keeps clients from making theirs
/// collide with others'. Equal keys and requests give equal hashes.
pub fn chain<S: BuildHasher>(dialect: Dialect, body: &[u8], keys: &S) -> Vec<u64> {
    let name = match dialect {
        Dialect::Chat | Dialect::OpenAiChat | Dialect::Messages => "messages",
        Dialect::Responses => "input",
        Dialect::Generate => "context",
        Dialect::OpenAiCompletions
        | Dialect::Transcription
        | Dialect::Images
        | Dialect::Other(_)
        | Dialect::Embed
        | Dialect::Embeddings
        | Dialect::OpenAiEmbeddings => return Vec::new(),
    };
    let found = if body.len() > BODY_BYTES_MAX { None } else { last_member(body, name) };
    let Some((kind, value)) = found else { return Vec::new() };
    let mut links = Links { keys, last: 0, listed: VecDeque::new(), has_turn: false };
    if kind == Kind::Array && dialect == Dialect::Generate {
        links.take_tokens(value);
    } else if kind == Kind::Array {
        elements(value).for_each(|message| links.take_message(message));
    } else if kind == Kind::String && dialect == Dialect::Responses {
        let turn = turn(keys, USER, content(keys, kind, value), 0);
        links.add(turn, false);
    }
    links.listed.into()
}

/// The chain while it grows.
struct Links<'a, S> {
    keys: &'a S,
    last: u64,
    listed: VecDeque<u64>,
    /// Whether anything but system messages has come.
    has_turn: bool,
}

impl<S: BuildHasher> Links<'_, S> {
    fn add(&mut self, turn: u64, is_system: bool) {
        self.last = self.keys.hash_one((self.last, turn));
        self.has_turn |= !is_system;
        if !self.has_turn {
            return;
        }
        if self.listed.len() == LINKS_MAX {
            self.listed.pop_front();
        }
        self.listed.push_back(self.last);
    }

    fn take_tokens(&mut self, context: &[u8]) {
        let tokens: Vec<&[u8]> = elements(context).collect();
        for step in tokens.chunks_exact(TOKENS_PER_LINK) {
            let turn = self.keys.hash_one(step);
            self.add(turn, false);
        }
    }

    fn take_message(&mut self, bytes: &[u8]) {
        let Ok(Document::Object(members)) = open(bytes) else {
            let turn = self.keys.hash_one(bytes);
            return self.add(turn, false);
        };
        let mut message = Message::default();
        members.map_while(Result::ok).for_each(|member| message.take(bytes, member));
        let text = |(_, range): (Kind, Range<usize>)| decode(&bytes[range]);
        let kind = message.kind.map(text);
        if message.role.is_none() && kind.as_deref().is_some_and(is_thought) {
            return;
        }
        let role = message.role.map(text).or(kind).unwrap_or_default();
        let hash = |(kind, range): (Kind, Range<usize>)| content(self.keys, kind, &bytes[range]);
        let content = message.content.or(message.output).map_or(0, hash);
        let images = message.images.map_or(0, hash);
        let is_system = ["system", "developer"].iter().any(|name| role.eq_ignore_ascii_case(name));
        self.add(turn(self.keys, &role, content, images), is_system);
    }
}

/// Where the parts of a message are that count. The items of `/v1/responses` are no messages all: the results of tools have
/// a `type` in place of a role and an `output` in place of content.
#[derive(Default)]
struct Message {
    role: Option<(Kind, Range<usize>)>,
    kind: Option<(Kind, Range<usize>)>,
    content: Option<(Kind, Range<usize>)>,
    output: Option<(Kind, Range<usize>)>,
    images: Option<(Kind, Range<usize>)>,
}

impl Message {
    fn take(&mut self, bytes: &[u8], member: Member) {
        let fields = [
            ("role", &mut self.role),
            ("type", &mut self.kind),
            ("content", &mut self.content),
            ("output", &mut self.output),
            ("images", &mut self.images),
        ];
        let key = &bytes[member.key];
        if member.kind != Kind::Null
            && let Some((_, field)) = fields.into_iter().find(|(name, _)| key_names(key, name))
        {
            *field = Some((member.kind, member.value));
        }
    }
}

/// One message as a number. No content and empty content are the same, as they are to the model; so are pictures.
fn turn<S: BuildHasher>(keys: &S, role: &str, content: u64, images: u64) -> u64 {
    keys.hash_one((role, content, images))
}

/// Content as a number: 0 where there is none, else a hash of its parts in their order.
fn content<S: BuildHasher>(keys: &S, kind: Kind, bytes: &[u8]) -> u64 {
    let mut hasher = keys.build_hasher();
    let mut count = 0_u64;
    let mut add = |part: Option<u64>| {
        if let Some(part) = part {
            part.hash(&mut hasher);
            count += 1;
        }
    };
    match kind {
        Kind::Array => elements(bytes).for_each(|part| add(part_of_list(keys, part))),
        Kind::String => add(text(keys, &decode(bytes))),
        Kind::Object | Kind::Number | Kind::Bool | Kind::Null => add(Some(value(keys, bytes))),
    }
    if count == 0 { 0 } else { hasher.finish() }
}

/// One part of a list: a text whatever the dialect calls it, or anything else. `None` for what does not count.
fn part_of_list<S: BuildHasher>(keys: &S, bytes: &[u8]) -> Option<u64> {
    let Ok(Document::Object(members)) = open(bytes) else { return Some(value(keys, bytes)) };
    let (mut kind, mut words) = (String::new(), None);
    for member in members.map_while(Result::ok).filter(|member| member.kind == Kind::String) {
        let key = &bytes[member.key];
        if key_names(key, "type") {
            kind = decode(&bytes[member.value]);
        } else if key_names(key, "text") {
            words = Some(member.value);
        }
    }
    match words {
        Some(words) if matches!(kind.as_str(), "text" | "input_text" | "output_text") => {
            text(keys, &decode(&bytes[words]))
        }
        _ if is_thought(&kind) => None,
        _ => Some(value(keys, bytes)),
    }
}

fn is_thought(kind: &str) -> bool {
    matches!(kind, "thinking" | "redacted_thinking" | "reasoning")
}

fn text<S: BuildHasher>(keys: &S, text: &str) -> Option<u64> {
    (!text.is_empty()).then(|| keys.hash_one(("text", text)))
}

/// Any JSON value as a number, whatever the order of its members. What `serde_json` refuses where Go does not (lone
/// surrogates, bad UTF-8, deep nesting) counts as the bytes it is: clients repeat themselves to the byte.
fn value<S: BuildHasher>(keys: &S, bytes: &[u8]) -> u64 {
    let mut hasher = keys.build_hasher();
    match serde_json::from_slice::<Value>(bytes) {
        Ok(value) => feed(&value, &mut hasher),
        Err(_) => bytes.hash(&mut hasher),
    }
    hasher.finish()
}

/// Recursion is bounded by `serde_json`, which refuses more than 128 levels.
fn feed(value: &Value, hasher: &mut impl Hasher) {
    match value {
        Value::Null => "null".hash(hasher),
        Value::Bool(is_true) => is_true.hash(hasher),
        Value::Number(number) => number.hash(hasher),
        Value::String(text) => ("string", text).hash(hasher),
        Value::Array(list) => {
            ("array", list.len()).hash(hasher);
            list.iter().for_each(|element| feed(element, hasher));
        }
        Value::Object(map) => {
            let counts =
                |(key, value): &(&String, &Value)| !value.is_null() && *key != "cache_control";
            let mut members: Vec<_> = map.iter().filter(counts).collect();
            members.sort_unstable_by_key(|(key, _)| *key);
            ("object", members.len()).hash(hasher);
            for (key, value) in members {
                key.hash(hasher);
                feed(value, hasher);
            }
        }
    }
}
