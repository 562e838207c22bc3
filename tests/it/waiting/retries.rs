//! Clients that try again by themselves close their connection first: their job outlives them for a moment, and their retry
//! finds it.

use std::net::SocketAddr;

use stub_ollama::Stub;
use tokio::task::JoinHandle;

use super::busy;
use crate::harness::client::{Stream, open};
use crate::harness::{Foreman, get};
use crate::same::{Place, ROUTES, body_of, calls, even, with};

const RETRY_COUNT: &str = "x-stainless-retry-count";
const ATTACHED: &str = "x-foreman-attached";

/// Sends a request as such a client does, without waiting for its answer.
fn send(addr: SocketAddr, route: &str, text: &str, retries: Option<&str>) -> JoinHandle<Stream> {
    let headers: Vec<_> = retries.map(|retries| (RETRY_COUNT, retries)).into_iter().collect();
    let request = with(addr, route, body_of(route, "a", text, false).to_string(), &headers);
    tokio::spawn(async move { open(addr, request).await.unwrap() })
}

async fn only_job(foreman: &Foreman) -> String {
    foreman.wait_for_depth(1).await;
    let jobs = get(foreman.addr, "/jobs?state=queued").await.json();
    jobs["data"][0]["job_id"].as_str().unwrap_or_else(|| panic!("{jobs}")).to_owned()
}

/// Waits until that many clients have closed whose jobs outlive them.
async fn wait_for_lingering(foreman: &Foreman, clients: u64) {
    foreman.wait_for(|status| status["queue"]["lingering"] == clients).await;
}

async fn leave(client: JoinHandle<Stream>) {
    client.abort();
    assert!(client.await.is_err(), "it was answered");
}

/// On each route: a request is closed twice, its retries get the answer of the same job, and the work is done once.
#[tokio::test]
async fn a_retry_attaches_to_the_job_that_waits() {
    let (stub, foreman, before) = busy(|_| ()).await;
    for route in ROUTES {
        let text = format!("once {route}");
        let first = send(foreman.addr, route, &text, Some("0"));
        let id = only_job(&foreman).await;
        leave(first).await;
        wait_for_lingering(&foreman, 1).await;
        let second = send(foreman.addr, route, &text, Some("1"));
        wait_for_lingering(&foreman, 0).await;
        leave(second).await;
        wait_for_lingering(&foreman, 1).await;
        let third = send(foreman.addr, route, &text, Some("2"));
        wait_for_lingering(&foreman, 0).await;
        stub.release_tokens();
        let third = third.await.unwrap();
        assert_eq!(third.headers[ATTACHED], "true", "{route}");
        assert_eq!(third.headers["x-foreman-job-id"], id.as_str());
        assert!(third.rest().await.is_whole);
        assert_eq!(calls(&stub, &text), 1, "{route}");
        drop(super::occupy(&stub, foreman.addr).await);
    }
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
}

/// The work goes on while the client is away, and its retry gets all of it: also where it was done in between.
#[tokio::test]
async fn a_retry_attaches_to_a_job_that_runs_or_has_just_ended() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for ends_in_between in [false, true] {
        let text = format!("away {ends_in_between}");
        stub.hold_tokens();
        let first = send(foreman.addr, "/v1/chat/completions", &text, Some("0"));
        stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        leave(first).await;
        wait_for_lingering(&foreman, 1).await;
        let done = u64::from(ends_in_between) + 1;
        if ends_in_between {
            stub.release_tokens();
            foreman.wait_for(|status| status["since_start"]["done"] == done).await;
        }
        let retry = send(foreman.addr, "/v1/chat/completions", &text, Some("1"));
        wait_for_lingering(&foreman, 0).await;
        stub.release_tokens();
        let retry = retry.await.unwrap();
        assert_eq!(
            (retry.status.as_u16(), &retry.headers[ATTACHED]),
            (200, &"true".parse().unwrap())
        );
        assert!(retry.rest().await.is_whole);
        assert_eq!(calls(&stub, &text), 1);
    }
}

/// A client that does not come back has left; Ollama never hears of its job.
#[tokio::test]
async fn a_client_that_does_not_come_back_has_left() {
    let (stub, foreman, before) = busy(|_| ()).await;
    let first = send(foreman.addr, "/v1/messages", "gone", Some("0"));
    only_job(&foreman).await;
    leave(first).await;
    wait_for_lingering(&foreman, 1).await;
    foreman.wait_for(|status| status["since_start"]["cancelled"] == 1).await;
    wait_for_lingering(&foreman, 0).await;
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
    assert_eq!(calls(&stub, "gone"), 0);
}

/// Only a retry of the very same request, by the same client, is one: others get jobs of their own.
#[tokio::test]
async fn only_a_retry_of_the_same_request_attaches() {
    let (stub, foreman, before) = busy(|_| ()).await;
    let route = "/v1/chat/completions";
    let first = send(foreman.addr, route, "mine", Some("0"));
    let id = only_job(&foreman).await;
    leave(first).await;
    wait_for_lingering(&foreman, 1).await;
    let others = [
        send(foreman.addr, route, "mine", Some("0")),
        send(foreman.addr, route, "mine", None),
        send(foreman.addr, route, "other", Some("1")),
        send(foreman.addr, "/v1/messages", "mine", Some("1")),
    ];
    foreman.wait_for_depth(5).await;
    let back = send(foreman.addr, route, "mine", Some("1"));
    wait_for_lingering(&foreman, 0).await;
    stub.release_tokens();
    assert_eq!(back.await.unwrap().headers["x-foreman-job-id"], id.as_str());
    for other in others {
        let other = other.await.unwrap();
        assert_ne!(other.headers["x-foreman-job-id"], id.as_str());
        assert!(!other.headers.contains_key(ATTACHED));
        assert!(other.rest().await.is_whole);
    }
    assert!(before.await.unwrap().is_whole);
}

/// A client without those headers cancels by closing, as ever, and so does one that has seen a part of its answer.
#[tokio::test]
async fn whoever_will_not_try_again_cancels_by_closing() {
    let (stub, foreman, before) = busy(|_| ()).await;
    let plain = send(foreman.addr, "/v1/chat/completions", "plain", None);
    only_job(&foreman).await;
    leave(plain).await;
    let status = foreman.wait_for(|status| status["queue"]["depth"] == 0).await;
    assert_eq!(status["queue"]["lingering"], 0);
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);

    let body = body_of("/v1/chat/completions", "a", "shown", true).to_string();
    let request = with(foreman.addr, "/v1/chat/completions", body, &[(RETRY_COUNT, "0")]);
    let mut stream = open(foreman.addr, request).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("data: ") {
        seen.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
    }
    stub.hold_tokens();
    drop(stream);
    let status = foreman.wait_for(|status| status["running"] == serde_json::json!([])).await;
    assert_eq!(status["queue"]["lingering"], 0);
}

/// Their libraries try again until they have status and headers, and no longer.
#[tokio::test]
async fn whoever_closes_behind_early_headers_has_left() {
    let (stub, foreman, before) = busy(|_| ()).await;
    let body = body_of("/v1/chat/completions", "a", "begun", true).to_string();
    let request = with(foreman.addr, "/v1/chat/completions", body, &[(RETRY_COUNT, "0")]);
    drop(open(foreman.addr, request).await.unwrap());
    let status = foreman.wait_for(|status| status["queue"]["depth"] == 0).await;
    assert_eq!(status["queue"]["lingering"], 0);
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
    assert_eq!(calls(&stub, "begun"), 0);
}

/// While foreman stops, whoever may be back finds the job after the restart.
#[tokio::test]
async fn a_stop_keeps_the_job_of_a_client_that_may_be_back() {
    let place = Place::new(&["a", "b"]).await;
    let daemon = place.daemon().await;
    let addr = daemon.addr;
    drop(super::occupy(&place.stub, addr).await);
    let first = send(addr, "/v1/chat/completions", "kept", Some("0"));
    crate::same::wait_for_depth(addr, 1).await;
    leave(first).await;
    crate::same::wait_for(addr, |status| status["queue"]["lingering"] == 1).await;
    daemon.terminate();
    daemon.refuses().await;
    place.stub.release_tokens();
    assert_eq!(daemon.ended().await, Some(0));
    let daemon = place.daemon().await;
    let back = send(daemon.addr, "/v1/chat/completions", "kept", Some("1")).await.unwrap();
    assert!(back.rest().await.is_whole);
    assert_eq!(calls(&place.stub, "kept"), 1);
}
