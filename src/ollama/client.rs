//! The connection pool to the one upstream. Everything that reaches Ollama goes through [`Ollama::send`].
//!
//! It sends the upstream's own `Host`, because a loopback Ollama refuses any other, and its own bearer token where one
//! is configured. It has no total time limit: minutes to the first byte are normal.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_service::Service;

use crate::tls::{self, Roots};

use super::connector::{Connector, Link, Secured};
use super::url::{Scheme, UpstreamUrl};

/// A body on its way to or from the upstream. The error is whatever broke it.
pub type Body = BoxBody<Bytes, BodyError>;

/// Why a body ended early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Idle connections are dropped after this, well within the patience of proxies that may stand in between.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// Idle connections kept: the usual number of embeds in flight.
const POOL_IDLE_MAX: usize = 64;

/// The upstream. Clones share the pool.
#[derive(Clone)]
pub struct Ollama {
    client: Client<Connector, Body>,
    connector: Connector,
    url: UpstreamUrl,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection could be made, or none that is trusted: the upstream never saw the request, it is safe to send it again.
    #[error("cannot connect to {url}: {cause}")]
    Unreachable {
        /// The upstream.
        url: String,
        /// What the system said, or what is wrong with the certificate.
        cause: String,
    },
    /// The body that was to be sent broke off: the client's doing.
    #[error("the request body broke off: {0}")]
    Body(String),
    /// The connection broke before an answer came.
    #[error("the connection to {url} broke before an answer came: {cause}")]
    Broken {
        /// The upstream.
        url: String,
        /// What happened.
        cause: String,
    },
    /// No answer within the time limit of this call.
    #[error("{url} did not answer within {limit_ms} ms")]
    Late {
        /// The upstream.
        url: String,
        /// The limit.
        limit_ms: u128,
    },
    /// The answer is not what Ollama answers.
    #[error("{url} answered strangely: {cause}")]
    Strange {
        /// The upstream.
        url: String,
        /// What was wrong.
        cause: String,
    },
}

impl Ollama {
    /// A pool with no connection yet. An upstream over https is vouched for by `roots`, or by those of this system, which are
    /// read from its disk.
    ///
    /// # Errors
    /// If the token cannot stand in a header, the system trusts nobody, or no certificate can be for the upstream's name.
    pub fn new(
        url: UpstreamUrl,
        token: Option<&str>,
        roots: Option<Roots>,
    ) -> Result<Ollama, String> {
        let tls = match url.scheme() {
            Scheme::Http => None,
            Scheme::Https => Some(secured(&url, roots)?),
        };
        let connector = Connector::new(tls);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_IDLE_MAX)
            .pool_timer(TokioTimer::new())
            .http1_title_case_headers(true)
            .set_host(false)
            .build(connector.clone());
        let host = url.host_header();
        let authorization = token.map(bearer).transpose()?;
        Ok(Ollama { client, connector, url, host, authorization })
    }

    /// Where it is.
    pub fn url(&self) -> &UpstreamUrl {
        &self.url
    }

    /// Sends a request whose URI is a path and query. Sets `Host` and, where configured, `Authorization`.
    ///
    /// Cancellation: dropping the future, or later the answer's body, closes the connection, which is how Ollama is told
    /// to stop.
    ///
    /// # Errors
    /// [`SendError::Unreachable`] or [`SendError::Broken`].
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let joined = self.url.join(path);
        *request.uri_mut() = joined.parse::<Uri>().map_err(|fault| self.strange(&fault))?;
        self.identify(request.headers_mut());
        self.client.request(request).await.map_err(|fault| {
            let url = self.url.to_string();
            let cause = chain(&fault);
            match (fault.is_connect(), is_of_the_body(&fault)) {
                (true, _) => SendError::Unreachable { url, cause },
                (false, true) => SendError::Body(cause),
                (false, false) => SendError::Broken { url, cause },
            }
        })
    }

    /// A connection of its own, outside the pool.
    ///
    /// # Errors
    /// [`SendError::Unreachable`].
    pub(super) async fn connect(&self) -> Result<Link, SendError> {
        let uri = self.url.join("/").parse::<Uri>().map_err(|fault| self.strange(&fault))?;
        let connected = self.connector.clone().call(uri).await;
        connected.map_err(|fault| SendError::Unreachable {
            url: self.url.to_string(),
            cause: chain(fault.as_ref()),
        })
    }

    /// Sets what every request to the upstream carries: its own `Host`, and foreman's token where one is configured.
    pub(super) fn identify(&self, headers: &mut HeaderMap) {
        headers.insert(HOST, self.host.clone());
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
    }

    /// An error about an answer of the wrong shape.
    pub(super) fn strange(&self, cause: &dyn std::fmt::Display) -> SendError {
        SendError::Strange { url: self.url.to_string(), cause: cause.to_string() }
    }

    /// An error about an answer that did not come in time.
    pub(super) fn late(&self, limit: Duration) -> SendError {
        SendError::Late { url: self.url.to_string(), limit_ms: limit.as_millis() }
    }

    /// An error about a connection that broke.
    pub(super) fn broken(&self, cause: &(dyn std::error::Error + 'static)) -> SendError {
        SendError::Broken { url: self.url.to_string(), cause: chain(cause) }
    }
}

/// TLS to the upstream, and who it must prove to be.
fn secured(url: &UpstreamUrl, roots: Option<Roots>) -> Result<Secured, String> {
    let of_system = || {
        let roots = Roots::of_system();
        roots.map_err(|fault| {
            format!("{fault}: name the CA of {} with FOREMAN_OLLAMA_CA", url.host())
        })
    };
    let roots = roots.map_or_else(of_system, Ok)?;
    Ok(Secured { client: tls::Client::new(roots)?, peer: tls::Peer::at(url.host())? })
}

/// Whether an exchange failed because the body to be sent did.
fn is_of_the_body(fault: &hyper_util::client::legacy::Error) -> bool {
    let source = std::error::Error::source(fault);
    source
        .and_then(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_user)
}

/// An empty body.
pub fn empty_body() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A body that is already in memory; sent with a Content-Length, because with a chunked body Ollama may not notice that
/// foreman hangs up.
pub fn full_body(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| "the token cannot stand in a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// An error with its causes, in one line.
pub fn chain(fault: &(dyn std::error::Error + 'static)) -> String {
    let mut text = fault.to_string();
    let mut cause = fault.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
