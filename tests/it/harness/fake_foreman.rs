//! A foreman whose answers a test writes: the surface of docs/jobs.md for the command line, one canned answer for each
//! expected question, in order. It can cut a connection where the real one would only by a crash.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::DEADLINE;

/// A canned answer.
#[derive(Debug, Clone)]
pub(crate) struct Canned {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    end: End,
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Whole.
    Whole,
    /// The connection is cut behind the body, without the last chunk.
    Cut,
    /// The connection is cut before a byte, as by a daemon that just died.
    Gone,
}

/// A question that came.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Such as `GET /jobs/01?wait=30s`.
    pub(crate) line: String,
    /// Headers, with lower-case names, a line each.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// The fake. It refuses to be dropped silently: [`FakeForeman::asked`] checks that the script was used up.
pub(crate) struct FakeForeman {
    pub(crate) addr: SocketAddr,
    serving: JoinHandle<Vec<Question>>,
}

impl Canned {
    /// A JSON answer.
    pub(crate) fn json(status: u16, value: &serde_json::Value) -> Canned {
        Canned::new(status, "application/json; charset=utf-8", format!("{value}\n"))
    }

    /// A problem document.
    pub(crate) fn problem(status: u16, mut value: serde_json::Value) -> Canned {
        value["status"] = status.into();
        Canned::new(status, "application/problem+json", value.to_string())
    }

    /// A piece of an answer of a job's attempt.
    pub(crate) fn output(attempt: u64, body: &str) -> Canned {
        let canned = Canned::new(200, "application/x-ndjson", body.to_owned());
        canned.header("X-Foreman-Attempt", &attempt.to_string()).header("X-Foreman-Status", "200")
    }

    /// Events.
    pub(crate) fn events(body: &str) -> Canned {
        Canned::new(200, "text/event-stream", body.to_owned())
    }

    /// No answer at all.
    pub(crate) fn gone() -> Canned {
        Canned { end: End::Gone, ..Canned::new(200, "", String::new()) }
    }

    fn new(status: u16, content_type: &str, body: String) -> Canned {
        let canned =
            Canned { status, headers: Vec::new(), body: body.into_bytes(), end: End::Whole };
        canned.header("Content-Type", content_type)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Canned {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The connection is cut behind the body.
    pub(crate) fn cut(self) -> Canned {
        Canned { end: End::Cut, ..self }
    }
}

impl FakeForeman {
    /// Answers these questions (`METHOD /path?query`, exactly) and no others.
    pub(crate) async fn start(script: Vec<(&str, Canned)>) -> FakeForeman {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let script: Vec<(String, Canned)> =
            script.into_iter().map(|(line, canned)| (line.to_owned(), canned)).collect();
        let serving = tokio::spawn(async move {
            let mut asked = Vec::new();
            for (line, canned) in script {
                let (mut stream, _) = listener.accept().await.unwrap();
                let question = read(&mut stream).await;
                let is_expected = question.line == line;
                asked.push(question);
                if !is_expected {
                    break;
                }
                answer(&mut stream, canned).await;
            }
            asked
        });
        FakeForeman { addr, serving }
    }

    /// All that was asked, once the script is used up.
    pub(crate) async fn asked(self) -> Vec<Question> {
        timeout(DEADLINE, self.serving).await.expect("the script was not used up").unwrap()
    }
}

async fn read(stream: &mut TcpStream) -> Question {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "no head came");
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let (line, head) = head.split_once("\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + length {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "no body came");
    }
    Question {
        line: line.trim_end_matches(" HTTP/1.1").to_owned(),
        body: String::from_utf8_lossy(&bytes[end..]).into_owned(),
        head,
    }
}

/// In two chunks, so that a record lies across them.
async fn answer(stream: &mut TcpStream, canned: Canned) {
    if canned.end == End::Gone {
        return;
    }
    let mut head = format!("HTTP/1.1 {} -\r\nConnection: close\r\n", canned.status);
    for (name, value) in &canned.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let has_body = canned.status != 204;
    head.push_str(if has_body { "Transfer-Encoding: chunked\r\n\r\n" } else { "\r\n" });
    let mut bytes = head.into_bytes();
    let (first, second) = canned.body.split_at(canned.body.len() / 2);
    for chunk in [first, second].into_iter().filter(|chunk| has_body && !chunk.is_empty()) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    if has_body && canned.end == End::Whole {
        bytes.extend_from_slice(b"0\r\n\r\n");
    }
    stream.write_all(&bytes).await.unwrap();
    stream.shutdown().await.unwrap();
}
