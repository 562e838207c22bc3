//! The file of keys is read again at SIGHUP, by the real daemon: a good one counts from then on, a faulty one changes nothing.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;
use stub_ollama::{Stub, StubConfig};
use tempfile::TempDir;

use super::{ADMIN, ALICE, BOB, ask, three, with_alice, write};
use crate::harness::client::chat;
use crate::harness::daemon::Daemon;
use crate::harness::{DEADLINE, stub_config};

/// The real daemon with keys.
pub(super) struct Home {
    pub(super) stub: Stub,
    daemon: Daemon,
    folder: TempDir,
}

impl Home {
    pub(super) async fn start(lines: &[serde_json::Value]) -> Home {
        Home::start_with(lines, stub_config(&["a"]), &[]).await
    }

    pub(super) async fn start_with(
        lines: &[serde_json::Value],
        stub: StubConfig,
        flags: &[&str],
    ) -> Home {
        let stub = Stub::start(stub).await;
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        write(&keys, lines);
        let flags = [&["--keys", keys.to_str().unwrap()], flags].concat();
        let daemon = Daemon::start(&stub.url(), &folder.path().join("a.db"), &flags).await;
        super::wait_for(daemon.addr, ADMIN, |status| status["upstream"]["state"] == "up").await;
        Home { stub, daemon, folder }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.daemon.addr
    }

    pub(super) fn keys(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    /// SIGHUP.
    pub(super) fn hang_up(&self) {
        let pid = self.daemon.pid().to_string();
        let sent = std::process::Command::new("kill").args(["-HUP", &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Stops it; it must have logged no error.
    pub(super) async fn end_well(self) {
        self.daemon.terminate();
        assert_eq!(self.daemon.ended().await, Some(0));
    }

    /// Asks until this key is taken, or is not.
    async fn until(&self, key: &str, status: u16) {
        let looks =
            async { while ask(self.addr(), key, "GET", "/jobs", "").await.status != status {} };
        let looked = tokio::time::timeout(DEADLINE, looks).await;
        looked.unwrap_or_else(|_| panic!("{key} was never answered {status}"));
    }
}

#[tokio::test]
async fn a_key_that_is_added_opens_and_one_that_is_taken_away_does_not() {
    let home = Home::start(&three()).await;
    let id = super::submit(home.addr(), ALICE, &chat("a", "x")).await;
    let carol = json!({ "name": "carol", "key": "carol-0123456789" });
    write(&home.keys(), &[three()[1].clone(), three()[2].clone(), carol]);
    home.hang_up();
    home.until("carol-0123456789", 200).await;
    home.until(ALICE, 401).await;
    let path = format!("/jobs/{id}?wait=25s");
    let job = ask(home.addr(), ADMIN, "GET", &path, "").await.json();
    assert_eq!((&job["state"], &job["owner"]), (&json!("done"), &json!("alice")), "it ran");
    // A name is what jobs belong to: whoever is given it has them, by whatever key.
    write(&home.keys(), &[three()[2].clone(), json!({ "name": "alice", "key": BOB })]);
    home.hang_up();
    home.until("carol-0123456789", 401).await;
    assert_eq!(ask(home.addr(), BOB, "GET", &path, "").await.status, 200);
    home.daemon.terminate();
    assert_eq!(home.daemon.ended().await, Some(0));
}

#[tokio::test]
async fn a_faulty_file_changes_nothing_and_is_told_of() {
    let home = Home::start(&with_alice(&json!({ "queued_max": 1 }))).await;
    std::fs::write(home.keys(), format!("{{\"name\":\"eve\",\"key\":\"{BOB}\",\"x\":1}}\n"))
        .unwrap();
    home.hang_up();
    // Signals are taken in turn: once this one was, so was the one before.
    write(
        &home.keys(),
        &[three(), vec![json!({ "name": "dave", "key": "dave-01234567890" })]].concat(),
    );
    assert_eq!(ask(home.addr(), ALICE, "GET", "/jobs", "").await.status, 200);
    assert_eq!(ask(home.addr(), BOB, "GET", "/jobs", "").await.status, 200);
    home.hang_up();
    home.until("dave-01234567890", 200).await;
    home.stub.hold_tokens();
    for _ in 0..3 {
        // Without its cap now.
        super::submit(home.addr(), ALICE, &chat("a", "x")).await;
    }
    home.stub.release_tokens();
    home.daemon.terminate();
    let (code, errors) = home.daemon.ended_with_errors().await;
    assert_eq!(code, Some(0));
    assert!(
        errors
            .iter()
            .all(|line| line.contains("the keys stay as they were") && !line.contains(BOB)),
        "{errors:?}"
    );
}
