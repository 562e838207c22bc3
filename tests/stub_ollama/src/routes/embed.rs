//! `/api/embed`, `/api/embeddings` and `/v1/embeddings`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::reply::Reply;
use super::resolve::{Wording, resolve};
use super::{Call, Failure};
use crate::fields::Fields;
use crate::generation::{self, Job};
use crate::json::{Json, Object};
use crate::vocabulary::{prompt_tokens, vector};
use crate::world::World;

/// Longest vector a request can ask for.
const DIMENSIONS_MAX: u32 = 16_384;

/// Reads a string or an array of strings.
fn inputs(fields: &Fields<'_>, key: &str) -> Result<Vec<String>, Failure> {
    let invalid = || Failure::bad_request("invalid input type");
    match fields.get(key) {
        None => Ok(Vec::new()),
        Some(Json::Text(text)) if text.is_empty() => Ok(Vec::new()),
        Some(Json::Text(text)) => Ok(vec![text.clone()]),
        Some(Json::Array(items)) => {
            items.iter().map(|item| item.as_text().map(str::to_owned).ok_or_else(invalid)).collect()
        }
        Some(_) => Err(invalid()),
    }
}

fn length(world: &World, fields: &Fields<'_>) -> Result<u32, Failure> {
    let asked = fields.int("dimensions").map_err(Failure::bad_request)?.unwrap_or(0);
    let asked = u32::try_from(asked).unwrap_or(0).min(DIMENSIONS_MAX);
    Ok(if asked == 0 { world.config.embedding_length } else { asked })
}

fn numbers(model: &str, input: &str, length: u32) -> Json {
    Json::Array(vector(model, input, length).into_iter().map(Json::Number).collect())
}

/// A vector as text: 32-bit floats, the low byte first. Some clients ask for it unless told otherwise.
fn packed(model: &str, input: &str, length: u32) -> Json {
    let bytes: Vec<u8> = vector(model, input, length)
        .iter()
        .flat_map(|digits| digits.parse::<f32>().unwrap_or_default().to_le_bytes())
        .collect();
    Json::from(STANDARD.encode(bytes))
}

fn total_tokens(inputs: &[String]) -> u32 {
    inputs.iter().map(|input| prompt_tokens(input)).fold(0, u32::saturating_add)
}

fn job(fields: &Fields<'_>, call: &Call, raw: &str) -> Result<Job, Failure> {
    let model = resolve(&call.world, raw, Wording::PullFirst)?;
    Ok(Job {
        options: fields.object("options").map_err(Failure::bad_request)?.cloned(),
        keep_alive_ns: fields.keep_alive().map_err(Failure::bad_request)?,
        ..Job::new(model, String::new(), call.plan.clone())
    })
}

/// Answers `POST /api/embed`. A crashed runner is a 400 here, as in Ollama.
pub(super) async fn embed(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields("api.EmbedRequest")?;
    let raw = fields.text("model").map_err(Failure::bad_request)?;
    fields.keep_alive().map_err(Failure::bad_request)?;
    if raw.is_empty() {
        return Err(Failure::new(404, "model '' not found"));
    }
    let job = job(&fields, &call, raw)?;
    let inputs = inputs(&fields, "input")?;
    let length = length(&call.world, &fields)?;
    let load_ns = generation::embed(&call.world, &job, !inputs.is_empty())
        .await
        .map_err(Failure::crash_as_bad_request)?;
    let vectors = inputs.iter().map(|input| numbers(&job.model.name, input, length)).collect();
    let object = Object::new().with("model", raw).with("embeddings", Json::Array(vectors));
    if inputs.is_empty() {
        return Ok(Reply::native(object));
    }
    Ok(Reply::native(
        object
            .with("total_duration", load_ns)
            .with("load_duration", load_ns)
            .with("prompt_eval_count", total_tokens(&inputs)),
    ))
}

/// Answers `POST /api/embeddings`.
pub(super) async fn embeddings(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields("api.EmbeddingRequest")?;
    let raw = fields.text("model").map_err(Failure::bad_request)?;
    let prompt = fields.text("prompt").map_err(Failure::bad_request)?;
    fields.keep_alive().map_err(Failure::bad_request)?;
    if raw.is_empty() {
        return Err(Failure::bad_request("model is required"));
    }
    let job = job(&fields, &call, raw)?;
    generation::embed(&call.world, &job, !prompt.is_empty()).await?;
    let vector = if prompt.is_empty() {
        Json::Array(Vec::new())
    } else {
        numbers(&job.model.name, prompt, call.world.config.embedding_length)
    };
    Ok(Reply::native(Object::new().with("embedding", vector)))
}

/// Answers `POST /v1/embeddings`; its requests carry neither options nor keep-alive.
pub(super) async fn v1(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields_v1("openai.EmbedRequest")?;
    let raw = fields.text("model").map_err(Failure::bad_request)?;
    let inputs = inputs(&fields, "input")?;
    if inputs.is_empty() {
        return Err(Failure::bad_request("invalid input"));
    }
    let model = if raw.is_empty() {
        return Err(Failure::new(404, "model '' not found"));
    } else {
        resolve(&call.world, raw, Wording::PullFirst)?
    };
    let length = length(&call.world, &fields)?;
    let format = fields.text("encoding_format").map_err(Failure::bad_request)?;
    let shape = if format.eq_ignore_ascii_case("base64") { packed } else { numbers };
    let job = Job::new(model, String::new(), call.plan.clone());
    generation::embed(&call.world, &job, true).await.map_err(Failure::crash_as_bad_request)?;
    let entry = |(index, input): (usize, &String)| {
        Object::new()
            .with("object", "embedding")
            .with("embedding", shape(&job.model.name, input, length))
            .with("index", index)
            .into()
    };
    let tokens = total_tokens(&inputs);
    let usage = Object::new().with("prompt_tokens", tokens).with("total_tokens", tokens);
    let object = Object::new()
        .with("object", "list")
        .with("data", Json::Array(inputs.iter().enumerate().map(entry).collect()))
        .with("model", raw)
        .with("usage", usage);
    Ok(Reply::compatible(object))
}
