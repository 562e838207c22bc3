//! Pins the scheduler's behaviour, defects included, that foreman is built against.

use std::time::Duration;

use crate::support::{first_byte, open, post, send, spawn_post};
use stub_ollama::{Action, End, Fault, Model, Snapshot, Stub, StubConfig};

fn two_models() -> StubConfig {
    StubConfig::with_models([Model::new("a"), Model::new("b"), Model::embedding("e")])
}

fn chat(model: &str, rest: &str) -> String {
    format!(
        "{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}],\
         \"options\":{{\"num_predict\":3}}{rest}}}"
    )
}

fn load(model: &str, keep_alive: &str) -> String {
    format!("{{\"model\":\"{model}\",\"keep_alive\":{keep_alive}}}")
}

fn pending(count: u64) -> impl Fn(&Snapshot) -> bool {
    move |now| now.pending == count && now.loading.is_some()
}

/// Eight alternating requests that arrive while the first one loads.
#[tokio::test]
async fn alternating_models_cost_a_load_each() {
    let stub = Stub::start(two_models()).await;
    stub.hold_loads();
    let mut answers = vec![spawn_post(&stub, "/api/chat", &chat("a", ""))];
    stub.wait_until(pending(0)).await;
    for (index, model) in (1..).zip(["b", "a", "b", "a", "b", "a", "b"]) {
        answers.push(spawn_post(&stub, "/api/chat", &chat(model, "")));
        stub.wait_until(pending(index)).await;
    }
    stub.release_loads();
    for answer in answers {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.evictions), (8, 7));
    assert_eq!(counts.models_generating_max, 1);
    stub.shutdown().await;
}

#[tokio::test]
async fn a_resident_model_is_not_queued_and_not_reloaded() {
    let stub = Stub::start(two_models()).await;
    for _ in 0..3 {
        post(&stub, "/api/chat", &chat("a", "")).await;
    }
    post(&stub, "/v1/chat/completions", r#"{"model":"A:latest","messages":[{"content":"x"}]}"#)
        .await;
    assert_eq!(stub.counts().loads, 1);
    stub.shutdown().await;
}

#[tokio::test]
async fn another_num_ctx_reloads_the_same_model() {
    let stub = Stub::start(two_models()).await;
    let with_context = r#"{"model":"a","prompt":"x","options":{"num_ctx":8192}}"#;
    post(&stub, "/api/generate", r#"{"model":"a","prompt":"x"}"#).await;
    post(&stub, "/api/generate", with_context).await;
    post(&stub, "/api/generate", with_context).await;
    post(&stub, "/api/generate", r#"{"model":"a","prompt":"x"}"#).await;
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.reloads, counts.evictions), (3, 2, 0));
    stub.shutdown().await;
}

#[tokio::test]
async fn aliases_of_one_blob_share_a_runner() {
    let config = StubConfig::with_models([
        Model::new("a").blob("sha256-1"),
        Model::new("z").blob("sha256-1"),
    ]);
    let stub = Stub::start(config).await;
    post(&stub, "/api/chat", &chat("z", "")).await;
    post(&stub, "/api/chat", &chat("a", "")).await;
    assert_eq!(stub.counts().loads, 1);
    let ps = send(&stub, "GET", "/api/ps", "").await;
    assert!(ps.body.contains("\"name\":\"z:latest\"") && !ps.body.contains("a:latest"));
    stub.shutdown().await;
}

/// Modelfiles that share a blob and not its adapters or projectors push each other out.
#[tokio::test]
async fn other_adapters_and_projectors_reload_the_blob() {
    let config = StubConfig::with_models([
        Model::new("a").blob("sha256-1"),
        Model::new("adapted").blob("sha256-1").adapter("/x"),
        Model::new("sees").blob("sha256-1").projector("/x"),
    ]);
    let stub = Stub::start(StubConfig { max_loaded: 3, ..config }).await;
    for model in ["a", "adapted", "sees", "a"] {
        post(&stub, "/api/chat", &chat(model, "")).await;
        assert_eq!(stub.snapshot().resident.len(), 1);
    }
    assert_eq!((stub.counts().loads, stub.counts().reloads), (4, 3));
    stub.shutdown().await;
}

/// The parameters of a Modelfile and the same options of a request make the same runner.
#[tokio::test]
async fn a_modelfile_s_parameters_count_as_a_request_s_options() {
    let config = StubConfig::with_models([
        Model::new("a").blob("sha256-1"),
        Model::new("wide").blob("sha256-1").parameter("num_ctx", "8192"),
    ]);
    let stub = Stub::start(config).await;
    post(&stub, "/api/chat", &chat("wide", "")).await;
    let asked = r#"{"model":"a","prompt":"x","options":{"num_ctx":8192}}"#;
    post(&stub, "/api/generate", asked).await;
    assert_eq!((stub.counts().loads, stub.counts().reloads), (1, 0));
    post(&stub, "/api/chat", &chat("a", "")).await;
    assert_eq!((stub.counts().loads, stub.counts().reloads), (2, 1));
    let unload = post(&stub, "/api/generate", &load("wide", "0")).await;
    assert!(unload.body.contains("\"done_reason\":\"unload\""));
    assert!(stub.snapshot().resident.is_empty(), "an unload goes by the blob");
    stub.shutdown().await;
}

/// Ollama issue 17408: a keep-alive on the fast path undoes a pending eviction.
#[tokio::test]
async fn a_keep_alive_wedges_a_pending_eviction_until_an_unload() {
    let stub = Stub::start(two_models()).await;
    post(&stub, "/api/generate", &load("a", "\"5m\"")).await;
    stub.hold_tokens();
    let first = spawn_post(&stub, "/api/chat", &chat("a", ""));
    stub.wait_until(|now| now.generating.len() == 1).await;
    let blocked = spawn_post(&stub, "/api/chat", &chat("b", ""));
    stub.wait_until(|now| now.evicting.as_deref() == Some("a:latest")).await;
    let second = spawn_post(&stub, "/api/chat", &chat("a", ",\"keep_alive\":-1"));
    stub.wait_until(|now| now.resident[0].users == 2).await;
    stub.release_tokens();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(second.await.unwrap().status, 200);
    // A is idle and B still waits: that is the wedge.
    let wedged = stub.wait_until(|now| now.resident[0].users == 0).await;
    assert_eq!(wedged.evicting.as_deref(), Some("a:latest"));
    assert!(!blocked.is_finished());
    assert_eq!(post(&stub, "/api/chat", &chat("a", "")).await.status, 200);
    let unload = post(&stub, "/api/generate", &load("a", "0")).await;
    assert!(unload.body.contains("\"done_reason\":\"unload\""));
    assert_eq!(blocked.await.unwrap().status, 200);
    stub.shutdown().await;
}

#[tokio::test]
async fn without_a_keep_alive_the_pending_eviction_completes() {
    let stub = Stub::start(two_models()).await;
    post(&stub, "/api/generate", &load("a", "-1")).await;
    stub.hold_tokens();
    let first = spawn_post(&stub, "/api/chat", &chat("a", ""));
    stub.wait_until(|now| now.generating.len() == 1).await;
    let other = spawn_post(&stub, "/api/chat", &chat("b", ""));
    stub.wait_until(|now| now.evicting.is_some()).await;
    let second = spawn_post(&stub, "/api/chat", &chat("a", ""));
    stub.wait_until(|now| now.resident[0].users == 2).await;
    stub.release_tokens();
    for answer in [first, second, other] {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(stub.counts().evictions, 1);
    stub.shutdown().await;
}

#[tokio::test]
async fn a_client_leaving_during_its_load_aborts_it() {
    let stub = Stub::start(two_models()).await;
    stub.hold_loads();
    let stream = open(stub.addr(), "POST", "/api/chat", &chat("a", "")).await;
    stub.wait_until(pending(0)).await;
    drop(stream);
    let after = stub.wait_until(|now| now.counts.aborted_loads == 1).await;
    assert_eq!((after.counts.loads, after.resident.len()), (0, 0));
    stub.wait_until(|now| now.counts.client_gone == 1).await;
    stub.shutdown().await;
}

#[tokio::test]
async fn a_client_leaving_the_queue_is_skipped() {
    let stub = Stub::start(two_models()).await;
    stub.hold_loads();
    let first = spawn_post(&stub, "/api/chat", &chat("a", ""));
    stub.wait_until(pending(0)).await;
    let stream = open(stub.addr(), "POST", "/api/chat", &chat("b", "")).await;
    stub.wait_until(pending(1)).await;
    drop(stream);
    stub.wait_until(|now| now.counts.client_gone == 1).await;
    stub.release_loads();
    assert_eq!(first.await.unwrap().status, 200);
    let after = stub.wait_until(|now| now.counts.skipped_pending == 1).await;
    assert_eq!((after.counts.loads, after.counts.evictions), (1, 0));
    stub.shutdown().await;
}

#[tokio::test]
async fn a_client_leaving_an_eviction_leaves_nothing_loaded() {
    let stub = Stub::start(two_models()).await;
    stub.hold_tokens();
    let first = spawn_post(&stub, "/api/chat", &chat("a", ""));
    stub.wait_until(|now| now.generating.len() == 1).await;
    let stream = open(stub.addr(), "POST", "/api/chat", &chat("b", "")).await;
    stub.wait_until(|now| now.evicting.is_some()).await;
    drop(stream);
    stub.wait_until(|now| now.counts.client_gone == 1).await;
    stub.release_tokens();
    assert_eq!(first.await.unwrap().status, 200);
    let after = stub.wait_until(|now| now.counts.aborted_loads == 1).await;
    assert!(after.resident.is_empty());
    stub.shutdown().await;
}

#[tokio::test]
async fn a_client_leaving_its_stream_frees_the_slot_at_once() {
    let stub = Stub::start(two_models()).await;
    let long = r#"{"model":"a","prompt":"x","options":{"num_predict":100000}}"#;
    let mut stream = open(stub.addr(), "POST", "/api/generate", long).await;
    first_byte(&mut stream).await;
    drop(stream);
    stub.wait_until(|now| now.counts.client_gone == 1 && now.generating.is_empty()).await;
    assert_eq!(post(&stub, "/api/chat", &chat("a", "")).await.status, 200);
    let log = stub.log();
    assert_eq!((log[0].end, log[1].end), (Some(End::ClientGone), Some(End::Complete)));
    stub.shutdown().await;
}

#[tokio::test]
async fn keep_alive_is_sticky_and_zero_unloads_when_idle() {
    let stub = Stub::start(two_models()).await;
    post(&stub, "/api/generate", &load("a", "-1")).await;
    post(&stub, "/api/chat", &chat("a", "")).await;
    assert_eq!(stub.snapshot().resident[0].keep_alive_ns, i64::MAX);
    let ps = send(&stub, "GET", "/api/ps", "").await;
    assert!(ps.body.contains("\"expires_at\":\"23"), "{}", ps.body);
    post(&stub, "/api/chat", &chat("a", ",\"keep_alive\":0")).await;
    assert!(stub.snapshot().resident.is_empty());
    post(&stub, "/api/generate", &load("a", "\"30ms\"")).await;
    stub.wait_until(|now| now.resident.is_empty()).await;
    assert_eq!(stub.counts().evictions, 0);
    stub.shutdown().await;
}

#[tokio::test]
async fn an_unload_answers_at_once_and_waits_for_the_users() {
    let stub = Stub::start(two_models()).await;
    stub.hold_tokens();
    let busy = spawn_post(&stub, "/api/chat", &chat("a", ""));
    stub.wait_until(|now| now.generating.len() == 1).await;
    let unload = post(&stub, "/api/chat", r#"{"model":"a","messages":[],"keep_alive":"0s"}"#).await;
    assert!(unload.body.contains("\"done_reason\":\"unload\""));
    assert!(stub.snapshot().is_resident("a:latest"));
    stub.release_tokens();
    assert_eq!(busy.await.unwrap().status, 200);
    stub.wait_until(|now| now.resident.is_empty()).await;
    stub.shutdown().await;
}

#[tokio::test]
async fn a_full_queue_is_503_and_a_resident_model_does_not_count() {
    let stub = Stub::start(StubConfig { max_queue: 1, ..two_models() }).await;
    stub.hold_loads();
    let first = spawn_post(&stub, "/api/chat", &chat("a", ""));
    stub.wait_until(pending(0)).await;
    let second = spawn_post(&stub, "/api/chat", &chat("b", ""));
    stub.wait_until(pending(1)).await;
    let refused = post(&stub, "/api/chat", &chat("b", "")).await;
    assert_eq!(refused.status, 503);
    assert_eq!(
        refused.body,
        r#"{"error":"server busy, please try again.  maximum pending requests exceeded"}"#
    );
    stub.release_loads();
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (200, 200));
    stub.shutdown().await;
}

#[tokio::test]
async fn a_loading_model_is_not_listed() {
    let stub = Stub::start(two_models()).await;
    stub.hold_loads();
    let loading = spawn_post(&stub, "/api/chat", &chat("a", ""));
    stub.wait_until(pending(0)).await;
    assert_eq!(send(&stub, "GET", "/api/ps", "").await.body, r#"{"models":[]}"#);
    stub.release_loads();
    loading.await.unwrap();
    assert!(send(&stub, "GET", "/api/ps", "").await.body.contains("a:latest"));
    stub.shutdown().await;
}

#[tokio::test]
async fn the_shortest_keep_alive_goes_first_and_a_tie_goes_by_blob() {
    let models = ["a", "b", "c"].map(|name| Model::new(name).blob(&format!("sha256-{name}")));
    let stub = Stub::start(StubConfig { max_loaded: 2, ..StubConfig::with_models(models) }).await;
    post(&stub, "/api/generate", &load("a", "-1")).await;
    post(&stub, "/api/generate", &load("b", "\"5m\"")).await;
    post(&stub, "/api/generate", &load("c", "-1")).await;
    assert!(stub.snapshot().is_resident("a:latest") && stub.snapshot().is_resident("c:latest"));
    // Both pinned: the tie goes to the first blob, and a pin protects nothing.
    post(&stub, "/api/generate", &load("b", "-1")).await;
    assert!(stub.snapshot().is_resident("b:latest") && stub.snapshot().is_resident("c:latest"));
    assert_eq!(stub.counts().evictions, 2);
    stub.shutdown().await;
}

#[tokio::test]
async fn an_idle_pinned_model_goes_before_a_busy_one() {
    let models = ["a", "b", "c"].map(|name| Model::new(name).blob(&format!("sha256-{name}")));
    let stub = Stub::start(StubConfig { max_loaded: 2, ..StubConfig::with_models(models) }).await;
    post(&stub, "/api/generate", &load("a", "\"5m\"")).await;
    post(&stub, "/api/generate", &load("b", "-1")).await;
    stub.hold_tokens();
    let busy = spawn_post(&stub, "/api/chat", &chat("a", ""));
    stub.wait_until(|now| now.generating.len() == 1).await;
    post(&stub, "/api/generate", &load("c", "-1")).await;
    assert!(stub.snapshot().is_resident("a:latest") && !stub.snapshot().is_resident("b:latest"));
    stub.release_tokens();
    assert_eq!(busy.await.unwrap().status, 200);
    stub.shutdown().await;
}

#[tokio::test]
async fn an_embedding_takes_residency_and_keep_alive_zero_loads_first() {
    let stub = Stub::start(two_models()).await;
    post(&stub, "/api/chat", &chat("a", "")).await;
    let answer =
        post(&stub, "/api/embed", r#"{"model":"e","input":["x","y"],"keep_alive":0}"#).await;
    assert_eq!(answer.status, 200);
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.evictions, counts.unloads), (2, 1, 2));
    assert!(stub.snapshot().resident.is_empty());
    stub.shutdown().await;
}

#[tokio::test]
async fn deleting_a_loaded_model_leaves_a_runner_nobody_can_name() {
    let stub = Stub::start(two_models()).await;
    post(&stub, "/api/generate", &load("a", "-1")).await;
    assert_eq!(send(&stub, "DELETE", "/api/delete", r#"{"model":"a"}"#).await.status, 200);
    assert!(stub.snapshot().is_resident("a:latest"));
    assert_eq!(post(&stub, "/api/generate", &load("a", "0")).await.status, 404);
    assert!(stub.snapshot().is_resident("a:latest"));
    stub.shutdown().await;
}

#[tokio::test]
async fn slots_limit_the_generations_of_one_runner() {
    let stub = Stub::start(StubConfig { num_parallel: 2, ..two_models() }).await;
    post(&stub, "/api/generate", &load("a", "-1")).await;
    stub.hold_tokens();
    let answers: Vec<_> = (0..4).map(|_| spawn_post(&stub, "/api/chat", &chat("a", ""))).collect();
    stub.wait_until(|now| now.gpu_requests == 4 && now.generating.len() == 2).await;
    stub.release_tokens();
    for answer in answers {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(stub.counts().generations_max, 2);
    stub.shutdown().await;
}

#[tokio::test]
async fn a_killed_runner_stays_listed_and_the_next_request_reloads() {
    let stub = Stub::start(two_models()).await;
    stub.faults(Fault::new(Action::KillRunner(0)).model("a"));
    let crashed = post(&stub, "/api/chat", &chat("a", "")).await;
    assert_eq!(crashed.status, 500);
    assert_eq!(
        crashed.body,
        r#"{"error":"llama-server process has terminated: signal: segmentation fault"}"#
    );
    assert!(send(&stub, "GET", "/api/ps", "").await.body.contains("a:latest"));
    assert_eq!(post(&stub, "/api/chat", &chat("a", "")).await.status, 200);
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.reloads, counts.evictions), (2, 1, 0));
    stub.shutdown().await;
}

#[tokio::test]
async fn ps_stalls_while_a_runner_leaves() {
    let config = StubConfig { unload_time: Duration::from_millis(150), ..two_models() };
    let stub = Stub::start(config).await;
    post(&stub, "/api/generate", &load("a", "-1")).await;
    post(&stub, "/api/generate", &load("a", "0")).await;
    assert_eq!(send(&stub, "GET", "/api/ps", "").await.body, r#"{"models":[]}"#);
    let log = stub.log();
    let ps = log.last().unwrap();
    assert!(ps.first_byte_at.unwrap() - log[1].ended_at.unwrap() >= Duration::from_millis(140));
    stub.shutdown().await;
}
