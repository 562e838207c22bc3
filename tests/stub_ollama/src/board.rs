//! Where everything is recorded, and how tests wait for it.
//!
//! Every change wakes the waiters, so that tests wait for events and never sleep. The board's
//! lock is the innermost one: nothing else is locked while it is held.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::clock::Clock;
use crate::log::{Counts, End, LogEntry, Snapshot};

/// What the board's lock guards.
#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) now: Snapshot,
    log: VecDeque<LogEntry>,
    next_sequence: u64,
    is_going_down: bool,
    panic: Option<PanicPayload>,
}

/// A panic's payload, kept to be raised again.
struct PanicPayload(Box<dyn Any + Send>);

impl std::fmt::Debug for PanicPayload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PanicPayload")
    }
}

/// The shared record of one stub.
#[derive(Debug)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
    clock: Arc<Clock>,
    entries_max: usize,
}

impl Board {
    pub(crate) fn new(clock: Arc<Clock>, entries_max: usize) -> Self {
        Self { inner: Mutex::default(), version: watch::Sender::new(0), clock, entries_max }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the record and wakes the waiters.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.lock());
        self.version.send_modify(|version| *version = version.wrapping_add(1));
        result
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.lock().now.clone()
    }

    pub(crate) fn log(&self) -> Vec<LogEntry> {
        self.lock().log.iter().cloned().collect()
    }

    pub(crate) fn reset(&self) {
        self.change(|inner| {
            inner.now.counts = Counts::default();
            inner.log.clear();
        });
    }

    pub(crate) fn going_down(&self, is_going_down: bool) {
        self.change(|inner| inner.is_going_down = is_going_down);
    }

    pub(crate) fn note_panic(&self, payload: Box<dyn Any + Send>) {
        self.change(|inner| {
            inner.now.counts.panics += 1;
            inner.panic.get_or_insert(PanicPayload(payload));
        });
    }

    pub(crate) fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.lock().panic.take().map(|payload| payload.0)
    }

    /// Opens a log entry; the guard closes it.
    pub(crate) fn begin(self: &Arc<Self>, mut entry: LogEntry) -> Entry {
        entry.arrived_at = self.clock.elapsed();
        let entries_max = self.entries_max;
        let sequence = self.change(|inner| {
            inner.next_sequence += 1;
            entry.sequence = inner.next_sequence;
            inner.now.counts.requests += 1;
            inner.now.open_requests += 1;
            inner.log.push_back(entry);
            if inner.log.len() > entries_max {
                inner.log.pop_front();
            }
            inner.next_sequence
        });
        Entry { board: Arc::clone(self), sequence, is_over: false }
    }

    /// Counts something in progress; dropping the guard ends it.
    pub(crate) fn enter(self: &Arc<Self>, gauge: Gauge) -> GaugeGuard {
        self.change(|inner| inner.enter(&gauge));
        GaugeGuard { board: Arc::clone(self), gauge }
    }
}

impl Inner {
    fn entry(&mut self, sequence: u64) -> Option<&mut LogEntry> {
        let first = self.log.front()?.sequence;
        let index = usize::try_from(sequence.checked_sub(first)?).ok()?;
        self.log.get_mut(index)
    }

    fn enter(&mut self, gauge: &Gauge) {
        let (now, counts) = (&mut self.now.gpu_requests, &mut self.now.counts);
        match gauge {
            Gauge::Gpu => {
                *now += 1;
                counts.gpu_requests_max = counts.gpu_requests_max.max(*now);
            }
            Gauge::Embed => {
                self.now.embeds += 1;
                counts.embeds_max = counts.embeds_max.max(self.now.embeds);
            }
            Gauge::Generation(model) => {
                self.now.generating.push(model.clone());
                let running = count(self.now.generating.len());
                counts.generations_max = counts.generations_max.max(running);
                let mut models: Vec<&String> = self.now.generating.iter().collect();
                models.sort_unstable();
                models.dedup();
                counts.models_generating_max =
                    counts.models_generating_max.max(count(models.len()));
            }
        }
    }

    fn leave(&mut self, gauge: &Gauge) {
        match gauge {
            Gauge::Gpu => self.now.gpu_requests -= 1,
            Gauge::Embed => self.now.embeds -= 1,
            Gauge::Generation(model) => {
                if let Some(at) = self.now.generating.iter().position(|name| name == model) {
                    self.now.generating.remove(at);
                }
            }
        }
    }
}

/// Something that goes on for a while.
#[derive(Debug)]
pub(crate) enum Gauge {
    Gpu,
    Embed,
    Generation(String),
}

/// Ends what it counts when dropped.
#[derive(Debug)]
pub(crate) struct GaugeGuard {
    board: Arc<Board>,
    gauge: Gauge,
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.board.change(|inner| inner.leave(&self.gauge));
    }
}

/// An open log entry. Dropped before `close`, it records that the client has gone.
#[derive(Debug)]
pub(crate) struct Entry {
    board: Arc<Board>,
    sequence: u64,
    is_over: bool,
}

impl Entry {
    /// Changes the log entry.
    pub(crate) fn set(&self, change: impl FnOnce(&mut LogEntry)) {
        let sequence = self.sequence;
        self.board.change(|inner| inner.entry(sequence).map(change));
    }

    /// Records the headers being ready.
    pub(crate) fn first_byte(&self, status: u16) {
        let at = self.board.clock.elapsed();
        self.set(|entry| {
            entry.status = Some(status);
            entry.first_byte_at = Some(at);
        });
    }

    /// Records the end; only the first one counts.
    pub(crate) fn close(&mut self, end: End) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        let at = self.board.clock.elapsed();
        let sequence = self.sequence;
        self.board.change(|inner| {
            let end = match end {
                End::ClientGone if inner.is_going_down => End::Cut,
                other => other,
            };
            inner.now.open_requests -= 1;
            match end {
                End::Complete => {}
                End::ClientGone => inner.now.counts.client_gone += 1,
                End::Cut => inner.now.counts.cut += 1,
            }
            if let Some(entry) = inner.entry(sequence) {
                entry.ended_at = Some(at);
                entry.end = Some(end);
            }
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.close(End::ClientGone);
    }
}

/// Widens a length for the counters.
pub(crate) fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
