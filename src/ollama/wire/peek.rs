//! What a request asks for, read from its original bytes the way Ollama's handlers read them.
//!
//! Go's decoder decides: keys fold case, the last duplicate wins, only the first JSON value counts,
//! bad UTF-8 passes (docs/ollama.md, how it reads a request). A request is refused here only when
//! Ollama will certainly answer it without touching the GPU; in doubt it is a request. The HTTP side
//! calls this once per body; nothing is ever re-encoded.

use super::cut::{Cuts, Fate};
use super::json::Kind;
use super::keep_alive::{KeepAlive, parse_json};
use super::members::{Document, Member, has_elements, open};
use super::options::OptionsDraft;
use super::text::{decode, key_names};

pub use super::request::{Peek, Refusal, Request, Shape, Wants};

/// Reads a body of the given shape. Content-Type is no argument because Ollama never looks at it.
#[must_use]
pub fn peek(shape: Shape, body: &[u8]) -> Peek {
    match read(shape, body) {
        Ok(request) => Peek::Request(request),
        Err(refusal) => Peek::Refused(refusal),
    }
}

fn read(shape: Shape, body: &[u8]) -> Result<Request, Refusal> {
    let mut draft = Draft::default();
    match open(body)? {
        // Go decodes `null` into an untouched, empty request.
        Document::Other(Kind::Null) => {}
        Document::Other(_) => return Err(Refusal::NotAnObject),
        Document::Object(members) => {
            for member in members {
                draft.take(shape, body, &member?)?;
            }
        }
    }
    draft.finish(shape)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Model,
    Stream,
    Shift,
    KeepAlive,
    Options,
    Messages,
    Prompt,
    Suffix,
    Tools,
    Think,
}

impl Field {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Stream => "stream",
            Self::Shift => "shift",
            Self::KeepAlive => "keep_alive",
            Self::Options => "options",
            Self::Messages => "messages",
            Self::Prompt => "prompt",
            Self::Suffix => "suffix",
            Self::Tools => "tools",
            Self::Think => "think",
        }
    }

    /// The fields that Ollama's request struct has and foreman needs.
    fn of(shape: Shape) -> &'static [Self] {
        use Field::{
            KeepAlive, Messages, Model, Options, Prompt, Shift, Stream, Suffix, Think, Tools,
        };
        match shape {
            Shape::Chat => &[Model, Stream, Shift, KeepAlive, Options, Messages, Tools, Think],
            Shape::Generate => &[Model, Stream, Shift, KeepAlive, Options, Prompt, Suffix, Think],
            Shape::Embed | Shape::Embeddings => &[Model, KeepAlive, Options],
            Shape::V1 => &[Model, Stream],
        }
    }
}

/// A request while its members are read. As in Go, `null` empties a pointer, slice or map and
/// leaves a string as it was.
#[derive(Debug, Default)]
struct Draft {
    model: String,
    stream: Option<bool>,
    shift: Option<bool>,
    keep_alive: Option<KeepAlive>,
    options: OptionsDraft,
    has_messages: bool,
    has_prompt: bool,
    wants: Wants,
    cuts: Cuts,
}

impl Draft {
    fn take(&mut self, shape: Shape, body: &[u8], member: &Member) -> Result<(), Refusal> {
        let key = &body[member.key.clone()];
        let field = Field::of(shape).iter().find(|field| key_names(key, field.name()));
        let is_keep_alive = field == Some(&Field::KeepAlive);
        self.cuts.pass(member, if is_keep_alive { Fate::Cut } else { Fate::Kept });
        let value = &body[member.value.clone()];
        match (field, member.kind) {
            (None, _) => Ok(()),
            (Some(field), Kind::Null) => {
                self.clear(shape, *field);
                Ok(())
            }
            (Some(field), kind) => self.set(shape, *field, kind, value),
        }
    }

    fn clear(&mut self, shape: Shape, field: Field) {
        match field {
            // On /v1 most routes decode `stream` into a plain bool, which null leaves alone.
            Field::Stream if shape == Shape::V1 => {}
            Field::Stream => self.stream = None,
            Field::Shift => self.shift = None,
            Field::KeepAlive => self.keep_alive = None,
            Field::Options => self.options = OptionsDraft::default(),
            Field::Messages => self.has_messages = false,
            Field::Tools => self.wants.tools = false,
            Field::Think => self.wants.thinking = false,
            Field::Model | Field::Prompt | Field::Suffix => {}
        }
    }

    fn set(&mut self, shape: Shape, field: Field, kind: Kind, value: &[u8]) -> Result<(), Refusal> {
        let is_true = value == b"true";
        let has_text = value != br#""""#;
        match (field, kind) {
            (Field::Model, Kind::String) => self.model = decode(value),
            (Field::Stream, Kind::Bool) => self.stream = Some(is_true),
            // Not every /v1 route has a `stream` that could be wrong.
            (Field::Stream, _) if shape == Shape::V1 => {}
            (Field::Shift, Kind::Bool) => self.shift = Some(is_true),
            (Field::KeepAlive, _) => {
                self.keep_alive = parse_json(kind, value).map_err(Refusal::KeepAlive)?;
            }
            (Field::Options, Kind::Object) => self.options.merge(value)?,
            (Field::Messages, Kind::Array) => self.has_messages = has_elements(value),
            (Field::Tools, Kind::Array) => self.wants.tools = has_elements(value),
            (Field::Prompt, Kind::String) => self.has_prompt = has_text,
            (Field::Suffix, Kind::String) => self.wants.insert = has_text,
            (Field::Think, Kind::Bool) => self.wants.thinking = is_true,
            // Levels come and go with Ollama's versions, so an unknown one is no certain refusal.
            (Field::Think, Kind::String) => self.wants.thinking = is_thinking_level(&decode(value)),
            _ => return Err(Refusal::WrongType(field.name())),
        }
        Ok(())
    }

    fn finish(self, shape: Shape) -> Result<Request, Refusal> {
        if self.model.trim().is_empty() {
            return Err(Refusal::MissingModel);
        }
        let mut options = self.options.runner_options();
        options.shift = self.shift;
        let request = Request {
            model: self.model,
            stream: self.stream.unwrap_or(streams_unasked(shape)),
            options,
            keep_alive: self.keep_alive,
            keep_alive_members: self.cuts.finish(),
            is_empty: match shape {
                Shape::Chat => !self.has_messages,
                Shape::Generate => !self.has_prompt,
                // These have no load or unload shortcut: an empty one is work like any other.
                Shape::Embed | Shape::Embeddings | Shape::V1 => false,
            },
            wants: self.wants,
        };
        // An unload is answered before the options are looked at, so a bad one does not stop it.
        match self.options.wrong_type() {
            Some(name) if !request.is_unload() => Err(Refusal::OptionType(name)),
            Some(_) | None => Ok(request),
        }
    }
}

fn is_thinking_level(text: &str) -> bool {
    matches!(text, "low" | "medium" | "high" | "max")
}

fn streams_unasked(shape: Shape) -> bool {
    match shape {
        Shape::Chat | Shape::Generate => true,
        Shape::Embed | Shape::Embeddings | Shape::V1 => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(shape: Shape, body: impl AsRef<[u8]>) -> Request {
        let body = body.as_ref();
        match peek(shape, body) {
            Peek::Request(request) => request,
            Peek::Refused(refusal) => panic!("{refusal}: {}", String::from_utf8_lossy(body)),
        }
    }

    fn refusal(shape: Shape, body: &str) -> Refusal {
        match peek(shape, body.as_bytes()) {
            Peek::Refused(refusal) => refusal,
            Peek::Request(request) => panic!("{body}: {request:?}"),
        }
    }

    /// Names in any case and last duplicates (docs/ollama.md).
    #[test]
    fn keys_fold_case_and_the_last_duplicate_wins() {
        let body =
            r#"{"model":"a","MODEL":"b","stream":true,"\u017FTREAM":false,"m\u006fdel":"c"}"#;
        let read = request(Shape::Chat, body);
        assert_eq!((read.model.as_str(), read.stream), ("c", false));
        assert!(!request(Shape::Chat, "{\"model\":\"m\",\"\u{17f}tream\":false}").stream);
    }

    /// Trap 3.
    #[test]
    fn only_the_first_value_is_read() {
        assert_eq!(request(Shape::Chat, r#"{"model":"m"}{"model":"n"} junk"#).model, "m");
        assert_eq!(refusal(Shape::Chat, "null"), Refusal::MissingModel);
        for shape in [Shape::Chat, Shape::V1] {
            assert_eq!(refusal(shape, " \n"), Refusal::MissingBody);
            for body in ["{bad", "{\"model\":\"m\",}", "// no\n{}", "{\"model\":\"m\""] {
                assert!(matches!(refusal(shape, body), Refusal::Json(_)), "{body}");
            }
            assert_eq!(refusal(shape, "[]"), Refusal::NotAnObject);
        }
    }

    /// Trap 4.
    #[test]
    fn bad_utf8_and_lone_surrogates_are_read() {
        let read = request(Shape::Chat, b"{\"x\":\"\\ud800\",\"y\":\"\xff\",\"model\":\"m\xff\"}");
        assert_eq!(read.model, "m\u{fffd}");
    }

    /// Trap 5.
    #[test]
    fn a_null_is_absent_and_a_wrong_type_is_refused() {
        let read = request(Shape::Chat, r#"{"model":"m","stream":null,"model":null,"shift":null}"#);
        assert!(read.stream && read.model == "m" && read.options.shift.is_none());
        for (field, value) in [
            ("stream", r#""false""#),
            ("messages", "{}"),
            ("options", "[]"),
            ("shift", "0"),
            ("model", "1"),
            ("tools", r#""t""#),
            ("think", "1"),
        ] {
            // A later good duplicate does not heal a bad one.
            let body = format!(r#"{{"model":"m","{field}":{value},"{field}":null}}"#);
            assert_eq!(refusal(Shape::Chat, &body), Refusal::WrongType(field));
        }
        for body in ["{}", r#"{"model":""}"#, r#"{"model":" "}"#] {
            assert_eq!(refusal(Shape::Generate, body), Refusal::MissingModel);
        }
    }

    #[test]
    fn options_merge_over_duplicates_and_keys_match_exactly() {
        let body = r#"{"model":"m","options":{"num_ctx":1,"num_ctx":8192.9,"Num_gpu":1},"shift":false,
            "OPTIONS":{"num_gpu":-1,"main_gpu":0,"use_mmap":true,"x":[1],"seed":null,"stop":[]}}"#;
        let options = request(Shape::Generate, body).options;
        let wanted = (Some(8192), Some(-1), Some(0), Some(true), Some(false));
        let found =
            (options.num_ctx, options.num_gpu, options.main_gpu, options.use_mmap, options.shift);
        assert_eq!(found, wanted);
        let cleared = r#"{"model":"m","options":{"num_ctx":8,"num_batch":9},"options":null,"options":{"num_batch":null}}"#;
        assert_eq!(request(Shape::Embed, cleared).options, Default::default());
    }

    #[test]
    fn an_option_of_the_wrong_type_is_refused_unless_it_is_an_unload() {
        let body = |rest| format!(r#"{{"model":"m","options":{{"num_ctx":"4096"}}{rest}}}"#);
        assert_eq!(refusal(Shape::Chat, &body("")), Refusal::OptionType("num_ctx"));
        assert!(request(Shape::Chat, body(r#","keep_alive":0"#)).is_unload());
        assert_eq!(
            request(Shape::Chat, body(r#","options":{"num_ctx":9}"#)).options.num_ctx,
            Some(9)
        );
        assert_eq!(
            refusal(Shape::Chat, r#"{"model":"m","options":{"x":1e999}}"#),
            Refusal::OptionRange
        );
    }

    #[test]
    fn keep_alive_is_read_and_a_bad_one_refused() {
        let read = request(Shape::Chat, r#"{"keep_alive":"5m","model":"m","Keep_Alive":-1}"#);
        assert_eq!(read.keep_alive, Some(KeepAlive::Forever));
        assert_eq!(read.keep_alive_members, [1..19, 30..46]);
        let cleared = request(Shape::Chat, r#"{"model":"m","keep_alive":1,"keep_alive":null}"#);
        // Two neighbours go in one range, with the comma before them.
        let only = cleared.keep_alive_members.iter().map(|cut| (cut.start, cut.end));
        assert_eq!((cleared.keep_alive, only.collect()), (None, vec![(12, 45)]));
        let bad = r#"{"model":"m","keep_alive":"-1","keep_alive":"5m"}"#;
        assert!(matches!(refusal(Shape::Embed, bad), Refusal::KeepAlive(_)));
        // /v1 has no such member: whatever it says stays where it is.
        assert!(request(Shape::V1, bad).keep_alive_members.is_empty());
    }

    #[test]
    fn emptiness_is_told_as_ollama_tells_it() {
        for (shape, rest, is_empty) in [
            (Shape::Chat, "", true),
            (Shape::Chat, r#","messages":[ ]"#, true),
            (Shape::Chat, r#","messages":[null]"#, false),
            (Shape::Chat, r#","messages":[{}],"messages":null"#, true),
            (Shape::Chat, r#","prompt":"x""#, true),
            (Shape::Generate, "", true),
            (Shape::Generate, r#","prompt":"""#, true),
            (Shape::Generate, r#","prompt":"x","prompt":null"#, false),
            (Shape::Generate, r#","prompt":"\u0000","suffix":"s""#, false),
            (Shape::Embeddings, "", false),
            (Shape::V1, "", false),
        ] {
            let body = format!(r#"{{"model":"m"{rest}}}"#);
            assert_eq!(request(shape, &body).is_empty, is_empty, "{shape:?} {body}");
        }
    }

    #[test]
    fn wants_are_read() {
        let wants = |shape, rest: &str| {
            let wants = request(shape, format!(r#"{{"model":"m",{rest}}}"#)).wants;
            (wants.tools, wants.thinking, wants.insert)
        };
        assert_eq!(wants(Shape::Chat, r#""tools":[{}],"think":"high""#), (true, true, false));
        assert_eq!(wants(Shape::Chat, r#""tools":[],"think":false"#), (false, false, false));
        assert_eq!(wants(Shape::Generate, r#""suffix":"x","think":true"#), (false, true, true));
    }

    #[test]
    fn v1_streams_only_when_asked() {
        assert!(!request(Shape::V1, r#"{"model":"m"}"#).stream);
        assert!(request(Shape::V1, r#"{"MODEL":"m","stream":true}"#).stream);
        assert!(!request(Shape::V1, r#"{"model":"m","stream":"x","options":1}"#).stream);
        assert!(!request(Shape::Embed, r#"{"model":"m","stream":1}"#).stream);
    }
}
