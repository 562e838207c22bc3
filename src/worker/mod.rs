//! The only room that gives Ollama GPU work: one loop that decides, swaps and runs, one job at a time.
//!
//! Everything that changes what Ollama holds in memory happens here, at a *border* between jobs, with nothing in flight:
//! swaps, clients' unloads, the warming of the embedder, the release of idle models.

mod answer_kind;
mod attempt;
mod border;
mod conclude;
mod delay;
mod handle;
pub mod output;
mod outputs;
mod run;
mod swap;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::ollama::client::Ollama;
use crate::ollama::health::Health;
use crate::ollama::inventory::Inventory;
use crate::ollama::residency::Residency;
use crate::shutdown::Tasks;
use crate::store::Store;

pub use border::BorderHold;
use border::Chore;
pub use handle::{Counts, WorkerHandle};

/// Chores that may wait for a border. Each is a person's delete or a reconnect.
const CHORES_MAX: usize = 256;

/// What the worker is told by the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Tries per job.
    pub attempts_max: u32,
    /// The longest a load may take.
    pub load_limit: Duration,
    /// The longest silence inside an answer.
    pub idle_limit: Duration,
    /// The first delay before a retry.
    pub retry_delay: Duration,
    /// How long an idle key stays; `None` is for ever.
    pub keep_alive: Option<Duration>,
    /// The embedding model to keep warm.
    pub embed_model: Option<String>,
}

/// What the worker works with.
#[derive(Clone)]
pub struct Tools {
    /// The database.
    pub store: Store,
    /// The upstream.
    pub ollama: Ollama,
    /// Whether it is there.
    pub health: Health,
    /// What it has installed.
    pub inventory: Inventory,
    /// What it has in memory.
    pub residency: Residency,
    /// Time.
    pub clock: Clock,
    /// Tasks and the stop.
    pub tasks: Tasks,
}

/// The one worker. [`Worker::run`] consumes it.
pub struct Worker {
    tools: Tools,
    settings: Settings,
    handle: WorkerHandle,
    chores: mpsc::Receiver<Chore>,
    /// The outages of the upstream up to which its memory was asked about.
    outages_seen: u64,
    /// When ps was last asked.
    ps_at_ms: i64,
    /// The tickets up to which embeds that load by themselves are not waited for any more, so that one that hangs is waited
    /// for once: before a load of foreman's own, and before a job on a resident key.
    given_up_load: u64,
    passed_load: u64,
}

/// Log lines carry this much of an error text of the upstream's: a sentence, not an echoed prompt.
const LOGGED_CHARS_MAX: usize = 200;

/// An error text, short enough for a log line.
fn brief(text: &str) -> String {
    text.chars().take(LOGGED_CHARS_MAX).collect()
}

impl Worker {
    /// A worker that has not begun, and the handle others talk to it by.
    pub fn new(tools: Tools, settings: Settings, answer_bytes_max: u64) -> (Worker, WorkerHandle) {
        let (chore_sender, chores) = mpsc::channel(CHORES_MAX);
        let folder = tools.store.answers_folder();
        let outputs = Arc::new(outputs::Outputs::new(folder, answer_bytes_max));
        let handle = WorkerHandle::new(outputs, chore_sender);
        let worker = Worker {
            tools,
            settings,
            handle: handle.clone(),
            chores,
            outages_seen: 0,
            ps_at_ms: 0,
            given_up_load: 0,
            passed_load: 0,
        };
        (worker, handle)
    }

    fn now_ms(&self) -> i64 {
        self.tools.clock.now_ms()
    }
}
