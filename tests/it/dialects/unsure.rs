//! A `POST` that foreman does not know, or that only some Ollamas have: a job if the upstream has the route, relayed if it has
//! not, and what is known to leave the GPU alone waits for nobody.

use serde_json::{Value, json};
use stub_ollama::{Action, Cut, Era, Fault, Stub, StubConfig};

use crate::harness::client::{Stream, chat_unstreamed, get, post, post_stream, send};
use crate::harness::{Foreman, model, stub_config};

async fn of_era(era: Era) -> (Stub, Foreman) {
    let config = StubConfig { era, pullable: vec![model("new")], ..stub_config(&["a", "b"]) };
    let stub = Stub::start(config).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.body_max = Some("64KiB".to_owned()));
    let foreman = foreman.await.up().await;
    (stub, foreman)
}

fn draw(model: &str) -> Value {
    json!({ "model": model, "prompt": "a ship" })
}

/// A job that would go on for ever.
async fn endless(foreman: &Foreman) -> Stream {
    let long = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 1_000_000 } });
    let mut stream = post_stream(foreman.addr, "/api/generate", &long).await;
    stream.next().await.unwrap().unwrap();
    stream
}

fn asked(stub: &Stub, method: &str, path: &str) -> usize {
    stub.log().iter().filter(|entry| entry.method == method && entry.path == path).count()
}

/// It takes the GPU for all foreman knows: it waits for the job that runs, and is alone while it runs.
#[tokio::test]
async fn a_route_of_a_later_ollama_is_a_job_of_its_own() {
    let (stub, foreman) = of_era(Era::Later).await;
    stub.hold_tokens();
    let addr = foreman.addr;
    let chat = |name: &'static str| {
        tokio::spawn(async move { post(addr, "/api/chat", &chat_unstreamed(name, "x")).await })
    };
    let running = chat("a");
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let drawn = tokio::spawn(async move { post(addr, "/api/imagine", &draw("b")).await });
    foreman.wait_for_depth(1).await;
    let status = foreman.status().await;
    assert_eq!(status["queue"]["jobs"][0]["lane"], "!opaque");
    assert_eq!(status["queue"]["jobs"][0]["dialect"], "other");
    stub.release_tokens();
    assert_eq!(running.await.unwrap().status, 200);
    let drawn = drawn.await.unwrap();
    assert!(drawn.status == 200 && drawn.is_whole);
    assert!(drawn.header("x-foreman-job-id").is_some());
    assert_eq!(chat("a").await.unwrap().status, 200, "and the work goes on");
    assert_eq!(stub.counts().models_generating_max, 1);
}

/// Its first bytes are there while Ollama makes the rest, and a client that leaves ends it.
#[tokio::test]
async fn what_is_not_known_passes_as_it_comes() {
    let config = StubConfig { era: Era::Later, default_tokens: 100_000, ..stub_config(&["a"]) };
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let mut stream = post_stream(foreman.addr, "/api/imagine", &draw("a")).await;
    let first = stream.next().await.unwrap().unwrap();
    assert!(first.ends_with(b"\r\n\0"), "{first:?}");
    assert_eq!(stub.snapshot().generating, ["a:latest"], "the rest is still being made");
    drop(stream);
    stub.wait_until(|snapshot| snapshot.counts.client_gone == 1 && snapshot.generating.is_empty())
        .await;
    foreman.wait_for(|status| status["since_start"]["cancelled"] == 1).await;
}

/// A second try might draw twice: there is none, whatever happened.
#[tokio::test]
async fn what_is_not_known_is_never_tried_again() {
    let (stub, foreman) = of_era(Era::Later).await;
    for action in [
        Action::CutBeforeHeaders(Cut::Reset),
        Action::KillRunner(0),
        Action::CutAfterBytes { bytes: 3, cut: Cut::Fin },
    ] {
        stub.reset();
        stub.faults(Fault::new(action.clone()).path("/api/imagine"));
        let answer = post_stream(foreman.addr, "/api/imagine", &draw("a")).await.rest().await;
        assert!(!answer.is_whole || answer.status.as_u16() >= 500, "{action:?}: {}", answer.text());
        assert_eq!(asked(&stub, "POST", "/api/imagine"), 1, "{action:?}");
        stub.clear_faults();
    }
}

#[tokio::test]
async fn nobody_waits_in_the_queue_for_a_404() {
    let (stub, foreman) = of_era(Era::Known).await;
    let running = endless(&foreman).await;
    for path in ["/api/imagine", "/v1/images/generations", "/v1/audio/speech", "/api/chat/"] {
        for _ in 0..2 {
            let answer = post(foreman.addr, path, &draw("a")).await;
            assert!(matches!(answer.status.as_u16(), 404 | 307), "{path}: {}", answer.text());
            assert!(answer.header("x-foreman-job-id").is_none());
        }
        assert_eq!(asked(&stub, "OPTIONS", path), 1, "{path}: asked once");
        assert_eq!(asked(&stub, "POST", path), 2, "{path}: and told by Ollama");
    }
    let wrong = post(foreman.addr, "/api/tags", &json!({})).await;
    assert_eq!((wrong.status.as_u16(), wrong.header("allow")), (405, Some("GET, HEAD")));
    drop(running);
}

/// An older Ollama draws pictures: by their model, as any other job.
#[tokio::test]
async fn pictures_are_drawn_in_the_lane_of_their_model() {
    let (stub, foreman) = of_era(Era::Images).await;
    stub.hold_tokens();
    let addr = foreman.addr;
    let running =
        tokio::spawn(async move { post(addr, "/api/chat", &chat_unstreamed("a", "x")).await });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let mut drawn = Vec::new();
    for (number, (path, name)) in [
        ("/v1/images/generations", "b"),
        ("/v1/images/generations", "a"),
        ("/v1/images/edits", "b"),
        ("/v1/images/edits", "A:latest"),
    ]
    .into_iter()
    .enumerate()
    {
        let body = draw(name);
        drawn.push(tokio::spawn(async move { post(addr, path, &body).await }));
        foreman.wait_for_depth(u64::try_from(number + 1).unwrap()).await;
    }
    let unknown = post(foreman.addr, "/v1/images/generations", &draw("nope")).await;
    assert_eq!(unknown.status, 404, "{}", unknown.text());
    stub.release_tokens();
    assert_eq!(running.await.unwrap().status, 200);
    for client in drawn {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.json()["data"][0]["b64_json"].is_string());
        assert!(answer.header("x-foreman-job-id").is_some());
    }
    assert_eq!(stub.counts().loads, 2, "a once, b once");
    assert_eq!(asked(&stub, "OPTIONS", "/v1/images/edits"), 1);
    // A runner that stops midway leaves an empty answer, which is none.
    stub.faults(Fault::new(Action::EndWithoutDone(1)).path("/v1/images/edits"));
    let again = post(foreman.addr, "/v1/images/edits", &draw("b")).await;
    assert_eq!(again.status, 200, "{}", again.text());
}

/// Transfers may take hours and gigabytes. They are not asked about, not queued, and have no limit.
#[tokio::test]
async fn what_leaves_the_gpu_alone_waits_for_nobody() {
    let (stub, foreman) = of_era(Era::Later).await;
    let running = endless(&foreman).await;
    let blob = format!("/api/blobs/sha256:{}", "0e".repeat(32));
    let large = vec![7; 300_000];
    for (path, body, status) in [
        ("/api/pull", br#"{"model":"new"}"#.to_vec(), 200),
        ("/api/push", br#"{"model":"a"}"#.to_vec(), 200),
        ("/api/show", br#"{"model":"a"}"#.to_vec(), 200),
        ("/api/create", br#"{"model":"c","from":"b"}"#.to_vec(), 200),
        ("/api/copy", br#"{"source":"b","destination":"d"}"#.to_vec(), 200),
        (&blob, large, 201),
        ("/api/me", b"{}".to_vec(), 503),
        ("/api/signout", b"{}".to_vec(), 503),
        ("/api/experimental/web_search", br#"{"query":"x"}"#.to_vec(), 503),
        ("/api/experimental/web_fetch", br#"{"url":"x"}"#.to_vec(), 503),
        ("/v1/messages/count_tokens", br#"{"model":"a"}"#.to_vec(), 404),
    ] {
        let answer = send(foreman.addr, "POST", path, body).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert!(answer.header("x-foreman-job-id").is_none(), "{path}");
        assert_eq!(asked(&stub, "OPTIONS", path), 0, "{path}");
    }
    assert_eq!(stub.counts().blob_bytes, 300_000);
    drop(running);
}

/// An upstream that is away cannot say whether it has the route: the client is told so, as by every relayed request.
#[tokio::test]
async fn nothing_is_stored_for_a_route_nobody_can_vouch_for() {
    let (stub, foreman) = of_era(Era::Later).await;
    stub.set_down(true).await;
    let answer = post(foreman.addr, "/api/imagine", &draw("a")).await;
    assert_eq!(answer.status, 502);
    assert!(answer.json()["error"].as_str().unwrap().contains("may be tried again"));
    assert_eq!(get(foreman.addr, "/status").await.json()["queue"]["depth"], 0);
    stub.set_down(false).await;
    foreman.wait_for(|status| status["upstream"]["state"] == "up").await;
    assert_eq!(post(foreman.addr, "/api/imagine", &draw("a")).await.status, 200);
}
