//! `/v1/chat/completions` and `/v1/completions`.

use std::sync::Arc;

use super::logprobs;
use super::native::tool_name;
use super::reply::{EVENTS, Reply};
use super::resolve::{Wording, require, resolve};
use super::{Call, Failure};
use crate::config::Capability;
use crate::fields::Fields;
use crate::generation::{Job, Piece, Session, Summary, ToolCall, collect, schedule};
use crate::hash::Sequence;
use crate::json::{Json, Object};

/// Ids are small numbers, as Ollama's are.
const IDS: u64 = 999;

/// Reads text that is a string or an array of parts with `text`.
pub(super) fn text_of(content: Option<&Json>) -> String {
    match content {
        Some(Json::Text(text)) => text.clone(),
        Some(Json::Array(parts)) => parts
            .iter()
            .filter_map(|part| part.as_object()?.get("text")?.as_text())
            .collect::<Vec<_>>()
            .join(""),
        _ => String::new(),
    }
}

fn limit(fields: &Fields<'_>, key: &str) -> Result<Option<u32>, Failure> {
    let limit = fields.int(key).map_err(Failure::bad_request)?;
    Ok(limit.and_then(|limit| u32::try_from(limit).ok()))
}

/// The parts of an answer that do not change.
struct Frame {
    id: String,
    object: &'static str,
    created: i64,
    model: String,
    has_usage: bool,
}

impl Frame {
    fn new(call: &Call, fields: &Fields<'_>, prefix: &str, object: &'static str) -> Self {
        // Equal requests get equal ids, so that answers can be compared byte by byte.
        let body = String::from_utf8_lossy(&call.body);
        let usage = fields.get("stream_options").and_then(Json::as_object);
        Self {
            id: format!("{prefix}-{}", Sequence::new(&body).below(IDS)),
            object,
            created: call.world.clock.now_seconds(),
            model: fields.text("model").unwrap_or_default().to_owned(),
            has_usage: usage.and_then(|usage| usage.get("include_usage"))
                == Some(&Json::Bool(true)),
        }
    }

    fn start(&self, model: &str) -> Object {
        Object::new()
            .with("id", self.id.as_str())
            .with("object", self.object)
            .with("created", self.created)
            .with("model", model)
            .with("system_fingerprint", "fp_ollama")
    }

    fn chunk(&self, model: &str, delta: Object, reason: Option<&str>) -> String {
        self.likely_chunk(model, delta, reason, None)
    }

    fn likely_chunk(
        &self,
        model: &str,
        delta: Object,
        reason: Option<&str>,
        logprobs: Option<Json>,
    ) -> String {
        let choice = Object::new()
            .with("index", 0_u32)
            .with("delta", delta)
            .with("finish_reason", reason.map_or(Json::Null, Json::from))
            .with_some("logprobs", logprobs.map(|list| Object::new().with("content", list)));
        data(self.start(model).with("choices", vec![choice.into()]))
    }

    fn text_chunk(&self, model: &str, text: &str, reason: Option<&str>) -> String {
        let choice = Object::new()
            .with("text", text)
            .with("index", 0_u32)
            .with("finish_reason", reason.map_or(Json::Null, Json::from));
        let object = Object::new()
            .with("id", self.id.as_str())
            .with("object", self.object)
            .with("created", self.created)
            .with("choices", vec![choice.into()])
            .with("model", model)
            .with("system_fingerprint", "fp_ollama");
        data(object)
    }

    /// Writes the optional usage event and the end marker.
    fn tail(&self, summary: &Summary) -> String {
        let mut tail = String::new();
        if self.has_usage {
            let object = self
                .start(&self.model)
                .with("choices", Vec::<Json>::new())
                .with("usage", usage(Some(summary)));
            tail.push_str(&data(object));
        }
        tail.push_str("data: [DONE]\n\n");
        tail
    }
}

fn data(object: Object) -> String {
    format!("data: {}\n\n", object.encode())
}

fn usage(summary: Option<&Summary>) -> Object {
    let (prompt, answer) =
        summary.map_or((0, 0), |summary| (summary.prompt_tokens, summary.answer_tokens));
    Object::new()
        .with("prompt_tokens", prompt)
        .with("completion_tokens", answer)
        .with("total_tokens", prompt.saturating_add(answer))
}

fn tool_calls(call: &ToolCall) -> Json {
    let function = Object::new()
        .with("name", call.name.as_str())
        .with("arguments", call.arguments.clone().encode());
    let entry = Object::new()
        .with("id", call.id.as_str())
        .with("index", 0_u32)
        .with("type", "function")
        .with("function", function);
    Json::Array(vec![entry.into()])
}

/// Answers `POST /v1/chat/completions`.
pub(super) async fn chat(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields_v1("openai.ChatCompletionRequest")?;
    let streams = fields.bool("stream").map_err(Failure::bad_request)?.unwrap_or(false);
    let messages = fields.array("messages", "[]openai.Message").map_err(Failure::bad_request)?;
    let Some(last) = messages.last() else {
        return Err(Failure::bad_request("[] is too short - 'messages'"));
    };
    let raw = fields.text("model").map_err(Failure::bad_request)?;
    if raw.is_empty() {
        return Err(Failure::bad_request("model is required"));
    }
    let model = resolve(&call.world, raw, Wording::Plain)?;
    require(&model, raw, Capability::Completion, "chat")?;
    let tools = fields.array("tools", "[]api.Tool").map_err(Failure::bad_request)?;
    if !tools.is_empty() {
        require(&model, raw, Capability::Tools, "tools")?;
    }
    let prompt = text_of(last.as_object().and_then(|message| message.get("content")));
    let limit = match limit(&fields, "max_tokens")? {
        Some(limit) => Some(limit),
        None => limit_of_completion(&fields)?,
    };
    let json = fields.object("response_format").map_err(Failure::bad_request)?;
    let is_json = json.and_then(|format| format.get("type")).and_then(Json::as_text);
    let job = Job {
        tokens_max: limit,
        seed: fields.int("seed").map_err(Failure::bad_request)?,
        thinks: model.can(Capability::Thinking),
        tool: tool_name(tools, &prompt),
        format: is_json.filter(|kind| kind.starts_with("json")).map(|_| Json::from("json")),
        ..Job::new(Arc::clone(&model), prompt, call.plan.clone())
    };
    let wanted = logprobs::asked(&fields).map_err(Failure::bad_request)?;
    let has_tool = job.tool.is_some();
    let object = if streams { "chat.completion.chunk" } else { "chat.completion" };
    let frame = Frame::new(&call, &fields, "chatcmpl", object);
    let session = Session::open(&call.world, job).await?;
    if streams {
        return Reply::stream(EVENTS, session, chat_events(frame, has_tool, wanted)).await;
    }
    whole_chat(&frame, session).await
}

fn limit_of_completion(fields: &Fields<'_>) -> Result<Option<u32>, Failure> {
    limit(fields, "max_completion_tokens")
}

async fn whole_chat(frame: &Frame, session: Session) -> Result<Reply, Failure> {
    let answer = collect(session).await?;
    let reason = match (&answer.tool_call, &answer.summary) {
        (Some(_), _) => Json::from("tool_calls"),
        (None, Some(summary)) => Json::from(summary.reason),
        (None, None) => Json::Null,
    };
    let message = Object::new()
        .with("role", "assistant")
        .with("content", answer.text)
        .with_some("reasoning", answer.thinking)
        .with_some("tool_calls", answer.tool_call.as_ref().map(tool_calls));
    let choice =
        Object::new().with("index", 0_u32).with("message", message).with("finish_reason", reason);
    let object = frame
        .start(&frame.model)
        .with("choices", vec![choice.into()])
        .with("usage", usage(answer.summary.as_ref()));
    Ok(Reply::compatible(object))
}

/// Renders chat events; only the first delta carries the role.
fn chat_events(
    frame: Frame,
    has_tool: bool,
    wanted: Option<i64>,
) -> impl FnMut(&Piece) -> String + Send + 'static {
    let mut is_first = true;
    move |piece| {
        let mut delta = Object::new();
        if std::mem::take(&mut is_first) {
            delta = delta.with("role", "assistant");
        }
        match piece {
            Piece::Text(text) => {
                let delta = delta.with("content", text.as_str());
                frame.likely_chunk(&frame.model, delta, None, logprobs::of(text, wanted))
            }
            Piece::Thinking(text) => {
                let delta = delta.with("content", "").with("reasoning", text.as_str());
                frame.chunk(&frame.model, delta, None)
            }
            Piece::ToolCall(call) => {
                let delta = delta.with("content", "").with("tool_calls", tool_calls(call));
                frame.chunk(&frame.model, delta, None)
            }
            Piece::Done(summary) => {
                let reason = if has_tool { "tool_calls" } else { summary.reason };
                let last = frame.chunk(&frame.model, Object::new(), Some(reason));
                last + &frame.tail(summary)
            }
            // The error text is lost here, as in Ollama: an empty chunk and a clean end.
            Piece::Failed(_) => frame.chunk("", Object::new().with("content", ""), None),
            Piece::Ended => String::new(),
        }
    }
}

/// Answers `POST /v1/completions`; an empty prompt only loads.
pub(super) async fn completions(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields_v1("openai.CompletionRequest")?;
    let streams = fields.bool("stream").map_err(Failure::bad_request)?.unwrap_or(false);
    let raw = fields.text("model").map_err(Failure::bad_request)?;
    let prompt = fields.text("prompt").map_err(Failure::bad_request)?.to_owned();
    let model = resolve(&call.world, raw, Wording::Plain)?;
    require(&model, raw, Capability::Completion, "generate")?;
    let is_load = prompt.is_empty();
    let job = Job {
        tokens_max: limit(&fields, "max_tokens")?,
        seed: fields.int("seed").map_err(Failure::bad_request)?,
        ..Job::new(model, prompt, call.plan.clone())
    };
    let frame = Frame::new(&call, &fields, "cmpl", "text_completion");
    if is_load {
        schedule(&call.world, &job).await?;
        return Ok(whole_text(&frame, "", Json::from("load"), None));
    }
    let session = Session::open(&call.world, job).await?;
    if !streams {
        let answer = collect(session).await?;
        let reason = answer.summary.as_ref().map_or(Json::Null, |end| Json::from(end.reason));
        return Ok(whole_text(&frame, &answer.text, reason, answer.summary.as_ref()));
    }
    Reply::stream(EVENTS, session, move |piece| match piece {
        Piece::Text(text) => frame.text_chunk(&frame.model, text, None),
        Piece::Done(summary) => {
            frame.text_chunk(&frame.model, "", Some(summary.reason)) + &frame.tail(summary)
        }
        Piece::Failed(_) => frame.text_chunk("", "", None),
        Piece::Thinking(_) | Piece::ToolCall(_) | Piece::Ended => String::new(),
    })
    .await
}

fn whole_text(frame: &Frame, text: &str, reason: Json, summary: Option<&Summary>) -> Reply {
    let choice =
        Object::new().with("text", text).with("index", 0_u32).with("finish_reason", reason);
    let object = frame
        .start(&frame.model)
        .with("choices", vec![choice.into()])
        .with("usage", usage(summary));
    Reply::compatible(object)
}
