//! How an answer ends that began early and came to nothing: an error in the route's own shape, then the cut.

use serde_json::Value;
use stub_ollama::{Action, Fault, Stage};

use super::{busy, given};
use crate::harness::Answer;
use crate::harness::client::{Stream, post, post_stream, send};
use crate::same::{ROUTES, body_of};

/// The one error record at the end of an answer, of a stream or of a single value.
fn last_error(route: &str, answer: &Answer) -> Value {
    assert_eq!(answer.status, 200);
    assert!(!answer.is_whole, "{route}: it must not look whole: {}", answer.text());
    let text = answer.text();
    assert!(!text.contains("\n \n") && !text.starts_with('\n'), "{route}: a blank line: {text:?}");
    let record = match answer.header("content-type") {
        Some("text/event-stream") => {
            let event = text.trim_end_matches('\n').rsplit("\n\n").next().unwrap().to_owned();
            let is_named = event.starts_with("event: error\n");
            assert_eq!(is_named, route == "/v1/messages", "{event}");
            event.trim_start_matches("event: error\n").strip_prefix("data: ").unwrap().to_owned()
        }
        _ => text.trim().lines().last().unwrap().to_owned(),
    };
    serde_json::from_str(&record).unwrap_or_else(|fault| panic!("{route}: {fault}: {record:?}"))
}

fn text_of(route: &str, error: &Value) -> String {
    let text = match route {
        "/api/chat" | "/api/generate" => &error["error"],
        _ => &error["error"]["message"],
    };
    text.as_str().unwrap_or_else(|| panic!("{route}: {error}")).to_owned()
}

/// A stream of this route that waits, with at least one byte of it read.
async fn waiting(addr: std::net::SocketAddr, route: &str, is_streamed: bool) -> Stream {
    let mut stream = post_stream(addr, route, &body_of(route, "a", "x", is_streamed)).await;
    drop(stream.next().await.unwrap().unwrap());
    stream
}

/// A fault that hits the job: the load before it is a request to `/api/generate`.
fn at_job(action: Action, route: &str) -> Fault {
    let loads = u64::from(route == "/api/generate");
    Fault::new(action).path(route).model("a").skip(loads)
}

#[tokio::test]
async fn an_error_of_ollamas_is_told_in_band_in_its_own_bytes() {
    let (stub, foreman, before) = busy(|raw| raw.waiting_unstreamed = given("spaces")).await;
    for route in ROUTES {
        for is_streamed in [true, false] {
            let action = Action::Answer {
                status: 400,
                text: "no such <thing>".to_owned(),
                retry_after_seconds: None,
                stage: Stage::AfterLoad,
            };
            stub.faults(at_job(action.clone(), route));
            let stream = waiting(foreman.addr, route, is_streamed).await;
            stub.release_tokens();
            let answer = stream.rest().await;
            let error = last_error(route, &answer);
            assert_eq!(text_of(route, &error), "no such <thing>");
            stub.faults(Fault::new(action).path(route).model("a"));
            let direct = post(stub.addr(), route, &body_of(route, "a", "x", is_streamed)).await;
            assert!(answer.text().contains(direct.text().trim()), "{route}: {}", answer.text());
            drop(super::occupy(&stub, foreman.addr).await);
        }
    }
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
}

#[tokio::test]
async fn a_cancelled_job_tells_its_client_in_band() {
    let (stub, foreman, before) = busy(|raw| raw.waiting_unstreamed = given("spaces")).await;
    for route in ROUTES {
        for is_streamed in [true, false] {
            let stream = waiting(foreman.addr, route, is_streamed).await;
            let id = stream.headers["x-foreman-job-id"].to_str().unwrap().to_owned();
            let cancel = send(foreman.addr, "POST", &format!("/jobs/{id}/cancel"), "").await;
            assert!(cancel.status.is_success(), "{}", cancel.text());
            let error = last_error(route, &stream.rest().await);
            assert_eq!(text_of(route, &error), "the job was cancelled");
        }
    }
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
}

/// The job stays, and its client is told that it may try again.
#[tokio::test]
async fn a_stop_tells_in_band_that_the_job_stays() {
    let (stub, foreman, before) = busy(|_| ()).await;
    let streams = [
        waiting(foreman.addr, "/api/chat", true).await,
        waiting(foreman.addr, "/v1/messages", true).await,
    ];
    foreman.signal().await;
    for (route, stream) in ["/api/chat", "/v1/messages"].into_iter().zip(streams) {
        let id = stream.headers["x-foreman-job-id"].to_str().unwrap().to_owned();
        let told = text_of(route, &last_error(route, &stream.rest().await));
        assert!(told.contains("stopping") && told.contains(&id) && told.contains("try again"));
    }
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
    foreman.ended().await;
    assert_eq!(crate::same::calls(&stub, "\"x\""), 0);
}

#[tokio::test]
async fn a_client_that_leaves_behind_early_headers_cancels_its_job() {
    let (stub, foreman, before) = busy(|_| ()).await;
    for route in ["/api/chat", "/v1/chat/completions"] {
        let stream = waiting(foreman.addr, route, true).await;
        foreman.wait_for_depth(1).await;
        drop(stream);
        foreman.wait_for_depth(0).await;
    }
    foreman.wait_for(|status| status["since_start"]["cancelled"] == 2).await;
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
    assert_eq!(crate::same::calls(&stub, "\"x\""), 0);
}

/// A stream that breaks once it was shown ends as any other, early headers or not.
#[tokio::test]
async fn a_shown_stream_behind_early_headers_breaks_with_an_error_and_a_cut() {
    for route in ROUTES {
        let (stub, foreman, before) = busy(|_| ()).await;
        stub.faults(at_job(Action::KillRunner(3), route));
        let stream = waiting(foreman.addr, route, true).await;
        stub.release_tokens();
        let answer = stream.rest().await;
        let error = last_error(route, &answer);
        assert!(!text_of(route, &error).is_empty());
        assert!(before.await.unwrap().is_whole);
    }
}
