//! Clients that leave: before their turn Ollama never hears of them, in their turn it is told at once.

use stub_ollama::Stub;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::client::{chat, chat_unstreamed, open, post, post_stream, request};
use crate::harness::{Foreman, stub_config};

/// A waiter that leaves before its start is cancelled, causes no load, and Ollama never sees it.
#[tokio::test]
async fn a_job_whose_client_leaves_while_it_waits_never_reaches_ollama() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let addr = foreman.addr;
    let running = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "stays")).await });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    for body in [chat("b", "leaves"), chat_unstreamed("b", "leaves")] {
        let leaving =
            tokio::spawn(open(addr, request(addr, "POST", "/api/chat", body.to_string())));
        foreman.wait_for_depth(1).await;
        leaving.abort();
        foreman.wait_for_depth(0).await;
    }
    stub.release_tokens();
    assert!(running.await.unwrap().is_whole);
    let status = foreman.wait_for(|status| status["since_start"]["done"] == 1).await;
    assert_eq!(
        (&status["since_start"]["cancelled"], stub.counts().loads),
        (&serde_json::json!(2), 1)
    );
    assert!(!stub.log().iter().any(|entry| entry.model.as_deref() == Some("b")));
}

/// While working: the upstream request is aborted and the next job starts, streamed or not.
#[tokio::test]
async fn a_client_that_leaves_while_its_job_works_frees_the_gpu() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    for (number, body) in
        [chat("a", "leaves"), chat_unstreamed("a", "leaves")].into_iter().enumerate()
    {
        stub.hold_tokens();
        let leaving =
            tokio::spawn(open(addr, request(addr, "POST", "/api/chat", body.to_string())));
        stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        let next = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "next")).await });
        foreman.wait_for_depth(1).await;
        leaving.abort();
        let gone = u64::try_from(number).unwrap() + 1;
        stub.wait_until(|snapshot| snapshot.counts.client_gone == gone).await;
        stub.release_tokens();
        assert!(next.await.unwrap().is_whole);
    }
    foreman.wait_for(|status| status["since_start"]["cancelled"] == 2).await;
}

/// In mid-stream.
#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_stops_the_generation() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body =
        serde_json::json!({ "model": "a", "prompt": "x", "options": { "num_predict": 100_000 } });
    let mut stream = post_stream(foreman.addr, "/api/generate", &body).await;
    stream.next().await.unwrap().unwrap();
    drop(stream);
    stub.wait_until(|snapshot| snapshot.counts.client_gone == 1 && snapshot.generating.is_empty())
        .await;
    assert!(post(foreman.addr, "/api/chat", &chat("a", "next")).await.is_whole);
}

/// A client that leaves during its own load does not abort the load for the others.
#[tokio::test]
async fn a_client_that_leaves_during_its_load_aborts_no_load() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_loads();
    let leaving =
        tokio::spawn(open(addr, request(addr, "POST", "/api/chat", chat("a", "x").to_string())));
    stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
    let stays = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "y")).await });
    foreman.wait_for_depth(1).await;
    leaving.abort();
    foreman.wait_for_depth(1).await;
    stub.release_loads();
    assert!(stays.await.unwrap().is_whole);
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.aborted_loads), (1, 0));
    foreman.wait_for(|status| status["since_start"]["cancelled"] == 1).await;
    assert!(
        !stub
            .log()
            .iter()
            .any(|entry| entry.body.as_ref() == chat("a", "x").to_string().as_bytes())
    );
}

/// Half a close counts as leaving, as it does for Ollama.
#[tokio::test]
async fn a_half_closed_client_counts_as_gone() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let body = chat("a", "half").to_string();
    let mut half = TcpStream::connect(foreman.addr).await.unwrap();
    let head = format!(
        "POST /api/chat HTTP/1.1\r\nhost: x.localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    half.write_all(head.as_bytes()).await.unwrap();
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    half.shutdown().await.unwrap();
    stub.wait_until(|snapshot| snapshot.counts.client_gone == 1 && snapshot.generating.is_empty())
        .await;
    stub.release_tokens();
    foreman.wait_for(|status| status["since_start"]["cancelled"] == 1).await;
}

/// Clients close as soon as they have seen the end mark, before the HTTP message has ended: their jobs are done. (They were
/// recorded as cancelled, their answers thrown away.)
#[tokio::test]
async fn a_client_that_closes_on_the_end_mark_has_its_answer() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for _ in 0..40 {
        let body =
            serde_json::json!({ "model": "a", "prompt": "x", "options": { "num_predict": 1 } });
        let mut stream = post_stream(foreman.addr, "/api/generate", &body).await;
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains("\"done\":true") {
            seen.extend_from_slice(&stream.next().await.unwrap().unwrap());
        }
    }
    let status = foreman.wait_for(|status| status["since_start"]["done"] == 40).await;
    assert_eq!(status["since_start"]["cancelled"], 0);
}
