//! The road of embeddings: straight through, concurrently, never queued, never stored; only counted.
//!
//! `keep_alive` is cut out as for jobs: repeated on a busy runner it can wedge Ollama (ollama/ollama#17408).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};

use crate::domain::dialect::Dialect;
use crate::domain::model::{LoadKey, ModelName, RunnerOptions};
use crate::domain::schedule::Lane;
use crate::ollama::client::full_body;
use crate::ollama::wire::cut::without_keep_alive;
use crate::ollama::wire::peek::{self, Peek, Shape, peek};
use crate::worker::Ticket;

use super::answer::relayed;
use super::error::Told;
use super::plain::Plain;
use super::queued::refused;
use super::{Edge, Response, body, pass};

/// The longest an embed waits for the first poll of what is installed; it takes milliseconds.
const FIRST_POLL_MAX: Duration = Duration::from_secs(1);

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
    let (bytes, ticket) = match plain.said().map(|said| peek(shape(dialect), said)) {
        Ok(Peek::Request(request)) => {
            // Of /v1, where a body may be compressed, nothing is cut.
            let bytes = without_keep_alive(read.bytes.clone(), &request.keep_alive_members);
            (bytes, ticket(edge, &request).await)
        }
        // Ollama refuses it.
        Ok(Peek::Refused(_)) | Err(_) => (read.bytes.clone(), None),
    };
    // The vectors may be long in coming.
    drop(plain);
    let place = match &ticket {
        Some(ticket) => turn(edge, ticket).await?,
        None => place(edge).await?,
    };
    let answer = pass::send(edge, parts, full_body(bytes)).await;
    // The vectors are made. A client that does not take them holds up no embed of others.
    drop((place, ticket, read));
    Ok(relayed(answer?, ()))
}

fn shape(dialect: Dialect) -> Shape {
    match dialect {
        Dialect::Embed => Shape::Embed,
        Dialect::Embeddings => Shape::Embeddings,
        _ => Shape::V1,
    }
}

/// The ticket of an embed, by which it waits where its model is not resident: left to the embed, Ollama would choose what
/// makes room for it. One that is not installed loads nothing, and while the upstream is away nobody knows.
async fn ticket(edge: &Edge, request: &peek::Request) -> Option<Ticket> {
    let name = ModelName::parse(&request.model).ok()?.name;
    if edge.health.is_up() && edge.inventory.installed().is_none() {
        // Ollama is up, and the first poll under way.
        drop(tokio::time::timeout(FIRST_POLL_MAX, edge.inventory.look_up(&name)).await);
    }
    let is_installed = edge.inventory.find(&name).is_some_and(|entry| !entry.is_remote);
    if !is_installed || !edge.health.is_up() {
        return None;
    }
    let configured = edge.config.embed_model.as_deref().map(ModelName::parse);
    let is_configured =
        matches!(configured, Some(Ok(parsed)) if edge.inventory.is_same(&parsed.name, &name));
    let key = edge.inventory.known_load_key(&name, request.options);
    let (lane, key) = match is_configured || edge.inventory.is_embedder(&name) {
        true => {
            // It is loaded as it is; other options are Ollama's and the client's affair.
            let key = LoadKey::new(key.model, RunnerOptions::default());
            (Lane::Embeds(key.clone()), key)
        }
        false => (Lane::Key(key.clone()), key),
    };
    Some(edge.worker.embeds().arrive(lane, key))
}

/// Waits until the model of an embed is resident and stays so, and for a place. An embed that waits for its model takes no
/// place: embeds of what is resident pass meanwhile.
async fn turn(edge: &Edge, ticket: &Ticket) -> Result<OwnedSemaphorePermit, Told> {
    let serves = |key: &LoadKey| edge.residency.serves(key);
    let lane = Lane::Embeds(ticket.key().clone());
    loop {
        let now_ms = edge.clock.now_ms();
        // Sent to Ollama, each embed would have it try that load again, and make room for it.
        if !serves(ticket.key())
            && let Some(refusal) = edge.worker.refusal(&lane, &edge.inventory, now_ms)
        {
            return Err(refused(&refusal));
        }
        if let Some(turn) = ticket.wait(serves) {
            let _waiting = Waiting::begin(&edge.embeds_waiting).ok_or_else(full)?;
            edge.worker.wake();
            tokio::select! {
                // Told or given up, it asks again.
                _ = turn => (),
                // The worker pauses until it is back; who waits for vectors is told at once, as by Ollama's absence.
                () = edge.health.away() => ticket.exempt(),
            }
        }
        let place = place(edge).await?;
        if ticket.begin(serves) {
            // What embeds use is not idle.
            edge.residency.touch(&ticket.key().model, edge.clock.now_ms());
            return Ok(place);
        }
    }
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
