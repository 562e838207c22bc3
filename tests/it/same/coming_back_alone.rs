//! Coming back after other ends: a failure meanwhile, a stop, two restarts; and leaving again.

use serde_json::json;
use stub_ollama::{Action, Fault, Stage};

use super::{ATTACHED, JOB, Place, ask, asked, calls, ended, wait_for_depth, with};
use crate::harness::client::{chat, chat_unstreamed, open};
use crate::harness::{DEADLINE, get};

/// What failed while its client was away is no answer: the client gets a fresh try.
#[tokio::test]
async fn a_job_that_failed_meanwhile_is_tried_afresh() {
    let place = Place::new(&["a"]).await;
    let daemon = place.daemon().await;
    let body = chat_unstreamed("a", "x").to_string();
    place.stub.hold_tokens();
    let client = ask(daemon.addr, "/api/chat", body.clone(), &[]);
    place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let id =
        get(daemon.addr, "/jobs").await.json()["data"][0]["job_id"].as_str().unwrap().to_owned();
    daemon.kill().await;
    assert!(client.await.unwrap().is_none());
    let refusal = Action::Answer {
        status: 400,
        text: "no such thing".to_owned(),
        retry_after_seconds: None,
        stage: Stage::AfterLoad,
    };
    place.stub.faults(Fault::new(refusal).path("/api/chat"));
    place.stub.release_tokens();
    let daemon = place.daemon().await;
    assert_eq!(ended(daemon.addr, &id).await["state"], "failed");
    let back = asked(daemon.addr, "/api/chat", body, &[]).await;
    assert_eq!((back.status.as_u16(), back.header(ATTACHED)), (200, None), "{}", back.text());
    assert_ne!(back.header(JOB), Some(id.as_str()));
    daemon.kill().await;
}

/// A stop sends waiting clients away with 503 and cuts nothing that runs; they find their jobs after the start.
#[tokio::test]
async fn who_was_sent_away_by_a_stop_finds_the_job_again() {
    let place = Place::new(&["a"]).await;
    let daemon = place.daemon().await;
    place.stub.hold_tokens();
    let runs = ask(daemon.addr, "/api/chat", chat("a", "runs").to_string(), &[]);
    place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let waits = chat("a", "waits").to_string();
    let client = ask(daemon.addr, "/api/chat", waits.clone(), &[]);
    wait_for_depth(daemon.addr, 1).await;
    daemon.terminate();
    assert_eq!(client.await.unwrap().unwrap().status, 503);
    place.stub.release_tokens();
    assert!(runs.await.unwrap().unwrap().is_whole);
    assert_eq!(daemon.ended().await, Some(0));
    let daemon = place.daemon().await;
    let back = asked(daemon.addr, "/api/chat", waits, &[]).await;
    assert_eq!((back.status.as_u16(), back.header(ATTACHED)), (200, Some("true")));
    let had_it = asked(daemon.addr, "/api/chat", chat("a", "runs").to_string(), &[]).await;
    assert_eq!(had_it.header(ATTACHED), None, "this one had its answer");
    assert_eq!((calls(&place.stub, "waits"), calls(&place.stub, "runs")), (1, 2));
    daemon.kill().await;
}

/// Killed, attached, killed again, and by a stop in between: each time it is the same job, and nobody is charged.
#[tokio::test]
async fn a_client_may_come_back_after_each_of_many_restarts() {
    let place = Place::new(&["a"]).await;
    place.stub.hold_tokens();
    let body = chat_unstreamed("a", "x").to_string();
    let mut daemon = place.daemon().await;
    let mut client = ask(daemon.addr, "/api/chat", body.clone(), &[]);
    place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let id =
        get(daemon.addr, "/jobs").await.json()["data"][0]["job_id"].as_str().unwrap().to_owned();
    for life in 2..=4 {
        daemon.kill().await;
        assert!(client.await.unwrap().is_none());
        daemon = place.daemon().await;
        // One life without its client.
        if life == 3 {
            daemon.kill().await;
            daemon = place.daemon().await;
        }
        client = ask(daemon.addr, "/api/chat", body.clone(), &[]);
        wait_for_class(&daemon, &id, "interactive").await;
        let cut = calls(&place.stub, "\"x\"");
        place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        assert!(cut <= life + 1, "life {life}: {cut} calls");
    }
    place.stub.release_tokens();
    let back = client.await.unwrap().unwrap();
    assert_eq!((back.status.as_u16(), back.header(JOB)), (200, Some(id.as_str())));
    let job = get(daemon.addr, &format!("/jobs/{id}")).await.json();
    assert_eq!((&job["state"], &job["counters"]["attempts"]), (&json!("done"), &json!(1)), "{job}");
    daemon.kill().await;
}

async fn wait_for_class(daemon: &crate::harness::daemon::Daemon, id: &str, class: &str) {
    let found = async {
        while get(daemon.addr, &format!("/jobs/{id}")).await.json()["priority"] != class {}
    };
    tokio::time::timeout(DEADLINE, found).await.expect("nobody was attached");
}

/// Nobody waits for what a restart brought back: it is batch. With its client it is as urgent as the client says now.
#[tokio::test]
async fn a_job_that_its_client_comes_back_for_is_of_the_class_asked_for_now() {
    let place = Place::new(&["a"]).await;
    let daemon = place.daemon().await;
    place.stub.hold_tokens();
    drop(ask(daemon.addr, "/api/chat", chat_unstreamed("a", "first").to_string(), &[]));
    place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let body = chat_unstreamed("a", "second").to_string();
    drop(ask(daemon.addr, "/api/chat", body.clone(), &[]));
    wait_for_depth(daemon.addr, 1).await;
    let id =
        get(daemon.addr, "/jobs").await.json()["data"][0]["job_id"].as_str().unwrap().to_owned();
    daemon.kill().await;
    let daemon = place.daemon().await;
    place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let job = get(daemon.addr, &format!("/jobs/{id}")).await.json();
    assert_eq!((&job["priority"], &job["state"]), (&json!("batch"), &json!("queued")));
    let back = ask(daemon.addr, "/api/chat", body, &[("x-foreman-priority", "interactive")]);
    wait_for_class(&daemon, &id, "interactive").await;
    place.stub.release_tokens();
    assert_eq!(back.await.unwrap().unwrap().header(ATTACHED), Some("true"));
    daemon.kill().await;
}

/// Once attached it is a client like any other: when it leaves, the job is cancelled, waiting or running.
#[tokio::test]
async fn an_attached_client_that_leaves_cancels_its_job() {
    for moment in ["waits", "runs"] {
        let place = Place::new(&["a"]).await;
        let daemon = place.daemon().await;
        place.stub.hold_tokens();
        if moment == "waits" {
            let first = asked(daemon.addr, "/jobs", chat("a", "first").to_string(), &[]).await;
            assert_eq!(first.status, 202);
            place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        }
        let body = chat_unstreamed("a", moment).to_string();
        drop(ask(daemon.addr, "/api/chat", body.clone(), &[]));
        match moment {
            "waits" => wait_for_depth(daemon.addr, 1).await,
            _ => drop(place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await),
        }
        let id = get(daemon.addr, "/jobs").await.json()["data"][0]["job_id"]
            .as_str()
            .unwrap()
            .to_owned();
        daemon.kill().await;
        place.stub.wait_until(|snapshot| snapshot.generating.is_empty()).await;
        let daemon = place.daemon().await;
        place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        let back = tokio::spawn(open(daemon.addr, with(daemon.addr, "/api/chat", body, &[])));
        wait_for_class(&daemon, &id, "interactive").await;
        back.abort();
        assert_eq!(ended(daemon.addr, &id).await["state"], "cancelled", "{moment}");
        daemon.kill().await;
    }
}
