//! `/v1/responses`, the newer OpenAI shape.

use std::sync::Arc;

use super::native::tool_name;
use super::openai::text_of;
use super::reply::{EVENTS, Reply};
use super::resolve::{Wording, require, resolve};
use super::{Call, Failure, search};
use crate::config::Capability;
use crate::fields::Fields;
use crate::generation::{Collected, Job, Piece, Session, Summary, ToolCall, collect};
use crate::hash::Sequence;
use crate::json::{Json, Object};

/// Ids are numbers below this.
const IDS: u64 = 999_999;

/// The parts of an answer that do not change.
struct Frame {
    response_id: String,
    message_id: String,
    reasoning_id: String,
    call_id: String,
    created: i64,
    model: String,
    instructions: Json,
    tools: Vec<Json>,
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
    let tools = fields.array("tools", "[]openai.ResponsesTool").map_err(Failure::bad_request)?;
    let prompt = input(&fields);
    let searches = search::is_wanted(tools, &prompt);
    let job = Job {
        tokens_max: limit,
        thinks: model.can(Capability::Thinking),
        tool: tool_name(tools, &prompt).filter(|_| !searches),
        ..Job::new(Arc::clone(&model), prompt.clone(), call.plan.clone())
    };
    let mut ids = Sequence::new(&String::from_utf8_lossy(&call.body));
    let frame = Frame {
        response_id: format!("resp_{}", ids.below(IDS)),
        message_id: format!("msg_{}", ids.below(IDS)),
        reasoning_id: format!("rs_{}", ids.below(IDS)),
        call_id: format!("fc_{}_0", ids.below(IDS)),
        created: call.world.clock.now_seconds(),
        model: raw.to_owned(),
        instructions: fields.get("instructions").cloned().unwrap_or(Json::Null),
        tools: tools.to_vec(),
        tokens_max: limit,
    };
    let session = Session::open(&call.world, job).await?;
    if searches {
        let mut answer = collect(session).await?;
        answer.text = search::answer(&call, raw, &prompt).await?;
        if !streams {
            return Ok(frame.whole(&answer));
        }
        let events = Events::new(frame);
        return Ok(flowing(Reply::pieces(EVENTS, answer.into_pieces(), events.render())));
    }
    if streams {
        let events = Events::new(frame);
        return Ok(flowing(Reply::stream(EVENTS, session, events.render()).await?));
    }
    Ok(frame.whole(&collect(session).await?))
}

fn flowing(reply: Reply) -> Reply {
    reply.header("cache-control", "no-cache").header("connection", "keep-alive")
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
    fn whole(&self, answer: &Collected) -> Reply {
        let mut output: Vec<Json> = Vec::new();
        output.extend(answer.thinking.as_deref().map(|text| self.reasoning(text).into()));
        match &answer.tool_call {
            Some(call) => output.push(self.function_call("completed", call, None).into()),
            None => output.push(self.message("completed", Some(&answer.text)).into()),
        }
        Reply::compatible(self.response("completed", output, answer.summary.as_ref()))
    }

    fn reasoning(&self, text: &str) -> Object {
        let summary = Object::new().with("type", "summary_text").with("text", text);
        Object::new()
            .with("id", self.reasoning_id.as_str())
            .with("type", "reasoning")
            .with("summary", vec![Json::from(summary)])
            .with("encrypted_content", text)
    }

    fn function_call(&self, status: &str, call: &ToolCall, arguments: Option<&str>) -> Object {
        let encoded = call.arguments.clone().encode();
        Object::new()
            .with("id", self.call_id.as_str())
            .with("type", "function_call")
            .with("status", status)
            .with("call_id", call.id.as_str())
            .with("name", call.name.as_str())
            .with("arguments", arguments.unwrap_or(&encoded))
    }

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
            .with("tools", self.tools.clone())
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
    thinking: String,
    text: String,
    has_text: bool,
    /// Items that are whole.
    items: Vec<Json>,
    index: u32,
    sequence: u64,
}

impl Events {
    fn new(frame: Frame) -> Self {
        let (thinking, text) = (String::new(), String::new());
        Self { frame, thinking, text, has_text: false, items: Vec::new(), index: 0, sequence: 0 }
    }

    fn render(mut self) -> impl FnMut(&Piece) -> String + Send + 'static {
        move |piece| {
            let start = if self.sequence == 0 { self.start() } else { String::new() };
            start
                + &match piece {
                    Piece::Thinking(text) => self.think(text),
                    Piece::Text(text) => self.say(text),
                    Piece::ToolCall(call) => self.call(call),
                    Piece::Done(summary) => self.end(summary),
                    // An error is not shown: the stream simply ends, as in Ollama.
                    Piece::Failed(_) | Piece::Ended => String::new(),
                }
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

    fn of_item(&self, id: &str) -> Object {
        Object::new().with("item_id", id).with("output_index", self.index)
    }

    /// Says which part of the message an event is about.
    fn placed(&self) -> Object {
        self.of_item(&self.frame.message_id).with("content_index", 0_u32)
    }

    fn item(&mut self, name: &str, item: Object) -> String {
        let object = Object::new().with("output_index", self.index).with("item", item);
        self.event(name, object)
    }

    fn start(&mut self) -> String {
        let response =
            || Object::new().with("response", self.frame.response("in_progress", Vec::new(), None));
        let (created, in_progress) = (response(), response());
        self.event("response.created", created) + &self.event("response.in_progress", in_progress)
    }

    fn think(&mut self, text: &str) -> String {
        let mut out = String::new();
        if self.thinking.is_empty() {
            let item = Object::new()
                .with("id", self.frame.reasoning_id.as_str())
                .with("type", "reasoning")
                .with("summary", Vec::<Json>::new());
            out += &self.item("response.output_item.added", item);
        }
        self.thinking.push_str(text);
        let delta = self.of_item(&self.frame.reasoning_id).with("summary_index", 0_u32);
        out + &self.event("response.reasoning_summary_text.delta", delta.with("delta", text))
    }

    fn thought(&mut self) -> String {
        if self.thinking.is_empty() {
            return String::new();
        }
        let text = std::mem::take(&mut self.thinking);
        let done = self.of_item(&self.frame.reasoning_id).with("summary_index", 0_u32);
        let item = self.frame.reasoning(&text);
        self.items.push(item.clone().into());
        let out = self.event("response.reasoning_summary_text.done", done.with("text", text))
            + &self.item("response.output_item.done", item);
        self.index += 1;
        out
    }

    fn say(&mut self, text: &str) -> String {
        let mut out = self.thought();
        if !std::mem::replace(&mut self.has_text, true) {
            let message = self.frame.message("in_progress", None);
            out += &self.item("response.output_item.added", message);
            let part = self.placed().with("part", Frame::part(""));
            out += &self.event("response.content_part.added", part);
        }
        self.text.push_str(text);
        let body = self.placed().with("delta", text).with("logprobs", Vec::<Json>::new());
        out + &self.event("response.output_text.delta", body)
    }

    fn call(&mut self, call: &ToolCall) -> String {
        let thought = self.thought();
        let begun = self.frame.function_call("in_progress", call, Some(""));
        let whole = self.frame.function_call("completed", call, None);
        let arguments = call.arguments.clone().encode();
        let delta = self.of_item(&self.frame.call_id).with("delta", arguments.as_str());
        let done = self.of_item(&self.frame.call_id).with("arguments", arguments.as_str());
        self.items.push(whole.clone().into());
        let out = thought
            + &self.item("response.output_item.added", begun)
            + &self.event("response.function_call_arguments.delta", delta)
            + &self.event("response.function_call_arguments.done", done)
            + &self.item("response.output_item.done", whole);
        self.index += 1;
        out
    }

    fn end(&mut self, summary: &Summary) -> String {
        let mut out = self.thought();
        if self.has_text {
            let text = std::mem::take(&mut self.text);
            let done = self.placed().with("text", text.as_str());
            let part = self.placed().with("part", Frame::part(&text));
            let message = self.frame.message("completed", Some(&text));
            self.items.push(message.clone().into());
            out += &self.event("response.output_text.done", done);
            out += &self.event("response.content_part.done", part);
            out += &self.item("response.output_item.done", message);
        }
        let items = std::mem::take(&mut self.items);
        let response = self.frame.response("completed", items, Some(summary));
        out + &self.event("response.completed", Object::new().with("response", response))
    }
}
