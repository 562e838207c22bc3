//! The real binary dies between every two steps of a job's life: once at each fail point, and at some of them later. What
//! follows is a start without the point, the end of what waits, and the oracle of the kill test.
//!
//! A point that no drive reaches fails the test: the daemon then does not die.

use std::net::SocketAddr;
use std::sync::Arc;

use foreman::fail_point;
use rusqlite::Connection;
use serde_json::json;
use stub_ollama::{Action, Cut, Fault, Stub, StubConfig};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::harness::client::{post_stream, request, try_open};
use crate::harness::daemon::{Daemon, Starting};
use crate::harness::{DEADLINE, get, not_run};

use super::ask::{Ask, Shape};
use super::load::{self, Load};
use super::{async_points, config, oracle, report};

/// Later times at points that are passed more than once.
const LATER: [&str; 16] = [
    "migration.uncommitted:2",
    "migration.committed:2",
    "migration.uncommitted:3",
    "migration.committed:3",
    "admit.uncommitted:2",
    "admit.committed:3",
    "claim.uncommitted:2",
    "claim.committed:3",
    "load.before:2",
    "load.after:2",
    "loaded.committed:2",
    "answer.chunk:5",
    "answer.chunk:13",
    "outcome.before:2",
    "outcome.uncommitted:2",
    "outcome.committed:2",
];

/// What has to happen for a point to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drive {
    /// A first start.
    Begin,
    /// A start after a kill in the middle of a job.
    Resume,
    /// Three jobs on two models, a swap between them.
    Serve,
    /// A job that is tried again.
    Retry,
    /// A client that leaves while it waits.
    Leave,
    /// SIGTERM while one job runs and one waits.
    Stop,
}

impl Drive {
    fn to(point: &str) -> Drive {
        match point.split('.').next().unwrap_or_default() {
            "migration" => Drive::Begin,
            "recovery" => Drive::Resume,
            "give_back" => Drive::Retry,
            "cancel" => Drive::Leave,
            "checkpoint" | "shutdown" => Drive::Stop,
            _ => Drive::Serve,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_any_two_steps_no_job_is_lost_and_none_ends_twice() {
    if !cfg!(debug_assertions) {
        return not_run("a debug build: a release has no fail points");
    }
    let is_elsewhere = |point: &str| point.starts_with("sweep.") || async_points::has(point);
    let points: Vec<_> = fail_point::ALL.iter().filter(|point| !is_elsewhere(point)).collect();
    let (here, mut deaths, mut jobs) = (points.len(), 0, 0);
    for point in points.into_iter().chain(&LATER) {
        println!("{point}");
        jobs += Scene::new().await.play(point).await;
        deaths += 1;
    }
    report(&format!("fail points {here}, deaths {deaths}, jobs {jobs}, lost 0, duplicated 0"));
}

/// One death and what comes after it.
struct Scene {
    stub: Stub,
    folder: TempDir,
    load: Arc<Load>,
    clients: Vec<JoinHandle<()>>,
}

impl Scene {
    async fn new() -> Scene {
        let config = StubConfig { wait_max: DEADLINE, ..config() };
        let folder = tempfile::tempdir().unwrap();
        Scene { stub: Stub::start(config).await, folder, load: Arc::default(), clients: Vec::new() }
    }

    fn db(&self) -> std::path::PathBuf {
        self.folder.path().join("foreman.db")
    }

    /// Dies at the point, starts again, drains, and compares; how many jobs there were.
    async fn play(mut self, point: &str) -> usize {
        let watcher = tokio::spawn(load::watch(Arc::clone(&self.load)));
        let drive = Drive::to(point);
        if drive != Drive::Begin {
            oracle::prepare(&self.db()).await;
        }
        self.die(drive, point).await;
        self.load.follow(None);
        self.stub.release_tokens();
        if drive == Drive::Begin {
            oracle::prepare(&self.db()).await;
        }
        let daemon = Daemon::start(&self.stub.url(), &self.db(), &[]).await;
        self.load.follow(Some(daemon.addr));
        if drive == Drive::Begin {
            self.ask(daemon.addr, Ask::new("after", Shape::Chat, true, "a"));
        }
        for client in self.clients {
            client.await.unwrap();
        }
        let drained = tokio::time::timeout(DEADLINE, self.load.drained()).await;
        assert!(drained.is_ok(), "{point}: the queue never drained");
        self.load.follow(None);
        watcher.abort();
        daemon.terminate();
        assert_eq!(daemon.ended().await, Some(0), "{point}");
        let db = self.folder.path().join("foreman.db");
        let known = std::mem::take(&mut *self.load.known());
        let findings = oracle::judge(&db, &known, &self.stub.log());
        let is_sound = findings.lost.is_empty()
            && findings.duplicated.is_empty()
            && findings.wrong.is_empty()
            && findings.failed == 0;
        assert!(is_sound, "{point}: {findings:#?}");
        self.stub.shutdown().await;
        oracle::jobs(&db).len()
    }

    async fn die(&mut self, drive: Drive, point: &str) {
        if drive == Drive::Resume {
            self.stub.hold_tokens();
            let daemon = Daemon::start(&self.stub.url(), &self.db(), &[]).await;
            self.ask(daemon.addr, Ask::new("resumed", Shape::Generate, false, "a"));
            self.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
            daemon.kill().await;
        }
        let mut starting = Starting::armed(&self.stub.url(), &self.db(), &[], point);
        if matches!(drive, Drive::Begin | Drive::Resume) {
            return starting.dies().await;
        }
        let addr = starting.serves().await;
        let daemon = starting.into_daemon(addr);
        self.load.follow(Some(addr));
        match drive {
            Drive::Begin | Drive::Resume => (),
            Drive::Serve => {
                self.ask(addr, Ask::new("one", Shape::Chat, true, "a"));
                self.ask(addr, Ask::new("two", Shape::Generate, false, "b"));
                self.ask(addr, Ask::new("three", Shape::OpenAi, true, "a"));
            }
            Drive::Retry => {
                self.stub.faults(Fault::new(Action::CutBeforeHeaders(Cut::Fin)).path("/api/chat"));
                self.ask(addr, Ask::new("again", Shape::Chat, true, "a"));
            }
            Drive::Leave => {
                self.one_runs_and_one_waits(addr, Waits::Leaves).await;
            }
            Drive::Stop => {
                self.one_runs_and_one_waits(addr, Waits::Stays).await;
                daemon.terminate();
                daemon.refuses().await;
                self.stub.release_tokens();
            }
        }
        daemon.dies().await;
    }

    /// A client that stays.
    fn ask(&mut self, addr: SocketAddr, ask: Ask) {
        self.clients.push(tokio::spawn(load::ask_and_stay(Arc::clone(&self.load), addr, ask)));
    }

    async fn one_runs_and_one_waits(&mut self, addr: SocketAddr, waits: Waits) {
        self.stub.hold_tokens();
        self.ask(addr, Ask::new("runs", Shape::Chat, true, "a"));
        self.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        let ask = Ask::new("waits", Shape::Generate, false, "a");
        match waits {
            Waits::Stays => {
                self.ask(addr, ask);
                self.load.opened(2).await;
            }
            Waits::Leaves => {
                self.load.leaves(&ask);
                let sent = request(addr, "POST", ask.shape.path(), ask.body().to_string());
                tokio::select! {
                    _ = try_open(addr, sent) => panic!("it was answered"),
                    () = self.load.opened(2) => (),
                }
            }
        }
    }
}

/// What the client that waits does.
enum Waits {
    Stays,
    Leaves,
}

/// Retention dies between the rows and the files of what it drops: either both are there after that, or none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_a_sweep_no_file_is_left_without_its_row() {
    if !cfg!(debug_assertions) {
        return not_run("a debug build: a release has no fail points");
    }
    for point in fail_point::ALL.iter().filter(|point| point.starts_with("sweep.")) {
        let config = StubConfig { token_time: std::time::Duration::ZERO, ..config() };
        let stub = Stub::start(StubConfig { wait_max: DEADLINE, ..config }).await;
        let folder = tempfile::tempdir().unwrap();
        let db = folder.path().join("foreman.db");
        let daemon = Daemon::start(&stub.url(), &db, &[]).await;
        // More than an output keeps in memory.
        let body = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 20_000 } });
        let answer = post_stream(daemon.addr, "/api/generate", &body).await.rest().await;
        assert!(answer.is_whole);
        daemon.terminate();
        assert_eq!(daemon.ended().await, Some(0));
        assert_eq!(files(&folder), 1);
        let mut starting = Starting::armed(&stub.url(), &db, &["--job-ttl", "1ms"], point);
        if let Some(addr) = starting.try_serves().await {
            starting.into_daemon(addr).dies().await;
        } else {
            starting.dies().await;
        }
        let kept = rows(&db);
        assert_eq!(kept, usize::from(*point == "sweep.uncommitted"), "{point}");
        assert_eq!(files(&folder), 1, "{point}");
        let daemon = Daemon::start(&stub.url(), &db, &[]).await;
        let swept = async {
            while files(&folder) != kept {
                get(daemon.addr, "/healthz").await;
            }
        };
        tokio::time::timeout(DEADLINE, swept).await.expect("the file outlived its row");
        daemon.terminate();
        assert_eq!(daemon.ended().await, Some(0));
        assert_eq!((rows(&db), files(&folder)), (kept, kept), "{point}");
    }
}

fn rows(db: &std::path::Path) -> usize {
    let connection = Connection::open(db).unwrap();
    let named = "SELECT COUNT(*) FROM job JOIN answer USING (seq) WHERE file IS NOT NULL";
    connection.query_row(named, [], |row| row.get::<_, u32>(0)).unwrap().try_into().unwrap()
}

fn files(folder: &TempDir) -> usize {
    std::fs::read_dir(folder.path().join("foreman.db.answers")).map_or(0, Iterator::count)
}
