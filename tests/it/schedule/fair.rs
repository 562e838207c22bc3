//! Clients of one model and class take turns: one program's many jobs do not bury another's one, at no more loads.

use std::net::SocketAddr;

use serde_json::{Value, json};
use stub_ollama::Stub;

use super::texts;
use crate::harness::client::{Answer, chat, open, request};
use crate::harness::daemon::Daemon;
use crate::harness::jobs::{done, id_of, object, with_header};
use crate::harness::{Foreman, get, stub_config};

/// What a program named by its `User-Agent` hands in.
async fn hand_in(addr: SocketAddr, agent: &str, path: &str, body: &Value) -> Answer {
    let asked = request(addr, "POST", path, body.to_string());
    let answer = open(addr, with_header(asked, ("user-agent", agent))).await.unwrap().rest().await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer
}

/// Many jobs of one program; the id of the last.
async fn many(addr: SocketAddr, agent: &str, jobs: usize) -> String {
    let bodies: Vec<Value> = (0..jobs).map(|n| chat("a", &format!("{agent} {n}"))).collect();
    let answer = hand_in(addr, agent, "/jobs/batch", &json!(bodies)).await.json();
    id_of(answer["jobs"].as_array().unwrap().last().unwrap())
}

/// One job of a program; its id.
async fn one(addr: SocketAddr, agent: &str) -> String {
    id_of(&hand_in(addr, agent, "/jobs", &chat("a", agent)).await.json())
}

/// How many chats of the many were begun before that one.
fn before(texts: &[String], text: &str) -> usize {
    texts.iter().position(|other| other == text).unwrap()
}

/// Five hundred jobs of one program wait when another hands in its one, and again after kill -9: each time it is served
/// after one more of them, its position says so, and the model is loaded once by each daemon.
#[tokio::test]
async fn one_job_is_not_buried_under_the_five_hundred_of_another_program() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let daemon = Daemon::start(&stub.url(), &db, &[]).await;
    stub.hold_tokens();
    let last = many(daemon.addr, "many", 500).await;
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let early = one(daemon.addr, "early").await;
    assert_eq!(object(daemon.addr, &early).await["position"], 2);
    stub.release_tokens();
    done(daemon.addr, &early).await;
    assert_eq!(before(&texts(&stub), "early"), 2, "the one that ran, and one of those that waited");
    assert_eq!(stub.counts().loads, 1);

    stub.hold_tokens();
    let late = one(daemon.addr, "late").await;
    daemon.kill().await;
    let daemon = Daemon::start(&stub.url(), &db, &[]).await;
    let begun = texts(&stub).len();
    stub.release_tokens();
    done(daemon.addr, &late).await;
    assert!(before(&texts(&stub), "late") <= begun + 2, "{:?}", &texts(&stub)[begun..]);
    assert_eq!(object(daemon.addr, &last).await["state"], "queued");
    done(daemon.addr, &last).await;
    assert_eq!((stub.counts().loads, stub.counts().evictions), (1, 0));
}

/// The list of what waits names the next, not the oldest.
#[tokio::test]
async fn the_status_lists_what_waits_in_the_order_of_service() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    many(foreman.addr, "many", 200).await;
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let id = one(foreman.addr, "one").await;
    let status = get(foreman.addr, "/status").await.json();
    let jobs = status["queue"]["jobs"].as_array().unwrap();
    assert_eq!((jobs.len(), &jobs[1]["id"], &jobs[1]["position"]), (100, &json!(id), &json!(2)));
    stub.release_tokens();
    done(foreman.addr, &id).await;
    foreman.stop().await;
}
