//! Nobody gets in without a key, on any route; with one, everything is as without keys. A key is for foreman alone: not for
//! Ollama, no log and no file.

use serde_json::Value;

use super::{ADMIN, ALICE, BOB, House, ask, submit, three};
use crate::harness::client::{self, chat_unstreamed, open};
use crate::harness::daemon::{Daemon, command, foreman};
use crate::harness::jobs::with_header;
use crate::harness::send;
use crate::whom::Logged;

const ROUTES: [(&str, &str, &str); 18] = [
    (
        "POST",
        "/api/chat",
        r#"{"model":"a","messages":[{"role":"user","content":"x"}],"stream":false}"#,
    ),
    ("POST", "/api/generate", r#"{"model":"a","prompt":"x","stream":false}"#),
    ("POST", "/v1/chat/completions", r#"{"model":"a","messages":[{"role":"user","content":"x"}]}"#),
    ("POST", "/v1/completions", r#"{"model":"a","prompt":"x"}"#),
    ("POST", "/v1/responses", r#"{"model":"a","input":"x"}"#),
    (
        "POST",
        "/v1/messages",
        r#"{"model":"a","max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#,
    ),
    ("POST", "/api/embed", r#"{"model":"embed","input":"x"}"#),
    ("GET", "/api/tags", ""),
    ("GET", "/", ""),
    ("POST", "/jobs", r#"{"model":"a","messages":[{"role":"user","content":"x"}]}"#),
    ("POST", "/jobs/batch", "[]"),
    ("GET", "/jobs", ""),
    ("GET", "/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV", ""),
    ("GET", "/deliveries", ""),
    ("GET", "/openapi.json", ""),
    ("GET", "/status", ""),
    ("GET", "/trace", ""),
    ("GET", "/readyz", ""),
];

#[tokio::test]
async fn every_route_but_healthz_asks_for_a_key() {
    let house = House::start(&three()).await;
    let addr = house.addr();
    for (method, path, body) in ROUTES {
        let mut refused = vec![send(addr, method, path, body).await];
        for wrong in ["", "alice", "alice-012345678", "ALICE-0123456789"] {
            refused.push(ask(addr, wrong, method, path, body).await);
        }
        for answer in &refused {
            assert_eq!(answer.status, 401, "{method} {path}: {}", answer.text());
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert_eq!(answer.body, refused[0].body, "{path}: nothing is told of what was sent");
        }
        let told = refused[0].json();
        match path {
            "/v1/messages" => assert_eq!(told["error"]["type"], "authentication_error"),
            path if path.starts_with("/v1/") => assert!(told["error"]["message"].is_string()),
            path if path.starts_with("/jobs") => assert_eq!(told["code"], "unauthorised"),
            _ => assert!(told["error"].is_string() || told["code"] == "unauthorised", "{told}"),
        }
        for key in [ALICE, BOB, ADMIN] {
            let answer = ask(addr, key, method, path, body).await;
            assert_ne!(answer.status, 401, "{method} {path}");
            let request = client::request(addr, method, path, body);
            let request = with_header(request, ("x-api-key", key));
            let by_header = open(addr, request).await.unwrap().rest().await;
            assert_eq!(by_header.status, answer.status, "{method} {path}");
        }
    }
    assert_eq!(send(addr, "GET", "/healthz", "").await.status, 200);
    let sent = house.stub.log();
    let credentials = sent.iter().flat_map(|entry| &entry.headers);
    let mut credentials = credentials.filter(|(name, value)| {
        ["authorization", "x-api-key"].contains(&name.as_str()) || value.contains("0123456789")
    });
    assert_eq!(credentials.next(), None, "a key went upstream");
}

#[tokio::test]
async fn foremans_token_is_an_admin_beside_the_named_keys() {
    let token = |raw: &mut foreman::config::Raw| raw.token = Some("old".to_owned());
    let stub = crate::harness::stub_config(&["a"]);
    let house = House::start_with(&three(), stub, token).await;
    let of_alice = house.submit(ALICE, "a").await;
    let of_token = house.submit("old", "a").await;
    for id in [&of_alice, &of_token] {
        let job = house.ended("old", id).await;
        assert_eq!(job["owner"].as_str(), (id == &of_alice).then_some("alice"), "{job}");
    }
    assert_eq!(house.get(ALICE, &format!("/jobs/{of_token}")).await.status, 404);
    assert_eq!(house.get("old", "/trace").await.status, 200);
    let status = house.get("old", "/status").await.json();
    assert_eq!(status["key"], serde_json::json!({ "name": null, "is_admin": true }));
}

/// The upstream's token is foreman's own, and the client's stays where it was.
#[tokio::test]
async fn a_key_is_in_no_file_and_the_command_line_sends_it() {
    let house = House::start(&three()).await;
    let id = house.submit(ALICE, "a").await;
    house.ended(ALICE, &id).await;
    let chat = chat_unstreamed("a", "x").to_string();
    assert_eq!(house.ask(BOB, "POST", "/api/chat", chat).await.status, 200);
    for entry in std::fs::read_dir(house.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path != house.keys() && path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let has = |key: &str| bytes.windows(key.len()).any(|part| part == key.as_bytes());
            assert!(!has(ALICE) && !has(BOB), "{}", path.display());
        }
    }
    let addr = house.addr().to_string();
    let run = async |args: &[&str], key: &str| {
        let mut command = foreman();
        command.args(args).args(["--addr", &addr]).env("FOREMAN_TOKEN", key);
        let done = command.output().await.unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap())
    };
    let (code, listed) = run(&["jobs", "list"], ALICE).await;
    assert!(code == Some(0) && listed.contains(&id), "{listed}");
    let (code, shown) = run(&["jobs", "show", &id], BOB).await;
    assert_eq!((code, shown.as_str()), (Some(66), ""));
    let (code, _) = run(&["submit", "--model", "a", "x"], BOB).await;
    assert_eq!(code, Some(0));
    let (code, shown) = run(&["status"], BOB).await;
    assert!(code == Some(0) && shown.contains("since start"), "{shown}");
    assert_eq!(run(&["status"], "wrong").await.0, Some(77));
    assert_eq!(run(&["trace"], BOB).await.0, Some(77));
    assert_eq!(run(&["trace"], ADMIN).await.0, Some(0));
}

/// To the queue: one turn for all its programs, however they call themselves.
#[tokio::test]
async fn all_programs_with_a_key_are_one_client() {
    let house = House::start(&three()).await;
    for (key, agent) in [(ALICE, "one"), (ALICE, "two"), (BOB, "one"), (ADMIN, "one")] {
        let body = chat_unstreamed("a", "x").to_string();
        let request = client::request(house.addr(), "POST", "/api/chat", body);
        let request = with_header(request, ("authorization", &format!("Bearer {key}")));
        let request = with_header(request, ("user-agent", agent));
        assert_eq!(open(house.addr(), request).await.unwrap().rest().await.status, 200);
    }
    let database = rusqlite::Connection::open(house.foreman.db()).unwrap();
    let sql =
        "SELECT owner, COUNT(*), COUNT(DISTINCT client) FROM job GROUP BY owner ORDER BY owner";
    let mut statement = database.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    let rows: Vec<(String, i64, i64)> = rows.map(Result::unwrap).collect();
    let of = |name: &str, jobs| (name.to_owned(), jobs, 1);
    assert_eq!(rows, [of("alice", 2), of("bob", 1), of("root", 1)]);
}

/// At the most talkative level, right and wrong ones.
#[tokio::test]
async fn a_key_is_in_no_log() {
    let house = House::start(&three()).await;
    let (db, keys) = (house.folder.path().join("b.db"), house.keys());
    let flags = ["--keys", keys.to_str().unwrap(), "--log", "trace"];
    let logged = Logged::start(command(&house.stub.url(), &db, &flags)).await;
    let addr = logged.addr;
    for key in [ALICE, "wrong-0123456789", BOB] {
        for (method, path, body) in ROUTES {
            ask(addr, key, method, path, body).await;
        }
    }
    let log = logged.stop().await;
    assert!(log.contains("TRACE") && log.contains("job admitted"), "it was talkative");
    assert!(log.contains("job.owner=alice"), "a name is no secret");
    for secret in [ALICE, BOB, ADMIN, "wrong-0123456789"] {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret:?} is in the log: {line:?}");
    }
}

#[tokio::test]
async fn a_line_that_keys_hash_prints_opens() {
    let mut child = foreman()
        .args(["keys", "hash", "carol"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"carol-0123456789\r\n").await.unwrap();
    drop(stdin);
    let printed = child.wait_with_output().await.unwrap();
    let line: Value = serde_json::from_slice(&printed.stdout).unwrap();
    let house = House::start(&[three(), vec![line]].concat()).await;
    assert_eq!(house.get("carol-0123456789", "/jobs").await.status, 200);
    let mut short = foreman();
    let short = short.args(["keys", "hash", "x"]).stdin(std::process::Stdio::null());
    assert_eq!(short.output().await.unwrap().status.code(), Some(64));
}

/// The real daemon: a file with faults ends it before it serves, all of them told and no key with them.
#[tokio::test]
async fn a_file_with_faults_is_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let text = format!("{{\"name\":\"alice\",\"key\":\"{ALICE}\",\"queued\":1}}\n{ALICE}\n");
    std::fs::write(&keys, text).unwrap();
    let mut command = foreman();
    command.args(["serve", "--keys", keys.to_str().unwrap(), "--parallel", "0"]);
    let done = command.output().await.unwrap();
    let told = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(64), "{told}");
    for part in ["keys:1\": member 3 is none of", "keys:2\": must be one JSON", "FOREMAN_PARALLEL"]
    {
        assert!(told.contains(part), "{told}");
    }
    assert!(!told.contains(ALICE) && told.contains("chmod go-rwx"), "{told}");
}

/// What a job belongs to is on disk with it.
#[tokio::test]
async fn whose_a_job_is_outlives_kill_minus_nine() {
    let house = House::start(&three()).await;
    house.stub.hold_tokens();
    let db = house.folder.path().join("b.db");
    let keys = house.keys();
    let flags = ["--keys", keys.to_str().unwrap()];
    let daemon = Daemon::start(&house.stub.url(), &db, &flags).await;
    let (of_alice, of_bob) = (
        submit(daemon.addr, ALICE, &client::chat("a", "x")).await,
        submit(daemon.addr, BOB, &client::chat("b", "x")).await,
    );
    daemon.kill().await;
    let daemon = Daemon::start(&house.stub.url(), &db, &flags).await;
    house.stub.release_tokens();
    for (id, owner, other) in [(&of_alice, ALICE, BOB), (&of_bob, BOB, ALICE)] {
        let path = format!("/jobs/{id}?wait=25s");
        assert_eq!(ask(daemon.addr, owner, "GET", &path, "").await.json()["state"], "done");
        assert_eq!(ask(daemon.addr, other, "GET", &path, "").await.status, 404);
        let listed = super::ids(&ask(daemon.addr, owner, "GET", "/jobs", "").await);
        assert_eq!(listed, std::slice::from_ref(id));
    }
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));
}
