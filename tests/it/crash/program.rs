//! A program of the kill test: it hands work in over the asynchronous surface, alone or many at once, follows it, cancels
//! it and tries it again, and asks again for whatever foreman died over. Unlike a client it sees each thing to its end.

use std::net::SocketAddr;
use std::sync::Arc;

use foreman::clock::Clock;
use serde_json::{Value, json};

use crate::harness::client::{Answer, Stream, request, try_open};
use crate::harness::random::Random;
use crate::harness::{DEADLINE, get};

use super::ask::Ask;
use super::load::{Followed, Known, Load};

/// Most jobs in one call.
const BATCH_MAX: u64 = 3;

/// A program.
pub(super) struct Program {
    pub(super) load: Arc<Load>,
    pub(super) number: u64,
    pub(super) random: Random,
    /// The receiver of its webhooks.
    pub(super) hook: String,
}

impl Program {
    /// Does one thing after the other until the load ends.
    pub(super) async fn run(mut self) {
        for turn in 0_u64.. {
            let Some(addr) = self.load.has_room().await else { return };
            let is_batch = self.random.below(4) == 0;
            let has_key = self.random.below(3) != 0;
            let count = if is_batch { 2 + self.random.below(BATCH_MAX - 1) } else { 1 };
            let mut asks = Vec::new();
            let mut bodies = Vec::new();
            for item in 0..count {
                let tag = format!("p{}t{turn}i{item}", self.number);
                let ask = Ask::random(&mut self.random, tag);
                let hook = Some(self.hook.as_str()).filter(|_| self.random.below(3) != 0);
                let mut body = submission(&ask, hook);
                if has_key {
                    body["idempotency_key"] = json!(ask.tag);
                }
                self.load.known().asks.insert(ask.tag.clone(), ask.clone());
                asks.push(ask);
                bodies.push(body);
            }
            let (path, body) = if is_batch {
                let tags = asks.iter().map(|ask| ask.tag.clone()).collect();
                self.load.known().batches.push(tags);
                ("/jobs/batch", Value::from(bodies))
            } else {
                ("/jobs", bodies.remove(0))
            };
            let answer = if has_key {
                let (answer, tries) = self.insist("POST", path, &body).await;
                self.load.known().reposts += tries - 1;
                answer
            } else {
                let Some(answer) = told(addr, "POST", path, &body).await else {
                    self.load.when_gone(addr).await;
                    continue;
                };
                answer
            };
            for (id, ask) in self.accepted(&answer).into_iter().zip(&asks) {
                self.load.acknowledge(&id, Some(&ask.tag));
                self.see_to(&id).await;
            }
        }
    }

    /// The ids of what was accepted: all of it, or something is wrong.
    fn accepted(&self, answer: &Answer) -> Vec<String> {
        let value = answer.json();
        let items = value["jobs"].as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        let ids: Vec<String> =
            items.iter().filter_map(|item| item["job_id"].as_str()).map(str::to_owned).collect();
        if answer.status != 202 || ids.len() != items.len() {
            self.wrong(format!("submitting: {} {value}", answer.status));
        }
        ids
    }

    /// What a program may want of a job that it submitted.
    async fn see_to(&mut self, id: &str) {
        match self.random.below(10) {
            0..=2 => (),
            3..=5 => self.follow(id).await,
            6 => self.cancel(id).await,
            7 | 8 => {
                self.cancel(id).await;
                self.retry_unless_done(id).await;
            }
            _ => self.retry_unless_done(id).await,
        }
    }

    async fn cancel(&mut self, id: &str) {
        self.load.known().cancels.insert(id.to_owned());
        let (answer, _) = self.insist("POST", &format!("/jobs/{id}/cancel"), &json!({})).await;
        match answer.status.as_u16() {
            200 => {
                let now_ms = Clock::system().now_ms();
                self.load.known().cancelled.insert(id.to_owned(), now_ms);
            }
            // It had ended.
            409 => (),
            _ => self.wrong(format!("cancel: {} {}", answer.status, answer.text())),
        }
    }

    /// Waits for the end of a job, and tries it again if it is not done.
    async fn retry_unless_done(&mut self, id: &str) {
        let (answer, _) = self.insist("GET", &format!("/jobs/{id}?wait=25s"), &json!({})).await;
        let object = answer.json();
        match object["state"].as_str() {
            Some("failed" | "cancelled") => (),
            Some("done") => return,
            _ => return self.wrong(format!("it never ended: {object}")),
        }
        let (answer, tries) = self.insist("POST", &format!("/jobs/{id}/retry"), &json!({})).await;
        let is_acknowledged = answer.status == 202;
        // Where an earlier try took, and only its answer was lost.
        if !is_acknowledged && (answer.status != 409 || tries == 1) {
            self.wrong(format!("retry: {} {}", answer.status, answer.text()));
        }
        let mut known = self.load.known();
        let retries = known.retries.entry(id.to_owned()).or_default();
        retries.asked += tries;
        retries.acknowledged += u32::from(is_acknowledged);
    }

    /// Puts the answer of a job together, however often it is cut off.
    async fn follow(&mut self, id: &str) {
        let mut so_far = Followed { id: id.to_owned(), attempt: 0, bytes: Vec::new(), resumed: 0 };
        loop {
            let addr = self.load.serves().await;
            let Some(stream) = try_open(addr, request(addr, "GET", &rest_of(&so_far), "")).await
            else {
                self.load.when_gone(addr).await;
                continue;
            };
            if stream.status == 200 {
                let attempt = stream.headers["x-foreman-attempt"].to_str().unwrap();
                so_far.attempt = attempt.parse().unwrap();
                so_far.resumed += u32::from(!so_far.bytes.is_empty());
                if self.read(stream, &mut so_far.bytes).await == Read::Whole {
                    return self.load.known().followed.push(so_far);
                }
                continue;
            }
            let answer = stream.rest().await;
            if !answer.is_whole {
                continue;
            }
            match answer.json()["code"].as_str() {
                Some("attempt-replaced") => {
                    (so_far.attempt, so_far.bytes) = (0, Vec::new());
                }
                Some("no-answer") => return,
                _ => return self.wrong(format!("following {so_far:?}: {}", answer.text())),
            }
        }
    }

    /// Reads on, to the end or, one time in three, until the first bytes.
    async fn read(&mut self, mut stream: Stream, bytes: &mut Vec<u8>) -> Read {
        let leaves = self.random.below(3) == 0;
        loop {
            match stream.next().await {
                None => return Read::Whole,
                Some(Ok(more)) => bytes.extend_from_slice(&more),
                Some(Err(_)) => break,
            }
            if leaves {
                break;
            }
        }
        keep_records(bytes);
        Read::Cut
    }

    /// Asks until there is an answer; it, and how often it was asked.
    async fn insist(&self, method: &str, path: &str, body: &Value) -> (Answer, u32) {
        let mut tries = 0;
        loop {
            let addr = self.load.serves().await;
            tries += 1;
            match told(addr, method, path, body).await {
                Some(answer) => return (answer, tries),
                None => self.load.when_gone(addr).await,
            }
        }
    }

    fn wrong(&self, what: String) {
        self.load.known().wrong.push(what);
    }
}

/// How a part of an answer ended.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    Whole,
    Cut,
}

/// Where what is missing can be had.
fn rest_of(so_far: &Followed) -> String {
    let path = format!("/jobs/{}/output?stream=true", so_far.id);
    match so_far.attempt {
        0 => path,
        attempt => format!("{path}&attempt={attempt}&offset={}", so_far.bytes.len()),
    }
}

/// Leaves the whole records of what was cut off. The one by which foreman tells why is no part of the answer.
fn keep_records(bytes: &mut Vec<u8>) {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.truncate(whole);
    let text = String::from_utf8_lossy(bytes);
    let last = text.trim_end().rfind('\n').map_or(0, |at| at + 1);
    if ["{\"error\"", "data: {\"error\""].iter().any(|begin| text[last..].starts_with(begin)) {
        bytes.truncate(last);
    }
}

/// The body of a submission.
pub(super) fn submission(ask: &Ask, hook: Option<&str>) -> Value {
    json!({ "endpoint": ask.shape.path(), "body": ask.body(), "state_webhook_url": hook })
}

/// A whole answer, if foreman lives to give it.
pub(super) async fn told(
    addr: SocketAddr,
    method: &str,
    path: &str,
    body: &Value,
) -> Option<Answer> {
    let sent = request(addr, method, path, body.to_string());
    let answer = try_open(addr, sent).await?.rest().await;
    answer.is_whole.then_some(answer)
}

/// Waits until nothing waits, runs or is to be told.
pub(super) async fn idle(addr: SocketAddr) {
    let mut status = Value::Null;
    let idle = tokio::time::timeout(DEADLINE, async {
        while status["queue"]["depth"] != 0
            || status["webhooks"]["pending"] != 0
            || status["running"].as_array().is_some_and(|running| !running.is_empty())
        {
            status = get(addr, "/status").await.json();
        }
    });
    assert!(idle.await.is_ok(), "it never came to rest: {status:#}");
}

/// What the programs did, in numbers.
pub(super) fn summary(known: &Known) -> String {
    let retried: u32 = known.retries.values().map(|retries| retries.acknowledged).sum();
    let resumed: u32 = known.followed.iter().map(|followed| followed.resumed).sum();
    format!(
        "programs: batches {}, submitted again {}, cancels acknowledged {}, retries acknowledged {retried}, \
         followed {}, resumed by offset {resumed}",
        known.batches.len(),
        known.reposts,
        known.cancelled.len(),
        known.followed.len()
    )
}
