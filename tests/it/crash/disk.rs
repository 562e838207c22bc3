//! A disk that is full, and a disk that fails, under the real binary: no acknowledged job is lost, what runs is finished
//! where that can be, and foreman goes on by itself or ends to be started anew.
//!
//! The full disk is a small file system in memory, mounted where nobody else sees it; the failing one is made by strace.
//! Where the machine has neither, the tests say so.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use stub_ollama::{Stub, StubConfig};
use tempfile::TempDir;

use crate::harness::client::{chat, chat_unstreamed, post_stream, request, try_open};
use crate::harness::daemon::{Daemon, Starting, command};
use crate::harness::namespace::{Changes, is_inside};
use crate::harness::{DEADLINE, get, not_run, post};

use super::ask::{Ask, Shape};
use super::load::{self, Load};
use super::{config, oracle, report};

/// The floor, small as the disk is: its ballast has 2 MiB.
const FREE_MIN: [&str; 2] = ["--free-min", "8MiB"];

const MIB: u64 = 1024 * 1024;

/// A small file system in memory. Gone with the namespace at the latest.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn new(size: &str) -> Disk {
        let disk = Disk { folder: tempfile::tempdir().unwrap() };
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        assert!(mount.arg(disk.folder.path()).status().unwrap().success());
        disk
    }

    fn db(&self) -> PathBuf {
        self.folder.path().join("foreman.db")
    }

    fn ballast(&self) -> PathBuf {
        self.folder.path().join("foreman.db.ballast")
    }

    fn free_bytes(&self) -> u64 {
        let seen = rustix::fs::statvfs(self.folder.path()).unwrap();
        seen.f_bavail * seen.f_frsize
    }

    /// Takes all but so many bytes.
    fn fill(&self, but: u64) {
        let mut file = File::create(self.folder.path().join("filler")).unwrap();
        let page = [1; 4_096];
        while self.free_bytes() > but {
            if file.write_all(&page).is_err() {
                return;
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.folder.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.folder.path()).status());
    }
}

async fn stub() -> Stub {
    Stub::start(StubConfig { wait_max: DEADLINE, ..config() }).await
}

/// Waits until `/readyz` answers this.
async fn wait_until_ready_is(addr: SocketAddr, code: u16) -> Value {
    let wait = async {
        loop {
            let answer = get(addr, "/readyz").await;
            if answer.status == code {
                return answer.json();
            }
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("readyz is never {code}"))
}

/// Below the floor: new jobs are refused in the shape of their route, and nothing else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_floor_new_jobs_are_refused_and_what_runs_is_finished() {
    if !is_inside(
        "crash::disk::below_the_floor_new_jobs_are_refused_and_what_runs_is_finished",
        Changes::Mounts,
    ) {
        return;
    }
    let (disk, stub) = (Disk::new("48m"), stub().await);
    let daemon = Daemon::start(&stub.url(), &disk.db(), &FREE_MIN).await;
    let addr = daemon.addr;
    assert_eq!(get(addr, "/status").await.json()["disk"]["has_room"], true);
    assert_eq!(std::fs::metadata(disk.ballast()).unwrap().len(), 2 * MIB);
    let running = post_stream(addr, "/api/chat", &chat("a", "runs")).await;
    stub.hold_tokens();
    disk.fill(4 * MIB);
    let ready = wait_until_ready_is(addr, 503).await;
    assert_eq!(ready, json!({ "ready": false, "reason": "disk full" }));
    let message = json!([{ "role": "user", "content": "x" }]);
    let mut shapes = Vec::new();
    for (path, body) in [
        ("/api/chat", chat("a", "x")),
        ("/api/generate", json!({ "model": "a", "prompt": "x" })),
        ("/v1/chat/completions", chat_unstreamed("a", "x")),
        ("/v1/messages", json!({ "model": "a", "max_tokens": 4, "messages": message })),
    ] {
        let answer = post(addr, path, &body).await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (507, Some("30")));
        shapes.push(answer.json());
    }
    assert!(shapes[0]["error"].as_str().unwrap().contains("nothing was stored"), "{shapes:?}");
    assert!(shapes[1]["error"].is_string(), "{shapes:?}");
    assert!(shapes[2]["error"]["message"].is_string(), "{shapes:?}");
    assert_eq!(shapes[3]["type"], "error");
    assert_eq!(get(addr, "/healthz").await.status, 200);
    assert_eq!(get(addr, "/api/tags").await.status, 200);
    let status = get(addr, "/status").await.json();
    let disk_seen = (&status["disk"]["has_room"], &status["disk"]["free_min_bytes"]);
    assert_eq!(disk_seen, (&json!(false), &json!(8 * MIB)));
    assert_eq!(status["queue"]["depth"], 0);
    stub.release_tokens();
    let embed = json!({ "model": "embed", "input": "x" });
    assert_eq!(post(addr, "/api/embed", &embed).await.status, 200);
    let whole = running.rest().await;
    assert!(whole.is_whole && whole.text().contains("\"done\":true"));
    disk.free();
    wait_until_ready_is(addr, 200).await;
    assert_eq!(post(addr, "/api/chat", &chat_unstreamed("a", "x")).await.status, 200);
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));
}

/// The disk runs full under load, is full for a while, and is freed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_and_opens_again_by_itself() {
    if !is_inside(
        "crash::disk::a_full_disk_loses_nothing_and_opens_again_by_itself",
        Changes::Mounts,
    ) {
        return;
    }
    const CLIENTS: usize = 3;
    let (disk, stub) = (Disk::new("48m"), stub().await);
    oracle::prepare(&disk.db()).await;
    let daemon = Daemon::start(&stub.url(), &disk.db(), &FREE_MIN).await;
    let addr = daemon.addr;
    let load = Arc::new(Load::default());
    load.follow(Some(addr));
    let watcher = tokio::spawn(load::watch(Arc::clone(&load)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| tokio::spawn(keep_asking(Arc::clone(&load), addr, client)))
        .collect();
    let done = wait_for_done(addr, 5).await;
    stub.hold_tokens();
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    disk.fill(0);
    wait_until_ready_is(addr, 503).await;
    stub.release_tokens();
    tokio::time::timeout(DEADLINE, load.drained()).await.expect("what was taken is finished");
    assert!(!disk.ballast().exists(), "it was needed");
    let refused = post(addr, "/api/chat", &chat_unstreamed("a", "x")).await;
    assert_eq!(refused.status, 507, "{}", refused.text());
    let while_full = get(addr, "/status").await.json()["stored"]["done"].as_u64().unwrap();
    assert!(while_full > done, "nothing was finished on the full disk");
    disk.free();
    wait_until_ready_is(addr, 200).await;
    let after = wait_for_done(addr, while_full + 5).await;
    assert!(disk.ballast().exists(), "it is made again");
    load.end();
    for client in clients {
        client.await.unwrap();
    }
    watcher.abort();
    daemon.terminate();
    let (code, errors) = daemon.ended_with_errors().await;
    assert_eq!(code, Some(0), "{errors:#?}");
    let known = std::mem::take(&mut *load.known());
    judge(&disk.db(), &known, &stub);
    report(&format!(
        "full disk: acknowledged {}, lost 0; done before {done}, while full {}, after {}",
        known.acknowledged.len(),
        while_full - done,
        after - while_full
    ));
}

/// Killed while its disk is full: the next start serves all the same, from the ballast's room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_disk_takes_the_ballast() {
    if !is_inside("crash::disk::a_start_on_a_full_disk_takes_the_ballast", Changes::Mounts) {
        return;
    }
    let (disk, stub) = (Disk::new("48m"), stub().await);
    oracle::prepare(&disk.db()).await;
    let load = Arc::new(Load::default());
    let daemon = Daemon::start(&stub.url(), &disk.db(), &FREE_MIN).await;
    stub.hold_tokens();
    let ask = Ask::new("runs", Shape::Chat, false, "a");
    let client = tokio::spawn(load::ask_and_stay(Arc::clone(&load), daemon.addr, ask));
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    daemon.kill().await;
    client.await.unwrap();
    stub.release_tokens();
    disk.fill(0);
    assert!(disk.ballast().exists());
    let daemon = Daemon::start(&stub.url(), &disk.db(), &FREE_MIN).await;
    assert!(!disk.ballast().exists());
    wait_for_done(daemon.addr, 1).await;
    assert_eq!(get(daemon.addr, "/readyz").await.status, 503);
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));
    let known = std::mem::take(&mut *load.known());
    judge(&disk.db(), &known, &stub);
}

async fn keep_asking(load: Arc<Load>, addr: SocketAddr, client: usize) {
    for turn in 0_u32.. {
        if load.is_over() {
            return;
        }
        let shape = Shape::ALL[client % Shape::ALL.len()];
        let ask = Ask::new(&format!("c{client}t{turn}"), shape, turn % 2 == 0, "a");
        load::ask_and_stay(Arc::clone(&load), addr, ask).await;
        load.looked().await;
    }
}

/// Waits until at least so many jobs are done; how many are.
async fn wait_for_done(addr: SocketAddr, done: u64) -> u64 {
    let wait = async {
        loop {
            let now = get(addr, "/status").await.json()["stored"]["done"].as_u64().unwrap();
            if now >= done {
                return now;
            }
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("jobs are not done")
}

fn judge(db: &std::path::Path, known: &load::Known, stub: &Stub) {
    let mut findings = oracle::judge(db, known, &stub.log());
    findings.shorten();
    let is_sound =
        findings.lost.is_empty() && findings.duplicated.is_empty() && findings.wrong.is_empty();
    assert!(is_sound, "{findings:#?}");
}

/// A file that is no database is left as it is, and the person told what to run.
#[tokio::test]
async fn a_damaged_database_is_told_with_what_to_run() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let damaged = vec![b'x'; 16_384];
    std::fs::write(&db, &damaged).unwrap();
    let ended = command("http://127.0.0.1:1", &db, &[]).output().await.unwrap();
    let words = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(73), "{words}");
    assert!(words.contains("damaged") && words.contains(".recover"), "{words}");
    assert!(std::fs::read(&db).unwrap() == damaged);
}

/// A database that is damaged while it is open ends the daemon at its next write, with the same words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_under_a_running_daemon_ends_it() {
    let (folder, stub) = (tempfile::tempdir().unwrap(), stub().await);
    let db = folder.path().join("foreman.db");
    oracle::prepare(&db).await;
    let daemon = Daemon::start(&stub.url(), &db, &[]).await;
    let size = std::fs::metadata(&db).unwrap().len();
    std::fs::write(&db, vec![b'x'; usize::try_from(size).unwrap()]).unwrap();
    // Its own memory holds some pages for a while.
    let asked = async {
        while let Some(stream) = try_open(
            daemon.addr,
            request(daemon.addr, "POST", "/api/chat", chat_unstreamed("a", "x").to_string()),
        )
        .await
        {
            drop(stream.rest().await);
        }
    };
    tokio::time::timeout(DEADLINE, asked).await.expect("it serves on");
    let (code, errors) = daemon.ended_with_errors().await;
    assert_eq!(code, Some(1), "{errors:#?}");
    assert!(errors.iter().any(|line| line.contains(".recover")), "{errors:#?}");
}

/// What strace makes of the k-th of such calls of each thread, and perhaps of all after it. Opening takes the first three
/// flushes of the main thread; those of the writer come later.
#[derive(Debug, Clone)]
struct Failing {
    calls: &'static str,
    error: &'static str,
    when: String,
}

const FLUSHES: &str = "fsync,fdatasync";
const WRITES: &str = "pwrite64";

/// How a daemon on a failing disk went.
#[derive(Debug, PartialEq, Eq)]
enum Went {
    /// Nothing of its writer's failed.
    Untouched,
    /// It opened its database anew, served on, and was stopped.
    On,
    /// It ended by itself, to be started anew.
    Ended,
    /// It did not start.
    NotAtAll,
}

/// Flushes fail, once or for ever, the first or a later one; so do writes, or find no room, once. Whoever was told that a
/// job is stored or done was told the truth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failing_disk_did_not_keep_is_never_acknowledged() {
    let probe = Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        return not_run("strace, and the right to trace");
    }
    let failing = |calls, error, when: String| Failing { calls, error, when };
    let flushes = [1, 2, 3, 4, 5, 6, 8, 11];
    let once = flushes.iter().map(|k| failing(FLUSHES, "EIO", k.to_string()));
    let for_ever = flushes.iter().map(|k| failing(FLUSHES, "EIO", format!("{k}+")));
    let writes = [5, 23, 40, 61, 90, 120, 161, 200, 240];
    let lost = writes.iter().map(|k| failing(WRITES, "EIO", k.to_string()));
    let full = writes.iter().map(|k| failing(WRITES, "ENOSPC", k.to_string()));
    let (mut runs, mut went_on, mut ended, mut acknowledged) = (0, 0, 0, 0);
    for failing in once.chain(for_ever).chain(lost).chain(full) {
        let (went, known) = on_a_failing_disk(&failing).await;
        println!("{failing:?}: {went:?}");
        runs += 1;
        went_on += u32::from(went == Went::On);
        ended += u32::from(went == Went::Ended);
        acknowledged += known;
    }
    report(&format!(
        "failing disks {runs}, went on {went_on}, ended by themselves {ended}, acknowledged {acknowledged}, lost 0"
    ));
    assert!(went_on > 0 && ended > 0, "both ways were to be seen");
}

/// One daemon on such a disk under some load, another on what it left; how many jobs were acknowledged.
async fn on_a_failing_disk(failing: &Failing) -> (Went, usize) {
    let (folder, stub) = (tempfile::tempdir().unwrap(), stub().await);
    let db = folder.path().join("foreman.db");
    oracle::prepare(&db).await;
    let load = Arc::new(Load::default());
    let mut starting = Starting::spawn(under_strace(command(&stub.url(), &db, &[]), failing));
    let went = match starting.try_serves().await {
        None => {
            assert_eq!(starting.ended().await, Some(73), "the database cannot be opened");
            Went::NotAtAll
        }
        Some(addr) => {
            let mut daemon = starting.into_daemon(addr);
            load.follow(Some(addr));
            for turn in 0..6 {
                let ask = Ask::new(&format!("t{turn}"), Shape::Chat, turn % 2 == 0, "a");
                load::ask_and_stay(Arc::clone(&load), addr, ask).await;
            }
            load.follow(None);
            if !daemon.has_ended() {
                daemon.terminate();
            }
            let (code, errors) = daemon.ended_with_errors().await;
            match code {
                Some(0) if errors.is_empty() => Went::Untouched,
                Some(0) => Went::On,
                Some(1) => {
                    let told = errors.iter().any(|line| line.contains("the database is given up"));
                    assert!(told, "{errors:#?}");
                    Went::Ended
                }
                other => panic!("{failing:?}: exit {other:?}: {errors:#?}"),
            }
        }
    };
    let daemon = Daemon::start(&stub.url(), &db, &[]).await;
    load.follow(Some(daemon.addr));
    let watcher = tokio::spawn(load::watch(Arc::clone(&load)));
    tokio::time::timeout(DEADLINE, load.drained()).await.expect("the queue never drained");
    load.follow(None);
    watcher.abort();
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));
    let known = std::mem::take(&mut *load.known());
    judge(&db, &known, &stub);
    (went, known.acknowledged.len())
}

/// The same command, some of its calls failing. The traced process is the child itself, so that it can be waited for.
fn under_strace(traced: tokio::process::Command, failing: &Failing) -> tokio::process::Command {
    let Failing { calls, error, when } = failing;
    let mut strace = tokio::process::Command::new("strace");
    strace.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:error={error}:when={when}")]);
    let traced = traced.into_std();
    strace.arg(traced.get_program()).args(traced.get_args());
    for (name, value) in traced.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    strace
}
