//! The composition root: from a checked configuration to a running daemon, and through its stop. Nothing else builds
//! these parts.

mod deadlines;
mod disk;
mod keys;
mod monitor;
mod retention;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::config::{Beside, Config};
use crate::descriptors;
use crate::fail_point;
use crate::guard::Guard;
use crate::http::{Edge, accept};
use crate::ollama::client::Ollama;
use crate::ollama::health::Health;
use crate::ollama::inventory::{Inventory, Poller};
use crate::ollama::residency::Residency;
use crate::ollama::url::Scheme;
use crate::shutdown::Tasks;
use crate::store::{Store, StoreError};
use crate::webhook;
use crate::worker::{Past, Settings, Tools, Worker};

pub use keys::KeyReader;

/// After the force, what has not ended by now is left behind.
const FORCE_LIMIT: Duration = Duration::from_secs(5);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is not free, or not ours.
    #[error("cannot listen on {addr}: {fault}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        fault: std::io::Error,
    },
    /// The database cannot be used.
    #[error("cannot open the database {path}: {fault}")]
    Store {
        /// The file.
        path: String,
        /// Why.
        fault: StoreError,
    },
    /// A value that only shows its fault in use.
    #[error("{0}")]
    Config(String),
}

/// How the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Everything ended by itself.
    Drained,
    /// Something had to be cut off; it is in the queue and runs after the next start.
    Forced,
    /// It found that its upstream is itself, and served nothing.
    Misled,
    /// A part of it died; it must be started anew.
    Broken,
}

/// A daemon that is bound and wired, and does nothing yet.
pub struct App {
    edge: Arc<Edge>,
    listener: TcpListener,
    worker: Worker,
    webhooks: webhook::Sender,
    poller: Poller,
    addr: SocketAddr,
}

impl App {
    /// Binds the address, opens the database (recovering what a crash left) and wires the parts. Blocks on the disk.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running then.
    pub async fn build(config: Config, clock: Clock) -> Result<App, StartError> {
        let listener = listen(config.addr).await?;
        let addr = listener
            .local_addr()
            .map_err(|fault| StartError::Listen { addr: config.addr, fault })?;
        let store = open_store(&config, &clock)?;
        store.keep_free(config.free_min);
        let token = config.ollama_token.as_ref().map(|token| token.expose());
        let ollama = Ollama::new(config.ollama_url.clone(), token, config.ollama_ca.clone());
        let ollama = ollama.map_err(StartError::Config)?;
        let (inventory, poller) = Inventory::new();
        let tools = Tools {
            store,
            ollama,
            health: Health::default(),
            residency: Residency::new(inventory.follow_aliases()),
            inventory,
            clock,
            tasks: Tasks::default(),
        };
        let set_aside = tools.store.set_lost_aside(tools.clock.now_ms()).await;
        let set_aside = set_aside
            .map_err(|fault| StartError::Store { path: config.db.display().to_string(), fault })?;
        if set_aside > 0 {
            tracing::info!(
                jobs.set_aside = set_aside,
                "jobs that nobody waits for run where nothing else is to be done"
            );
        }
        if config.beside == Beside::Off {
            // Who switches it off and on again has them tried anew.
            let forgotten = tools.store.forget_fits().await;
            forgotten.map_err(|fault| StartError::Store {
                path: config.db.display().to_string(),
                fault,
            })?;
        }
        let past = past(&tools.store, tools.clock.now_ms())
            .await
            .map_err(|fault| StartError::Store { path: config.db.display().to_string(), fault })?;
        let (worker, handle) =
            Worker::new(tools.clone(), settings(&config), config.answer_max, &past);
        let hostname = gethostname::gethostname().to_string_lossy().into_owned();
        let guard = Guard::new(addr, hostname, &config.origins);
        let (webhooks, webhook_handle) = webhook::Sender::new(
            tools.store.clone(),
            tools.clock.clone(),
            tools.tasks.clone(),
            config.webhooks.clone(),
        );
        let files_max = descriptors::raise();
        let edge = Edge::new(config, tools, handle, webhook_handle, guard, files_max);
        keys::keep_caps(&edge);
        Ok(App { edge: Arc::new(edge), listener, worker, webhooks, poller, addr })
    }

    /// Where it listens; the port is known even if 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Who reads the file of keys again; `None` where there is none.
    pub fn key_reader(&self) -> Option<KeyReader> {
        let edge = Arc::clone(&self.edge);
        self.edge.config.keys.is_some().then_some(KeyReader(edge))
    }

    /// Serves until a message comes in `stops` (or its senders are gone), then drains; a second message, or the end of the
    /// grace time, forces.
    pub async fn run(self, mut stops: mpsc::Receiver<()>) -> Stopped {
        let App { edge, listener, worker, webhooks, poller, addr } = self;
        let tasks = edge.tasks.clone();
        if !addr.ip().is_loopback() && edge.keys.are_none() {
            tracing::warn!(http.addr = %addr, "listening beyond this machine without keys (FOREMAN_TOKEN, FOREMAN_KEYS): whoever \
                reaches this address can use the GPU and read the status");
        }
        if edge.connections_max < edge.config.connections_max {
            let connections_max = edge.connections_max;
            tracing::warn!(
                http.connections_max = connections_max,
                "the limit of open files allows {connections_max} connections; \
                raise it (LimitNOFILE, ulimit -Hn), or lower FOREMAN_CONNECTIONS_MAX"
            );
        }
        let url = edge.ollama.url();
        if edge.config.ollama_token.is_some() && url.scheme() == Scheme::Http && !url.is_loopback()
        {
            tracing::warn!(upstream.url = %url, "the token for ollama (FOREMAN_OLLAMA_TOKEN) crosses the network in the \
                clear: whoever is on the way can read and use it; give ollama an https address");
        }
        tracing::info!(http.addr = %addr, upstream.url = %edge.ollama.url(), db.path = %edge.store.path().display(),
            "foreman serves");
        // The poller ends with the last handle of the inventory, so it is not waited for.
        let polling = poller.run(edge.ollama.clone());
        let draining = tasks.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = polling => (),
                () = draining.draining() => (),
            }
        });
        tasks.spawn_vital("monitor", monitor::run(Arc::clone(&edge)));
        tasks.spawn(retention::run(Arc::clone(&edge)));
        tasks.spawn_vital("disk", disk::run(Arc::clone(&edge)));
        tasks.spawn(disk::mourn(Arc::clone(&edge)));
        tasks.spawn_vital("deadlines", deadlines::run(Arc::clone(&edge)));
        tasks.spawn_vital("tether", monitor::hold_tether(Arc::clone(&edge)));
        tasks.spawn_vital("worker", worker.run());
        tasks.spawn_vital("webhooks", webhooks.run());
        tasks.spawn_vital("accept", accept::serve(Arc::clone(&edge), listener));
        tokio::select! {
            _ = stops.recv() => (),
            () = tasks.draining() => (),
        }
        tracing::info!(
            grace.s = edge.config.shutdown_grace.as_secs(),
            "stopping: no new work, finishing what runs"
        );
        fail_point::reach("shutdown.begun");
        let stopped = drain(&tasks, edge.config.shutdown_grace, &mut stops).await;
        fail_point::reach("shutdown.drained");
        edge.store.close().await;
        let stopped = if edge.is_misled.load(Ordering::SeqCst) {
            Stopped::Misled
        } else if tasks.is_broken() {
            Stopped::Broken
        } else {
            stopped
        };
        tracing::info!(?stopped, "foreman has stopped");
        stopped
    }
}

async fn drain(tasks: &Tasks, grace: Duration, stops: &mut mpsc::Receiver<()>) -> Stopped {
    tasks.drain();
    let reason = tokio::select! {
        () = tasks.finished() => return Stopped::Drained,
        () = tokio::time::sleep(grace) => "the grace time is over",
        Some(()) = stops.recv() => "a second signal came",
    };
    tracing::warn!(reason, "forcing the end; what runs goes back to the queue");
    tasks.force();
    if tokio::time::timeout(FORCE_LIMIT, tasks.finished()).await.is_err() {
        tracing::error!("some tasks did not end in time and are left behind");
    }
    Stopped::Forced
}

async fn listen(addr: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr).await.map_err(|fault| StartError::Listen { addr, fault })
}

fn open_store(config: &Config, clock: &Clock) -> Result<Store, StartError> {
    let opened = Store::open(&config.db, clock.now_ms());
    let (store, recovered) = opened
        .map_err(|fault| StartError::Store { path: config.db.display().to_string(), fault })?;
    if recovered != Default::default() {
        tracing::info!(
            jobs.waiting = recovered.waiting,
            jobs.requeued = recovered.requeued,
            jobs.given_up = recovered.given_up,
            "recovered the queue of the last run"
        );
    }
    Ok(store)
}

/// What earlier runs left for this one.
async fn past(store: &Store, now_ms: i64) -> Result<Past, StoreError> {
    Ok(Past { learned: store.learned(now_ms).await?, last_seq: store.last_seq().await? })
}

fn settings(config: &Config) -> Settings {
    Settings {
        policy: config.policy(),
        attempts_max: config.max_attempts,
        load_limit: config.load_limit,
        idle_limit: config.idle_limit,
        retry_delay: config.retry_delay,
        keep_alive: config.keep_alive,
        embed_model: config.embed_model.clone(),
    }
}
