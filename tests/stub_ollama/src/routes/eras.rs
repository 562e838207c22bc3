//! Routes that only some versions have: image generation, and what a later Ollama might have.

use std::sync::Arc;

use super::reply::Reply;
use super::resolve::{Wording, resolve};
use super::{Call, Failure};
use crate::body::{Content, Flow};
use crate::fields::Fields;
use crate::generation::{Job, Piece, Session, collect};
use crate::hash::hex64;
use crate::json::{Json, Object};

async fn session(call: &Call, fields: &Fields<'_>) -> Result<Session, Failure> {
    let raw = fields.text("model").map_err(Failure::bad_request)?;
    let prompt = fields.text("prompt").map_err(Failure::bad_request)?.to_owned();
    if prompt.is_empty() {
        return Err(Failure::bad_request("prompt is required"));
    }
    if raw.is_empty() {
        return Err(Failure::bad_request("model is required"));
    }
    let model = resolve(&call.world, raw, Wording::Plain)?;
    Session::open(&call.world, Job::new(Arc::clone(&model), prompt, call.plan.clone())).await
}

/// Answers `POST /v1/images/generations` and `/v1/images/edits`: one object, and nothing at all when it failed midway.
pub(super) async fn images(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields_v1("openai.ImageGenerationRequest")?;
    let answer = collect(session(&call, &fields).await?).await?;
    if answer.summary.is_none() {
        return Ok(Reply::new(200, "application/json", Content::empty()));
    }
    let image = Object::new().with("b64_json", hex64(&answer.text));
    let object = Object::new()
        .with("created", call.world.clock.now_seconds())
        .with("data", vec![Json::from(image)]);
    Ok(Reply::compatible(object))
}

/// Answers `POST /api/imagine`, which no Ollama has: bytes of no known shape, as they are made, without an end mark.
pub(super) async fn imagine(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields("api.ImagineRequest")?;
    let mut session = session(&call, &fields).await?;
    if fields.bool("stream").map_err(Failure::bad_request)? == Some(false) {
        let answer = collect(session).await?;
        return Ok(Reply::native(Object::new().with("image", hex64(&answer.text))));
    }
    let mut piece = session.next().await;
    if let Piece::Failed(text) = piece {
        return Err(Failure::new(500, text));
    }
    let flow = Flow::new(move |chunks| async move {
        while let Piece::Text(text) = piece {
            chunks.send(format!("{text}\r\n\0")).await;
            piece = session.next().await;
        }
    });
    Ok(Reply::new(200, "image/x-strip", Content::Flow(flow)))
}
