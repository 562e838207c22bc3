//! One try: resolve, judge, connect, send, read the status. It never follows a redirect, never connects to an address that was
//! not judged, and reads no more of a reply than it must.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::tls::{self, Roots};

use super::address;
use super::url::{Host, Target};

/// Connect, send and reply together: a receiver that has more to do than that answers first.
const TRY_LIMIT: Duration = Duration::from_secs(10);

/// What is read of a reply, so that a receiver that writes one is not cut off in the middle.
const REPLY_BYTES_MAX: usize = 64 * 1024;

/// Sends deliveries. Clones share the roots of trust.
#[derive(Clone, Default)]
pub(super) struct Poster {
    tls: Arc<OnceCell<tls::Client>>,
}

/// A reply, without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// How long the receiver asks to be left alone.
    pub(super) retry_after: Option<Duration>,
}

impl Poster {
    /// POSTs a body with these headers, within [`TRY_LIMIT`].
    ///
    /// Cancellation: dropping the future closes the connection; the receiver may have taken it.
    ///
    /// # Errors
    /// A sentence without the URL.
    pub(super) async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, String> {
        let target = Target::parse(url)?;
        let request = request(&target, headers, body)?;
        let mut seen = None;
        let sent = self.exchange(&target, request, &mut seen);
        match tokio::time::timeout(TRY_LIMIT, sent).await {
            Ok(reply) => reply,
            // The status counts, be its body never ending.
            Err(_) => seen.ok_or_else(|| format!("no answer within {} s", TRY_LIMIT.as_secs())),
        }
    }

    async fn exchange(
        &self,
        target: &Target,
        request: Request<Full<Bytes>>,
        seen: &mut Option<Reply>,
    ) -> Result<Reply, String> {
        let candidates = match &target.host {
            Host::Address(address) => Ok(vec![SocketAddr::new(*address, target.port)]),
            Host::Name(name) => {
                tokio::net::lookup_host((name.as_str(), target.port)).await.map(Iterator::collect)
            }
        };
        let stream = connect(&address::choose(candidates)?).await?;
        if !target.is_tls {
            return exchange(stream, request, seen).await;
        }
        let peer = match &target.host {
            Host::Address(address) => tls::Peer::at(&address.to_string()),
            Host::Name(name) => tls::Peer::at(name),
        };
        let stream = self.tls().await?.handshake(&peer?, stream).await?;
        exchange(stream, request, seen).await
    }

    /// The platform's roots, read when the first `https` receiver is told.
    async fn tls(&self) -> Result<&tls::Client, String> {
        let read = || async {
            let found = tokio::task::spawn_blocking(Roots::of_system);
            tls::Client::new(found.await.map_err(|fault| fault.to_string())??)
        };
        self.tls.get_or_try_init(read).await
    }
}

pub(super) fn request(
    target: &Target,
    mut headers: HeaderMap,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, String> {
    let host = HeaderValue::from_str(&target.authority).map_err(|_| "its host cannot be sent")?;
    headers.insert(HOST, host);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let agent = concat!("foreman/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    let request = Request::post(&target.path_and_query).body(Full::new(body));
    let mut request = request.map_err(|_| "its path cannot be sent")?;
    request.headers_mut().extend(headers);
    Ok(request)
}

/// Connects to the first that answers; each has its share of the time, so that a dead one does not use it up.
async fn connect(candidates: &[SocketAddr]) -> Result<TcpStream, String> {
    let share = TRY_LIMIT / u32::try_from(candidates.len().max(1)).unwrap_or(1);
    let mut last = "it has no address".to_owned();
    for candidate in candidates {
        match tokio::time::timeout(share, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => {
                // Head and body are two writes.
                drop(stream.set_nodelay(true));
                return Ok(stream);
            }
            Ok(Err(fault)) => last = format!("cannot connect: {fault}"),
            Err(_) => last = "cannot connect: no answer".to_owned(),
        }
    }
    Err(last)
}

/// Sends and reads a reply, which is `seen` as soon as its status is.
async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    seen: &mut Option<Reply>,
) -> Result<Reply, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|fault| broke(&fault))?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(|fault| broke(&fault))?;
        let reply = reply(&response);
        *seen = Some(reply);
        skim(response).await;
        Ok(reply)
    };
    // What broke the connection is told to who asks on it.
    let driving = async {
        drop(connection.await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        reply = asking => reply,
        () = driving => Err("the connection ended".to_owned()),
    }
}

fn reply(response: &Response<Incoming>) -> Reply {
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let seconds = seconds.and_then(|text| text.trim().parse().ok());
    Reply { status: response.status().as_u16(), retry_after: seconds.map(Duration::from_secs) }
}

/// Reads the beginning of a body and drops it: only the status counts, however the body ends.
async fn skim(response: Response<Incoming>) {
    let mut body = response.into_body();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read >= REPLY_BYTES_MAX {
            return;
        }
    }
}

fn broke(fault: &hyper::Error) -> String {
    // hyper's own words, and not its causes': those may quote what the receiver sent.
    format!("no answer that could be read: {fault}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A receiver that says 200 and then goes on writing had taken it, and was told again and again all the same.
    #[tokio::test(start_paused = true)]
    async fn a_status_counts_though_its_body_never_ends() {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let target = Target::parse("http://a.example/hook").unwrap();
        let request = request(&target, HeaderMap::new(), Bytes::from_static(b"{}")).unwrap();
        let receiver = async {
            let mut asked = [0; 1024];
            assert!(theirs.read(&mut asked).await.unwrap() > 0);
            theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfor").await.unwrap();
            std::future::pending::<()>().await;
        };
        let mut seen = None;
        tokio::select! {
            () = receiver => (),
            sent = tokio::time::timeout(TRY_LIMIT, exchange(ours, request, &mut seen)) => {
                assert!(sent.is_err(), "the body never ends");
            }
        }
        assert_eq!(seen, Some(Reply { status: 200, retry_after: None }));
    }
}
