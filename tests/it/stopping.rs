//! The two steps of stopping: what runs may finish, what waits stays queued, and what is forced is told so.

use std::net::SocketAddr;
use std::path::Path;

use foreman::app::Stopped;
use foreman::clock::Clock;
use serde_json::{Value, json};
use stub_ollama::{Action, Fault, Stub, StubConfig};

use crate::harness::client::{chat, chat_unstreamed, post, post_stream};
use crate::harness::daemon::Daemon;
use crate::harness::{DEADLINE, Foreman, get, stub_config};

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

/// Where a job is when SIGTERM comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Ollama is away.
    Waiting,
    Loading,
    /// The stream has begun at Ollama, no byte of it has come.
    Hidden,
    Shown,
    Unstreamed,
    /// Between two tries.
    Delayed,
}

impl Stage {
    const ALL: [Stage; 6] = [
        Stage::Waiting,
        Stage::Loading,
        Stage::Hidden,
        Stage::Shown,
        Stage::Unstreamed,
        Stage::Delayed,
    ];

    /// A job that waits is left for the next start; one in flight is finished.
    fn is_finished(self) -> bool {
        match self {
            Stage::Loading | Stage::Hidden | Stage::Shown | Stage::Unstreamed => true,
            Stage::Waiting | Stage::Delayed => false,
        }
    }

    /// Brings the job there.
    async fn reach(self, stub: &Stub, addr: SocketAddr) {
        match self {
            Stage::Waiting => wait_for(addr, |status| status["queue"]["depth"] == 1).await,
            Stage::Loading => {
                stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
            }
            Stage::Hidden | Stage::Unstreamed => {
                stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
            }
            Stage::Shown => {
                wait_for(addr, |status| status["running"][0]["answer_bytes"].as_u64() > Some(0))
                    .await;
            }
            Stage::Delayed => {
                wait_for(addr, |status| status["queue"]["jobs"][0]["not_before"].is_string()).await;
            }
        }
    }
}

async fn wait_for(addr: SocketAddr, wanted: impl Fn(&Value) -> bool) {
    let seen = async { while !wanted(&get(addr, "/status").await.json()) {} };
    tokio::time::timeout(DEADLINE, seen).await.expect("the awaited status never came");
}

/// State, claims, tries charged, and outcomes of the one job.
fn only_job(db: &Path) -> (String, i64, u32, u32) {
    let database = rusqlite::Connection::open(db).unwrap();
    let sql = "SELECT state, lease_epoch, interruptions,
                      (SELECT COUNT(*) FROM transition WHERE to_state IN ('done','failed','cancelled'))
               FROM job";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    database.query_row(sql, [], row).unwrap()
}

/// SIGTERM to the real binary wherever its one job is: it ends well within the grace time, and the job has one outcome, now
/// or after the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_in_each_state_loses_nothing_and_doubles_nothing() {
    const GRACE_MS: i64 = 20_000;
    const TOKENS: u32 = 400;
    for stage in Stage::ALL {
        let config = StubConfig { wait_max: DEADLINE, ..stub_config(&["a"]) };
        let stub = Stub::start(config).await;
        let folder = tempfile::tempdir().unwrap();
        let db = folder.path().join("foreman.db");
        match stage {
            Stage::Waiting => stub.set_down(true).await,
            Stage::Loading => stub.hold_loads(),
            Stage::Hidden | Stage::Unstreamed => stub.hold_tokens(),
            Stage::Shown => (),
            Stage::Delayed => {
                let action = Action::Answer {
                    status: 503,
                    text: "out of order".to_owned(),
                    retry_after_seconds: Some(2),
                    stage: stub_ollama::Stage::AfterLoad,
                };
                stub.faults(Fault::new(action).path("/api/chat"));
            }
        }
        let flags = ["--shutdown-grace", "20s"];
        let daemon = Daemon::start(&stub.url(), &db, &flags).await;
        let addr = daemon.addr;
        let mut body = chat("a", "x");
        body["stream"] = json!(stage != Stage::Unstreamed);
        body["options"] = json!({ "num_predict": TOKENS });
        let client = tokio::spawn(async move { post(addr, "/api/chat", &body).await });
        stage.reach(&stub, addr).await;
        let told_ms = Clock::system().now_ms();
        daemon.terminate();
        daemon.refuses().await;
        stub.release_loads();
        stub.release_tokens();
        let answer = client.await.unwrap();
        assert_eq!(daemon.ended().await, Some(0), "{stage:?}");
        let took_ms = Clock::system().now_ms() - told_ms;
        assert!(took_ms < GRACE_MS / 2, "{stage:?}: it took {took_ms} ms");
        let (state, _, interruptions, outcomes) = only_job(&db);
        if stage.is_finished() {
            assert_eq!((answer.status.as_u16(), answer.is_whole), (200, true), "{stage:?}");
            assert_eq!(answer.text().matches("\"done\":true").count(), 1, "{stage:?}");
            assert_eq!((state.as_str(), interruptions, outcomes), ("done", 0, 1), "{stage:?}");
        } else {
            assert_eq!(answer.status, 503, "{stage:?}: {}", answer.text());
            assert!(answer.text().contains("stays queued"), "{stage:?}: {}", answer.text());
            assert_eq!((state.as_str(), interruptions, outcomes), ("queued", 0, 0), "{stage:?}");
        }
        stub.set_down(false).await;
        let next = Daemon::start(&stub.url(), &db, &[]).await;
        wait_for(next.addr, |status| status["stored"]["done"] == 1).await;
        next.terminate();
        assert_eq!(next.ended().await, Some(0), "{stage:?}");
        let (state, claims, interruptions, outcomes) = only_job(&db);
        let tries = if stage == Stage::Delayed { 2 } else { 1 };
        assert_eq!(
            (state.as_str(), claims, interruptions, outcomes),
            ("done", tries, 0, 1),
            "{stage:?}"
        );
        let runs = stub.log().iter().filter(|entry| entry.path == "/api/chat").count();
        assert_eq!(i64::try_from(runs).unwrap(), tries, "{stage:?}");
    }
}
