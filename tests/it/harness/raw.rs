//! A client that sees the bytes on the wire: it sends what it is given and takes an answer apart without a library's
//! idea of HTTP, so that chunk boundaries, cuts and stray bytes are seen.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::DEADLINE;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// A connection and what was read ahead on it. Dropping it closes the connection.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    ahead: Vec<u8>,
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawHead {
    /// Such as `HTTP/1.1 200 OK`.
    pub(crate) status_line: String,
    /// Lower-case names, in the order they came.
    pub(crate) headers: Vec<(String, String)>,
}

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(usize),
    Chunked,
    Close,
}

/// The next piece of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A whole chunk, or what came of a body that has none.
    Bytes(Vec<u8>),
    /// The end, as HTTP says it must be.
    Whole,
    /// The connection ended before that; with what came of an unfinished chunk.
    Cut(Vec<u8>),
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawAnswer {
    pub(crate) head: RawHead,
    pub(crate) framing: Framing,
    pub(crate) chunks: Vec<Vec<u8>>,
    pub(crate) is_whole: bool,
}

impl RawHead {
    pub(crate) fn parse(text: &str) -> RawHead {
        let mut lines = text.split("\r\n");
        let status_line = lines.next().unwrap_or_default().to_owned();
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        RawHead { status_line, headers }
    }

    pub(crate) fn status(&self) -> u16 {
        self.status_line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// What must be the same on both sides of a proxy: the status line and the sorted headers, less those of a hop, the
    /// date and foreman's own.
    pub(crate) fn end_to_end(&self) -> (String, Vec<(String, String)>) {
        let is_hop =
            |name: &str| matches!(name, "date" | "connection" | "keep-alive" | "transfer-encoding");
        let mut headers = self.headers.clone();
        headers.retain(|(name, _)| !is_hop(name) && !name.starts_with("x-foreman-"));
        headers.sort();
        (self.status_line.clone(), headers)
    }

    /// How the body of this answer to `method` ends.
    pub(crate) fn framing(&self, method: &str) -> Framing {
        if method == "HEAD" || matches!(self.status(), 100..=199 | 204 | 304) {
            return Framing::None;
        }
        if self.header("transfer-encoding").is_some_and(|value| value.ends_with("chunked")) {
            return Framing::Chunked;
        }
        match self.header("content-length") {
            Some(length) => Framing::Length(length.parse().expect("a length is a number")),
            None => Framing::Close,
        }
    }
}

impl RawAnswer {
    pub(crate) fn status(&self) -> u16 {
        self.head.status()
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body()).into_owned()
    }
}

impl Raw {
    pub(crate) async fn connect(addr: SocketAddr) -> Raw {
        let stream = TcpStream::connect(addr).await.expect("cannot connect");
        stream.set_nodelay(true).unwrap();
        Raw { stream, ahead: Vec::new() }
    }

    /// Connects and sends.
    pub(crate) async fn send(addr: SocketAddr, bytes: &[u8]) -> Raw {
        let mut raw = Raw::connect(addr).await;
        raw.write(bytes).await;
        raw
    }

    /// Writes; a peer that no longer reads is no fault here, what it answers is looked at instead.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        drop(timeout(DEADLINE, self.stream.write_all(bytes)).await.expect("nothing was taken"));
    }

    /// Reads more; `false` at the end of the connection, however it ended.
    async fn fill(&mut self) -> bool {
        let mut buffer = vec![0; READ_BYTES];
        let read = timeout(DEADLINE, self.stream.read(&mut buffer)).await;
        match read.expect("nothing came") {
            Ok(0) | Err(_) => false,
            Ok(bytes) => {
                self.ahead.extend_from_slice(&buffer[..bytes]);
                true
            }
        }
    }

    /// Takes everything up to and with `mark`.
    async fn take_to(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            let found = self.ahead.windows(mark.len()).position(|window| window == mark);
            if let Some(at) = found {
                return Some(self.ahead.drain(..at + mark.len()).collect());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The head of the next answer, interim ones (1xx) included; `None` if the connection ended without one.
    pub(crate) async fn head(&mut self) -> Option<RawHead> {
        let bytes = self.take_to(b"\r\n\r\n").await?;
        Some(RawHead::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// The next piece of a chunked body.
    pub(crate) async fn chunk(&mut self) -> Piece {
        let Some(line) = self.take_to(b"\r\n").await else {
            return Piece::Cut(Vec::new());
        };
        let line = String::from_utf8_lossy(&line).into_owned();
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size =
            usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("chunk size {line:?}"));
        if size == 0 {
            // Trailers would stand here; none may pass foreman.
            let end = self.take_to(b"\r\n").await;
            return if end.as_deref() == Some(b"\r\n") { Piece::Whole } else { Piece::Cut(vec![]) };
        }
        while self.ahead.len() < size + 2 {
            if !self.fill().await {
                return Piece::Cut(std::mem::take(&mut self.ahead));
            }
        }
        let data = self.ahead.drain(..size).collect();
        assert_eq!(self.ahead.drain(..2).collect::<Vec<_>>(), b"\r\n", "a chunk ends with a line");
        Piece::Bytes(data)
    }

    /// The rest of an answer whose head was read.
    pub(crate) async fn body(&mut self, head: RawHead, method: &str) -> RawAnswer {
        let framing = head.framing(method);
        let mut chunks = Vec::new();
        let is_whole = match framing {
            Framing::None => true,
            Framing::Chunked => loop {
                match self.chunk().await {
                    Piece::Bytes(chunk) => chunks.push(chunk),
                    Piece::Whole => break true,
                    Piece::Cut(rest) => {
                        chunks.extend((!rest.is_empty()).then_some(rest));
                        break false;
                    }
                }
            },
            Framing::Length(length) => {
                while self.ahead.len() < length && self.fill().await {}
                let had = self.ahead.len().min(length);
                chunks.push(self.ahead.drain(..had).collect());
                had == length
            }
            Framing::Close => {
                while self.fill().await {}
                chunks.push(std::mem::take(&mut self.ahead));
                true
            }
        };
        chunks.retain(|chunk| !chunk.is_empty());
        RawAnswer { head, framing, chunks, is_whole }
    }

    /// The next final answer; `None` if the connection ended without one.
    pub(crate) async fn try_answer(&mut self, method: &str) -> Option<RawAnswer> {
        loop {
            let head = self.head().await?;
            if !(100..200).contains(&head.status()) {
                return Some(self.body(head, method).await);
            }
        }
    }

    /// The next final answer.
    pub(crate) async fn answer(&mut self, method: &str) -> RawAnswer {
        self.try_answer(method).await.expect("the connection ended without an answer")
    }

    /// Whether the connection ends now, without another byte.
    pub(crate) async fn ends(&mut self) -> bool {
        self.ahead.is_empty() && !self.fill().await
    }

    /// Closes the write side only.
    pub(crate) async fn half_close(&mut self) {
        drop(self.stream.shutdown().await);
    }
}

/// A request head with `Host` and `Connection: close`, and these further lines.
pub(crate) fn head(addr: SocketAddr, method: &str, target: &str, lines: &[&str]) -> String {
    let more: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{method} {target} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{more}\r\n")
}

/// A whole request with a Content-Length.
pub(crate) fn request(
    addr: SocketAddr,
    method: &str,
    target: &str,
    lines: &[&str],
    body: &[u8],
) -> Vec<u8> {
    let length = format!("Content-Length: {}", body.len());
    let lines: Vec<&str> = lines.iter().copied().chain([length.as_str()]).collect();
    let mut bytes = head(addr, method, target, &lines).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Sends a request on a connection of its own and reads the answer.
pub(crate) async fn ask(
    addr: SocketAddr,
    method: &str,
    target: &str,
    lines: &[&str],
    body: &[u8],
) -> RawAnswer {
    let bytes = request(addr, method, target, lines, body);
    Raw::send(addr, &bytes).await.answer(method).await
}
