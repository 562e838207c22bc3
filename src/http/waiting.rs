//! What a client gets to see while its answer is long in coming: early headers, and a byte now and then that every client
//! ignores. Which bytes those are was measured on real clients (docs/clients.md).
//!
//! They are no part of the answer: the job may still be tried again. Never a blank line on a native stream: it breaks
//! half of the clients.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use tokio::time::Instant;

use crate::clock::rfc3339;
use crate::config::{NativeByte, Unstreamed};
use crate::domain::dialect::{Dialect, ErrorShape};
use crate::domain::job::{JobId, Kind, State};
use crate::store::Sought;
use crate::worker::output::{Opening, Output};

use super::Edge;
use super::error::Form;
use super::forecast::forecast;
use super::placement::Place;
use super::queued::stopped_while_waiting;
use super::stainless::Stainless;

const QUEUE_STATE: HeaderName = HeaderName::from_static("x-foreman-queue-state");
const QUEUE_POSITION: HeaderName = HeaderName::from_static("x-foreman-queue-position");
const QUEUE_ESTIMATE_MS: HeaderName = HeaderName::from_static("x-foreman-queue-estimate-ms");

/// Jobs counted before one that waits; a place beyond is not told. Ten thousand clients that wait ask each interval.
const AHEAD_MAX: u32 = 1_000;

/// Characters of a model's name that are told.
const MODEL_CHARACTERS_MAX: usize = 128;

/// A client that gives up sooner than the interval is served at this share of its limit.
const SHARE_OF_LIMIT: u32 = 2;

/// Not more often than this, whatever limit a client names.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// How a client is kept while it waits.
#[derive(Debug)]
pub(super) struct Patience {
    interval: Duration,
    /// How often it is told anew where its job stands. A client that names a short limit hears more often, at no more looks.
    look_pause: Duration,
    /// What it was told last, and when.
    told: Mutex<Option<(Instant, Bytes)>>,
    dialect: Dialect,
    /// How its answer will be made of records.
    pub(super) form: Form,
    byte: NativeByte,
    /// The model, as the client wrote it.
    model: String,
}

/// What a client that waits hears next.
pub(super) enum Heard {
    /// Bytes to ignore.
    Nothing(Bytes),
    /// Its answer begins, or is refused.
    Opening(Opening),
    /// The daemon stops, and the job stays queued.
    Stopping,
}

impl Patience {
    /// How the client of this request is kept; `None` if it is not: it gets nothing before the answer.
    pub(super) fn of(
        edge: &Edge,
        dialect: Dialect,
        place: &Place,
        stainless: Option<Stainless>,
    ) -> Option<Patience> {
        let waiting = edge.config.waiting;
        let form = form(dialect, place, waiting.unstreamed)?;
        let limit = stainless.and_then(|stainless| stainless.gives_up_after);
        let look_pause = waiting.interval?;
        let interval = match limit {
            Some(limit) => look_pause.min(limit / SHARE_OF_LIMIT).max(INTERVAL_MIN),
            None => look_pause,
        };
        let (told, byte, model) = (Mutex::default(), waiting.stream, place.model.clone());
        Some(Patience { interval, look_pause, told, dialect, form, byte, model })
    }

    /// Returns when the client has heard nothing for as long as it should.
    pub(super) async fn silence(&self) {
        tokio::time::sleep(self.interval).await;
    }

    /// The headers of the answer to come, as Ollama would send them, and where the job stands.
    pub(super) async fn headers(&self, edge: &Edge, id: JobId) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let content_type = match (self.form, self.dialect.error_shape()) {
            (Form::Lines, _) => "application/x-ndjson",
            (Form::Events, _) => "text/event-stream",
            (Form::Value, ErrorShape::Native) => "application/json; charset=utf-8",
            (Form::Value, ErrorShape::OpenAi | ErrorShape::Anthropic) => "application/json",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if self.form == Form::Events
            && matches!(self.dialect, Dialect::Responses | Dialect::Messages)
        {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        let standing = standing(edge, id).await;
        headers.insert(QUEUE_STATE, HeaderValue::from_static(standing.state.name()));
        if let Some((position, start_in_ms)) = standing.place {
            headers.insert(QUEUE_POSITION, HeaderValue::from(position));
            headers.insert(QUEUE_ESTIMATE_MS, HeaderValue::from(start_in_ms));
        }
        headers
    }

    /// Bytes that this client ignores.
    pub(super) async fn bytes(&self, edge: &Edge, id: JobId) -> Bytes {
        const SPACE: &[u8] = b" ";
        const PING: &[u8] = b"event: ping\ndata: {\"type\": \"ping\"}\n\n";
        match (self.form, self.dialect, self.byte) {
            (Form::Value, _, _) | (Form::Lines, _, NativeByte::Space) => Bytes::from_static(SPACE),
            (Form::Lines, dialect, NativeByte::EmptyChunk) => {
                empty_chunk(dialect, &self.model, edge.clock.now_ms())
            }
            (Form::Events, Dialect::Messages, _) => Bytes::from_static(PING),
            (Form::Events, _, _) => self.comment(edge, id).await,
        }
    }

    async fn comment(&self, edge: &Edge, id: JobId) -> Bytes {
        if let Some((at, told)) = &*self.told()
            && at.elapsed() < self.look_pause
        {
            return told.clone();
        }
        let (now, text) = (now(), comment(&standing(edge, id).await, &self.model));
        *self.told() = Some((now, text.clone()));
        text
    }

    fn told(&self) -> MutexGuard<'_, Option<(Instant, Bytes)>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for what comes first: the opening, the end of the daemon, or a silence that is too long. Cancel-safe.
    pub(super) async fn hear(
        self: Arc<Self>,
        edge: Arc<Edge>,
        id: JobId,
        output: Arc<Output>,
    ) -> Heard {
        tokio::select! {
            biased;
            opening = output.opening() => return Heard::Opening(opening),
            () = stopped_while_waiting(&edge, &output) => return Heard::Stopping,
            () = self.silence() => (),
        }
        Heard::Nothing(self.bytes(&edge, id).await)
    }
}

#[expect(clippy::disallowed_methods, reason = "the age of a word; nothing reads it as time")]
fn now() -> Instant {
    Instant::now()
}

/// Of what records the answer will be, where it may begin early.
fn form(dialect: Dialect, place: &Place, unstreamed: Unstreamed) -> Option<Form> {
    // What cannot be read may become anything, a transcription may be plain text, and how images are streamed is not known.
    let may_be_anything =
        matches!(dialect, Dialect::Transcription | Dialect::Images | Dialect::Other(_));
    if place.kind == Kind::Opaque || may_be_anything {
        return None;
    }
    match (place.is_streamed, dialect.error_shape(), unstreamed) {
        (true, ErrorShape::Native, _) => Some(Form::Lines),
        (true, ErrorShape::OpenAi | ErrorShape::Anthropic, _) => Some(Form::Events),
        (false, _, Unstreamed::Spaces) => Some(Form::Value),
        (false, _, Unstreamed::Nothing) => None,
    }
}

/// Where a job stands.
struct Standing {
    state: State,
    /// Its place in the order of service, and in how many milliseconds it might begin.
    place: Option<(u64, i64)>,
}

async fn standing(edge: &Edge, id: JobId) -> Standing {
    // What cannot be looked up is not told; the client waits all the same.
    let Ok(Sought::There((job, _))) = edge.store.job(id).await else {
        return Standing { state: State::Queued, place: None };
    };
    let forecast = forecast(edge, &job, AHEAD_MAX).await;
    let place = forecast.map(|forecast| (forecast.position, forecast.start_in_ms));
    Standing { state: job.state, place }
}

/// An event stream's comment: a line that begins with a colon (HTML Living Standard, 9.2.5).
fn comment(standing: &Standing, model: &str) -> Bytes {
    let model: String = model
        .chars()
        .filter(|character| !character.is_control())
        .take(MODEL_CHARACTERS_MAX)
        .collect();
    let state = standing.state.name();
    let text = match standing.place {
        Some((position, _)) => format!(": foreman {state} position={position} model={model}\n\n"),
        None => format!(": foreman {state} model={model}\n\n"),
    };
    Bytes::from(text)
}

/// A chunk of a native stream that says nothing (Ollama's `api/types.go`).
fn empty_chunk(dialect: Dialect, model: &str, now_ms: i64) -> Bytes {
    let created_at = rfc3339(now_ms);
    let (name, content) = match dialect == Dialect::Generate {
        true => ("response", json!("")),
        false => ("message", json!({ "role": "assistant", "content": "" })),
    };
    let chunk = json!({ "model": model, "created_at": created_at, name: content, "done": false });
    Bytes::from(format!("{chunk}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::schedule::Lane;

    fn place(kind: Kind, is_streamed: bool) -> Place {
        Place { kind, lane: Lane::Opaque, model: "a".to_owned(), is_streamed }
    }

    #[test]
    fn only_what_can_begin_early_does() {
        let (run, whole) = (place(Kind::Run, true), place(Kind::Run, false));
        for (dialect, wanted) in [
            (Dialect::Chat, Form::Lines),
            (Dialect::Responses, Form::Events),
            (Dialect::Messages, Form::Events),
        ] {
            assert_eq!(form(dialect, &run, Unstreamed::Nothing), Some(wanted));
            assert_eq!(form(dialect, &whole, Unstreamed::Nothing), None);
            assert_eq!(form(dialect, &whole, Unstreamed::Spaces), Some(Form::Value));
            assert_eq!(form(dialect, &place(Kind::Opaque, true), Unstreamed::Spaces), None);
        }
        for dialect in [Dialect::Transcription, Dialect::Images] {
            assert_eq!(form(dialect, &whole, Unstreamed::Spaces), None);
            assert_eq!(form(dialect, &run, Unstreamed::Spaces), None);
        }
    }

    /// A name with a line break would end the comment and begin an event.
    #[test]
    fn a_comment_is_one_line_whatever_the_model_is_called() {
        let standing = Standing { state: State::Queued, place: Some((3, 40_000)) };
        let text = comment(&standing, "a\ndata: x\r\n\nb");
        assert_eq!(text.as_ref(), b": foreman queued position=3 model=adata: xb\n\n");
        let long = comment(&Standing { state: State::Loading, place: None }, &"m".repeat(10_000));
        assert!(long.len() < 200 && long.starts_with(b": foreman loading model=mm"));
    }

    #[test]
    fn an_empty_chunk_is_a_record_of_its_dialect() {
        let chunk = empty_chunk(Dialect::Chat, "a\"b", 0);
        let chunk: serde_json::Value = serde_json::from_slice(&chunk).unwrap();
        assert_eq!((&chunk["model"], &chunk["done"]), (&json!("a\"b"), &json!(false)));
        assert_eq!(chunk["message"]["content"], "");
        let chunk = empty_chunk(Dialect::Generate, "a", 0);
        assert!(chunk.ends_with(b"}\n"));
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&chunk).unwrap()["response"], "");
    }
}
