//! What a stub is made of: its models, its limits and its pace.
//!
//! Filled by tests (through the builder methods) and by the binary (from its flags).

use std::net::SocketAddr;
use std::time::Duration;

use crate::hash::hex64;
use crate::names::Name;

/// What a model can do, as `/api/show` lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Chat and generate.
    Completion,
    /// Function calling.
    Tools,
    /// A `thinking` stream before the answer.
    Thinking,
    /// Fill in the middle (`suffix`).
    Insert,
    /// Images.
    Vision,
    /// Vectors instead of text.
    Embedding,
    /// Sound.
    Audio,
}

impl Capability {
    /// Every capability, in Ollama's order.
    pub const ALL: [Self; 7] = [
        Self::Completion,
        Self::Tools,
        Self::Insert,
        Self::Vision,
        Self::Embedding,
        Self::Thinking,
        Self::Audio,
    ];

    /// Returns the word Ollama uses.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Tools => "tools",
            Self::Thinking => "thinking",
            Self::Insert => "insert",
            Self::Vision => "vision",
            Self::Embedding => "embedding",
            Self::Audio => "audio",
        }
    }
}

/// One installed model.
#[derive(Clone, Debug)]
pub struct Model {
    /// The canonical short name, always with a tag (`llama3:latest`).
    pub name: String,
    /// Size on disk and on the GPU, in bytes.
    pub size_bytes: u64,
    /// How long a load takes.
    pub load_time: Duration,
    /// File name of the weights; models that share it share a runner.
    pub blob: String,
    /// SHA-256 of the manifest as `/api/tags` and `/api/ps` show it, bare hex.
    pub digest: String,
    /// What the model can do.
    pub capabilities: Vec<Capability>,
    /// The Modelfile's `PARAMETER` lines, in order.
    pub parameters: Vec<(String, String)>,
    /// Adapter files; different ones force a reload of a shared blob.
    pub adapters: Vec<String>,
    /// Projector files; different ones force a reload of a shared blob.
    pub projectors: Vec<String>,
    /// Architecture name.
    pub family: String,
    /// The context the model was trained with; a larger `num_ctx` is clamped to it.
    pub context_length: u32,
    /// Set on a stub of a remote model, which never touches the GPU.
    pub remote_host: Option<String>,
}

impl Model {
    /// Creates a chat model; a name without a tag gets `:latest`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let canonical = Name::parse(name).map_or_else(|_| name.to_owned(), |name| name.to_string());
        Self {
            size_bytes: 256 * 1024 * 1024,
            load_time: Duration::from_millis(20),
            blob: format!("sha256-{}", hex64(&format!("blob {canonical}"))),
            digest: hex64(&format!("manifest {canonical}")),
            capabilities: vec![Capability::Completion],
            parameters: Vec::new(),
            adapters: Vec::new(),
            projectors: Vec::new(),
            family: "llama".to_owned(),
            context_length: 32_768,
            remote_host: None,
            name: canonical,
        }
    }

    /// Creates an embedding model.
    #[must_use]
    pub fn embedding(name: &str) -> Self {
        Self { family: "bert".to_owned(), ..Self::new(name).with(&[Capability::Embedding]) }
    }

    /// Replaces the capabilities.
    #[must_use]
    pub fn with(mut self, capabilities: &[Capability]) -> Self {
        self.capabilities = capabilities.to_vec();
        self
    }

    /// Sets how long a load takes.
    #[must_use]
    pub fn load_time(mut self, load_time: Duration) -> Self {
        self.load_time = load_time;
        self
    }

    /// Sets the size in bytes.
    #[must_use]
    pub fn size_bytes(mut self, size_bytes: u64) -> Self {
        self.size_bytes = size_bytes;
        self
    }

    /// Sets the weights' file name, to share a runner or to choose the order of eviction.
    #[must_use]
    pub fn blob(mut self, blob: &str) -> Self {
        blob.clone_into(&mut self.blob);
        self
    }

    /// Adds a Modelfile `PARAMETER` line.
    #[must_use]
    pub fn parameter(mut self, key: &str, value: &str) -> Self {
        self.parameters.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds an adapter.
    #[must_use]
    pub fn adapter(mut self, path: &str) -> Self {
        self.adapters.push(path.to_owned());
        self
    }

    /// Adds a projector.
    #[must_use]
    pub fn projector(mut self, path: &str) -> Self {
        self.projectors.push(path.to_owned());
        self
    }

    /// Gives the model the digest that follows from its contents: equal contents have equal
    /// manifests, whatever the name, and any change makes another.
    #[must_use]
    pub fn digest_of_contents(mut self) -> Self {
        let Self { blob, adapters, projectors, parameters, remote_host, .. } = &self;
        let contents =
            format!("{blob:?} {adapters:?} {projectors:?} {parameters:?} {remote_host:?}");
        self.digest = hex64(&contents);
        self
    }

    /// Makes the model a stub of a remote one.
    #[must_use]
    pub fn remote(mut self, host: &str) -> Self {
        self.remote_host = Some(host.to_owned());
        self
    }

    /// Tells whether the model has a capability.
    #[must_use]
    pub fn can(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// Returns the path `FROM` names in a Modelfile: the scheduler's key.
    #[must_use]
    pub fn blob_path(&self) -> String {
        format!("/var/lib/ollama/models/blobs/{}", self.blob)
    }
}

/// What happens to a name with a cloud suffix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// 502, as when ollama.com cannot be reached.
    Unreachable,
    /// 403, as with `OLLAMA_NO_CLOUD`.
    Disabled,
    /// An answer made without the GPU.
    Answers,
}

/// Which routes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// 0.15 to 0.31: `/v1/images/generations` and `/v1/images/edits` too.
    Images,
    /// 0.33.
    Known,
    /// A version to come, with `/api/imagine`, which takes the GPU.
    Later,
}

/// A stub's configuration; `StubConfig::default()` has no models.
#[derive(Clone, Debug)]
pub struct StubConfig {
    /// Installed models.
    pub models: Vec<Model>,
    /// Models `/api/pull` can bring; every other pull fails in-band.
    pub pullable: Vec<Model>,
    /// Address to listen on; port 0 chooses one.
    pub listen: SocketAddr,
    /// Runners resident at once (`OLLAMA_MAX_LOADED_MODELS`).
    pub max_loaded: usize,
    /// Slots per runner (`OLLAMA_NUM_PARALLEL`).
    pub num_parallel: usize,
    /// Requests that may wait for a load (`OLLAMA_MAX_QUEUE`).
    pub max_queue: usize,
    /// Keep-alive of a fresh load without its own (`OLLAMA_KEEP_ALIVE`).
    pub default_keep_alive: Duration,
    /// Context of a request that names none (`OLLAMA_CONTEXT_LENGTH`).
    pub default_num_ctx: u32,
    /// Pause before each token.
    pub token_time: Duration,
    /// Pause before the first token, on top of `token_time`.
    pub prompt_time: Duration,
    /// Time one embedding request takes.
    pub embed_time: Duration,
    /// Time a runner takes to leave the GPU; `/api/ps` stalls meanwhile.
    pub unload_time: Duration,
    /// Time between the lines of a pull, push or create.
    pub progress_time: Duration,
    /// Tokens of an answer when the request sets no limit.
    pub default_tokens: u32,
    /// Numbers in an embedding when the request sets no `dimensions`.
    pub embedding_length: u32,
    /// What `/api/version` says.
    pub version: String,
    /// Makes times, ids and durations constant, so that equal requests get equal bytes.
    pub fixed_time: bool,
    /// Refuses foreign `Host` headers with 403, as a loopback Ollama does.
    pub host_check: bool,
    /// Refuses foreign `Origin` headers with 403, as Ollama does.
    pub origin_check: bool,
    /// Which routes there are.
    pub era: Era,
    /// Web searches that a model asks for when its prompt speaks of one; Ollama makes three at most.
    pub searches: u32,
    /// How Ollama's own client calls itself in them.
    pub search_agent: String,
    /// Time for all searches of a request together.
    pub search_budget: Duration,
    /// What cloud names get.
    pub cloud: Cloud,
    /// Bytes of each request body kept in the log.
    pub log_body_bytes_max: usize,
    /// Entries kept in the log; the oldest go first.
    pub log_entries_max: usize,
    /// Largest request body read (blobs are only counted and have no limit).
    pub body_bytes_max: usize,
    /// How long `Stub::wait_until` waits before it fails the test.
    pub wait_max: Duration,
}

impl Default for StubConfig {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            pullable: Vec::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            max_loaded: 1,
            num_parallel: 1,
            max_queue: 512,
            default_keep_alive: Duration::from_mins(5),
            default_num_ctx: 4096,
            token_time: Duration::from_millis(2),
            prompt_time: Duration::ZERO,
            embed_time: Duration::from_millis(2),
            unload_time: Duration::ZERO,
            progress_time: Duration::from_millis(2),
            default_tokens: 8,
            embedding_length: 8,
            version: "0.33.0".to_owned(),
            fixed_time: false,
            host_check: true,
            origin_check: true,
            era: Era::Known,
            searches: 1,
            search_agent: "ollama/0.33.0 (amd64 linux) Go/go1.26.6".to_owned(),
            search_budget: Duration::from_mins(5),
            cloud: Cloud::Unreachable,
            log_body_bytes_max: 1024 * 1024,
            log_entries_max: 50_000,
            body_bytes_max: 256 * 1024 * 1024,
            wait_max: Duration::from_secs(10),
        }
    }
}

impl StubConfig {
    /// Creates a configuration with these models.
    #[must_use]
    pub fn with_models(models: impl IntoIterator<Item = Model>) -> Self {
        Self { models: models.into_iter().collect(), ..Self::default() }
    }

    /// Adds a model.
    #[must_use]
    pub fn model(mut self, model: Model) -> Self {
        self.models.push(model);
        self
    }

    /// The models a demo wants: two for chat, one for embeddings.
    #[must_use]
    pub fn demo_models() -> Vec<Model> {
        vec![
            Model::new("llama3").with(&[Capability::Completion, Capability::Tools]),
            Model::new("qwen3").with(&[
                Capability::Completion,
                Capability::Tools,
                Capability::Thinking,
            ]),
            Model::embedding("embed"),
        ]
    }
}
