//! Which runners are resident: granting, timing, evicting and unloading them.
//!
//! The scheduler decides when; this module does it, under one lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::clock::Clock;
use crate::config::{Capability, Model, StubConfig};
use crate::faults::Faults;
use crate::fields::FOREVER_NS;
use crate::log::Resident;
use crate::runner::{Runner, RunnerUse};
use crate::scheduler::Wish;

/// Keep-alives longer than this get no timer: nothing here runs that long.
const TIMER_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A runner as `/api/ps` lists it.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) model: Arc<Model>,
    pub(crate) num_ctx: i64,
    pub(crate) expires_wall_ns: i128,
}

/// The resident runners by blob.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) loaded: BTreeMap<String, Runner>,
    last_id: u64,
    /// When each unloading runner's memory is free again.
    pub(crate) leaving: Vec<Instant>,
}

/// State and wake-ups shared by requests, the queue's task and the timers' task.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) unloads: watch::Sender<u64>,
    timers: Notify,
    pub(crate) board: Arc<Board>,
    pub(crate) faults: Arc<Faults>,
    clock: Arc<Clock>,
    pub(crate) max_loaded: usize,
    num_parallel: usize,
    default_keep_alive_ns: i64,
    unload_time: Duration,
}

/// Why a runner is told to go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Full,
    Reload,
}

impl State {
    pub(crate) fn compatible(&self, wish: &Wish) -> bool {
        self.loaded
            .get(&wish.model.blob)
            .is_some_and(|runner| runner.is_healthy && !runner.options.needs_reload(&wish.options))
    }

    /// Picks the victim: shortest keep-alive first (unsigned), ties by blob; idle ones first.
    pub(crate) fn victim(&self) -> Option<String> {
        let mut order: Vec<&Runner> = self.loaded.values().collect();
        order.sort_by_key(|runner| (runner.session_ns.cast_unsigned(), &runner.model.blob));
        let idle = order.iter().find(|runner| runner.users == 0);
        idle.or(order.first()).map(|runner| runner.model.blob.clone())
    }
}

impl Shared {
    pub(crate) fn new(
        config: &StubConfig,
        board: Arc<Board>,
        faults: Arc<Faults>,
        clock: Arc<Clock>,
    ) -> Self {
        Self {
            state: Mutex::default(),
            unloads: watch::Sender::new(0),
            timers: Notify::new(),
            board,
            faults,
            clock,
            max_loaded: config.max_loaded.max(1),
            num_parallel: config.num_parallel.max(1),
            default_keep_alive_ns: i64::try_from(config.default_keep_alive.as_nanos())
                .unwrap_or(FOREVER_NS),
            unload_time: config.unload_time,
        }
    }

    /// Lists the resident runners, longest-lived first, once no unload is in progress.
    pub(crate) async fn list(&self) -> Vec<Listed> {
        let mut unloads = self.unloads.subscribe();
        while !self.lock().leaving.is_empty() {
            if unloads.changed().await.is_err() {
                break;
            }
        }
        let state = self.lock();
        let mut listed: Vec<Listed> = state
            .loaded
            .values()
            .map(|runner| Listed {
                model: Arc::clone(&runner.model),
                num_ctx: runner.options.num_ctx,
                expires_wall_ns: runner.expires_wall_ns,
            })
            .collect();
        listed.sort_by_key(|entry| std::cmp::Reverse(entry.expires_wall_ns));
        listed
    }

    /// Describes the resident runners without waiting.
    pub(crate) fn resident(&self) -> Vec<Resident> {
        let describe = |runner: &Runner| Resident {
            model: runner.model.name.clone(),
            blob: runner.model.blob.clone(),
            users: runner.users,
            keep_alive_ns: runner.session_ns,
            num_ctx: runner.options.num_ctx,
            is_healthy: runner.is_healthy,
        };
        self.lock().loaded.values().map(describe).collect()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out a resident runner (Ollama's `useLoadedRunner`).
    pub(crate) fn grant(self: &Arc<Self>, state: &mut State, wish: &Wish) -> Option<RunnerUse> {
        let runner = state.loaded.get_mut(&wish.model.blob)?;
        runner.users += 1;
        runner.deadline = None;
        if let Some(keep_alive_ns) = wish.keep_alive_ns {
            runner.session_ns = keep_alive_ns;
        }
        let granted = RunnerUse {
            shared: Arc::clone(self),
            blob: wish.model.blob.clone(),
            id: runner.id,
            slots: Arc::clone(&runner.slots),
            died: runner.died.clone(),
        };
        self.board.change(|_| ());
        Some(granted)
    }

    /// Ends one use: unloads the idle runner or starts its timer.
    pub(crate) fn finish(&self, blob: &str, id: u64) {
        let mut state = self.lock();
        let Some(runner) = state.loaded.get_mut(blob).filter(|runner| runner.id == id) else {
            return;
        };
        runner.users -= 1;
        if runner.users == 0 {
            if runner.session_ns <= 0 {
                self.unload(&mut state, blob);
            } else {
                let session = Duration::from_nanos(runner.session_ns.unsigned_abs());
                runner.deadline = (session < TIMER_MAX).then(|| Instant::now() + session);
                runner.expires_wall_ns = self.clock.wall_ns() + i128::from(runner.session_ns);
                self.timers.notify_one();
            }
        }
        self.board.change(|_| ());
    }

    pub(crate) fn kill(&self, blob: &str, id: u64) {
        let mut state = self.lock();
        if let Some(runner) = state.loaded.get_mut(blob).filter(|runner| runner.id == id) {
            runner.is_healthy = false;
            runner.died.cancel();
        }
        self.board.change(|_| ());
    }

    pub(crate) fn expire(&self, state: &mut State, blob: &str) {
        let Some(runner) = state.loaded.get_mut(blob) else { return };
        runner.deadline = None;
        runner.session_ns = 0;
        runner.expires_wall_ns = self.clock.wall_ns();
        if runner.users == 0 {
            self.unload(state, blob);
        }
    }

    pub(crate) fn unload(&self, state: &mut State, blob: &str) {
        if state.loaded.remove(blob).is_none() {
            return;
        }
        if self.unload_time.is_zero() {
            self.unloads.send_modify(|unloads| *unloads += 1);
        } else {
            state.leaving.push(Instant::now() + self.unload_time);
            self.timers.notify_one();
        }
        self.board.change(|inner| inner.now.counts.unloads += 1);
    }

    /// Unloads what is due and returns when to look again.
    fn fire_timers(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        let due: Vec<String> = state
            .loaded
            .values()
            .filter(|runner| runner.users == 0 && runner.deadline.is_some_and(|at| at <= now))
            .map(|runner| runner.model.blob.clone())
            .collect();
        for blob in due {
            self.unload(&mut state, &blob);
        }
        let before = state.leaving.len();
        state.leaving.retain(|at| *at > now);
        if state.leaving.len() < before {
            self.unloads.send_modify(|unloads| *unloads += 1);
        }
        let deadlines = state.loaded.values().filter_map(|runner| runner.deadline);
        deadlines.chain(state.leaving.iter().copied()).min()
    }

    /// Tells a runner to go; counts it once however often the loop comes round.
    pub(crate) fn evict(&self, state: &mut State, blob: &str, why: Why, told: &mut Option<u64>) {
        let Some(runner) = state.loaded.get(blob) else { return };
        let (id, name) = (runner.id, runner.model.name.clone());
        let is_new = told.replace(id) != Some(id);
        self.board.change(|inner| {
            inner.now.evicting = Some(name);
            match why {
                Why::Full => inner.now.counts.evictions += u64::from(is_new),
                Why::Reload => inner.now.counts.reloads += u64::from(is_new),
            }
        });
        self.expire(state, blob);
    }

    pub(crate) fn insert(self: &Arc<Self>, wish: &Wish) -> Option<RunnerUse> {
        let mut state = self.lock();
        state.last_id += 1;
        let model = Arc::clone(&wish.model);
        let slots = if model.can(Capability::Completion) { self.num_parallel } else { 1 };
        let session_ns = wish.keep_alive_ns.unwrap_or(self.default_keep_alive_ns);
        let runner = Runner {
            id: state.last_id,
            options: wish.options.clone(),
            users: 0,
            session_ns,
            deadline: None,
            expires_wall_ns: self.clock.wall_ns() + i128::from(session_ns),
            is_healthy: true,
            slots: Arc::new(Semaphore::new(slots)),
            died: CancellationToken::new(),
            model: Arc::clone(&model),
        };
        state.loaded.insert(model.blob.clone(), runner);
        self.board.change(|inner| {
            inner.now.loading = None;
            inner.now.counts.loads += 1;
            *inner.now.counts.loads_by_model.entry(model.name.clone()).or_default() += 1;
        });
        self.grant(&mut state, wish)
    }
}

/// Fires keep-alive timers and ends unloads, for ever.
pub(crate) async fn keep_time(shared: &Shared) {
    loop {
        let woken = shared.timers.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        match shared.fire_timers(Instant::now()) {
            Some(at) => tokio::select! {
                () = woken => {}
                () = sleep_until(at) => {}
            },
            None => woken.await,
        }
    }
}
