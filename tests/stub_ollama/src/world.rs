//! Everything the handlers of one stub share.

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
        Self { config, clock, board, faults, scheduler, commands, catalog }
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
