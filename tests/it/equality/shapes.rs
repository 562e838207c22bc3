//! The shapes an answer can have beside plain text: thoughts, calls of tools, likelihoods, pictures in, schemas, very long
//! records, large uploads, and routes of other versions.

use serde_json::json;
use stub_ollama::{Era, StubConfig};

use super::{Ask, FORM, compare, models, post};

/// A picture of one dot, as clients send it.
const PICTURE: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// The same request streamed, not, and as it comes.
fn each_way(target: &str, body: &serde_json::Value) -> Vec<Ask> {
    let with = |stream: Option<bool>| {
        let mut body = body.clone();
        if let Some(stream) = stream {
            body["stream"] = json!(stream);
        }
        post(target, body.to_string())
    };
    [None, Some(true), Some(false)].map(with).into()
}

#[tokio::test]
async fn thoughts_and_calls_of_tools_are_ollama_s_in_each_dialect() {
    let mut asks = Vec::new();
    let function =
        json!({ "name": "look", "description": "d", "parameters": { "type": "object" } });
    let tools = json!([{ "type": "function", "function": function }]);
    for text in ["Say it", "use the tool"] {
        let messages = json!([{ "role": "user", "content": text }]);
        let chat = json!({ "model": "think", "messages": messages, "tools": tools });
        asks.extend(each_way("/api/chat", &chat));
        asks.extend(each_way("/v1/chat/completions", &chat));
        let named = json!([{ "name": "look", "input_schema": { "type": "object" } }]);
        let body =
            json!({ "model": "think", "max_tokens": 6, "messages": messages, "tools": named });
        asks.extend(each_way("/v1/messages", &body));
        let named = json!([{ "type": "function", "name": "look", "parameters": {} }]);
        let items = json!([{ "type": "message", "role": "user", "content": text }]);
        for input in [json!(text), items] {
            let body = json!({ "model": "think", "input": input, "tools": named });
            asks.extend(each_way("/v1/responses", &body));
        }
        let body = json!({ "model": "m", "prompt": text, "think": false });
        asks.extend(each_way("/api/generate", &body));
    }
    // The turns after a call.
    let call =
        json!({ "id": "c", "type": "function", "function": { "name": "look", "arguments": {} } });
    let turns = json!([
        { "role": "user", "content": "x" },
        { "role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call] },
        { "role": "tool", "content": "seen", "tool_call_id": "c", "tool_name": "look" },
    ]);
    asks.extend(each_way("/api/chat", &json!({ "model": "think", "messages": turns })));
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn likelihoods_schemas_and_pictures_are_ollama_s_in_each_dialect() {
    let mut asks = Vec::new();
    let say =
        json!([{ "role": "user", "content": "Say \u{1f6a2} \u{e9}\u{301} \u{202e}x\u{0} <&>" }]);
    let schema = json!({ "type": "object", "properties": { "a": { "type": "string" } } });
    for top in [0, 3] {
        let body = json!({ "model": "m", "messages": say, "logprobs": true, "top_logprobs": top });
        asks.extend(each_way("/api/chat", &body));
        asks.extend(each_way("/v1/chat/completions", &body));
        let body = json!({ "model": "m", "prompt": "x", "logprobs": true, "top_logprobs": top });
        asks.extend(each_way("/api/generate", &body));
    }
    asks.extend(each_way("/api/chat", &json!({ "model": "m", "messages": say, "format": schema })));
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema } });
    let body = json!({ "model": "m", "messages": say, "response_format": format });
    asks.extend(each_way("/v1/chat/completions", &body));
    let format = json!({ "format": { "type": "json_schema", "name": "n", "schema": schema } });
    asks.extend(each_way("/v1/responses", &json!({ "model": "m", "input": "x", "text": format })));
    let seen = json!([{ "role": "user", "content": "what", "images": [PICTURE, PICTURE] }]);
    asks.extend(each_way("/api/chat", &json!({ "model": "fim", "messages": seen })));
    let body = json!({ "model": "fim", "prompt": "what", "images": [PICTURE] });
    asks.extend(each_way("/api/generate", &body));
    let url = format!("data:image/png;base64,{PICTURE}");
    let parts = json!([{ "type": "text", "text": "what" }, { "type": "image_url", "image_url": { "url": url } }]);
    let body = json!({ "model": "fim", "messages": [{ "role": "user", "content": parts }] });
    asks.extend(each_way("/v1/chat/completions", &body));
    let source = json!({ "type": "base64", "media_type": "image/png", "data": PICTURE });
    let parts = json!([{ "type": "image", "source": source }, { "type": "text", "text": "what" }]);
    let body = json!({ "model": "fim", "max_tokens": 4, "messages": [{ "role": "user", "content": parts }] });
    asks.extend(each_way("/v1/messages", &body));
    let parts = json!([{ "type": "input_image", "image_url": url }, { "type": "input_text", "text": "what" }]);
    let body = json!({ "model": "fim", "input": [{ "role": "user", "content": parts }] });
    asks.extend(each_way("/v1/responses", &body));
    compare(models(), None, asks).await;
}

/// The last record of a generate holds the whole context: megabytes in one line.
#[tokio::test]
async fn a_record_of_ten_megabytes_is_ollama_s() {
    let words = "w ".repeat(1_800_000);
    let asks = ["true", "false"].map(|stream| {
        post("/api/generate", format!(r#"{{"model":"m","prompt":"{words}","stream":{stream}}}"#))
    });
    compare(models(), None, asks.into()).await;
}

#[tokio::test]
async fn a_large_recording_is_transcribed_as_ollama_does() {
    let mut body =
        b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n"
            .to_vec();
    body.extend(
        (0..3_000_000_u32).map(|at| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap()),
    );
    for part in [("model", "m"), ("response_format", "text")] {
        let head =
            format!("\r\n--B\r\nContent-Disposition: form-data; name=\"{}\"\r\n\r\n", part.0);
        body.extend_from_slice(format!("{head}{}", part.1).as_bytes());
    }
    body.extend_from_slice(b"\r\n--B--\r\n");
    compare(models(), None, vec![post("/v1/audio/transcriptions", body).line(FORM)]).await;
}

#[tokio::test]
async fn routes_of_other_versions_answer_as_theirs_do() {
    let later = json!({ "model": "m", "prompt": "a ship" });
    for era in [Era::Images, Era::Known, Era::Later] {
        let mut asks = each_way("/api/imagine", &later);
        for target in ["/v1/images/generations", "/v1/images/edits", "/v1/images/variations"] {
            for body in [
                r#"{"model":"m","prompt":"a ship","image":"x"}"#,
                r#"{"model":"nope","prompt":"a ship"}"#,
                r#"{"model":"x:cloud","prompt":"a ship"}"#,
                r#"{"model":"m"}"#,
                "{bad",
                "",
            ] {
                asks.push(post(target, body));
            }
        }
        for target in [
            "/api/imagine/",
            "/api/imagine?a=b",
            "/api/%69magine",
            "/api/tags",
            "/v1/models",
            "/v1/models/m",
            "/api/delete",
            "/api/x/../chat",
            "/api//chat",
            "/v1/messages/count_tokens",
            "/v1/messages/batches",
            "/api/experimental/nope",
        ] {
            asks.push(post(target, later.to_string()));
        }
        compare(StubConfig { era, ..models() }, None, asks).await;
    }
}
