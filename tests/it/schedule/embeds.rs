//! Embeds of a model that is not resident: foreman loads it at a border, once, and then they flow.

use serde_json::{Value, json};
use stub_ollama::{Stub, StubConfig};

use super::{ask, given, serve, served};
use crate::harness::client::post;
use crate::harness::{Foreman, stub_config};

/// The bodies of the embeds the stub was given, in order.
fn embeds(stub: &Stub) -> Vec<Value> {
    let log = stub.log();
    let embeds = log.iter().filter(|entry| entry.path == "/api/embed");
    embeds.map(|entry| serde_json::from_slice(&entry.body).unwrap()).collect()
}

/// Five embeds at once while a chat is in flight: it is not disturbed, one load makes them all run, and that load carries no
/// input of theirs.
#[tokio::test]
async fn an_embedder_that_is_not_resident_is_loaded_once_at_the_border() {
    for beside in ["off", "auto"] {
        let stub = Stub::start(StubConfig { max_loaded: 2, ..stub_config(&["a"]) }).await;
        let foreman = Foreman::start_with(&stub, |raw| raw.beside = given(beside)).await.up().await;
        let addr = foreman.addr;
        stub.hold_tokens();
        let chat = ask(addr, "a", "long");
        stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        let clients: Vec<_> = (0..5)
            .map(|number| {
                let body = json!({ "model": "embed", "input": format!("text {number}") });
                tokio::spawn(async move { post(addr, "/api/embed", &body).await })
            })
            .collect();
        foreman.wait_for(|status| status["embeds"]["in_flight"] == 5).await;
        for _ in 0..20 {
            foreman.status().await;
        }
        assert!(embeds(&stub).is_empty(), "nothing is loaded beside a job in flight");
        stub.release_tokens();
        served(chat).await;
        for client in clients {
            assert_eq!(client.await.unwrap().status, 200);
        }
        let embeds = embeds(&stub);
        assert_eq!(embeds.len(), 6, "{embeds:?}");
        assert!(embeds[0]["input"].is_null(), "the load is foreman's own: {embeds:?}");
        assert!(embeds[1..].iter().all(|body| body["input"].is_string()), "{embeds:?}");
        let counts = stub.counts();
        assert_eq!((counts.loads, counts.evictions, counts.client_gone), (2, 0, 0), "{beside}");
        serve(addr, "a", "again").await;
        assert_eq!(stub.counts().loads, 2, "the worker's model was left alone");
    }
}
