//! Foreman's own calls to Ollama: metadata, and the empty requests that load and unload.
//!
//! Each is on foreman's own connection with foreman's own time limit: a client that leaves during a load that hangs on
//! its connection would kill the load for everyone.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use serde_json::{Map, Value, json};

use crate::domain::model::{ModelName, RunnerOptions};

use super::client::{Ollama, SendError, empty_body, full_body};
use super::show::{self, Shown};

/// Metadata answers: a tags list of thousands of models is a few MB.
const METADATA_BYTES_MAX: usize = 32 * 1024 * 1024;

/// `GET /` is answered from memory; Ollama that listens before it is ready hangs here.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// `/api/ps` waits for locks that are held during swaps.
pub const PS_LIMIT: Duration = Duration::from_secs(1);

/// The longest anything waits for metadata before it goes on by what was known last. Ollama answers from memory, or within some
/// tens of milliseconds from a warm disk; the question goes on beside.
pub(super) const METADATA_WAIT: Duration = Duration::from_millis(500);

/// `/api/tags` reads every manifest and some weights: seconds for many models on a slow disk, more while Ollama scans its folder
/// at its start. Nobody waits that long for it.
const TAGS_LIMIT: Duration = Duration::from_secs(120);

/// A version that takes longer is asked for again at the next poll. Nobody waits that long for it.
const VERSION_LIMIT: Duration = Duration::from_secs(60);

/// `/api/show` reads the head of the weights from the disk.
const SHOW_LIMIT: Duration = Duration::from_secs(10);

/// An unload request is answered at once; the runner dies later.
const UNLOAD_LIMIT: Duration = Duration::from_secs(10);

/// A status and the whole body.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// Ollama's own error text, or the body as it is.
    pub fn error_text(&self) -> String {
        error_text(&self.body)
    }
}

/// How long a model that foreman loads for embeds stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// For ever: it is the configured embedder.
    Pinned,
    /// As long as Ollama keeps a model by itself after its last use.
    Usual,
}

/// One entry of `/api/ps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PsModel {
    /// Canonical name. [`Inventory::ps`](super::inventory::Inventory::ps) puts the name here that jobs of its runner are
    /// loaded by.
    pub model: ModelName,
    /// The name as listed, canonical: the one it was loaded by.
    pub listed: ModelName,
    /// Digest of the manifest, bare hex.
    pub digest: String,
    /// The context length it runs with, where told.
    pub context_length: Option<i64>,
    /// When Ollama lets it go, as it writes it. Moves with the end of each use.
    pub expires_at: String,
}

/// One entry of `/api/tags`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagsModel {
    /// Canonical name.
    pub model: ModelName,
    /// The name as Ollama spells it.
    pub display: String,
    /// Digest of the manifest, bare hex.
    pub digest: String,
    /// The architecture of its weights; empty where this Ollama does not say.
    pub family: String,
    /// What it can do; `None` where this Ollama does not say.
    pub capabilities: Option<Vec<String>>,
    /// Whether it runs in a cloud: then it never touches the GPU.
    pub is_remote: bool,
    /// The size of its weights in bytes, where told.
    pub size_bytes: Option<i64>,
    /// The context its weights were trained with, where told.
    pub trained_context: Option<i64>,
}

/// A load of foreman's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRequest {
    /// The name as Ollama spells it. `/api/ps` shows the runner under it.
    pub name: String,
    /// What the runner is started with, laid over the options of the name's file.
    pub options: RunnerOptions,
}

impl Ollama {
    /// Whether it serves: an answered `GET /`. A connect alone says nothing, since Ollama listens before it is ready.
    ///
    /// # Errors
    /// Any [`SendError`].
    pub async fn ping(&self) -> Result<(), SendError> {
        let reply = self.get("/", PING_LIMIT).await?;
        if reply.status >= 500 {
            return Err(self.strange(&format!("status {} to GET /", reply.status)));
        }
        Ok(())
    }

    /// Its version; `unknown` where it does not say. Takes up to a minute: not for the path of a request.
    ///
    /// # Errors
    /// Any [`SendError`].
    pub async fn version(&self) -> Result<String, SendError> {
        let reply = self.get("/api/version", VERSION_LIMIT).await?;
        let parsed: Option<Value> = serde_json::from_slice(&reply.body).ok();
        let version = parsed.as_ref().and_then(|value| value["version"].as_str());
        Ok(version.unwrap_or("unknown").to_owned())
    }

    /// What is in its memory. A model that is still loading is not listed; a runner that died may still be.
    ///
    /// # Errors
    /// Any [`SendError`]; [`SendError::Late`] after a second is usual during swaps.
    pub async fn ps(&self) -> Result<Vec<PsModel>, SendError> {
        self.ps_within(PS_LIMIT).await
    }

    /// The same with another limit.
    ///
    /// # Errors
    /// Any [`SendError`].
    pub async fn ps_within(&self, limit: Duration) -> Result<Vec<PsModel>, SendError> {
        let value = self.get_json("/api/ps", limit).await?;
        Ok(entries(&value).filter_map(ps_model).collect())
    }

    /// What is installed. Takes up to two minutes: not for the path of a request.
    ///
    /// # Errors
    /// Any [`SendError`].
    pub async fn tags(&self) -> Result<Vec<TagsModel>, SendError> {
        let value = self.get_json("/api/tags", TAGS_LIMIT).await?;
        Ok(entries(&value).filter_map(tags_model).collect())
    }

    /// What a model can do and what its file says, from `/api/show`; `None` if that is refused.
    ///
    /// # Errors
    /// Any [`SendError`].
    pub async fn show(&self, model: &TagsModel) -> Result<Option<Shown>, SendError> {
        let body = json!({ "model": model.display });
        let reply = self.post("/api/show", &body, SHOW_LIMIT).await?;
        Ok((reply.status == 200).then(|| show::read(&reply.body, &model.digest)).flatten())
    }

    /// Makes a key resident with an empty generate request that carries exactly these runner options and the pin
    /// (`keep_alive: -1` as a JSON number; the string is refused). Returns when it is loaded.
    ///
    /// # Errors
    /// Any [`SendError`]. An HTTP error is a [`Reply`], not an error.
    pub async fn load(&self, load: &LoadRequest, limit: Duration) -> Result<Reply, SendError> {
        self.post("/api/generate", &load_body(load), limit).await
    }

    /// Makes an embedding model resident: an embed request without input.
    ///
    /// # Errors
    /// Any [`SendError`]. An HTTP error is a [`Reply`], not an error.
    pub async fn load_embedder(
        &self,
        name: &str,
        stay: Stay,
        limit: Duration,
    ) -> Result<Reply, SendError> {
        let body = match stay {
            Stay::Pinned => json!({ "model": name, "keep_alive": -1 }),
            Stay::Usual => json!({ "model": name }),
        };
        self.post("/api/embed", &body, limit).await
    }

    /// Asks Ollama to unload a model. It answers at once; the runner dies when its users are done.
    ///
    /// # Errors
    /// Any [`SendError`]. An HTTP error (404 for a deleted model) is a [`Reply`], not an error.
    pub async fn unload(&self, name: &str) -> Result<Reply, SendError> {
        let body = json!({ "model": name, "keep_alive": 0, "stream": false });
        self.post("/api/generate", &body, UNLOAD_LIMIT).await
    }

    async fn get_json(&self, path: &str, limit: Duration) -> Result<Value, SendError> {
        let reply = self.get(path, limit).await?;
        if reply.status != 200 {
            return Err(self.strange(&format!("status {} to GET {path}", reply.status)));
        }
        serde_json::from_slice(&reply.body).map_err(|fault| self.strange(&fault))
    }

    /// A `GET` with its whole answer.
    ///
    /// # Errors
    /// Any [`SendError`].
    pub async fn get(&self, path: &str, limit: Duration) -> Result<Reply, SendError> {
        let request =
            Request::get(path).body(empty_body()).map_err(|fault| self.strange(&fault))?;
        self.whole(request, limit).await
    }

    async fn post(&self, path: &str, body: &Value, limit: Duration) -> Result<Reply, SendError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(CONTENT_TYPE, "application/json")
            .body(full_body(Bytes::from(body.to_string())))
            .map_err(|fault| self.strange(&fault))?;
        self.whole(request, limit).await
    }

    async fn whole(
        &self,
        request: Request<super::client::Body>,
        limit: Duration,
    ) -> Result<Reply, SendError> {
        let exchange = async {
            let response = self.send(request).await?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), METADATA_BYTES_MAX)
                .collect()
                .await
                .map_err(|fault| self.broken(fault.as_ref()))?;
            Ok(Reply { status, body: body.to_bytes() })
        };
        tokio::time::timeout(limit, exchange).await.map_err(|_| self.late(limit))?
    }
}

/// The text of an error answer in any of Ollama's shapes, or the body as text.
pub fn error_text(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let told = parsed.as_ref().and_then(|value| match &value["error"] {
        Value::String(text) => Some(text.clone()),
        Value::Object(members) => members.get("message")?.as_str().map(str::to_owned),
        _ => None,
    });
    told.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned())
}

fn load_body(load: &LoadRequest) -> Value {
    let LoadRequest { name, options } = load;
    let numbers = [
        ("num_ctx", options.num_ctx),
        ("num_batch", options.num_batch),
        ("num_gpu", options.num_gpu),
        ("num_thread", options.num_thread),
        ("main_gpu", options.main_gpu),
        ("draft_num_predict", options.draft_num_predict),
    ];
    let mut members: Map<String, Value> = numbers
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name.to_owned(), Value::from(value))))
        .collect();
    if let Some(use_mmap) = options.use_mmap {
        members.insert("use_mmap".to_owned(), Value::Bool(use_mmap));
    }
    let mut body = json!({ "model": name, "keep_alive": -1, "stream": false });
    if !members.is_empty() {
        body["options"] = Value::Object(members);
    }
    if let Some(shift) = options.shift {
        body["shift"] = Value::Bool(shift);
    }
    body
}

fn entries(value: &Value) -> impl Iterator<Item = &Value> {
    value["models"].as_array().into_iter().flatten()
}

fn ps_model(entry: &Value) -> Option<PsModel> {
    let listed = ModelName::parse_listed(entry["name"].as_str()?).ok()?;
    Some(PsModel {
        model: listed.clone(),
        listed,
        digest: entry["digest"].as_str().unwrap_or_default().to_owned(),
        context_length: entry["context_length"].as_i64(),
        expires_at: entry["expires_at"].as_str().unwrap_or_default().to_owned(),
    })
}

fn tags_model(entry: &Value) -> Option<TagsModel> {
    let display = entry["name"].as_str()?;
    let is_remote = entry["remote_host"].as_str().is_some_and(|host| !host.is_empty())
        || entry["remote_model"].as_str().is_some_and(|model| !model.is_empty());
    Some(TagsModel {
        model: ModelName::parse_listed(display).ok()?,
        display: display.to_owned(),
        digest: entry["digest"].as_str().unwrap_or_default().to_owned(),
        family: entry["details"]["family"].as_str().unwrap_or_default().to_owned(),
        capabilities: texts(&entry["capabilities"]),
        is_remote,
        size_bytes: entry["size"].as_i64(),
        trained_context: show::tokens(&entry["details"]["context_length"]),
    })
}

/// A list of texts; `None` if it is no list.
pub(super) fn texts(value: &Value) -> Option<Vec<String>> {
    let items = value.as_array()?;
    Some(items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_carries_exactly_the_keys_options_and_a_numeric_pin() {
        let options = RunnerOptions {
            num_ctx: Some(8192),
            use_mmap: Some(false),
            shift: Some(false),
            ..RunnerOptions::default()
        };
        let load = |name: &str, options| load_body(&LoadRequest { name: name.to_owned(), options });
        let body = load("llama3:latest", options);
        let expected = json!({
            "model": "llama3:latest", "keep_alive": -1, "stream": false, "shift": false,
            "options": { "num_ctx": 8192, "use_mmap": false },
        });
        assert_eq!(body, expected);
        assert_eq!(
            load("llama3", RunnerOptions::default()),
            json!({ "model": "llama3", "keep_alive": -1, "stream": false })
        );
    }

    #[test]
    fn error_texts_are_found_in_every_shape() {
        assert_eq!(error_text(br#"{"error":"no"}"#), "no");
        assert_eq!(error_text(br#"{"error":{"message":"nope","type":"x"}}"#), "nope");
        assert_eq!(error_text(b"404 page not found"), "404 page not found");
    }
}
