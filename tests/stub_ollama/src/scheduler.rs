//! Ollama's scheduler: which runners are resident, who waits, who is evicted.
//!
//! A request for a resident, compatible runner is served at once and never queued. Every other
//! one goes on one strict FIFO queue served by one task, which blocks through the eviction and
//! the whole load, so that everything behind it waits too. Faithful on purpose, its known defects
//! included (starvation, A-B alternation, the keep-alive deadlock): foreman exists to avoid them.
//!
//! An eviction zeroes the victim's keep-alive and then waits for *an unload event*. It does not
//! remember its decision: if the victim gets another keep-alive before it is idle, no event comes
//! until that timer fires or somebody unloads it by hand.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::board::Board;
use crate::clock::Clock;
use crate::config::{Model, StubConfig};
use crate::faults::Faults;
use crate::log::Resident;
use crate::options::RunnerOptions;
use crate::residency::{Listed, Shared, Why, keep_time};
use crate::runner::RunnerUse;

/// Why a request gets no runner.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ScheduleError {
    /// The queue is full.
    Busy,
    /// The load failed; holds the text.
    Load(String),
    /// The stub is shutting down.
    Closed,
}

/// What a request asks of the scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) model: Arc<Model>,
    pub(crate) options: RunnerOptions,
    /// Nanoseconds; `None` leaves a resident runner's as it is.
    pub(crate) keep_alive_ns: Option<i64>,
}

/// A queued request. The client has left when `reply` is closed.
#[derive(Debug)]
struct Pending {
    wish: Wish,
    reply: oneshot::Sender<Result<RunnerUse, ScheduleError>>,
}

/// The entrance for requests.
#[derive(Debug)]
pub(crate) struct Scheduler {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Pending>,
}

/// The two tasks that the stub must run and stop.
#[derive(Debug)]
pub(crate) struct Work {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Pending>,
}

/// What the queue's task does next for one request.
enum Step {
    Granted(RunnerUse),
    Load,
    /// Wait for the next unload event.
    Wait(watch::Receiver<u64>),
}

impl Scheduler {
    pub(crate) fn new(
        config: &StubConfig,
        board: Arc<Board>,
        faults: Arc<Faults>,
        clock: Arc<Clock>,
    ) -> (Self, Work) {
        let (sender, receiver) = mpsc::channel(config.max_queue.max(1));
        let shared = Arc::new(Shared::new(config, board, faults, clock));
        let work = Work { shared: Arc::clone(&shared), queue: receiver };
        (Self { shared, queue: sender }, work)
    }

    /// Gets a runner, waiting as Ollama does. Dropping this future is the client leaving.
    pub(crate) async fn acquire(&self, wish: Wish) -> Result<RunnerUse, ScheduleError> {
        let answer = {
            let mut state = self.shared.lock();
            if state.compatible(&wish) {
                return self.shared.grant(&mut state, &wish).ok_or(ScheduleError::Closed);
            }
            let (reply, answer) = oneshot::channel();
            // Counted before it is sent, because the queue's task may take it at once.
            self.shared.board.change(|inner| inner.now.pending += 1);
            if let Err(refused) = self.queue.try_send(Pending { wish, reply }) {
                let is_full = matches!(refused, mpsc::error::TrySendError::Full(_));
                self.shared.board.change(|inner| {
                    inner.now.pending -= 1;
                    inner.now.counts.refused_busy += u64::from(is_full);
                });
                let busy = if is_full { ScheduleError::Busy } else { ScheduleError::Closed };
                return Err(busy);
            }
            answer
        };
        answer.await.unwrap_or(Err(ScheduleError::Closed))
    }

    /// Unloads by blob: at once if idle, else when the last user has finished.
    pub(crate) fn expire_blob(&self, blob: &str) {
        let mut state = self.shared.lock();
        self.shared.expire(&mut state, blob);
    }

    /// Lists the resident runners, longest-lived first, once no unload is in progress.
    pub(crate) async fn list(&self) -> Vec<Listed> {
        self.shared.list().await
    }

    /// Describes the resident runners without waiting.
    pub(crate) fn resident(&self) -> Vec<Resident> {
        self.shared.resident()
    }
}

impl Shared {
    /// Decides what to do for the request at the head of the queue.
    fn step(self: &Arc<Self>, wish: &Wish, told: &mut Option<u64>) -> Step {
        let mut state = self.lock();
        if state.compatible(wish)
            && let Some(granted) = self.grant(&mut state, wish)
        {
            return Step::Granted(granted);
        }
        // Register for the event before causing it.
        let unloads = self.unloads.subscribe();
        if state.loaded.contains_key(&wish.model.blob) {
            let blob = wish.model.blob.clone();
            self.evict(&mut state, &blob, Why::Reload, told);
            return Step::Wait(unloads);
        }
        if state.loaded.len() + state.leaving.len() < self.max_loaded {
            return Step::Load;
        }
        if state.leaving.is_empty()
            && let Some(blob) = state.victim()
        {
            self.evict(&mut state, &blob, Why::Full, told);
        }
        Step::Wait(unloads)
    }

    async fn serve(self: &Arc<Self>, pending: Pending) {
        let mut told = None;
        loop {
            match self.step(&pending.wish, &mut told) {
                Step::Granted(granted) => {
                    // A client that left meanwhile gives its use back by dropping it.
                    drop(pending.reply.send(Ok(granted)));
                    return;
                }
                Step::Load => return self.load(pending).await,
                Step::Wait(mut unloads) => {
                    let event = unloads.changed().await;
                    self.board.change(|inner| inner.now.evicting = None);
                    if event.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Loads for the head of the queue; its client leaving kills the load, whoever else waits.
    async fn load(self: &Arc<Self>, mut pending: Pending) {
        let model = Arc::clone(&pending.wish.model);
        let plan = self.faults.take_load(&model.name);
        self.board.change(|inner| inner.now.loading = Some(model.name.clone()));
        let time = plan.time.unwrap_or(model.load_time);
        let is_aborted = tokio::select! {
            biased;
            () = pending.reply.closed() => true,
            () = self.wait_for_load(time) => false,
        };
        if is_aborted {
            self.board.change(|inner| {
                inner.now.loading = None;
                inner.now.counts.aborted_loads += 1;
            });
            return;
        }
        if let Some(text) = plan.failure {
            self.board.change(|inner| {
                inner.now.loading = None;
                inner.now.counts.failed_loads += 1;
            });
            drop(pending.reply.send(Err(ScheduleError::Load(text))));
            return;
        }
        let granted = self.insert(&pending.wish);
        drop(granted.map(|granted| pending.reply.send(Ok(granted))));
    }

    async fn wait_for_load(&self, time: Duration) {
        sleep(time).await;
        self.faults.loads.pass().await;
    }
}

impl Work {
    /// Serves the queue and the timers until the scheduler is dropped.
    pub(crate) async fn run(self) {
        let Self { shared, mut queue } = self;
        let serve = async {
            while let Some(pending) = queue.recv().await {
                shared.board.change(|inner| inner.now.pending -= 1);
                if pending.reply.is_closed() {
                    shared.board.change(|inner| inner.now.counts.skipped_pending += 1);
                } else {
                    shared.serve(pending).await;
                }
            }
        };
        tokio::select! {
            () = serve => {}
            () = keep_time(&shared) => {}
        }
    }
}
