//! What becomes of a job after an attempt: judged by the pure `domain::retry`, then written, then told.
//!
//! An outcome is synced to disk before it is announced; only the bytes of a stream do not wait for that, and the worker
//! takes the next job meanwhile.

use std::sync::Arc;
use std::time::Duration;

use crate::delay::{Growth, chance};
use crate::domain::retry::{Charge, Exposure, Fault, Told, Verdict, WaitedFor, judge};
use crate::fail_point;
use crate::store::{Claim, GaveBack, GiveBack, StoreError};

use super::handle::add;
use super::outcome::{Finish, HasAnswer};
use super::output::{Output, Refusal};
use super::run::later;
use super::{Hands, Tools, WorkerHandle, brief};

/// Pause between tries to write an outcome: it must be written, and a full disk may get room.
pub(super) const WRITE_PAUSE: Duration = Duration::from_secs(1);

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
    /// The load of its key failed, or was given up; whoever waits is told this.
    NotLoaded(Refusal),
    /// Nobody wants the answer.
    Abandoned,
    /// The daemon stops, for this reason; the job is not to blame.
    Stopped(String),
}

impl Conclusion {
    /// Whether the runner may be gone or wedged after this.
    pub(super) fn casts_doubt(&self) -> bool {
        match self {
            Conclusion::Whole
            | Conclusion::NotLoaded(_)
            | Conclusion::Abandoned
            | Conclusion::Stopped(_) => false,
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
                Exposure::Hidden => {
                    let requeue = Requeue { charge: Charge::Nothing, wait: Wait::None, text };
                    self.give_back(&claim, &output, requeue).await;
                }
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
            Conclusion::NotLoaded(refusal) => {
                let fault = Fault::NotLoaded(waited_for(&claim, &output));
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
            Verdict::Again(charge) => {
                let (wait, text) = (wait_after(fault), refusal.text);
                self.give_back(&claim, &output, Requeue { charge, wait, text }).await;
            }
            Verdict::Fail => self.finish(claim, output, Finish::Failed { refusal, has_answer }),
        }
    }

    /// Puts a job back into the queue.
    async fn give_back(&self, claim: &Claim, output: &Arc<Output>, requeue: Requeue) {
        let Requeue { charge, wait, text } = requeue;
        let now_ms = self.now_ms();
        let failures = match charge {
            Charge::Attempt => claim.counters.attempts,
            Charge::Interruption => claim.counters.interruptions + 1,
            Charge::Deferral => claim.counters.deferrals + 1,
            Charge::Nothing => 0,
        };
        let pause = match charge {
            _ if wait == Wait::None => Duration::ZERO,
            Charge::Nothing => Duration::ZERO,
            // The upstream is away; the worker itself pauses until it is back.
            Charge::Deferral if !self.tools.health.is_up() => Duration::ZERO,
            Charge::Attempt | Charge::Interruption | Charge::Deferral => Growth::JOB
                .delay(failures, self.settings.retry_delay, chance())
                .max(asked_pause(output)),
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
}

/// Writes that a job goes back to the queue.
async fn put_back(
    tools: &Tools,
    handle: &WorkerHandle,
    claim: &Claim,
    output: &Arc<Output>,
    back: &GiveBack,
) -> Result<(), StoreError> {
    // Before the write: right after it the job may be claimed again.
    output.put_back();
    fail_point::reach("give_back.before");
    match tools.store.give_back(claim.seq, claim.lease_epoch, back.clone()).await {
        Ok(GaveBack::Queued) => {
            fail_point::reach("give_back.committed");
            if claim.deadline_ms.is_some() {
                handle.deadline_waits();
            }
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
            return;
        }
    }
}

/// What the upstream asked for in `Retry-After`, within reason.
fn asked_pause(output: &Output) -> Duration {
    let head = output.head();
    let asked = head.iter().flat_map(|head| &head.headers).find(|(name, _)| name == "retry-after");
    let seconds = asked.and_then(|(_, value)| std::str::from_utf8(value).ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0)).min(ASKED_PAUSE_MAX)
}

/// How a job goes back to the queue.
struct Requeue {
    charge: Charge,
    wait: Wait,
    /// Why, for people.
    text: String,
}

/// Whether a job that goes back to the queue has to wait by itself before it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// It waits longer after each try.
    Growing,
    /// It does not: its key is paused, or it was not at fault.
    None,
}

fn wait_after(fault: Fault) -> Wait {
    match fault {
        Fault::NotLoaded(_) | Fault::LoadGivenUp => Wait::None,
        Fault::Unreachable
        | Fault::UpstreamDied
        | Fault::Cut
        | Fault::Truncated
        | Fault::Told(_)
        | Fault::Silent
        | Fault::Unnoted
        | Fault::TooLong
        | Fault::NoRoom
        | Fault::Late => Wait::Growing,
    }
}

fn waited_for(claim: &Claim, output: &Output) -> WaitedFor {
    match (claim.is_async, output.has_waiters()) {
        (true, _) => WaitedFor::Later,
        (false, true) => WaitedFor::Now,
        (false, false) => WaitedFor::Perhaps,
    }
}

/// A job that outlives its caller may always be tried again: who follows it is told and cut.
fn exposure(output: &Output) -> Exposure {
    if output.is_shown() && !output.is_async() { Exposure::Shown } else { Exposure::Hidden }
}
