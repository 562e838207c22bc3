//! A model that does not load: whoever waits for it is told within the time of one load, jobs that outlive their callers wait
//! with their attempts, and the others are served.

use serde_json::{Value, json};
use stub_ollama::{Action, Fault, Model, Stub, StubConfig};
use tokio::task::JoinHandle;

use super::{ask, given, known, load_times, serve, served};
use crate::harness::client::{Answer, chat, chat_unstreamed, open, post, request, send};
use crate::harness::jobs::{object, submit, wait_for, with_header};
use crate::harness::{Foreman, stub_config};
use crate::same::{ROUTES, body_of};

const NO_MEMORY: &str = "cudaMalloc failed: out of memory";

fn no_memory() -> Fault {
    Fault::new(Action::FailLoad(NO_MEMORY.to_owned())).model("a")
}

/// The error text of an answer, in whatever shape.
fn error_text(answer: &Answer) -> String {
    let error = &answer.json()["error"];
    error.as_str().or(error["message"].as_str()).unwrap().to_owned()
}

/// An answer that tells of a model that does not load: Ollama's own status and text, what foreman makes of it, and when.
fn is_refused(answer: &Answer) {
    assert_eq!(answer.status, 500, "{}", answer.text());
    let text = error_text(answer);
    assert!(text.starts_with(NO_MEMORY), "{text}");
    assert!(
        text.contains("could not load a:latest") && text.contains("safe to try again in "),
        "{text}"
    );
    assert!(answer.header("retry-after").is_some());
}

fn broken(status: &Value) -> Vec<&str> {
    let broken = status["broken"].as_array().unwrap();
    broken.iter().map(|open| open["lane"].as_str().unwrap()).collect()
}

/// Ten clients of all routes. (Each job had three tries of its own, one behind the other: the tenth client waited for thirty
/// loads and their pauses.)
#[tokio::test]
async fn ten_clients_of_a_model_that_does_not_load_are_told_within_one_load() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.faults(no_memory().forever());
    stub.hold_loads();
    let ask_route = |route: &'static str, is_streamed: bool| -> JoinHandle<Answer> {
        let body = body_of(route, "a", "x", is_streamed);
        tokio::spawn(async move { post(addr, route, &body).await })
    };
    let clients: Vec<_> =
        ROUTES.iter().flat_map(|route| [ask_route(route, true), ask_route(route, false)]).collect();
    known(&foreman, u64::try_from(clients.len()).unwrap()).await;
    stub.release_loads();
    for client in clients {
        is_refused(&client.await.unwrap());
    }
    assert_eq!(stub.counts().failed_loads, 1);
    let status = foreman.wait_for(|status| status["since_start"]["cancelled"] == 0).await;
    assert_eq!(broken(&status), ["a:latest"], "{status:#}");
    assert_eq!(status["broken"][0]["error"], NO_MEMORY);
    // Who comes while its breaker is open is told at once, and nothing is stored.
    let stored = &status["stored"]["failed"];
    for route in ROUTES {
        is_refused(&ask_route(route, true).await.unwrap());
    }
    serve(addr, "b", "others are served").await;
    assert_eq!(stub.counts().failed_loads, 1);
    assert_eq!(&foreman.status().await["stored"]["failed"], stored);
    assert_eq!(foreman.status().await["queue"]["depth"], 0);
}

/// The pause doubles with each failure, the others are served meanwhile, and a load that succeeds makes the next failure a
/// first one again. Jobs that outlive their callers keep their attempts.
#[tokio::test]
async fn an_asynchronous_job_waits_for_its_model_while_others_are_served() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.faults(no_memory().times(2));
    stub.hold_loads();
    let job = json!({ "model": "a", "messages": [{ "role": "user", "content": "x" }] });
    let ids = [submit(addr, &job).await, submit(addr, &job).await];
    stub.wait_until(|snapshot| snapshot.loading.as_deref() == Some("a:latest")).await;
    let other = ask(addr, "b", "2");
    known(&foreman, 3).await;
    stub.release_loads();
    served(other).await;
    assert_eq!(stub.counts().failed_loads, 1, "it waited for one attempt");
    for id in &ids {
        let waiting = object(addr, id).await;
        assert_eq!(waiting["state"], "queued");
        assert_eq!(waiting["counters"]["attempts"], 0, "{waiting:#}");
        assert_eq!(waiting["blocked"]["reason"], "broken", "{waiting:#}");
        assert!(waiting["blocked"]["because"].as_str().unwrap().contains(NO_MEMORY));
    }
    let status = foreman.status().await;
    assert_eq!(status["queue"]["lanes"][0]["blocked"]["reason"], "broken", "{status:#}");
    for _ in 0..5 {
        serve(addr, "b", "3").await;
    }
    assert_eq!(stub.counts().failed_loads, 1, "the others are served while it pauses");
    for id in &ids {
        let done = wait_for(addr, id, |job| job["state"] == "done").await;
        assert_eq!(done["counters"]["attempts"], 1, "{done:#}");
    }
    let at_ms = load_times(&stub, "a");
    assert_eq!(at_ms.len(), 3, "fails, fails, succeeds: {at_ms:?}");
    let (first, second) = (at_ms[1] - at_ms[0], at_ms[2] - at_ms[1]);
    assert!(2 * second > 3 * first, "the pause doubles: {at_ms:?}");
    assert_eq!(stub.counts().evictions, 0);
    serve(addr, "b", "pushes it out").await;
    stub.faults(no_memory());
    is_refused(&ask(addr, "a", "fails again").await.unwrap());
    let status = foreman.status().await;
    assert_eq!(status["broken"][0]["failures"], 1, "a success resets it: {status:#}");
}

/// The same model with options that fit is another key.
#[tokio::test]
async fn other_options_of_the_model_load() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.faults(no_memory());
    let mut large = chat_unstreamed("a", "x");
    large["options"] = json!({ "num_ctx": 16_384 });
    let answer = post(foreman.addr, "/api/chat", &large).await;
    assert!(
        answer.status == 500 && error_text(&answer).contains("num_ctx=16384"),
        "{}",
        answer.text()
    );
    serve(foreman.addr, "a", "small").await;
    let again = post(foreman.addr, "/api/chat", &large).await;
    assert_eq!(again.status, 500, "it is still refused: {}", again.text());
    assert_eq!(stub.counts().failed_loads, 1);
}

/// Whatever may have mended it lets the next client try: Ollama was started anew, or the model is another one.
#[tokio::test]
async fn a_restart_and_a_new_model_close_the_breaker() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.faults(no_memory());
    is_refused(&ask(addr, "a", "x").await.unwrap());
    stub.set_down(true).await;
    foreman.wait_for(|status| status["upstream"]["state"] == "down").await;
    stub.set_down(false).await;
    serve(addr, "a", "after the restart").await;
    serve(addr, "b", "pushes it out").await;
    stub.faults(no_memory());
    is_refused(&ask(addr, "a", "x").await.unwrap());
    is_refused(&ask(addr, "a", "x").await.unwrap());
    let copy = json!({ "source": "b", "destination": "a" });
    assert_eq!(post(addr, "/api/copy", &copy).await.status, 200);
    foreman.wait_for(|status| broken(status).is_empty()).await;
    serve(addr, "a", "another model of that name").await;
}

/// A client with an idempotency key is told like any other, and its job stays: the key leads to its answer later.
#[tokio::test]
async fn a_job_with_an_idempotency_key_outlives_the_error() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.faults(no_memory());
    let asked = || {
        let body = chat_unstreamed("a", "x").to_string();
        with_header(request(addr, "POST", "/api/chat", body), ("idempotency-key", "k"))
    };
    for _ in 0..2 {
        let told = open(addr, asked()).await.unwrap().rest().await;
        is_refused(&told);
        assert!(
            error_text(&told).contains("stays queued") || told.header("x-foreman-job-id").is_some()
        );
    }
    foreman.wait_for(|status| status["since_start"]["done"] == 1).await;
    let answer = open(addr, asked()).await.unwrap().rest().await;
    assert_eq!((answer.status.as_u16(), answer.header("idempotent-replayed")), (200, Some("true")));
    assert_eq!(stub.counts().failed_loads, 1);
}

/// A stream that has begun to wait is told in-band, and cut.
#[tokio::test]
async fn a_stream_that_began_early_is_told_in_band() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.waiting_interval = given("100ms");
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    stub.faults(no_memory());
    stub.hold_loads();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let body = chat("a", "x").to_string();
        let mut stream =
            open(foreman.addr, request(foreman.addr, "POST", "/api/chat", body)).await.unwrap();
        drop(stream.next().await.unwrap().unwrap());
        streams.push(stream);
    }
    stub.release_loads();
    for stream in streams {
        let answer = stream.rest().await;
        assert!(!answer.is_whole);
        let text = answer.text();
        let error: Value = serde_json::from_str(text.trim().lines().last().unwrap()).unwrap();
        assert!(error["error"].as_str().unwrap().starts_with(NO_MEMORY), "{text}");
    }
}

/// A load that fails beside a model that was left in memory is told at once like any other. The next try makes room first.
#[tokio::test]
async fn a_load_that_failed_beside_another_model_is_tried_alone() {
    let stub = Stub::start(StubConfig { max_loaded: 2, ..stub_config(&["a", "b"]) }).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.beside = given("auto")).await.up().await;
    serve(foreman.addr, "b", "warm").await;
    stub.faults(no_memory());
    is_refused(&ask(foreman.addr, "a", "x").await.unwrap());
    serve(foreman.addr, "b", "was left alone").await;
    assert_eq!(stub.counts().unloads, 0);
    foreman.wait_for(|status| broken(status).is_empty()).await;
    serve(foreman.addr, "a", "x").await;
    assert_eq!((stub.counts().failed_loads, stub.counts().unloads), (1, 1));
}

/// A restart of foreman leaves jobs behind for which nobody waits: they have their attempts, and no client is held up.
#[tokio::test]
async fn a_job_that_lost_its_client_has_its_attempts() {
    let models = [Model::new("a").load_time(std::time::Duration::from_millis(20))];
    let stub = Stub::start(StubConfig::with_models(models)).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let foreman = Foreman::start_on(&stub.url(), &db, |_| ()).await.up().await;
    stub.hold_loads();
    let lost = ask(foreman.addr, "a", "lost");
    stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
    foreman.signal().await;
    foreman.signal().await;
    foreman.ended().await;
    drop(lost.await);
    stub.faults(no_memory().times(1));
    stub.release_loads();
    let foreman = Foreman::start_on(&stub.url(), &db, |_| ()).await.up().await;
    foreman.wait_for(|status| status["broken"][0]["lane"] == "a:latest").await;
    let told =
        send(foreman.addr, "POST", "/api/chat", chat_unstreamed("a", "new").to_string()).await;
    is_refused(&told);
    let status = foreman.wait_for(|status| status["since_start"]["done"] == 1).await;
    assert_eq!(status["stored"]["done"], 1, "the lost one was served by the next try");
}
