//! An Ollama that hangs in a load is freed, and no job is charged for it.

use std::time::Duration;

use serde_json::json;
use stub_ollama::{Action, Fault, Stub};

use super::{ask, given, serve, served};
use crate::harness::client::{Answer, chat_unstreamed, post};
use crate::harness::{Foreman, stub_config};

/// Attempts and interruptions of a job, by the id in its answer.
fn charges(foreman: &Foreman, answer: &Answer) -> (u32, u32) {
    let id = answer.header("x-foreman-job-id").unwrap();
    let database = rusqlite::Connection::open(foreman.db()).unwrap();
    let sql = "SELECT attempts, interruptions FROM job WHERE id = ?1";
    database.query_row(sql, [id], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

/// A load that hangs for ever.
#[tokio::test]
async fn a_load_that_hangs_is_given_up_and_its_job_is_served() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.load_limit = given("1s");
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    serve(foreman.addr, "a", "warm").await;
    let hangs = Action::SlowLoad(Duration::from_secs(3_600));
    stub.faults(Fault::new(hangs).model("b"));
    let answer = serve(foreman.addr, "b", "x").await;
    assert_eq!(charges(&foreman, &answer), (1, 1), "attempts, interruptions");
    assert_eq!(foreman.status().await["since_start"]["wedges"], 1);
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.aborted_loads, counts.evictions), (2, 1, 0));
    serve(foreman.addr, "a", "goes on").await;
}

/// The real one: somebody else's pin on a busy runner undoes an eviction that Ollama waits for, and everything that needs a
/// load waits behind it for ever. Unloading what is resident frees it.
#[tokio::test]
async fn an_ollama_wedged_by_a_pin_is_freed() {
    let stub = Stub::start(stub_config(&["a", "b", "c"])).await;
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
    assert_eq!(charges(&foreman, &answer), (1, 1), "attempts, interruptions");
    let status = foreman.status().await;
    assert_eq!(status["since_start"]["wedges"], 1);
    for name in ["a", "b", "c"] {
        serve(foreman.addr, name, "goes on").await;
    }
}
