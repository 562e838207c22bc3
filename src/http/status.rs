//! The picture of what is going on, for `foreman status`: a stable JSON contract (docs/status.md).

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::domain::bound::{Window, lower_bound};
use crate::domain::job::{Class, State};
use crate::domain::schedule::Lane;
use crate::ollama::health::Upstream;
use crate::store::{LaneSummary, OpenJob, Overview, StoreError};
use crate::worker::{BlockedLane, Scene};

use super::Edge;
use super::caller::Caller;
use super::forecast::service_order;

/// Jobs that ran by which the loads are judged.
const JOBS_JUDGED_MAX: usize = 1_000;

/// Waiting jobs listed one by one; the lanes count them all.
const JOBS_LISTED_MAX: usize = 100;

/// The status document. Who does not see all jobs is shown his own, and of those of others no more than how many there are.
pub(super) async fn status(edge: &Edge, caller: &Caller) -> Result<Value, StoreError> {
    let own = caller.sees_only();
    let sees_all = own.is_none();
    let now_ms = edge.clock.now_ms();
    let webhooks = edge.store.delivery_counts().await?;
    let queue = service_order(edge, now_ms, JOBS_LISTED_MAX).await?;
    let policy = edge.config.policy();
    let scene = queue.scene(edge, &policy);
    let overview = match own {
        Some(owner) => edge.store.overview_of(owner, JOBS_LISTED_MAX).await?,
        None => edge.store.overview(queue.order.clone(), JOBS_LISTED_MAX).await?,
    };
    let depth = overview.depth.saturating_add(overview.unattended);
    Ok(json!({
        "service": "foreman",
        "version": env!("CARGO_PKG_VERSION"),
        "now": rfc3339(now_ms),
        "started_at": rfc3339(edge.started_at_ms),
        "is_draining": edge.tasks.is_draining(),
        "key": key(caller),
        "upstream": upstream(edge),
        "resident": resident(edge),
        "broken": if sees_all { broken(edge, now_ms) } else { Vec::new() },
        "running": overview.live.iter().map(|job| running(edge, job, now_ms)).collect::<Vec<_>>(),
        "queue": {
            "depth": depth,
            "unattended": overview.unattended,
            "scheduled": stored(&overview, State::Queued).saturating_sub(depth),
            "lingering": edge.lingering.len(),
            "lanes": if sees_all {
                let blocked = |lane: &str| blocked(edge, &scene, lane);
                lanes(&overview.lanes, &queue.order, blocked, now_ms)
            } else {
                Vec::new()
            },
            "lanes_more": if sees_all { overview.lanes_more } else { 0 },
            "jobs": waiting(&overview.waiting, now_ms),
        },
        "disk": disk(edge),
        "since_start": edge.worker.counts().as_json(),
        "loads": loads(edge).await?,
        "scheduler": if sees_all { edge.worker.explanation() } else { unexplained(edge) },
        "embeds": {
            "in_flight": edge.config.embed_parallel - edge.embeds.available_permits().min(edge.config.embed_parallel),
            "waiting": edge.embeds_waiting.load(Ordering::Relaxed),
        },
        "webhooks": {
            "pending": webhooks.pending,
            "dead": webhooks.dead,
            "delivered_since_start": edge.webhooks.delivered(),
        },
        "stored": overview.jobs_by_state.iter().map(|(state, jobs)| (state.clone(), json!(jobs)))
            .collect::<serde_json::Map<String, Value>>(),
    }))
}

/// Who asks; null where foreman is open.
fn key(caller: &Caller) -> Value {
    let name = Some(caller.owner()).filter(|name| !name.is_empty());
    caller.key().map_or(Value::Null, |key| json!({ "name": name, "is_admin": key.is_admin }))
}

/// The figures of the scheduler without its decisions, each of which names somebody's model.
fn unexplained(edge: &Edge) -> Value {
    let mut explanation = edge.worker.explanation();
    explanation["holding"] = Value::Null;
    explanation["decisions"] = json!([]);
    explanation
}

/// Jobs in a state.
fn stored(overview: &Overview, state: State) -> u64 {
    let found = overview.jobs_by_state.iter().find(|(name, _)| name == state.name());
    found.map_or(0, |(_, jobs)| *jobs)
}

fn upstream(edge: &Edge) -> Value {
    let url = edge.ollama.url().to_string();
    let installed = edge.inventory.installed();
    match edge.health.now() {
        Upstream::Unknown => {
            json!({ "url": url, "state": "unknown", "since": null, "version": null, "reason": null, "models": installed })
        }
        Upstream::Up { version, since_ms } => {
            json!({ "url": url, "state": "up", "since": rfc3339(since_ms), "version": version, "reason": null, "models": installed })
        }
        Upstream::Down { reason, since_ms } => {
            json!({ "url": url, "state": "down", "since": rfc3339(since_ms), "version": null, "reason": reason, "models": installed })
        }
    }
}

fn disk(edge: &Edge) -> Value {
    let room = edge.store.room();
    json!({
        "free_bytes": room.free_bytes,
        "free_min_bytes": room.free_min_bytes,
        "has_room": room.has_room,
    })
}

/// Nothing is known of the memory of an upstream that is away.
fn resident(edge: &Edge) -> Vec<Value> {
    if !edge.health.is_up() {
        return Vec::new();
    }
    edge.residency
        .entries()
        .into_iter()
        .map(|entry| {
            json!({
                "model": entry.resident.model.to_string(),
                "key": entry.resident.key.map(|key| key.to_string()),
                "since": rfc3339(entry.since_ms),
                "is_embedder": entry.resident.is_embedder,
            })
        })
        .collect()
}

fn running(edge: &Edge, job: &OpenJob, now_ms: i64) -> Value {
    let bytes = job.id.parse().ok().and_then(|id| edge.worker.outputs().find(id));
    json!({
        "id": job.id,
        "state": job.state,
        "lane": job.lane,
        "model": job.model,
        "dialect": job.dialect,
        "attempt": job.attempt,
        "queued_for_ms": job.claimed_at_ms.unwrap_or(now_ms) - job.created_at_ms,
        "running_for_ms": job.claimed_at_ms.map_or(0, |at_ms| now_ms - at_ms),
        "answer_bytes": bytes.map_or(0, |output| output.bytes()),
    })
}

/// How near the last jobs came to the fewest loads possible. The bound holds for schedules that start each job within its
/// longest wait; some of these may have been late.
async fn loads(edge: &Edge) -> Result<Value, StoreError> {
    let jobs = edge.store.finished_jobs(JOBS_JUDGED_MAX).await?;
    let policy = edge.config.policy();
    let windows: Vec<Window<&str>> = jobs
        .iter()
        .map(|job| Window {
            key: job.lane.as_str(),
            from_ms: job.ready_at_ms,
            until_ms: policy.due_at_ms(job.class, job.ready_at_ms),
        })
        .collect();
    let late =
        jobs.iter().zip(&windows).filter(|(job, window)| job.working_at_ms > window.until_ms);
    let (loads, late) = (jobs.iter().filter(|job| job.load_ms.is_some()).count(), late.count());
    let slots = edge.residency.held().iter().filter(|held| !held.is_embedder).count().max(1);
    let bound = lower_bound(&windows, slots);
    Ok(json!({
        "jobs": jobs.len(),
        "loads": loads,
        "bound": bound,
        "ratio": if bound == 0 { Value::Null } else { json!(ratio(loads, bound)) },
        "late": late,
    }))
}

/// To two places.
fn ratio(loads: usize, bound: u64) -> f64 {
    (100.0 * loads as f64 / bound as f64).round() / 100.0
}

/// The keys whose loads fail.
fn broken(edge: &Edge, now_ms: i64) -> Vec<Value> {
    let broken = edge.worker.broken(&edge.inventory, now_ms).into_iter();
    broken
        .map(|open| {
            json!({
                "lane": open.key,
                "until": rfc3339(open.until_ms),
                "failures": open.failures,
                "status": open.error.status,
                "error": open.error.text,
            })
        })
        .collect()
}

/// Why a lane is not served; null where only its turn has not come.
fn blocked(edge: &Edge, scene: &Scene<'_>, lane: &str) -> Value {
    let blocked = Lane::from_text(lane).and_then(|lane| edge.worker.blocked(&lane, scene));
    blocked.as_ref().map_or(Value::Null, why_blocked)
}

/// Why a lane is not served, as JSON.
pub(super) fn why_blocked(blocked: &BlockedLane) -> Value {
    json!({
        "reason": blocked.reason,
        "because": blocked.because,
        "until": blocked.until_ms.map(rfc3339),
    })
}

fn lanes(
    lanes: &[LaneSummary],
    order: &[String],
    blocked: impl Fn(&str) -> Value,
    now_ms: i64,
) -> Vec<Value> {
    let mut sorted: Vec<&LaneSummary> = lanes.iter().collect();
    sorted.sort_by_key(|lane| place_of(order, &lane.lane));
    sorted
        .into_iter()
        .zip(1..)
        .map(|(lane, position)| {
            json!({
                "lane": lane.lane,
                "position": position,
                "depth": lane.depth,
                "delayed": lane.delayed,
                "oldest_age_ms": (now_ms - lane.oldest_at_ms).max(0),
                "by_class": by_class(lane),
                "blocked": blocked(&lane.lane),
            })
        })
        .collect()
}

fn by_class(lane: &LaneSummary) -> Value {
    let depth = |class: &Class| {
        lane.by_class.iter().find(|(other, _)| other == class).map_or(0, |(_, depth)| *depth)
    };
    Class::ALL.iter().map(|class| (class.name().to_owned(), json!(depth(class)))).collect()
}

/// In the order of service already.
fn waiting(jobs: &[OpenJob], now_ms: i64) -> Vec<Value> {
    jobs.iter()
        .zip(1..)
        .map(|(job, position)| {
            json!({
                "id": job.id,
                "position": position,
                "lane": job.lane,
                "model": job.model,
                "dialect": job.dialect,
                "class": job.class,
                "age_ms": (now_ms - job.created_at_ms).max(0),
                "attempts": job.attempts,
                "not_before": (job.not_before_ms > now_ms).then(|| rfc3339(job.not_before_ms)),
                "last_error": job.last_error,
            })
        })
        .collect()
}

fn place_of(order: &[String], lane: &str) -> usize {
    order.iter().position(|other| other == lane).unwrap_or(usize::MAX)
}
