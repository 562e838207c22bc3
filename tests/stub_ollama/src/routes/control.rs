//! `/_stub/*`: the handle's abilities over HTTP, for users of the binary.
//!
//! `POST /_stub/faults` arms one fault (or an array of them), `DELETE` disarms all;
//! `GET /_stub/log`, `GET /_stub/counts`; `POST /_stub/reset`; `POST /_stub/down {"ms":N}`.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use hyper::http::request::Parts;

use super::reply::{Family, Reply};
use super::{Failure, World};
use crate::decode::decode;
use crate::faults::{Action, Cut, Fault, Stage};
use crate::json::{Json, Object};
use crate::log::{LogEntry, Snapshot};
use crate::server::Command;

/// Answers a request to the stub itself; these are neither logged nor faulted.
pub(super) async fn answer(world: &World, parts: &Parts, body: &Bytes) -> Reply {
    let done = || Ok(Reply::native(Object::new().with("status", "ok")));
    let result = match (&parts.method, parts.uri.path()) {
        (&Method::GET, "/_stub/counts") => Ok(Reply::native(counts(&world.snapshot()))),
        (&Method::GET, "/_stub/log") => {
            let entries: Vec<Json> = world.board.log().iter().map(|it| entry(it).into()).collect();
            Ok(Reply::native(Object::new().with("log", entries)))
        }
        (&Method::POST, "/_stub/reset") => {
            world.board.reset();
            world.faults.clear();
            done()
        }
        (&Method::DELETE, "/_stub/faults") => {
            world.faults.clear();
            done()
        }
        (&Method::POST, "/_stub/faults") => arm(world, body).and_then(|()| done()),
        (&Method::POST, "/_stub/down") => go_down(world, body).await.and_then(|()| done()),
        _ => return Reply::text(404, "404 page not found"),
    };
    result.unwrap_or_else(|text| Failure::bad_request(text).render(Family::Native))
}

fn parse(body: &Bytes) -> Result<Json, String> {
    decode(body).map_err(|error| format!("not JSON: {error:?}"))
}

fn arm(world: &World, body: &Bytes) -> Result<(), String> {
    let value = parse(body)?;
    let faults = match &value {
        Json::Array(items) => items.iter().map(fault).collect::<Result<Vec<_>, _>>()?,
        one => vec![fault(one)?],
    };
    for fault in faults {
        world.faults.arm(fault);
    }
    Ok(())
}

async fn go_down(world: &World, body: &Bytes) -> Result<(), String> {
    let value = parse(body)?;
    let time = millis(value.as_object().ok_or("wants an object")?, "ms")?;
    let commands = world.commands.upgrade().ok_or("the stub is stopping")?;
    commands.send(Command::DownFor(time)).await.map_err(|error| error.to_string())
}

fn number(object: &Object, key: &str) -> Result<Option<u64>, String> {
    match object.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(format!("{key} wants a whole number")),
    }
}

fn millis(object: &Object, key: &str) -> Result<Duration, String> {
    let ms = number(object, key)?.ok_or_else(|| format!("{key} is missing"))?;
    Ok(Duration::from_millis(ms))
}

fn text(object: &Object, key: &str) -> Option<String> {
    object.get(key).and_then(Json::as_text).map(str::to_owned)
}

/// Reads `{"action":…,"path":…,"model":…,"skip":0,"times":1, …}`; `times` 0 is for ever.
fn fault(value: &Json) -> Result<Fault, String> {
    let object = value.as_object().ok_or("a fault is an object")?;
    let times = match number(object, "times")? {
        None => 1,
        Some(0) => u64::MAX,
        Some(times) => times,
    };
    Ok(Fault {
        path: text(object, "path"),
        model: text(object, "model"),
        skip: number(object, "skip")?.unwrap_or(0),
        times,
        action: action(object)?,
    })
}

fn action(object: &Object) -> Result<Action, String> {
    let name = text(object, "action").ok_or("action is missing")?;
    let small = |key| -> Result<u32, String> {
        u32::try_from(number(object, key)?.unwrap_or(0)).map_err(|error| error.to_string())
    };
    let cut = if text(object, "how").as_deref() == Some("reset") { Cut::Reset } else { Cut::Fin };
    Ok(match name.as_str() {
        "stall" => Action::Stall(millis(object, "ms")?),
        "hang" => Action::HangBeforeHeaders,
        "cut_before_headers" => Action::CutBeforeHeaders(cut),
        "hang_after_chunks" => Action::HangAfterChunks(small("chunks")?),
        "end_without_done" => Action::EndWithoutDone(small("chunks")?),
        "error_after_chunks" => {
            Action::ErrorAfterChunks { chunks: small("chunks")?, text: text(object, "text") }
        }
        "kill_runner" => Action::KillRunner(small("chunks")?),
        "cut_after_bytes" => {
            Action::CutAfterBytes { bytes: number(object, "bytes")?.unwrap_or(0), cut }
        }
        "slow_load" => Action::SlowLoad(millis(object, "ms")?),
        "fail_load" => Action::FailLoad(text(object, "text").unwrap_or_default()),
        "answer" => Action::Answer {
            status: u16::try_from(number(object, "status")?.unwrap_or(500))
                .map_err(|error| error.to_string())?,
            text: text(object, "text").unwrap_or_default(),
            retry_after_seconds: Some(small("retry_after_seconds")?).filter(|wait| *wait > 0),
            stage: match text(object, "stage").as_deref() {
                Some("after_load") => Stage::AfterLoad,
                _ => Stage::BeforeLoad,
            },
        },
        other => return Err(format!("there is no action {other}")),
    })
}

fn counts(snapshot: &Snapshot) -> Object {
    let counts = &snapshot.counts;
    let by_model = counts
        .loads_by_model
        .iter()
        .fold(Object::new(), |object, (model, loads)| object.with(model, *loads));
    let resident: Vec<Json> =
        snapshot.resident.iter().map(|it| Json::from(it.model.as_str())).collect();
    let generating: Vec<Json> =
        snapshot.generating.iter().map(|model| Json::from(model.as_str())).collect();
    Object::new()
        .with("requests", counts.requests)
        .with("loads", counts.loads)
        .with("loads_by_model", by_model)
        .with("unloads", counts.unloads)
        .with("evictions", counts.evictions)
        .with("reloads", counts.reloads)
        .with("aborted_loads", counts.aborted_loads)
        .with("failed_loads", counts.failed_loads)
        .with("skipped_pending", counts.skipped_pending)
        .with("refused_busy", counts.refused_busy)
        .with("gpu_requests_max", counts.gpu_requests_max)
        .with("generations_max", counts.generations_max)
        .with("models_generating_max", counts.models_generating_max)
        .with("embeds_max", counts.embeds_max)
        .with("client_gone", counts.client_gone)
        .with("cut", counts.cut)
        .with("blob_bytes", counts.blob_bytes)
        .with("panics", counts.panics)
        .with("open_requests", snapshot.open_requests)
        .with("pending", snapshot.pending)
        .with_some("loading", snapshot.loading.clone())
        .with_some("evicting", snapshot.evicting.clone())
        .with("gpu_requests", snapshot.gpu_requests)
        .with("generating", generating)
        .with("embeds", snapshot.embeds)
        .with("resident", resident)
}

fn entry(entry: &LogEntry) -> Object {
    let headers = entry
        .headers
        .iter()
        .fold(Object::new(), |object, (name, value)| object.with(name, value.as_str()));
    let micros = |time: Duration| time.as_micros();
    Object::new()
        .with("sequence", entry.sequence)
        .with("method", entry.method.as_str())
        .with("path", entry.path.as_str())
        .with_some("query", entry.query.clone())
        .with("headers", headers)
        .with("body", String::from_utf8_lossy(&entry.body).into_owned())
        .with("body_bytes", entry.body_bytes)
        .with_some("model", entry.model.clone())
        .with("arrived_at_us", micros(entry.arrived_at))
        .with_some("first_byte_at_us", entry.first_byte_at.map(micros))
        .with_some("ended_at_us", entry.ended_at.map(micros))
        .with_some("end", entry.end.map(|end| format!("{end:?}")))
        .with_some("status", entry.status)
        .with("sent_bytes", entry.sent_bytes)
        .with("sent_chunks", entry.sent_chunks)
}
