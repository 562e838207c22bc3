//! Long transfers: pull, push and blobs. They never take the GPU.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use hyper::http::request::Parts;
use tokio::time::{sleep, timeout};

use super::library::model_or_name;
use super::reply::{NDJSON, Reply};
use super::{Call, Failure};
use crate::board::{Entry, count};
use crate::body::{Content, Flow};
use crate::config::Model;
use crate::json::Object;
use crate::names::Name;
use crate::world::World;

/// Go reads at most this much of an unwanted body before it closes the connection.
const UNREAD_BYTES_MAX: u64 = 256 * 1024;
/// How long the rest of an unwanted body is awaited.
const UNREAD_TIME: Duration = Duration::from_millis(500);
/// Progress lines of a pull, between the first and the last.
const PULL_STEPS: u64 = 4;
/// Digits of a digest shown in a progress line.
const DIGEST_SHOWN: usize = 12;

/// One step of a transfer.
pub(super) enum Step {
    /// A progress line.
    Line(Object),
    /// The model is there from here on; followed by `success`.
    Install(Box<Model>),
    /// The in-band error that ends the transfer.
    Fail(String),
}

impl Step {
    pub(super) fn status(text: String) -> Self {
        Self::Line(Object::new().with("status", text))
    }
}

/// Runs the steps, streamed or silently until the end.
pub(super) async fn progress(
    world: &Arc<World>,
    steps: Vec<Step>,
    streams: bool,
) -> Result<Reply, Failure> {
    let success = || Object::new().with("status", "success");
    let world = Arc::clone(world);
    let pause = world.config.progress_time;
    if !streams {
        for step in steps {
            sleep(pause).await;
            match step {
                Step::Line(_) => {}
                Step::Install(model) => install(&world, *model),
                Step::Fail(text) => return Err(Failure::new(500, text)),
            }
        }
        return Ok(Reply::native(success()));
    }
    let flow = Flow::new(move |chunks| async move {
        for step in steps {
            sleep(pause).await;
            match step {
                Step::Line(object) => chunks.send(object.line()).await,
                Step::Install(model) => {
                    install(&world, *model);
                    chunks.send(success().line()).await;
                }
                Step::Fail(text) => chunks.send(Object::new().with("error", text).line()).await,
            }
        }
    });
    Ok(Reply::new(200, NDJSON, Content::Flow(flow)))
}

fn install(world: &World, model: Model) {
    let now = world.clock.wall_ns();
    world.catalog().install(model, now);
}

fn transfer_lines(verb: &str, model: &Model) -> Vec<Step> {
    let digest = model.blob.replace('-', ":");
    let shown: String = digest.trim_start_matches("sha256:").chars().take(DIGEST_SHOWN).collect();
    (0..=PULL_STEPS)
        .map(|done| {
            let completed = model.size_bytes / PULL_STEPS * done;
            Step::Line(
                Object::new()
                    .with("status", format!("{verb} {shown}"))
                    .with("digest", digest.as_str())
                    .with("total", model.size_bytes)
                    .with_some("completed", (completed > 0).then_some(completed)),
            )
        })
        .collect()
}

/// Finds the model a transfer is about and whether it is to be streamed.
fn subject(call: &Call) -> Result<(String, Name, bool), Failure> {
    let fields = call.fields("api.PullRequest")?;
    let streams = fields.bool("stream").map_err(Failure::bad_request)?.unwrap_or(true);
    let raw = model_or_name(&fields)?;
    let name = Name::parse(raw).map_err(|_| Failure::bad_request("invalid model name"))?;
    Ok((raw.to_owned(), name, streams))
}

/// Answers `POST /api/pull`.
pub(super) async fn pull(call: &Call) -> Result<Reply, Failure> {
    let (_, name, streams) = subject(call)?;
    let installed = {
        let catalog = call.world.catalog();
        catalog.find(&name).map(|installed| Model::clone(&installed.model))
    };
    let offered = || {
        let is_it = |model: &&Model| {
            Name::parse(&model.name).is_ok_and(|candidate| candidate.key() == name.key())
        };
        call.world.config.pullable.iter().find(is_it).cloned()
    };
    let mut steps = vec![Step::status("pulling manifest".to_owned())];
    match installed.or_else(offered) {
        None => {
            steps.push(Step::Fail("pull model manifest: file does not exist".to_owned()));
        }
        Some(model) => {
            steps.extend(transfer_lines("pulling", &model));
            steps.push(Step::status("verifying sha256 digest".to_owned()));
            steps.push(Step::status("writing manifest".to_owned()));
            steps.push(Step::Install(Box::new(model)));
        }
    }
    progress(&call.world, steps, streams).await
}

/// Answers `POST /api/push`.
pub(super) async fn push(call: &Call) -> Result<Reply, Failure> {
    let (raw, name, streams) = subject(call)?;
    if raw.is_empty() {
        return Err(Failure::bad_request("model is required"));
    }
    let installed = {
        let catalog = call.world.catalog();
        catalog.find(&name).map(|installed| Model::clone(&installed.model))
    };
    let mut steps = vec![Step::status("retrieving manifest".to_owned())];
    match installed {
        None => steps.push(Step::Fail(format!("model '{raw}' not found"))),
        Some(model) => {
            steps.extend(transfer_lines("pushing", &model));
            steps.push(Step::status("pushing manifest".to_owned()));
            steps.push(Step::status("success".to_owned()));
        }
    }
    progress(&call.world, steps, streams).await
}

/// Checks `sha256:HEX` or `sha256-HEX` and returns the file name.
fn blob_name(digest: &str) -> Result<String, Failure> {
    const HEX_DIGITS: usize = 64;
    let invalid = || Failure::bad_request("invalid digest format");
    let rest = digest.strip_prefix("sha256").ok_or_else(invalid)?;
    let hex = rest.strip_prefix([':', '-']).ok_or_else(invalid)?;
    let is_hex = hex.len() == HEX_DIGITS && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex { Ok(format!("sha256-{hex}")) } else { Err(invalid()) }
}

/// Answers `HEAD /api/blobs/:digest`.
pub(super) fn blob_head(world: &World, digest: &str) -> Result<Reply, Failure> {
    let blob = blob_name(digest)?;
    Ok(Reply::empty(if world.catalog().has_blob(&blob) { 200 } else { 404 }))
}

/// Answers `POST /api/blobs/:digest`, counting the bytes without keeping them.
pub(super) async fn upload(
    world: &Arc<World>,
    entry: &Entry,
    parts: &Parts,
    mut incoming: Incoming,
    digest: &str,
) -> Result<Reply, Failure> {
    let blob = blob_name(digest)?;
    let is_known = world.catalog().has_blob(&blob);
    if is_known {
        return Ok(unread(parts, incoming));
    }
    let mut bytes = 0;
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|_| Failure::new(500, "unexpected EOF"))?;
        if let Some(data) = frame.data_ref() {
            bytes += count(data.len());
            entry.set(|entry| entry.body_bytes = bytes);
        }
    }
    world.catalog().add_blob(blob);
    world.board.change(|inner| inner.now.counts.blob_bytes += bytes);
    Ok(Reply::empty(201))
}

/// Answers before the body is read, as Go does: reads a little, then closes the connection.
fn unread(parts: &Parts, mut incoming: Incoming) -> Reply {
    let length = parts.headers.get(CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let is_small = length.is_some_and(|length| length <= UNREAD_BYTES_MAX);
    // Ends by itself after `UNREAD_TIME`, or when the connection does.
    drop(tokio::spawn(timeout(UNREAD_TIME, async move {
        let mut bytes = 0;
        while let Some(Ok(frame)) = incoming.frame().await {
            bytes += frame.data_ref().map_or(0, |data| count(data.len()));
            if bytes > UNREAD_BYTES_MAX {
                return;
            }
        }
    })));
    if is_small { Reply::empty(200) } else { Reply::empty(200).header("connection", "close") }
}
