//! A compressed request is what it says: it waits under its model's load key, streams, and is known again. What goes to Ollama
//! are the bytes that came.

use serde_json::{Value, json};
use stub_ollama::{LogEntry, Stub};

use super::with_encoding;
use crate::harness::client::{Answer, chat_unstreamed, open, post, post_stream};
use crate::harness::{Foreman, stub_config};

fn zstd(body: &Value) -> Vec<u8> {
    zstd::bulk::compress(body.to_string().as_bytes(), 3).unwrap()
}

fn say(model: &str, text: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": text }] })
}

async fn send(foreman: &Foreman, path: &str, encoding: &str, body: Vec<u8>) -> Answer {
    open(foreman.addr, with_encoding(foreman.addr, path, encoding, body))
        .await
        .unwrap()
        .rest()
        .await
}

fn sent(stub: &Stub, path: &str) -> Vec<LogEntry> {
    stub.log().into_iter().filter(|entry| entry.path == path).collect()
}

#[tokio::test]
async fn a_compressed_request_waits_under_its_load_key() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let addr = foreman.addr;
    let running =
        tokio::spawn(async move { post(addr, "/api/chat", &chat_unstreamed("a", "x")).await });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let mut clients = Vec::new();
    for number in 0..6 {
        let body = zstd(&say(["b", "a"][number % 2], &number.to_string()));
        let asked = with_encoding(foreman.addr, "/v1/chat/completions", "zstd", body);
        clients.push(tokio::spawn(async move { open(addr, asked).await.unwrap().rest().await }));
        foreman.wait_for_depth(u64::try_from(number + 1).unwrap()).await;
    }
    let lanes: Vec<Value> = foreman.status().await["queue"]["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["lane"].clone())
        .collect();
    assert_eq!(lanes.iter().filter(|lane| *lane == "a:latest").count(), 3, "{lanes:?}");
    assert_eq!(lanes.iter().filter(|lane| *lane == "b:latest").count(), 3, "{lanes:?}");
    stub.release_tokens();
    assert_eq!(running.await.unwrap().status, 200);
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.header("x-foreman-job-id").is_some());
    }
    assert_eq!(stub.counts().loads, 2, "a once, b once");
    for entry in sent(&stub, "/v1/chat/completions") {
        assert_eq!(entry.header("content-encoding"), Some("zstd"));
        assert!(entry.body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "its own bytes");
    }
}

/// The first event is there while Ollama holds the rest back, and the stream needs its end mark.
#[tokio::test]
async fn a_compressed_request_for_a_stream_streams() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let mut body = say("a", "x");
    body["stream"] = json!(true);
    body["max_tokens"] = json!(100_000);
    let asked = with_encoding(foreman.addr, "/v1/chat/completions", "zstd", zstd(&body));
    let mut stream = open(foreman.addr, asked).await.unwrap();
    assert!(stream.next().await.unwrap().unwrap().starts_with(b"data: {"));
    assert_eq!(stub.snapshot().generating, ["a:latest"]);
}

/// Broken, it is refused without the GPU, and waits for nobody; what Ollama may one day read waits its turn.
#[tokio::test]
async fn what_ollama_refuses_for_certain_does_not_wait() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let long = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 1_000_000 } });
    let mut running = post_stream(foreman.addr, "/api/generate", &long).await;
    running.next().await.unwrap().unwrap();
    let frame = zstd(&say("a", "x"));
    let broken = send(&foreman, "/v1/chat/completions", "zstd", frame[..9].to_vec()).await;
    assert_eq!(broken.status, 400, "{}", broken.text());
    assert!(broken.header("x-foreman-job-id").is_none());
    drop(running);
    for (path, encoding) in [("/api/chat", "zstd"), ("/v1/chat/completions", "br")] {
        let later = send(&foreman, path, encoding, frame.clone()).await;
        assert_eq!(later.status, 400, "{}", later.text());
        assert!(later.header("x-foreman-job-id").is_some(), "{path} {encoding}");
        assert_eq!(sent(&stub, path).last().unwrap().body, frame, "never tried again");
    }
}

/// 20 MiB of nothing in two kilobytes, many times at once: nobody else is held up, and Ollama says no.
#[tokio::test]
async fn a_crowd_of_bombs_holds_nobody_up() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let bomb = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(20).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(b' '), 64 << 20), &mut encoder)
            .unwrap();
        encoder.finish().unwrap()
    };
    assert!(bomb.len() < 10_000);
    let bombs: Vec<_> = (0..16)
        .map(|_| {
            let asked = with_encoding(foreman.addr, "/v1/embeddings", "zstd", bomb.clone());
            let addr = foreman.addr;
            tokio::spawn(async move { open(addr, asked).await.unwrap().rest().await })
        })
        .collect();
    let answer = post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await;
    assert_eq!(answer.status, 200);
    for bomb in bombs {
        assert_eq!(bomb.await.unwrap().status, 400);
    }
}

/// The header alone makes no difference where Ollama does not look at it.
#[tokio::test]
async fn a_header_that_ollama_ignores_is_ignored() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let body = chat_unstreamed("a", "x").to_string().into_bytes();
    let asked = with_encoding(foreman.addr, "/api/chat", "gzip", body);
    let addr = foreman.addr;
    let client = tokio::spawn(async move { open(addr, asked).await.unwrap().rest().await });
    let status = foreman.wait_for(|status| status["running"][0]["state"] == "working").await;
    assert_eq!(status["running"][0]["lane"], "a:latest");
    stub.release_tokens();
    assert_eq!(client.await.unwrap().status, 200);
}

/// Equal is what says the same, however it was packed: the second is answered from the first.
#[tokio::test]
async fn a_compressed_request_is_equal_to_the_plain_one() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let kept = Some("completed".to_owned());
    let foreman = Foreman::start_with(&stub, |raw| raw.duplicates = kept).await.up().await;
    let mut body = say("a", "x");
    body["seed"] = json!(1);
    let first = post(foreman.addr, "/v1/chat/completions", &body).await;
    let frames = [zstd(&body), [zstd(&body), zstd(&json!(" "))].concat()];
    for frame in frames {
        let second = send(&foreman, "/v1/chat/completions", "zstd", frame).await;
        assert_eq!(second.header("x-foreman-duplicate"), Some("completed"));
        assert_eq!(first.body, second.body);
    }
    assert_eq!(sent(&stub, "/v1/chat/completions").len(), 1);
}

/// An embed of a model that is not resident is preceded by foreman's load, compressed or not.
#[tokio::test]
async fn a_compressed_embed_is_loaded_for() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = zstd(&json!({ "model": "embed", "input": "x" }));
    let answer = send(&foreman, "/v1/embeddings", "zstd", body.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("x-foreman-job-id").is_none());
    let log = stub.log();
    let at = |path: &str| log.iter().position(|entry| entry.path == path);
    assert!(at("/api/embed").unwrap() < at("/v1/embeddings").unwrap(), "loaded first");
    assert_eq!(sent(&stub, "/v1/embeddings")[0].body, body);
}

#[tokio::test]
async fn a_compressed_request_may_be_answered_later() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let mut asked =
        with_encoding(foreman.addr, "/v1/chat/completions", "zstd", zstd(&say("a", "x")));
    asked.headers_mut().insert("prefer", "respond-async".parse().unwrap());
    let taken = open(foreman.addr, asked).await.unwrap().rest().await;
    assert_eq!((taken.status.as_u16(), taken.json()["model"].clone()), (202, json!("a")));
    foreman.wait_for(|status| status["since_start"]["done"] == 1).await;
}
