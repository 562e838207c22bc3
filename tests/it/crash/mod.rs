//! What is promised outlives kill -9: no acknowledged job is lost, and none has two outcomes.
//!
//! `load` asks (what `ask` holds), `program` hands work in, `oracle` compares, `hooks` what receivers were told; `points`
//! and `async_points` die between every two steps, `restart` holds the other deaths and stops that are not random, `torn`
//! has the power fail, `disk` the disk.

mod ask;
mod async_points;
mod disk;
mod hooks;
mod load;
mod oracle;
mod points;
mod program;
mod restart;
mod torn;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foreman::clock::Clock;
use stub_ollama::{Action, Cut, Fault, Stage, Stub, StubConfig};
use tokio::task::JoinHandle;

use crate::harness::daemon::{Daemon, Starting};
use crate::harness::random::Random;
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::{DEADLINE, stub_config};

use ask::{MODELS, Shape};
use load::{Known, Load};
use oracle::Findings;
use program::Program;

/// Kills where `FOREMAN_TEST_KILLS` says nothing: about a minute on two busy cores.
const KILLS_DEFAULT: u64 = 200;

/// How long a daemon lives, counted from its process's start, so that some die before they serve.
const LIFE_MIN: Duration = Duration::from_millis(5);
const LIFE_MAX: Duration = Duration::from_secs(2);

/// Deaths come like accidents, independent of what was before, on average this much after the shortest life.
const LIFE_MEAN: Duration = Duration::from_millis(220);

/// Clients at once.
const CLIENTS: u64 = 6;

/// Programs at once, which submit jobs that outlive their callers.
const PROGRAMS: u64 = 4;

/// One life in so many has a scripted fault of Ollama's in it.
const FAULTY_LIVES: u64 = 4;

/// The whole run with all its daemons.
struct Run {
    url: String,
    random: Random,
    load: Arc<Load>,
    /// From the start of a process until it served, of those that did.
    starts_ms: Vec<i64>,
    faults: u64,
    /// Whether the last kill found Ollama in the middle of a load.
    was_in_load: bool,
    /// Victims that Ollama chose by itself, in lives that did not begin with a load of a dead daemon.
    evictions: u64,
}

/// The real binary dies at random, again and again, under mixed load, and at last drains. What the clients were told is
/// then compared with the database, row by row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_no_acknowledged_job_is_lost_and_none_ends_twice() {
    let clock_seed = u64::try_from(Clock::system().now_ms()).unwrap();
    let seed = setting("FOREMAN_TEST_SEED").unwrap_or(clock_seed);
    let kills = setting("FOREMAN_TEST_KILLS").unwrap_or(KILLS_DEFAULT);
    println!("FOREMAN_TEST_SEED={seed} FOREMAN_TEST_KILLS={kills}");
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    oracle::prepare(&db).await;
    let stub = Stub::start(config()).await;
    let load = Arc::new(Load::default());
    let watcher = tokio::spawn(load::watch(Arc::clone(&load)));
    let moods = Mutex::new(Random::new(seed, CLIENTS + PROGRAMS + 1));
    let receiver = Receiver::start(move |_, _| mood(&mut moods.lock().unwrap())).await;
    let clients = clients(&load, seed);
    let programs = programs(&load, seed, &receiver);
    let mut run = Run {
        url: stub.url(),
        random: Random::new(seed, 0),
        load: Arc::clone(&load),
        starts_ms: Vec::new(),
        faults: 0,
        was_in_load: false,
        evictions: 0,
    };
    for _ in 0..kills {
        run.one_life(&stub, &db).await;
    }
    load.end();
    for client in clients {
        client.await.unwrap();
    }
    let daemon = Daemon::start(&stub.url(), &db, &hooks::FLAGS).await;
    load.follow(Some(daemon.addr));
    for program in programs {
        tokio::time::timeout(DEADLINE, program).await.expect("a program never ended").unwrap();
    }
    tokio::time::timeout(DEADLINE, load.drained()).await.expect("the queue never drained");
    program::idle(daemon.addr).await;
    load.follow(None);
    watcher.abort();
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));

    let known = std::mem::take(&mut *load.known());
    let findings = judge(&db, &known, &stub, &receiver, (kills, seed));
    run.starts_ms.sort_unstable();
    let start_ms = run.starts_ms.get(run.starts_ms.len() / 2).copied().unwrap_or_default();
    report(&format!("start to serving: median {start_ms} ms of {}", run.starts_ms.len()));
    let counts = stub.counts();
    println!(
        "faults {}, jobs failed {}, loads {}, aborted {}, evictions {}",
        run.faults, findings.failed, counts.loads, counts.aborted_loads, counts.evictions
    );
    assert!(findings.failed <= run.faults, "more jobs failed than Ollama failed: {}", run.faults);
    // Foreman asks ps before each load. After a kill ps can miss one model: that whose load, asked for by the dead
    // daemon, ends in the moment before Ollama notices that its client is gone. Only then may Ollama choose a victim;
    // such lives are not counted.
    assert_eq!(run.evictions, 0, "Ollama had to choose a victim by itself: {counts:?}");
    assert_eq!((counts.models_generating_max <= 1, counts.panics), (true, 0), "{counts:?}");
    stub.shutdown().await;
}

fn clients(load: &Arc<Load>, seed: u64) -> Vec<JoinHandle<()>> {
    let client =
        |number| tokio::spawn(load::client(Arc::clone(load), number, Random::new(seed, number)));
    (1..=CLIENTS).map(client).collect()
}

fn programs(load: &Arc<Load>, seed: u64, receiver: &Receiver) -> Vec<JoinHandle<()>> {
    let program = |number| {
        let (random, hook) = (Random::new(seed, number), receiver.url());
        let program = Program { load: Arc::clone(load), number, random, hook };
        tokio::spawn(program.run())
    };
    (CLIENTS + 1..=CLIENTS + PROGRAMS).map(program).collect()
}

/// Compares what everybody knows with the database, and prints what it came to. Fails unless nothing is wrong.
fn judge(
    db: &Path,
    known: &Known,
    stub: &Stub,
    receiver: &Receiver,
    (kills, seed): (u64, u64),
) -> Findings {
    let mut findings = oracle::judge(db, known, &stub.log());
    let hooked = hooks::judge(db, &receiver.calls());
    findings.lost.extend(hooked.lost);
    findings.wrong.extend(hooked.wrong);
    let (lost, duplicated) = (findings.lost.len(), findings.duplicated.len());
    report(&format!(
        "kills {kills}, acknowledged {}, lost {lost}, duplicated {duplicated}, webhooks {}, seed {seed}",
        known.acknowledged.len(),
        hooked.told
    ));
    report(&load::summary(known));
    report(&program::summary(known));
    report(&format!("calls of webhooks that were repeated: {}", hooked.repeated));
    findings.shorten();
    assert!(lost == 0 && duplicated == 0 && findings.wrong.is_empty(), "{findings:#?}");
    findings
}

/// Prints a line past the test runner's capture: the figures of a passing run are worth reading.
fn report(line: &str) {
    use std::io::Write;
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Room for one chat model and the embedder, so that no embed pushes a chat model out.
fn config() -> StubConfig {
    StubConfig { max_loaded: 2, log_entries_max: 1_000_000, ..stub_config(&MODELS) }
}

impl Run {
    /// Starts a daemon on the database, lets it live for a random while, kills it.
    async fn one_life(&mut self, stub: &Stub, db: &Path) {
        if self.random.below(FAULTY_LIVES) == 0 {
            stub.faults(fault(&mut self.random));
            self.faults += 1;
        }
        let life = life(&mut self.random);
        let before = stub.counts().evictions;
        let began_ms = Clock::system().now_ms();
        let mut starting = Starting::begin(&self.url, db, &hooks::FLAGS);
        // The one timer of these tests: the moment of death is the random input, nothing is waited for by it.
        let death = tokio::time::sleep(life);
        tokio::pin!(death);
        let addr = tokio::select! {
            addr = starting.serves() => addr,
            () = &mut death => return starting.kill().await,
        };
        self.starts_ms.push(Clock::system().now_ms() - began_ms);
        let daemon = starting.into_daemon(addr);
        self.load.follow(Some(addr));
        death.await;
        if !self.was_in_load {
            self.evictions += stub.counts().evictions - before;
        }
        self.was_in_load = stub.snapshot().loading.is_some();
        daemon.kill().await;
        self.load.follow(None);
    }
}

/// How the receiver of webhooks takes a call.
fn mood(random: &mut Random) -> Reply {
    match random.below(10) {
        0 => Reply::Status(500, ""),
        1 => Reply::Reset,
        2 => Reply::After(Duration::from_millis(40), 200),
        _ => Reply::FINE,
    }
}

/// Exponentially distributed, up to the longest.
fn life(random: &mut Random) -> Duration {
    const STEPS: u32 = 1_000_000;
    let step = u32::try_from(random.below(STEPS.into())).unwrap() + 1;
    let chance = f64::from(step) / f64::from(STEPS);
    (LIFE_MIN + LIFE_MEAN.mul_f64(-chance.ln())).min(LIFE_MAX)
}

/// Ollama answers 503, is busy, cuts a stream, ends one without `done`, fails inside one, or loses its runner: once.
fn fault(random: &mut Random) -> Fault {
    let chunks = u32::try_from(random.below(5)).unwrap();
    let cut = random.one_of(&[Cut::Fin, Cut::Reset]);
    let refusal = |text: &str| Action::Answer {
        status: 503,
        text: text.to_owned(),
        retry_after_seconds: None,
        stage: Stage::BeforeLoad,
    };
    let action = match random.below(7) {
        0 => refusal("server busy, please try again.  maximum pending requests exceeded"),
        1 => refusal("out of order"),
        2 => Action::CutBeforeHeaders(cut),
        3 => Action::CutAfterBytes { bytes: random.below(600), cut },
        4 => Action::EndWithoutDone(chunks),
        5 => Action::ErrorAfterChunks { chunks, text: None },
        _ => Action::KillRunner(chunks),
    };
    let path = random.one_of(&Shape::ALL).path();
    Fault::new(action).path(path).skip(random.below(4))
}

#[expect(clippy::disallowed_methods, reason = "a setting of the tests, not of foreman")]
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?}: a whole number")))
}
