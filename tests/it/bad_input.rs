//! Bad input, and good input turning bad: whatever comes, foreman answers it or hangs up, keeps no job of it, panics
//! nowhere, and serves on.

use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use stub_ollama::{Stub, StubConfig};
use tokio::io::AsyncReadExt;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::harness::client::{chat, chat_unstreamed};
use crate::harness::raw::{self, Raw, RawAnswer};
use crate::harness::{DEADLINE, Foreman, post, stub_config};

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;

/// The routes that are queued or embedded, with a good body each.
const ROUTES: [(&str, &str); 9] = [
    ("/api/chat", CHAT),
    ("/api/generate", r#"{"model":"m","prompt":"x"}"#),
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", r#"{"model":"m","prompt":"x"}"#),
    ("/v1/responses", r#"{"model":"m","input":"x"}"#),
    ("/v1/messages", r#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#),
    ("/api/embed", r#"{"model":"embed","input":"x"}"#),
    ("/api/embeddings", r#"{"model":"embed","prompt":"x"}"#),
    ("/v1/embeddings", r#"{"model":"embed","input":"x"}"#),
];

/// Panics outside of the tests' own files, whoever swallows them.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts panics from here on.
fn count_panics() -> u64 {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.location().is_some_and(|at| !at.file().starts_with("tests/")) {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(panic);
        }));
    });
    PANICS.load(Ordering::Relaxed)
}

/// A stub, foreman before it, and the panics so far.
struct World {
    stub: Stub,
    foreman: Foreman,
    panics: u64,
}

impl World {
    async fn start() -> World {
        let panics = count_panics();
        let stub = Stub::start(StubConfig { fixed_time: true, ..stub_config(&["m"]) }).await;
        let foreman = Foreman::start_with(&stub, |raw| raw.body_max = Some("1MiB".to_owned()));
        World { foreman: foreman.await.up().await, stub, panics }
    }

    /// Foreman answers, no job is stuck, and nothing has panicked.
    async fn is_well(&self, after: &str) {
        let health = raw::ask(self.foreman.addr, "GET", "/healthz", &[], b"").await;
        assert_eq!(health.status(), 200, "after {after}");
        let idle = |status: &Value| {
            status["queue"]["depth"] == 0 && status["running"].as_array().unwrap().is_empty()
        };
        self.foreman.wait_for(idle).await;
        assert_eq!(count_panics(), self.panics, "something panicked after {after}");
    }

    /// Jobs that were ever stored.
    async fn stored(&self) -> u64 {
        let status = self.foreman.status().await;
        status["stored"].as_object().unwrap().values().filter_map(Value::as_u64).sum()
    }

    /// Sends bytes, closes the write side, and reads what comes.
    async fn reply(&self, bytes: &[u8]) -> String {
        let mut client = Raw::send(self.foreman.addr, bytes).await;
        client.half_close().await;
        let mut reply = Vec::new();
        let read = timeout(DEADLINE, client.stream.read_to_end(&mut reply)).await;
        // A reset is an end as well.
        drop(read.expect("foreman neither answered nor hung up"));
        String::from_utf8_lossy(&reply).into_owned()
    }
}

fn spawn_post(addr: SocketAddr, body: Value) -> JoinHandle<crate::harness::Answer> {
    tokio::spawn(async move { post(addr, "/api/chat", &body).await })
}

/// Says what `answer` tells as an error, and fails if it is not in the shape of the route.
fn error_text(target: &str, answer: &RawAnswer) -> String {
    let told: Value = serde_json::from_slice(&answer.body())
        .unwrap_or_else(|fault| panic!("{target}: {fault}: {answer:?}"));
    let is_v1 = target.starts_with("/v1/");
    let text = if is_v1 { &told["error"]["message"] } else { &told["error"] };
    assert_eq!(told["type"] == "error", target == "/v1/messages", "{target}: {told}");
    text.as_str().unwrap_or_else(|| panic!("{target}: {told}")).to_owned()
}

/// What Ollama answers without the GPU is answered now: a long job runs, and there is no room for another.
#[tokio::test]
async fn what_ollama_will_refuse_is_answered_at_once_though_the_queue_is_full() {
    let stub = Stub::start(StubConfig { fixed_time: true, ..stub_config(&["m"]) }).await;
    let direct = Stub::start(StubConfig { fixed_time: true, ..stub_config(&["m"]) }).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.max_queue = Some("1".to_owned())).await;
    let foreman = foreman.up().await;
    stub.hold_tokens();
    let running = spawn_post(foreman.addr, chat_unstreamed("m", "long"));
    foreman.wait_for(|status| status["running"][0]["state"] == "working").await;
    let waiting = spawn_post(foreman.addr, chat_unstreamed("m", "next"));
    foreman.wait_for_depth(1).await;
    for (target, good) in &ROUTES[..6] {
        for bad in [
            "",
            "{bad",
            "null",
            "[]",
            &good.replacen("\"m\"", "\"nope\"", 1),
            &good.replacen("\"m\"", "5", 1),
            &good.replacen("\"m\"", "\"\"", 1),
            &good.replacen("\"m\"", "\"embed\"", 1),
            &good.replacen("\"model\"", "\"x\"", 1),
            &good.replacen("\"m\"", "\"x:cloud\"", 1),
        ] {
            let wanted = raw::ask(direct.addr(), "POST", target, &[], bad.as_bytes()).await;
            let got = raw::ask(foreman.addr, "POST", target, &[], bad.as_bytes()).await;
            assert!(wanted.status() >= 400, "{target} {bad}: {wanted:?}");
            assert_eq!(got.head.end_to_end(), wanted.head.end_to_end(), "{target} {bad}");
            assert_eq!(got.text(), wanted.text(), "{target} {bad}");
        }
        let full = raw::ask(foreman.addr, "POST", target, &[], good.as_bytes()).await;
        assert_eq!(full.status(), 503, "{target}");
        assert!(full.head.header("retry-after").is_some(), "{target}");
        assert!(error_text(target, &full).contains("queue is full"), "{target}");
    }
    stub.release_tokens();
    assert_eq!(
        (running.await.unwrap().status.as_u16(), waiting.await.unwrap().status.as_u16()),
        (200, 200)
    );
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_before_it_is_read() {
    let world = World::start().await;
    let addr = world.foreman.addr;
    for (target, _) in ROUTES {
        // Announced: a gigabyte, of which ten bytes are sent.
        let head = raw::head(addr, "POST", target, &["Content-Length: 1073741824"]);
        let mut client = Raw::send(addr, format!("{head}{{\"model\":\"").as_bytes()).await;
        let answer = client.answer("POST").await;
        assert_eq!(answer.status(), 413, "{target}");
        assert!(error_text(target, &answer).contains("FOREMAN_BODY_MAX"), "{target}");
        // Not announced: two megabytes in chunks, and no end.
        let head = raw::head(addr, "POST", target, &["Transfer-Encoding: chunked"]);
        let mut client = Raw::send(addr, head.as_bytes()).await;
        for _ in 0..32 {
            client.write(format!("10000\r\n{}\r\n", "x".repeat(0x10000)).as_bytes()).await;
        }
        let answer = client.answer("POST").await;
        assert_eq!(answer.status(), 413, "{target}");
        assert!(error_text(target, &answer).contains("FOREMAN_BODY_MAX"), "{target}");
    }
    // A client that sends everything before it reads gets to see why, too.
    let body = vec![b'x'; 20 * 1024 * 1024];
    let answer = raw::ask(addr, "POST", "/api/chat", &[], &body).await;
    assert_eq!(answer.status(), 413);
    assert_eq!(world.stored().await, 0);
    assert!(world.stub.log().iter().all(|entry| entry.method == "GET"), "nothing went upstream");
    world.is_well("large bodies").await;
}

#[tokio::test]
async fn a_body_of_just_the_limit_is_taken() {
    let world = World::start().await;
    let filler = 1024 * 1024 - CHAT.len();
    let exact = format!("{CHAT}{}", " ".repeat(filler));
    let answer = raw::ask(world.foreman.addr, "POST", "/api/chat", &[], exact.as_bytes()).await;
    assert_eq!(answer.status(), 200);
    let answer =
        raw::ask(world.foreman.addr, "POST", "/api/chat", &[], format!("{exact} ").as_bytes())
            .await;
    assert_eq!(answer.status(), 413);
}

/// A head with these lines after `Host`, to a route that would store a job.
fn to_chat(lines: &str) -> Vec<u8> {
    format!("POST /api/chat HTTP/1.1\r\nHost: localhost\r\n{lines}").into_bytes()
}

/// Bytes that are no request, or none that may be served. Foreman answers `/healthz` itself, so that a refusal is its own.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let get = |line: &str| format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n");
    let chunked = |body: &str| to_chat(&format!("Transfer-Encoding: chunked\r\n\r\n{body}"));
    let sized = |length: &str| to_chat(&format!("Content-Length: {length}\r\n\r\n{CHAT}"));
    let many: String = (0..300).map(|number| format!("X-{number}: 1\r\n")).collect();
    vec![
        ("300 header lines", get(many.trim_end()).into_bytes()),
        ("a header of 2 MB", get(&format!("X-Long: {}", "x".repeat(2 * 1024 * 1024))).into_bytes()),
        ("a path of 2 MB", format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 << 20)).into_bytes()),
        ("NUL in a value", get("X-A: a\0b").into_bytes()),
        ("NUL in a name", get("X\0A: a").into_bytes()),
        ("NUL in the path", b"GET /health\0z HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("a control byte", get("X-A: \x01").into_bytes()),
        ("a line without a colon", get("nonsense").into_bytes()),
        ("a space in a name", get("X A: 1").into_bytes()),
        ("a space before the colon", get("X-A : 1").into_bytes()),
        ("a folded line", get("X-A: 1\r\n 2").into_bytes()),
        ("a name of no bytes", get(": 1").into_bytes()),
        ("a chunk size of letters", chunked("zz\r\nx\r\n0\r\n\r\n")),
        ("a chunk size too large", chunked("fffffffffffffffffff\r\nx\r\n0\r\n\r\n")),
        ("a negative chunk size", chunked("-1\r\nx\r\n0\r\n\r\n")),
        ("no chunk size", chunked("\r\nx\r\n0\r\n\r\n")),
        ("a chunk longer than its size", chunked("1\r\nxyz\r\n0\r\n\r\n")),
        (
            "endless chunk extensions",
            chunked(&format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(1 << 20))),
        ),
        ("a negative length", sized("-1")),
        ("a signed length", sized("+5")),
        ("a length of letters", sized("abc")),
        ("a length beyond all numbers", sized("99999999999999999999999")),
        ("two lengths in a line", sized("5, 6")),
        ("two lengths", to_chat(&format!("Content-Length: 5\r\nContent-Length: 6\r\n\r\n{CHAT}"))),
        ("an unknown coding", to_chat("Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n")),
        ("chunked not last", to_chat("Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n")),
        ("a method of signs", b"G@T / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("no method", b" / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("no target", b"GET HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("a space in the target", b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("HTTP/0.9", b"GET /healthz\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("HTTP/3.0", b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n".to_vec()),
        ("a TLS hello", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".repeat(30)),
        ("an SSH hello", b"SSH-2.0-OpenSSH_9.7\r\n".to_vec()),
        ("zeros", vec![0; 100_000]),
        ("high bytes", vec![0xff; 100_000]),
        ("letters without an end", vec![b'x'; 100_000]),
    ]
}

#[tokio::test]
async fn a_malformed_request_is_refused_and_leaves_nothing_behind() {
    let world = World::start().await;
    for (name, bytes) in malformed() {
        let reply = world.reply(&bytes).await;
        let status = reply.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
        // Without an answer the connection was closed, which `reply` waited for.
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{name}: {reply}");
        world.is_well(name).await;
    }
    assert_eq!(world.stored().await, 0, "no job came of it");
    assert!(world.stub.log().iter().all(|entry| entry.method == "GET"), "nothing went upstream");
}

#[tokio::test]
async fn an_odd_request_that_means_something_is_served() {
    let world = World::start().await;
    let chat = |lines: &str, body: &str| {
        let body = body.to_owned();
        format!(
            "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n\r\n{body}"
        )
    };
    let hex = format!("{:X}", CHAT.len());
    let many: String = (0..90).map(|number| format!("X-{number}: 1\r\n")).collect();
    let long = format!("X-Long: {}", "x".repeat(60_000));
    let length = format!("Content-Length: {}", CHAT.len());
    for (name, request) in [
        ("90 lines", chat(&format!("{many}{length}"), CHAT)),
        ("a long line", chat(&format!("{long}\r\n{length}"), CHAT)),
        (
            "chunk extensions",
            chat("Transfer-Encoding: chunked", &format!("{hex};a=b\r\n{CHAT}\r\n0\r\n\r\n")),
        ),
        (
            "leading zeros",
            chat("Transfer-Encoding: chunked", &format!("000{hex}\r\n{CHAT}\r\n0\r\n\r\n")),
        ),
        (
            "trailers",
            chat("Transfer-Encoding: chunked", &format!("{hex}\r\n{CHAT}\r\n0\r\nX-T: 1\r\n\r\n")),
        ),
        (
            "coding in capitals",
            chat("transfer-encoding: Chunked", &format!("{hex}\r\n{CHAT}\r\n0\r\n\r\n")),
        ),
        ("no space after the colon", chat(&length.replace(": ", ":"), CHAT)),
        ("the same length twice", chat(&format!("{length}\r\n{length}"), CHAT)),
        ("a line end before it", format!("\r\n{}", chat(&length, CHAT))),
        ("HTTP/1.0", chat(&length, CHAT).replace("HTTP/1.1", "HTTP/1.0")),
    ] {
        let mut client = Raw::send(world.foreman.addr, request.as_bytes()).await;
        let answer = client.answer("POST").await;
        assert_eq!(answer.status(), 200, "{name}: {answer:?}");
        assert!(answer.text().contains("\"done\":true"), "{name}: {answer:?}");
        world.is_well(name).await;
    }
}

/// Both lengths in one request are how requests are smuggled: either it is refused, or the chunks count on both sides.
#[tokio::test]
async fn a_request_with_two_framings_is_read_in_one_way_only() {
    let world = World::start().await;
    let chunked = "Transfer-Encoding: chunked";
    for target in ["/api/chat", "/api/show", "/api/embed", "/api/delete"] {
        for length in ["Content-Length: 4", "content-length: 4000"] {
            for lines in [format!("{length}\r\n{chunked}"), format!("{chunked}\r\n{length}")] {
                send_with_two_framings(&world, target, &lines).await;
            }
        }
    }
}

/// Sends a request that hides another one behind its end.
async fn send_with_two_framings(world: &World, target: &str, lines: &str) {
    world.stub.reset();
    let method = if target == "/api/delete" { "DELETE" } else { "POST" };
    let body = r#"{"model":"nope"}"#;
    let smuggled = "GET /api/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n{smuggled}",
        body.len()
    );
    let mut client = Raw::send(world.foreman.addr, request.as_bytes()).await;
    let status = client.try_answer(method).await.map(|answer| answer.status());
    assert!(matches!(status, None | Some(400..=499)), "{target} {lines}: {status:?}");
    let log = world.stub.log();
    assert!(log.iter().all(|entry| entry.path != "/api/smuggled"), "{target} {lines}");
    let relayed: Vec<_> = log.iter().filter(|entry| entry.path == target).collect();
    assert!(relayed.iter().all(|entry| entry.body == body), "{target} {lines}: {relayed:?}");
    world.is_well(lines).await;
}

#[tokio::test]
async fn half_a_request_leaves_nothing_behind() {
    let world = World::start().await;
    let addr = world.foreman.addr;
    for (target, body) in ROUTES {
        let whole = raw::request(addr, "POST", target, &[], body.as_bytes());
        let head = whole.len() - body.len();
        // Within the first line, within the head, after the head, within the body, before its last byte.
        for end in [3, head / 2, head, head + body.len() / 2, whole.len() - 1] {
            drop(Raw::send(addr, &whole[..end]).await);
            // Told that no more will come, foreman may say so; it must not wait.
            world.reply(&whole[..end]).await;
        }
        let chunked = raw::head(addr, "POST", target, &["Transfer-Encoding: chunked"]);
        for part in ["", "5", "5\r\n", "5\r\n{\"mod", "5\r\n{\"mod\r\n", "5\r\n{\"mod\r\n0\r\n"] {
            drop(Raw::send(addr, format!("{chunked}{part}").as_bytes()).await);
            world.reply(format!("{chunked}{part}").as_bytes()).await;
        }
        world.is_well(target).await;
    }
    assert_eq!(world.stored().await, 0);
    assert!(world.stub.log().iter().all(|entry| entry.method == "GET"), "nothing went upstream");
}

/// Ollama takes a half-close for a client that left, and so does foreman: while the job waits, and while it runs.
#[tokio::test]
async fn a_half_close_cancels() {
    let world = World::start().await;
    world.stub.hold_tokens();
    let ask = |text: &str| {
        let body = chat("m", text).to_string();
        raw::request(world.foreman.addr, "POST", "/api/chat", &[], body.as_bytes())
    };
    let mut running = Raw::send(world.foreman.addr, &ask("first")).await;
    world.foreman.wait_for(|status| status["running"][0]["state"] == "working").await;
    let mut waiting = Raw::send(world.foreman.addr, &ask("second")).await;
    world.foreman.wait_for_depth(1).await;
    waiting.half_close().await;
    world.foreman.wait_for_depth(0).await;
    running.half_close().await;
    world.is_well("a half-close").await;
    let status = world.foreman.status().await;
    assert_eq!(status["stored"]["cancelled"], 2, "{status:#}");
    world.stub.wait_until(|snapshot| snapshot.gpu_requests == 0).await;
}

/// A chat whose body is JSON that readers disagree about: Ollama's way counts.
#[tokio::test]
async fn json_that_readers_disagree_about_is_read_as_ollama_reads_it() {
    let world = World::start().await;
    let direct = Stub::start(StubConfig { fixed_time: true, ..stub_config(&["m"]) }).await;
    let with = |member: &str| CHAT.replacen('{', &format!("{{{member},"), 1).into_bytes();
    let nested = |open: &str, inner: &str, close: &str, depth: usize| {
        with(&format!("\"x\":{}{inner}{}", open.repeat(depth), close.repeat(depth)))
    };
    let mut bodies = vec![
        nested("[", "", "]", 9_000),
        nested("[", "", "]", 100_000),
        nested("{\"a\":", "1", "}", 100_000),
        format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes(),
        "[".repeat(100_000).into_bytes(),
        "{\"a\":".repeat(100_000).into_bytes(),
        format!("\u{feff}{CHAT}").into_bytes(),
        format!("{CHAT}{CHAT}").into_bytes(),
        format!("{CHAT}\0\0").into_bytes(),
        with(r#""x":"\ud800","y":"\udc00\ud800","z":"\u0000""#),
        with(r#""x":"\ud8""#),
        with(r#""x":"\q""#),
        with("\"x\":\"\u{1}\""),
        with("\"x\":1e999"),
        with("\"x\":-0.0e-0,\"y\":123456789012345678901234567890"),
        with("\"x\":01"),
        with("\"x\":NaN"),
        with("\"x\":'a'"),
        with(r#""model":"nope""#),
        with(r#""MODEL":5"#),
        CHAT.replacen('}', r#","model":"nope"}"#, 2).into_bytes(),
        CHAT.replacen("}]}", r#"}],"model":"nope"}"#, 1).into_bytes(),
        CHAT.replacen("}]}", r#"}],"Model":"nope"}"#, 1).into_bytes(),
        CHAT.replacen("}]}", r#"}],"messages":[]}"#, 1).into_bytes(),
        CHAT.replace("\"x\"", "\"\u{10ffff}\"").into_bytes(),
        CHAT.as_bytes().iter().map(|byte| if *byte == b'x' { 0xff } else { *byte }).collect(),
        CHAT.encode_utf16().flat_map(u16::to_le_bytes).collect(),
    ];
    // Cut off at every place.
    bodies.extend((0..CHAT.len()).map(|end| CHAT.as_bytes()[..end].to_vec()));
    for body in bodies {
        for target in ["/api/chat", "/v1/chat/completions", "/api/embed"] {
            let name = String::from_utf8_lossy(&body).chars().take(100).collect::<String>();
            let wanted = raw::ask(direct.addr(), "POST", target, &[], &body).await;
            let got = raw::ask(world.foreman.addr, "POST", target, &[], &body).await;
            assert_eq!(got.head.end_to_end(), wanted.head.end_to_end(), "{target} {name}");
            assert_eq!(got.text(), wanted.text(), "{target} {name}");
        }
    }
    world.is_well("odd JSON").await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let world = World::start().await;
    let addr = world.foreman.addr;
    let keep =
        |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replacen("Connection: close\r\n", "", 1);
    let chat = keep(raw::request(addr, "POST", "/api/chat", &[], CHAT.as_bytes()));
    let bad = keep(raw::request(addr, "POST", "/api/chat", &[], b"{bad"));
    let version = keep(raw::request(addr, "GET", "/api/version", &[], b""));
    let last = String::from_utf8(raw::request(addr, "GET", "/healthz", &[], b"")).unwrap();
    let all = format!("{version}{chat}{bad}{chat}{version}{last}");
    let mut client = Raw::send(addr, all.as_bytes()).await;
    for (method, status, text) in [
        ("GET", 200, "version"),
        ("POST", 200, "\"done\":true"),
        ("POST", 400, "invalid character"),
        ("POST", 200, "\"done\":true"),
        ("GET", 200, "version"),
        ("GET", 200, "foreman"),
    ] {
        let answer = client.answer(method).await;
        assert!(answer.status() == status && answer.text().contains(text), "{answer:?}");
    }
    assert!(client.ends().await);
    world.is_well("pipelining").await;
}

/// A small generator (splitmix64), so that a seed in a message is enough to see a failure again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// Random bytes, or a good request with some bytes changed, put in, taken out or doubled.
fn random_bytes(random: &mut Random, addr: SocketAddr) -> Vec<u8> {
    if random.below(4) == 0 {
        let length = random.below(300);
        return (0..length).map(|_| random.byte()).collect();
    }
    let (target, body) = ROUTES[random.below(ROUTES.len())];
    let mut bytes = raw::request(addr, "POST", target, &["X-A: 1"], body.as_bytes());
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes[at] = random.byte(),
            1 => bytes.insert(at, random.byte()),
            2 => drop(bytes.remove(at)),
            _ => {
                let end = (at + random.below(40)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
    bytes
}

const RANDOM_REQUESTS: usize = 10_000;

/// Connections at once.
const AT_ONCE: usize = 32;

#[tokio::test]
async fn ten_thousand_random_requests_leave_foreman_well() {
    let world = World::start().await;
    let seed = std::hash::RandomState::new().build_hasher().finish();
    println!("seed {seed}");
    let addr = world.foreman.addr;
    let mut random = Random(seed);
    let mut clients = JoinSet::new();
    for number in 0..RANDOM_REQUESTS {
        let bytes = random_bytes(&mut random, addr);
        clients.spawn(async move {
            let mut client = Raw::send(addr, &bytes).await;
            client.half_close().await;
            let mut reply = Vec::new();
            let read = timeout(DEADLINE, client.stream.read_to_end(&mut reply)).await;
            drop(read.unwrap_or_else(|_| panic!("seed {seed}: number {number} hangs: {bytes:?}")));
        });
        if clients.len() >= AT_ONCE {
            clients.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    world.is_well(&format!("random requests, seed {seed}")).await;
    let answer = raw::ask(addr, "POST", "/api/chat", &[], CHAT.as_bytes()).await;
    assert_eq!(answer.status(), 200, "seed {seed}");
}

/// A refusal that comes before the body is read is seen also by a client that sends all of it first: foreman reads on for a
/// while instead of resetting the connection.
#[tokio::test]
async fn an_early_refusal_is_seen_by_a_client_that_sends_first() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let stub = Stub::start(stub_config(&["m"])).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.token = Some("s3cret".to_owned())).await;
    for hosts in [("localhost", 401), ("evil.example", 403)].repeat(3) {
        let mut client = tokio::net::TcpStream::connect(foreman.addr).await.unwrap();
        let (host, status) = hosts;
        let head =
            format!("POST /api/chat HTTP/1.1\r\nhost: {host}\r\ncontent-length: 8388608\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b' '; 8 * 1024 * 1024]).await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {status}"));
    }
}
