//! The one task that asks the upstream how it is: each poll while it is up, with growing pauses while it is away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use crate::http::Edge;
use crate::ollama::health::Probed;

/// Pauses between probes of an upstream that is away: short at first, for a restart; then about as long as a person
/// minds after opening a laptop.
const AWAY_PAUSE_FIRST: Duration = Duration::from_millis(100);
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Foreman's own health answer comes at once; an upstream that takes longer for it is no foreman.
const SELF_LIMIT: Duration = Duration::from_secs(2);

/// Probes until the drain. Ends the daemon at once if the upstream turns out to be this daemon itself, by whatever name:
/// it would pass every request to itself until the ports run out.
pub(super) async fn run(edge: Arc<Edge>) {
    if is_itself(&edge).await {
        tracing::error!(upstream.url = %edge.ollama.url(), "the upstream is this foreman itself (FOREMAN_OLLAMA_URL)");
        edge.is_misled.store(true, Ordering::SeqCst);
        edge.tasks.force();
        return;
    }
    let mut away_pause = AWAY_PAUSE_FIRST;
    while !edge.tasks.is_draining() {
        let clock = edge.clock.clone();
        let probed = edge.health.probe(&edge.ollama, || clock.now_ms()).await;
        let pause = match probed {
            Probed::Down => {
                let pause = away_pause;
                away_pause = (away_pause * 2).min(AWAY_PAUSE_MAX);
                pause
            }
            Probed::CameUp => {
                away_pause = AWAY_PAUSE_FIRST;
                learn_version(&edge);
                came_up(&edge).await;
                edge.config.poll_interval
            }
            Probed::StillUp => {
                away_pause = AWAY_PAUSE_FIRST;
                learn_version(&edge);
                edge.inventory.refresh().await;
                edge.residency.doubt();
                edge.worker.wake();
                edge.config.poll_interval
            }
        };
        tokio::select! {
            () = edge.health.pause(pause) => (),
            () = edge.tasks.draining() => return,
        }
    }
}

/// Pause before the idle connection is opened again: something in between may close idle connections after a while.
const TETHER_PAUSE: Duration = Duration::from_secs(1);

/// Holds the idle connection that tells of the upstream's end, and has its memory asked about when it has ended: an Ollama
/// that was restarted between two polls has lost every runner, and every pin.
pub(super) async fn hold_tether(edge: Arc<Edge>) {
    loop {
        tokio::select! {
            () = edge.health.up() => (),
            () = edge.tasks.draining() => return,
        }
        tokio::select! {
            ended = edge.ollama.tether() => {
                if ended.is_ok() {
                    edge.residency.doubt();
                    edge.health.suspect();
                    edge.worker.upstream_restarted();
                }
            }
            // A host that slept may have left a connection that only looks open.
            () = edge.health.returned() => (),
            () = edge.tasks.draining() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(TETHER_PAUSE) => (),
            () = edge.tasks.draining() => return,
        }
    }
}

/// Asked by a route that is never relayed.
async fn is_itself(edge: &Edge) -> bool {
    let Ok(reply) = edge.ollama.get("/healthz", SELF_LIMIT).await else { return false };
    let health: Value = serde_json::from_slice(&reply.body).unwrap_or(Value::Null);
    health["instance"] == edge.instance.as_str()
}

/// Beside: an Ollama that does not tell its version serves all the same.
fn learn_version(edge: &Arc<Edge>) {
    let (asking, tasks) = (Arc::clone(edge), edge.tasks.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = asking.health.learn_version(&asking.ollama) => (),
            () = asking.tasks.draining() => (),
        }
    });
}

/// What it has may have changed, and the embedder is warmed. That its runners may be gone with it, the worker knows.
async fn came_up(edge: &Edge) {
    if !edge.inventory.refresh().await {
        tracing::warn!("ollama is up but has not listed its models; what it listed last counts");
    }
    if edge.config.embed_model.is_some() {
        edge.worker.warm();
    }
    edge.worker.wake();
}
