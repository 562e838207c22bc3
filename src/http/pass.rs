//! The road of everything that is not queued: relayed both ways as it comes, in constant memory, nothing re-encoded.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};

use crate::domain::model::ModelName;
use crate::domain::route::{Effect, error_dialect};
use crate::ollama::client::{Body, BodyError, SendError, full_body};

use super::answer::relayed;
use super::error::Told;
use super::headers::{self, Credentials};
use super::{Edge, Response, body};

/// A request that names a model to be changed is small; a larger one is relayed without a look.
const NAMING_BYTES_MAX: u64 = 1024 * 1024;

/// Relays a request with its streamed body.
pub(super) async fn pass(edge: &Arc<Edge>, request: Request<Incoming>, effect: Effect) -> Response {
    let dialect = error_dialect(request.uri().path());
    let is_small =
        request.body().size_hint().exact().is_some_and(|bytes| bytes <= NAMING_BYTES_MAX);
    let answer = match effect {
        Effect::None => relay(edge, request, ()).await,
        Effect::Replacement | Effect::Removal if is_small => change(edge, request).await,
        Effect::Inventory | Effect::Replacement | Effect::Removal => {
            let refresh = RefreshAfter { edge: Arc::clone(edge), changed: None };
            relay(edge, request, refresh).await
        }
    };
    answer.unwrap_or_else(|told| told.answer(dialect))
}

async fn relay<T: Send + Sync + Unpin + 'static>(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
    until_end: T,
) -> Result<Response, Told> {
    let (parts, body) = request.into_parts();
    let answer = send(edge, parts, body.map_err(BodyError::from).boxed()).await?;
    Ok(relayed(answer, until_end))
}

/// Sends a request whose body is in memory already. `until_end` is held until the answer is out or its client has left.
pub(super) async fn pass_bytes<T: Send + Sync + Unpin + 'static>(
    edge: &Arc<Edge>,
    parts: Parts,
    bytes: Bytes,
    until_end: T,
) -> Response {
    let dialect = error_dialect(parts.uri.path());
    let answer = send(edge, parts, full_body(bytes)).await;
    answer.map_or_else(|told| told.answer(dialect), |answer| relayed(answer, until_end))
}

/// Sends a request upstream; a failure is told in words for the client.
pub(super) async fn send(
    edge: &Arc<Edge>,
    mut parts: Parts,
    body: Body,
) -> Result<hyper::Response<Incoming>, Told> {
    headers::for_upstream(&mut parts.headers, credentials(edge));
    parts.version = hyper::Version::HTTP_11;
    let outcome = edge.ollama.send(Request::from_parts(parts, body)).await;
    outcome.map_err(|fault| told(edge, &fault))
}

/// Whose credentials a client's `Authorization` holds.
pub(super) fn credentials(edge: &Edge) -> Credentials {
    match edge.keys.are_none() {
        false => Credentials::Foremans,
        true => Credentials::Upstreams,
    }
}

/// What a client is told of a request that got no answer.
pub(super) fn told(edge: &Edge, fault: &SendError) -> Told {
    match fault {
        SendError::Unreachable { .. } => {
            edge.health.lost(&fault.to_string(), edge.clock.now_ms());
            let text = format!(
                "ollama is not reachable, the request did not reach it and may be tried again: {fault}"
            );
            Told::new(StatusCode::BAD_GATEWAY, text).retry_after(5)
        }
        SendError::Body(_) => Told::new(StatusCode::BAD_REQUEST, fault.to_string()),
        SendError::Broken { .. } | SendError::Late { .. } | SendError::Strange { .. } => {
            let text = format!("ollama did not answer, it may have acted on the request: {fault}");
            Told::new(StatusCode::BAD_GATEWAY, text)
        }
    }
}

/// Deletes or replaces a model. A resident one is unloaded first, at the next job border: its runner would outlive it, with
/// the old weights, and could then not be unloaded by name.
async fn change(edge: &Arc<Edge>, request: Request<Incoming>) -> Result<Response, Told> {
    let (parts, incoming) = request.into_parts();
    let read = body::read(edge, &parts, incoming, NAMING_BYTES_MAX).await?;
    let mut hold = None;
    let changed = changed_model(parts.uri.path(), &read.bytes);
    if let Some(model) = changed.clone()
        && edge.residency.goes_by(&model)
        && edge.health.is_up()
    {
        hold = edge.worker.release(model).await;
    }
    let refresh = RefreshAfter { edge: Arc::clone(edge), changed };
    let answer = send(edge, parts, full_body(read.bytes.clone())).await?;
    // A create works until its last line: the hold lives as long as the answer.
    Ok(relayed(answer, (refresh, hold)))
}

/// The model a request deletes or replaces: `model`, or `name` as older clients say; a copy's destination.
fn changed_model(path: &str, body: &[u8]) -> Option<ModelName> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let member = |wanted: &str| {
        let members = value.as_object()?;
        let (_, value) = members.iter().rfind(|(key, _)| key.eq_ignore_ascii_case(wanted))?;
        value.as_str().filter(|text| !text.is_empty())
    };
    let name = match path {
        "/api/copy" => member("destination")?,
        _ => member("model").or_else(|| member("name"))?,
    };
    ModelName::parse(name).ok().map(|parsed| parsed.name)
}

/// Has the inventory and the residency read again once the answer is out, or its client has left.
struct RefreshAfter {
    edge: Arc<Edge>,
    /// The model that was deleted or replaced, where it is known which: that it could not be loaded is history.
    changed: Option<ModelName>,
}

impl Drop for RefreshAfter {
    fn drop(&mut self) {
        let (edge, changed) = (Arc::clone(&self.edge), self.changed.take());
        let tasks = edge.tasks.clone();
        tasks.spawn(async move {
            edge.inventory.refresh().await;
            edge.worker.model_changed(changed.as_ref());
            // After it: what is resident is compared with what is installed now.
            edge.residency.doubt();
            edge.worker.wake();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_its_model_in_each_way() {
        let llama = ModelName::parse("llama3").unwrap().name;
        let changed = |path, body: &str| changed_model(path, body.as_bytes());
        assert_eq!(changed("/api/delete", r#"{"model":"llama3"}"#), Some(llama.clone()));
        assert_eq!(changed("/api/create", r#"{"name":"LLAMA3:latest"}"#), Some(llama.clone()));
        let copy = r#"{"source":"other","destination":"llama3"}"#;
        assert_eq!(changed("/api/copy", copy), Some(llama));
        assert_eq!(changed("/api/delete", "{"), None);
    }
}
