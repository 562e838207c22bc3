//! A raw HTTP client for the stub's own tests: it sees bytes, not a library's idea of them.

use std::net::SocketAddr;
use std::time::Duration;

use stub_ollama::Stub;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// No answer in these tests takes longer.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// An answer with its chunking taken off.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    /// Whether the message was complete by HTTP's rules.
    pub(crate) is_complete: bool,
    /// Whether the connection ended with a reset instead of a close.
    pub(crate) is_reset: bool,
    pub(crate) chunks: usize,
}

/// Sends a request and returns the open connection.
pub(crate) async fn open(address: SocketAddr, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads until at least one byte of the answer's body has arrived.
pub(crate) async fn first_byte(stream: &mut TcpStream) {
    let mut seen = Vec::new();
    while !seen.windows(4).any(|window| window == b"\r\n\r\n") || seen.ends_with(b"\r\n\r\n") {
        let read = timeout(ANSWER_MAX, stream.read_buf(&mut seen)).await.unwrap().unwrap();
        assert!(read > 0, "closed before the body: {}", String::from_utf8_lossy(&seen));
    }
}

/// Reads the answer to the end of the connection.
pub(crate) async fn finish(mut stream: TcpStream) -> Answer {
    let mut raw = Vec::new();
    let read = timeout(ANSWER_MAX, stream.read_to_end(&mut raw)).await.expect("an answer in time");
    Answer { is_reset: read.is_err(), ..parse(&raw) }
}

pub(crate) async fn send(stub: &Stub, method: &str, path: &str, body: &str) -> Answer {
    finish(open(stub.addr(), method, path, body).await).await
}

pub(crate) async fn post(stub: &Stub, path: &str, body: &str) -> Answer {
    send(stub, "POST", path, body).await
}

/// Sends a request in the background.
pub(crate) fn spawn_post(stub: &Stub, path: &str, body: &str) -> JoinHandle<Answer> {
    let (address, path, body) = (stub.addr(), path.to_owned(), body.to_owned());
    tokio::spawn(async move { finish(open(address, "POST", &path, &body).await).await })
}

fn parse(raw: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(raw).into_owned();
    let Some((head, rest)) = text.split_once("\r\n\r\n") else {
        return Answer {
            status: 0,
            head: text,
            body: String::new(),
            is_complete: false,
            is_reset: false,
            chunks: 0,
        };
    };
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let (body, is_complete, chunks) = match length {
        Some(length) => (rest.to_owned(), rest.len() >= length.parse().unwrap(), 1),
        None if head.contains("Transfer-Encoding: chunked") => dechunk(rest),
        None => (rest.to_owned(), true, 0),
    };
    Answer { status, head: head.to_owned(), body, is_complete, is_reset: false, chunks }
}

fn dechunk(mut rest: &str) -> (String, bool, usize) {
    let mut body = String::new();
    let mut chunks = 0;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, true, chunks);
        }
        let Some(data) = after.get(..size) else {
            body.push_str(after);
            return (body, false, chunks);
        };
        body.push_str(data);
        chunks += 1;
        rest = after.get(size + 2..).unwrap_or_default();
    }
    (body, false, chunks)
}
