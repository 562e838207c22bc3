//! Everything the handlers of one stub share.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::board::Board;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::config::StubConfig;
use crate::faults::Faults;
use crate::log::Snapshot;
use crate::scheduler::Scheduler;
use crate::server::Command;

/// One stub's state.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: StubConfig,
    pub(crate) clock: Arc<Clock>,
    pub(crate) board: Arc<Board>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) scheduler: Scheduler,
    /// Weak, because the listening task that receives the commands holds this world.
    pub(crate) commands: mpsc::WeakSender<Command>,
    catalog: Mutex<Catalog>,
    /// Where Ollama's own client finds Ollama.
    ollama_host: Mutex<Option<SocketAddr>>,
}

impl World {
    pub(crate) fn new(
        config: StubConfig,
        clock: Arc<Clock>,
        board: Arc<Board>,
        faults: Arc<Faults>,
        scheduler: Scheduler,
        commands: mpsc::WeakSender<Command>,
    ) -> Self {
        let catalog = Mutex::new(Catalog::new(&config.models, clock.wall_ns()));
        let ollama_host = Mutex::default();
        Self { config, clock, board, faults, scheduler, commands, catalog, ollama_host }
    }

    pub(crate) fn ollama_host(&self) -> Option<SocketAddr> {
        *self.ollama_host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_ollama_host(&self, address: SocketAddr) {
        *self.ollama_host.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
    }

    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Describes everything at this moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let resident = self.scheduler.resident();
        Snapshot { resident, ..self.board.snapshot() }
    }
}
