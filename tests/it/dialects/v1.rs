//! `/v1` knows neither `keep_alive` nor runner options: the pin and the load keys of its jobs are foreman's.

use serde_json::{Value, json};
use stub_ollama::Stub;

use crate::harness::client::post;
use crate::harness::{Foreman, stub_config};

/// A request of each route with members that Ollama does not read there.
fn requests(model: &str) -> [(&'static str, Value); 4] {
    let messages = json!([{ "role": "user", "content": "x" }]);
    let ignored = |mut body: Value| {
        body["model"] = json!(model);
        body["keep_alive"] = json!(0);
        body["options"] = json!({ "num_ctx": 512 });
        body["num_ctx"] = json!(512);
        body["shift"] = json!(false);
        body
    };
    [
        ("/v1/chat/completions", ignored(json!({ "messages": messages }))),
        ("/v1/completions", ignored(json!({ "prompt": "x" }))),
        ("/v1/responses", ignored(json!({ "input": "x" }))),
        ("/v1/messages", ignored(json!({ "max_tokens": 4, "messages": messages }))),
    ]
}

#[tokio::test]
async fn what_v1_does_not_know_neither_unpins_nor_reloads() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for (path, body) in requests("a") {
        let answer = post(foreman.addr, path, &body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let resident = stub.snapshot().resident;
        assert_eq!(resident[0].keep_alive_ns, i64::MAX, "{path}: pinned by foreman");
        let log = stub.log();
        let sent = log.iter().rfind(|entry| entry.path == path).unwrap();
        assert_eq!(sent.body, body.to_string(), "{path}: not a byte of it is changed");
    }
    assert_eq!((stub.counts().loads, stub.counts().unloads), (1, 0));
}

/// A native request with a context of its own has another load key; one without shares that of `/v1`.
#[tokio::test]
async fn v1_shares_the_load_key_of_a_native_request_without_options() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let native = |options: Value| {
        json!({ "model": "a", "stream": false, "options": options,
            "messages": [{ "role": "user", "content": "x" }] })
    };
    for (path, body) in requests("A:latest") {
        assert_eq!(post(foreman.addr, path, &body).await.status, 200);
        let plain = post(foreman.addr, "/api/chat", &native(json!({ "temperature": 0 }))).await;
        assert_eq!(plain.status, 200);
    }
    assert_eq!(stub.counts().loads, 1);
    let other = post(foreman.addr, "/api/chat", &native(json!({ "num_ctx": 512 }))).await;
    assert_eq!(other.status, 200);
    assert_eq!(stub.counts().loads, 2);
    let (path, body) = &requests("a")[0];
    assert_eq!(post(foreman.addr, path, body).await.status, 200);
    assert_eq!(stub.counts().loads, 3, "/v1 never runs on another's context");
    assert_eq!(stub.snapshot().resident[0].keep_alive_ns, i64::MAX);
}
