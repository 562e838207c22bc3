//! Embeddings go straight through, concurrently, beside whatever runs; they are neither queued nor stored.

use serde_json::json;
use stub_ollama::{Model, Stub, StubConfig};

use crate::harness::client::{chat, open, post, post_stream, request};
use crate::harness::{DEADLINE, Foreman, stub_config};

fn two_slots() -> StubConfig {
    StubConfig { max_loaded: 2, num_parallel: 8, ..stub_config(&["a"]) }
}

/// A chat that would go on for ever, and fifty embeds meanwhile: all answered, none a job, many at once.
#[tokio::test]
async fn embeds_flow_while_a_long_chat_runs() {
    let config = StubConfig { embed_time: std::time::Duration::from_millis(5), ..two_slots() };
    let stub = Stub::start(config).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.embed_model = Some("embed".to_owned()))
        .await
        .up()
        .await;
    let long = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 1_000_000 } });
    let mut stream = post_stream(foreman.addr, "/api/generate", &long).await;
    stream.next().await.unwrap().unwrap();
    let clients: Vec<_> = (0..50)
        .map(|number| {
            let addr = foreman.addr;
            tokio::spawn(async move {
                let paths = ["/api/embed", "/api/embeddings", "/v1/embeddings"];
                let body = json!({ "model": "embed", "input": "x", "prompt": "x" });
                post(addr, paths[number % 3], &body).await
            })
        })
        .collect();
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.header("x-foreman-job-id").is_none());
    }
    let snapshot = stub.snapshot();
    assert_eq!(snapshot.generating, ["a:latest"], "the chat still runs");
    assert!(snapshot.counts.gpu_requests_max > 3, "they were at Ollama beside each other");
    assert_eq!(snapshot.counts.evictions, 0);
    assert_eq!(foreman.status().await["stored"]["working"], 1, "one job: the chat");
}

/// The configured embedder is warm before anyone asks, pinned, again after the upstream came back, and never a victim.
#[tokio::test]
async fn the_embedder_is_warmed_at_start_and_after_the_upstream_returned() {
    let mut config = two_slots();
    config.models.push(crate::harness::model("b"));
    let stub = Stub::start(config).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.embed_model = Some("embed".to_owned()))
        .await
        .up()
        .await;
    let warm = stub.wait_until(|snapshot| snapshot.is_resident("embed:latest")).await;
    assert_eq!(warm.resident[0].keep_alive_ns, i64::MAX);
    for name in ["a", "b", "a"] {
        assert!(post(foreman.addr, "/api/chat", &chat(name, "x")).await.is_whole);
        assert!(stub.snapshot().is_resident("embed:latest"), "{name} pushed it out");
    }
    assert_eq!(stub.counts().evictions, 0);
    stub.set_down(true).await;
    foreman.wait_for(|status| status["upstream"]["state"] == "down").await;
    stub.unload_all();
    stub.wait_until(|snapshot| snapshot.resident.is_empty()).await;
    stub.set_down(false).await;
    stub.wait_until(|snapshot| snapshot.is_resident("embed:latest")).await;
}

/// `keep_alive` is cut out of embeds too; nothing else is touched.
#[tokio::test]
async fn keep_alive_is_cut_out_of_embeds() {
    let stub = Stub::start(two_slots()).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = r#"{"model":"embed" , "keep_alive":-1, "input":["a","é"]}"#;
    let answer = crate::harness::send(foreman.addr, "POST", "/api/embed", body).await;
    assert_eq!(answer.status, 200);
    let log = stub.log();
    // The first one is foreman's own, which loads the model.
    let sent = log.iter().rfind(|entry| entry.path == "/api/embed").unwrap();
    assert!(!String::from_utf8_lossy(&sent.body).contains("keep_alive"));
    assert!(String::from_utf8_lossy(&sent.body).contains(r#""input":["a","é"]"#));
}

/// No more in flight than `FOREMAN_EMBED_PARALLEL`; the rest waits in memory and is served.
#[tokio::test]
async fn embeds_in_flight_are_capped() {
    let mut config = two_slots();
    config.models.push(Model::embedding("other"));
    let stub = Stub::start(config).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.embed_parallel = Some("3".to_owned()))
        .await
        .up()
        .await;
    let body = json!({ "model": "embed", "input": "x" });
    assert_eq!(post(foreman.addr, "/api/embed", &body).await.status, 200);
    stub.hold_tokens();
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let (addr, body) = (foreman.addr, body.clone());
            tokio::spawn(async move { post(addr, "/api/embed", &body).await })
        })
        .collect();
    foreman
        .wait_for(|status| status["embeds"]["in_flight"] == 3 && status["embeds"]["waiting"] == 9)
        .await;
    stub.release_tokens();
    for client in clients {
        assert_eq!(client.await.unwrap().status, 200);
    }
    assert!(stub.counts().embeds_max <= 3);
}

/// Who asks for many vectors and takes none of them holds up nobody: its place is given back as soon as they are made.
#[tokio::test]
async fn an_embed_that_is_not_taken_holds_no_place() {
    let stub = Stub::start(two_slots()).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.embed_parallel = Some("1".to_owned()));
    let foreman = foreman.await.up().await;
    let body = json!({ "model": "embed", "input": vec!["x"; 300_000] });
    let asked = request(foreman.addr, "POST", "/api/embed", body.to_string());
    let untaken = open(foreman.addr, asked).await.unwrap();
    assert_eq!(untaken.status, 200);
    let body = json!({ "model": "embed", "input": "x" });
    let asking = tokio::time::timeout(DEADLINE, post(foreman.addr, "/api/embed", &body));
    assert_eq!(asking.await.expect("held up").status, 200);
    assert!(untaken.rest().await.is_whole);
}

/// An embed of a model that is not resident makes Ollama load it: meanwhile foreman dispatches nothing that would wait behind
/// it, or wedge it with the pin of a load.
#[tokio::test]
async fn a_job_waits_for_an_embed_that_loads() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_loads();
    let embed = json!({ "model": "embed", "input": "x" });
    let embed = tokio::spawn(async move { post(addr, "/api/embed", &embed).await });
    stub.wait_until(|snapshot| snapshot.loading.as_deref() == Some("embed:latest")).await;
    let job = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "x")).await });
    foreman.wait_for_depth(1).await;
    for _ in 0..20 {
        foreman.status().await;
    }
    assert!(!stub.log().iter().any(|entry| entry.path != "/api/show"
        && entry.model.as_deref().is_some_and(|model| model.starts_with('a'))));
    stub.release_loads();
    assert_eq!(embed.await.unwrap().status, 200);
    assert!(job.await.unwrap().is_whole);
}

/// Embeds that overlap without end do not starve the jobs: once the embedder is resident they are not waited for.
#[tokio::test]
async fn overlapping_embeds_of_a_model_that_becomes_resident_starve_nobody() {
    let stub = Stub::start(two_slots()).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_loads();
    let embed = json!({ "model": "embed", "input": "x" });
    let first = embed.clone();
    let first = tokio::spawn(async move { post(addr, "/api/embed", &first).await });
    stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
    let job = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "x")).await });
    foreman.wait_for_depth(1).await;
    stub.release_loads();
    let flow: Vec<_> = (0..3)
        .map(|_| {
            let embed = embed.clone();
            tokio::spawn(async move {
                loop {
                    assert_eq!(post(addr, "/api/embed", &embed).await.status, 200);
                }
            })
        })
        .collect();
    assert!(tokio::time::timeout(DEADLINE, job).await.unwrap().unwrap().is_whole);
    assert!(flow.iter().all(|client| !client.is_finished()), "the embeds flow on");
    for client in flow {
        client.abort();
    }
    assert_eq!(first.await.unwrap().status, 200);
}

/// An embed that hangs is waited for once, not by every job.
#[tokio::test]
async fn an_embed_that_hangs_is_waited_for_once() {
    let stub = Stub::start(two_slots()).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.load_limit = Some("500ms".to_owned());
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    let addr = foreman.addr;
    assert!(post(addr, "/api/chat", &chat("a", "warm")).await.is_whole);
    stub.faults(stub_ollama::Fault::new(stub_ollama::Action::HangBeforeHeaders).path("/api/embed"));
    let embed = json!({ "model": "embed", "input": "x" });
    let hanging = tokio::spawn(async move { post(addr, "/api/embed", &embed).await });
    stub.wait_for_log(|log| log.iter().any(|entry| entry.path == "/api/embed")).await;
    let mut waits = Vec::new();
    for _ in 0..4 {
        let answer = post(addr, "/api/chat", &chat("a", "x")).await;
        waits.push(answer.header("x-foreman-queue-ms").unwrap().parse::<u64>().unwrap());
    }
    let longest_after = waits[1..].iter().max().unwrap();
    assert!(waits[0] > 2 * longest_after, "only the first waits: {waits:?}");
    hanging.abort();
}

/// An embed that waits for its load is told when Ollama goes away, as one that waits for nothing is. (It waited for the
/// worker, which waited for Ollama.)
#[tokio::test]
async fn an_embed_that_waits_for_its_load_is_told_that_ollama_has_gone() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_loads();
    let job = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "x")).await });
    stub.wait_until(|snapshot| snapshot.loading.as_deref() == Some("a:latest")).await;
    let embed = json!({ "model": "embed", "input": "x" });
    let embed = tokio::spawn(async move { post(addr, "/api/embed", &embed).await });
    foreman.wait_for(|status| status["embeds"]["waiting"] == 1).await;
    stub.set_down(true).await;
    stub.release_loads();
    let answer = tokio::time::timeout(DEADLINE, embed).await.unwrap().unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    stub.set_down(false).await;
    assert!(job.await.unwrap().is_whole);
}
