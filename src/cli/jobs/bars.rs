//! A line for each job that is waited for, on a terminal: its place in the queue, then its tokens.

use std::convert::Infallible;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::cli::ask::{Call, Caller, Stream, encoded};
use crate::cli::status_text::{age, millis};
use crate::clock::Clock;

use super::events::path_of;
use super::sse::{Event, Reader};

/// How often the line is drawn.
const TICK: Duration = Duration::from_millis(200);

/// How often a job is looked at that tells nothing by itself: its place in the queue changes.
const LOOK: Duration = Duration::from_secs(2);

/// The lines. Nothing is drawn where stderr is no terminal.
pub(super) struct Bars {
    bars: MultiProgress,
}

/// One line. It goes when it is dropped.
pub(super) struct Bar {
    bar: ProgressBar,
}

impl Bars {
    pub(super) fn new() -> Bars {
        Bars { bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()) }
    }

    /// A line for a job.
    pub(super) fn add(&self, id: &str) -> Bar {
        let style = ProgressStyle::with_template("{spinner} {prefix} {wide_msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = self.bars.add(ProgressBar::no_length().with_style(style));
        bar.set_prefix(id.to_owned());
        if !self.bars.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Bar { bar }
    }

    /// Does something with the terminal while no line is drawn.
    pub(super) fn hidden<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bars.suspend(work)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Bar {
    /// Whether nobody sees it.
    pub(super) fn is_hidden(&self) -> bool {
        self.bar.is_hidden()
    }

    /// Keeps the line up to date until it is dropped. Faults are left to who waits for the job.
    pub(super) async fn follow(&self, caller: &Caller, id: &str) -> Infallible {
        loop {
            self.look(caller, id).await;
            if let Ok(stream) = caller.open(Call::get(&path_of(Some(id)))).await {
                self.listen(caller, id, stream).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Until the events end.
    async fn listen(&self, caller: &Caller, id: &str, mut events: Stream) {
        let mut reader = Reader::default();
        loop {
            match tokio::time::timeout(LOOK, events.next()).await {
                Ok(Ok(Some(bytes))) => self.show(caller, id, &reader.take(&bytes)).await,
                Ok(Ok(None) | Err(_)) => return,
                Err(_) => self.look(caller, id).await,
            }
        }
    }

    async fn show(&self, caller: &Caller, id: &str, events: &[Event]) {
        let Some(last) = events.last() else { return };
        if last.kind != "job.progress" {
            return self.look(caller, id).await;
        }
        let data: Value = serde_json::from_str(&last.data).unwrap_or_default();
        self.bar.set_message(progress_line(&data));
    }

    async fn look(&self, caller: &Caller, id: &str) {
        let answer = caller.call(Call::get(&format!("/jobs/{}", encoded(id)))).await;
        if let Ok(job) = answer.and_then(|answer| answer.json()) {
            self.bar.set_message(job_line(&job, Clock::system().now_ms()));
        }
    }
}

fn job_line(job: &Value, now_ms: i64) -> String {
    let state = job["state"].as_str().unwrap_or("-");
    let since = &job[format!("{state}_at")];
    let mut line = state.to_owned();
    if since.is_string() {
        line.push_str(&format!(" for {}", age(now_ms - millis(since))));
    }
    if let Some(position) = job["position"].as_u64() {
        line.push_str(&format!(", number {position} in the queue"));
    }
    line
}

fn progress_line(data: &Value) -> String {
    let tokens = data["tokens"].as_u64().unwrap_or(0);
    match data["tokens_per_second"].as_f64() {
        Some(rate) => format!("working, {tokens} tokens, {rate:.1} tokens/s"),
        None => format!("working, {tokens} tokens"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_tells_the_place_in_the_queue_and_then_the_tokens() {
        let job =
            json!({ "state": "queued", "queued_at": "1970-01-01T00:00:01.000Z", "position": 3 });
        assert_eq!(job_line(&job, 6_000), "queued for 5s, number 3 in the queue");
        let data = json!({ "bytes": 900, "tokens": 42, "tokens_per_second": 30.25 });
        assert_eq!(progress_line(&data), "working, 42 tokens, 30.2 tokens/s");
        assert_eq!(progress_line(&json!({ "tokens_per_second": null })), "working, 0 tokens");
    }
}
