//! One idle connection to the upstream that is there only to break: Ollama closes no idle connection, so its end says at
//! once that the process behind it ended, which polls would say seconds later.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Request, Uri};

use super::client::{Ollama, SendError};

/// `GET /` is answered with a sentence.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

impl Ollama {
    /// Opens the connection, asks `GET /` on it, and returns when it has ended. Dropping the future closes it.
    ///
    /// # Errors
    /// If there was no such connection to begin with.
    pub async fn tether(&self) -> Result<(), SendError> {
        let link = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(link).await.map_err(|fault| self.broken(&fault))?;
        // Origin form: a server may not expect the whole URL in a request line.
        let joined: Uri = self.url().join("/").parse().map_err(|fault| self.strange(&fault))?;
        let path = joined.path_and_query().map_or("/", |path| path.as_str());
        let mut request =
            Request::get(path).body(Empty::<Bytes>::new()).map_err(|fault| self.strange(&fault))?;
        self.identify(request.headers_mut());
        let asking = async {
            let response =
                sender.send_request(request).await.map_err(|fault| self.broken(&fault))?;
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            body.map_err(|fault| self.broken(fault.as_ref()))?;
            // Asked and answered; from here on only the other side can end it.
            std::future::pending::<Result<(), SendError>>().await
        };
        tokio::select! {
            asked = asking => asked,
            ended = connection => {
                tracing::debug!(?ended, "the idle connection to ollama has ended");
                Ok(())
            }
        }
    }
}
