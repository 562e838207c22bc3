//! The only room that serves HTTP: accept, guard, route, and the four roads of a request (relayed, embedded, queued, own).
//!
//! A handler is a future on its client's connection: when the client leaves, hyper drops it, and what must happen then is
//! in the `Drop` of what the handler holds.

pub mod accept;
mod answer;
mod body;
mod caller;
mod embed;
mod error;
mod follow;
mod forecast;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod headers;
mod intake;
mod jobs;
mod lingering;
mod outflow;
mod own;
mod pass;
mod placement;
mod places;
mod plain;
pub mod prefer;
pub mod problem;
pub mod query;
mod queued;
mod reach;
mod records;
mod router;
mod search;
mod stainless;
mod status;
pub mod submission;
mod take_in;
mod trace;
mod unsure;
mod waiter;
mod waiting;
mod whom;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use tokio::sync::{Semaphore, oneshot};

use crate::clock::Clock;
use crate::config::Config;
use crate::guard::Guard;
use crate::keys::Keys;
use crate::ollama::client::{Body, Ollama};
use crate::ollama::health::Health;
use crate::ollama::inventory::Inventory;
use crate::ollama::residency::Residency;
use crate::ollama::routes::Routes;
use crate::shutdown::Tasks;
use crate::store::{QueueLimits, Store};
use crate::webhook;
use crate::worker::{Tools, WorkerHandle};

/// An answer to a client.
pub(crate) type Response = hyper::Response<Body>;

/// Everything a handler may need. One per daemon.
pub struct Edge {
    /// What was configured.
    pub config: Config,
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
    /// The worker.
    pub worker: WorkerHandle,
    /// Who tells receivers of webhooks.
    pub webhooks: webhook::Handle,
    /// Time.
    pub clock: Clock,
    /// Tasks and the stop.
    pub tasks: Tasks,
    /// Who is let in.
    pub guard: Guard,
    /// The keys that open foreman.
    pub keys: Keys,
    /// When the daemon started.
    pub started_at_ms: i64,
    /// Which run of the daemon this is, so that it can recognise itself.
    pub instance: String,
    /// Set when the upstream turned out to be this daemon itself.
    pub is_misled: AtomicBool,
    /// Which routes it has that foreman does not know.
    routes: Routes,
    /// Embeds in flight.
    embeds: Arc<Semaphore>,
    /// Embeds that wait for a place.
    embeds_waiting: AtomicU64,
    /// Status documents being made: a crowd that asks must not take the worker's readers away.
    status_places: Semaphore,
    /// Large answers being folded: each takes a thread, and up to its size in memory.
    fold_places: Semaphore,
    /// Jobs whose clients have just closed and may be back.
    lingering: lingering::Lingering,
    /// The places of the jobs that wait.
    queue: forecast::Queue,
    /// Compressed bodies whose text is in use.
    plain_places: Arc<Semaphore>,
    /// Requests that may be served at once, each on a connection of its own.
    pub connections_max: usize,
    /// Memory for request bodies that are being read.
    body_budget: Arc<Semaphore>,
}

impl Edge {
    /// Puts the parts together. The handlers work with the same tools as the worker. The process may have `files_max` files and
    /// sockets open.
    pub fn new(
        config: Config,
        tools: Tools,
        worker: WorkerHandle,
        webhooks: webhook::Handle,
        guard: Guard,
        files_max: u64,
    ) -> Edge {
        Edge {
            started_at_ms: tools.clock.now_ms(),
            instance: ulid::Ulid::generate().to_string(),
            is_misled: AtomicBool::new(false),
            routes: Routes::default(),
            embeds: Arc::new(Semaphore::new(config.embed_parallel)),
            embeds_waiting: AtomicU64::new(0),
            status_places: Semaphore::new(own::STATUS_AT_ONCE),
            fold_places: Semaphore::new(jobs::FOLDS_AT_ONCE),
            lingering: lingering::Lingering::default(),
            queue: forecast::Queue::new(),
            plain_places: Arc::new(Semaphore::new(plain::PLAIN_AT_ONCE)),
            connections_max: places::allowed(config.connections_max, files_max),
            body_budget: Arc::new(body::budget(config.body_max)),
            keys: Keys::new(
                config.token.as_ref().map(|token| token.expose()),
                config.keys.as_ref(),
            ),
            config,
            store: tools.store,
            ollama: tools.ollama,
            health: tools.health,
            inventory: tools.inventory,
            residency: tools.residency,
            clock: tools.clock,
            tasks: tools.tasks,
            worker,
            webhooks,
            guard,
        }
    }

    /// Does something to its end though its client leaves on the way, with whom its handler is dropped: what was committed has
    /// to be told to the worker and to those who wait. `None` if it died of itself.
    ///
    /// It begins at once, and is no part of what is returned: ten thousand handlers that wait hold none of it.
    fn to_the_end<T, W>(&self, work: W) -> impl Future<Output = Option<T>> + use<T, W>
    where
        T: Send + 'static,
        W: Future<Output = T> + Send + 'static,
    {
        let (sender, done) = oneshot::channel();
        // Whoever wanted to know may have left.
        self.tasks.spawn(async move { drop(sender.send(work.await)) });
        async move { done.await.ok() }
    }

    fn queue_limits(&self) -> QueueLimits {
        QueueLimits {
            jobs_max: self.config.max_queue,
            bytes_max: self.config.max_queue_bytes,
            class_max: self.config.class_max,
        }
    }
}
