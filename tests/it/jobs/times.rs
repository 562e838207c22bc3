//! When a job runs, and until when its answer is of use.

use foreman::clock::{Clock, rfc3339};
use serde_json::{Value, json};
use stub_ollama::Stub;

use crate::harness::client::chat;
use crate::harness::daemon::Daemon;
use crate::harness::jobs::{act, busy_for_a_minute, done, ended, object, submit, wait_until_state};
use crate::harness::{Foreman, stub_config};

/// So many milliseconds from now.
fn in_ms(ms: i64) -> Value {
    json!(rfc3339(Clock::system().now_ms() + ms))
}

fn with(mut body: Value, field: &str, value: Value) -> Value {
    body[field] = value;
    body
}

fn never_asked(stub: &Stub, text: &str) -> bool {
    !stub.log().iter().any(|entry| String::from_utf8_lossy(&entry.body).contains(text))
}

#[tokio::test]
async fn a_scheduled_job_runs_at_its_time_and_not_before() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let run_at = in_ms(400);
    let id = submit(foreman.addr, &with(chat("a", "x"), "run_at", run_at.clone())).await;
    let waiting = object(foreman.addr, &id).await;
    assert_eq!((&waiting["state"], &waiting["run_at"]), (&json!("queued"), &run_at));
    assert_eq!((&waiting["not_before"], &waiting["position"]), (&run_at, &Value::Null));
    let done = done(foreman.addr, &id).await;
    let claimed_at = done["attempts"][0]["claimed_at"].as_str().unwrap();
    assert!(claimed_at >= run_at.as_str().unwrap(), "{done:#}");
}

/// A time that has passed is now.
#[tokio::test]
async fn a_job_scheduled_for_the_past_runs_at_once() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = with(chat("a", "x"), "run_at", json!("2001-01-01T00:00:00Z"));
    let object = done(foreman.addr, &submit(foreman.addr, &body).await).await;
    assert_eq!(object["run_at"], Value::Null);
}

/// Its model is let go, and other jobs do not wait for it.
#[tokio::test]
async fn a_scheduled_job_holds_no_model_and_no_lane() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let short = |raw: &mut foreman::config::Raw| raw.keep_alive = Some("1ms".to_owned());
    let foreman = Foreman::start_with(&stub, short).await.up().await;
    let later = with(chat("a", "later"), "run_at", in_ms(3_600_000));
    let id = submit(foreman.addr, &later).await;
    done(foreman.addr, &submit(foreman.addr, &chat("a", "now")).await).await;
    done(foreman.addr, &submit(foreman.addr, &chat("b", "now")).await).await;
    stub.wait_until(|snapshot| snapshot.resident.is_empty()).await;
    assert!(never_asked(&stub, "later"));
    assert_eq!(object(foreman.addr, &id).await["state"], "queued");
    let status = foreman.status().await;
    let lanes = status["queue"]["lanes"].as_array().cloned().unwrap_or_default();
    assert!(lanes.iter().all(|lane| lane["ready"] != 1), "{status:#}");
}

#[tokio::test]
async fn a_schedule_survives_kill_nine() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let daemon = Daemon::start(&stub.url(), &db, &[]).await;
    let run_at = in_ms(1_000);
    let id = submit(daemon.addr, &with(chat("a", "x"), "run_at", run_at.clone())).await;
    daemon.kill().await;
    let daemon = Daemon::start(&stub.url(), &db, &[]).await;
    let done = done(daemon.addr, &id).await;
    assert_eq!(done["run_at"], run_at);
    assert!(done["attempts"][0]["claimed_at"].as_str() >= run_at.as_str(), "{done:#}");
    daemon.kill().await;
}

#[tokio::test]
async fn a_job_that_waits_fails_at_its_deadline_and_ollama_is_not_asked() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let running = foreman.occupy(&stub, "a").await;
    let near = with(chat("a", "near"), "deadline", in_ms(200));
    let far = with(chat("a", "far"), "deadline", in_ms(3_600_000));
    let far = submit(foreman.addr, &far).await;
    let object = ended(foreman.addr, &submit(foreman.addr, &near).await).await;
    assert_eq!((&object["state"], &object["attempt"]), (&json!("failed"), &json!(0)));
    assert!(object["error"]["message"].as_str().unwrap().contains("deadline"), "{object:#}");
    assert!(object["failed_at"].as_str() >= object["deadline"].as_str());
    stub.release_tokens();
    for id in [&running, &far] {
        done(foreman.addr, id).await;
    }
    assert!(never_asked(&stub, "near"));
}

#[tokio::test]
async fn a_job_that_runs_is_cut_at_its_deadline() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let id = submit(foreman.addr, &with(chat("a", "x"), "deadline", in_ms(700))).await;
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let object = ended(foreman.addr, &id).await;
    assert_eq!((&object["state"], &object["attempt"]), (&json!("failed"), &json!(1)));
    assert_eq!(object["error"]["status"], 504);
    stub.wait_until(|snapshot| snapshot.counts.client_gone == 1).await;
}

/// A load may take minutes; it goes on for others. (The job failed only when it was over.)
#[tokio::test]
async fn a_job_that_loads_fails_at_its_deadline() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_loads();
    let id = submit(foreman.addr, &with(chat("a", "near"), "deadline", in_ms(300))).await;
    wait_until_state(foreman.addr, &id, "loading").await;
    let next = submit(foreman.addr, &chat("a", "next")).await;
    let object = ended(foreman.addr, &id).await;
    assert_eq!((&object["state"], &object["error"]["status"]), (&json!("failed"), &json!(504)));
    stub.release_loads();
    done(foreman.addr, &next).await;
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.aborted_loads), (1, 0));
    assert!(never_asked(&stub, "near"));
}

/// A job that goes back to the queue has its deadline still. (It was looked for only among those that waited at the last
/// look, and so was noticed up to a minute late.)
#[tokio::test]
async fn a_job_that_was_put_back_fails_at_its_deadline() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.faults(busy_for_a_minute());
    stub.hold_loads();
    let id = submit(foreman.addr, &with(chat("a", "x"), "deadline", in_ms(1_500))).await;
    wait_until_state(foreman.addr, &id, "loading").await;
    // Meanwhile the deadlines are looked at, and there is none among those that wait.
    let other = with(chat("a", "other"), "deadline", in_ms(20));
    ended(foreman.addr, &submit(foreman.addr, &other).await).await;
    stub.release_loads();
    let object = ended(foreman.addr, &id).await;
    assert_eq!((&object["state"], &object["attempt"]), (&json!("failed"), &json!(1)));
    assert!(object["error"]["message"].as_str().unwrap().contains("deadline"), "{object:#}");
}

/// The same for one that is tried again by hand.
#[tokio::test]
async fn a_job_that_was_reopened_keeps_its_deadline() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let running = foreman.occupy(&stub, "a").await;
    let body = with(chat("a", "x"), "deadline", in_ms(1_500));
    let id = submit(foreman.addr, &body).await;
    assert_eq!(act(foreman.addr, &id, "cancel").await.status, 200);
    let other = with(chat("a", "other"), "deadline", in_ms(20));
    ended(foreman.addr, &submit(foreman.addr, &other).await).await;
    assert_eq!(act(foreman.addr, &id, "retry").await.status, 202);
    assert_eq!(ended(foreman.addr, &id).await["state"], "failed");
    stub.release_tokens();
    done(foreman.addr, &running).await;
    assert!(never_asked(&stub, "\"x\""));
}
