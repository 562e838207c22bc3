//! What can be learned from what ran: `foreman trace`, `foreman replay`, and `foreman status --explain`.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use stub_ollama::Stub;
use tokio::io::AsyncWriteExt;

use crate::harness::client::{chat, get, post, send};
use crate::harness::daemon::foreman;
use crate::harness::{Foreman, stub_config};

async fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    run_with(arguments, "").await
}

async fn run_with(arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut command = foreman();
    command.args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that does not read it closes it.
    drop(stdin.write_all(input.as_bytes()).await);
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A file in a folder, by the path to it.
fn written(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const DAY: &str = r#"{"load_s": {"a": 2}, "slots": 1}
{"arrival_s": 0, "key": "a", "service_s": 1}
{"arrival_s": 0, "key": "b", "service_s": 1}
{"arrival_s": 0, "key": "a", "service_s": 1}
{"arrival_s": 0, "key": "b", "service_s": 1}
"#;

/// Jobs are served, written as a trace and replayed: they are the same jobs, and nothing of what they said is in it.
#[tokio::test]
async fn what_ran_can_be_replayed() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let fm = Foreman::start(&stub).await.up().await;
    for name in ["a", "b", "a", "a", "b"] {
        assert!(post(fm.addr, "/api/chat", &chat(name, "a word of my own")).await.is_whole);
    }
    let unload = json!({ "model": "b", "messages": [], "keep_alive": 0 });
    assert!(post(fm.addr, "/api/chat", &unload).await.is_whole);
    fm.wait_for(|status| status["stored"]["done"] == 6).await;
    let addr = fm.addr.to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("day.jsonl");
    let file = file.to_str().unwrap();
    let (code, page, words) = run(&["trace", "--addr", &addr, "-o", file]).await;
    assert_eq!((code, page.as_str(), words.as_str()), (Some(0), "", ""));
    let trace = std::fs::read_to_string(file).unwrap();
    assert!(!trace.contains("word") && !trace.contains("127.0.0.1"), "{trace}");
    let first: Value = serde_json::from_str(trace.lines().next().unwrap()).unwrap();
    assert_eq!(first["slots"], 1);
    assert!(first["load_s"]["a:latest"].is_number() && first["load_s"]["b:latest"].is_number());
    // One client that waited for each answer: its arrivals follow the schedule.
    let steps = serde_json::from_str::<Value>(trace.lines().nth(1).unwrap()).unwrap();
    assert_eq!(steps["steps"].as_array().unwrap().len(), 5, "{trace}");
    let (code, text, _) = run(&["replay", "--policy", "all", "--json", file]).await;
    assert_eq!(code, Some(0));
    let document: Value = serde_json::from_str(&text).unwrap();
    let replays = document["replays"].as_array().unwrap();
    let policies: Vec<_> = replays.iter().map(|one| one["policy"].as_str().unwrap()).collect();
    assert_eq!(policies, ["fifo", "drain", "foreman"]);
    assert!(replays.iter().all(|one| one["jobs"] == 5), "{text}");
    assert_eq!(replays[0]["loads"], 4);
    // Fewer, on stdout, through stdin.
    let (code, short, _) = run(&["trace", "--addr", &addr, "--last", "3"]).await;
    assert_eq!(code, Some(0));
    let (code, page, words) = run_with(&["replay", "-"], &short).await;
    assert_eq!((code, words.as_str()), (Some(0), ""), "{short}");
    assert!(page.lines().nth(1).unwrap().starts_with("-  "), "{page}");
}

#[tokio::test]
async fn the_trace_route_answers_lines_and_tells_what_it_takes() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let fm = Foreman::start(&stub).await.up().await;
    let empty = get(fm.addr, "/trace").await;
    assert_eq!(empty.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(empty.text(), "{\"load_s\":{},\"slots\":1}\n");
    assert_eq!(send(fm.addr, "HEAD", "/trace?last=5", "").await.status, 200);
    let wrong = get(fm.addr, "/trace?last=100001").await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.json()["error"].as_str().unwrap().contains("1 to 100000"));
    let (code, _, _) = run(&["trace", "--addr", &fm.addr.to_string(), "--last", "0"]).await;
    assert_eq!(code, Some(64));
    let nowhere = ["trace", "--addr", &fm.addr.to_string(), "-o", "/nowhere/at/all"];
    assert_eq!(run(&nowhere).await.0, Some(1));
}

/// The decisions of a real day come with their reasons, in 80 columns.
#[tokio::test]
async fn status_explains_the_last_decisions() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let fm = Foreman::start(&stub).await.up().await;
    for name in ["a", "b", "b"] {
        assert!(post(fm.addr, "/api/chat", &chat(name, "x")).await.is_whole);
    }
    fm.wait_for(|status| status["loads"]["jobs"] == 3).await;
    let addr = fm.addr.to_string();
    let (code, page, words) = run(&["status", "--addr", &addr, "--explain"]).await;
    assert_eq!((code, words.as_str()), (Some(0), ""));
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    for told in ["loads        2 for the last 3 jobs, at least 2", "b:latest", "first: no model"] {
        assert!(page.contains(told), "{told} is missing in\n{page}");
    }
    let (_, page, _) = run(&["status", "--addr", &addr]).await;
    assert!(page.contains("loads        2 for the last 3 jobs"), "{page}");
    assert_eq!(run(&["status", "--explain", "--json"]).await.0, Some(64));
}

#[tokio::test]
async fn what_is_typed_goes_before_what_the_trace_says() {
    let folder = tempfile::tempdir().unwrap();
    let day = written(folder.path(), "day.jsonl", DAY);
    let loading = async |more: &[&str]| {
        let (code, text, words) = run(&[&["replay", "--json", &day], more].concat()).await;
        assert_eq!(code, Some(0), "{words}");
        let document: Value = serde_json::from_str(&text).unwrap();
        let replay = document["replays"][0].clone();
        let whole = replay["makespan_s"].as_f64().unwrap();
        assert_eq!(replay["jobs"], 4);
        (replay["loads"].as_u64().unwrap(), whole)
    };
    assert_eq!(loading(&[]).await, (2, 16.0));
    assert_eq!(loading(&["--load", "3"]).await, (2, 9.0));
    assert_eq!(loading(&["--load-of", "a=1", "--load-of", "b:latest=1.5"]).await, (2, 6.5));
    assert_eq!(loading(&["--policy", "fifo"]).await, (4, 28.0));
    assert_eq!(loading(&["--policy", "fifo", "--slots", "2"]).await, (2, 16.0));
    assert_eq!(loading(&["--parallel", "2"]).await, (2, 14.0));
    let (code, _, words) = run(&["replay", &day, "--load-of", "z=1"]).await;
    assert_eq!(code, Some(0));
    assert!(words.contains("--load-of z: no job needs this key"), "{words}");
}

#[tokio::test]
async fn a_line_that_cannot_be_read_is_named_and_faults_of_flags_are_told_together() {
    let folder = tempfile::tempdir().unwrap();
    let bad = written(folder.path(), "bad.jsonl", &format!("{DAY}\n{{\"arrival_s\": 1}}\n"));
    let (code, page, words) = run(&["replay", &bad]).await;
    assert_eq!((code, page.as_str()), (Some(1), ""));
    assert!(words.contains("bad.jsonl:7: no key"), "{words}");
    let (code, _, words) = run(&["replay", "nowhere.jsonl"]).await;
    assert_eq!(code, Some(1));
    assert!(words.contains("nowhere.jsonl"), "{words}");
    let (code, _, words) =
        run(&["replay", &bad, "--max-wait", "urgent=1m", "--hold", "maybe"]).await;
    assert_eq!(code, Some(64));
    assert!(words.contains("--max-wait \"urgent=1m\"") && words.contains("--hold"), "{words}");
    for wrong in [
        &["replay"] as &[&str],
        &["replay", "x", "--policy", "best"],
        &["replay", "x", "--load", "-1"],
        &["replay", "x", "--load-of", "a"],
        &["replay", "x", "--slots", "0"],
        &["replay", "x", "--markdown"],
        &["replay", "--suite", "x", "--policy", "fifo"],
    ] {
        assert_eq!(run(wrong).await.0, Some(64), "{wrong:?}");
    }
}

/// A folder of workloads becomes a table, and so do the fixtures of this repository, but nowhere else.
#[tokio::test]
async fn a_suite_is_a_table() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["mine.0.jsonl", "mine.1.jsonl", "other.jsonl"] {
        written(folder.path(), name, DAY);
    }
    written(folder.path(), "README.md", "not a trace");
    let path = folder.path().to_str().unwrap();
    let (code, page, words) = run(&["replay", "--suite", path]).await;
    assert_eq!(code, Some(0), "{words}");
    let rows: Vec<&str> = page.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(rows, ["workload", "mine", "other"]);
    assert!(page.lines().all(|line| line.chars().count() <= 120), "{page}");
    let (_, page, _) = run(&["replay", "--suite", path, "--markdown"]).await;
    assert!(page.contains("| mine | 100.0 · 28 · 15.5 · 27 | 50.0 · 16 ·"), "{page}");
    let (_, text, _) = run(&["replay", "--suite", path, "--json"]).await;
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["suite"].as_array().unwrap().len(), 6);
    assert_eq!(
        (&document["suite"][0]["workload"], &document["suite"][0]["traces"]),
        (&json!("mine"), &json!(2))
    );
    let empty = tempfile::tempdir().unwrap();
    let elsewhere = foreman().args(["replay", "--suite"]).current_dir(empty.path()).output().await;
    let elsewhere = elsewhere.unwrap();
    assert_eq!(elsewhere.status.code(), Some(1));
    let words = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(words.contains("tests/fixtures/traces") && words.contains("repository"), "{words}");
}

/// The docs promise the figures of this very scheduler, and name each figure and each way to ask for it.
#[tokio::test]
async fn the_docs_show_what_is_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let suite = root.join("tests/fixtures/traces");
    let shown = std::fs::read_to_string(root.join("docs/scheduling.md")).unwrap();
    for alike in [&[][..], &["--alike"]] {
        let arguments = ["replay", "--markdown", "--suite", suite.to_str().unwrap()];
        let (code, table, words) = run(&[&arguments[..], alike].concat()).await;
        assert_eq!((code, words.as_str()), (Some(0), ""));
        assert!(
            shown.contains(&table),
            "docs/scheduling.md shows other figures than `foreman {arguments:?} {alike:?}`:\n{table}"
        );
    }
    let told = std::fs::read_to_string(root.join("docs/cli.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let day = written(folder.path(), "day.jsonl", DAY);
    let (_, text, _) = run(&["replay", "--json", &day]).await;
    let document: Value = serde_json::from_str(&text).unwrap();
    for member in document["replays"][0].as_object().unwrap().keys() {
        assert!(told.contains(&format!("`{member}`")), "docs/cli.md does not name {member}");
    }
    let stub = Stub::start(stub_config(&["a"])).await;
    let fm = Foreman::start(&stub).await.up().await;
    let status = fm.status().await;
    let told = std::fs::read_to_string(root.join("docs/status.md")).unwrap();
    for group in ["loads", "scheduler", "since_start"] {
        for member in status[group].as_object().unwrap().keys() {
            let is_told = told.contains(&format!("`{member}`"))
                || told.contains(&format!(".{member}`"))
                || told.contains(&format!(".{member}[]`"));
            assert!(is_told, "docs/status.md does not name {group}.{member}");
        }
    }
}
