//! What is not queued is relayed as it comes, both ways: long transfers, odd answers, headers, ends. And what a relayed
//! request changes at the upstream is known afterwards.

use std::net::SocketAddr;

use serde_json::{Value, json};
use stub_ollama::{Stub, StubConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::client::chat_unstreamed;
use crate::harness::daemon::Daemon;
use crate::harness::raw::{self, Framing, Piece, Raw, RawAnswer};
use crate::harness::upstream::{Asked, SCRIPTED, SCRIPTED_HEAD, Upstream};
use crate::harness::{DEADLINE, Foreman, model, post, send, stub_config};

const MIB: usize = 1024 * 1024;

async fn scripted() -> (Upstream, Foreman) {
    let upstream = Upstream::with_models(&["m"]).await;
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    (upstream, foreman)
}

/// Sends a request that the test answers.
async fn asked(
    foreman: &Foreman,
    upstream: &mut Upstream,
    request: (&str, &str, &[u8]),
    lines: &[&str],
) -> (Raw, Asked) {
    let (method, target, body) = request;
    let lines: Vec<&str> = lines.iter().copied().chain([SCRIPTED]).collect();
    let bytes = raw::request(foreman.addr, method, target, &lines, body);
    let client = Raw::send(foreman.addr, &bytes).await;
    (client, upstream.next().await)
}

/// A request and the answer the upstream writes to it, whole.
async fn answered(request: (&str, &str, &[u8]), answer: &str) -> RawAnswer {
    let (mut upstream, foreman) = scripted().await;
    let (mut client, mut asked) = asked(&foreman, &mut upstream, request, &[]).await;
    asked.write(answer).await;
    drop(asked);
    client.answer(request.0).await
}

const CHAT: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;

/// A relayed and a queued request: what holds for the answers of one must hold for those of the other.
const ROADS: [(&str, &str, &[u8]); 2] = [("POST", "/api/show", b"{}"), ("POST", "/api/chat", CHAT)];

const DONE: &str = "{\"done\":true}\n";

/// The second line is not written before the client has the first.
#[tokio::test]
async fn each_line_of_a_pull_reaches_the_client_before_the_next_is_sent() {
    let (mut upstream, foreman) = scripted().await;
    let pull = ("POST", "/api/pull", br#"{"model":"new"}"#.as_slice());
    let (mut client, mut asked) = asked(&foreman, &mut upstream, pull, &[]).await;
    assert_eq!(asked.body, pull.2);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
    asked.write(head).await;
    assert_eq!(client.head().await.unwrap().framing("POST"), Framing::Chunked);
    for number in 0..5 {
        let line = format!("{{\"status\":\"pulling\",\"completed\":{number}}}\n");
        asked.write(format!("{:x}\r\n{line}\r\n", line.len())).await;
        assert_eq!(client.chunk().await, Piece::Bytes(line.into_bytes()));
    }
    asked.write("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, Piece::Whole);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_at_the_upstream() {
    let (mut upstream, foreman) = scripted().await;
    let pull = ("POST", "/api/pull", b"{}".as_slice());
    // Before the answer begins.
    let (client, waiting) = asked(&foreman, &mut upstream, pull, &[]).await;
    drop(client);
    waiting.closed().await;
    // Inside it.
    let (mut client, mut answering) = asked(&foreman, &mut upstream, pull, &[]).await;
    answering.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n").await;
    client.head().await.unwrap();
    assert_eq!(client.chunk().await, Piece::Bytes(b"{}".to_vec()));
    drop(client);
    answering.closed().await;
}

#[tokio::test]
async fn a_transfer_that_breaks_off_is_not_taken_for_a_whole_one() {
    let (mut upstream, foreman) = scripted().await;
    for framing in ["Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "Content-Length: 9\r\n\r\n{}"]
    {
        let (mut client, mut asked) =
            asked(&foreman, &mut upstream, ("POST", "/api/pull", b"{}"), &[]).await;
        asked.write(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
        drop(asked);
        let answer = client.answer("POST").await;
        assert_eq!((answer.is_whole, answer.text().as_str()), (false, "{}"), "{framing}");
    }
}

#[tokio::test]
async fn an_answer_without_a_body_has_none() {
    for (method, answer, header) in [
        ("GET", "204 No Content\r\nX-A: 1", ("x-a", "1")),
        ("GET", "304 Not Modified\r\nETag: \"e\"", ("etag", "\"e\"")),
        ("HEAD", "200 OK\r\nContent-Length: 12345", ("content-length", "12345")),
        ("HEAD", "404 Not Found\r\nContent-Length: 18", ("content-length", "18")),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked", ("x-foreman-none", "")),
        ("DELETE", "200 OK\r\nContent-Length: 0", ("content-length", "0")),
    ] {
        let (mut upstream, foreman) = scripted().await;
        let request = format!(
            "{method} /api/x HTTP/1.1\r\nHost: {}\r\n{SCRIPTED}\r\n\r\nGET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n",
            foreman.addr, foreman.addr
        );
        let mut client = Raw::send(foreman.addr, request.as_bytes()).await;
        let mut asked = upstream.next().await;
        asked.write(format!("HTTP/1.1 {answer}\r\n\r\n")).await;
        let got = client.answer(method).await;
        assert!(
            answer.starts_with(got.head.status_line.trim_start_matches("HTTP/1.1 ")),
            "{answer}"
        );
        assert_eq!(got.head.header(header.0).unwrap_or_default(), header.1, "{answer}");
        assert_eq!(got.text(), "", "{answer}");
        // Nothing of a body stands before the next answer on the same connection.
        let next = client.answer("GET").await;
        assert!(next.status() == 200 && next.text().contains("foreman"), "{answer}: {next:?}");
    }
}

#[tokio::test]
async fn interim_answers_do_not_take_the_place_of_the_final_one() {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    for request in ROADS {
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 14\r\n\r\n";
        let answer = answered(request, &format!("{interim}{head}{DONE}")).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, DONE), "{request:?}");
        assert_eq!(answer.head.header("link"), None);
    }
}

#[tokio::test]
async fn an_old_upstream_that_ends_by_closing_is_understood() {
    for request in ROADS {
        let head = "HTTP/1.0 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n";
        let answer = answered(request, &format!("{head}{DONE}")).await;
        assert_eq!(answer.head.status_line, "HTTP/1.1 200 OK");
        assert_eq!(answer.text(), DONE, "{request:?}");
        assert!(answer.framing == Framing::Chunked && answer.is_whole, "{answer:?}");
    }
}

#[tokio::test]
async fn trailers_are_left_behind() {
    for request in ROADS {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = answered(request, &format!("{head}e\r\n{DONE}\r\n0\r\nX-T: 1\r\n\r\n")).await;
        assert!(answer.is_whole && answer.text() == DONE, "{request:?} {answer:?}");
        assert_eq!(answer.head.header("trailer"), None);
    }
}

/// Lines that are for the next hop only; `X-Private` and `X-Also` because `Connection` names them.
const HOP: [&str; 8] = [
    "Connection: close, X-Private",
    "Connection: x-also",
    "X-Private: 1",
    "X-Also: 1",
    "Keep-Alive: timeout=5",
    "TE: trailers",
    "Proxy-Authorization: Basic x",
    "Proxy-Connection: keep-alive",
];

/// Lines that go all the way, spelled as they were.
const KEPT: [&str; 11] = [
    "User-Agent: GitHubCopilotChat/1.0",
    "X-Forwarded-For: 1.2.3.4",
    "X-Forwarded-Host: box.example",
    "X-Forwarded-Prefix: /ollama",
    "Forwarded: for=1.2.3.4",
    "Via: 1.1 proxy",
    "Authorization: Bearer theirs",
    "Cookie: a=b; c=d",
    "X-Twice: 1",
    "X-Twice: 2",
    "X-Odd: caf\u{e9}, \t \"q\"",
];

#[tokio::test]
async fn a_request_s_end_to_end_headers_reach_the_upstream_and_no_others() {
    for (method, target, body) in ROADS {
        let (mut upstream, foreman) = scripted().await;
        let origin = format!("Origin: http://{}", foreman.addr);
        let lines: Vec<&str> = HOP.into_iter().chain(KEPT).chain([origin.as_str()]).collect();
        let target = format!("{target}?ts=1&q=%2F%20x");
        let (client, asked) = asked(&foreman, &mut upstream, (method, &target, body), &lines).await;
        assert!(
            asked.head.starts_with(&format!("{method} {target} HTTP/1.1\r\n")),
            "{}",
            asked.head
        );
        let mut got: Vec<String> =
            asked.headers().iter().map(|(name, value)| format!("{name}: {value}")).collect();
        got.sort_by_key(|line| line.to_ascii_lowercase());
        let mut wanted: Vec<String> = KEPT.into_iter().map(str::to_owned).collect();
        wanted.extend([
            SCRIPTED.to_owned(),
            format!("Host: {}", upstream.addr),
            format!("Content-Length: {}", body.len()),
        ]);
        wanted.sort_by_key(|line| line.to_ascii_lowercase());
        let folded = |lines: &[String]| lines.join("\n").to_ascii_lowercase();
        assert_eq!(folded(&got), folded(&wanted), "{target}");
        drop(client);
    }
}

#[tokio::test]
async fn an_answer_s_end_to_end_headers_reach_the_client_and_no_others() {
    let kept = ["Server: x", "Set-Cookie: a=1", "Set-Cookie: b=2", "Cache-Control: no-cache"];
    let hop = [
        "Connection: close, X-Secret",
        "X-Secret: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Authenticate: Basic",
        "Upgrade: h2c",
    ];
    for request in ROADS {
        let lines: Vec<&str> = kept.into_iter().chain(hop).collect();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 14\r\n{}\r\n\r\n",
            lines.join("\r\n")
        );
        let answer = answered(request, &format!("{head}{DONE}")).await;
        let mut headers: Vec<String> = answer
            .head
            .headers
            .iter()
            .filter(|(name, _)| !name.starts_with("x-foreman-") && name != "date")
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        headers.sort();
        let wanted = "cache-control: no-cache\nconnection: close\ncontent-length: 14\n\
            content-type: application/x-ndjson\nserver: x\nset-cookie: a=1\nset-cookie: b=2";
        assert_eq!(headers.join("\n"), wanted, "{request:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_is_away_is_told_in_the_shape_of_the_route() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.set_down(true).await;
    for (method, target, shape) in [
        ("GET", "/api/tags", "native"),
        ("GET", "/", "native"),
        ("POST", "/api/pull", "native"),
        ("POST", "/api/embed", "native"),
        ("POST", "/api/show", "native"),
        ("DELETE", "/api/delete", "native"),
        ("GET", "/v1/models", "openai"),
        ("POST", "/v1/embeddings", "openai"),
        ("POST", "/v1/messages/count_tokens", "anthropic"),
    ] {
        let answer = raw::ask(foreman.addr, method, target, &[], br#"{"model":"embed"}"#).await;
        assert_eq!(answer.status(), 502, "{method} {target}: {answer:?}");
        assert!(answer.head.header("retry-after").is_some(), "{target}");
        let body: Value = serde_json::from_slice(&answer.body()).unwrap();
        let text = match shape {
            "native" => &body["error"],
            _ => &body["error"]["message"],
        };
        assert!(text.as_str().unwrap().contains("tried again"), "{target}: {body}");
        assert_eq!(body["type"] == "error", shape == "anthropic", "{target}: {body}");
    }
    stub.set_down(false).await;
    foreman.wait_for(|status| status["upstream"]["state"] == "up").await;
    assert_eq!(send(foreman.addr, "GET", "/api/tags", "").await.status, 200);
}

/// An upstream that takes the request and closes without a word may have acted on it.
#[tokio::test]
async fn an_upstream_that_closes_without_an_answer_is_a_502() {
    let (mut upstream, foreman) = scripted().await;
    for answer in ["", "HTTP/1.1 200", "junk\r\n\r\n"] {
        let (mut client, mut asked) =
            asked(&foreman, &mut upstream, ("POST", "/api/copy", b"{}"), &[]).await;
        asked.write(answer).await;
        drop(asked);
        let got = client.answer("POST").await;
        assert_eq!(got.status(), 502, "{answer}");
        assert!(got.text().contains("may have acted"), "{answer}: {}", got.text());
    }
}

fn digest(hex: &str) -> String {
    format!("/api/blobs/sha256:{}", hex.repeat(32))
}

/// The most memory the process ever held, in KiB.
fn peak_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

const BLOB_MIB: usize = 256;

#[tokio::test]
async fn a_large_blob_arrives_whole_in_constant_memory() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&stub.url(), &folder.path().join("f.db"), &[]).await;
    let before = peak_kib(&daemon);
    let block = vec![7; MIB];
    let length = format!("Content-Length: {}", BLOB_MIB * MIB);
    for (target, line) in
        [(digest("0a"), length.as_str()), (digest("0b"), "Transfer-Encoding: chunked")]
    {
        stub.reset();
        let head = raw::head(daemon.addr, "POST", &target, &[line]);
        let mut client = Raw::send(daemon.addr, head.as_bytes()).await;
        let is_chunked = line.contains("chunked");
        for _ in 0..BLOB_MIB {
            if is_chunked {
                client.write(format!("{MIB:x}\r\n").as_bytes()).await;
            }
            client.write(&block).await;
            if is_chunked {
                client.write(b"\r\n").await;
            }
        }
        if is_chunked {
            client.write(b"0\r\n\r\n").await;
        }
        assert_eq!(client.answer("POST").await.status(), 201, "{line}");
        assert_eq!(stub.counts().blob_bytes, (BLOB_MIB * MIB) as u64, "{line}");
        let log = stub.log();
        let upload = log.iter().find(|entry| entry.path == target).unwrap();
        let name = line.split_once(':').unwrap().0.to_ascii_lowercase();
        assert_eq!(
            upload.header(&name),
            Some(line.split_once(": ").unwrap().1),
            "framed as it came"
        );
    }
    let grown = peak_kib(&daemon) - before;
    assert!(grown < 64 * 1024, "foreman grew by {grown} KiB");
}

/// Ollama answers at once that it has the blob, and reads no more of it.
#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let target = digest("0a");
    assert_eq!(raw::ask(foreman.addr, "POST", &target, &[], b"blob").await.status(), 201);
    let length = format!("Content-Length: {}", 200 * MIB);
    let head = raw::head(foreman.addr, "POST", &target, &[&length]);
    // A client that reads while it sends.
    let client = Raw::send(foreman.addr, head.as_bytes()).await;
    let (mut reader, mut writer) = client.stream.into_split();
    let sending = tokio::spawn(async move {
        let block = vec![7; MIB];
        for _ in 0..200 {
            if writer.write_all(&block).await.is_err() {
                return;
            }
        }
    });
    let mut got = Vec::new();
    // It may end with a reset: what counts is what came before.
    drop(tokio::time::timeout(DEADLINE, reader.read_to_end(&mut got)).await.unwrap());
    let got = String::from_utf8_lossy(&got).into_owned();
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got:?}");
    tokio::time::timeout(DEADLINE, sending).await.unwrap().unwrap();
    // A client that reads once it can send no more.
    let mut client = Raw::send(foreman.addr, head.as_bytes()).await;
    let block = vec![7; MIB];
    for _ in 0..200 {
        if client.stream.write_all(&block).await.is_err() {
            break;
        }
    }
    assert_eq!(client.answer("POST").await.status(), 200);
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for (target, body, status) in [
        (digest("0c").as_str(), b"0123456789".as_slice(), 201),
        ("/api/chat", CHAT, 200),
        ("/api/show", br#"{"model":"m"}"#, 200),
    ] {
        let length = format!("Content-Length: {}", body.len());
        let head = raw::head(foreman.addr, "POST", target, &["Expect: 100-continue", &length]);
        let mut client = Raw::send(foreman.addr, head.as_bytes()).await;
        assert_eq!(client.head().await.unwrap().status(), 100, "{target}");
        client.write(body).await;
        assert_eq!(client.answer("POST").await.status(), status, "{target}");
    }
}

/// The upstream may answer before it has the body: the client must not wait for its own upload to end.
#[tokio::test]
async fn a_refusal_before_the_body_is_relayed_at_once() {
    let (mut upstream, foreman) = scripted().await;
    let lines = ["Transfer-Encoding: chunked", SCRIPTED_HEAD];
    let head = raw::head(foreman.addr, "POST", &digest("0d"), &lines);
    let mut client = Raw::send(foreman.addr, format!("{head}5\r\nhello\r\n").as_bytes()).await;
    let mut asked = upstream.next().await;
    asked.write("HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 4\r\n\r\nfull").await;
    let answer = client.answer("POST").await;
    assert_eq!((answer.status(), answer.text().as_str()), (507, "full"));
}

#[tokio::test]
async fn a_deleted_model_is_unloaded_first() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.poll_interval = Some("1h".to_owned())).await;
    let foreman = foreman.up().await;
    post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await;
    let models = installed(&foreman).await;
    assert!(stub.snapshot().is_resident("a:latest"));
    stub.reset();
    let deleted = send(foreman.addr, "DELETE", "/api/delete", r#"{"model":"a"}"#).await;
    assert_eq!((deleted.status.as_u16(), deleted.body.len()), (200, 0));
    let log = stub.log();
    let at = |path: &str| log.iter().position(|entry| entry.path == path).unwrap();
    let unload = &log[at("/api/generate")];
    assert!(String::from_utf8_lossy(&unload.body).contains("\"keep_alive\":0"), "{unload:?}");
    assert!(at("/api/generate") < at("/api/delete"), "{log:#?}");
    assert_eq!(log[at("/api/delete")].body, r#"{"model":"a"}"#);
    assert!(!stub.snapshot().is_resident("a:latest"), "no runner outlives its model");
    foreman.wait_for(|status| status["upstream"]["models"] == models - 1).await;
    // What is not resident is just deleted.
    stub.reset();
    send(foreman.addr, "DELETE", "/api/delete", r#"{"name":"b"}"#).await;
    assert!(stub.log().iter().all(|entry| entry.path != "/api/generate"));
}

async fn installed(foreman: &Foreman) -> u64 {
    foreman.wait_for(|status| status["upstream"]["models"].is_u64()).await["upstream"]["models"]
        .as_u64()
        .unwrap()
}

/// A poll an hour away would not tell of it.
#[tokio::test]
async fn a_model_that_was_pulled_copied_or_created_is_known_at_once() {
    let config = StubConfig { pullable: vec![model("new")], ..stub_config(&["a"]) };
    let stub = Stub::start(config).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.poll_interval = Some("1h".to_owned())).await;
    let foreman = foreman.up().await;
    let before = installed(&foreman).await;
    for (number, (path, body, name)) in [
        ("/api/pull", json!({ "model": "new" }), "new"),
        ("/api/copy", json!({ "source": "a", "destination": "copied" }), "copied"),
        ("/api/create", json!({ "model": "made", "from": "a" }), "made"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(post(foreman.addr, path, &body).await.status, 200, "{path}");
        let wanted = before + number as u64 + 1;
        foreman.wait_for(|status| status["upstream"]["models"] == wanted).await;
        let answer = post(foreman.addr, "/api/chat", &chat_unstreamed(name, "x")).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("x-foreman-job-id").is_some(), "{path}: it was queued");
    }
}

/// Metadata and transfers do not wait for the queue.
#[tokio::test]
async fn a_busy_queue_holds_nothing_up_that_needs_no_gpu() {
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let job = spawn_chat(foreman.addr);
    foreman.wait_for(|status| status["running"][0]["state"] == "working").await;
    for (method, target, body) in [
        ("GET", "/api/tags", ""),
        ("GET", "/api/version", ""),
        ("GET", "/v1/models", ""),
        ("POST", "/api/show", r#"{"model":"m"}"#),
        ("POST", "/api/pull", r#"{"model":"m"}"#),
        ("POST", "/api/copy", r#"{"source":"m","destination":"n"}"#),
        ("DELETE", "/api/delete", r#"{"model":"n"}"#),
    ] {
        let answer = raw::ask(foreman.addr, method, target, &[], body.as_bytes()).await;
        assert_eq!(answer.status(), 200, "{target}");
    }
    stub.release_tokens();
    assert_eq!(job.await.unwrap().status(), 200);
}

fn spawn_chat(addr: SocketAddr) -> tokio::task::JoinHandle<RawAnswer> {
    tokio::spawn(async move { raw::ask(addr, "POST", "/api/chat", &[], CHAT).await })
}
