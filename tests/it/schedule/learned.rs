//! What was learned is known after a restart: how long loads take, and who comes back.

use std::time::Duration;

use stub_ollama::{Model, Stub, StubConfig};

use super::agents::{Manner, agent, agents};
use super::{ask, chats, serve, served};
use crate::harness::Foreman;

/// A client known from before the restart is waited for the first time it leaves its model dry.
#[tokio::test]
async fn a_client_known_from_before_a_restart_is_held_for_at_once() {
    const STEPS: usize = 10;
    let model = |name| Model::new(name).load_time(Duration::from_millis(400));
    let config = StubConfig {
        token_time: Duration::from_millis(2),
        default_tokens: 4,
        ..StubConfig::with_models(["a", "b"].map(model))
    };
    let stub = Stub::start(config).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let before = Foreman::start_on(&stub.url(), &db, |_| ()).await.up().await;
    agents(before.addr, &[&["a"]], STEPS, Manner::KeepsConnection).await;
    serve(before.addr, "b", "b has been loaded once").await;
    before.stop().await;
    stub.reset();

    let foreman = Foreman::start_on(&stub.url(), &db, |_| ()).await.up().await;
    stub.hold_tokens();
    let known = tokio::spawn(agent(foreman.addr, &["a"], STEPS, Manner::KeepsConnection));
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let other = ask(foreman.addr, "b", "waits");
    foreman.wait_for_depth(1).await;
    stub.release_tokens();
    known.await.unwrap();
    served(other).await;
    let chats = chats(&stub);
    let place = chats.iter().position(|(model, _)| model == "b").unwrap();
    let scheduler = &foreman.status().await["scheduler"];
    // A client that is known no better is left after its first job. On a busy machine this one may be late once.
    assert!(place > 1, "{scheduler:#}");
    assert!(stub.counts().loads <= 4, "a and b, and back once at most");
    assert!(scheduler["hold_hits"].as_u64().unwrap() >= 1, "{scheduler:#}");
    foreman.stop().await;
}
