//! Whom foreman serves: hosts and origins as strictly as Ollama, clients with its token, and Ollama with a token of its
//! own. A token is for one hop only, and for no log and no file.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use stub_ollama::{Stub, StubConfig};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::harness::raw::{self, Raw, RawAnswer};
use crate::harness::{DEADLINE, Foreman, daemon, stub_config};

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"MARKED-PROMPT"}]}"#;
const EMBED: &str = r#"{"model":"embed","input":"MARKED-PROMPT"}"#;

/// Sends a request with these lines in place of any `Host`.
async fn ask(addr: SocketAddr, line: &str, lines: &[String], body: &str) -> RawAnswer {
    let lines = lines.join("\r\n");
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\n{lines}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let method = line.split(' ').next().unwrap();
    Raw::send(addr, request.as_bytes()).await.answer(method).await
}

const HOSTS: [&str; 22] = [
    "SELF",
    "127.0.0.1",
    "127.8.9.10:80",
    "localhost",
    "LocalHost:1",
    "app.localhost:3000",
    "nas.local",
    "host.docker.internal:11435",
    "192.168.1.5",
    "10.0.0.1:5",
    "0.0.0.0",
    "[::1]:80",
    "[fd12::1]:80",
    "",
    "evil.example",
    "8.8.8.8",
    "172.32.0.1:80",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evillocalhost",
    "foreman:11434",
    "[2001:db8::1]:80",
];

const ORIGINS: [&str; 20] = [
    "",
    "http://HOST",
    "https://HOST",
    "http://localhost",
    "http://localhost:3000",
    "https://127.0.0.1:8080",
    "http://0.0.0.0",
    "app://x",
    "file://",
    "tauri://localhost",
    "vscode-webview://abc",
    "http://evil.example",
    "https://evil.example:11434",
    "null",
    "http://localhost.evil.example",
    "http://localhostevil.example",
    "http://127.0.0.2",
    "chrome-extension://abc",
    "ftp://localhost",
    "localhost",
];

const LINES: [&str; 4] = ["GET /api/version", "POST /api/show", "OPTIONS /api/chat", "GET /nope"];

/// Every host with every origin and line, less what the stub does not know: Ollama answers an OPTIONS that is no
/// preflight by itself where it knows the host by name.
fn judgements() -> Vec<(&'static str, &'static str, String)> {
    let mut cases = Vec::new();
    for (host, origin) in HOSTS.into_iter().flat_map(|host| ORIGINS.map(|origin| (host, origin))) {
        let origin = origin.replace("HOST", host);
        let is_same = origin.split_once("://").is_some_and(|(_, rest)| rest == host);
        let is_preflight = !origin.is_empty() && !is_same;
        let lines = LINES
            .into_iter()
            .filter(|line| is_preflight || host == "SELF" || !line.starts_with("OPTIONS"));
        cases.extend(lines.map(|line| (line, host, origin.clone())));
    }
    cases
}

/// What one side answers, in a line.
async fn judged(addr: SocketAddr, line: &str, host: &str, origin: &str) -> String {
    let own = addr.to_string();
    let mut lines = vec![format!("Host: {}", host.replace("SELF", &own))];
    let origin = origin.replace("SELF", &own);
    lines.extend((!origin.is_empty()).then(|| format!("Origin: {origin}")));
    let body = if line.starts_with("POST") { r#"{"model":"m"}"# } else { "" };
    let answer = ask(addr, line, &lines, body).await;
    let (status, headers) = answer.head.end_to_end();
    format!("{status} {headers:?} {}", answer.text())
}

/// What Ollama lets in and what it says to it, no more and no less.
#[tokio::test]
async fn hosts_and_origins_are_judged_as_ollama_judges_them() {
    let config = StubConfig { fixed_time: true, ..stub_config(&["m"]) };
    let direct = Stub::start(config.clone()).await;
    let upstream = Stub::start(config).await;
    let foreman = Foreman::start(&upstream).await.up().await;
    let mut refused = 0;
    for (line, host, origin) in judgements() {
        let wanted = judged(direct.addr(), line, host, &origin).await;
        let got = judged(foreman.addr, line, host, &origin).await;
        assert_eq!(got, wanted, "{line} from {origin:?} to {host:?}");
        refused += u32::from(got.starts_with("HTTP/1.1 403 "));
    }
    assert!(refused > 500, "the table holds what must be refused: {refused}");
}

#[tokio::test]
async fn a_malformed_host_is_refused_as_go_refuses_it() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for lines in [
        vec!["Host: 127.0.0.1", "Host: 127.0.0.1"],
        vec!["Host: 127.0.0.1", "host: evil.example"],
        vec!["Host: evil.example/x.local"],
        vec!["Host: 127.0.0.1 x"],
        vec!["Host: user@127.0.0.1"],
    ] {
        let lines: Vec<String> = lines.into_iter().map(str::to_owned).collect();
        let answer = ask(foreman.addr, "GET /api/version", &lines, "").await;
        assert_eq!(answer.status(), 400, "{lines:?}");
    }
    // The target names the host before the header does.
    let lines = [format!("Host: {}", foreman.addr)];
    let rebound = ask(foreman.addr, "GET http://evil.example/api/version", &lines, "").await;
    assert_eq!(rebound.status(), 403);
}

/// Own routes are no way round: a rebound page must not read the status, or the health.
#[tokio::test]
async fn foreman_s_own_routes_are_guarded_too() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for target in ["/healthz", "/readyz", "/status", "/trace"] {
        let line = format!("GET {target}");
        let evil = ["Host: evil.example".to_owned()];
        assert_eq!(ask(foreman.addr, &line, &evil, "").await.status(), 403, "{target}");
        let foreign = ["Host: localhost".to_owned(), "Origin: http://evil.example".to_owned()];
        assert_eq!(ask(foreman.addr, &line, &foreign, "").await.status(), 403, "{target}");
        let local = ["Host: localhost".to_owned(), "Origin: http://localhost:3000".to_owned()];
        let answer = ask(foreman.addr, &line, &local, "").await;
        let allowed = answer.head.header("access-control-allow-origin");
        assert_eq!((answer.status(), allowed), (200, Some("http://localhost:3000")), "{target}");
    }
}

/// The upstream does not know the origin; foreman answers for it.
#[tokio::test]
async fn an_origin_that_foreman_allows_is_served() {
    let stub = Stub::start(stub_config(&["m"])).await;
    for (origins, allowed) in [("http://page.example", "http://page.example"), ("*", "*")] {
        let tweak = |raw: &mut foreman::config::Raw| raw.origins = Some(origins.to_owned());
        let foreman = Foreman::start_with(&stub, tweak).await.up().await;
        let lines = ["Host: localhost".to_owned(), "Origin: http://page.example".to_owned()];
        for (line, body) in [
            ("POST /api/chat", CHAT),
            ("POST /v1/embeddings", EMBED),
            ("GET /api/tags", ""),
            ("OPTIONS /api/chat", ""),
        ] {
            let answer = ask(foreman.addr, line, &lines, body).await;
            assert!(matches!(answer.status(), 200 | 204), "{line}: {answer:?}");
            let got = answer.head.header("access-control-allow-origin");
            assert_eq!(got, Some(allowed), "{line} with {origins}");
        }
    }
    assert!(stub.log().iter().all(|entry| entry.header("origin").is_none()));
}

#[tokio::test]
async fn a_listener_for_the_network_takes_any_host() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.addr = Some("0.0.0.0:0".to_owned());
    let foreman = Foreman::start_with(&stub, tweak).await;
    let addr = SocketAddr::from(([127, 0, 0, 1], foreman.addr.port()));
    let answer = ask(addr, "GET /api/version", &["Host: gpu.example".to_owned()], "").await;
    assert_eq!(answer.status(), 200, "and Ollama gets a host it accepts");
    let foreign = ["Host: gpu.example".to_owned(), "Origin: http://evil.example".to_owned()];
    assert_eq!(ask(addr, "GET /api/version", &foreign, "").await.status(), 403);
}

const TOKEN: &str = "s3cret-client-token";
const OLLAMA_TOKEN: &str = "s3cret-ollama-token";

async fn with_token(stub: &Stub) -> Foreman {
    let foreman = Foreman::start_with(stub, |raw| {
        raw.token = Some(TOKEN.to_owned());
        raw.ollama_token = Some(OLLAMA_TOKEN.to_owned());
    });
    let foreman = foreman.await;
    stub.wait_for_log(|log| log.iter().any(|entry| entry.path == "/api/tags")).await;
    foreman
}

/// Lines that must not open the door.
fn wrong_credentials() -> Vec<String> {
    let mut wrong = vec![
        "X-None: 1".to_owned(),
        "Authorization: Bearer".to_owned(),
        "Authorization: Bearer wrong".to_owned(),
        format!("Authorization: Bearer {}", &TOKEN[1..]),
        format!("Authorization: Bearer {}", &TOKEN[..TOKEN.len() - 1]),
        format!("Authorization: Bearer {TOKEN}x"),
        format!("Authorization: Bearer {}", TOKEN.to_uppercase()),
        format!("Authorization: Bearer {}", TOKEN.repeat(1_000)),
        format!("Authorization: Bearer {OLLAMA_TOKEN}"),
        format!("Authorization: Basic {TOKEN}"),
        "Authorization: Basic OnMzY3JldC1jbGllbnQtdG9rZW4=".to_owned(),
        format!("Authorization: {TOKEN}"),
        format!("Authorization: Bearer{TOKEN}"),
        format!("Authorization: Token {TOKEN}"),
        "X-Api-Key: wrong".to_owned(),
        format!("X-Api-Key: Bearer {TOKEN}"),
        format!("Cookie: token={TOKEN}"),
    ];
    wrong.push(format!("Proxy-Authorization: Bearer {TOKEN}"));
    wrong
}

#[tokio::test]
async fn without_the_token_every_route_is_closed_in_its_own_shape() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = with_token(&stub).await;
    let numbered = "X-Mine: 1".to_owned();
    for (line, body, shape) in [
        ("GET /", "", "native"),
        ("GET /api/tags", "", "native"),
        ("POST /api/chat", CHAT, "native"),
        ("POST /api/generate", "{bad", "native"),
        ("POST /api/embed", EMBED, "native"),
        ("POST /api/pull", r#"{"model":"x"}"#, "native"),
        ("DELETE /api/delete", r#"{"model":"m"}"#, "native"),
        ("GET /nope", "", "native"),
        ("GET /status", "", "native"),
        ("GET /trace", "", "native"),
        ("GET /readyz", "", "native"),
        ("POST /v1/chat/completions", CHAT, "openai"),
        ("GET /v1/models", "", "openai"),
        ("POST /v1/embeddings", EMBED, "openai"),
        ("POST /v1/messages", CHAT, "anthropic"),
        ("POST /v1/messages/count_tokens", CHAT, "anthropic"),
    ] {
        for wrong in wrong_credentials() {
            let host = format!("Host: {}", foreman.addr);
            let lines = [host, numbered.clone(), wrong.clone()];
            let answer = ask(foreman.addr, line, &lines, body).await;
            let wrong: String = wrong.chars().take(60).collect();
            assert_eq!(answer.status(), 401, "{line} {wrong}");
            assert_eq!(answer.head.header("www-authenticate"), Some("Bearer"), "{line}");
            let told: Value = serde_json::from_slice(&answer.body()).unwrap();
            let text = match shape {
                "native" => &told["error"],
                _ => &told["error"]["message"],
            };
            assert!(text.as_str().unwrap().contains("bearer token"), "{line}: {told}");
            let is_anthropic = told["error"]["type"] == "authentication_error";
            assert_eq!(is_anthropic && told["type"] == "error", shape == "anthropic", "{told}");
        }
    }
    let log = stub.log();
    assert!(log.iter().all(|entry| entry.header("x-mine").is_none()), "nothing went upstream");
    assert_eq!(stored(foreman.addr).await, 0, "nothing was stored");
}

/// How many jobs the status counts in all.
async fn stored(addr: SocketAddr) -> u64 {
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let answer = raw::ask(addr, "GET", "/status", &[&bearer], b"").await;
    let status: Value = serde_json::from_slice(&answer.body()).unwrap();
    status["stored"].as_object().unwrap().values().filter_map(Value::as_u64).sum()
}

#[tokio::test]
async fn the_token_opens_every_route_however_it_is_spelled() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = with_token(&stub).await;
    for line in [
        format!("Authorization: Bearer {TOKEN}"),
        format!("authorization: bearer {TOKEN}"),
        format!("AUTHORIZATION: BEARER {TOKEN}"),
        format!("X-Api-Key: {TOKEN}"),
        format!("x-api-key: {TOKEN}"),
    ] {
        for (method, target, body) in [
            ("GET", "/api/tags", ""),
            ("POST", "/api/chat", CHAT),
            ("POST", "/v1/messages", &CHAT.replace("{\"model", "{\"max_tokens\":3,\"model")),
            ("POST", "/v1/embeddings", EMBED),
            ("GET", "/status", ""),
            ("GET", "/trace", ""),
            ("GET", "/readyz", ""),
        ] {
            let answer = raw::ask(foreman.addr, method, target, &[&line], body.as_bytes()).await;
            assert_eq!(answer.status(), 200, "{line}: {method} {target} {answer:?}");
        }
    }
}

/// Whoever watches the process has no token; a browser's preflight never has one.
#[tokio::test]
async fn health_and_preflights_need_no_token() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = with_token(&stub).await;
    for method in ["GET", "HEAD"] {
        assert_eq!(raw::ask(foreman.addr, method, "/healthz", &[], b"").await.status(), 200);
    }
    let origin = "Origin: http://localhost:3000";
    let preflight = raw::ask(foreman.addr, "OPTIONS", "/api/chat", &[origin], b"").await;
    assert_eq!(preflight.status(), 204);
    // And a page may read why it was refused.
    let refused = raw::ask(foreman.addr, "POST", "/api/chat", &[origin], CHAT.as_bytes()).await;
    let allowed = refused.head.header("access-control-allow-origin");
    assert_eq!((refused.status(), allowed), (401, Some("http://localhost:3000")));
    for (method, target) in [("POST", "/healthz"), ("GET", "/healthz/"), ("GET", "//healthz")] {
        let answer = raw::ask(foreman.addr, method, target, &[], b"").await;
        assert_eq!(answer.status(), 401, "{method} {target}");
    }
}

/// Sends one request on each road, with this line.
async fn on_each_road(addr: SocketAddr, line: &str) {
    for (method, target, body) in [
        ("GET", "/api/tags", ""),
        ("POST", "/api/show", r#"{"model":"m"}"#),
        ("POST", "/api/chat", CHAT),
        ("POST", "/api/chat", "{bad"),
        ("POST", "/api/embed", EMBED),
        ("DELETE", "/api/delete", r#"{"model":"nope"}"#),
    ] {
        raw::ask(addr, method, target, &[line, "X-Mine: 1"], body.as_bytes()).await;
    }
}

#[tokio::test]
async fn a_client_s_token_stops_at_foreman_and_ollama_gets_foreman_s() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = with_token(&stub).await;
    on_each_road(foreman.addr, &format!("Authorization: Bearer {TOKEN}")).await;
    on_each_road(foreman.addr, &format!("X-Api-Key: {TOKEN}")).await;
    let log = stub.log();
    assert_eq!(log.iter().filter(|entry| entry.header("x-mine").is_some()).count(), 12);
    let wanted = format!("Bearer {OLLAMA_TOKEN}");
    for entry in log {
        let given: Vec<_> =
            entry.headers.iter().filter(|(name, _)| name == "authorization").collect();
        assert_eq!(given.len(), 1, "{entry:?}");
        assert_eq!(given[0].1, wanted, "{} {}", entry.method, entry.path);
        let is_told = entry.headers.iter().any(|(_, value)| value.contains(TOKEN));
        assert!(!is_told && entry.header("x-api-key").is_none(), "{entry:?}");
    }
    assert_not_in_files(foreman.db(), &[TOKEN, OLLAMA_TOKEN]);
}

/// The database and what lies beside it.
fn assert_not_in_files(db: &Path, secrets: &[&str]) {
    let mut files = 0;
    for entry in std::fs::read_dir(db.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let Ok(bytes) = std::fs::read(&path) else { continue };
        files += 1;
        for secret in secrets {
            let is_there = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!is_there, "{} holds a token", path.display());
        }
    }
    assert!(files > 0);
}

#[tokio::test]
async fn without_a_token_of_its_own_foreman_passes_no_foreign_one_on() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.token = Some(TOKEN.to_owned());
    let foreman = Foreman::start_with(&stub, tweak).await;
    on_each_road(foreman.addr, &format!("Authorization: Bearer {TOKEN}")).await;
    assert!(stub.log().iter().all(|entry| entry.header("authorization").is_none()));
}

#[tokio::test]
async fn an_open_foreman_still_puts_its_own_token_in_the_place_of_a_client_s() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.ollama_token = Some(OLLAMA_TOKEN.to_owned());
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    on_each_road(foreman.addr, "Authorization: Bearer theirs").await;
    let wanted = format!("Bearer {OLLAMA_TOKEN}");
    assert!(stub.log().iter().all(|entry| entry.header("authorization") == Some(&wanted)));
}

/// The real binary, whose whole log is kept.
pub(crate) struct Logged {
    pub(crate) addr: SocketAddr,
    child: Child,
    reading: JoinHandle<String>,
}

impl Logged {
    /// Starts it and waits until it serves.
    pub(crate) async fn start(mut command: Command) -> Logged {
        let mut child = command.spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let mut log = Vec::new();
        let serves = async {
            loop {
                stderr.read_buf(&mut log).await.unwrap();
                let text = String::from_utf8_lossy(&log);
                let addr = text.split("http.addr=").nth(1).and_then(|rest| rest.split_once(' '));
                if let Some((addr, _)) = addr {
                    return addr.parse::<SocketAddr>().unwrap();
                }
            }
        };
        let addr = tokio::time::timeout(DEADLINE, serves).await.unwrap();
        let reading = tokio::spawn(async move {
            stderr.read_to_end(&mut log).await.unwrap();
            String::from_utf8(log).unwrap()
        });
        Logged { addr, child, reading }
    }

    /// SIGTERM; its log to the end.
    pub(crate) async fn stop(mut self) -> String {
        let pid = self.child.id().unwrap().to_string();
        std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        tokio::time::timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
        self.reading.await.unwrap()
    }
}

/// Client and connection of each job that was admitted, as logged.
fn admitted(log: &str) -> Vec<(String, String)> {
    let field = |line: &str, name: &str| {
        let rest = line.split_once(name).unwrap_or_else(|| panic!("no {name} in {line}")).1;
        rest.split_whitespace().next().unwrap().to_owned()
    };
    let lines = log.lines().filter(|line| line.contains("job admitted"));
    lines.map(|line| (field(line, "job.client="), field(line, "http.connection="))).collect()
}

/// A client is known again on another connection and after a restart, by its token, which is not shown.
#[tokio::test]
async fn clients_and_connections_are_told_apart() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let lines =
        |token: &str| [format!("Authorization: Bearer {token}"), "User-Agent: t".to_owned()];
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let logged = Logged::start(daemon::command(&stub.url(), &db, &[])).await;
        let mut kept = Raw::connect(logged.addr).await;
        for _ in 0..2 {
            let head = format!("POST /api/chat HTTP/1.1\r\nHost: {}\r\n", logged.addr);
            let lines = lines(TOKEN).join("\r\n");
            let length = CHAT.len();
            kept.write(
                format!("{head}{lines}\r\nContent-Length: {length}\r\n\r\n{CHAT}").as_bytes(),
            )
            .await;
            assert_eq!(kept.answer("POST").await.status(), 200);
        }
        for token in [TOKEN, "other"] {
            let [bearer, agent] = lines(token);
            let lines = [bearer.as_str(), agent.as_str()];
            raw::ask(logged.addr, "POST", "/api/chat", &lines, CHAT.as_bytes()).await;
        }
        drop(kept);
        let log = logged.stop().await;
        assert!(!log.contains(TOKEN));
        jobs.push(admitted(&log));
    }
    for run in &jobs {
        let [first, second, third, other] = run.as_slice() else { panic!("{jobs:?}") };
        assert_eq!(first, second, "one connection");
        assert!(first.0 == third.0 && first.1 != third.1, "another connection: {jobs:?}");
        assert!(first.0 != other.0 && third.1 != other.1, "another client: {jobs:?}");
    }
    assert_eq!(jobs[0][0].0, jobs[1][0].0, "after a restart");
}

/// At the most talkative level, with wrong tokens, odd requests and an upstream that goes away.
#[tokio::test]
async fn neither_tokens_nor_prompts_nor_answers_are_logged() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let mut command = daemon::command(&stub.url(), &db, &["--log", "trace"]);
    command.env("FOREMAN_TOKEN", TOKEN).env("FOREMAN_OLLAMA_TOKEN", OLLAMA_TOKEN);
    let logged = Logged::start(command).await;
    let addr = logged.addr;
    for line in wrong_credentials() {
        raw::ask(addr, "POST", "/api/chat", &[&line], CHAT.as_bytes()).await;
    }
    for line in [format!("Authorization: Bearer {TOKEN}"), format!("X-Api-Key: {TOKEN}")] {
        on_each_road(addr, &line).await;
    }
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let unstreamed = CHAT.replace("{\"model", "{\"stream\":false,\"model");
    let told = raw::ask(addr, "POST", "/api/chat", &[&bearer], unstreamed.as_bytes()).await;
    let told: Value = serde_json::from_slice(&told.body()).unwrap();
    let answer = told["message"]["content"].as_str().unwrap();
    assert!(answer.len() > 20, "{told}");
    let malformed = [bearer.as_str(), "X-Bad: \u{1}"];
    raw::ask(addr, "POST", "/v1/chat/completions", &malformed, CHAT.as_bytes()).await;
    stub.set_down(true).await;
    assert_eq!(raw::ask(addr, "GET", "/api/tags", &[&bearer], b"").await.status(), 502);
    let log = logged.stop().await;
    assert!(log.contains("TRACE") && log.contains("job done"), "it was talkative: {log}");
    for secret in [TOKEN, OLLAMA_TOKEN, "OnMzY3JldC1jbGllbnQtdG9rZW4=", "MARKED-PROMPT", answer] {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret:?} is in the log: {line:?}");
    }
}
