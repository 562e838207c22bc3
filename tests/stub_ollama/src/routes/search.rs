//! The web search that Ollama does by itself for `/v1/responses` and `/v1/messages`: its model asks for one, and Ollama goes
//! on with a request of its own to `/api/chat`, at the address its own client finds in `OLLAMA_HOST`.
//!
//! A prompt that speaks of a search makes the model ask for one. There is no web here: what is found is made up.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Call, Failure};
use crate::decode::decode;
use crate::json::{Json, Object};

/// What the model calls it, and in the end of what tools it is found.
const NAME: &str = "web_search";

/// Whether the tools let Ollama search, and the prompt asks for it.
pub(super) fn is_wanted(tools: &[Json], prompt: &str) -> bool {
    let is_search = |tool: &Json| {
        let kind = tool.as_object().and_then(|tool| tool.get("type")).and_then(Json::as_text);
        kind.is_some_and(|kind| kind.starts_with(NAME))
    };
    prompt.to_lowercase().contains("search") && tools.iter().any(is_search)
}

/// Searches as often as configured and gives the model's last word. The whole has Ollama's budget of time.
pub(super) async fn answer(call: &Call, model: &str, prompt: &str) -> Result<String, Failure> {
    let budget = call.world.config.search_budget;
    let searching = async {
        let mut text = String::new();
        for _ in 0..call.world.config.searches {
            text = follow_up(call, model, prompt).await?;
        }
        Ok(text)
    };
    timeout(budget, searching).await.unwrap_or_else(|_| {
        Err(Failure::new(500, "web_search follow-up failed: context deadline exceeded"))
    })
}

/// One request to `/api/chat`, as Go's client sends it.
async fn follow_up(call: &Call, model: &str, prompt: &str) -> Result<String, Failure> {
    let failed = |text: String| Failure::new(500, format!("web_search follow-up failed: {text}"));
    let address = call.world.ollama_host().ok_or_else(|| failed("no address".to_owned()))?;
    let request = Request::post("/api/chat")
        .header("host", address.to_string())
        .header("user-agent", &call.world.config.search_agent)
        .header("accept", "application/x-ndjson")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body(model, prompt))))
        .map_err(|fault| failed(fault.to_string()))?;
    let stream = TcpStream::connect(address).await.map_err(|fault| failed(fault.to_string()))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|fault| failed(fault.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    // The connection ends with this future: a client that leaves takes the search with it.
    let (status, bytes) = tokio::select! {
        done = exchange => done.map_err(|fault| failed(fault.to_string()))?,
        _ = connection => return Err(failed("EOF".to_owned())),
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if status != 200 {
        return Err(failed(text));
    }
    let value = decode(&bytes).map_err(|_| failed(text))?;
    let message = value.as_object().and_then(|object| object.get("message")?.as_object());
    let content = message.and_then(|message| message.get("content")).and_then(Json::as_text);
    Ok(content.unwrap_or_default().to_owned())
}

fn body(model: &str, prompt: &str) -> String {
    let arguments = Object::new().with("query", prompt);
    let function = Object::new().with("index", 0_u32).with("name", NAME);
    let function = function.with("arguments", arguments);
    let called = Object::new().with("id", "call_search").with("function", function);
    let message =
        |role: &str, content: &str| Object::new().with("role", role).with("content", content);
    let messages: Vec<Json> = vec![
        message("user", prompt).into(),
        message("assistant", "").with("tool_calls", vec![called.into()]).into(),
        message("tool", "1. It is so.").with("tool_call_id", "call_search").into(),
    ];
    let function = Object::new().with("name", NAME).with("description", "Search the web");
    let tool = Object::new().with("type", "function").with("function", function);
    Object::new()
        .with("model", model)
        .with("messages", messages)
        .with("stream", false)
        .with("tools", vec![tool.into()])
        .encode()
}
