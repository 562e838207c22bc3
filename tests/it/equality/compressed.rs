//! Requests with a `Content-Encoding`: what Ollama undoes, refuses, or does not look at.

use std::io::Write as _;

use super::{Ask, compare, models, post};

/// The routes that undo zstd, each with a request.
fn requests() -> [(&'static str, String); 5] {
    let messages = r#""messages":[{"role":"user","content":"Tell <me> \u00e9"}]"#;
    [
        ("/v1/chat/completions", format!(r#"{{"model":"m",{messages}}}"#)),
        ("/v1/completions", r#"{"model":"m","prompt":"x"}"#.to_owned()),
        ("/v1/embeddings", r#"{"model":"embed","input":["a","b"]}"#.to_owned()),
        ("/v1/responses", r#"{"model":"m","input":"x"}"#.to_owned()),
        ("/v1/messages", format!(r#"{{"model":"m","max_tokens":4,{messages}}}"#)),
    ]
}

/// A frame as a streaming client makes it, with this window.
fn zstd(bytes: impl AsRef<[u8]>, window_log: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(window_log).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes.as_ref()).unwrap();
    encoder.finish().unwrap()
}

fn encoded(target: &str, encoding: &str, body: impl Into<Vec<u8>>) -> Ask {
    post(target, body).line(&format!("Content-Encoding: {encoding}"))
}

#[tokio::test]
async fn what_ollama_undoes_is_answered_as_by_ollama() {
    let mut asks = Vec::new();
    for (target, body) in requests() {
        for body in [body.clone(), body.replacen('{', r#"{"stream":true,"#, 1)] {
            asks.push(encoded(target, "zstd", zstd(&body, 20)));
            asks.push(encoded(target, "zstd", zstd::bulk::compress(body.as_bytes(), 3).unwrap()));
            let (one, two) = body.split_at(9);
            asks.push(encoded(target, "zstd", [zstd(one, 10), zstd(two, 23)].concat()));
            asks.push(encoded(target, "zstd", zstd(format!("{body} and more"), 20)));
            asks.push(encoded(target, "zstd", zstd(body.replace("\"m\"", "\"nope\""), 20)));
        }
    }
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn what_ollama_does_not_undo_is_told_by_ollama() {
    let mut asks = Vec::new();
    for (target, body) in requests() {
        let frame = zstd(&body, 20);
        for bad in [&frame[..frame.len() - 1], &frame[..7], &frame[1..], b"", body.as_bytes()] {
            asks.push(encoded(target, "zstd", bad));
        }
        // By its size, and by its window.
        let padded = body.replacen('{', &format!("{{{}", " ".repeat(21 << 20)), 1);
        asks.push(encoded(target, "zstd", zstd(padded, 20)));
        let padded = body.replacen('{', &format!("{{{}", " ".repeat(9 << 20)), 1);
        asks.push(encoded(target, "zstd", zstd(padded, 24)));
        for encoding in ["gzip", "br", "ZSTD", "zstd, zstd", "identity", ""] {
            asks.push(encoded(target, encoding, frame.clone()));
            asks.push(encoded(target, encoding, body.clone()));
        }
    }
    for (target, body) in [
        ("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#),
        ("/api/generate", r#"{"model":"m","prompt":"x"}"#),
        ("/api/embed", r#"{"model":"embed","input":"x"}"#),
        ("/api/show", r#"{"model":"m"}"#),
    ] {
        asks.push(encoded(target, "zstd", zstd(body, 20)));
        asks.push(encoded(target, "zstd", body));
        asks.push(encoded(target, "gzip", &b"\x1f\x8b\x08\x00junk"[..]));
    }
    compare(models(), None, asks).await;
}
