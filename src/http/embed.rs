//! The road of embeddings: straight through, concurrently, never queued, never stored; only counted.
//!
//! `keep_alive` is cut out as for jobs: repeated on a busy runner it can wedge Ollama (ollama/ollama#17408).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};

use crate::domain::dialect::Dialect;
use crate::domain::model::ModelName;
use crate::ollama::client::full_body;
use crate::ollama::wire::cut::without_keep_alive;
use crate::ollama::wire::peek::{Peek, Shape, peek};

use super::answer::relayed;
use super::error::Told;
use super::plain::Plain;
use super::{Edge, Response, body, pass};

/// Embeds that may wait in memory for a place; each holds its body.
const WAITING_MAX: u64 = 1_000;

/// Relays an embed.
pub(super) async fn embed(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
    dialect: Dialect,
) -> Response {
    relay(edge, request, dialect).await.unwrap_or_else(|told| told.answer(dialect))
}

async fn relay(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
    dialect: Dialect,
) -> Result<Response, Told> {
    let (parts, incoming) = request.into_parts();
    let read = body::read(edge, &parts, incoming, edge.config.body_max).await?;
    let plain = Plain::of(edge, dialect, &parts.headers, &read.bytes).await;
    let bytes = match plain.said().map(|said| peek(shape(dialect), said)) {
        Ok(Peek::Request(request)) => {
            // The vectors may be long in coming.
            drop(plain);
            if let Some(model) = not_resident(edge, &request.model) {
                // Without a place: embeds of what is resident pass meanwhile.
                let _waiting = Waiting::begin(&edge.embeds_waiting).ok_or_else(full)?;
                tokio::select! {
                    () = edge.worker.load_for_embeds(model) => (),
                    // The worker pauses until it is back; who waits for vectors is told at once, as by Ollama's absence.
                    () = edge.health.away() => (),
                }
            }
            // Of /v1, where a body may be compressed, nothing is cut.
            without_keep_alive(read.bytes.clone(), &request.keep_alive_members)
        }
        // Ollama refuses it.
        Ok(Peek::Refused(_)) | Err(_) => read.bytes.clone(),
    };
    let place = place(edge).await?;
    let answer = pass::send(edge, parts, full_body(bytes)).await;
    // The vectors are made. A client that does not take them holds up no embed of others.
    drop((place, read));
    Ok(relayed(answer?, ()))
}

fn shape(dialect: Dialect) -> Shape {
    match dialect {
        Dialect::Embed => Shape::Embed,
        Dialect::Embeddings => Shape::Embeddings,
        _ => Shape::V1,
    }
}

/// The model of an embed, if it has to be loaded first. Left to the embed, Ollama would choose what makes room for it. One
/// that is not installed loads nothing, and while the upstream is away nobody knows.
fn not_resident(edge: &Edge, model: &str) -> Option<ModelName> {
    let name = ModelName::parse(model).ok()?.name;
    let is_installed = edge.inventory.find(&name).is_some_and(|entry| !entry.is_remote);
    (is_installed && edge.health.is_up() && !edge.residency.holds(&name)).then_some(name)
}

async fn place(edge: &Edge) -> Result<OwnedSemaphorePermit, Told> {
    match Arc::clone(&edge.embeds).try_acquire_owned() {
        Ok(permit) => return Ok(permit),
        Err(TryAcquireError::Closed) => return Err(full()),
        Err(TryAcquireError::NoPermits) => (),
    }
    let _waiting = Waiting::begin(&edge.embeds_waiting).ok_or_else(full)?;
    Arc::clone(&edge.embeds).acquire_owned().await.map_err(|_| full())
}

fn full() -> Told {
    let text = "too many embeds wait; nothing was sent to ollama, try again";
    Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(1)
}

/// Counts one waiting embed while it lives.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicU64) -> Option<Waiting<'a>> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(count);
        (before < WAITING_MAX).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
