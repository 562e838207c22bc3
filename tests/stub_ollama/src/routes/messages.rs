//! `/v1/messages`, the Anthropic shape.

use std::sync::Arc;

use super::native::tool_name;
use super::openai::text_of;
use super::reply::{EVENTS, Reply};
use super::resolve::{Wording, require, resolve};
use super::{Call, Failure, search};
use crate::config::Capability;
use crate::generation::{Collected, Job, Piece, Session, Summary, collect};
use crate::hash::hex64;
use crate::json::{Json, Object};
use crate::vocabulary::prompt_tokens;

/// Hex digits of a message id.
const ID_DIGITS: usize = 24;

/// Answers `POST /v1/messages`.
pub(super) async fn messages(call: Call) -> Result<Reply, Failure> {
    let fields = call.fields_v1("anthropic.MessagesRequest")?;
    let streams = fields.bool("stream").map_err(Failure::bad_request)?.unwrap_or(false);
    let raw = fields.text("model").map_err(Failure::bad_request)?;
    let limit = fields.int("max_tokens").map_err(Failure::bad_request)?.unwrap_or(0);
    let list =
        fields.array("messages", "[]anthropic.MessageParam").map_err(Failure::bad_request)?;
    if raw.is_empty() {
        return Err(Failure::bad_request("model is required"));
    }
    let limit = u32::try_from(limit)
        .ok()
        .filter(|limit| *limit > 0)
        .ok_or_else(|| Failure::bad_request("max_tokens is required and must be positive"))?;
    let Some(last) = list.last() else {
        return Err(Failure::bad_request("messages is required"));
    };
    let model = resolve(&call.world, raw, Wording::Plain)?;
    require(&model, raw, Capability::Completion, "chat")?;
    let tools = fields.array("tools", "[]anthropic.Tool").map_err(Failure::bad_request)?;
    if !tools.is_empty() {
        require(&model, raw, Capability::Tools, "tools")?;
    }
    let prompt = text_of(last.as_object().and_then(|message| message.get("content")));
    let searches = search::is_wanted(tools, &prompt);
    let job = Job {
        tokens_max: Some(limit),
        thinks: model.can(Capability::Thinking),
        tool: tool_name(tools, &prompt).filter(|_| !searches),
        ..Job::new(Arc::clone(&model), prompt.clone(), call.plan.clone())
    };
    let body = String::from_utf8_lossy(&call.body);
    let id = format!("msg_{}", &hex64(&body)[..ID_DIGITS]);
    let has_tool = job.tool.is_some();
    let raw = raw.to_owned();
    let session = Session::open(&call.world, job).await?;
    if searches {
        let mut answer = collect(session).await?;
        answer.text = search::answer(&call, &raw, &prompt).await?;
        if !streams {
            return Ok(whole(&id, &raw, &answer));
        }
        let events = Events::new(id, raw, prompt, false);
        let reply = Reply::pieces(EVENTS, answer.into_pieces(), events.render());
        return Ok(reply.header("cache-control", "no-cache"));
    }
    if !streams {
        return Ok(whole(&id, &raw, &collect(session).await?));
    }
    let events = Events::new(id, raw, prompt, has_tool);
    let reply = Reply::stream(EVENTS, session, events.render()).await?;
    Ok(reply.header("cache-control", "no-cache"))
}

fn whole(id: &str, raw: &str, answer: &Collected) -> Reply {
    let mut content: Vec<Json> = Vec::new();
    if let Some(thinking) = &answer.thinking {
        let block = Object::new().with("type", "thinking").with("thinking", thinking.as_str());
        content.push(block.into());
    }
    if !answer.text.is_empty() {
        let block = Object::new().with("type", "text").with("text", answer.text.as_str());
        content.push(block.into());
    }
    if let Some(call) = &answer.tool_call {
        let block = Object::new()
            .with("type", "tool_use")
            .with("id", call.id.as_str())
            .with("name", call.name.as_str())
            .with("input", call.arguments.clone());
        content.push(block.into());
    }
    let summary = answer.summary.as_ref();
    let object = Object::new()
        .with("id", id)
        .with("type", "message")
        .with("role", "assistant")
        .with("model", raw)
        .with("content", content)
        .with_some("stop_reason", summary.map(|end| stop_reason(end, answer.tool_call.is_some())))
        .with("usage", usage(summary));
    Reply::compatible(object)
}

fn stop_reason(summary: &Summary, has_tool: bool) -> &'static str {
    match summary.reason {
        _ if has_tool => "tool_use",
        "length" => "max_tokens",
        _ => "end_turn",
    }
}

fn usage(summary: Option<&Summary>) -> Object {
    let (input, output) =
        summary.map_or((0, 0), |summary| (summary.prompt_tokens, summary.answer_tokens));
    Object::new().with("input_tokens", input).with("output_tokens", output)
}

/// Renders the event stream.
struct Events {
    id: String,
    model: String,
    prompt: String,
    has_tool: bool,
    is_started: bool,
    /// The kind of the content block that is open.
    open: Option<&'static str>,
    index: u32,
}

fn event(name: &str, object: Object) -> String {
    format!("event: {name}\ndata: {}\n\n", object.encode())
}

impl Events {
    fn new(id: String, model: String, prompt: String, has_tool: bool) -> Self {
        Self { id, model, prompt, has_tool, is_started: false, open: None, index: 0 }
    }

    fn render(mut self) -> impl FnMut(&Piece) -> String + Send + 'static {
        move |piece| self.piece(piece)
    }

    fn piece(&mut self, piece: &Piece) -> String {
        let start = self.start();
        start
            + &match piece {
                Piece::Text(text) => {
                    let block = Object::new().with("type", "text").with("text", "");
                    self.open("text", block) + &self.delta("text_delta", "text", text)
                }
                Piece::Thinking(text) => {
                    let block = Object::new().with("type", "thinking").with("thinking", "");
                    self.open("thinking", block) + &self.delta("thinking_delta", "thinking", text)
                }
                Piece::ToolCall(call) => {
                    let block = Object::new()
                        .with("type", "tool_use")
                        .with("id", call.id.as_str())
                        .with("name", call.name.as_str())
                        .with("input", Object::new());
                    let arguments = call.arguments.clone().encode();
                    self.open("tool_use", block)
                        + &self.delta("input_json_delta", "partial_json", &arguments)
                        + &self.close()
                }
                Piece::Done(summary) => self.end(summary),
                // Nothing for an error either: the stream simply ends, as in Ollama.
                Piece::Failed(_) | Piece::Ended => String::new(),
            }
    }

    fn start(&mut self) -> String {
        if std::mem::replace(&mut self.is_started, true) {
            return String::new();
        }
        let usage = Object::new()
            .with("input_tokens", prompt_tokens(&self.prompt))
            .with("output_tokens", 0_u32);
        let message = Object::new()
            .with("id", self.id.as_str())
            .with("type", "message")
            .with("role", "assistant")
            .with("model", self.model.as_str())
            .with("content", Vec::<Json>::new())
            .with("usage", usage);
        event("message_start", Object::new().with("type", "message_start").with("message", message))
    }

    /// Opens a block, unless one of this kind is; another one is closed.
    fn open(&mut self, kind: &'static str, block: Object) -> String {
        if self.open == Some(kind) {
            return String::new();
        }
        let closed = self.close();
        self.open = Some(kind);
        let object = Object::new()
            .with("type", "content_block_start")
            .with("index", self.index)
            .with("content_block", block);
        closed + &event("content_block_start", object)
    }

    fn close(&mut self) -> String {
        if self.open.take().is_none() {
            return String::new();
        }
        let object = Object::new().with("type", "content_block_stop").with("index", self.index);
        self.index += 1;
        event("content_block_stop", object)
    }

    fn delta(&self, kind: &str, key: &str, text: &str) -> String {
        let delta = Object::new().with("type", kind).with(key, text);
        let object = Object::new()
            .with("type", "content_block_delta")
            .with("index", self.index)
            .with("delta", delta);
        event("content_block_delta", object)
    }

    fn end(&mut self, summary: &Summary) -> String {
        let closed = self.close();
        let delta = Object::new().with("stop_reason", stop_reason(summary, self.has_tool));
        let object = Object::new()
            .with("type", "message_delta")
            .with("delta", delta)
            .with("usage", usage(Some(summary)));
        closed
            + &event("message_delta", object)
            + &event("message_stop", Object::new().with("type", "message_stop"))
    }
}
