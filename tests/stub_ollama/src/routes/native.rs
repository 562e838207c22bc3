//! `/api/chat` and `/api/generate`.

use std::sync::Arc;

use super::logprobs;
use super::reply::{NDJSON, Reply};
use super::resolve::{Wording, require, resolve};
use super::{Call, Failure};
use crate::clock::Clock;
use crate::config::{Capability, Model};
use crate::fields::Fields;
use crate::generation::{Collected, Job, Piece, Session, Summary, ToolCall, collect, schedule};
use crate::json::{Json, Object};
use crate::vocabulary::context;

/// The parts chat and generate share.
struct Asked<'a> {
    raw: &'a str,
    streams: bool,
    thinks: Option<bool>,
    format: Option<Json>,
    /// Alternatives of each token whose probabilities are wanted.
    logprobs: Option<i64>,
}

fn asked<'a>(fields: &Fields<'a>) -> Result<Asked<'a>, String> {
    // An empty `format` string counts as absent, as in Ollama.
    let format = fields.get("format").filter(|value| value.as_text() != Some("")).cloned();
    Ok(Asked {
        raw: fields.text("model")?,
        streams: fields.bool("stream")?.unwrap_or(true),
        thinks: think(fields)?,
        format,
        logprobs: logprobs::asked(fields)?,
    })
}

fn think(fields: &Fields<'_>) -> Result<Option<bool>, String> {
    match fields.get("think") {
        None => Ok(None),
        Some(Json::Bool(thinks)) => Ok(Some(*thinks)),
        Some(Json::Text(level)) if ["high", "medium", "low", "max"].contains(&level.as_str()) => {
            Ok(Some(true))
        }
        Some(other) => Err(format!(
            "invalid think value: {} (must be \"high\", \"medium\", \"low\", \"max\", true, or false)",
            other.encode()
        )),
    }
}

/// Absent means yes for a model that can.
fn thinks(asked: &Asked<'_>, model: &Model) -> Result<bool, Failure> {
    if asked.thinks == Some(true) {
        require(model, asked.raw, Capability::Thinking, "thinking")?;
    }
    Ok(asked.thinks.unwrap_or(true) && model.can(Capability::Thinking))
}

fn job(fields: &Fields<'_>, call: &Call, model: Arc<Model>, prompt: String) -> Result<Job, String> {
    Ok(Job {
        options: fields.object("options")?.cloned(),
        shift: fields.bool("shift")?,
        keep_alive_ns: fields.keep_alive()?,
        ..Job::new(model, prompt, call.plan.clone())
    })
}

/// What makes the lines of one answer.
struct Lines {
    clock: Arc<Clock>,
    model: String,
    remote: Option<Arc<Model>>,
}

impl Lines {
    fn new(call: &Call, raw: &str, model: &Arc<Model>) -> Self {
        Self {
            clock: Arc::clone(&call.world.clock),
            model: raw.to_owned(),
            remote: model.remote_host.is_some().then(|| Arc::clone(model)),
        }
    }

    fn start(&self) -> Object {
        let object = Object::new().with("model", self.model.as_str());
        let object = match &self.remote {
            Some(remote) => object
                .with("remote_model", remote.name.as_str())
                .with_some("remote_host", remote.remote_host.clone()),
            None => object,
        };
        object.with("created_at", self.clock.now_text())
    }

    fn chat(&self, text: &str, thinking: Option<&str>, call: Option<&ToolCall>) -> Object {
        let message = Object::new()
            .with("role", "assistant")
            .with("content", text)
            .with_some("thinking", thinking)
            .with_some("tool_calls", call.map(tool_calls));
        self.start().with("message", message)
    }

    fn generate(&self, text: &str, thinking: Option<&str>) -> Object {
        self.start().with("response", text).with_some("thinking", thinking)
    }
}

fn tool_calls(call: &ToolCall) -> Json {
    let function = Object::new()
        .with("index", 0_u32)
        .with("name", call.name.as_str())
        .with("arguments", call.arguments.clone());
    let entry = Object::new().with("id", call.id.as_str()).with("function", function);
    Json::Array(vec![entry.into()])
}

/// Adds the final record's fields; zeros are absent, as with Go's `omitempty`.
fn finish(object: Object, summary: Option<&Summary>, context: Option<Json>) -> Object {
    let Some(summary) = summary else { return object.with("done", false) };
    let some = |value: u64| (value > 0).then_some(value);
    object
        .with("done", true)
        .with("done_reason", summary.reason)
        .with_some("context", context)
        .with_some("total_duration", some(summary.total_ns))
        .with_some("load_duration", some(summary.load_ns))
        .with_some("prompt_eval_count", some(summary.prompt_tokens.into()))
        .with_some("prompt_eval_duration", some(summary.prompt_ns))
        .with_some("eval_count", some(summary.answer_tokens.into()))
        .with_some("eval_duration", some(summary.answer_ns))
}

fn error_line(text: &str) -> String {
    Object::new().with("error", text).line()
}

/// The one object an empty request gets, streaming or not.
fn loaded(object: Object, reason: &str) -> Reply {
    Reply::native(object.with("done", true).with("done_reason", reason))
}

/// Answers `POST /api/chat`.
pub(super) async fn chat(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields("api.ChatRequest")?;
    let asked = asked(&fields).map_err(Failure::bad_request)?;
    let messages = messages(&fields).map_err(Failure::bad_request)?;
    let tools = fields.array("tools", "api.Tools").map_err(Failure::bad_request)?;
    // Types are checked before the model is looked for, as decoding comes first.
    let keep_alive = fields.keep_alive().map_err(Failure::bad_request)?;
    if asked.raw.is_empty() {
        return Err(Failure::bad_request("model is required"));
    }
    let model = resolve(&call.world, asked.raw, Wording::Plain)?;
    let prompt = messages.last().cloned().unwrap_or_default();
    let mut job = job(&fields, &call, Arc::clone(&model), prompt).map_err(Failure::bad_request)?;
    let lines = Lines::new(&call, asked.raw, &model);
    if messages.is_empty() && keep_alive == Some(0) {
        call.world.scheduler.expire_blob(&model.blob);
        return Ok(loaded(lines.chat("", None, None), "unload"));
    }
    require(&model, asked.raw, Capability::Completion, "chat")?;
    if !tools.is_empty() {
        require(&model, asked.raw, Capability::Tools, "tools")?;
    }
    job.thinks = thinks(&asked, &model)?;
    job.tool = tool_name(tools, &job.prompt);
    job.format = asked.format;
    if messages.is_empty() {
        schedule(&call.world, &job).await?;
        return Ok(loaded(lines.chat("", None, None), "load"));
    }
    let wanted = asked.logprobs;
    let session = Session::open(&call.world, job).await?;
    if !asked.streams {
        let answer = collect(session).await?;
        return Ok(Reply::native(whole_chat(&lines, &answer)));
    }
    Reply::stream(NDJSON, session, move |piece| match piece {
        Piece::Text(text) => lines
            .chat(text, None, None)
            .with("done", false)
            .with_some("logprobs", logprobs::of(text, wanted))
            .line(),
        Piece::Thinking(text) => lines.chat("", Some(text), None).with("done", false).line(),
        Piece::ToolCall(call) => lines.chat("", None, Some(call)).with("done", false).line(),
        Piece::Done(summary) => finish(lines.chat("", None, None), Some(summary), None).line(),
        Piece::Failed(text) => error_line(text),
        Piece::Ended => String::new(),
    })
    .await
}

fn whole_chat(lines: &Lines, answer: &Collected) -> Object {
    let object = lines.chat(&answer.text, answer.thinking.as_deref(), answer.tool_call.as_ref());
    finish(object, answer.summary.as_ref(), None)
}

/// Reads the contents of the messages.
fn messages(fields: &Fields<'_>) -> Result<Vec<String>, String> {
    let mut contents = Vec::new();
    for message in fields.structs("messages", "api.Message")? {
        message.text("role")?;
        contents.push(message.text("content")?.to_owned());
    }
    Ok(contents)
}

/// Chooses the first function if the prompt speaks of tools.
pub(super) fn tool_name(tools: &[Json], prompt: &str) -> Option<String> {
    if !prompt.to_lowercase().contains("tool") {
        return None;
    }
    let tool = tools.first()?.as_object()?;
    // Native and chat tools nest the name, Responses and Messages tools do not.
    let function = tool.get("function").and_then(Json::as_object).unwrap_or(tool);
    function.get("name").and_then(Json::as_text).map(str::to_owned)
}

/// Answers `POST /api/generate`.
pub(super) async fn generate(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields("api.GenerateRequest")?;
    let asked = asked(&fields).map_err(Failure::bad_request)?;
    let prompt = fields.text("prompt").map_err(Failure::bad_request)?.to_owned();
    let is_raw = fields.bool("raw").map_err(Failure::bad_request)?.unwrap_or(false);
    let keep_alive = fields.keep_alive().map_err(Failure::bad_request)?;
    let model = resolve(&call.world, asked.raw, Wording::Plain)?;
    let mut job =
        job(&fields, &call, Arc::clone(&model), prompt.clone()).map_err(Failure::bad_request)?;
    let lines = Lines::new(&call, asked.raw, &model);
    if prompt.is_empty() && keep_alive == Some(0) {
        call.world.scheduler.expire_blob(&model.blob);
        return Ok(loaded(lines.generate("", None), "unload"));
    }
    require(&model, asked.raw, Capability::Completion, "generate")?;
    if !fields.text("suffix").map_err(Failure::bad_request)?.is_empty() {
        require(&model, asked.raw, Capability::Insert, "insert")?;
    }
    job.thinks = thinks(&asked, &model)?;
    job.format = asked.format;
    if prompt.is_empty() {
        schedule(&call.world, &job).await?;
        return Ok(loaded(lines.generate("", None), "load"));
    }
    let tokens = move |summary: &Summary| {
        let numbers = context(&prompt, summary.answer_tokens);
        (!is_raw).then(|| Json::Array(numbers.into_iter().map(Json::from).collect()))
    };
    let wanted = asked.logprobs;
    let session = Session::open(&call.world, job).await?;
    if !asked.streams {
        let answer = collect(session).await?;
        let object = lines.generate(&answer.text, answer.thinking.as_deref());
        let context = answer.summary.as_ref().and_then(tokens);
        return Ok(Reply::native(finish(object, answer.summary.as_ref(), context)));
    }
    Reply::stream(NDJSON, session, move |piece| match piece {
        Piece::Text(text) => lines
            .generate(text, None)
            .with("done", false)
            .with_some("logprobs", logprobs::of(text, wanted))
            .line(),
        Piece::Thinking(text) => lines.generate("", Some(text)).with("done", false).line(),
        // Generate takes no tools.
        Piece::ToolCall(_) | Piece::Ended => String::new(),
        Piece::Done(summary) => {
            finish(lines.generate("", None), Some(summary), tokens(summary)).line()
        }
        Piece::Failed(text) => error_line(text),
    })
    .await
}
