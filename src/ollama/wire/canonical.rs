//! Which requests are equal: SHA-256 keys over bodies whose order of keys, white space and escapes do not matter, and over
//! bytes as they are.
//!
//! In doubt two bodies are different: work that is done twice costs time, an answer to somebody else's question costs trust.
//! Nothing here recurses, and nothing is kept but digests. Admission calls it where duplicates, idempotency keys or attached
//! clients are looked for.

use super::json::{Kind, is_space};
use super::members::{Document, open};
use super::scanner::Scanner;
use super::text::{decode, folded, go_int, key_is, key_names, number};
use crate::domain::dialect::Dialect;
use memchr::memchr2;
use sha2::{Digest, Sha256};

/// Members of open objects that are held at once; more are no request that anybody repeats.
const MEMBERS_MAX: usize = 100_000;

/// The seed with which Ollama draws a new one each time (`sample/samplers.go`).
const RANDOM_SEED: i64 = -1;

/// A SHA-256.
pub type Fingerprint = [u8; 32];

/// The SHA-256 of `parts`, each with its length before it, so that no byte can move from one part to the next.
#[must_use]
pub fn fingerprint(parts: &[&[u8]]) -> Fingerprint {
    let mut hash = Sha256::new();
    for part in parts {
        put(&mut hash, part);
    }
    hash.finalize().into()
}

/// The key under which a JSON body equals another: `parts` (route, token, model file, foreman's fields) by their bytes, the
/// first value of `body` by its meaning, without a top-level `keep_alive`.
///
/// Strings count by what they spell, numbers by their digits (`1` and `1.0` differ). Where a key comes twice, in whatever
/// case, all its values count, in their order: Go merges some, takes the last of others, and skips a `null`.
///
/// A request without work (a load, an unload) lives by its `keep_alive`, and must not be compared by this.
///
/// `None` if there is no JSON value, or an object of more than [`MEMBERS_MAX`] members.
#[must_use]
pub fn duplicate_key(parts: &[&[u8]], body: &[u8]) -> Option<Fingerprint> {
    let meaning = meaning(body)?;
    let mut hash = Sha256::new();
    for part in parts {
        put(&mut hash, part);
    }
    hash.update(meaning);
    Some(hash.finalize().into())
}

/// Whether a request has one answer only: a `seed` where its route has one, or a `temperature` of 0.
///
/// A seed of -1 is none: Ollama then draws one.
#[must_use]
pub fn is_deterministic(dialect: Dialect, body: &[u8]) -> bool {
    let mut sampling = Sampling::default();
    let Some(()) = sampling.read(dialect, body) else { return false };
    sampling.seed.is_some_and(|seed| go_int(seed) != RANDOM_SEED)
        || sampling.temperature == Some(0.0)
}

fn put(hash: &mut Sha256, part: &[u8]) {
    let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
    hash.update(length.to_be_bytes());
    hash.update(part);
}

/// A container whose end has not come yet.
enum Open {
    Array(Sha256),
    Object {
        members: Vec<Entry>,
        /// The key whose value comes next.
        key: Option<String>,
    },
}

struct Entry {
    /// The key as Go compares it.
    folded: String,
    key: String,
    value: Fingerprint,
}

/// The digest of the first value in `body`.
fn meaning(body: &[u8]) -> Option<Fingerprint> {
    let body = first_value(body)?;
    let mut stack: Vec<Open> = Vec::new();
    let mut held = 0_usize;
    let mut at = 0;
    loop {
        // Everything between two tokens of a well-formed value is without meaning.
        at += body.get(at..)?.iter().position(|byte| !is_space(*byte) && !b",:".contains(byte))?;
        let (token, kind) = match *body.get(at)? {
            b'{' => {
                stack.push(Open::Object { members: Vec::new(), key: None });
                at += 1;
                continue;
            }
            b'[' => {
                stack.push(Open::Array(Sha256::new_with_prefix(b"a")));
                at += 1;
                continue;
            }
            b'}' | b']' => (at..at + 1, None),
            byte => (at..scalar_end(body, at)?, Kind::of(byte)),
        };
        at = token.end;
        let value = match kind {
            None => close(stack.pop()?, &mut held, stack.is_empty()),
            Some(kind) => {
                let text = &body[token];
                if let Some(Open::Object { key: key @ None, .. }) = stack.last_mut() {
                    *key = Some(decode(text));
                    continue;
                }
                scalar(kind, text)
            }
        };
        match stack.last_mut() {
            None => return Some(value),
            Some(Open::Array(hash)) => hash.update(value),
            Some(Open::Object { members, key }) => {
                held += 1;
                if held > MEMBERS_MAX {
                    return None;
                }
                let key = key.take()?;
                members.push(Entry { folded: folded(&key), key, value });
            }
        }
    }
}

/// The bytes of the first value, once it is known to be well formed.
fn first_value(body: &[u8]) -> Option<&[u8]> {
    let mut scanner = Scanner::default();
    let mut at = 0;
    while scanner.next(body, &mut at).ok()?.is_some() {}
    scanner.may_end().then(|| &body[..at])
}

/// Where the string, number or word that begins at `at` ends.
fn scalar_end(body: &[u8], mut at: usize) -> Option<usize> {
    if body[at] != b'"' {
        let ends = |byte: &u8| is_space(*byte) || b",]}".contains(byte);
        return Some(body[at..].iter().position(ends).map_or(body.len(), |length| at + length));
    }
    at += 1;
    loop {
        at += memchr2(b'"', b'\\', body.get(at..)?)?;
        if body[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

fn scalar(kind: Kind, text: &[u8]) -> Fingerprint {
    match kind {
        Kind::String => fingerprint(&[b"s", decode(text).as_bytes()]),
        Kind::Number => fingerprint(&[b"n", text]),
        Kind::Bool | Kind::Null | Kind::Object | Kind::Array => fingerprint(&[b"w", text]),
    }
}

/// The digest of a container that has ended; of the outermost one without `keep_alive`.
fn close(container: Open, held: &mut usize, is_outermost: bool) -> Fingerprint {
    let mut members = match container {
        Open::Array(hash) => return hash.finalize().into(),
        Open::Object { members, .. } => members,
    };
    *held = held.saturating_sub(members.len());
    members.retain(|entry| !is_outermost || entry.folded != "keep_alive");
    // Stable: values of one key stay in their order.
    members.sort_by(|left, right| left.folded.cmp(&right.folded));
    let mut hash = Sha256::new_with_prefix(b"o");
    for entry in members {
        put(&mut hash, entry.key.as_bytes());
        hash.update(entry.value);
    }
    hash.finalize().into()
}

/// What a body says about how its answer is drawn; as in Go the last member counts, and `null` takes it back.
#[derive(Default)]
struct Sampling {
    seed: Option<f64>,
    temperature: Option<f64>,
}

impl Sampling {
    /// `None` if the body is no object.
    fn read(&mut self, dialect: Dialect, body: &[u8]) -> Option<()> {
        let is_native = match dialect {
            Dialect::Chat | Dialect::Generate | Dialect::Embed | Dialect::Embeddings => true,
            Dialect::OpenAiChat
            | Dialect::OpenAiCompletions
            | Dialect::OpenAiEmbeddings
            | Dialect::Responses
            | Dialect::Messages
            | Dialect::Transcription
            | Dialect::Images
            | Dialect::Other(_) => false,
        };
        let has_seed = matches!(dialect, Dialect::OpenAiChat | Dialect::OpenAiCompletions);
        let Document::Object(members) = open(body).ok()? else { return None };
        for member in members {
            let member = member.ok()?;
            let (key, value) = (&body[member.key], &body[member.value]);
            if is_native && key_names(key, "options") {
                match member.kind {
                    Kind::Object => self.merge(value)?,
                    _ => *self = Sampling::default(),
                }
            } else if !is_native && key_names(key, "temperature") {
                self.temperature = given(member.kind, value);
            } else if has_seed && key_names(key, "seed") {
                self.seed = given(member.kind, value);
            }
        }
        Some(())
    }

    /// Takes over an `options` object; Go decodes a repeated one into the same map.
    fn merge(&mut self, options: &[u8]) -> Option<()> {
        let Document::Object(members) = open(options).ok()? else { return None };
        for member in members {
            let member = member.ok()?;
            let (key, value) = (&options[member.key], &options[member.value]);
            if key_is(key, "seed") {
                self.seed = given(member.kind, value);
            } else if key_is(key, "temperature") {
                self.temperature = given(member.kind, value);
            }
        }
        Some(())
    }
}

fn given(kind: Kind, value: &[u8]) -> Option<f64> {
    (kind == Kind::Number).then(|| number(value)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(body: &str) -> Option<Fingerprint> {
        duplicate_key(&[], body.as_bytes())
    }

    #[test]
    fn parts_cannot_run_into_each_other() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let found: String = fingerprint(&[]).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, empty);
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        assert_ne!(fingerprint(&[b"a"]), fingerprint(&[b"a", b""]));
        assert_ne!(duplicate_key(&[b"/a"], b"{}"), duplicate_key(&[b"/b"], b"{}"));
        assert_eq!(duplicate_key(&[b"/a"], b"{}"), duplicate_key(&[b"/a"], b" { } "));
    }

    #[test]
    fn order_space_escapes_and_keep_alive_do_not_matter() {
        let one =
            r#"{"model":"m","keep_alive":"5m","messages":[{"role":"user","content":"h\u0069\n"}]}"#;
        let two = "{ \"messages\" : [ {\"content\":\"hi\\n\",\"role\":\"user\"} ] ,\r\n\"m\\u006fdel\":\"m\"} junk";
        assert!(key(one).is_some());
        assert_eq!(key(one), key(two));
        assert_eq!(key(r#"{"Keep_Alive":1,"a":1}"#), key(r#"{"a":1}"#));
    }

    #[test]
    fn what_may_mean_something_else_is_not_equal() {
        for (one, two) in [
            (r#"{"a":1}"#, r#"{"a":1.0}"#),
            (r#"{"a":1}"#, r#"{"a":"1"}"#),
            (r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"null"}"#, r#"{"a":null}"#),
            (r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#),
            (r#"{"a":[]}"#, r#"{"a":{}}"#),
            (r#"{"a":[[1],2]}"#, r#"{"a":[[1,2]]}"#),
            (r#"{"a":{"b":1},"c":2}"#, r#"{"a":{"b":1,"c":2}}"#),
            (r#"{"o":{"keep_alive":1}}"#, r#"{"o":{}}"#),
            // Which of two spellings comes last decides, and a null may decide nothing.
            (r#"{"a":1,"A":2}"#, r#"{"A":2,"a":1}"#),
            (r#"{"prompt":"x","prompt":null}"#, r#"{"prompt":"y","prompt":null}"#),
            (r#"{"options":{"seed":1},"options":{}}"#, r#"{"options":{}}"#),
        ] {
            assert_ne!(key(one), key(two), "{one} {two}");
        }
    }

    #[test]
    fn what_is_no_json_or_too_much_has_no_key() {
        for bad in ["", "{", "{\"a\":}", "nope", "[1"] {
            assert_eq!(key(bad), None, "{bad}");
        }
        let deepest = 10_000;
        let nested = ["[".repeat(deepest), "]".repeat(deepest)].concat();
        assert!(key(&nested).is_some());
        assert_eq!(key(&format!("[{nested}]")), None);
        let wide = |members| format!("{{{}\"a\":1}}", "\"a\":1,".repeat(members));
        assert!(key(&wide(MEMBERS_MAX - 1)).is_some());
        assert_eq!(key(&wide(MEMBERS_MAX)), None);
        // Members are forgotten with their object, so a long conversation is no fault.
        assert!(key(&format!("[{}0]", "{\"a\":1},".repeat(MEMBERS_MAX + 1))).is_some());
    }

    #[test]
    fn ten_megabytes_are_hashed() {
        let body = |last: char| {
            let image = "A".repeat(10 << 20);
            format!(r#"{{"model":"m","messages":[{{"images":["{image}{last}"]}}]}}"#)
        };
        assert_ne!(key(&body('a')), key(&body('b')));
        assert!(key(&body('a')).is_some());
    }

    #[test]
    fn a_seed_or_no_temperature_makes_an_answer_the_only_one() {
        use Dialect::{Chat, Generate, Messages, OpenAiChat, Responses};
        for (dialect, body, is_only) in [
            (Chat, r#"{"options":{"seed":7}}"#, true),
            (Generate, r#"{"OPTIONS":{"temperature":0.0}}"#, true),
            (Generate, r#"{"options":{"temperature":-0e3}}"#, true),
            (Chat, r#"{"options":{"temperature":0.1}}"#, false),
            (Chat, r#"{"options":{"Seed":7}}"#, false),
            (Chat, r#"{"options":{"seed":-1}}"#, false),
            (Chat, r#"{"options":{"seed":1,"seed":null}}"#, false),
            (Chat, r#"{"options":{"seed":1},"options":{"top_p":1}}"#, true),
            (Chat, r#"{"options":{"seed":1},"options":null}"#, false),
            (Chat, r#"{"options":{"seed":"1"}}"#, false),
            (Chat, r#"{"seed":1,"temperature":0}"#, false),
            (OpenAiChat, r#"{"seed":1}"#, true),
            (OpenAiChat, r#"{"Temperature":0}"#, true),
            (OpenAiChat, r#"{"options":{"seed":1}}"#, false),
            (Responses, r#"{"seed":1}"#, false),
            (Messages, r#"{"temperature":0}"#, true),
            (Chat, "[]", false),
            (Chat, r#"{"options":{"seed":1}"#, false),
        ] {
            assert_eq!(is_deterministic(dialect, body.as_bytes()), is_only, "{body}");
        }
    }

    fn values() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i32>().prop_map(serde_json::Value::from),
            any::<String>().prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::btree_map("[a-c]{1,2}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect::<serde_json::Value>()),
            ]
        })
    }

    proptest! {
        /// `serde_json` is the oracle: equal values have equal keys, others have not.
        #[test]
        fn keys_are_equal_where_values_are(one in values(), two in values()) {
            prop_assert_eq!(key(&one.to_string()), key(&serde_json::to_string_pretty(&one).unwrap()));
            prop_assert_eq!(key(&one.to_string()) == key(&two.to_string()), one == two);
        }

        #[test]
        fn any_bytes_are_hashed_or_not_without_a_panic(body in any::<Vec<u8>>()) {
            prop_assert_eq!(duplicate_key(&[], &body), duplicate_key(&[], &body));
            prop_assert!(!is_deterministic(Dialect::Chat, &body));
        }
    }
}
