//! Ending jobs and trying them again: in each state, at any moment, and over a kill -9.

use serde_json::{Value, json};
use stub_ollama::{Action, Fault, Stub};

use crate::harness::client::{chat, chat_unstreamed, open, post, post_stream, request};
use crate::harness::daemon::Daemon;
use crate::harness::jobs::{
    act, busy_for_a_minute, cancel, done, ended, follow, generate, id_of, object, output, problem,
    submit, wait_for, wait_until_state,
};
use crate::harness::random::Random;
use crate::harness::{Answer, Foreman, get, send, stub_config};

fn asked_for(stub: &Stub, text: &str) -> usize {
    let log = stub.log();
    log.iter().filter(|entry| String::from_utf8_lossy(&entry.body).contains(text)).count()
}

#[tokio::test]
async fn a_job_that_waits_is_cancelled_at_once_and_never_reaches_ollama() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let running = foreman.occupy(&stub, "a").await;
    let mut scheduled = chat("a", "scheduled");
    scheduled["run_at"] = json!("2990-01-01T00:00:00Z");
    for body in [chat("a", "waits"), scheduled] {
        let id = submit(foreman.addr, &body).await;
        let follower = tokio::spawn({
            let (addr, id) = (foreman.addr, id.clone());
            async move { output(addr, &id, "?stream=true").await }
        });
        let cancelled = cancel(foreman.addr, &id).await;
        assert_eq!((&cancelled["state"], &cancelled["attempt"]), (&json!("cancelled"), &json!(0)));
        problem(&follower.await.unwrap(), 409, "no-answer");
        assert_eq!(cancel(foreman.addr, &id).await["state"], "cancelled", "it stays it");
    }
    stub.release_tokens();
    done(foreman.addr, &running).await;
    assert_eq!(asked_for(&stub, "waits") + asked_for(&stub, "scheduled"), 0);
}

#[tokio::test]
async fn a_job_that_loads_is_cancelled_and_ollama_is_not_asked_for_it() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_loads();
    let id = submit(foreman.addr, &chat("a", "loads")).await;
    wait_until_state(foreman.addr, &id, "loading").await;
    let cancelling = cancel(foreman.addr, &id).await;
    assert_eq!(
        (&cancelling["state"], &cancelling["is_cancelling"]),
        (&json!("loading"), &json!(true))
    );
    stub.release_loads();
    let object = ended(foreman.addr, &id).await;
    assert_eq!((&object["state"], &object["is_cancelling"]), (&json!("cancelled"), &json!(false)));
    assert_eq!(object["attempts"][0]["outcome"], "cancelled");
    assert_eq!(asked_for(&stub, "loads"), 0);
}

/// Hidden and shown alike: Ollama is told at once, and the next job runs.
#[tokio::test]
async fn a_job_that_works_is_stopped() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let hidden = submit(foreman.addr, &chat_unstreamed("a", "x")).await;
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    cancel(foreman.addr, &hidden).await;
    assert_eq!(ended(foreman.addr, &hidden).await["state"], "cancelled");
    stub.wait_until(|snapshot| snapshot.counts.client_gone == 1).await;
    stub.release_tokens();
    let shown = submit(foreman.addr, &generate("a", 100_000)).await;
    let mut follower = follow(foreman.addr, &shown, "?stream=true").await;
    follower.next().await.unwrap().unwrap();
    cancel(foreman.addr, &shown).await;
    let object = ended(foreman.addr, &shown).await;
    assert_eq!(object["state"], "cancelled");
    assert!(object["error"]["message"].as_str().unwrap().contains("cancelled"), "{object:#}");
    stub.wait_until(|snapshot| snapshot.counts.client_gone == 2).await;
    done(foreman.addr, &submit(foreman.addr, &chat("a", "next")).await).await;
}

#[tokio::test]
async fn a_job_that_waits_to_be_tried_again_is_cancelled() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.faults(busy_for_a_minute());
    let id = submit(foreman.addr, &chat("a", "x")).await;
    let waiting = wait_for(foreman.addr, &id, |object| object["not_before"].is_string()).await;
    assert_eq!((&waiting["state"], &waiting["position"]), (&json!("queued"), &Value::Null));
    assert_eq!(waiting["attempts"][0]["outcome"], "put_back");
    assert_eq!(cancel(foreman.addr, &id).await["state"], "cancelled");
    let object = object(foreman.addr, &id).await;
    assert_eq!(object["attempts"].as_array().unwrap().len(), 1);
    assert_eq!(object["attempts"][0]["outcome"], "put_back", "the cancel is none of the attempt's");
}

#[tokio::test]
async fn a_job_that_has_ended_otherwise_cannot_be_cancelled() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for model in ["a", "nobody"] {
        let id = submit(foreman.addr, &chat(model, "x")).await;
        let before = ended(foreman.addr, &id).await;
        problem(&act(foreman.addr, &id, "cancel").await, 409, "wrong-state");
        assert_eq!(object(foreman.addr, &id).await, before);
    }
}

/// An acknowledged cancel is not forgotten, however soon the daemon dies.
#[tokio::test]
async fn a_cancel_survives_kill_nine() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    stub.hold_loads();
    for (round, is_loading) in [true, false].into_iter().enumerate() {
        let daemon = Daemon::start(&stub.url(), &db, &[]).await;
        let text = format!("round {round}");
        let id = submit(daemon.addr, &chat("a", &text)).await;
        if is_loading {
            wait_until_state(daemon.addr, &id, "loading").await;
        } else {
            stub.hold_tokens();
            stub.release_loads();
            stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        }
        cancel(daemon.addr, &id).await;
        daemon.kill().await;
        let daemon = Daemon::start(&stub.url(), &db, &[]).await;
        assert_eq!(object(daemon.addr, &id).await["state"], "cancelled");
        stub.release_tokens();
        if !is_loading {
            done(daemon.addr, &submit(daemon.addr, &chat("a", "next")).await).await;
        }
        assert_eq!(asked_for(&stub, &text), usize::from(!is_loading));
        daemon.kill().await;
    }
}

/// Whoever wins, there is one outcome, and everything tells the same of it.
#[tokio::test]
async fn a_cancel_that_races_the_end_leaves_one_outcome() {
    let seed = 77;
    println!("seed {seed}");
    let mut random = Random::new(seed, 0);
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let mut outcomes = [0, 0];
    for _ in 0..60 {
        let id = submit(addr, &generate("a", 4)).await;
        for _ in 0..random.below(12) {
            object(addr, &id).await;
        }
        let answer = act(addr, &id, "cancel").await;
        let object = ended(addr, &id).await;
        let events = get(addr, &format!("/jobs/{id}/events")).await.text();
        let last = events
            .lines()
            .rfind(|line| line.starts_with("event: job.") && !line.contains("progress"));
        let state = object["state"].as_str().unwrap();
        assert_eq!(last, Some(format!("event: job.{state}").as_str()));
        assert_eq!(
            events.matches("event: job.done").count()
                + events.matches("event: job.cancelled").count(),
            1
        );
        match state {
            "done" => {
                outcomes[0] += 1;
                assert!(matches!(answer.status.as_u16(), 200 | 409));
                assert!(output(addr, &id, "").await.text().contains("\"done\":true"));
            }
            "cancelled" => {
                outcomes[1] += 1;
                assert_eq!(answer.status, 200);
                problem(&output(addr, &id, "").await, 409, "no-answer");
            }
            other => panic!("{other}: {object:#}"),
        }
        assert_eq!(object["is_cancelling"], false);
    }
    println!("done, cancelled: {outcomes:?}");
}

#[tokio::test]
async fn the_client_of_a_cancelled_job_is_told() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let newest = || async { id_of(&get(addr, "/jobs?limit=1").await.json()["data"][0]) };
    stub.hold_tokens();
    let working =
        tokio::spawn(async move { post(addr, "/api/chat", &chat_unstreamed("a", "x")).await });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let id = newest().await;
    let waiting =
        tokio::spawn(async move { post(addr, "/v1/chat/completions", &chat("a", "y")).await });
    foreman.wait_for_depth(1).await;
    cancel(addr, &newest().await).await;
    let told = waiting.await.unwrap();
    assert!(told.status.is_client_error(), "{}", told.text());
    assert!(told.json()["error"]["message"].as_str().unwrap().contains("cancelled"));
    cancel(addr, &id).await;
    let told = working.await.unwrap();
    assert!(told.status.is_client_error() && told.json()["error"].is_string(), "{}", told.text());
    stub.release_tokens();
    let body = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 100_000 } });
    let stream = post_stream(addr, "/api/generate", &body).await;
    cancel(addr, stream.headers["x-foreman-job-id"].to_str().unwrap()).await;
    let told = stream.rest().await;
    assert!(!told.is_whole && told.text().lines().last().unwrap().contains("cancelled"));
    problem(&act(addr, &id, "retry").await, 409, "no-request");
}

/// Its history is kept, and its counters begin anew.
#[tokio::test]
async fn a_retry_keeps_the_history_and_begins_the_counters_anew() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let tries = |raw: &mut foreman::config::Raw| raw.max_attempts = Some("2".to_owned());
    let foreman = Foreman::start_with(&stub, tries).await.up().await;
    let addr = foreman.addr;
    stub.faults(Fault::new(Action::EndWithoutDone(1)).path("/api/chat").times(3));
    let id = submit(addr, &chat("a", "x")).await;
    let failed = ended(addr, &id).await;
    assert_eq!((&failed["state"], &failed["counters"]["attempts"]), (&json!("failed"), &json!(2)));
    assert_eq!(get(addr, &format!("/jobs/{id}/request")).await.text(), chat("a", "x").to_string());
    stub.hold_tokens();
    let other = foreman.occupy(&stub, "a").await;
    let answer = act(addr, &id, "retry").await;
    assert_eq!(answer.status, 202);
    let again = answer.json();
    assert_eq!((&again["state"], &again["counters"]["attempts"]), (&json!("queued"), &json!(0)));
    assert_eq!((&again["error"], &again["failed_at"]), (&Value::Null, &Value::Null));
    assert_eq!((&again["created_at"], &again["attempt"]), (&failed["created_at"], &json!(2)));
    problem(&act(addr, &id, "retry").await, 409, "wrong-state");
    stub.release_tokens();
    done(addr, &other).await;
    let object = done(addr, &id).await;
    let outcomes: Vec<_> = object["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| attempt["outcome"].as_str().unwrap())
        .collect();
    assert!(
        outcomes.starts_with(&["put_back", "failed"]) && outcomes.ends_with(&["done"]),
        "{outcomes:?}"
    );
    problem(&act(addr, &id, "retry").await, 409, "wrong-state");
}

#[tokio::test]
async fn a_cancelled_job_can_be_tried_again() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for _ in 0..10 {
        let id = submit(foreman.addr, &generate("a", 100_000)).await;
        let mut follower = follow(foreman.addr, &id, "?stream=true").await;
        follower.next().await.unwrap().unwrap();
        cancel(foreman.addr, &id).await;
        wait_until_state(foreman.addr, &id, "cancelled").await;
        assert_eq!(act(foreman.addr, &id, "retry").await.status, 202);
        let mut again = follow(foreman.addr, &id, "?stream=true&attempt=2").await;
        if again.status == 409 {
            wait_until_state(foreman.addr, &id, "working").await;
            again = follow(foreman.addr, &id, "?stream=true&attempt=2").await;
        }
        assert_eq!(again.headers["x-foreman-attempt"], "2");
        again.next().await.unwrap().unwrap();
        cancel(foreman.addr, &id).await;
        assert_eq!(ended(foreman.addr, &id).await["state"], "cancelled");
    }
}

#[tokio::test]
async fn many_are_tried_again_or_purged_by_their_filters() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let post =
        |path: &'static str, body: String| async move { send(addr, "POST", path, body).await };
    let mut failed = Vec::new();
    for model in ["x", "y", "y"] {
        failed.push(id_of(&ended(addr, &submit(addr, &chat(model, "x")).await).await));
    }
    done(addr, &submit(addr, &chat("a", "x")).await).await;
    for (path, body) in [
        ("/jobs/retry", "{}"),
        ("/jobs/purge", ""),
        ("/jobs/retry", "{\"state\":\"done\"}"),
        ("/jobs/purge", "{\"state\":\"queued\"}"),
        ("/jobs/purge", "{\"state\":\"failed\",\"modell\":\"x\"}"),
        ("/jobs/purge", "[]"),
    ] {
        problem(&post(path, body.to_owned()).await, 422, "invalid-job");
    }
    problem(&post("/jobs/purge", "{".to_owned()).await, 400, "malformed-body");
    problem(&post("/jobs/purge?stat=failed", String::new()).await, 400, "malformed-parameter");
    stub.install(crate::harness::model("y"));
    let many = post("/jobs/retry", json!({ "state": "failed", "model": "y" }).to_string()).await;
    assert_eq!(
        (many.status.as_u16(), many.json()),
        (200, json!({ "count": 2, "has_more": false }))
    );
    for id in &failed[1..] {
        done(addr, id).await;
    }
    assert_eq!(object(addr, &failed[0]).await["state"], "failed");
    let before = object(addr, &failed[0]).await["created_at"].clone();
    let none =
        post("/jobs/purge", json!({ "state": "failed", "created_before": before }).to_string())
            .await;
    assert_eq!(none.json()["count"], 0);
    let some = post("/jobs/purge?state=failed,done", String::new()).await;
    assert_eq!(some.json()["count"], 4);
    assert_eq!(get(addr, "/jobs").await.json()["data"], json!([]));
}

/// What there is room for goes back, and `has_more` says that there is more.
#[tokio::test]
async fn many_are_tried_again_as_far_as_there_is_room() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let limit = |raw: &mut foreman::config::Raw| raw.max_queue = Some("3".to_owned());
    let foreman = Foreman::start_with(&stub, limit).await.up().await;
    let addr = foreman.addr;
    stub.hold_tokens();
    foreman.occupy(&stub, "a").await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let id = submit(addr, &chat("a", "x")).await;
        cancel(addr, &id).await;
        ids.push(id);
    }
    let many = send(addr, "POST", "/jobs/retry?state=cancelled", "").await.json();
    assert_eq!(many, json!({ "count": 3, "has_more": true }));
    problem(&act(addr, &ids[4], "retry").await, 503, "queue-full");
    stub.release_tokens();
    for id in &ids[..3] {
        done(addr, id).await;
    }
    let rest = send(addr, "POST", "/jobs/retry?state=cancelled", "").await.json();
    assert_eq!(rest, json!({ "count": 2, "has_more": false }));
    for id in &ids {
        done(addr, id).await;
    }
}

#[tokio::test]
async fn only_an_ended_job_is_deleted() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_tokens();
    let running = foreman.occupy(&stub, "a").await;
    let waiting = submit(addr, &chat("a", "x")).await;
    let delete = |id: String| async move { send(addr, "DELETE", &format!("/jobs/{id}"), "").await };
    for id in [&running, &waiting] {
        problem(&delete(id.clone()).await, 409, "wrong-state");
    }
    stub.release_tokens();
    for id in [&running, &waiting] {
        done(addr, id).await;
        let deleted: Answer = delete(id.clone()).await;
        assert_eq!((deleted.status.as_u16(), deleted.body.len()), (204, 0));
    }
}

/// A client that leaves cancels its own job, and no other.
#[tokio::test]
async fn a_job_without_a_waiting_client_goes_on_when_its_submitter_leaves() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let id = foreman.occupy(&stub, "a").await;
    let path = format!("/jobs/{id}?wait=25s");
    let leaves = tokio::spawn(open(foreman.addr, request(foreman.addr, "GET", &path, "")));
    foreman.status().await;
    leaves.abort();
    stub.release_tokens();
    done(foreman.addr, &id).await;
}

/// Which of the two is meant is not guessed: what is dropped is gone.
#[tokio::test]
async fn a_filter_in_query_and_body_drops_nothing() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let id = submit(addr, &chat("a", "x")).await;
    done(addr, &id).await;
    for body in [r#"{"state":"cancelled"}"#, r#"{"state":"done"}"#] {
        let answer = send(addr, "POST", "/jobs/purge?state=done", body).await;
        problem(&answer, 400, "malformed-parameter");
    }
    assert_eq!(get(addr, &format!("/jobs/{id}")).await.status, 200);
    let both = send(addr, "POST", "/jobs/purge?state=done", r#"{"model":"b"}"#).await;
    assert_eq!(both.json(), json!({ "count": 0, "has_more": false }));
}
