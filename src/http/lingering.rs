//! Jobs whose clients have just closed and will be back: clients that try again by themselves close first. Such a job
//! outlives its client for a moment, and the same request, sent as a retry, takes it over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::store::Hash;

use super::Edge;
use super::waiter::Waiter;

/// How long a job outlives a client that says it tries again: those clients pause for 0.5 to 2 s in the default (measured),
/// and a network takes its time.
const OUTLIVES: Duration = Duration::from_secs(5);

/// The waiters of such jobs.
#[derive(Default)]
pub(super) struct Lingering {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By the hash of what their clients will send again; one for each client that left, the one that left first in front.
    by_request: HashMap<Hash, Vec<(u64, Waiter)>>,
    /// Tells one that was taken over and left again from its first time.
    last_number: u64,
}

impl Lingering {
    /// Takes over the wait for a job whose client sends its request again.
    pub(super) fn take(&self, request: &Hash) -> Option<Waiter> {
        self.lock().take_where(request, |_| true)
    }

    /// How many clients may be back.
    pub(super) fn len(&self) -> usize {
        self.lock().by_request.values().map(Vec::len).sum()
    }

    fn put(&self, request: Hash, waiter: Waiter) -> u64 {
        let mut inner = self.lock();
        inner.last_number += 1;
        let number = inner.last_number;
        inner.by_request.entry(request).or_default().push((number, waiter));
        number
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take_where(&mut self, request: &Hash, is_it: impl Fn(u64) -> bool) -> Option<Waiter> {
        let waiters = self.by_request.get_mut(request)?;
        let at = waiters.iter().position(|(number, _)| is_it(*number))?;
        let (_, waiter) = waiters.remove(at);
        if waiters.is_empty() {
            self.by_request.remove(request);
        }
        Some(waiter)
    }
}

/// Keeps the job of a client that has closed. If nobody takes it over in time, its client has left.
pub(super) fn linger(edge: &Arc<Edge>, request: Hash, waiter: Waiter) {
    tracing::debug!(job.id = %waiter.id, "a client that tries again has closed; its job outlives it for a moment");
    let number = edge.lingering.put(request, waiter);
    let edge = Arc::clone(edge);
    let tasks = edge.tasks.clone();
    tasks.spawn(async move {
        let is_stopping = tokio::select! {
            () = tokio::time::sleep(OUTLIVES) => false,
            () = edge.tasks.draining() => true,
        };
        let waiter = edge.lingering.lock().take_where(&request, |other| other == number);
        if let Some(mut waiter) = waiter
            && is_stopping
        {
            // Its client may be back after the restart.
            waiter.let_go();
        }
    });
}
