//! The handle tests hold: start, look, break, wait, stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::board::Board;
use crate::clock::Clock;
use crate::config::StubConfig;
use crate::faults::{Fault, Faults};
use crate::log::{Counts, LogEntry, Snapshot};
use crate::scheduler::{Scheduler, Work};
use crate::server::{self, Command};
use crate::world::World;

/// Orders in flight to the listening task; tests send one at a time.
const COMMANDS_MAX: usize = 8;

/// A running stand-in for Ollama. Dropping it stops it and cuts every connection.
///
/// A panic inside the stub is kept and raised again by [`Stub::shutdown`] or by the drop, so that
/// a test cannot pass over it.
#[derive(Debug)]
pub struct Stub {
    world: Arc<World>,
    address: SocketAddr,
    commands: Option<mpsc::Sender<Command>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Stub {
    /// Starts a stub; it answers as soon as this returns.
    ///
    /// # Panics
    /// When the address cannot be listened on. See [`Stub::try_start`].
    pub async fn start(config: StubConfig) -> Self {
        let listen = config.listen;
        match Self::try_start(config).await {
            Ok(stub) => stub,
            #[expect(clippy::panic, reason = "a test without its stub must stop here")]
            Err(error) => panic!("stub_ollama cannot listen on {listen}: {error}"),
        }
    }

    /// Starts a stub; it answers as soon as this returns.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn try_start(config: StubConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let clock = Arc::new(Clock::new(config.fixed_time));
        let board = Arc::new(Board::new(Arc::clone(&clock), config.log_entries_max.max(1)));
        let faults = Arc::new(Faults::default());
        let (scheduler, work) =
            Scheduler::new(&config, Arc::clone(&board), Arc::clone(&faults), Arc::clone(&clock));
        let (commands, orders) = mpsc::channel(COMMANDS_MAX);
        let world = World::new(config, clock, board, faults, scheduler, commands.downgrade());
        world.set_ollama_host(address);
        let world = Arc::new(world);
        let tasks = vec![
            tokio::spawn(server::run(Arc::clone(&world), listener, address, orders)),
            tokio::spawn(Work::run(work)),
        ];
        Ok(Self { world, address, commands: Some(commands), tasks })
    }

    /// Returns `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the listening address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns the totals.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.world.board.snapshot().counts
    }

    /// Returns the request log, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<LogEntry> {
        self.world.board.log()
    }

    /// Returns everything at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.world.snapshot()
    }

    /// Forgets the totals and the log; runners and models stay.
    pub fn reset(&self) {
        self.world.board.reset();
    }

    /// Has Ollama's own client find Ollama here, as with another `OLLAMA_HOST`. At first that is the stub itself.
    pub fn set_ollama_host(&self, address: SocketAddr) {
        self.world.set_ollama_host(address);
    }

    /// Arms a fault.
    pub fn faults(&self, fault: Fault) {
        self.world.faults.arm(fault);
    }

    /// Disarms every fault that has not hit yet.
    pub fn clear_faults(&self) {
        self.world.faults.clear();
    }

    /// Keeps loads from finishing until [`Stub::release_loads`]: a queue can build up.
    pub fn hold_loads(&self) {
        self.world.faults.loads.shut();
    }

    /// Lets loads finish.
    pub fn release_loads(&self) {
        self.world.faults.loads.open();
    }

    /// Keeps tokens and embeddings back until [`Stub::release_tokens`]: answers stay busy.
    pub fn hold_tokens(&self) {
        self.world.faults.tokens.shut();
    }

    /// Lets tokens and embeddings come.
    pub fn release_tokens(&self) {
        self.world.faults.tokens.open();
    }

    /// Adds or replaces a model, as a pull by somebody else would.
    pub fn install(&self, model: crate::Model) {
        let now = self.world.clock.wall_ns();
        self.world.catalog().install(model, now);
    }

    /// Goes down (`true`: connections are cut, new ones refused) or comes back on the same port.
    ///
    /// Runners and models survive; a real restart loses the runners, see
    /// [`Stub::unload_all`].
    ///
    /// # Panics
    /// When the port cannot be had back.
    pub async fn set_down(&self, is_down: bool) {
        let Some(commands) = &self.commands else { return };
        let result = if is_down {
            let (done, answer) = oneshot::channel();
            drop(commands.send(Command::Down(done)).await);
            answer.await.map_err(io::Error::other)
        } else {
            let (done, answer) = oneshot::channel();
            drop(commands.send(Command::Up(done)).await);
            answer.await.unwrap_or_else(|error| Err(io::Error::other(error)))
        };
        #[expect(clippy::panic, reason = "a test without its stub must stop here")]
        if let Err(error) = result {
            panic!("stub_ollama on {}: {error}", self.address);
        }
    }

    /// Tells every runner to go as soon as it is idle, as a restart of Ollama would.
    pub fn unload_all(&self) {
        for resident in self.world.scheduler.resident() {
            self.world.scheduler.expire_blob(&resident.blob);
        }
    }

    /// Waits until the snapshot satisfies the predicate, and returns it.
    ///
    /// # Panics
    /// When that takes longer than `StubConfig::wait_max`; the message shows the snapshot.
    pub async fn wait_until(&self, is_reached: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        match self.try_wait_until(self.world.config.wait_max, is_reached).await {
            Ok(snapshot) => snapshot,
            #[expect(clippy::panic, reason = "a test whose event never comes must stop here")]
            Err(snapshot) => panic!("stub_ollama: the awaited state never came: {snapshot:#?}"),
        }
    }

    /// Waits until the snapshot satisfies the predicate, but no longer than `wait_max`.
    ///
    /// # Errors
    /// The last snapshot, when the time is up.
    pub async fn try_wait_until(
        &self,
        wait_max: Duration,
        mut is_reached: impl FnMut(&Snapshot) -> bool,
    ) -> Result<Snapshot, Box<Snapshot>> {
        let mut changes = self.world.board.watch();
        let reached = async {
            loop {
                changes.mark_unchanged();
                let snapshot = self.world.snapshot();
                if is_reached(&snapshot) || changes.changed().await.is_err() {
                    return snapshot;
                }
            }
        };
        timeout(wait_max, reached).await.map_err(|_| Box::new(self.world.snapshot()))
    }

    /// Waits until the request log satisfies the predicate, and returns the log.
    ///
    /// # Panics
    /// When that takes longer than `StubConfig::wait_max`; the message shows the log.
    pub async fn wait_for_log(
        &self,
        mut is_reached: impl FnMut(&[LogEntry]) -> bool,
    ) -> Vec<LogEntry> {
        let reached = self.try_wait_until(self.world.config.wait_max, |_| is_reached(&self.log()));
        #[expect(clippy::panic, reason = "a test whose event never comes must stop here")]
        if reached.await.is_err() {
            panic!("stub_ollama: the awaited log never came: {:#?}", self.log());
        }
        self.log()
    }

    /// Stops the stub and raises again any panic that happened inside it.
    ///
    /// # Panics
    /// With the payload of the stub's own panic.
    pub async fn shutdown(mut self) {
        self.set_down(true).await;
        self.commands = None;
        for task in self.tasks.drain(..) {
            task.abort();
            if let Err(error) = task.await
                && let Ok(payload) = error.try_into_panic()
            {
                self.world.board.note_panic(payload);
            }
        }
        // The drop that follows raises what was noted.
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Some(payload) = self.world.board.take_panic()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_inside_the_stub_fails_the_test_that_used_it() {
        let stub = Stub::start(StubConfig::default()).await;
        stub.world.board.note_panic(Box::new("inside"));
        assert_eq!(stub.counts().panics, 1);
        let ended = tokio::spawn(stub.shutdown()).await;
        assert_eq!(ended.unwrap_err().into_panic().downcast_ref(), Some(&"inside"));
    }
}
