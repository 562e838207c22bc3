//! Makes the connections to the upstream: over TCP, and over TLS where its URL says so. The pool and the tether call it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::liveness;
use crate::tls::{self, TlsStream};

/// A laptop that sleeps does not answer a connect at all; a live host on a home network answers in milliseconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Why there is no connection.
type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Connects to the one upstream. Clones share what TLS remembers.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    /// `None` for plain HTTP.
    tls: Option<Secured>,
}

/// Over TLS, with whom.
#[derive(Clone)]
pub(super) struct Secured {
    pub(super) client: tls::Client,
    pub(super) peer: tls::Peer,
}

impl Connector {
    pub(super) fn new(tls: Option<Secured>) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_LIMIT));
        // It is asked for a host and a port, and does not mind what is spoken there.
        tcp.enforce_http(false);
        Connector { tcp, tls }
    }
}

impl Service<Uri> for Connector {
    type Response = Link;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Link, Fault>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.tcp.poll_ready(context).map_err(Fault::from)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.tcp.call(uri);
        let tls = self.tls.clone();
        Box::pin(async move {
            let stream = connecting.await?;
            // An unstreamed answer may be silent for minutes, so silence alone does not show that the host is gone.
            if let Err(fault) = liveness::detect_vanished_peer(stream.inner()) {
                tracing::debug!(error = %fault, "the system does not watch over a connection to ollama");
            }
            match tls {
                None => Ok(Link::Plain(stream)),
                Some(Secured { client, peer }) => {
                    let shaken = client.handshake(&peer, stream.into_inner()).await?;
                    Ok(Link::Secured(Box::new(TokioIo::new(shaken))))
                }
            }
        })
    }
}

/// A connection to the upstream. Dropping it closes it at once, which is how Ollama is told to stop.
pub(super) enum Link {
    /// In the clear.
    Plain(TokioIo<TcpStream>),
    /// Over TLS.
    Secured(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Link::Secured(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl Write for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Link::Secured(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Link::Secured(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Link::Plain(stream) => stream.is_write_vectored(),
            Link::Secured(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_flush(context),
            Link::Secured(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Link::Secured(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
