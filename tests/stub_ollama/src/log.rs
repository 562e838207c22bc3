//! What tests can look at: the request log, the totals and the state of the moment.
//!
//! Plain records, filled by the board and the scheduler, handed out as copies.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The whole answer was handed to the connection.
    Complete,
    /// The client closed before that.
    ClientGone,
    /// The stub cut it, because a fault said so or because it went down.
    Cut,
}

/// One request.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Number in order of arrival, from 1.
    pub sequence: u64,
    /// HTTP method.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Query string.
    pub query: Option<String>,
    /// Headers as received: lower-case names, lossy values.
    pub headers: Vec<(String, String)>,
    /// The body, up to `StubConfig::log_body_bytes_max`.
    pub body: Bytes,
    /// Length of the whole body.
    pub body_bytes: u64,
    /// The model field as the client spelled it.
    pub model: Option<String>,
    /// Since the stub started.
    pub arrived_at: Duration,
    /// When the response headers were ready.
    pub first_byte_at: Option<Duration>,
    /// When it was over.
    pub ended_at: Option<Duration>,
    /// How it ended; `None` while it runs.
    pub end: Option<End>,
    /// Status sent.
    pub status: Option<u16>,
    /// Body bytes handed to the connection.
    pub sent_bytes: u64,
    /// Body chunks handed to the connection.
    pub sent_chunks: u64,
}

impl LogEntry {
    /// Returns a header by its lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Totals since the start or the last reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that arrived, `/_stub` excluded.
    pub requests: u64,
    /// Completed loads.
    pub loads: u64,
    /// Completed loads per model.
    pub loads_by_model: BTreeMap<String, u64>,
    /// Runners that left, for whatever reason.
    pub unloads: u64,
    /// Victims the scheduler picked because it was full. foreman must keep this at 0.
    pub evictions: u64,
    /// Runners restarted for other options or because they were dead.
    pub reloads: u64,
    /// Loads given up because the client left.
    pub aborted_loads: u64,
    /// Loads that a fault made fail.
    pub failed_loads: u64,
    /// Queued requests skipped because the client had left.
    pub skipped_pending: u64,
    /// Requests refused with 503 because the queue was full.
    pub refused_busy: u64,
    /// Most requests inside the GPU part (queued, loading or running) at once.
    pub gpu_requests_max: u64,
    /// Most generations running at once.
    pub generations_max: u64,
    /// Most different models generating at once; above 1 they overlapped.
    pub models_generating_max: u64,
    /// Most embedding requests running at once.
    pub embeds_max: u64,
    /// Clients that left before their answer was over.
    pub client_gone: u64,
    /// Answers cut by the stub.
    pub cut: u64,
    /// Bytes of blobs received.
    pub blob_bytes: u64,
    /// Panics in the stub itself; re-raised when it is shut down or dropped.
    pub panics: u64,
}

/// A resident runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// The name that loaded it.
    pub model: String,
    /// Its weights.
    pub blob: String,
    /// Requests using it.
    pub users: u32,
    /// Its keep-alive in nanoseconds; `i64::MAX` is for ever.
    pub keep_alive_ns: i64,
    /// Its context.
    pub num_ctx: i64,
    /// False once a fault has killed its process.
    pub is_healthy: bool,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Totals.
    pub counts: Counts,
    /// Resident runners by blob.
    pub resident: Vec<Resident>,
    /// Requests whose answer is not over.
    pub open_requests: u64,
    /// Requests waiting in the scheduler's queue, the one being served excluded.
    pub pending: u64,
    /// The model being loaded.
    pub loading: Option<String>,
    /// The model whose unload the scheduler waits for.
    pub evicting: Option<String>,
    /// Requests in the GPU part.
    pub gpu_requests: u64,
    /// Models of the generations running, one entry each.
    pub generating: Vec<String>,
    /// Embedding requests running.
    pub embeds: u64,
}

impl Snapshot {
    /// Tells whether a model is resident.
    #[must_use]
    pub fn is_resident(&self, model: &str) -> bool {
        self.resident.iter().any(|resident| resident.model == model)
    }
}
