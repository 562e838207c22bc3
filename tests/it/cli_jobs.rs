//! `foreman submit`, `foreman jobs` and `foreman completions` as a user runs them, against a foreman whose answers are
//! written here. What must be true of the real one too stands at the end.

use std::process::Stdio;

use serde_json::{Value, json};
use stub_ollama::Stub;
use tokio::io::AsyncWriteExt;

use crate::harness::daemon::foreman;
use crate::harness::fake_foreman::{Canned, FakeForeman, Question};
use crate::harness::{DEADLINE, Foreman, stub_config};

/// What a command came to.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs a command on what is at this address.
async fn run(addr: std::net::SocketAddr, arguments: &[&str], stdin: &str) -> Ran {
    let addr = addr.to_string();
    let mut child = foreman()
        .args(arguments)
        .args(["--addr", &addr])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    drop(input.write_all(stdin.as_bytes()).await);
    drop(input);
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await;
    let output = output.expect("the command did not end").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// Runs a command against a script.
async fn scripted(arguments: &[&str], script: Vec<(&str, Canned)>) -> (Ran, Vec<Question>) {
    let expected: Vec<String> = script.iter().map(|(line, _)| (*line).to_owned()).collect();
    let fake = FakeForeman::start(script).await;
    let ran = run(fake.addr, arguments, "").await;
    let asked = fake.asked().await;
    let lines: Vec<&str> = asked.iter().map(|question| question.line.as_str()).collect();
    assert_eq!(lines, expected, "{}", ran.err);
    (ran, asked)
}

fn job(state: &str) -> Value {
    json!({ "object": "job", "job_id": "01A", "state": state, "is_cancelling": false, "model": "llama3",
        "priority": "normal", "created_at": "2026-11-24T12:00:00.000Z", "attempt": 1, "error": null, "result": null })
}

fn failed() -> Value {
    let mut job = job("failed");
    job["error"] = json!({ "message": "no such model", "status": 404 });
    job
}

fn words(texts: &[&str]) -> String {
    let line = |text: &&str| format!("{}\n", json!({ "message": { "content": text } }));
    texts.iter().map(line).collect()
}

#[tokio::test]
async fn submit_prints_the_id_and_sends_what_the_flags_say() {
    let arguments = [
        "submit",
        "-m",
        "llama3",
        "hi",
        "--option",
        "temperature=0",
        "--priority",
        "batch",
        "--webhook",
        "http://127.0.0.1:9/",
        "--meta",
        "run=7",
        "--idempotency-key",
        "k1",
        "--token",
        "s3cret",
    ];
    let (ran, asked) =
        scripted(&arguments, vec![("POST /jobs", Canned::json(202, &job("queued")))]).await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "01A\n", ""));
    let body: Value = serde_json::from_str(&asked[0].body).unwrap();
    let expected = json!({ "model": "llama3", "messages": [{ "role": "user", "content": "hi" }],
        "options": { "temperature": 0 }, "priority": "batch", "state_webhook_url": "http://127.0.0.1:9/",
        "metadata": { "run": "7" } });
    assert_eq!(body, expected);
    assert!(asked[0].head.contains("idempotency-key: k1\r\n"), "{}", asked[0].head);
    assert!(asked[0].head.contains("authorization: bearer s3cret\r\n"), "{}", asked[0].head);
}

#[tokio::test]
async fn a_prompt_and_a_body_may_come_from_stdin() {
    let answer = || vec![("POST /jobs", Canned::json(202, &job("queued")))];
    let fake = FakeForeman::start(answer()).await;
    let ran = run(fake.addr, &["submit", "-m", "llama3"], "from stdin").await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(fake.asked().await[0].body.contains("from stdin"));
    let fake = FakeForeman::start(answer()).await;
    let arguments = ["submit", "--body", "-", "--endpoint", "/v1/chat/completions", "--json"];
    let ran = run(fake.addr, &arguments, "{\"model\": \"llama3\",  \"messages\":[]}").await;
    let printed: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(printed["job_id"], "01A");
    let body = &fake.asked().await[0].body;
    assert_eq!(
        body,
        "{\"endpoint\":\"/v1/chat/completions\",\"body\":{\"model\": \"llama3\",  \"messages\":[]}}"
    );
}

/// Every fault is shown, and the exit code says that the input is at fault.
#[tokio::test]
async fn a_refused_job_is_told_with_every_fault() {
    let problem = json!({ "code": "invalid-job", "detail": "nothing was stored; correct the body",
        "errors": [{ "pointer": "/priority", "detail": "interactive, normal or batch" },
                   { "pointer": "/deadline", "detail": "a time" }] });
    let script = vec![("POST /jobs", Canned::problem(422, problem))];
    let (ran, _) = scripted(&["submit", "-m", "a", "x"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(65), ""));
    assert_eq!(
        ran.err,
        "foreman: nothing was stored; correct the body (invalid-job)\n  /priority: interactive, normal or batch\n  \
         /deadline: a time\n"
    );
}

#[tokio::test]
async fn of_a_batch_the_ids_go_to_stdout_and_the_faults_to_stderr() {
    let answer = json!({ "object": "batch", "accepted": 2, "rejected": 1, "jobs": [
        { "index": 0, "job_id": "01A" },
        { "index": 1, "error": { "code": "invalid-job", "detail": "not stored", "errors": [{ "pointer": "/model", "detail": "a name" }] } },
        { "index": 2, "job_id": "01C" }] });
    let fake = FakeForeman::start(vec![("POST /jobs/batch", Canned::json(202, &answer))]).await;
    let ran = run(fake.addr, &["submit", "--batch", "-"], "{}\n{}\n{}\n").await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(65), "01A\n01C\n"));
    assert!(ran.err.contains("item 1: not stored (invalid-job)\n  /model: a name"), "{}", ran.err);
    assert!(fake.asked().await[0].head.contains("content-type: application/x-ndjson"));
}

/// A wait outlives a daemon that is gone for a moment.
#[tokio::test]
async fn a_wait_goes_on_after_a_restart_and_prints_the_completion() {
    let mut done = job("done");
    done["result"] = json!({ "message": { "content": "hello" } });
    let script = vec![
        ("POST /jobs", Canned::json(202, &job("queued"))),
        ("GET /jobs/01A?wait=30s", Canned::json(200, &job("working"))),
        ("GET /jobs/01A?wait=30s", Canned::gone()),
        (
            "GET /jobs/01A?wait=30s",
            Canned::problem(503, json!({ "code": "stopping", "detail": "stopping" })),
        ),
        ("GET /jobs/01A?wait=30s", Canned::json(200, &done)),
    ];
    let (ran, _) = scripted(&["submit", "-m", "llama3", "x", "--wait"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "hello\n"), "{}", ran.err);
    assert!(ran.err.contains("trying again"), "{}", ran.err);
}

/// The daemon dies while the first question is on its way: it was there when the job was handed in.
#[tokio::test]
async fn a_wait_whose_first_question_is_cut_goes_on() {
    let mut done = job("done");
    done["result"] = json!({ "message": { "content": "hello" } });
    let script = || {
        vec![
            ("GET /jobs/01A?wait=30s", Canned::gone()),
            ("GET /jobs/01A?wait=30s", Canned::json(200, &done)),
        ]
    };
    let (ran, _) = scripted(&["jobs", "wait", "01A"], script()).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "01A done\n"), "{}", ran.err);
    let mut submitted = vec![("POST /jobs", Canned::json(202, &job("queued")))];
    submitted.extend(script());
    let (ran, _) = scripted(&["submit", "-m", "llama3", "x", "--wait"], submitted).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "hello\n"), "{}", ran.err);
}

/// A job that is followed may wait for long, and the head of its answer comes with the first byte.
#[tokio::test]
async fn following_goes_on_where_nothing_had_come_yet() {
    let script = vec![
        ("GET /jobs/01A/output?stream=true", Canned::gone()),
        ("GET /jobs/01A", Canned::gone()),
        ("GET /jobs/01A/output?stream=true", Canned::output(1, &words(&["one"]))),
    ];
    let (ran, _) = scripted(&["jobs", "follow", "01A"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "one\n"), "{}", ran.err);
}

/// A long completion is not in the job object.
#[tokio::test]
async fn a_completion_that_is_not_inline_is_fetched() {
    let script = vec![
        ("POST /jobs", Canned::json(202, &job("queued"))),
        ("GET /jobs/01A?wait=30s", Canned::json(200, &job("done"))),
        ("GET /jobs/01A/artifacts/completion", Canned::json(200, &json!({ "response": "long\n" }))),
    ];
    let (ran, _) = scripted(&["submit", "-m", "llama3", "x", "--wait"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "long\n"), "{}", ran.err);
}

#[tokio::test]
async fn exit_codes_tell_how_a_job_ended() {
    for (object, code) in [(job("done"), 0), (failed(), 2), (job("cancelled"), 3)] {
        let script = vec![("GET /jobs/01A?wait=30s", Canned::json(200, &object))];
        let (ran, _) = scripted(&["jobs", "wait", "01A"], script).await;
        assert_eq!(ran.code, Some(code), "{}", ran.err);
        assert_eq!(ran.out, format!("01A {}\n", object["state"].as_str().unwrap()));
    }
    let script = vec![("GET /jobs/01A?wait=0s", Canned::json(200, &job("queued")))];
    let fake = FakeForeman::start(script).await;
    let ran = run(fake.addr, &["jobs", "wait", "01A", "--timeout", "100ms"], "").await;
    assert_eq!(ran.code, Some(4), "{}", ran.err);
    let unknown = json!({ "code": "unknown-job", "detail": "there is no job 01X" });
    let script = vec![("GET /jobs/01X?wait=30s", Canned::problem(404, unknown))];
    assert_eq!(scripted(&["jobs", "wait", "01X"], script).await.0.code, Some(66));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(run(free, &["jobs", "wait", "01A"], "").await.code, Some(69));
}

/// The cut comes in the middle of a record: that half is asked for again, and nothing twice.
#[tokio::test]
async fn following_loses_and_doubles_nothing_over_a_cut() {
    let (first, rest) = (words(&["one ", "two "]), words(&["three ", "four"]));
    let behind = format!("GET /jobs/01A/output?stream=true&offset={}&attempt=1", first.len());
    let half = format!("{first}{}", &rest[..9]);
    let script = || {
        vec![
            ("GET /jobs/01A/output?stream=true", Canned::output(1, &half).cut()),
            ("GET /jobs/01A", Canned::json(200, &job("working"))),
            (behind.as_str(), Canned::gone()),
            ("GET /jobs/01A", Canned::gone()),
            (behind.as_str(), Canned::output(1, &rest)),
        ]
    };
    let (ran, _) = scripted(&["jobs", "follow", "01A"], script()).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "one two three four\n"), "{}", ran.err);
    let (ran, _) = scripted(&["jobs", "follow", "01A", "--raw"], script()).await;
    assert_eq!((ran.code, ran.out), (Some(0), format!("{first}{rest}")), "{}", ran.err);
}

/// The error record is not a part of the answer, and the new attempt begins anew, which is said.
#[tokio::test]
async fn a_new_attempt_is_told_and_begins_anew() {
    let first = words(&["one "]);
    let behind = format!("GET /jobs/01A/output?stream=true&offset={}&attempt=1", first.len());
    let replaced = json!({ "code": "attempt-replaced", "detail": "attempt 2 runs", "attempt": 2 });
    let script = vec![
        (
            "GET /jobs/01A/output?stream=true",
            Canned::output(1, &format!("{first}{{\"error\":\"the attempt was replaced\"}}\n"))
                .cut(),
        ),
        ("GET /jobs/01A", Canned::json(200, &job("working"))),
        (behind.as_str(), Canned::problem(409, replaced)),
        ("GET /jobs/01A", Canned::json(200, &job("working"))),
        ("GET /jobs/01A/output?stream=true", Canned::output(2, &words(&["uno ", "due"]))),
    ];
    let (ran, _) = scripted(&["jobs", "follow", "01A"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "one \nuno due\n"), "{}", ran.err);
    assert!(ran.err.contains("attempt 1 was replaced by 2"), "{}", ran.err);
}

/// Its attempt was put back, and there is no other yet: the answer to come is waited for, not the old one.
#[tokio::test]
async fn an_attempt_that_was_put_back_is_not_asked_for_again() {
    let first = words(&["one"]);
    let behind = format!("GET /jobs/01A/output?stream=true&offset={}&attempt=1", first.len());
    let void =
        json!({ "code": "attempt-replaced", "detail": "attempt 1 is not running", "attempt": 1 });
    let script = vec![
        ("GET /jobs/01A/output?stream=true", Canned::output(1, &first).cut()),
        ("GET /jobs/01A", Canned::json(200, &job("queued"))),
        (behind.as_str(), Canned::problem(409, void)),
        ("GET /jobs/01A", Canned::json(200, &job("queued"))),
        ("GET /jobs/01A/output?stream=true", Canned::output(2, &words(&["uno"]))),
    ];
    let (ran, _) = scripted(&["jobs", "follow", "01A"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "one\nuno\n"), "{}", ran.err);
    assert!(ran.err.contains("attempt 1 was replaced by the next one"), "{}", ran.err);
}

#[tokio::test]
async fn following_a_job_that_fails_or_never_began_tells_why() {
    let script = vec![
        (
            "GET /jobs/01A/output?stream=true",
            Canned::output(1, "{\"error\":\"no such model\"}\n").cut(),
        ),
        ("GET /jobs/01A", Canned::json(200, &failed())),
    ];
    let (ran, _) = scripted(&["jobs", "follow", "01A"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert_eq!(ran.err, "foreman: job 01A failed: no such model (404)\n");
    let none = json!({ "code": "no-answer", "detail": "it was cancelled before it ran" });
    let script = vec![
        ("GET /jobs/01A/output?stream=true", Canned::problem(409, none)),
        ("GET /jobs/01A", Canned::json(200, &job("cancelled"))),
    ];
    assert_eq!(scripted(&["jobs", "follow", "01A"], script).await.0.code, Some(3));
    let purged = || Canned::problem(410, json!({ "code": "purged", "detail": "it was dropped" }));
    let script = vec![("GET /jobs/01A/output?stream=true", purged()), ("GET /jobs/01A", purged())];
    assert_eq!(scripted(&["jobs", "follow", "01A"], script).await.0.code, Some(66));
}

#[tokio::test]
async fn the_list_is_a_table_and_all_pages_through() {
    let page = |id: &str, has_more: bool| {
        let mut job = job("queued");
        job["job_id"] = json!(id);
        Canned::json(
            200,
            &json!({ "object": "list", "data": [job], "first_id": id, "last_id": id, "has_more": has_more }),
        )
    };
    let pages = || {
        vec![
            ("GET /jobs?state=queued%2Cworking&limit=100", page("01B", true)),
            ("GET /jobs?state=queued%2Cworking&limit=100&after=01B", page("01A", false)),
        ]
    };
    let arguments = ["jobs", "list", "--state", "queued,working", "--all"];
    let (ran, _) = scripted(&arguments, pages()).await;
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 3, "{}", ran.out);
    assert!(
        lines[0].starts_with("job ")
            && lines[1].starts_with("01B ")
            && lines[2].starts_with("01A ")
    );
    let (ran, _) = scripted(&[arguments.as_slice(), &["--json"]].concat(), pages()).await;
    let list: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((list["data"].as_array().unwrap().len(), &list["last_id"]), (2, &json!("01A")));
    let empty = json!({ "object": "list", "data": [], "has_more": false });
    let (ran, _) =
        scripted(&["jobs", "list"], vec![("GET /jobs", Canned::json(200, &empty))]).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn jobs_are_cancelled_queued_again_and_purged() {
    let wrong = json!({ "code": "wrong-state", "detail": "job 01B is done, cannot cancel" });
    let mut running = job("working");
    running["is_cancelling"] = json!(true);
    let script = vec![
        ("POST /jobs/01B/cancel", Canned::problem(409, wrong)),
        ("POST /jobs/01A/cancel", Canned::json(200, &running)),
    ];
    let (ran, _) = scripted(&["jobs", "cancel", "01B", "01A"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), "01A cancelling\n"));
    assert!(ran.err.contains("job 01B is done, cannot cancel"), "{}", ran.err);
    let script = vec![
        ("POST /jobs/retry", Canned::json(200, &json!({ "count": 10_000, "has_more": true }))),
        ("POST /jobs/retry", Canned::json(200, &json!({ "count": 2, "has_more": false }))),
    ];
    let (ran, asked) = scripted(&["jobs", "retry", "--failed", "--model", "llama3"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "10002\n"));
    let body: Value = serde_json::from_str(&asked[0].body).unwrap();
    assert_eq!(body, json!({ "state": "failed", "model": "llama3" }));
    let dropped = Canned::json(204, &Value::Null);
    let (ran, _) = scripted(&["jobs", "purge", "01A"], vec![("DELETE /jobs/01A", dropped)]).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "01A purged\n"));
}

/// What is purged is gone: nothing is sent unless somebody was asked or said yes.
#[tokio::test]
async fn many_are_purged_only_after_a_yes() {
    let arguments = ["jobs", "purge", "--state", "failed", "--older-than", "7d"];
    let (ran, _) = scripted(&arguments, vec![]).await;
    assert_eq!(ran.code, Some(64));
    assert!(ran.err.contains("all failed jobs older than 7days; say --yes"), "{}", ran.err);
    let script = vec![("POST /jobs/purge", Canned::json(200, &json!({ "count": 3 })))];
    let (ran, asked) = scripted(&[arguments.as_slice(), &["--yes"]].concat(), script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "3\n"));
    assert!(asked[0].body.contains("created_before"), "{}", asked[0].body);
}

/// After a cut it asks for what came behind the last whole event, and each is printed once.
#[tokio::test]
async fn events_go_on_behind_the_last_one() {
    let event = |id: u64, state: &str| {
        let data = json!({ "type": format!("job.{state}"), "job_id": "01A", "state": state, "timestamp": "T", "model": "m",
                           "attempt": 1, "error": null });
        format!("id: {id}\nevent: job.{state}\ndata: {data}\n\n")
    };
    let first = format!(": hi\n\n{}id: 8\nevent: job.wor", event(7, "queued"));
    let second = event(8, "working") + "event: job.progress\ndata: {\"tokens\":1}\n\n";
    let script = || {
        vec![
            ("GET /jobs/01A/events", Canned::events(&first).cut()),
            ("GET /jobs/01A/events?last_event_id=7", Canned::gone()),
            // A daemon that stops ends its streams whole.
            ("GET /jobs/01A/events?last_event_id=7", Canned::events(&second)),
            ("GET /jobs/01A/events?last_event_id=8", Canned::events(&event(9, "done"))),
        ]
    };
    let (ran, _) = scripted(&["jobs", "events", "01A"], script()).await;
    let kinds: Vec<&str> = ran.out.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(
        (ran.code, kinds),
        (Some(0), vec!["job.queued", "job.working", "job.done"]),
        "{}",
        ran.err
    );
    let (ran, _) = scripted(&["jobs", "events", "01A", "--json"], script()).await;
    assert_eq!(
        ran.out.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(),
        4
    );
    let ended = vec![("GET /jobs/01A/events?last_event_id=9", Canned::json(204, &Value::Null))];
    let (ran, _) = scripted(&["jobs", "events", "01A", "--after", "9"], ended).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn deliveries_are_listed_and_sent_again() {
    let delivery = json!({ "delivery_id": 4711, "job_id": "01A", "sequence": 3, "type": "job.done", "url": "http://x/",
        "state": "dead", "tries": 10, "next_try_at": null, "last_status": 500, "last_error": "it answered 500" });
    let list = json!({ "object": "list", "data": [delivery], "has_more": false });
    let script = vec![("GET /deliveries?state=dead", Canned::json(200, &list))];
    let (ran, _) = scripted(&["jobs", "deliveries", "--state", "dead"], script).await;
    assert!(ran.out.contains("4711 01A"), "{}", ran.out);
    let script = vec![("POST /deliveries/4711/resend", Canned::json(202, &delivery_again()))];
    let (ran, _) = scripted(&["jobs", "deliveries", "--resend", "4711"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "4711 pending\n"));
    let script = vec![("POST /deliveries/resend", Canned::json(200, &json!({ "count": 5 })))];
    let (ran, _) = scripted(&["jobs", "deliveries", "--resend", "all-dead"], script).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "5\n"));
}

fn delivery_again() -> Value {
    json!({ "delivery_id": 4711, "state": "pending" })
}

#[tokio::test]
async fn an_ollama_is_not_taken_for_a_foreman() {
    let page = Canned::json(404, &json!("404 page not found"));
    let (ran, _) = scripted(&["jobs", "list"], vec![("GET /jobs", page)]).await;
    assert_eq!(ran.code, Some(69));
    assert!(ran.err.contains("no foreman, or an older one"), "{}", ran.err);
}

/// Each script is generated; where the shell exists it reads it, and bash completes with it.
#[tokio::test]
async fn completions_are_read_by_their_shells() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = foreman().args(["completions", shell]).output().await.unwrap();
        assert!(output.status.success());
        let script = folder.path().join(shell);
        std::fs::write(&script, &output.stdout).unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("submit"), "{shell}");
        match std::process::Command::new(shell).arg("-n").arg(&script).output() {
            Ok(read) => assert!(read.status.success(), "{shell}: {read:?}"),
            Err(fault) => eprintln!("{shell} is not here, its script was not read: {fault}"),
        }
    }
    let line = "source \"$0\"; COMP_WORDS=(foreman jobs ca); COMP_CWORD=2; _foreman foreman ca jobs; echo \"${COMPREPLY[@]}\"";
    let completed = std::process::Command::new("bash")
        .arg("-c")
        .arg(line)
        .arg(folder.path().join("bash"))
        .output();
    if let Ok(completed) = completed {
        assert_eq!(String::from_utf8_lossy(&completed.stdout).trim(), "cancel", "{completed:?}");
    }
}

/// The whole way on the real daemon.
#[tokio::test]
async fn the_real_one_is_submitted_to_waited_for_followed_and_purged() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let fm = Foreman::start(&stub).await.up().await;
    let ran = run(fm.addr, &["submit", "-m", "a", "hi", "--wait"], "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let text = ran.out;
    let ran = run(fm.addr, &["submit", "-m", "a", "hi", "--follow"], "").await;
    assert_eq!((ran.code, ran.out.trim_end()), (Some(0), text.trim_end()), "{}", ran.err);
    let ids = run(fm.addr, &["submit", "--batch", "-"], &batch_of_two()).await.out;
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(ids.len(), 2);
    let ran = run(fm.addr, &["jobs", "wait", ids[0], ids[1]], "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(run(fm.addr, &["jobs", "list", "--all"], "").await.out.lines().count(), 5);
    assert!(run(fm.addr, &["jobs", "show", ids[0]], "").await.out.contains("state        done"));
    let events = run(fm.addr, &["jobs", "events", ids[0]], "").await.out;
    assert!(events.lines().last().unwrap().contains("job.done"), "{events}");
    let ran = run(fm.addr, &["jobs", "cancel", ids[0]], "").await;
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert_eq!(run(fm.addr, &["jobs", "purge", ids[0]], "").await.code, Some(0));
    assert_eq!(run(fm.addr, &["jobs", "show", ids[0]], "").await.code, Some(66));
    let ran = run(fm.addr, &["submit", "-m", "nowhere", "hi", "--wait"], "").await;
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    let later = ["submit", "-m", "a", "hi", "--in", "1h", "--wait", "--timeout", "1s"];
    let ran = run(fm.addr, &later, "").await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(4), ""), "{}", ran.err);
    assert!(!ran.err.contains("did not answer"), "{}", ran.err);
    assert_eq!(run(fm.addr, &["jobs", "retry", "--failed"], "").await.out, "1\n");
}

fn batch_of_two() -> String {
    let line = json!({ "model": "a", "messages": [{ "role": "user", "content": "x" }] });
    format!("{line}\n{line}\n")
}
