//! What a client that waits is sent before its answer, and that the answer itself is untouched.

use std::time::Duration;

use serde_json::Value;

use super::{EVENTS, NATIVE, busy, direct, given};
use crate::harness::client::post_stream;
use crate::harness::{DEADLINE, get};
use crate::same::body_of;

/// Reads what comes until it has at least so many bytes.
async fn read(stream: &mut crate::harness::client::Stream, bytes: usize) -> String {
    let mut seen = Vec::new();
    while seen.len() < bytes {
        seen.extend_from_slice(&stream.next().await.expect("it ended").expect("it was cut"));
    }
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn a_native_stream_that_waits_gets_spaces_and_then_its_own_bytes() {
    let (stub, foreman, before) = busy(|_| ()).await;
    for route in NATIVE {
        let mut stream = post_stream(foreman.addr, route, &body_of(route, "a", "x", true)).await;
        assert_eq!(stream.status, 200);
        assert_eq!(stream.headers["content-type"], "application/x-ndjson");
        assert_eq!(stream.headers["x-foreman-queue-state"], "queued");
        assert_eq!(stream.headers["x-foreman-queue-position"], "1");
        assert!(stream.headers.contains_key("x-foreman-queue-estimate-ms"));
        let id = stream.headers["x-foreman-job-id"].to_str().unwrap().to_owned();
        let job = get(foreman.addr, &format!("/jobs/{id}")).await.json();
        assert_eq!((&job["state"], &job["attempt"]), (&Value::from("queued"), &Value::from(0)));
        let waited = read(&mut stream, 3).await;
        assert!(waited.bytes().all(|byte| byte == b' '), "{waited:?}");
        stub.release_tokens();
        let rest = stream.rest().await;
        assert!(rest.is_whole);
        assert_eq!(rest.text().trim_start_matches(' '), direct(&stub, route, true).await.text());
        drop(super::occupy(&stub, foreman.addr).await);
    }
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
}

#[tokio::test]
async fn an_event_stream_that_waits_gets_comments_with_its_place_and_then_its_own_bytes() {
    let (stub, foreman, before) = busy(|_| ()).await;
    for route in EVENTS {
        let mut stream = post_stream(foreman.addr, route, &body_of(route, "a", "x", true)).await;
        assert_eq!(stream.headers["content-type"], "text/event-stream");
        let comment = ": foreman queued position=1 model=a\n\n";
        assert_eq!(read(&mut stream, 2 * comment.len()).await, comment.repeat(2));
        stub.release_tokens();
        let rest = stream.rest().await;
        assert!(rest.is_whole);
        let text = rest.text();
        let answer: String =
            text.split_inclusive("\n\n").filter(|event| !event.starts_with(':')).collect();
        let direct = direct(&stub, route, true).await;
        assert_eq!(answer, direct.text(), "{route}");
        assert_eq!(rest.header("cache-control"), direct.header("cache-control"), "{route}");
        drop(super::occupy(&stub, foreman.addr).await);
    }
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
}

#[tokio::test]
async fn anthropics_clients_get_pings() {
    let (stub, foreman, before) = busy(|_| ()).await;
    let route = "/v1/messages";
    let mut stream = post_stream(foreman.addr, route, &body_of(route, "a", "x", true)).await;
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    assert_eq!(read(&mut stream, 2 * ping.len()).await, ping.repeat(2));
    stub.release_tokens();
    let rest = stream.rest().await;
    assert!(rest.is_whole);
    let direct = direct(&stub, route, true).await;
    assert_eq!(rest.text().replace(ping, ""), direct.text());
    assert_eq!(rest.header("cache-control"), direct.header("cache-control"));
    assert!(before.await.unwrap().is_whole);
}

#[tokio::test]
async fn empty_chunks_are_whole_records_of_the_route() {
    let (stub, foreman, before) = busy(|raw| raw.waiting_stream = given("chunks")).await;
    for route in NATIVE {
        let mut stream = post_stream(foreman.addr, route, &body_of(route, "a", "x", true)).await;
        let waited = read(&mut stream, 100).await;
        for line in waited.lines() {
            let chunk: Value = serde_json::from_str(line).unwrap();
            assert_eq!((&chunk["model"], &chunk["done"]), (&"a".into(), &false.into()), "{line}");
            let content = chunk.pointer("/message/content").or(chunk.get("response"));
            assert_eq!(content, Some(&"".into()));
        }
        stub.release_tokens();
        let rest = stream.rest().await;
        assert!(rest.text().ends_with(&direct(&stub, route, true).await.text()), "{}", rest.text());
        drop(super::occupy(&stub, foreman.addr).await);
    }
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
}

/// Nothing, not even a head: the status of an unstreamed answer is Ollama's.
#[tokio::test]
async fn an_unstreamed_answer_does_not_begin_early_unless_asked_for() {
    let (stub, foreman, before) = busy(|_| ()).await;
    let addr = foreman.addr;
    let mut stream =
        post_stream(addr, "/api/chat", &body_of("/api/chat", "a", "first", true)).await;
    let unstreamed = tokio::spawn(async move {
        post_stream(addr, "/api/chat", &body_of("/api/chat", "a", "x", false)).await
    });
    foreman.wait_for_depth(2).await;
    // Several intervals long: the stream beside it counts them.
    read(&mut stream, 4).await;
    assert!(!unstreamed.is_finished());
    stub.release_tokens();
    let answer = unstreamed.await.unwrap();
    assert!(answer.headers.contains_key("x-foreman-queue-ms"));
    assert!(answer.rest().await.text().starts_with('{'));
    assert!(before.await.unwrap().is_whole);
}

#[tokio::test]
async fn an_unstreamed_answer_begins_with_spaces_where_asked_for() {
    let (stub, foreman, before) = busy(|raw| raw.waiting_unstreamed = given("spaces")).await;
    for route in
        ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/responses", "/v1/messages"]
    {
        let mut stream = post_stream(foreman.addr, route, &body_of(route, "a", "x", false)).await;
        assert_eq!(read(&mut stream, 2).await.trim_start_matches(' '), "", "{route}");
        stub.release_tokens();
        let rest = stream.rest().await;
        assert!(rest.is_whole);
        let direct = direct(&stub, route, false).await;
        assert_eq!(rest.text().trim_start_matches(' '), direct.text(), "{route}");
        assert_eq!(rest.header("content-type"), direct.header("content-type"), "{route}");
        drop(super::occupy(&stub, foreman.addr).await);
    }
    stub.release_tokens();
    assert!(before.await.unwrap().is_whole);
}

/// Bytes to ignore are no part of the answer: the job may still be tried again.
#[tokio::test]
async fn a_job_is_tried_again_behind_early_headers() {
    use stub_ollama::{Action, Cut, Fault};
    let (stub, foreman, before) = busy(|_| ()).await;
    stub.faults(Fault::new(Action::CutBeforeHeaders(Cut::Reset)).path("/api/chat").model("a"));
    let mut stream =
        post_stream(foreman.addr, "/api/chat", &body_of("/api/chat", "a", "x", true)).await;
    read(&mut stream, 1).await;
    stub.release_tokens();
    let rest = stream.rest().await;
    assert!(rest.is_whole, "{}", rest.text());
    let direct = direct(&stub, "/api/chat", true).await;
    assert_eq!(rest.text().trim_start_matches(' '), direct.text());
    foreman.wait_for(|status| status["since_start"]["retries"] == 1).await;
    assert!(before.await.unwrap().is_whole);
}

/// A client that gives up sooner than the interval is kept all the same; others are not bothered more often for it.
#[tokio::test]
async fn a_client_that_names_a_shorter_limit_is_kept_within_it() {
    let (stub, foreman, before) = busy(|raw| raw.waiting_interval = given("1h")).await;
    let body = body_of("/v1/chat/completions", "a", "x", true).to_string();
    let headers = [("x-stainless-retry-count", "0"), ("x-stainless-read-timeout", "0.4")];
    let request = crate::same::with(foreman.addr, "/v1/chat/completions", body, &headers);
    let stream = crate::harness::client::open(foreman.addr, request);
    let mut stream = tokio::time::timeout(DEADLINE, stream).await.unwrap().unwrap();
    assert!(read(&mut stream, 30).await.starts_with(": foreman queued"));
    stub.release_tokens();
    assert!(stream.rest().await.text().ends_with("data: [DONE]\n\n"));
    assert!(before.await.unwrap().is_whole);
}

#[tokio::test]
async fn off_is_off() {
    let (stub, foreman, before) = busy(|raw| raw.waiting_interval = given("off")).await;
    let addr = foreman.addr;
    let waits = tokio::spawn(async move {
        post_stream(addr, "/api/chat", &body_of("/api/chat", "a", "x", true)).await
    });
    foreman.wait_for_depth(1).await;
    let waited = tokio::time::timeout(Duration::from_millis(500), async {
        while !waits.is_finished() {
            foreman.status().await;
        }
    });
    assert!(waited.await.is_err(), "it began early");
    stub.release_tokens();
    let answer = waits.await.unwrap();
    assert!(answer.headers.contains_key("x-foreman-queue-ms"));
    assert!(answer.rest().await.is_whole);
    assert!(before.await.unwrap().is_whole);
}
