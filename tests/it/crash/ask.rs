//! What the clients of the kill test ask for, and how an answer to it reads.

use serde_json::{Value, json};

use crate::harness::random::Random;

/// The chat models; the embedder is `embed`.
pub(super) const MODELS: [&str; 3] = ["a", "b", "c"];

/// Every request's seed option.
const SEED: i64 = 7;

/// Tokens of an answer. At 1 ms each (2 ms on a coarse timer) a job lasts 5 to 60 ms.
const TOKENS_MIN: u64 = 3;
const TOKENS_MAX: u64 = 25;

/// The road a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Chat,
    Generate,
    OpenAi,
}

impl Shape {
    pub(super) const ALL: [Shape; 3] = [Shape::Chat, Shape::Generate, Shape::OpenAi];

    pub(super) fn path(self) -> &'static str {
        match self {
            Shape::Chat => "/api/chat",
            Shape::Generate => "/api/generate",
            Shape::OpenAi => "/v1/chat/completions",
        }
    }
}

/// One request for the GPU.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// Unique; the first word of the prompt.
    pub(super) tag: String,
    pub(super) shape: Shape,
    pub(super) is_streamed: bool,
    model: &'static str,
    tokens: u32,
}

/// What a (perhaps partial) answer holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) text: String,
    /// End marks. Exactly one in a whole answer.
    pub(super) ends: usize,
}

impl Ask {
    /// Any request, with this tag.
    pub(super) fn random(random: &mut Random, tag: String) -> Ask {
        let tokens = TOKENS_MIN + random.below(TOKENS_MAX - TOKENS_MIN + 1);
        Ask {
            tag,
            shape: random.one_of(&Shape::ALL),
            is_streamed: random.below(2) == 0,
            model: random.one_of(&MODELS),
            tokens: u32::try_from(tokens).unwrap(),
        }
    }

    /// This request.
    pub(super) fn new(tag: &str, shape: Shape, is_streamed: bool, model: &'static str) -> Ask {
        Ask { tag: tag.to_owned(), shape, is_streamed, model, tokens: 12 }
    }

    fn prompt(&self) -> String {
        format!("{} went down to the sea", self.tag)
    }

    /// Its body.
    pub(super) fn body(&self) -> Value {
        let messages = json!([{ "role": "user", "content": self.prompt() }]);
        let options = json!({ "seed": SEED, "num_predict": self.tokens });
        let mut body = match self.shape {
            Shape::Chat => json!({ "messages": messages, "options": options }),
            Shape::Generate => json!({ "prompt": self.prompt(), "options": options }),
            Shape::OpenAi => {
                json!({ "messages": messages, "seed": SEED, "max_tokens": self.tokens })
            }
        };
        body["model"] = json!(self.model);
        body["stream"] = json!(self.is_streamed);
        body
    }

    /// The one right text.
    pub(super) fn expected(&self) -> String {
        let model = format!("{}:latest", self.model);
        stub_ollama::expected_text(&model, &self.prompt(), Some(SEED), self.tokens)
    }

    /// Reads an answer as a client does: record by record, leaving out a last one that is not complete.
    pub(super) fn read(&self, body: &[u8]) -> Read {
        let text = String::from_utf8_lossy(body);
        let mut read = Read { text: String::new(), ends: 0 };
        for line in text.lines() {
            let record = match (self.shape, self.is_streamed) {
                (Shape::OpenAi, true) => line.strip_prefix("data: ").unwrap_or_default(),
                _ => line,
            };
            if record == "[DONE]" {
                read.ends += 1;
            }
            let Ok(record) = serde_json::from_str::<Value>(record) else { continue };
            let (text, is_end) = match self.shape {
                Shape::Chat => (&record["message"]["content"], record["done"] == true),
                Shape::Generate => (&record["response"], record["done"] == true),
                Shape::OpenAi if self.is_streamed => {
                    (&record["choices"][0]["delta"]["content"], false)
                }
                Shape::OpenAi => {
                    let choice = &record["choices"][0];
                    (&choice["message"]["content"], choice["finish_reason"].is_string())
                }
            };
            read.text.push_str(text.as_str().unwrap_or_default());
            read.ends += usize::from(is_end);
        }
        read
    }
}

/// The tag in the body of a request, wherever it was found.
pub(super) fn tag_of(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let prompt = body["prompt"].as_str().or_else(|| body["messages"][0]["content"].as_str())?;
    prompt.split(' ').next().filter(|tag| !tag.is_empty()).map(str::to_owned)
}
