//! Server-sent events: the log of changes, replayed from an id and then live, without a gap or a double, and the progress of
//! what runs. One task feeds each subscriber; it ends when the subscriber leaves, or with the daemon.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Request, Response as HttpResponse, StatusCode};
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::clock::rfc3339;
use crate::domain::job::{JobId, State};
use crate::ollama::client::{BodyError, empty_body};
use crate::store::{Sought, StoreError, Transition};
use crate::worker::output::Output;

use super::super::caller::Caller;
use super::super::problem::{Code, Problem};
use super::super::query;
use super::super::{Edge, Response};
use super::submit::require;
use super::unread;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How often what runs is told of.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);

/// After so many of those without a word a comment keeps the line open: proxies cut what is silent for half a minute or so.
const QUIET_MAX: u32 = 15;

/// Events that may wait for a slow subscriber; beyond it its task waits, and reads what it missed from the log.
const AHEAD_MAX: usize = 64;

/// `GET /events`.
pub(super) async fn all(
    edge: &Arc<Edge>,
    request: &Request<Incoming>,
) -> Result<Response, Problem> {
    // Subscribed before the log is read: what happens in between is in both, and told once.
    let live = edge.store.subscribe();
    let after = match last_event_id(request)? {
        Some(event) => event,
        None => edge.store.last_event().await.map_err(|fault| unread(edge, &fault))?,
    };
    Ok(stream(edge, live, after, (None, Caller::of(request.extensions()))))
}

/// `GET /jobs/{id}/events`.
pub(super) async fn of_job(
    edge: &Arc<Edge>,
    id: JobId,
    request: &Request<Incoming>,
) -> Result<Response, Problem> {
    let live = edge.store.subscribe();
    let after = last_event_id(request)?;
    let job = require(edge, id).await?;
    if let (Some(after), true) = (after, job.state.is_final()) {
        let rest = edge.store.events_after(after, Some(id)).await;
        if rest.map_err(|fault| unread(edge, &fault))?.events.is_empty() {
            // It has heard the end: an EventSource stops asking on a 204.
            let mut response = HttpResponse::new(empty_body());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        }
    }
    let caller = Caller::of(request.extensions());
    Ok(stream(edge, live, after.unwrap_or(0), (Some(id), caller)))
}

/// By header, as an `EventSource` says it when it comes back, or by query, for its first time.
fn last_event_id(request: &Request<Incoming>) -> Result<Option<i64>, Problem> {
    let by_query = query::read(request.uri().query(), |given| {
        given.parsed::<u64>("last_event_id", "the id of an event")
    })?;
    let by_query = by_query.map(|event| i64::try_from(event).unwrap_or(i64::MAX));
    let Some(header) = request.headers().get(LAST_EVENT_ID) else { return Ok(by_query) };
    let text = header.to_str().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(by_query);
    }
    match text.parse().ok().filter(|event| *event >= 0) {
        Some(event) => Ok(Some(event)),
        None => {
            Err(Problem::new(Code::MalformedHeader, "Last-Event-ID must be the id of an event"))
        }
    }
}

fn stream(
    edge: &Arc<Edge>,
    live: Receiver<Arc<Transition>>,
    after: i64,
    (of, caller): (Option<JobId>, Caller),
) -> Response {
    let (sender, body) = Channel::<Bytes, Infallible>::new(AHEAD_MAX);
    let mut pace = interval(PROGRESS_PAUSE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let feed = Feed {
        edge: Arc::clone(edge),
        sender,
        live,
        after,
        of,
        caller,
        pace,
        quiet: 0,
        told: HashMap::new(),
    };
    let tasks = edge.tasks.clone();
    edge.tasks.spawn(async move {
        tokio::select! {
            // Either way the body ends, as a stream of events may at any time.
            ended = feed.run() => {
                if let Err(Ended::Unread(fault)) = ended {
                    tracing::error!(db.error = %fault, "events could not be read; a subscriber was cut");
                }
            }
            () = tasks.draining() => (),
        }
    });
    let mut response =
        HttpResponse::new(body.map_err(|never| -> BodyError { match never {} }).boxed());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Told to nginx, which would keep events back until its buffer is full.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// One subscriber.
struct Feed {
    edge: Arc<Edge>,
    sender: Sender<Bytes, Infallible>,
    live: Receiver<Arc<Transition>>,
    /// The last event it was told.
    after: i64,
    /// The one job it is interested in.
    of: Option<JobId>,
    /// Who is told, and of whose jobs.
    caller: Caller,
    pace: Interval,
    /// Ticks since its last word.
    quiet: u32,
    /// Bytes of each running job when they were last told; nothing of jobs that are not to be told of.
    told: HashMap<JobId, Option<u64>>,
}

/// Why a feed ends.
enum Ended {
    /// The subscriber has left.
    Left,
    /// Its job has ended.
    Over,
    /// The log could not be read.
    Unread(StoreError),
}

impl Feed {
    async fn run(mut self) -> Result<(), Ended> {
        // An id without data: who is cut before the first event comes back with it.
        self.say(format!("id: {}\n\n", self.after)).await?;
        self.catch_up().await?;
        loop {
            tokio::select! {
                event = self.live.recv() => match event {
                    Ok(event) => self.tell_next(&event).await?,
                    Err(RecvError::Lagged(_)) => self.catch_up().await?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                _ = self.pace.tick() => self.tell_progress().await?,
            }
        }
    }

    /// Tells a live change. Where numbers are left out before it, changes were dropped with their jobs before anybody could
    /// be told: the log knows.
    async fn tell_next(&mut self, event: &Transition) -> Result<(), Ended> {
        if self.of.is_none() && event.event > self.after.saturating_add(1) {
            self.catch_up().await?;
        }
        self.tell(event).await
    }

    /// Reads from the log what was not told yet.
    async fn catch_up(&mut self) -> Result<(), Ended> {
        let mut is_first = true;
        loop {
            let page = self.edge.store.events_after(self.after, self.of).await;
            let page = page.map_err(Ended::Unread)?;
            if is_first && self.of.is_none() && page.dropped_up_to > self.after {
                let lost = json!({ "from": self.after + 1, "to": page.dropped_up_to });
                self.say(format!("event: events.lost\ndata: {lost}\n\n")).await?;
            }
            is_first = false;
            if page.events.is_empty() {
                return Ok(());
            }
            for event in &page.events {
                self.tell(event).await?;
            }
        }
    }

    /// Tells a change, once.
    async fn tell(&mut self, event: &Transition) -> Result<(), Ended> {
        if event.event <= self.after || self.of.is_some_and(|id| id != event.id) {
            return Ok(());
        }
        self.after = event.event;
        if !self.caller.sees(&event.owner) {
            return Ok(());
        }
        self.say(record(event)).await?;
        // A job that is tried again by hand has ended before: only the last word of the log is its end.
        let is_over = self.of.is_some() && event.to.is_final() && !self.goes_on().await?;
        if is_over { Err(Ended::Over) } else { Ok(()) }
    }

    async fn goes_on(&self) -> Result<bool, Ended> {
        let page = self.edge.store.events_after(self.after, self.of).await;
        Ok(!page.map_err(Ended::Unread)?.events.is_empty())
    }

    async fn tell_progress(&mut self) -> Result<(), Ended> {
        self.require_key()?;
        self.quiet += 1;
        for (id, output) in self.edge.worker.outputs().in_flight() {
            if self.of.is_some_and(|of| of != id) {
                continue;
            }
            let Some(told) = self.told_of(id).await? else { continue };
            let bytes = output.bytes();
            if bytes > 0 && bytes != told {
                self.told.insert(id, Some(bytes));
                let progress = progress(id, &output, self.edge.clock.now_ms());
                self.say(progress).await?;
            }
        }
        self.told.retain(|id, _| self.edge.worker.outputs().find(*id).is_some());
        if self.quiet >= QUIET_MAX {
            self.require_job().await?;
            self.say(": still here\n\n".to_owned()).await?;
        }
        Ok(())
    }

    /// The bytes that were told of a job; `None` if it is not to be told of.
    async fn told_of(&mut self, id: JobId) -> Result<Option<u64>, Ended> {
        if let Some(told) = self.told.get(&id) {
            return Ok(*told);
        }
        let is_seen = match self.caller.sees_only() {
            Some(owner) => self.edge.store.belongs(id, owner).await.map_err(Ended::Unread)?,
            None => true,
        };
        let told = is_seen.then_some(0);
        self.told.insert(id, told);
        Ok(told)
    }

    /// Ends where the subscriber's key is no longer one, or may do something else: who has one still comes back with it.
    fn require_key(&self) -> Result<(), Ended> {
        match self.caller.key() {
            Some(key) if !self.edge.keys.still_have(key) => Err(Ended::Over),
            Some(_) | None => Ok(()),
        }
    }

    /// Ends where the one job was dropped before its end could be told: by a purge right behind it.
    async fn require_job(&self) -> Result<(), Ended> {
        let Some(id) = self.of else { return Ok(()) };
        match self.edge.store.job(id).await.map_err(Ended::Unread)? {
            Sought::There(_) => Ok(()),
            Sought::Purged | Sought::Unknown => Err(Ended::Over),
        }
    }

    async fn say(&mut self, text: String) -> Result<(), Ended> {
        self.quiet = 0;
        self.sender.send_data(Bytes::from(text)).await.map_err(|_| Ended::Left)
    }
}

fn record(event: &Transition) -> String {
    let kind = format!("job.{}", event.to.name());
    let error = match event.to {
        State::Queued | State::Failed | State::Cancelled => event.note.as_ref(),
        State::Loading | State::Working | State::Done => None,
    };
    let data = json!({
        "type": kind,
        "job_id": event.id.to_string(),
        "state": event.to.name(),
        "previous_state": event.from.map(State::name),
        "timestamp": rfc3339(event.at_ms),
        "model": event.model,
        "attempt": event.attempt,
        "error": error.map(|text| json!({ "message": text })),
    });
    format!("id: {}\nevent: {kind}\ndata: {data}\n\n", event.event)
}

/// Without an id: it is never replayed.
fn progress(id: JobId, output: &Output, now_ms: i64) -> String {
    let (records, began_ms) = (output.records(), output.measured().first_byte_at_ms);
    let seconds = began_ms.map_or(0, |began_ms| (now_ms - began_ms).max(0)) as f64 / 1_000.0;
    let rate = if seconds > 0.0 { (10.0 * records as f64 / seconds).round() / 10.0 } else { 0.0 };
    let data = json!({
        "type": "job.progress",
        "job_id": id.to_string(),
        "attempt": output.timings().attempt,
        "bytes": output.bytes(),
        "tokens": records,
        "tokens_per_second": rate,
    });
    format!("event: job.progress\ndata: {data}\n\n")
}
