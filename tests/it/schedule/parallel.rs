//! Jobs side by side: of one model only, within `FOREMAN_PARALLEL`, and all of them ended before anything is swapped.

use foreman::app::Stopped;
use stub_ollama::{Action, Fault, Stage, Stub, StubConfig};

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

/// Where two models are resident, jobs side by side are still of one of them, and neither waits for ever.
#[tokio::test]
async fn jobs_side_by_side_are_of_one_model_though_two_are_resident() {
    let config = StubConfig { num_parallel: 3, max_loaded: 2, ..stub_config(&["a", "b"]) };
    let stub = Stub::start(config).await;
    let tweak = |raw: &mut foreman::config::Raw| {
        raw.parallel = given("3");
        raw.beside = given("auto");
    };
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    for model in ["a", "b"] {
        serve(foreman.addr, model, "warm").await;
    }
    let flow: Vec<_> = (0..4)
        .map(|_| {
            let addr = foreman.addr;
            tokio::spawn(async move {
                loop {
                    serve(addr, "a", "flow").await;
                }
            })
        })
        .collect();
    for _ in 0..10 {
        serve(foreman.addr, "b", "x").await;
    }
    assert!(flow.iter().all(|client| !client.is_finished()), "the flow goes on");
    for client in flow {
        client.abort();
    }
    let counts = stub.counts();
    assert_eq!((counts.models_generating_max, counts.loads, counts.unloads), (1, 2, 0));
    assert!(counts.generations_max > 1, "{counts:?}");
}

/// A job whose delay ends while another is in flight takes the free slot; it does not wait for the other to end.
#[tokio::test]
async fn a_delayed_job_takes_a_free_slot_when_its_delay_ends() {
    let stub = Stub::start(StubConfig { num_parallel: 3, ..stub_config(&["a"]) }).await;
    let tweak = |raw: &mut foreman::config::Raw| {
        raw.parallel = given("3");
        raw.retry_delay = given("2s");
        // No poll wakes the worker.
        raw.poll_interval = given("1h");
    };
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    serve(foreman.addr, "a", "warm").await;
    let passing = Action::Answer {
        status: 502,
        text: "passing".to_owned(),
        retry_after_seconds: None,
        stage: Stage::BeforeLoad,
    };
    stub.faults(Fault::new(passing).path("/api/chat").times(1));
    let delayed = ask(foreman.addr, "a", "delayed");
    foreman.wait_for(|status| status["since_start"]["retries"] == 1).await;
    stub.hold_tokens();
    let long = ask(foreman.addr, "a", "long");
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    stub.wait_until(|snapshot| snapshot.generating.len() == 2).await;
    stub.release_tokens();
    served(long).await;
    served(delayed).await;
}
