//! The only room that gives Ollama GPU work: one loop that decides and swaps, and the jobs in flight that it started.
//!
//! Everything that changes what Ollama holds in memory happens here, at a *border* between jobs, with nothing in flight:
//! swaps, clients' unloads, the loading of embedders, the release of idle models.

mod answer_kind;
mod attempt;
mod blocked;
mod border;
mod conclude;
mod embedders;
mod embeds;
mod flight;
mod forecast;
mod handle;
mod load_memory;
mod look;
mod mind;
mod outcome;
pub mod output;
mod outputs;
mod patience;
mod ps_question;
mod refusal;
mod rest_check;
mod run;
mod searches;
mod swap;
mod unattended;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::watch as flag;

use crate::clock::Clock;
use crate::domain::model::LoadKey;
use crate::domain::schedule::Policy;
use crate::ollama::client::Ollama;
use crate::ollama::health::Health;
use crate::ollama::inventory::Inventory;
use crate::ollama::residency::Residency;
use crate::shutdown::Tasks;
use crate::store::{Learned, Store};

pub use blocked::BlockedLane;
pub use border::BorderHold;
use border::Chore;
pub use embeds::{Embeds, Ticket};
use flight::InFlight;
pub use forecast::{Forecast, OfJob, Scene};
pub use handle::{Counts, WorkerHandle};
pub use mind::Arrival;
use mind::Mind;
use ps_question::PsQuestion;
pub use searches::{Searches, Searching};

/// Chores that may wait for a border. Each is a person's delete or a reconnect.
const CHORES_MAX: usize = 256;

/// What the worker is told by the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Tries per job.
    pub attempts_max: u32,
    /// The longest a load may take without anything changing in the upstream's memory.
    pub load_limit: Duration,
    /// The longest silence inside an answer.
    pub idle_limit: Duration,
    /// The first delay before a retry.
    pub retry_delay: Duration,
    /// How long an idle key stays; `None` is for ever.
    pub keep_alive: Option<Duration>,
    /// The embedding model to keep warm.
    pub embed_model: Option<String>,
    /// The rules of the scheduler.
    pub policy: Policy,
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

/// What an earlier run left behind.
#[derive(Debug, Default)]
pub struct Past {
    /// What it had learned.
    pub learned: Learned,
    /// The last arrival number it gave out.
    pub last_seq: i64,
}

/// The one worker. [`Worker::run`] consumes it.
pub struct Worker {
    hands: Hands,
    chores: mpsc::Receiver<Chore>,
    /// The outages of the upstream up to which its memory was asked about.
    outages_seen: u64,
    /// When ps was last asked, of the questions that it answered.
    ps_at_ms: i64,
    /// The question to ps that is out.
    ps_question: Option<PsQuestion>,
    /// The latest time seen, to notice a clock that is set back.
    seen_ms: i64,
    /// The models of others in memory, each with when Ollama lets it go, as last seen.
    others: Vec<String>,
    /// When that last changed: each use moves the time.
    others_used_at_ms: i64,
    /// When somebody else's loads were last warned about.
    warned_at_ms: i64,
    /// Since when nothing that somebody waits for was ready or in flight.
    quiet_since_ms: i64,
    /// Keys that went away with nothing in their place yet, and when foreman had loaded them.
    missing: Vec<(LoadKey, i64)>,
    /// Whether the load of an embedder is under way: nothing is dispatched meanwhile.
    is_loading_embedder: bool,
    embedder_loaded: mpsc::Receiver<()>,
    embedder_done: mpsc::Sender<()>,
    /// Whether nothing is in flight, for the watch over that load.
    border: flag::Sender<bool>,
    /// The jobs in flight.
    in_flight: InFlight,
    landed: mpsc::Receiver<i64>,
    landing: mpsc::Sender<i64>,
}

/// What the loop shares with the jobs in flight.
#[derive(Clone)]
pub(crate) struct Hands {
    tools: Tools,
    settings: Arc<Settings>,
    handle: WorkerHandle,
}

/// Log lines carry this much of an error text of the upstream's: a sentence, not an echoed prompt.
const LOGGED_CHARS_MAX: usize = 200;

/// An error text, short enough for a log line.
fn brief(text: &str) -> String {
    text.chars().take(LOGGED_CHARS_MAX).collect()
}

impl Worker {
    /// A worker that has not begun, and the handle others talk to it by.
    pub fn new(
        tools: Tools,
        settings: Settings,
        answer_bytes_max: u64,
        past: &Past,
    ) -> (Worker, WorkerHandle) {
        let (chore_sender, chores) = mpsc::channel(CHORES_MAX);
        // Each job in flight lands once.
        let (landing, landed) = mpsc::channel(settings.policy.parallel.max(1));
        // One load of an embedder at a time.
        let (embedder_done, embedder_loaded) = mpsc::channel(1);
        let folder = tools.store.answers_folder();
        let outputs = Arc::new(outputs::Outputs::new(folder, answer_bytes_max));
        let mind = Mind::new(&past.learned, past.last_seq);
        let now_ms = tools.clock.now_ms();
        let handle = WorkerHandle::new(outputs, chore_sender, mind, &tools);
        let hands = Hands { tools, settings: Arc::new(settings), handle: handle.clone() };
        let worker = Worker {
            hands,
            chores,
            outages_seen: 0,
            ps_at_ms: 0,
            ps_question: None,
            seen_ms: 0,
            others: Vec::new(),
            others_used_at_ms: 0,
            quiet_since_ms: now_ms,
            warned_at_ms: 0,
            missing: Vec::new(),
            is_loading_embedder: false,
            embedder_loaded,
            embedder_done,
            border: flag::Sender::new(true),
            in_flight: InFlight::default(),
            landed,
            landing,
        };
        (worker, handle)
    }
}

impl Hands {
    fn now_ms(&self) -> i64 {
        self.tools.clock.now_ms()
    }
}
