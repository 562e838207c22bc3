//! `/v1/responses`, the newer OpenAI shape.

use std::sync::Arc;

use super::openai::text_of;
use super::reply::{EVENTS, Reply};
use super::resolve::{Wording, require, resolve};
use super::{Call, Failure};
use crate::config::Capability;
use crate::fields::Fields;
use crate::generation::{Job, Piece, Session, Summary, collect};
use crate::hash::Sequence;
use crate::json::{Json, Object};

/// Ids are numbers below this.
const IDS: u64 = 999_999;

/// The parts of an answer that do not change.
struct Frame {
    response_id: String,
    message_id: String,
    created: i64,
    model: String,
    instructions: Json,
    tokens_max: Option<u32>,
}

/// Answers `POST /v1/responses`.
pub(super) async fn responses(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields_v1("openai.ResponsesRequest")?;
    let streams = fields.bool("stream").map_err(Failure::bad_request)?.unwrap_or(false);
    let raw = fields.text("model").map_err(Failure::bad_request)?;
    if raw.is_empty() {
        return Err(Failure::bad_request("model is required"));
    }
    let limit = fields.int("max_output_tokens").map_err(Failure::bad_request)?;
    let limit = limit.and_then(|limit| u32::try_from(limit).ok());
    let model = resolve(&call.world, raw, Wording::Plain)?;
    require(&model, raw, Capability::Completion, "chat")?;
    let job = Job {
        tokens_max: limit,
        ..Job::new(Arc::clone(&model), input(&fields), call.plan.clone())
    };
    let mut ids = Sequence::new(&String::from_utf8_lossy(&call.body));
    let frame = Frame {
        response_id: format!("resp_{}", ids.below(IDS)),
        message_id: format!("msg_{}", ids.below(IDS)),
        created: call.world.clock.now_seconds(),
        model: raw.to_owned(),
        instructions: fields.get("instructions").cloned().unwrap_or(Json::Null),
        tokens_max: limit,
    };
    let session = Session::open(&call.world, job).await?;
    if streams {
        let events = Events { frame, text: String::new(), sequence: 0 };
        let reply = Reply::stream(EVENTS, session, events.render()).await?;
        return Ok(reply.header("cache-control", "no-cache").header("connection", "keep-alive"));
    }
    let answer = collect(session).await?;
    let output = vec![frame.message("completed", Some(&answer.text)).into()];
    Ok(Reply::compatible(frame.response("completed", output, answer.summary.as_ref())))
}

/// Reads the last message of `input`, a string or an array of items.
fn input(fields: &Fields<'_>) -> String {
    match fields.get("input") {
        Some(Json::Array(items)) => {
            text_of(items.last().and_then(Json::as_object).and_then(|item| item.get("content")))
        }
        other => text_of(other),
    }
}

impl Frame {
    fn part(text: &str) -> Object {
        Object::new()
            .with("type", "output_text")
            .with("text", text)
            .with("annotations", Vec::<Json>::new())
            .with("logprobs", Vec::<Json>::new())
    }

    fn message(&self, status: &str, text: Option<&str>) -> Object {
        let content: Vec<Json> = text.map(|text| Self::part(text).into()).into_iter().collect();
        Object::new()
            .with("id", self.message_id.as_str())
            .with("type", "message")
            .with("status", status)
            .with("role", "assistant")
            .with("content", content)
    }

    fn response(&self, status: &str, output: Vec<Json>, summary: Option<&Summary>) -> Object {
        let format = Object::new().with("type", "text");
        let completed = if summary.is_some() { self.created.into() } else { Json::Null };
        Object::new()
            .with("id", self.response_id.as_str())
            .with("object", "response")
            .with("created_at", self.created)
            .with("completed_at", completed)
            .with("status", status)
            .with("incomplete_details", Json::Null)
            .with("model", self.model.as_str())
            .with("previous_response_id", Json::Null)
            .with("instructions", self.instructions.clone())
            .with("output", output)
            .with("error", Json::Null)
            .with("tools", Vec::<Json>::new())
            .with("tool_choice", "auto")
            .with("truncation", "disabled")
            .with("parallel_tool_calls", true)
            .with("text", Object::new().with("format", format))
            .with("top_p", 1_u32)
            .with("presence_penalty", 0_u32)
            .with("frequency_penalty", 0_u32)
            .with("top_logprobs", 0_u32)
            .with("temperature", 1_u32)
            .with("reasoning", Json::Null)
            .with("usage", summary.map_or(Json::Null, |summary| usage(summary).into()))
            .with("max_output_tokens", self.tokens_max.map_or(Json::Null, Json::from))
            .with("max_tool_calls", Json::Null)
            .with("store", false)
            .with("background", false)
            .with("service_tier", "default")
            .with("metadata", Object::new())
            .with("safety_identifier", Json::Null)
            .with("prompt_cache_key", Json::Null)
    }
}

fn usage(summary: &Summary) -> Object {
    let total = summary.prompt_tokens.saturating_add(summary.answer_tokens);
    Object::new()
        .with("input_tokens", summary.prompt_tokens)
        .with("output_tokens", summary.answer_tokens)
        .with("total_tokens", total)
        .with("input_tokens_details", Object::new().with("cached_tokens", 0_u32))
        .with("output_tokens_details", Object::new().with("reasoning_tokens", 0_u32))
}

/// Renders the event stream.
struct Events {
    frame: Frame,
    text: String,
    sequence: u64,
}

impl Events {
    fn render(mut self) -> impl FnMut(&Piece) -> String + Send + 'static {
        move |piece| {
            let mut out = if self.sequence == 0 { self.start() } else { String::new() };
            match piece {
                Piece::Text(text) => {
                    self.text.push_str(text);
                    let body = self.placed().with("delta", text.as_str());
                    out += &self.event("response.output_text.delta", body);
                }
                Piece::Done(summary) => out += &self.end(summary),
                // An error is not shown: the stream simply ends, as in Ollama.
                Piece::Thinking(_) | Piece::ToolCall(_) | Piece::Failed(_) | Piece::Ended => {}
            }
            out
        }
    }

    fn event(&mut self, name: &str, body: Object) -> String {
        let mut object = Object::new().with("type", name).with("sequence_number", self.sequence);
        for (key, value) in body.fields() {
            object = object.with(key, value.clone());
        }
        self.sequence += 1;
        format!("event: {name}\ndata: {}\n\n", object.encode())
    }

    /// Says which part of which item an event is about.
    fn placed(&self) -> Object {
        Object::new()
            .with("item_id", self.frame.message_id.as_str())
            .with("output_index", 0_u32)
            .with("content_index", 0_u32)
    }

    fn start(&mut self) -> String {
        let response =
            || Object::new().with("response", self.frame.response("in_progress", Vec::new(), None));
        let (created, in_progress) = (response(), response());
        let item = Object::new()
            .with("output_index", 0_u32)
            .with("item", self.frame.message("in_progress", None));
        let part = self.placed().with("part", Frame::part(""));
        self.event("response.created", created)
            + &self.event("response.in_progress", in_progress)
            + &self.event("response.output_item.added", item)
            + &self.event("response.content_part.added", part)
    }

    fn end(&mut self, summary: &Summary) -> String {
        let text = std::mem::take(&mut self.text);
        let done = self.placed().with("text", text.as_str());
        let part = self.placed().with("part", Frame::part(&text));
        let message = self.frame.message("completed", Some(&text));
        let item = Object::new().with("output_index", 0_u32).with("item", message.clone());
        let response = self.frame.response("completed", vec![message.into()], Some(summary));
        self.event("response.output_text.done", done)
            + &self.event("response.content_part.done", part)
            + &self.event("response.output_item.done", item)
            + &self.event("response.completed", Object::new().with("response", response))
    }
}
