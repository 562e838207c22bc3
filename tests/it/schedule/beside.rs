//! Several worker models in memory: what fits is learned by one trial a pair, and remembered over a restart.

use serde_json::Value;
use stub_ollama::{Stub, StubConfig};

use super::{ask, given, serve, served};
use crate::harness::{Foreman, stub_config};

/// Where two fit they stay: two models in turn cost two loads in all.
#[tokio::test]
async fn two_models_that_fit_cost_a_load_each_however_they_alternate() {
    let stub = Stub::start(StubConfig { max_loaded: 2, ..stub_config(&["a", "b"]) }).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.beside = given("auto")).await.up().await;
    for _ in 0..6 {
        serve(foreman.addr, "a", "x").await;
        serve(foreman.addr, "b", "x").await;
    }
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.unloads, counts.evictions), (2, 0, 0));
    let since = &foreman.status().await["since_start"];
    assert_eq!((&since["loads"], &since["swaps"]), (&Value::from(2), &Value::from(0)));
}

/// Where only one fits, each pair is tried once, at the cost of one eviction; then foreman chooses the victims itself, also
/// after a restart.
#[tokio::test]
async fn a_pair_that_does_not_fit_is_tried_once_and_never_again() {
    let models = ["a", "b", "c"];
    let stub = Stub::start(stub_config(&models)).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    for life in 0..2 {
        let tweak = |raw: &mut foreman::config::Raw| raw.beside = given("auto");
        let foreman = Foreman::start_on(&stub.url(), &db, tweak).await.up().await;
        for name in ["a", "b", "a", "c", "b", "c", "a", "b", "a"] {
            serve(foreman.addr, name, "x").await;
            assert!(stub.snapshot().is_resident(&format!("{name}:latest")));
        }
        let counts = stub.counts();
        assert!(counts.evictions <= 3, "a pair was tried twice: {counts:?}");
        if life == 0 {
            assert_eq!(counts.evictions, 3, "three pairs, a trial each");
        }
        let since = &foreman.status().await["since_start"];
        assert_eq!(since["external_unloads"], 0, "a trial is foreman's own doing");
        foreman.stop().await;
    }
    assert_eq!(stub.counts().reloads, 0);
}

/// A third model that does not fit makes one of two go, and it is the one used longest ago.
#[tokio::test]
async fn the_model_used_last_is_kept() {
    let models = ["a", "b", "c"];
    let stub = Stub::start(StubConfig { max_loaded: 2, ..stub_config(&models) }).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.beside = given("auto")).await.up().await;
    // All three pairs are learned to fit, and all three at once not to.
    for name in ["a", "b", "c", "a", "c", "b"] {
        serve(foreman.addr, name, "x").await;
    }
    let learned = stub.counts();
    for name in ["a", "b", "a", "c"] {
        serve(foreman.addr, name, "x").await;
    }
    let snapshot = stub.snapshot();
    assert!(snapshot.is_resident("a:latest") && snapshot.is_resident("c:latest"), "{snapshot:?}");
    let untried = snapshot.counts.evictions - learned.evictions;
    assert_eq!(untried, 0, "nothing is left to be tried: {snapshot:?}");
}

/// A burst over many models on a fresh database. (Each pair was tried in the middle of a queue: 21 loads for 36 chats over six
/// models, 15 of them trials, and 4 for 24 over two.)
#[tokio::test]
async fn a_burst_on_a_fresh_database_costs_a_load_a_model() {
    for (models, jobs) in [(&["a", "b"][..], 24), (&["a", "b", "c", "d", "e", "f"][..], 36)] {
        // Loads that are short beside the queues: a job soon waits for longer than a pair of them.
        let stub = Stub::start(stub_config(models)).await;
        let foreman = Foreman::start_with(&stub, |raw| raw.beside = given("auto")).await.up().await;
        let burst: Vec<_> = (0..jobs)
            .map(|job| ask(foreman.addr, models[job % models.len()], &format!("question {job}")))
            .collect();
        for client in burst {
            served(client).await;
        }
        let counts = stub.counts();
        let most = if models.len() == 2 { 2 } else { 8 };
        assert!(counts.loads <= most, "{} models: {counts:?}", models.len());
    }
}
