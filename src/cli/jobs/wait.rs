//! `foreman jobs wait`: until jobs have ended, over restarts of the daemon.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Semaphore;

use crate::cli::ask::{Call, Caller, encoded};
use crate::cli::fault::Fault;
use crate::cli::{Exit, put};
use crate::clock::{Clock, millis};

use super::arguments::Wait;
use super::bars::{Bar, Bars};
use super::outcome::{Outcome, outcome, tell, worst};
use super::patience::Patience;

/// How long one question waits: below what proxies allow to be silent.
const POLL_MAX: Duration = Duration::from_secs(30);

/// What an answer may take beyond the wait that was asked for.
const POLL_MARGIN: Duration = Duration::from_secs(10);

/// The same at the end of a wait: the answer to its last question is on its way.
const LAST_MARGIN: Duration = Duration::from_secs(1);

/// The pause where a daemon answers sooner than it was asked to.
const POLL_PAUSE: Duration = Duration::from_millis(200);

/// Jobs watched at once; each has a connection or two. The others take their turn: all are waited for anyway.
const AT_ONCE: usize = 16;

/// Waits for all of them; a line for each as it ends.
pub(super) async fn wait(caller: &Caller, arguments: &Wait) -> Result<Exit, Fault> {
    let until = Until::of(arguments.timeout);
    let bars = Bars::new();
    let places = Semaphore::new(AT_ONCE);
    let each = arguments.jobs.ids.iter().map(|id| async {
        let _place = places.acquire().await;
        let ended = ended(caller, id, &until, &bars.add(id)).await;
        ended.and_then(|job| bars.hidden(|| told(id, &job, arguments.jobs.json)))
    });
    let ends = all(each.map(Box::pin).collect()).await;
    Ok(worst(ends.into_iter().map(|end| end.unwrap_or_else(Fault::tell))))
}

/// The end of a wait.
#[derive(Debug)]
pub(super) struct Until {
    clock: Clock,
    end_ms: Option<i64>,
    timeout: Option<Duration>,
}

impl Until {
    /// So long from now, or as long as it takes.
    pub(super) fn of(timeout: Option<Duration>) -> Until {
        let clock = Clock::system();
        let end_ms = timeout.map(|timeout| clock.now_ms().saturating_add(millis(timeout)));
        Until { clock, end_ms, timeout }
    }

    fn left(&self) -> Duration {
        let left_ms = self.end_ms.map(|end_ms| end_ms.saturating_sub(self.clock.now_ms()));
        left_ms
            .map_or(Duration::MAX, |left| Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    }
}

/// The job object once it has ended, or as it is when the time is up.
pub(super) async fn ended(
    caller: &Caller,
    id: &str,
    until: &Until,
    bar: &Bar,
) -> Result<Value, Fault> {
    let waited = long_polls(caller, id, until);
    if bar.is_hidden() {
        return waited.await;
    }
    tokio::select! {
        job = waited => job,
        never = decorated(caller, id, bar) => match never {},
    }
}

async fn decorated(caller: &Caller, id: &str, bar: &Bar) -> Infallible {
    bar.follow(caller, id).await
}

async fn long_polls(caller: &Caller, id: &str, until: &Until) -> Result<Value, Fault> {
    let mut patience = until.timeout.map_or_else(Patience::new, Patience::of);
    let mut last = None;
    loop {
        let left = until.left();
        if left.is_zero() {
            return last.ok_or_else(|| {
                Fault::Other(Exit::TimeUp, format!("job {id}: the time was up before it was seen"))
            });
        }
        let poll = left.min(POLL_MAX);
        // Whole seconds, and none beyond the end: the last answer comes in time, with the job as it is.
        let call = Call::get(&format!("/jobs/{}?wait={}s", encoded(id), poll.as_secs()));
        let limit = left.saturating_add(LAST_MARGIN).min(poll + POLL_MARGIN);
        let asked_ms = until.clock.now_ms();
        match caller.call(call.limit(limit)).await {
            Ok(answer) => {
                patience.renew();
                let job = answer.json()?;
                if outcome(&job) != Outcome::Open {
                    return Ok(job);
                }
                last = Some(job);
                if until.clock.now_ms() - asked_ms < millis(poll) / 2 {
                    tokio::time::sleep(POLL_PAUSE.min(until.left())).await;
                }
            }
            // The question was cut off by the end of the wait.
            Err(Fault::Lost(_)) if last.is_some() && until.left().is_zero() => {}
            Err(fault) => patience.bear(fault, caller.was_reached()).await?,
        }
    }
}

/// Prints how a job ended.
fn told(id: &str, job: &Value, is_json: bool) -> Result<Exit, Fault> {
    let state = job["state"].as_str().unwrap_or("-");
    let exit = tell(id, job);
    let line = if is_json { format!("{job}\n") } else { format!("{id} {state}\n") };
    put(line.as_bytes()).map(|()| exit)
}

/// Runs all of them side by side; what they came to, in order.
async fn all<T>(mut futures: Vec<Pin<Box<impl Future<Output = T>>>>) -> Vec<T> {
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(move |context| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *result = Some(value);
            }
        }
        match results.iter().all(Option::is_some) {
            true => Poll::Ready(results.drain(..).flatten().collect()),
            false => Poll::Pending,
        }
    })
    .await
}
