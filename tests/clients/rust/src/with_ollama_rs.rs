//! The calls of `ollama-rs`, one for each thing a request may ask for.

use ollama_rs::Ollama;
use ollama_rs::error::OllamaError;
use ollama_rs::generation::chat::{ChatMessage, request::ChatMessageRequest};
use ollama_rs::generation::embeddings::request::GenerateEmbeddingsRequest;
use ollama_rs::generation::parameters::{FormatType, JsonStructure};
use ollama_rs::generation::tools::{self, Tool};
use ollama_rs::models::ModelOptions;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;

use super::{Failure, Outcome, say};

/// The version that `Cargo.toml` pins; a crate cannot ask for that of another.
pub(crate) const VERSION: &str = "0.3.6";

/// The shape of a structured answer.
#[derive(Deserialize, JsonSchema, Serialize)]
struct Answer {
    answer: String,
}

/// What the tool wants.
#[derive(Deserialize, JsonSchema)]
struct Word {
    #[expect(dead_code, reason = "the tool knows one answer only")]
    input: String,
}

/// What the model is to call.
struct LookUp;

impl Tool for LookUp {
    type Params = Word;

    fn name() -> &'static str {
        "look_up"
    }

    fn description() -> &'static str {
        "Looks a word up."
    }

    async fn call(&mut self, _word: Word) -> tools::Result<String> {
        Ok("forty fathoms".to_owned())
    }
}

impl From<OllamaError> for Failure {
    fn from(error: OllamaError) -> Self {
        let name = format!("{error:?}");
        let variant = name.split(['(', ' ', '{']).next().unwrap_or_default();
        Self { kind: format!("OllamaError::{variant}"), text: error.to_string() }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self { kind: "serde_json::Error".to_owned(), text: error.to_string() }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self { kind: "io::Error".to_owned(), text: error.to_string() }
    }
}

fn missing(what: &str) -> Failure {
    Failure { kind: "Missing".to_owned(), text: format!("there is no {what}") }
}

fn text<'a>(request: &'a Value, key: &str) -> &'a str {
    request[key].as_str().unwrap_or_default()
}

fn asking(request: &Value) -> ChatMessageRequest {
    let message = ChatMessage::user(text(request, "text").to_owned());
    let asking = ChatMessageRequest::new(text(request, "model").to_owned(), vec![message]);
    match request["tokens"].as_i64().and_then(|tokens| i32::try_from(tokens).ok()) {
        Some(tokens) => asking.options(ModelOptions::default().num_predict(tokens)),
        None => asking,
    }
}

/// Does what a request asks for.
pub(crate) async fn carry_out(request: &Value) -> Outcome {
    let client = Ollama::builder().url(text(request, "url")).build();
    match text(request, "do") {
        "chat" => chat(&client, request).await,
        "stream" => stream(&client, request).await,
        "tools" => tools(&client, request).await,
        "structured" => structured(&client, request).await,
        "embed" => embed(&client, request).await,
        "models" => models(&client).await,
        other => Err(missing(other)),
    }
}

async fn chat(client: &Ollama, request: &Value) -> Outcome {
    let answer = client.send_chat_messages(asking(request)).await?;
    Ok(json!({"answer": {"text": answer.message.content}}))
}

/// Dropping the stream is how a user leaves it.
async fn stream(client: &Ollama, request: &Value) -> Outcome {
    let mut parts = client.send_chat_messages_stream(asking(request)).await?;
    let mut texts = Vec::new();
    while let Some(part) = parts.next().await {
        // The reason goes to stderr; all that the caller gets is that there is an error.
        let part = part.map_err(|()| Failure { kind: "()".to_owned(), text: String::new() })?;
        if part.message.content.is_empty() {
            continue;
        }
        say(&json!({"chunk": part.message.content}))?;
        texts.push(part.message.content);
        if request["leave_after"].as_u64() == u64::try_from(texts.len()).ok() {
            return Ok(json!({"left": true}));
        }
    }
    Ok(json!({"answer": {"text": texts.concat(), "chunks": texts.len()}}))
}

async fn tools(client: &Ollama, request: &Value) -> Outcome {
    let mut asking = asking(request).add_tool(LookUp);
    let message = client.send_chat_messages(asking.clone()).await?.message;
    let call = message.tool_calls.first().ok_or_else(|| missing("tool call"))?.function.clone();
    let word = serde_json::from_value(call.arguments.clone())?;
    let result = LookUp.call(word).await.map_err(|error| missing(&error.to_string()))?;
    asking.messages.extend([message, ChatMessage::tool(result)]);
    let answer = client.send_chat_messages(asking).await?.message.content;
    Ok(json!({"answer": {"called": call.name, "arguments": call.arguments, "text": answer}}))
}

async fn structured(client: &Ollama, request: &Value) -> Outcome {
    let format = FormatType::StructuredJson(Box::new(JsonStructure::new::<Answer>()));
    let answer = client.send_chat_messages(asking(request).format(format)).await?;
    let answer: Answer = serde_json::from_str(&answer.message.content)?;
    Ok(json!({"answer": answer}))
}

async fn embed(client: &Ollama, request: &Value) -> Outcome {
    let texts: Vec<String> = serde_json::from_value(request["texts"].clone())?;
    let model = text(request, "model").to_owned();
    let request = GenerateEmbeddingsRequest::new(model, texts.into());
    Ok(json!({"answer": client.generate_embeddings(request).await?.embeddings}))
}

async fn models(client: &Ollama) -> Outcome {
    let names: Vec<String> =
        client.list_local_models().await?.into_iter().map(|model| model.name).collect();
    Ok(json!({"answer": names}))
}
