//! Hundreds of load keys at once: what is urgent goes first all the same, and each job knows its place.

use serde_json::{Value, json};
use stub_ollama::Stub;

use crate::harness::client::{chat, chat_unstreamed, post};
use crate::harness::jobs::{id_of, object};
use crate::harness::{Foreman, send, stub_config};

const KEYS: u64 = 300;

/// A batch in which each job has a context of its own.
#[tokio::test]
async fn a_chat_goes_before_hundreds_of_keys_and_each_job_knows_its_place() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_loads();
    let with_context = |number: u64| {
        let mut body = chat("a", "x");
        body["options"] = json!({ "num_ctx": 1_000 + number });
        body
    };
    let batch: Vec<Value> = (0..KEYS).map(with_context).collect();
    let answer = send(foreman.addr, "POST", "/jobs/batch", json!(batch).to_string()).await;
    let ids: Vec<String> = answer.json()["jobs"].as_array().unwrap().iter().map(id_of).collect();
    foreman.wait_for_depth(KEYS - 1).await;
    for place in [1_u64, 2, 127, 128, 200, KEYS - 1] {
        let job = object(foreman.addr, &ids[usize::try_from(place).unwrap()]).await;
        assert_eq!(job["position"], place, "{job:#}");
        assert!(job["estimated_start"].is_string(), "{job:#}");
    }
    let queue = foreman.status().await["queue"].clone();
    let lanes = queue["lanes"].as_array().unwrap();
    assert_eq!((lanes.len(), &queue["lanes_more"]), (100, &json!(KEYS - 101)));
    for (lane, number) in lanes.iter().zip(1..) {
        assert_eq!(lane["lane"], format!("a:latest num_ctx={}", 1_000 + number));
        assert_eq!((&lane["position"], &lane["depth"]), (&json!(number), &json!(1)));
    }
    let addr = foreman.addr;
    let asked =
        tokio::spawn(async move { post(addr, "/api/chat", &chat_unstreamed("b", "now")).await });
    foreman.wait_for_depth(KEYS).await;
    stub.release_loads();
    assert_eq!(asked.await.unwrap().status, 200);
    let depth = foreman.status().await["queue"]["depth"].as_u64().unwrap();
    assert!(depth > KEYS * 9 / 10, "it was served behind {} others", KEYS - depth);
}
