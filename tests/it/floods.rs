//! Crowds of connections that want nothing good keep no well-behaved client out, and cost no waiting one its answer.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use stub_ollama::Stub;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::client::{Answer, chat, get, post, request, try_open};
use crate::harness::daemon::Daemon;
use crate::harness::raw::ask;
use crate::harness::{DEADLINE, stub_config};

/// Requests that the daemon serves at once here.
const PLACES: usize = 8;

/// Connections of a flood: several times as many as there are places.
const FLOOD: usize = 200;

/// The real program with few places, so that a flood needs few descriptors.
async fn daemon(stub: &Stub, folder: &Path) -> Daemon {
    let places = PLACES.to_string();
    let flags = ["--connections-max", places.as_str()];
    let daemon = Daemon::start(&stub.url(), &folder.join("foreman.db"), &flags).await;
    wait_for(daemon.addr, |status| status["upstream"]["state"] == "up").await;
    daemon
}

async fn wait_for(addr: SocketAddr, wanted: impl Fn(&Value) -> bool) {
    let asking = async { while !wanted(&get(addr, "/status").await.json()) {} };
    tokio::time::timeout(DEADLINE, asking).await.expect("the awaited status never came");
}

/// A client that sends a request on a new connection and has its answer.
async fn is_served(addr: SocketAddr) {
    assert_eq!(get(addr, "/healthz").await.status, 200);
    let answer = post(addr, "/api/chat", &chat("a", "x")).await;
    assert!(answer.status == 200 && answer.is_whole, "{}", answer.text());
}

/// Connections that begin with these bytes, and stay.
async fn flood(addr: SocketAddr, bytes: &[u8]) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..FLOOD {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        // One that was closed already is no fault here.
        drop(stream.write_all(bytes).await);
        crowd.push(stream);
    }
    crowd
}

/// Whether foreman has closed it; waits for that.
async fn is_closed(mut stream: TcpStream) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.is_ok()
}

/// Far more connections than places: those that are idle the longest give way.
#[tokio::test]
async fn a_flood_of_connections_keeps_nobody_out() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(&stub, folder.path()).await;
    for bytes in [&b""[..], b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Begun: "] {
        let crowd = flood(daemon.addr, bytes).await;
        is_served(daemon.addr).await;
        let oldest = crowd.into_iter().next().unwrap();
        assert!(is_closed(oldest).await);
        is_served(daemon.addr).await;
    }
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));
}

/// Sends a head byte by byte, and begins anew whenever it is closed.
async fn dribble(addr: SocketAddr) {
    while let Ok(mut stream) = TcpStream::connect(addr).await {
        drop(stream.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow: ").await);
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// POSTs until there is a place: those who ask for the status take places too, for a moment.
async fn post_in_a_crowd(addr: SocketAddr, body: Value) -> Answer {
    loop {
        let answer = post(addr, "/api/chat", &body).await;
        if answer.status != 503 {
            return answer;
        }
    }
}

/// Heads that come a byte at a time, from connections that come again whenever they are closed.
#[tokio::test]
async fn heads_that_dribble_keep_nobody_out() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(&stub, folder.path()).await;
    let addr = daemon.addr;
    let mut dribbling = JoinSet::new();
    for _ in 0..FLOOD / 3 {
        dribbling.spawn(dribble(addr));
    }
    for _ in 0..3 {
        is_served(addr).await;
    }
    dribbling.shutdown().await;
    is_served(addr).await;
}

/// Who waits for an answer keeps its connection whatever comes.
#[tokio::test]
async fn who_waits_never_gives_way() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(&stub, folder.path()).await;
    let addr = daemon.addr;
    stub.hold_tokens();
    let mut waiting = JoinSet::new();
    for number in 0..PLACES - 1 {
        let body = chat("a", &format!("waits {number}"));
        waiting.spawn(async move { post(addr, "/api/chat", &body).await });
    }
    wait_for(addr, |status| status["queue"]["depth"] == PLACES - 2).await;
    let idle = flood(addr, b"").await;
    let begun = flood(addr, b"POST /api/chat HTTP/1.1\r\n").await;
    assert_eq!(get(addr, "/healthz").await.status, 200);
    stub.release_tokens();
    while let Some(answer) = waiting.join_next().await {
        assert!(answer.unwrap().is_whole);
    }
    drop((idle, begun));
}

/// Each place has a waiting client: a request is told so, and health and status still answer.
#[tokio::test]
async fn when_all_wait_a_request_is_refused_and_health_still_answers() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(&stub, folder.path()).await;
    let addr = daemon.addr;
    stub.hold_tokens();
    let mut waiting = JoinSet::new();
    for number in 0..PLACES {
        let body = chat("a", &format!("waits {number}"));
        waiting.spawn(post_in_a_crowd(addr, body));
    }
    // That seven wait does not mean that the eighth runs: it may still be trying, while whoever asks has its place.
    let all_are_in =
        |status: &Value| status["queue"]["depth"] == PLACES - 1 && !status["running"][0].is_null();
    wait_for(addr, all_are_in).await;
    let too_many: Vec<Answer> = vec![
        post(addr, "/api/chat", &chat("a", "one more")).await,
        post(addr, "/v1/messages", &chat("a", "one more")).await,
        get(addr, "/api/tags").await,
        post(addr, "/jobs", &json!({})).await,
    ];
    for answer in too_many {
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, Some("5")));
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(answer.text().contains("FOREMAN_CONNECTIONS_MAX"), "{}", answer.text());
    }
    let crowd = flood(addr, b"").await;
    for path in ["/healthz", "/readyz", "/status"] {
        assert_eq!(get(addr, path).await.status, 200, "{path}");
    }
    drop(crowd);
    stub.release_tokens();
    while let Some(answer) = waiting.join_next().await {
        assert!(answer.unwrap().is_whole);
    }
    is_served(addr).await;
}

/// Bodies that stop in the middle fill every place. Once they have shown that they crawl they give way to a real client.
#[tokio::test]
async fn uploads_that_crawl_give_way() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(&stub, folder.path()).await;
    let addr = daemon.addr;
    let upload = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{";
    let crowd = flood(addr, upload).await;
    assert_eq!(get(addr, "/healthz").await.status, 200);
    let tried = async {
        loop {
            let asked = request(addr, "POST", "/api/chat", chat("a", "x").to_string());
            let Some(stream) = try_open(addr, asked).await else { continue };
            if stream.status == 200 {
                return stream.rest().await;
            }
        }
    };
    let answer = tokio::time::timeout(DEADLINE, tried).await.expect("never served");
    assert!(answer.is_whole);
    drop(crowd);
}

/// A head has room for a long token or a cookie, and an end.
#[tokio::test]
async fn a_large_head_is_served_and_a_giant_one_refused() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(&stub, folder.path()).await;
    let large = format!("X-Large: {}", "x".repeat(48 * 1024));
    assert_eq!(ask(daemon.addr, "GET", "/healthz", &[&large], b"").await.status(), 200);
    let giant = format!("X-Giant: {}", "x".repeat(256 * 1024));
    assert_eq!(ask(daemon.addr, "GET", "/healthz", &[&giant], b"").await.status(), 431);
    is_served(daemon.addr).await;
}

/// What is still to come of a body that was refused is no head, however much it is: large heads of others are served meanwhile,
/// and the connection afterwards.
#[tokio::test]
async fn the_rest_of_a_refused_body_is_no_head() {
    const BODY: usize = 30 * 1024 * 1024;
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--body-max", "65536"];
    let daemon = Daemon::start(&stub.url(), &folder.path().join("foreman.db"), &flags).await;
    let head =
        format!("POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BODY}\r\n\r\n");
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(daemon.addr).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let refused = answered(&mut stream).await;
        assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
        stream.write_all(&vec![b'x'; BODY]).await.unwrap();
        kept.push(stream);
    }
    let large = format!("X-Large: {}", "x".repeat(48 * 1024));
    assert_eq!(ask(daemon.addr, "GET", "/healthz", &[&large], b"").await.status(), 200);
    for stream in &mut kept {
        let again = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{large}\r\n\r\n");
        stream.write_all(again.as_bytes()).await.unwrap();
        assert!(answered(stream).await.starts_with("HTTP/1.1 200 "));
    }
}

/// The next answer on a connection; its body is a JSON object without a nested one at its end.
async fn answered(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !read.ends_with(b"}") {
            let byte = stream.read_u8().await.expect("the connection was cut");
            read.push(byte);
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.expect("no answer");
    String::from_utf8(read).unwrap().trim_start().to_owned()
}
