//! The queue drains model by model with foreman's own swaps, and Ollama is never left to choose a victim.

use std::time::Duration;

use serde_json::json;
use stub_ollama::{Stub, StubConfig};

use crate::harness::client::{chat, chat_unstreamed};
use crate::harness::{Foreman, model, post, stub_config};

/// Arrivals a b a b …, held back until all are queued: one load each, not one per job.
#[tokio::test]
async fn jobs_over_two_models_drain_with_one_swap() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_loads();
    let mut clients = Vec::new();
    for number in 0..10 {
        let addr = foreman.addr;
        let name = if number % 2 == 0 { "a" } else { "b" };
        clients.push(tokio::spawn(async move {
            post(addr, "/api/chat", &chat_unstreamed(name, &format!("job {number}"))).await
        }));
        foreman
            .wait_for(|status| {
                let waiting = status["queue"]["depth"].as_u64().unwrap();
                waiting + status["running"].as_array().unwrap().len() as u64 == number + 1
            })
            .await;
    }
    stub.release_loads();
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["done"], true);
    }
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.evictions, counts.models_generating_max), (2, 0, 1));
    let status = foreman.status().await;
    assert_eq!(
        (&status["since_start"]["loads"], &status["since_start"]["swaps"]),
        (&json!(2), &json!(1))
    );
}
