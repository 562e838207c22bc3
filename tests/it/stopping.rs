//! The two steps of stopping: what runs may finish, what waits stays queued, and what is forced is told so.

use foreman::app::Stopped;
use serde_json::json;
use stub_ollama::Stub;

use crate::harness::client::{chat, chat_unstreamed, post, post_stream};
use crate::harness::{Foreman, stub_config};

/// Drain: the running stream ends whole, the waiting client is sent away with its job kept, and the job runs after the
/// restart with nobody there.
#[tokio::test]
async fn a_drain_finishes_what_runs_and_keeps_what_waits() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let foreman = Foreman::start_on(&stub.url(), &db, |_| ()).await.up().await;
    let body = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 50 } });
    let mut running = post_stream(foreman.addr, "/api/generate", &body).await;
    running.next().await.unwrap().unwrap();
    stub.hold_tokens();
    let addr = foreman.addr;
    let waiting = tokio::spawn(async move { post(addr, "/api/chat", &chat("b", "waits")).await });
    foreman.wait_for_depth(1).await;
    foreman.signal().await;
    let sent_away = waiting.await.unwrap();
    assert_eq!((sent_away.status.as_u16(), sent_away.header("retry-after")), (503, Some("5")));
    assert!(
        sent_away.json()["error"]
            .as_str()
            .unwrap()
            .contains("stays queued and runs after the restart")
    );
    stub.release_tokens();
    let finished = running.rest().await;
    assert!(finished.is_whole && finished.text().contains("\"done\":true"));
    assert_eq!(foreman.ended().await, Stopped::Drained);
    let again = Foreman::start_on(&stub.url(), &db, |_| ()).await;
    again.wait_for(|status| status["stored"]["done"] == 2).await;
    assert!(stub.log().iter().any(|entry| entry.model.as_deref() == Some("b")));
    again.stop().await;
}

/// Force: a hidden job goes back uncharged; a shown stream ends in an error line and a cut.
#[tokio::test]
async fn a_second_signal_forces() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    for (body, is_shown) in [
        (json!({ "model": "a", "prompt": "x", "options": { "num_predict": 100_000 } }), true),
        (
            json!({ "model": "a", "prompt": "x", "stream": false, "options": { "num_predict": 100_000 } }),
            false,
        ),
    ] {
        let foreman = Foreman::start_on(&stub.url(), &db, |_| ()).await.up().await;
        let addr = foreman.addr;
        let client =
            tokio::spawn(
                async move { post_stream(addr, "/api/generate", &body).await.rest().await },
            );
        stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        foreman
            .wait_for(|status| status["running"][0]["answer_bytes"].as_u64() > Some(0) || !is_shown)
            .await;
        foreman.signal().await;
        foreman.signal().await;
        let answer = client.await.unwrap();
        assert_eq!(foreman.ended().await, Stopped::Forced);
        if is_shown {
            assert!(!answer.is_whole);
            let last = answer.text().lines().last().unwrap().to_owned();
            assert!(
                last.contains("foreman was stopped") && last.contains("safe to try again"),
                "{last}"
            );
        } else {
            assert_eq!(answer.status, 503, "{}", answer.text());
        }
        stub.wait_until(|snapshot| snapshot.generating.is_empty()).await;
    }
    let database = rusqlite::Connection::open(&db).unwrap();
    let jobs: Vec<(String, u32, u32)> = database
        .prepare("SELECT state, attempts, interruptions FROM job ORDER BY seq")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(jobs, [("failed".to_owned(), 1, 0), ("queued".to_owned(), 0, 0)]);
}

/// The end of the grace time forces too.
#[tokio::test]
async fn the_end_of_the_grace_time_forces() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.shutdown_grace = Some("50ms".to_owned()))
        .await
        .up()
        .await;
    stub.hold_tokens();
    let addr = foreman.addr;
    let client =
        tokio::spawn(async move { post(addr, "/api/chat", &chat_unstreamed("a", "x")).await });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    assert_eq!(foreman.stop().await, Stopped::Forced);
    assert_eq!(client.await.unwrap().status, 503);
    stub.release_tokens();
}
