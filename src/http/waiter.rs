//! A client that waits for a job on a connection of its own. Dropping it means that the client is gone.
//!
//! A job may have several: equal requests, and a key that is sent again, join it. The job is cancelled when the last one
//! leaves, unless it outlives its caller.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::job::JobId;
use crate::fail_point;
use crate::store::{Cancellation, Hash, StoreError};
use crate::worker::output::Output;

use super::Edge;
use super::lingering::linger;

/// A client that waits for a job.
pub(super) struct Waiter {
    edge: Arc<Edge>,
    pub(super) id: JobId,
    pub(super) output: Arc<Output>,
    is_waiting: bool,
    leaves: Leaves,
}

/// What it means for a job that its last client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaves {
    /// It is cancelled.
    Cancelled,
    /// It goes on.
    Going,
    /// It is cancelled, unless the client sends the same request again within a moment.
    Lingering(Hash),
}

impl Waiter {
    /// A client that waits for an open job.
    pub(super) fn new(edge: &Arc<Edge>, id: JobId, leaves: Leaves) -> Waiter {
        Waiter::of(edge, id, edge.worker.outputs().open(id), leaves)
    }

    /// A client that waits for a job with this output.
    pub(super) fn of(edge: &Arc<Edge>, id: JobId, output: Arc<Output>, leaves: Leaves) -> Waiter {
        output.follow();
        Waiter { edge: Arc::clone(edge), id, output, is_waiting: true, leaves }
    }

    /// A client that joins others who wait for an open job; `None` if the last of them has just left.
    pub(super) fn join(
        edge: &Arc<Edge>,
        id: JobId,
        output: Arc<Output>,
        leaves: Leaves,
    ) -> Option<Waiter> {
        output.join().then(|| Waiter {
            edge: Arc::clone(edge),
            id,
            output,
            is_waiting: true,
            leaves,
        })
    }

    /// A client that gets the kept answer of a job.
    pub(super) fn of_kept(edge: &Arc<Edge>, id: JobId, output: Arc<Output>) -> Waiter {
        let mut waiter = Waiter::of(edge, id, output, Leaves::Going);
        waiter.let_go();
        waiter
    }

    /// A client that is back, in the place of the one that left.
    pub(super) fn back(mut self, request: Hash) -> Waiter {
        self.leaves = Leaves::Lingering(request);
        self
    }

    /// The client has seen status and headers of its stream: from here on none tries again by itself, and leaving is leaving.
    pub(super) fn begun(&mut self) {
        if matches!(self.leaves, Leaves::Lingering(_)) {
            self.leaves = Leaves::Cancelled;
        }
    }

    /// Who waits in the place of a client that has closed and may be back; the count of those who wait goes over to it.
    fn stand_in(&self) -> Waiter {
        Waiter {
            edge: Arc::clone(&self.edge),
            id: self.id,
            output: Arc::clone(&self.output),
            is_waiting: true,
            leaves: Leaves::Cancelled,
        }
    }

    /// The daemon it is a client of.
    pub(super) fn edge(&self) -> &Arc<Edge> {
        &self.edge
    }

    /// From here on the client's leaving means nothing: it has its answer, or the job goes on without it.
    pub(super) fn let_go(&mut self) {
        self.is_waiting = false;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // While the daemon stops, connections are closed by foreman, not by their clients: the jobs stay.
        let tasks = &self.edge.tasks;
        let is_over = self.output.has_ended();
        let is_cut_by_us =
            tasks.is_forced() || (tasks.is_draining() && !self.output.is_in_flight());
        let goes_on = self.leaves == Leaves::Going;
        if !self.is_waiting || is_over || is_cut_by_us || goes_on {
            self.output.unfollow();
            return;
        }
        // No client tries again once it has seen a part of its answer.
        if let Leaves::Lingering(request) = self.leaves
            && !self.output.is_shown()
            && !tasks.is_draining()
        {
            linger(&self.edge, request, self.stand_in());
            return;
        }
        if !self.output.leave() {
            return;
        }
        let (edge, id, output) = (Arc::clone(&self.edge), self.id, Arc::clone(&self.output));
        let tasks = edge.tasks.clone();
        tasks.spawn(async move {
            while let Err(fault) = cancel(&edge, id, &output).await {
                tracing::warn!(job.id = %id, db.error = %fault, "job not cancelled; trying again");
                tokio::select! {
                    () = tokio::time::sleep(CANCEL_PAUSE) => (),
                    () = edge.tasks.draining() => return,
                }
            }
        });
    }
}

/// Pause between tries to cancel a job whose client is gone: a full disk may get room.
const CANCEL_PAUSE: Duration = Duration::from_secs(1);

/// Cancels a job whose client left while it waited.
async fn cancel(edge: &Edge, id: JobId, output: &Arc<Output>) -> Result<(), StoreError> {
    fail_point::reach("cancel.before");
    match edge.store.cancel_waiting(id, edge.clock.now_ms()).await? {
        Cancellation::Cancelled => {
            fail_point::reach("cancel.committed");
            tracing::info!(job.id = %id, "job cancelled, its client left while it waited");
            edge.worker.cancelled_waiting(id, output);
        }
        // The worker sees the abandoned output, and forgets it in the end.
        Cancellation::Cancelling | Cancellation::Ended(_) => (),
        Cancellation::Unknown => edge.worker.outputs().forget(id),
    }
    Ok(())
}
