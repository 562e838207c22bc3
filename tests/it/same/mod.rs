//! The same request again: by its idempotency key, by a client that comes back after a crash, by an equal request of
//! somebody else, and later, where an answer was asked for at once.

mod coming_back;
mod coming_back_alone;
mod duplicates;
mod duplicates_leave;
mod idempotency;
mod idempotency_ends;
mod prefer;
mod unattended;

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use stub_ollama::{Stub, StubConfig};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::harness::client::{request, try_open};
use crate::harness::daemon::Daemon;
use crate::harness::{Answer, DEADLINE, get, stub_config};

const KEY: &str = "idempotency-key";
const REPLAYED: &str = "idempotent-replayed";
const ATTACHED: &str = "x-foreman-attached";
const DUPLICATE: &str = "x-foreman-duplicate";
const JOB: &str = "x-foreman-job-id";

/// The queued native routes, as a client asks them for a stream or for one value.
pub(crate) const ROUTES: [&str; 6] = [
    "/api/chat",
    "/api/generate",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
];

/// A request of a route that is to be told from others by its text.
pub(crate) fn body_of(route: &str, model: &str, text: &str, is_streamed: bool) -> Value {
    let messages = json!([{ "role": "user", "content": text }]);
    match route {
        "/api/chat" | "/v1/chat/completions" => {
            json!({ "model": model, "messages": messages, "stream": is_streamed })
        }
        "/api/generate" | "/v1/completions" => {
            json!({ "model": model, "prompt": text, "stream": is_streamed })
        }
        "/v1/responses" => json!({ "model": model, "input": text, "stream": is_streamed }),
        "/v1/messages" => {
            json!({ "model": model, "max_tokens": 8, "messages": messages, "stream": is_streamed })
        }
        _ => panic!("{route} is not queued"),
    }
}

/// What a route says of an error, in its own shape.
fn error_of(route: &str, answer: &Answer) -> String {
    let shape = answer.json();
    let text = match route {
        "/api/chat" | "/api/generate" => &shape["error"],
        "/v1/messages" => {
            assert_eq!(shape["type"], "error", "{shape}");
            &shape["error"]["message"]
        }
        _ => &shape["error"]["message"],
    };
    text.as_str().unwrap_or_else(|| panic!("{route}: {shape}")).to_owned()
}

/// A stub that gives equal requests equal bytes.
pub(crate) fn even(models: &[&str]) -> StubConfig {
    StubConfig { fixed_time: true, wait_max: DEADLINE, ..stub_config(models) }
}

/// A POST with headers.
pub(crate) fn with(
    addr: SocketAddr,
    path: &str,
    body: impl Into<Bytes>,
    headers: &[(&'static str, &str)],
) -> Request<Full<Bytes>> {
    let mut request = request(addr, "POST", path, body);
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// Asks from a task of its own; `None` where foreman was lost before the answer began.
fn ask(
    addr: SocketAddr,
    path: &str,
    body: impl Into<Bytes>,
    headers: &[(&'static str, &str)],
) -> JoinHandle<Option<Answer>> {
    let request = with(addr, path, body, headers);
    tokio::spawn(async move { Some(try_open(addr, request).await?.rest().await) })
}

/// Asks and waits for the whole answer.
async fn asked(
    addr: SocketAddr,
    path: &str,
    body: impl Into<Bytes>,
    headers: &[(&'static str, &str)],
) -> Answer {
    ask(addr, path, body, headers).await.unwrap().expect("foreman is there")
}

/// How often Ollama was asked something with this text in it.
pub(crate) fn calls(stub: &Stub, text: &str) -> usize {
    let log = stub.log();
    log.iter().filter(|entry| String::from_utf8_lossy(&entry.body).contains(text)).count()
}

/// The job object once it has ended.
async fn ended(addr: SocketAddr, id: &str) -> Value {
    let job = get(addr, &format!("/jobs/{id}?wait=60s")).await.json();
    assert!(["done", "failed", "cancelled"].map(Value::from).contains(&job["state"]), "{job}");
    job
}

/// Asks for the status until it is as wanted. Each look is a request, so this waits for foreman, not for the clock.
pub(crate) async fn wait_for(addr: SocketAddr, wanted: impl Fn(&Value) -> bool) {
    let mut last = Value::Null;
    let found = async {
        while !wanted(&last) {
            last = get(addr, "/status").await.json();
        }
    };
    let found = tokio::time::timeout(DEADLINE, found).await;
    assert!(found.is_ok(), "the awaited status never came: {last:#}");
}

pub(crate) async fn wait_for_depth(addr: SocketAddr, depth: u64) {
    wait_for(addr, |status| status["queue"]["depth"] == depth).await;
}

/// A stub, and a place for the database of daemons that die.
pub(crate) struct Place {
    pub(crate) stub: Stub,
    folder: TempDir,
}

impl Place {
    pub(crate) async fn new(models: &[&str]) -> Place {
        let stub = Stub::start(even(models)).await;
        Place { stub, folder: tempfile::tempdir().unwrap() }
    }

    fn db(&self) -> PathBuf {
        self.folder.path().join("foreman.db")
    }

    pub(crate) async fn daemon(&self) -> Daemon {
        self.daemon_with(&[]).await
    }

    async fn daemon_with(&self, flags: &[&str]) -> Daemon {
        let daemon = Daemon::start(&self.stub.url(), &self.db(), flags).await;
        wait_for(daemon.addr, |status| status["upstream"]["state"] == "up").await;
        daemon
    }
}
