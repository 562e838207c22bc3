//! Answers of every route that takes a model, streamed or not.

use stub_ollama::{Cloud, StubConfig};

use super::{FORM, chat, compare, form, models, post, think};

#[tokio::test]
async fn every_native_answer_is_ollama_s_streamed_or_not() {
    let tools = r#","tools":[{"type":"function","function":{"name":"look"}}]"#;
    let mut asks = Vec::new();
    for stream in ["", r#","stream":true"#, r#","stream":false"#, r#","stream":null"#] {
        let with = |members: &str| format!("{members}{stream}");
        for members in [
            "",
            r#","options":{"num_predict":3,"seed":1}"#,
            r#","keep_alive":"5m""#,
            r#","format":"json""#,
            r#","format":{"type":"object"}"#,
            r#","keep_alive":0"#,
            r#","options":{"num_ctx":1024}"#,
            r#","options":{"nonsense":1}"#,
            r#","shift":false"#,
        ] {
            asks.push(post("/api/chat", chat(&with(members))));
            let generate = format!(r#"{{"model":"fim","prompt":"x"{}}}"#, with(members));
            asks.push(post("/api/generate", generate));
        }
        for members in ["", r#","think":false"#, r#","think":"high""#, r#","think":true"#, tools] {
            asks.push(post("/api/chat", think(&with(members))));
        }
        asks.push(post("/api/chat", think(&with(tools)).replace("Tell", "use the tool")));
        for body in [
            r#"{"model":"fim","prompt":"x","suffix":"y"STREAM}"#,
            r#"{"model":"m","prompt":"x","raw":true,"system":"s"STREAM}"#,
            r#"{"model":"M:latest","prompt":"x"STREAM} trailing"#,
            r#"{"MODEL":"nope","Model":"m","prompt":"x"STREAM}"#,
            r#"{"model":"library/m","prompt":"x"STREAM}"#,
            r#"{"model":"m"STREAM}"#,
            r#"{"model":"m","keep_alive":-1STREAM}"#,
            r#"{"model":"m","keep_alive":0STREAM}"#,
            r#"{"model":"far","prompt":"x"STREAM}"#,
        ] {
            asks.push(post("/api/generate", body.replace("STREAM", stream)));
        }
        for body in [
            r#"{"model":"m"STREAM}"#,
            r#"{"model":"m","messages":[]STREAM}"#,
            r#"{"model":"m","messages":[],"keep_alive":0STREAM}"#,
            r#"{"model":"m","messages":[],"keep_alive":"10m"STREAM}"#,
            r#"{"model":"far","messages":[{"role":"user","content":"x"}]STREAM}"#,
        ] {
            asks.push(post("/api/chat", body.replace("STREAM", stream)));
        }
    }
    for body in [
        r#"{"model":"embed","input":"x"}"#,
        r#"{"model":"embed","input":["a","b","c"]}"#,
        r#"{"model":"embed","input":[]}"#,
        r#"{"model":"embed"}"#,
        r#"{"model":"embed","input":"x","keep_alive":"5m","dimensions":3}"#,
        r#"{"model":"embed","input":"x","options":{"num_ctx":64}}"#,
    ] {
        asks.push(post("/api/embed", body));
    }
    asks.push(post("/api/embeddings", r#"{"model":"embed","prompt":"x"}"#));
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn every_v1_answer_is_ollama_s_streamed_or_not() {
    let usage = r#","stream":true,"stream_options":{"include_usage":true}"#;
    let mut asks = Vec::new();
    for stream in ["", r#","stream":true"#, r#","stream":false"#, usage] {
        asks.push(post("/v1/chat/completions", chat(&format!(r#","max_tokens":3{stream}"#))));
        let tools = r#","tools":[{"type":"function","function":{"name":"look"}}]"#;
        let called = think(&format!("{tools}{stream}")).replace("Tell", "use the tool");
        asks.extend([
            post("/v1/chat/completions", called),
            post("/v1/chat/completions", think(stream)),
        ]);
        let json = format!(r#","response_format":{{"type":"json_object"}},"keep_alive":0{stream}"#);
        asks.push(post("/v1/chat/completions", chat(&json)));
        let completion = format!(r#"{{"model":"m","prompt":"x"{stream}}}"#);
        asks.push(post("/v1/completions", completion.replace(":\"x\"", ":\"\"")));
        asks.push(post("/v1/completions", completion));
        let responses = format!(r#"{{"model":"m","input":"Hi","max_output_tokens":4{stream}}}"#);
        asks.push(post("/v1/responses", responses));
        asks.push(post("/v1/messages", chat(&format!(r#","max_tokens":4{stream}"#))));
        asks.push(post("/v1/messages", think(&format!(r#","max_tokens":4{stream}"#))));
    }
    asks.push(post("/v1/embeddings", r#"{"model":"embed","input":["a","b"]}"#));
    asks.push(post(
        "/v1/embeddings",
        r#"{"model":"embed","input":"a","encoding_format":"base64"}"#,
    ));
    for format in ["json", "text"] {
        asks.push(post("/v1/audio/transcriptions", form("m", format)).line(FORM));
    }
    asks.push(post("/v1/audio/transcriptions", form("nope", "json")).line(FORM));
    asks.push(post("/v1/audio/transcriptions", form("", "json")).line(FORM));
    compare(models(), None, asks).await;
}

/// Ways to send the same chat: types, encodings of the path, chunks, an old protocol's spellings.
#[tokio::test]
async fn the_same_request_in_other_clothes_is_still_answered_as_ollama_does() {
    let body = chat("");
    let chunked = format!("1\r\n{{\r\n{:x}\r\n{}\r\n0\r\n\r\n", body.len() - 1, &body[1..]);
    let large = chat("").replace("Tell", &"word ".repeat(2 * 1024 * 1024));
    let mut asks = vec![
        post("/api/chat", chunked.clone()).line("Transfer-Encoding: chunked"),
        post("/v1/chat/completions", chunked).line("Transfer-Encoding: chunked"),
        post("/api/%63hat", body.clone()),
        post("/api/chat?ts=1&x=%2F", body.clone()),
        post("http://127.0.0.1/api/chat", body.clone()),
        post("/api/chat", large.clone()),
        post("/api/generate", large.replace("\"messages\"", "\"x\"")),
        post("/v1/embeddings", r#"{"model":"embed","input":"x"}"#).line("X-Api-Key: k"),
    ];
    for kind in ["application/x-www-form-urlencoded", "text/plain", "application/json", "junk"] {
        asks.push(post("/api/chat", body.clone()).line(&format!("Content-Type: {kind}")));
    }
    for line in ["Authorization: Bearer x", "Accept-Encoding: gzip", "Accept: text/event-stream"] {
        asks.push(post("/api/chat", body.clone()).line(line));
    }
    asks.push(post("/api/chat", body).line("Content-Encoding: gzip"));
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn cloud_models_answer_as_ollama_does() {
    for cloud in [Cloud::Unreachable, Cloud::Disabled, Cloud::Answers] {
        let mut asks = Vec::new();
        for stream in ["true", "false"] {
            for name in ["big:cloud", "big:20b-cloud", "far", "nope:cloud"] {
                let members = format!(r#","stream":{stream}"#);
                let body = chat(&members).replacen("\"m\"", &format!("\"{name}\""), 1);
                asks.extend([post("/api/chat", body.clone()), post("/v1/chat/completions", body)]);
            }
        }
        compare(StubConfig { cloud, ..models() }, None, asks).await;
    }
}
