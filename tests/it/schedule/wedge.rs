//! An Ollama that hangs in a load is freed; a load that is merely slow is left alone while nobody else waits.

use std::time::Duration;

use serde_json::json;
use stub_ollama::{Action, Fault, Stub, StubConfig};

use super::{ask, given, known, serve, served};
use crate::harness::client::{Answer, chat_unstreamed, post};
use crate::harness::{Foreman, stub_config};

/// Attempts and interruptions of a job, by the id in its answer.
fn charges(foreman: &Foreman, answer: &Answer) -> (u32, u32) {
    let id = answer.header("x-foreman-job-id").unwrap();
    let database = rusqlite::Connection::open(foreman.db()).unwrap();
    let sql = "SELECT attempts, interruptions FROM job WHERE id = ?1";
    database.query_row(sql, [id], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

/// Models so small that the limit is the configured one.
fn small(names: &[&str]) -> StubConfig {
    let mut config = stub_config(names);
    for model in &mut config.models {
        model.size_bytes = 1_000_000;
    }
    config
}

fn load_takes(seconds: u64) -> Fault {
    Fault::new(Action::SlowLoad(Duration::from_secs(seconds))).model("b")
}

/// A load that hangs for ever blocks the others for one limit. It is charged, its key pauses, and it is tried again.
#[tokio::test]
async fn a_load_that_hangs_is_given_up_for_those_who_wait_and_its_job_is_served() {
    let stub = Stub::start(small(&["a", "b"])).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.load_limit = given("1s");
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    serve(foreman.addr, "a", "warm").await;
    stub.faults(load_takes(3_600));
    let hanging = ask(foreman.addr, "b", "x");
    stub.wait_until(|now| now.loading.is_some()).await;
    let other = ask(foreman.addr, "a", "waits");
    known(&foreman, 2).await;
    served(other).await;
    let status = foreman.status().await;
    assert_eq!(status["queue"]["lanes"][0]["blocked"]["reason"], "stuck", "{status:#}");
    serve(foreman.addr, "a", "goes on").await;
    let answer = served(hanging).await;
    assert_eq!(charges(&foreman, &answer), (2, 0), "attempts, interruptions");
    let counts = stub.counts();
    assert_eq!((counts.aborted_loads, counts.evictions), (1, 0));
    serve(foreman.addr, "a", "goes on").await;
}

/// A load that hangs each time is not tried for ever: at the second time its clients are told.
#[tokio::test]
async fn a_load_that_hangs_again_is_told() {
    let stub = Stub::start(small(&["b"])).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.load_limit = given("200ms");
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    stub.faults(load_takes(3_600).forever());
    let clients = [ask(foreman.addr, "b", "x"), ask(foreman.addr, "b", "y")];
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 504, "{}", answer.text());
        let text = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(text.contains("FOREMAN_LOAD_LIMIT") && text.contains("try again in "), "{text}");
    }
    assert_eq!(stub.counts().aborted_loads, 2);
}

/// A load that takes longer than the limit. (It was thrown away at the limit, again and again, and never charged.)
#[tokio::test]
async fn a_slow_load_is_not_thrown_away() {
    let stub = Stub::start(small(&["a", "b"])).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.load_limit = given("600ms");
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    serve(foreman.addr, "a", "warm").await;
    stub.faults(load_takes(1));
    let answer = serve(foreman.addr, "b", "x").await;
    assert_eq!(charges(&foreman, &answer), (1, 0), "attempts, interruptions");
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.aborted_loads), (2, 0));
    assert_eq!(foreman.status().await["since_start"]["wedges"], 0);
}

/// The real one: somebody else's pin on a busy runner undoes an eviction that Ollama waits for, and everything that needs a
/// load waits behind it for ever. Unloading what is resident frees it, and the load goes on.
#[tokio::test]
async fn an_ollama_wedged_by_a_pin_is_freed() {
    let stub = Stub::start(small(&["a", "b", "c"])).await;
    let tweak = |raw: &mut foreman::config::Raw| {
        raw.load_limit = given("1s");
        // The first load beside another model unloads nothing, so that the wedge is met by it.
        raw.beside = given("auto");
    };
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    serve(foreman.addr, "a", "warm").await;
    stub.hold_tokens();
    let direct = stub.addr();
    let first = ask(direct, "a", "direct");
    stub.wait_until(|now| now.generating.len() == 1).await;
    let blocked = ask(direct, "b", "direct");
    stub.wait_until(|now| now.evicting.as_deref() == Some("a:latest")).await;
    let mut pin = chat_unstreamed("a", "direct");
    pin["keep_alive"] = json!(-1);
    let second = tokio::spawn(async move { post(direct, "/api/chat", &pin).await });
    stub.wait_until(|now| now.resident[0].users == 2).await;
    stub.release_tokens();
    served(first).await;
    served(second).await;
    stub.wait_until(|now| now.resident[0].users == 0 && now.evicting.is_some()).await;
    assert!(!blocked.is_finished(), "it is wedged");
    let answer = serve(foreman.addr, "c", "x").await;
    served(blocked).await;
    assert_eq!(charges(&foreman, &answer), (1, 0), "attempts, interruptions");
    assert_eq!(stub.counts().aborted_loads, 0, "its load was not thrown away");
    let status = foreman.status().await;
    assert_eq!(status["since_start"]["wedges"], 1);
    for name in ["a", "b", "c"] {
        serve(foreman.addr, name, "goes on").await;
    }
}
