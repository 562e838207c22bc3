//! A client that sees what is on the wire: each chunk as it comes, and whether the answer ended whole or was cut.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::DEADLINE;

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether the answer ended as HTTP says it must; false where the connection was cut.
    pub(crate) is_whole: bool,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|fault| panic!("{fault}: {:?}", self.text()))
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The texts of a streamed native answer, put together.
    pub(crate) fn streamed_text(&self) -> String {
        let texts = self
            .text()
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                let text =
                    line["message"]["content"].as_str().or_else(|| line["response"].as_str());
                text.unwrap_or_default().to_owned()
            })
            .collect::<Vec<_>>();
        texts.concat()
    }
}

/// An answer that is being read. Dropping it closes the connection: the client leaves.
pub(crate) struct Stream {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    _connection: Connection,
}

struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Stream {
    /// The next bytes; `None` at a whole end; `Err` where the connection was cut.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("no byte came") {
                None => return None,
                Some(Err(fault)) => return Some(Err(fault)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
            }
        }
    }

    /// Reads to the end.
    pub(crate) async fn rest(mut self) -> Answer {
        let mut body = Vec::new();
        let is_whole = loop {
            match self.next().await {
                None => break true,
                Some(Ok(bytes)) => body.extend_from_slice(&bytes),
                Some(Err(_)) => break false,
            }
        };
        Answer { status: self.status, headers: self.headers, body: Bytes::from(body), is_whole }
    }
}

/// Opens a request on a connection of its own and returns when the answer begins. Dropping the future leaves.
pub(crate) async fn open(
    addr: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Stream, hyper::Error> {
    let stream = TcpStream::connect(addr).await.expect("cannot connect");
    exchange(stream, request).await
}

/// The same from another address of this machine.
pub(crate) async fn open_from(
    source: std::net::IpAddr,
    addr: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Stream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source, 0)).unwrap();
    exchange(socket.connect(addr).await.unwrap(), request).await.unwrap()
}

/// The same where foreman may be dead, or die before the answer begins: then there is none.
pub(crate) async fn try_open(addr: SocketAddr, request: Request<Full<Bytes>>) -> Option<Stream> {
    let stream = TcpStream::connect(addr).await.ok()?;
    exchange(stream, request).await.ok()
}

async fn exchange(
    stream: TcpStream,
    request: Request<Full<Bytes>>,
) -> Result<Stream, hyper::Error> {
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = Connection(tokio::spawn(async move {
        drop(connection.await);
    }));
    let response: Response<Incoming> = tokio::time::timeout(DEADLINE, sender.send_request(request))
        .await
        .expect("no answer came")?;
    let (parts, body) = response.into_parts();
    Ok(Stream { status: parts.status, headers: parts.headers, body, _connection: connection })
}

/// A request with a body, `Host` set as a client would.
pub(crate) fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", addr.to_string())
        .body(Full::new(body.into()))
        .unwrap()
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    body: impl Into<Bytes>,
) -> Answer {
    open(addr, request(addr, method, path, body)).await.unwrap().rest().await
}

/// GETs.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> Answer {
    send(addr, "GET", path, Bytes::new()).await
}

/// POSTs JSON.
pub(crate) async fn post(addr: SocketAddr, path: &str, body: &Value) -> Answer {
    send(addr, "POST", path, body.to_string()).await
}

/// Opens a POST of JSON, to read it chunk by chunk.
pub(crate) async fn post_stream(addr: SocketAddr, path: &str, body: &Value) -> Stream {
    open(addr, request(addr, "POST", path, body.to_string())).await.unwrap()
}

/// A chat request.
pub(crate) fn chat(model: &str, text: &str) -> Value {
    serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": text }] })
}

/// An unstreamed chat request.
pub(crate) fn chat_unstreamed(model: &str, text: &str) -> Value {
    let mut body = chat(model, text);
    body["stream"] = Value::Bool(false);
    body
}
