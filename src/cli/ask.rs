//! The one place of the command line that speaks HTTP: a call and its whole answer, or an answer that is read as it comes.
//!
//! It never tries again by itself: whoever asks knows whether that is safe. Each call has a connection of its own.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::config::{ADDR_DEFAULT, address};

use super::arguments::Daemon;
use super::fault::{Fault, Problem};
use super::{Exit, say};

/// The daemon answers from its database: a status in milliseconds, the longest trace within a second or two.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A trace is some 10 MiB at most, a completion as long as `FOREMAN_ANSWER_MAX` (256 MiB unless said).
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A running daemon, as it is spoken to.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    addr: SocketAddr,
    token: Option<String>,
    was_reached: Cell<bool>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Call {
    method: Method,
    path_and_query: String,
    headers: Vec<(HeaderName, String)>,
    body: Bytes,
    limit: Duration,
}

/// A whole answer with a status below 300.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// An answer that is read as it comes. Dropping it closes the connection.
pub(super) struct Stream {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    addr: SocketAddr,
    body: Incoming,
    connection: Option<Connection>,
}

/// What moves the bytes; it must be polled beside the body.
type Connection = Pin<Box<dyn Future<Output = Result<(), hyper::Error>>>>;

/// GETs `path_and_query` from the daemon: where it is and what it says. A fault has been told; what is left is the exit code.
pub(super) fn ask(daemon: &Daemon, path_and_query: &str) -> Result<(SocketAddr, String), Exit> {
    let mut said = None;
    let exit = run(daemon, async |caller| {
        let answer = caller.call(Call::get(path_and_query)).await?;
        said = Some((caller.addr, answer.text()));
        Ok(Exit::Fine)
    });
    said.ok_or(exit)
}

/// Does `work` with a daemon; its faults are told.
pub(super) fn run(daemon: &Daemon, work: impl AsyncFnOnce(&Caller) -> Result<Exit, Fault>) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(fault) => {
            say(&format!("cannot start: {fault}"));
            return Exit::System;
        }
    };
    let done = Caller::of(daemon).and_then(|caller| runtime.block_on(work(&caller)));
    done.unwrap_or_else(Fault::tell)
}

impl Call {
    fn new(method: Method, path_and_query: &str) -> Call {
        Call {
            method,
            path_and_query: path_and_query.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
            limit: ANSWER_LIMIT,
        }
    }

    pub(super) fn get(path_and_query: &str) -> Call {
        Call::new(Method::GET, path_and_query)
    }

    pub(super) fn delete(path_and_query: &str) -> Call {
        Call::new(Method::DELETE, path_and_query)
    }

    pub(super) fn post(path_and_query: &str) -> Call {
        Call::new(Method::POST, path_and_query)
    }

    /// Adds a body and says what it is.
    pub(super) fn body(self, content_type: &str, body: impl Into<Bytes>) -> Call {
        Call { body: body.into(), ..self }.header(CONTENT_TYPE, content_type)
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Call {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// How long the answer (of a stream: its head) may take.
    pub(super) fn limit(self, limit: Duration) -> Call {
        Call { limit, ..self }
    }
}

impl Answer {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(super) fn json(&self) -> Result<serde_json::Value, Fault> {
        serde_json::from_slice(&self.body).map_err(|_| {
            Fault::Other(Exit::Unavailable, "what answers there is no foreman".to_owned())
        })
    }

    /// A header, if it is there and readable.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Caller {
    fn of(daemon: &Daemon) -> Result<Caller, Fault> {
        let given = daemon.addr.as_deref().filter(|addr| !addr.is_empty()).unwrap_or(ADDR_DEFAULT);
        let addr = address(given).map_err(|allowed| {
            Fault::Other(Exit::Usage, format!("FOREMAN_ADDR={given:?}: {allowed}"))
        })?;
        let token = daemon.token.clone().filter(|token| !token.is_empty());
        Ok(Caller { addr: connectable(addr), token, was_reached: Cell::new(false) })
    }

    /// Whether somebody listened there at any time: a daemon that does no longer may be restarting.
    pub(super) fn was_reached(&self) -> bool {
        self.was_reached.get()
    }

    /// Where the daemon is.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Asks, and reads the whole answer within the limit of the call.
    ///
    /// # Errors
    /// `Lost` where no whole answer came, `Told` where it is an error.
    pub(super) async fn call(&self, call: Call) -> Result<Answer, Fault> {
        let limit = call.limit;
        let whole = async {
            let mut stream = self.exchange(call).await?;
            let body = stream.rest().await?;
            let Stream { status, headers, .. } = stream;
            Ok(Answer { status, headers, body })
        };
        match tokio::time::timeout(limit, whole).await {
            Ok(answered) => self.judged(answered?),
            Err(_) => Err(self.silent(limit)),
        }
    }

    /// Asks, and returns once the head is there.
    ///
    /// # Errors
    /// As of `call`.
    pub(super) async fn open(&self, call: Call) -> Result<Stream, Fault> {
        let limit = call.limit;
        let mut stream = match tokio::time::timeout(limit, self.exchange(call)).await {
            Ok(stream) => stream?,
            Err(_) => return Err(self.silent(limit)),
        };
        if stream.status < 300 {
            return Ok(stream);
        }
        let body = match tokio::time::timeout(ANSWER_LIMIT, stream.rest()).await {
            Ok(body) => body?,
            Err(_) => return Err(self.silent(ANSWER_LIMIT)),
        };
        let Stream { status, headers, .. } = stream;
        Err(Fault::Told(Box::new(Problem::of(self.addr, &Answer { status, headers, body }))))
    }

    fn judged(&self, answer: Answer) -> Result<Answer, Fault> {
        if answer.status < 300 {
            return Ok(answer);
        }
        Err(Fault::Told(Box::new(Problem::of(self.addr, &answer))))
    }

    fn silent(&self, limit: Duration) -> Fault {
        Fault::Lost(format!("{} did not answer within {} s", self.addr, limit.as_secs()))
    }

    async fn exchange(&self, call: Call) -> Result<Stream, Fault> {
        let addr = self.addr;
        let away = |fault: &dyn std::fmt::Display| lost(addr, fault);
        let stream = TcpStream::connect(addr).await.map_err(|fault| away(&fault))?;
        self.was_reached.set(true);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|fault| away(&fault))?;
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.path_and_query)
            .header(HOST, addr.to_string());
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(call.body)).map_err(|_| {
            let text = "the token, the key or the id has characters that cannot be sent";
            Fault::Other(Exit::Usage, text.to_owned())
        })?;
        let mut connection: Connection = Box::pin(connection);
        let mut sent = Box::pin(sender.send_request(request));
        let (response, connection) = tokio::select! {
            biased;
            response = &mut sent => (response, Some(connection)),
            // It may have ended behind a whole answer.
            _ = &mut connection => (sent.await, None),
        };
        let response = response.map_err(|fault| away(&fault))?;
        let (head, body) = response.into_parts();
        Ok(Stream { status: head.status.as_u16(), headers: head.headers, addr, body, connection })
    }
}

impl Stream {
    /// The next bytes, or none at the whole end.
    ///
    /// # Errors
    /// `Lost` where the connection ended before that. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            let frame = poll_fn(|context| {
                if let Some(connection) = &mut self.connection
                    && connection.as_mut().poll(context).is_ready()
                {
                    self.connection = None;
                }
                match Pin::new(&mut self.body).poll_frame(context) {
                    Poll::Pending if self.connection.is_none() => Poll::Ready(None),
                    polled => polled.map(Some),
                }
            });
            match frame.await {
                Some(None) => return Ok(None),
                Some(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Some(Some(Err(fault))) => return Err(lost(self.addr, &fault)),
                None => return Err(lost(self.addr, &"it closed the connection")),
            }
        }
    }

    /// A header, if it is there and readable.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    async fn rest(&mut self) -> Result<Bytes, Fault> {
        let mut body = Vec::new();
        while let Some(bytes) = self.next().await? {
            if body.len() + bytes.len() > ANSWER_BYTES_MAX {
                let text = format!("{}: the answer is larger than can be shown", self.addr);
                return Err(Fault::Other(Exit::Failed, text));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(Bytes::from(body))
    }
}

/// `text` as a part of a path or a query.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn lost(addr: SocketAddr, fault: &dyn std::fmt::Display) -> Fault {
    Fault::Lost(format!("no foreman answers on {addr}: {fault}"))
}

/// An address to connect to: a daemon that listens on every address is reached on loopback.
fn connectable(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, v6.port()).into()
        }
        other => other,
    }
}
