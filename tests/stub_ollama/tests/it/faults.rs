//! Pins what each scripted fault looks like on the wire.

use std::time::Duration;

use crate::support::{finish, first_byte, open, post, send};
use stub_ollama::{Action, Cut, End, Fault, Model, Stage, Stub, StubConfig};
use tokio::net::TcpStream;

const CHAT: &str =
    r#"{"model":"a","messages":[{"role":"user","content":"x"}],"options":{"num_predict":6}}"#;
const CHAT_V1: &str =
    r#"{"model":"a","messages":[{"role":"user","content":"x"}],"max_tokens":6,"stream":true}"#;

async fn stub() -> Stub {
    Stub::start(StubConfig::with_models([Model::new("a"), Model::embedding("e")])).await
}

#[tokio::test]
async fn an_error_answer_has_the_shape_of_its_path_and_its_retry_after() {
    let stub = stub().await;
    let answer = |stage| Action::Answer {
        status: 429,
        text: "slow down".to_owned(),
        retry_after_seconds: Some(7),
        stage,
    };
    stub.faults(Fault::new(answer(Stage::BeforeLoad)).path("/api/chat").skip(1));
    assert_eq!(post(&stub, "/api/chat", CHAT).await.status, 200);
    let refused = post(&stub, "/api/chat", CHAT).await;
    assert_eq!((refused.status, refused.body.as_str()), (429, r#"{"error":"slow down"}"#));
    assert!(refused.head.contains("Retry-After: 7"), "{}", refused.head);
    stub.faults(Fault::new(answer(Stage::AfterLoad)).model("A:latest"));
    let refused = post(&stub, "/v1/chat/completions", CHAT_V1).await;
    assert_eq!(
        refused.body,
        "{\"error\":{\"message\":\"slow down\",\"type\":\"api_error\",\"param\":null,\"code\":null}}\n"
    );
    assert_eq!(post(&stub, "/api/chat", CHAT).await.status, 200);
    stub.shutdown().await;
}

#[tokio::test]
async fn an_in_band_error_ends_a_native_stream_cleanly_and_is_lost_on_v1() {
    let stub = stub().await;
    let fault = Fault::new(Action::ErrorAfterChunks { chunks: 2, text: None });
    stub.faults(fault.clone());
    let native = post(&stub, "/api/chat", CHAT).await;
    assert_eq!((native.status, native.is_complete, native.chunks), (200, true, 3));
    assert_eq!(
        native.body.lines().last().unwrap(),
        r#"{"error":"an error was encountered while running the model: unexpected EOF"}"#
    );
    stub.faults(fault);
    let v1 = post(&stub, "/v1/chat/completions", CHAT_V1).await;
    assert!(v1.is_complete && !v1.body.contains("[DONE]") && !v1.body.contains("error"));
    assert!(v1.body.ends_with(
        "\"model\":\"\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\
         \"delta\":{\"content\":\"\"},\"finish_reason\":null}]}\n\n"
    ));
    stub.shutdown().await;
}

#[tokio::test]
async fn a_stream_can_end_cleanly_without_done() {
    let stub = stub().await;
    stub.faults(Fault::new(Action::EndWithoutDone(2)));
    let answer = post(&stub, "/api/chat", CHAT).await;
    assert!(answer.is_complete && answer.chunks == 2 && !answer.body.contains("\"done\":true"));
    stub.shutdown().await;
}

#[tokio::test]
async fn a_connection_can_be_cut_after_any_byte() {
    let stub = stub().await;
    for cut in [Cut::Fin, Cut::Reset] {
        for bytes in [0, 1, 200] {
            stub.faults(Fault::new(Action::CutAfterBytes { bytes, cut }));
            let answer = post(&stub, "/api/chat", CHAT).await;
            assert!(!answer.is_complete);
            assert_eq!(answer.is_reset, cut == Cut::Reset);
            if cut == Cut::Fin {
                assert_eq!(
                    (answer.status, answer.body.len()),
                    (200, usize::try_from(bytes).unwrap())
                );
            }
        }
    }
    stub.faults(Fault::new(Action::CutAfterBytes { bytes: 5, cut: Cut::Fin }));
    let whole = send(&stub, "GET", "/api/version", "").await;
    assert!(!whole.is_complete && whole.body.len() == 5);
    assert_eq!(stub.counts().cut, 7);
    assert!(stub.log().iter().all(|entry| entry.end == Some(End::Cut)));
    stub.shutdown().await;
}

#[tokio::test]
async fn a_connection_can_be_cut_before_the_headers() {
    let stub = stub().await;
    stub.faults(Fault::new(Action::CutBeforeHeaders(Cut::Fin)));
    assert_eq!(post(&stub, "/api/chat", CHAT).await.status, 0);
    assert_eq!(stub.log()[0].end, Some(End::Cut));
    stub.shutdown().await;
}

#[tokio::test]
async fn a_request_can_hang_before_its_headers_or_in_the_middle() {
    let stub = stub().await;
    stub.faults(Fault::new(Action::HangBeforeHeaders));
    let stream = open(stub.addr(), "POST", "/api/chat", CHAT).await;
    stub.wait_until(|now| now.open_requests == 1).await;
    drop(stream);
    stub.wait_until(|now| now.counts.client_gone == 1).await;
    stub.faults(Fault::new(Action::HangAfterChunks(2)));
    let mut stream = open(stub.addr(), "POST", "/api/chat", CHAT).await;
    first_byte(&mut stream).await;
    stub.wait_for_log(|log| log[1].sent_chunks == 2).await;
    assert_eq!(stub.snapshot().generating, ["a:latest"]);
    drop(stream);
    stub.wait_until(|now| now.counts.client_gone == 2 && now.generating.is_empty()).await;
    stub.shutdown().await;
}

#[tokio::test]
async fn loads_can_be_slow_or_fail() {
    let stub = stub().await;
    stub.faults(Fault::new(Action::FailLoad("no memory".to_owned())).model("a"));
    let failed = post(&stub, "/api/chat", CHAT).await;
    assert_eq!((failed.status, failed.body.as_str()), (500, r#"{"error":"no memory"}"#));
    stub.faults(Fault::new(Action::SlowLoad(Duration::from_millis(120))));
    assert_eq!(post(&stub, "/api/chat", CHAT).await.status, 200);
    let log = stub.log();
    assert!(log[1].first_byte_at.unwrap() - log[1].arrived_at >= Duration::from_millis(120));
    assert_eq!((stub.counts().loads, stub.counts().failed_loads), (1, 1));
    stub.shutdown().await;
}

#[tokio::test]
async fn ps_can_stall_and_fail() {
    let stub = stub().await;
    stub.faults(Fault::new(Action::Stall(Duration::from_millis(80))).path("/api/ps"));
    assert_eq!(send(&stub, "GET", "/api/ps", "").await.status, 200);
    let entry = stub.log().remove(0);
    assert!(entry.first_byte_at.unwrap() - entry.arrived_at >= Duration::from_millis(80));
    stub.shutdown().await;
}

#[tokio::test]
async fn a_crashed_runner_is_a_400_on_embed_and_a_500_on_embeddings() {
    let stub = stub().await;
    stub.faults(Fault::new(Action::KillRunner(0)).times(2));
    assert_eq!(post(&stub, "/api/embed", r#"{"model":"e","input":"x"}"#).await.status, 400);
    assert_eq!(post(&stub, "/api/embeddings", r#"{"model":"e","prompt":"x"}"#).await.status, 500);
    stub.shutdown().await;
}

#[tokio::test]
async fn going_down_cuts_and_refuses_and_coming_back_keeps_the_port() {
    let stub = stub().await;
    stub.hold_tokens();
    let stream = open(stub.addr(), "POST", "/api/chat", CHAT).await;
    stub.wait_until(|now| now.generating.len() == 1).await;
    stub.set_down(true).await;
    assert!(!finish(stream).await.is_complete);
    assert!(TcpStream::connect(stub.addr()).await.is_err());
    assert_eq!(stub.log()[0].end, Some(End::Cut));
    stub.release_tokens();
    stub.set_down(false).await;
    assert_eq!(post(&stub, "/api/chat", CHAT).await.status, 200);
    stub.shutdown().await;
}

#[tokio::test]
async fn faults_can_be_armed_over_http() {
    let stub = stub().await;
    let fault = r#"{"action":"answer","status":503,"text":"busy","path":"/api/tags","times":2}"#;
    assert_eq!(post(&stub, "/_stub/faults", fault).await.status, 200);
    assert_eq!(post(&stub, "/_stub/faults", r#"{"action":"dance"}"#).await.status, 400);
    assert_eq!(send(&stub, "GET", "/api/tags", "").await.status, 503);
    assert_eq!(post(&stub, "/_stub/reset", "").await.status, 200);
    assert_eq!(send(&stub, "GET", "/api/tags", "").await.status, 200);
    let counts = send(&stub, "GET", "/_stub/counts", "").await;
    assert!(counts.body.starts_with("{\"requests\":1,"), "{}", counts.body);
    assert!(send(&stub, "GET", "/_stub/log", "").await.body.contains("/api/tags"));
    stub.shutdown().await;
}
