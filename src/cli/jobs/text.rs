//! What a model said, in the shapes of all queued routes: whole answers and parts of streams. Pure.

use serde_json::Value;

/// The text in an answer, or in a record of one; empty where there is none.
pub(super) fn text_of(value: &Value) -> String {
    let parts = [
        // Native chats and generations.
        &value["message"]["content"],
        &value["response"],
        // OpenAI chats and completions.
        &value["choices"][0]["delta"]["content"],
        &value["choices"][0]["message"]["content"],
        &value["choices"][0]["text"],
    ];
    if let Some(text) = parts.into_iter().find_map(Value::as_str) {
        return text.to_owned();
    }
    match value["type"].as_str() {
        Some("response.output_text.delta") => text_at(&value["delta"]),
        Some("content_block_delta") => text_at(&value["delta"]["text"]),
        // The other events of those two repeat what came.
        Some(kind) if kind.contains('.') || kind.contains('_') => String::new(),
        Some("message") | None => {
            let outputs = list(&value["output"]).iter().flat_map(|output| list(&output["content"]));
            let blocks = list(&value["content"]).iter().chain(outputs);
            blocks.map(|block| text_at(&block["text"])).collect()
        }
        Some(_) => String::new(),
    }
}

/// The sentence of an error record, in the shape of any route.
pub(super) fn error_of(value: &Value) -> Option<String> {
    match &value["error"] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        error => Some(error["message"].as_str().unwrap_or("the answer broke off").to_owned()),
    }
}

/// Adds a line break where a text has none at its end, for terminals and scripts.
pub(super) fn ended(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn text_at(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_text_of_each_route_is_found() {
        let answers = [
            json!({ "message": { "role": "assistant", "content": "hi" } }),
            json!({ "response": "hi" }),
            json!({ "choices": [{ "delta": { "content": "hi" } }] }),
            json!({ "choices": [{ "message": { "content": "hi" } }] }),
            json!({ "choices": [{ "text": "hi" }] }),
            json!({ "type": "response.output_text.delta", "delta": "hi" }),
            json!({ "object": "response", "output": [{ "type": "message", "content": [{ "type": "output_text", "text": "hi" }] }] }),
            json!({ "type": "content_block_delta", "delta": { "type": "text_delta", "text": "hi" } }),
            json!({ "type": "message", "content": [{ "type": "text", "text": "hi" }] }),
        ];
        for answer in answers {
            assert_eq!(text_of(&answer), "hi", "{answer}");
        }
    }

    #[test]
    fn what_repeats_the_text_is_not_told_twice() {
        for event in [
            json!({ "type": "response.output_text.done", "text": "hi" }),
            json!({ "type": "message_start", "message": { "content": [] } }),
            json!({ "type": "response.completed", "response": { "error": null } }),
            json!({ "done": true, "message": { "content": "" } }),
        ] {
            assert_eq!(text_of(&event), "", "{event}");
            assert_eq!(error_of(&event), None);
        }
    }
}
