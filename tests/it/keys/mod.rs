//! Named keys: whose job is whose, what a key may have and how urgently, and that nobody without one gets in.

mod asking;
mod caps;
mod events;
mod hidden;
mod in_flight;
mod reload;
mod rests;
mod same;
mod search;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use foreman::config::Raw;
use serde_json::{Value, json};
use stub_ollama::{Stub, StubConfig};
use tempfile::TempDir;

use crate::harness::client::{self, chat, open};
use crate::harness::jobs::with_header;
use crate::harness::{Answer, DEADLINE, Foreman, stub_config};

const ALICE: &str = "alice-0123456789";
const BOB: &str = "bob-0123456789ab";
const ADMIN: &str = "admin-0123456789";

/// The two and their admin, without limits.
fn three() -> Vec<Value> {
    vec![
        json!({ "name": "alice", "key": ALICE }),
        json!({ "name": "bob", "key": BOB }),
        json!({ "name": "root", "key": ADMIN, "is_admin": true }),
    ]
}

/// The same with something more said of Alice.
fn with_alice(more: &Value) -> Vec<Value> {
    let mut lines = three();
    let alice = lines[0].as_object_mut().unwrap();
    alice.extend(more.as_object().unwrap().clone());
    lines
}

/// Writes a file of keys, at once: foreman may be reading the one before.
fn write(path: &Path, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let beside = path.with_extension("new");
    std::fs::write(&beside, format!("# people\n\n{text}")).unwrap();
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(beside, path).unwrap();
}

/// Foreman with keys, in front of a stub.
struct House {
    stub: Stub,
    foreman: Foreman,
    folder: TempDir,
}

impl House {
    async fn start(lines: &[Value]) -> House {
        House::start_with(lines, stub_config(&["a", "b"]), |_| ()).await
    }

    async fn start_with(lines: &[Value], stub: StubConfig, tweak: impl FnOnce(&mut Raw)) -> House {
        let stub = Stub::start(stub).await;
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("keys"), lines);
        let foreman = start(&stub, folder.path(), tweak).await;
        House { stub, foreman, folder }
    }

    fn addr(&self) -> SocketAddr {
        self.foreman.addr
    }

    fn keys(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    async fn ask(&self, key: &str, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        ask(self.addr(), key, method, path, body).await
    }

    async fn get(&self, key: &str, path: &str) -> Answer {
        self.ask(key, "GET", path, "").await
    }

    /// Submits a chat that must be taken; its id.
    async fn submit(&self, key: &str, model: &str) -> String {
        submit(self.addr(), key, &chat(model, "x")).await
    }

    /// Waits for the end of a job; its object.
    async fn ended(&self, key: &str, id: &str) -> Value {
        let answer = self.get(key, &format!("/jobs/{id}?wait=25s")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Asks for the status, as the admin, until it is as wanted.
    async fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(self.addr(), ADMIN, wanted).await
    }
}

async fn start(stub: &Stub, folder: &Path, tweak: impl FnOnce(&mut Raw)) -> Foreman {
    let keys = folder.join("keys").to_str().unwrap().to_owned();
    let (url, db) = (stub.url(), folder.join("a.db"));
    let starting = Foreman::start_on(&url, &db, |raw| {
        raw.keys = Some(keys);
        tweak(raw);
    });
    let foreman = starting.await;
    wait_for(foreman.addr, ADMIN, |status| status["upstream"]["state"] == "up").await;
    foreman
}

async fn ask(
    addr: SocketAddr,
    key: &str,
    method: &str,
    path: &str,
    body: impl Into<Bytes>,
) -> Answer {
    let request = client::request(addr, method, path, body);
    let request = with_header(request, ("authorization", &format!("Bearer {key}")));
    open(addr, request).await.unwrap().rest().await
}

async fn submit(addr: SocketAddr, key: &str, body: &Value) -> String {
    let answer = ask(addr, key, "POST", "/jobs", body.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["job_id"].as_str().unwrap().to_owned()
}

async fn wait_for(addr: SocketAddr, key: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let found = tokio::time::timeout(DEADLINE, async {
        loop {
            last = ask(addr, key, "GET", "/status", "").await.json();
            if wanted(&last) {
                return;
            }
        }
    });
    let found = found.await;
    assert!(found.is_ok(), "the awaited status never came: {last:#}");
    last
}

/// The ids of a list.
fn ids(list: &Answer) -> Vec<String> {
    assert_eq!(list.status, 200, "{}", list.text());
    let list = list.json();
    let ids = list["data"].as_array().unwrap().iter();
    ids.map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
}
