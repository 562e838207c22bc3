//! What becomes of a job after an attempt: judged by the pure `domain::retry`, then written, then told.
//!
//! An outcome is synced to disk before it is announced; only the bytes of a stream do not wait for that, and the worker
//! takes the next job meanwhile.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::job::Event;
use crate::domain::retry::{Charge, Exposure, Fault, Told, Verdict, judge};
use crate::fail_point;
use crate::store::{Answer, AnswerBody, Claim, Ending, GaveBack, GiveBack, StoreError};

use super::delay::{chance, delay};
use super::handle::add;
use super::output::{End, Output, Refusal};
use super::run::later;
use super::{Hands, Tools, WorkerHandle, brief};

/// Pause between tries to write an outcome: it must be written, and a full disk may get room.
const WRITE_PAUSE: Duration = Duration::from_secs(1);

/// A longer `Retry-After` is not believed: Ollama sends none, and a person waits.
const ASKED_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Conclusion {
    /// The whole answer is in the output.
    Whole,
    /// The upstream answered with an error, which is whole in the output.
    Answered {
        /// What it says about trying again.
        fault: Fault,
        /// Its text.
        text: String,
    },
    /// The upstream told an error inside a stream; its line is in the output.
    Told {
        /// What it says about trying again.
        fault: Fault,
        /// Its text.
        text: String,
    },
    /// There is no whole answer.
    Failed {
        /// What went wrong.
        fault: Fault,
        /// The HTTP status for a client that has seen nothing yet.
        status: u16,
        /// For people.
        text: String,
    },
    /// Nobody wants the answer.
    Abandoned,
    /// The daemon stops, for this reason; the job is not to blame.
    Stopped(String),
}

impl Conclusion {
    /// Whether the runner may be gone or wedged after this.
    pub(super) fn casts_doubt(&self) -> bool {
        match self {
            Conclusion::Whole | Conclusion::Abandoned | Conclusion::Stopped(_) => false,
            Conclusion::Answered { fault, .. }
            | Conclusion::Told { fault, .. }
            | Conclusion::Failed { fault, .. } => *fault != Fault::Told(Told::Final),
        }
    }

    /// The deadline of the job passed.
    pub(super) fn late() -> Conclusion {
        let text = "the deadline passed before it was done".to_owned();
        Conclusion::failed(Fault::Late, 504, text)
    }

    pub(super) fn failed(fault: Fault, status: u16, text: String) -> Conclusion {
        Conclusion::Failed { fault, status, text }
    }
}

impl Hands {
    /// Judges an attempt and sees to its consequences. Returns as soon as the worker may go on.
    pub(super) async fn conclude(&self, claim: Claim, output: Arc<Output>, conclusion: Conclusion) {
        match conclusion {
            Conclusion::Whole => self.finish(claim, output, Finish::Done),
            Conclusion::Abandoned => self.finish(claim, output, Finish::Cancelled),
            Conclusion::Stopped(text) => match exposure(&output) {
                Exposure::Hidden => self.give_back(&claim, &output, Charge::Nothing, text).await,
                Exposure::Shown => {
                    let refusal = Refusal::new(503, format!("{text}; it is safe to try again"));
                    self.finish(
                        claim,
                        output,
                        Finish::Failed { refusal, has_answer: HasAnswer::No },
                    );
                }
            },
            Conclusion::Answered { fault, text } => {
                let refusal = Refusal { is_told: true, ..Refusal::new(502, text) };
                self.judge_and_act(claim, output, fault, refusal, HasAnswer::Yes).await;
            }
            Conclusion::Told { fault, text } => {
                // A line that nobody has seen is told in the shape of an answer instead.
                let refusal = Refusal { is_told: output.is_shown(), ..Refusal::new(502, text) };
                self.judge_and_act(claim, output, fault, refusal, HasAnswer::No).await;
            }
            Conclusion::Failed { fault, status, text } => {
                self.judge_and_act(claim, output, fault, Refusal::new(status, text), HasAnswer::No)
                    .await;
            }
        }
    }

    async fn judge_and_act(
        &self,
        claim: Claim,
        output: Arc<Output>,
        fault: Fault,
        refusal: Refusal,
        has_answer: HasAnswer,
    ) {
        let (exposure, attempts_max) = (exposure(&output), self.settings.attempts_max);
        match judge(fault, claim.kind, exposure, claim.counters, attempts_max) {
            Verdict::Again(charge) => self.give_back(&claim, &output, charge, refusal.text).await,
            Verdict::Fail => self.finish(claim, output, Finish::Failed { refusal, has_answer }),
        }
    }

    /// Puts a job back into the queue.
    async fn give_back(&self, claim: &Claim, output: &Arc<Output>, charge: Charge, text: String) {
        let now_ms = self.now_ms();
        let failures = match charge {
            Charge::Attempt => claim.counters.attempts,
            Charge::Interruption => claim.counters.interruptions + 1,
            Charge::Deferral => claim.counters.deferrals + 1,
            Charge::Nothing => 0,
        };
        let pause = match charge {
            Charge::Nothing => Duration::ZERO,
            // The upstream is away; the worker itself pauses until it is back.
            Charge::Deferral if !self.tools.health.is_up() => Duration::ZERO,
            Charge::Attempt | Charge::Interruption | Charge::Deferral => {
                delay(failures, self.settings.retry_delay, chance()).max(asked_pause(output))
            }
        };
        tracing::warn!(job.id = %claim.id, job.attempt = claim.counters.attempts, retry.charge = ?charge,
            retry.ms = pause.as_millis(), job.error = %brief(&text), "job put back into the queue");
        if charge != Charge::Nothing {
            add(&self.handle.counts().retries);
        }
        let not_before_ms = later(now_ms, pause);
        let back = GiveBack { charge, not_before_ms, error: text, at_ms: now_ms };
        if put_back(&self.tools, &self.handle, claim, output, &back).await.is_err() {
            // The disk is full, say. The job must not stay claimed by nobody, but the worker need not wait for that.
            let (tools, handle) = (self.tools.clone(), self.handle.clone());
            let later = put_back_later(tools, handle, claim.clone(), Arc::clone(output), back);
            self.tools.tasks.spawn(later);
        }
    }

    /// Writes a job's one outcome and then tells it, beside the worker's further work.
    fn finish(&self, claim: Claim, output: Arc<Output>, finish: Finish) {
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

/// Writes that a job goes back to the queue.
async fn put_back(
    tools: &Tools,
    handle: &WorkerHandle,
    claim: &Claim,
    output: &Output,
    back: &GiveBack,
) -> Result<(), StoreError> {
    // Before the write: right after it the job may be claimed again.
    output.put_back();
    fail_point::reach("give_back.before");
    match tools.store.give_back(claim.seq, claim.lease_epoch, back.clone()).await {
        Ok(GaveBack::Queued) => {
            fail_point::reach("give_back.committed");
            Ok(())
        }
        Ok(GaveBack::Cancelled) => {
            tracing::info!(job.id = %claim.id, "job cancelled, instead of being tried again");
            handle.cancelled_waiting(claim.id, output);
            Ok(())
        }
        Ok(GaveBack::LeaseLost) => {
            tracing::error!(job.id = %claim.id, "the lease of a job was lost");
            Ok(())
        }
        Err(fault) => {
            tracing::error!(job.id = %claim.id, db.error = %fault, "a job could not be put back; trying again");
            Err(fault)
        }
    }
}

/// Tries until it is written, or the daemon stops: the next start puts the job back.
async fn put_back_later(
    tools: Tools,
    handle: WorkerHandle,
    claim: Claim,
    output: Arc<Output>,
    back: GiveBack,
) {
    while !tools.tasks.is_draining() {
        tokio::time::sleep(WRITE_PAUSE).await;
        if put_back(&tools, &handle, &claim, &output, &back).await.is_ok() {
            handle.wake();
            return;
        }
    }
}

/// Whether the output holds a whole answer of the upstream's, be it an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HasAnswer {
    Yes,
    No,
}

/// A final outcome.
#[derive(Debug)]
enum Finish {
    Done,
    Failed { refusal: Refusal, has_answer: HasAnswer },
    Cancelled,
}

impl Finish {
    fn keeps_answer(&self) -> HasAnswer {
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

/// What the upstream asked for in `Retry-After`, within reason.
fn asked_pause(output: &Output) -> Duration {
    let head = output.head();
    let asked = head.iter().flat_map(|head| &head.headers).find(|(name, _)| name == "retry-after");
    let seconds = asked.and_then(|(_, value)| std::str::from_utf8(value).ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0)).min(ASKED_PAUSE_MAX)
}

/// A job that outlives its caller may always be tried again: who follows it is told and cut.
fn exposure(output: &Output) -> Exposure {
    if output.is_shown() && !output.is_async() { Exposure::Shown } else { Exposure::Hidden }
}

/// An outcome that was not written is not told: the job runs again after the next start.
fn not_recorded() -> Refusal {
    Refusal::new(503, "foreman stopped before the answer was recorded; it is safe to try again")
}
