//! The web search that Ollama does by itself, seen from outside: which requests let it, and what it then asks of the model.
//!
//! For `/v1/responses` and `/v1/messages` with such a tool Ollama goes on with up to three requests of its own to `/api/chat`,
//! at the address its own client finds in `OLLAMA_HOST` (`middleware/web_search.go`). Usually that is Ollama itself, and foreman
//! never sees them.

use memchr::memmem;
use serde::Deserialize;

use super::json::Kind;
use super::members::{elements, last_member};
use crate::domain::dialect::Dialect;

/// The tool's kind, or how it begins (`web_search_20250305`), and its name to the model.
const NAME: &str = "web_search";

/// Whether a request lets Ollama search.
#[must_use]
pub fn may_search(dialect: Dialect, body: &[u8]) -> bool {
    if !matches!(dialect, Dialect::Responses | Dialect::Messages) {
        return false;
    }
    // Nearly every request stops here; one that spells the name with escapes is none that a client sends.
    if memmem::find(body, NAME.as_bytes()).is_none() {
        return false;
    }
    let Some((Kind::Array, tools)) = last_member(body, "tools") else { return false };
    let mut kinds = elements(tools).filter_map(|tool| serde_json::from_slice::<Tool>(tool).ok());
    kinds.any(|tool| tool.kind.is_some_and(|kind| kind.trim().starts_with(NAME)))
}

/// Whether a native chat goes on after a search: it ends with the model's call of one, and what was found.
#[must_use]
pub fn is_follow_up(body: &[u8]) -> bool {
    if memmem::find(body, NAME.as_bytes()).is_none() {
        return false;
    }
    let Some((Kind::Array, messages)) = last_member(body, "messages") else { return false };
    let (mut before, mut last) = (None, None);
    for message in elements(messages) {
        before = last.replace(message);
    }
    let read = |message: Option<&[u8]>| serde_json::from_slice::<Message>(message?).ok();
    let (Some(call), Some(found)) = (read(before), read(last)) else { return false };
    let is_search = |call: &Call| call.function.name == NAME;
    found.role == "tool" && call.role == "assistant" && call.tool_calls.iter().any(is_search)
}

#[derive(Deserialize)]
struct Tool {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    tool_calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_let_by_the_kind_of_a_tool() {
        let may = |dialect, tools: &str| {
            may_search(dialect, format!(r#"{{"model":"m","tools":{tools}}}"#).as_bytes())
        };
        assert!(may(Dialect::Responses, r#"[{"type":"function"},{"type":"web_search"}]"#));
        let dated = r#"[{"type":"web_search_20250305","name":"web_search"}]"#;
        assert!(may(Dialect::Messages, dated));
        assert!(!may(Dialect::OpenAiChat, dated) && !may(Dialect::Chat, dated));
        for none in [r#"[{"type":"function","name":"web_search"}]"#, "[]", r#""web_search""#, "[1]"]
        {
            assert!(!may(Dialect::Messages, none), "{none}");
        }
        assert!(!may_search(Dialect::Messages, b"web_search"));
    }

    #[test]
    fn a_follow_up_ends_with_what_was_found() {
        let call = r#"{"role":"assistant","content":"","tool_calls":[{"id":"c","function":{"index":0,"name":"web_search","arguments":{"query":"x"}}}]}"#;
        let found = r#"{"role":"tool","content":"1. x","tool_call_id":"c"}"#;
        let asks = |messages: &str| {
            is_follow_up(format!(r#"{{"model":"m","messages":[{messages}]}}"#).as_bytes())
        };
        let user = r#"{"role":"user","content":"web_search"}"#;
        assert!(asks(&format!("{user},{call},{found}")));
        assert!(asks(&format!("{user},{call},{found},{call},{found}")));
        for other in [
            format!("{user},{call},{found},{user}"),
            format!("{found},{call}"),
            format!("{user},{found}"),
            format!("{},{found}", call.replace("\"web_search\"", "\"look\"")),
            user.to_owned(),
            String::new(),
        ] {
            assert!(!asks(&other), "{other}");
        }
    }
}
