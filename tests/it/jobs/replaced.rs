//! A generation that is begun anew: those who follow the old one are told and cut, and nobody is ever given bytes of both.

use serde_json::{Value, json};
use stub_ollama::{Action, Cut, Fault, Stub};

use crate::harness::client::{Answer, chat, post};
use crate::harness::daemon::Daemon;
use crate::harness::jobs::{
    act, done, ended, follow, generate, object, output, problem, submit, submit_scripted, wait_for,
};
use crate::harness::upstream::Upstream;
use crate::harness::{Foreman, stub_config};

/// The last record of a follower that was cut.
#[track_caller]
fn last_record(answer: &Answer) -> String {
    assert!(!answer.is_whole, "a broken answer ended as a whole one: {}", answer.text());
    answer.text().trim_end().lines().last().unwrap().to_owned()
}

#[tokio::test]
async fn a_stream_that_breaks_is_begun_anew_and_its_followers_are_cut() {
    for action in [
        Action::CutAfterBytes { bytes: 700, cut: Cut::Fin },
        Action::CutAfterBytes { bytes: 700, cut: Cut::Reset },
        Action::EndWithoutDone(6),
        Action::KillRunner(6),
        Action::ErrorAfterChunks { chunks: 6, text: None },
    ] {
        for (path, error) in
            [("/api/chat", "{\"error\":"), ("/v1/chat/completions", "data: {\"error\":")]
        {
            replaces(action.clone(), path, error).await;
        }
    }
}

async fn replaces(action: Action, path: &str, error: &str) {
    let mut config = stub_config(&["a"]);
    config.fixed_time = true;
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let mut body = chat("a", "x");
    body["stream"] = json!(true);
    body["max_tokens"] = json!(30);
    body["options"] = json!({ "num_predict": 30 });
    stub.faults(Fault::new(action.clone()).path(path));
    stub.hold_tokens();
    let id = submit(addr, &json!({ "endpoint": path, "body": body })).await;
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let first = tokio::spawn({
        let id = id.clone();
        async move { follow(addr, &id, "?stream=true").await.rest().await }
    });
    foreman.status().await;
    stub.release_tokens();
    let first = first.await.unwrap();
    let object = done(addr, &id).await;
    assert_eq!(object["attempt"], 2, "{action:?} {path}: {object:#}");
    assert_eq!(object["attempts"][0]["outcome"], "put_back");
    // It may have come too late for the first: then it has the whole second.
    if first.header("x-foreman-attempt") == Some("1") {
        let last = last_record(&first);
        assert!(last.starts_with(error), "{action:?} {path}: {last}");
    } else {
        assert!(first.is_whole);
    }
    let old = problem(
        &output(addr, &id, "?stream=true&offset=1&attempt=1").await,
        409,
        "attempt-replaced",
    );
    assert_eq!(old["attempt"], 2);
    let kept = output(addr, &id, "?attempt=2").await;
    assert_eq!(kept.header("x-foreman-attempt"), Some("2"));
    let straight = post(stub.addr(), path, &body).await;
    assert_eq!(texts(&kept), texts(&straight), "{action:?} {path}");
}

/// The texts of a stream.
fn texts(answer: &Answer) -> Vec<String> {
    let text = answer.text();
    let lines = text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
    let records = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records
        .filter_map(|record| {
            let text = record["message"]["content"].as_str();
            Some(text.or(record["choices"][0]["delta"]["content"].as_str())?.to_owned())
        })
        .collect()
}

/// The same, byte by byte: the first generation is larger than what is kept in memory, so its file is replaced as well.
#[tokio::test]
async fn two_generations_are_never_spliced() {
    let mut upstream = Upstream::with_models(&["a"]).await;
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    let addr = foreman.addr;
    let id = submit_scripted(addr, &generate("a", 1)).await;
    let line =
        |letter: &str| format!("{{\"response\":\"{}\",\"done\":false}}\n", letter.repeat(100_000));
    let mut first = upstream.next().await;
    first.begin_lines().await;
    for _ in 0..15 {
        first.chunk(line("1")).await;
    }
    let mut reads = follow(addr, &id, "?stream=true").await;
    let slow = follow(addr, &id, "?stream=true").await;
    let mut seen = Vec::new();
    while seen.len() < 15 * line("1").len() {
        seen.extend_from_slice(&reads.next().await.unwrap().unwrap());
    }
    first.chunk("{\"response\":\"ha").await;
    drop(first);
    let rest = reads.rest().await;
    assert!(last_record(&rest).starts_with("{\"error\":"), "{}", rest.text());
    assert!(!rest.text().contains("\"ha"), "half a record was told");
    let mut second = upstream.next().await;
    second.begin_lines().await;
    for _ in 0..12 {
        second.chunk(line("2")).await;
    }
    let replaced =
        problem(&output(addr, &id, "?stream=true&attempt=1").await, 409, "attempt-replaced");
    assert_eq!(replaced["attempt"], 2);
    let follower = tokio::spawn(follow(addr, &id, "?stream=true&attempt=2").await.rest());
    second.chunk("{\"response\":\"\",\"done\":true}\n").await;
    second.end().await;
    let whole = line("2").repeat(12) + "{\"response\":\"\",\"done\":true}\n";
    let follower = follower.await.unwrap();
    assert!(follower.is_whole && follower.text() == whole);
    done(addr, &id).await;
    assert!(output(addr, &id, "").await.text() == whole);
    let slow = slow.rest().await;
    assert!(last_record(&slow).starts_with("{\"error\":") && !slow.text().contains("22"));
}

#[tokio::test]
async fn after_kill_nine_in_mid_stream_the_answer_is_begun_anew() {
    let mut upstream = Upstream::with_models(&["a"]).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let daemon = Daemon::start(&upstream.url(), &db, &[]).await;
    let id = submit_scripted(daemon.addr, &generate("a", 1)).await;
    let mut first = upstream.next().await;
    first.begin_lines().await;
    let line =
        |letter: &str| format!("{{\"response\":\"{}\",\"done\":false}}\n", letter.repeat(200_000));
    for _ in 0..8 {
        first.chunk(line("1")).await;
    }
    let mut follower = follow(daemon.addr, &id, "?stream=true").await;
    let mut seen = 0;
    while seen < 7 * 200_000 {
        seen += follower.next().await.unwrap().unwrap().len();
    }
    daemon.kill().await;
    assert!(!follower.rest().await.is_whole);
    let daemon = Daemon::start(&upstream.url(), &db, &[]).await;
    let mut second = upstream.next().await;
    let old = format!("?stream=true&offset={seen}&attempt=1");
    let old = problem(&output(daemon.addr, &id, &old).await, 409, "attempt-replaced");
    assert_eq!(old["attempt"], 2);
    second.begin_lines().await;
    for _ in 0..8 {
        second.chunk(line("2")).await;
    }
    second.chunk("{\"response\":\"\",\"done\":true}\n").await;
    second.end().await;
    let object = done(daemon.addr, &id).await;
    assert_eq!((&object["attempt"], &object["counters"]["interruptions"]), (&json!(2), &json!(1)));
    let whole = line("2").repeat(8) + "{\"response\":\"\",\"done\":true}\n";
    assert!(output(daemon.addr, &id, "?attempt=2").await.text() == whole);
    daemon.kill().await;
}

/// A job that outlives its caller is not lost with a daemon that is forced to stop, though its stream was seen.
#[tokio::test]
async fn a_forced_stop_tells_followers_and_keeps_the_job() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let foreman = Foreman::start_on(&stub.url(), &db, |_| ()).await.up().await;
    let id = submit(foreman.addr, &generate("a", 500)).await;
    let mut follower = follow(foreman.addr, &id, "?stream=true").await;
    follower.next().await.unwrap().unwrap();
    foreman.signal().await;
    foreman.signal().await;
    let told = follower.rest().await;
    foreman.ended().await;
    assert!(last_record(&told).starts_with("{\"error\":"), "{}", told.text());
    let again = Foreman::start_on(&stub.url(), &db, |_| ()).await;
    let object = done(again.addr, &id).await;
    assert_eq!((&object["attempt"], &object["counters"]["attempts"]), (&json!(2), &json!(1)));
    again.stop().await;
}

/// A job that is tried again by hand has a new attempt, and the answer of the old one is gone.
#[tokio::test]
async fn a_retry_by_hand_replaces_the_answer() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let id = submit(addr, &chat("late", "x")).await;
    assert_eq!(ended(addr, &id).await["state"], "failed");
    assert_eq!(output(addr, &id, "?attempt=1").await.header("x-foreman-status"), Some("404"));
    stub.install(crate::harness::model("late"));
    stub.hold_tokens();
    assert_eq!(act(addr, &id, "retry").await.status, 202);
    problem(&output(addr, &id, "").await, 409, "not-finished");
    wait_for(addr, &id, |object| object["state"] == "working").await;
    let old = problem(&output(addr, &id, "?stream=true&attempt=1").await, 409, "attempt-replaced");
    assert_eq!(old["attempt"], object(addr, &id).await["attempt"]);
    stub.release_tokens();
    done(addr, &id).await;
    assert_eq!(output(addr, &id, "").await.header("x-foreman-status"), Some("200"));
}

/// The attempt that an object names can be followed by that number at once. (It was refused as replaced while the worker had
/// claimed the job and not yet begun.)
#[tokio::test]
async fn the_attempt_that_an_object_names_can_be_followed() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for _ in 0..100 {
        let id = submit(foreman.addr, &generate("a", 1)).await;
        let object = wait_for(foreman.addr, &id, |object| object["attempt"] != 0).await;
        assert_eq!(object["attempt"], 1);
        let got = output(foreman.addr, &id, "?stream=true&attempt=1").await;
        assert_eq!(got.status, 200, "{}", got.text());
    }
}
