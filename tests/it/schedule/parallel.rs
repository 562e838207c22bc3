//! Jobs side by side: of one model only, within `FOREMAN_PARALLEL`, and all of them ended before anything is swapped.

use foreman::app::Stopped;
use stub_ollama::{Stub, StubConfig};

use super::{ask, given, known, serve, served};
use crate::harness::{Foreman, stub_config};

async fn three_slots() -> (Stub, Foreman) {
    let stub = Stub::start(StubConfig { num_parallel: 3, ..stub_config(&["a", "b"]) }).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.parallel = given("3")).await.up().await;
    (stub, foreman)
}

/// Jobs of one model overlap up to the limit, those of two models never.
#[tokio::test]
async fn jobs_of_one_model_overlap_and_those_of_two_never_do() {
    let (stub, foreman) = three_slots().await;
    stub.hold_tokens();
    let mut clients = Vec::new();
    for model in ["a", "b", "a", "b", "a", "b", "a", "b", "a", "b"] {
        clients.push(ask(foreman.addr, model, "x"));
    }
    stub.wait_until(|snapshot| snapshot.generating.len() == 3).await;
    known(&foreman, 10).await;
    assert_eq!(foreman.status().await["running"].as_array().unwrap().len(), 3);
    stub.release_tokens();
    for client in clients {
        served(client).await;
    }
    let counts = stub.counts();
    assert_eq!((counts.generations_max, counts.models_generating_max), (3, 1));
    assert_eq!((counts.loads, counts.evictions), (2, 0));
    assert!(counts.gpu_requests_max <= 3, "nothing waits inside Ollama: {counts:?}");
}

/// A swap waits for everything in flight, and takes nothing new on while it waits.
#[tokio::test]
async fn a_swap_waits_for_all_in_flight() {
    let (stub, foreman) = three_slots().await;
    serve(foreman.addr, "a", "warm").await;
    stub.hold_tokens();
    let mut clients: Vec<_> = (0..2).map(|_| ask(foreman.addr, "a", "x")).collect();
    stub.wait_until(|snapshot| snapshot.generating.len() == 2).await;
    clients.push(ask(foreman.addr, "b", "y"));
    known(&foreman, 3).await;
    for _ in 0..20 {
        foreman.status().await;
    }
    let snapshot = stub.snapshot();
    assert_eq!((snapshot.counts.unloads, snapshot.counts.loads), (0, 1));
    assert_eq!((snapshot.loading, snapshot.evicting), (None, None));
    // A third of the same model still finds its place beside them.
    clients.push(ask(foreman.addr, "a", "z"));
    stub.wait_until(|snapshot| snapshot.generating.len() == 3).await;
    stub.release_tokens();
    for client in clients {
        served(client).await;
    }
    let counts = stub.counts();
    assert_eq!((counts.models_generating_max, counts.loads, counts.client_gone), (1, 2, 0));
}

/// A drain finishes all that run side by side.
#[tokio::test]
async fn a_drain_finishes_all_in_flight() {
    let (stub, foreman) = three_slots().await;
    stub.hold_tokens();
    let clients: Vec<_> = (0..3).map(|_| ask(foreman.addr, "a", "x")).collect();
    stub.wait_until(|snapshot| snapshot.generating.len() == 3).await;
    let waiting = ask(foreman.addr, "a", "waits");
    known(&foreman, 4).await;
    foreman.signal().await;
    assert_eq!(waiting.await.unwrap().status, 503);
    stub.release_tokens();
    for client in clients {
        served(client).await;
    }
    assert_eq!(foreman.ended().await, Stopped::Drained);
    assert_eq!((stub.counts().client_gone, stub.counts().generations_max), (0, 3));
}
