//! One question to a running daemon, over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::config::{ADDR_DEFAULT, address};

use super::arguments::Daemon;
use super::{Exit, say};

/// The daemon answers from its database: a status in milliseconds, the longest trace within a second or two.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A status document is a few KiB, the longest trace some 10 MiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// GETs `path_and_query` from the daemon: where it is and what it says. A fault has been told; what is left is the exit code.
pub(super) fn ask(daemon: &Daemon, path_and_query: &str) -> Result<(SocketAddr, String), Exit> {
    let given = daemon.addr.as_deref().filter(|addr| !addr.is_empty()).unwrap_or(ADDR_DEFAULT);
    let addr = match address(given) {
        Ok(addr) => connectable(addr),
        Err(allowed) => {
            say(&format!("FOREMAN_ADDR={given:?}: {allowed}"));
            return Err(Exit::Usage);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(fault) => {
            say(&format!("cannot start: {fault}"));
            return Err(Exit::System);
        }
    };
    let question = exchange(addr, daemon.token.as_deref(), path_and_query);
    let asked = runtime.block_on(async { tokio::time::timeout(ANSWER_LIMIT, question).await });
    match asked {
        Ok(Ok(text)) => Ok((addr, text)),
        Ok(Err((exit, text))) => {
            say(&text);
            Err(exit)
        }
        Err(_) => {
            say(&format!("{addr} did not answer within {} s", ANSWER_LIMIT.as_secs()));
            Err(Exit::Unavailable)
        }
    }
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

async fn exchange(
    addr: SocketAddr,
    token: Option<&str>,
    path_and_query: &str,
) -> Result<String, (Exit, String)> {
    let away = |fault: &dyn std::fmt::Display| {
        (Exit::Unavailable, format!("no foreman answers on {addr}: {fault}"))
    };
    let stream = TcpStream::connect(addr).await.map_err(|fault| away(&fault))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|fault| away(&fault))?;
    let mut request = Request::get(path_and_query).header(HOST, addr.to_string());
    if let Some(token) = token.filter(|token| !token.is_empty()) {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request
        .body(Empty::<hyper::body::Bytes>::new())
        .map_err(|_| (Exit::Usage, "the token cannot stand in a header".to_owned()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|fault| away(&fault))?;
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|fault| away(&fault))?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        match code {
            200 => Ok(text),
            401 => {
                Err((Exit::Refused, format!("foreman on {addr} refused the token (FOREMAN_TOKEN)")))
            }
            _ => Err((Exit::Unavailable, format!("{addr} answered {code}: {}", text.trim()))),
        }
    };
    tokio::select! {
        answer = exchange => answer,
        ended = connection => match ended {
            Ok(()) => Err(away(&"it closed the connection")),
            Err(fault) => Err(away(&fault)),
        },
    }
}
