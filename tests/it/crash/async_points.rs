//! The real binary dies between every two steps of what programs do over the asynchronous surface: they submit, cancel, try
//! again, drop and are told by webhooks. After a start without the point the promises are asked for again, and the oracles
//! of the kill test compare.
//!
//! A point that no deed reaches fails the test: the daemon then does not die.

use std::net::SocketAddr;

use foreman::clock::{Clock, rfc3339};
use foreman::fail_point;
use serde_json::{Value, json};
use stub_ollama::{Stub, StubConfig};
use tempfile::TempDir;

use crate::harness::client::Answer;
use crate::harness::daemon::{Daemon, Starting};
use crate::harness::jobs::{ended, id_of, object, submit, try_submit};
use crate::harness::receiver::Receiver;
use crate::harness::{DEADLINE, get, not_run, send};

use super::ask::{Ask, Shape, tag_of};
use super::load::Known;
use super::program::{idle, submission, told};
use super::{config, hooks, oracle, report};

/// No fail point: kill -9 once the deed was acknowledged.
const KILL: &str = "kill";

/// How far ahead the time of a job is that is to wait.
const HOUR_MS: i64 = 3_600_000;

/// How far ahead a deadline is that is to pass while its job waits.
const DEADLINE_AHEAD_MS: i64 = 150;

/// What a program does before foreman dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// Three jobs on two models, each with a key.
    Submit,
    /// Three jobs in one call.
    Batch,
    /// Cancels one that waits.
    CancelWaiting,
    /// Cancels one that runs.
    CancelRunning,
    /// Waits until the deadline of one that waits has passed.
    Expire,
    /// Tries a cancelled one again.
    Retry,
    /// Drops one that is done.
    Drop,
}

/// Each deed with the points at which it is to be interrupted.
const DEATHS: [(Deed, &[&str]); 7] = [
    (
        Deed::Submit,
        &[
            "admit.uncommitted",
            "admit.committed",
            "admit.committed:2",
            "claim.committed",
            "loaded.committed",
            "answer.chunk:5",
            "outcome.uncommitted",
            "outcome.committed",
            "deliver.before",
            "deliver.before:5",
            "deliver.replied",
            "deliver.replied:4",
            "deliver.replied:7",
            "deliver.noted",
            "deliver.noted:4",
            KILL,
        ],
    ),
    (Deed::Batch, &["admit.uncommitted", "admit.uncommitted:3", "admit.committed", KILL]),
    (Deed::CancelWaiting, &["cancel.uncommitted", "cancel.committed", KILL]),
    (
        Deed::CancelRunning,
        &[
            "cancel_running.uncommitted",
            "cancel_running.committed",
            "outcome.before",
            "outcome.uncommitted",
            "outcome.committed",
            KILL,
        ],
    ),
    (Deed::Expire, &["expire.uncommitted", "expire.committed"]),
    (
        Deed::Retry,
        &["reopen.uncommitted", "reopen.committed", "claim.committed", "outcome.committed", KILL],
    ),
    (Deed::Drop, &["drop.uncommitted", "drop.committed", KILL]),
];

/// Whether a point is one of this module alone.
pub(super) fn has(point: &str) -> bool {
    let room = point.split('.').next().unwrap_or_default();
    matches!(room, "cancel_running" | "expire" | "deliver" | "reopen" | "drop")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_any_two_steps_what_a_program_was_promised_is_kept() {
    if !cfg!(debug_assertions) {
        return not_run("a debug build: a release has no fail points");
    }
    let planned: Vec<&str> = DEATHS.iter().flat_map(|(_, points)| points.iter().copied()).collect();
    for point in fail_point::ALL.iter().filter(|point| has(point)) {
        assert!(planned.contains(point), "no deed is to reach {point}");
    }
    let (mut told, mut repeated) = (0, 0);
    for (deed, points) in DEATHS {
        for point in points {
            println!("{deed:?} {point}");
            let judged = Stage::new(deed, point).await.play().await;
            told += judged.told;
            repeated += judged.repeated;
        }
    }
    report(&format!(
        "asynchronous deaths {}, lost 0, duplicated 0, webhooks {told}, repeated {repeated}",
        planned.len()
    ));
}

/// One death and what comes after it.
struct Stage {
    deed: Deed,
    point: &'static str,
    stub: Stub,
    receiver: Receiver,
    folder: TempDir,
    known: Known,
}

impl Stage {
    async fn new(deed: Deed, point: &'static str) -> Stage {
        let config = StubConfig { wait_max: DEADLINE, ..config() };
        let stage = Stage {
            deed,
            point,
            stub: Stub::start(config).await,
            receiver: Receiver::fine().await,
            folder: tempfile::tempdir().unwrap(),
            known: Known::default(),
        };
        oracle::prepare(&stage.db()).await;
        stage
    }

    fn db(&self) -> std::path::PathBuf {
        self.folder.path().join("foreman.db")
    }

    /// Whether the change that the deed asked for is on disk when foreman dies.
    fn is_committed(&self) -> bool {
        !matches!(
            self.point.split(':').next(),
            Some(
                "admit.uncommitted"
                    | "cancel.uncommitted"
                    | "cancel_running.uncommitted"
                    | "expire.uncommitted"
                    | "reopen.uncommitted"
                    | "drop.uncommitted"
            )
        )
    }

    async fn play(mut self) -> hooks::Judged {
        let mut starting = match self.point {
            KILL => Starting::begin(&self.stub.url(), &self.db(), &hooks::FLAGS),
            point => Starting::armed(&self.stub.url(), &self.db(), &hooks::FLAGS, point),
        };
        let addr = starting.serves().await;
        let daemon = starting.into_daemon(addr);
        let id = self.act(addr).await;
        match self.point {
            KILL => daemon.kill().await,
            _ => daemon.dies().await,
        }
        self.stub.release_tokens();
        let daemon = Daemon::start(&self.stub.url(), &self.db(), &hooks::FLAGS).await;
        self.check(daemon.addr, &id).await;
        idle(daemon.addr).await;
        daemon.terminate();
        assert_eq!(daemon.ended().await, Some(0));
        let findings = oracle::judge(&self.db(), &self.known, &self.stub.log());
        let is_sound = findings.lost.is_empty()
            && findings.duplicated.is_empty()
            && findings.wrong.is_empty()
            && findings.failed == u64::from(self.deed == Deed::Expire);
        assert!(is_sound, "{:?} {}: {findings:#?}", self.deed, self.point);
        let judged = hooks::judge(&self.db(), &self.receiver.calls());
        let is_sound = judged.lost.is_empty() && judged.wrong.is_empty();
        assert!(is_sound, "{:?} {}: {judged:#?}", self.deed, self.point);
        self.stub.shutdown().await;
        judged
    }

    /// Does the deed, as far as foreman lives to see it; the id of the job it is about, where there is just one.
    async fn act(&mut self, addr: SocketAddr) -> String {
        match self.deed {
            Deed::Submit => {
                for body in self.three() {
                    if let Some(answer) = told(addr, "POST", "/jobs", &body).await {
                        assert_eq!(answer.status, 202, "{}", answer.text());
                        let id = id_of(&answer.json());
                        self.known.acknowledged.insert(id, None);
                    }
                }
                String::new()
            }
            Deed::Batch => {
                let answer = told(addr, "POST", "/jobs/batch", &Value::from(self.three())).await;
                for item in answer.iter().flat_map(items) {
                    self.known.acknowledged.insert(id_of(&item), None);
                }
                String::new()
            }
            Deed::CancelWaiting => {
                let id = self.submitted(addr, json!({ "run_at": ahead(HOUR_MS) })).await;
                self.cancel(addr, &id).await;
                id
            }
            Deed::CancelRunning => {
                self.stub.hold_tokens();
                let id = self.submitted(addr, json!({})).await;
                self.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
                self.cancel(addr, &id).await;
                id
            }
            Deed::Expire => {
                self.stub.hold_tokens();
                let first = self.submission(Ask::new("first", Shape::Chat, true, "a"));
                submit(addr, &first).await;
                self.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
                self.submitted(addr, json!({ "deadline": ahead(DEADLINE_AHEAD_MS) })).await
            }
            Deed::Retry => {
                let id = self.submitted(addr, json!({ "run_at": ahead(HOUR_MS) })).await;
                self.cancel(addr, &id).await;
                self.retry(addr, &id).await;
                id
            }
            Deed::Drop => {
                let id = self.submitted(addr, json!({})).await;
                assert_eq!(ended(addr, &id).await["state"], "done");
                idle(addr).await;
                // Of a job that is dropped nothing is left to be compared.
                self.known.acknowledged.remove(&id);
                let answer = told(addr, "DELETE", &format!("/jobs/{id}"), &json!({})).await;
                assert!(answer.is_none_or(|answer| answer.status == 204));
                id
            }
        }
    }

    /// What was promised holds after the restart, and what was not can be asked for again.
    async fn check(&mut self, addr: SocketAddr, id: &str) {
        let path = format!("/jobs/{id}");
        match self.deed {
            Deed::Submit => {
                let stored = listed(addr).await;
                let expected = [("admit.uncommitted", 0), ("admit.committed", 1), (KILL, 3)];
                let expected = expected.into_iter().find(|(point, _)| *point == self.point);
                assert!(expected.is_none_or(|(_, expected)| stored == expected), "{stored}");
                for (body, number) in self.three().into_iter().zip(1..) {
                    let answer = try_submit(addr, &body).await;
                    assert_eq!(answer.status, 202, "{}", answer.text());
                    let is_replayed = answer.header("idempotent-replayed") == Some("true");
                    assert_eq!(is_replayed, number <= stored, "{number} of {stored}");
                    let id = id_of(&answer.json());
                    assert_eq!(ended(addr, &id).await["state"], "done");
                    self.known.acknowledged.insert(id, None);
                }
                assert_eq!(listed(addr).await, 3);
            }
            Deed::Batch => {
                let expected = if self.is_committed() { 3 } else { 0 };
                assert_eq!(listed(addr).await, expected, "all of a batch, or none");
                let bodies = Value::from(self.three()).to_string();
                let answer = send(addr, "POST", "/jobs/batch", bodies).await;
                let found_by = if self.is_committed() { json!("key") } else { Value::Null };
                for item in items(&answer) {
                    assert_eq!(item["found_by"], found_by);
                    self.known.acknowledged.insert(id_of(&item), None);
                    assert_eq!(ended(addr, &id_of(&item)).await["state"], "done");
                }
                assert_eq!(listed(addr).await, 3);
            }
            Deed::CancelWaiting => {
                let state = if self.is_committed() { "cancelled" } else { "queued" };
                assert_eq!(object(addr, id).await["state"], state);
                self.cancel(addr, id).await;
                assert_eq!(object(addr, id).await["state"], "cancelled");
                assert_eq!(self.runs(), 0);
            }
            Deed::CancelRunning => {
                let (state, runs) =
                    if self.is_committed() { ("cancelled", 1) } else { ("done", 2) };
                assert_eq!(ended(addr, id).await["state"], state);
                assert_eq!(self.runs(), runs);
            }
            Deed::Expire => {
                let object = ended(addr, id).await;
                assert_eq!(
                    (&object["state"], &object["error"]["status"]),
                    (&json!("failed"), &json!(504))
                );
                assert_eq!(self.runs(), 0);
            }
            Deed::Retry => {
                if !self.is_committed() {
                    assert_eq!(object(addr, id).await["state"], "cancelled");
                    self.retry(addr, id).await;
                }
                assert_eq!(ended(addr, id).await["state"], "done");
            }
            Deed::Drop => {
                if !self.is_committed() {
                    assert_eq!(object(addr, id).await["state"], "done");
                    assert_eq!(send(addr, "DELETE", &path, "").await.status, 204);
                }
                assert_eq!(get(addr, &path).await.status, 410);
            }
        }
    }

    /// A submission, with a webhook.
    fn submission(&mut self, ask: Ask) -> Value {
        self.known.asks.insert(ask.tag.clone(), ask.clone());
        let mut body = submission(&ask, Some(&self.receiver.url()));
        body["idempotency_key"] = json!(ask.tag);
        body
    }

    /// The same three at each call.
    fn three(&mut self) -> Vec<Value> {
        let one = Ask::new("one", Shape::Chat, true, "a");
        let two = Ask::new("two", Shape::Generate, false, "b");
        let three = Ask::new("three", Shape::OpenAi, true, "a");
        [one, two, three].map(|ask| self.submission(ask)).to_vec()
    }

    /// Submits one job that must be taken, with these fields beside; its id.
    async fn submitted(&mut self, addr: SocketAddr, fields: Value) -> String {
        let mut body = self.submission(Ask::new("one", Shape::Chat, true, "a"));
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let id = submit(addr, &body).await;
        self.known.acknowledged.insert(id.clone(), Some("one".to_owned()));
        id
    }

    async fn cancel(&mut self, addr: SocketAddr, id: &str) {
        self.known.cancels.insert(id.to_owned());
        if let Some(answer) = told(addr, "POST", &format!("/jobs/{id}/cancel"), &json!({})).await {
            assert_eq!(answer.status, 200, "{}", answer.text());
            self.known.cancelled.insert(id.to_owned(), Clock::system().now_ms());
        }
    }

    async fn retry(&mut self, addr: SocketAddr, id: &str) {
        let retries = self.known.retries.entry(id.to_owned()).or_default();
        retries.asked += 1;
        if let Some(answer) = told(addr, "POST", &format!("/jobs/{id}/retry"), &json!({})).await {
            assert_eq!(answer.status, 202, "{}", answer.text());
            retries.acknowledged += 1;
        }
    }

    /// How often Ollama was given a job.
    fn runs(&self) -> usize {
        let log = self.stub.log();
        log.iter().filter(|entry| tag_of(&entry.body).as_deref() == Some("one")).count()
    }
}

/// That much later than now.
fn ahead(ms: i64) -> String {
    rfc3339(Clock::system().now_ms() + ms)
}

/// What became of the items of a batch.
fn items(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 202, "{}", answer.text());
    let told = answer.json();
    assert_eq!(told["rejected"], 0, "{told:#}");
    told["jobs"].as_array().unwrap().clone()
}

/// How many jobs there are.
async fn listed(addr: SocketAddr) -> usize {
    get(addr, "/jobs?limit=100").await.json()["data"].as_array().unwrap().len()
}
