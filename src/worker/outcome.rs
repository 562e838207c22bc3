//! The one outcome of a job: written, however often it takes, and then told.
//!
//! It is synced to disk before it is announced; only the bytes of a stream do not wait for that.

use std::sync::Arc;

use crate::domain::job::Event;
use crate::fail_point;
use crate::store::{Answer, AnswerBody, Claim, Ending, StoreError};

use super::conclude::WRITE_PAUSE;
use super::handle::add;
use super::output::{End, Output, Refusal};
use super::{Hands, Tools, WorkerHandle, brief};

impl Hands {
    /// Writes a job's one outcome and then tells it, beside the worker's further work.
    pub(super) fn finish(&self, claim: Claim, output: Arc<Output>, finish: Finish) {
        // One that was served is known to have been; any other is not followed on.
        self.handle.mind().gave_up(claim.id);
        // Its client reads on without waiting for the disk: the bytes are there.
        if matches!(finish, Finish::Done) && output.is_shown() {
            output.end(End::Whole);
        }
        let (tools, handle) = (self.tools.clone(), self.handle.clone());
        self.tools.tasks.spawn(async move {
            fail_point::reach("outcome.before");
            let is_ours = record(&tools, &claim, &output, &finish).await;
            fail_point::reach("outcome.committed");
            log(&tools, &claim, &output, &finish, is_ours);
            if finish.keeps_answer() == HasAnswer::No || !is_ours {
                output.discard_file();
            }
            output.end(if is_ours { finish.end() } else { End::Broken(not_recorded()) });
            handle.outputs().forget_this(claim.id, &output);
            if is_ours {
                finish.count(&handle);
            }
        });
    }
}

/// Whether the output holds a whole answer of the upstream's, be it an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HasAnswer {
    Yes,
    No,
}

/// A final outcome.
#[derive(Debug)]
pub(super) enum Finish {
    Done,
    Failed { refusal: Refusal, has_answer: HasAnswer },
    Cancelled,
}

impl Finish {
    pub(super) fn keeps_answer(&self) -> HasAnswer {
        match self {
            Finish::Done => HasAnswer::Yes,
            Finish::Failed { has_answer, .. } => *has_answer,
            Finish::Cancelled => HasAnswer::No,
        }
    }

    /// What followers see. An error answer of the upstream's is a whole answer to its client.
    fn end(&self) -> End {
        match self {
            Finish::Done | Finish::Failed { has_answer: HasAnswer::Yes, .. } => End::Whole,
            Finish::Failed { refusal, .. } => End::Broken(refusal.clone()),
            Finish::Cancelled => End::Broken(Refusal::cancelled()),
        }
    }

    fn count(&self, handle: &WorkerHandle) {
        let counts = handle.counts();
        match self {
            Finish::Done => add(&counts.done),
            Finish::Failed { .. } => add(&counts.failed),
            Finish::Cancelled => add(&counts.cancelled),
        }
    }

    fn event(&self) -> Event {
        match self {
            Finish::Done => Event::Complete,
            Finish::Failed { .. } => Event::Fail,
            Finish::Cancelled => Event::Cancel,
        }
    }

    fn error(&self) -> Option<String> {
        match self {
            Finish::Done => None,
            Finish::Failed { refusal, .. } => Some(refusal.text.clone()),
            Finish::Cancelled => Some("the client left".to_owned()),
        }
    }

    fn error_status(&self) -> Option<u16> {
        match self {
            Finish::Done | Finish::Cancelled => None,
            Finish::Failed { refusal, .. } => Some(refusal.status),
        }
    }
}

/// Writes the outcome, however often it takes. `false` if it was not ours to write.
async fn record(tools: &Tools, claim: &Claim, output: &Arc<Output>, finish: &Finish) -> bool {
    loop {
        match try_record(tools, claim, output, finish).await {
            Ok(is_ours) => return is_ours,
            Err(StoreError::Closed) => return false,
            Err(fault) => {
                tracing::error!(job.id = %claim.id, db.error = %fault, "an outcome could not be written; trying again");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(WRITE_PAUSE) => (),
            () = tools.tasks.forced() => return false,
        }
    }
}

async fn try_record(
    tools: &Tools,
    claim: &Claim,
    output: &Arc<Output>,
    finish: &Finish,
) -> Result<bool, StoreError> {
    let answer = match finish.keeps_answer() {
        HasAnswer::Yes => answer_of(output).await?,
        HasAnswer::No => None,
    };
    let error = match finish {
        Finish::Cancelled if output.is_cancelled() => {
            Some("it was cancelled while it ran".to_owned())
        }
        finish => finish.error(),
    };
    let error_status = match answer.as_ref().map(|answer| answer.status) {
        Some(status) if status >= 400 => Some(status),
        _ => finish.error_status(),
    };
    let measured = output.measured();
    let ending = Ending { event: finish.event(), answer, error, error_status, measured };
    let now_ms = tools.clock.now_ms();
    tools.store.finish(claim.seq, claim.lease_epoch, ending, now_ms).await
}

/// The answer as it is kept: in the row if it is in memory, else as the synced file.
async fn answer_of(output: &Arc<Output>) -> Result<Option<Answer>, StoreError> {
    let Some(head) = output.head() else { return Ok(None) };
    let body = match output.in_memory() {
        Some(bytes) => AnswerBody::Inline(bytes),
        None => {
            let (synced, name) = (Arc::clone(output), output.file_name());
            let outcome = tokio::task::spawn_blocking(move || synced.sync_file()).await;
            let outcome = outcome.map_err(std::io::Error::other).and_then(|outcome| outcome);
            outcome.map_err(|fault| StoreError::file(&output.file_path(), &fault))?;
            AnswerBody::File { name, bytes: output.bytes() }
        }
    };
    Ok(Some(Answer { status: head.status, headers: head.headers, body }))
}

fn log(tools: &Tools, claim: &Claim, output: &Output, finish: &Finish, is_ours: bool) {
    let work_ms = tools.clock.now_ms() - claim.claimed_at_ms - output.timings().load_ms;
    let id = claim.id;
    if !is_ours {
        tracing::error!(job.id = %id, "an outcome was not written: the lease was lost or the daemon ends");
        return;
    }
    match finish {
        Finish::Done => {
            tracing::info!(job.id = %id, job.model = %claim.model, job.attempt = claim.counters.attempts,
                job.work_ms = work_ms, answer.bytes = output.bytes(), "job done");
        }
        Finish::Failed { refusal, .. } => {
            tracing::warn!(job.id = %id, job.model = %claim.model, job.attempt = claim.counters.attempts,
                job.work_ms = work_ms, job.error = %brief(&refusal.text), "job failed");
        }
        Finish::Cancelled => tracing::info!(job.id = %id, job.work_ms = work_ms, "job cancelled"),
    }
}

/// An outcome that was not written is not told: the job runs again after the next start.
fn not_recorded() -> Refusal {
    Refusal::new(503, "foreman stopped before the answer was recorded; it is safe to try again")
}
