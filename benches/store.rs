//! What the queue costs when it is deep: `cargo bench --bench store`.
//!
//! Fills a database with waiting jobs over 50 lanes and three classes (1,000,000; `FOREMAN_BENCH_JOBS` says otherwise),
//! then times the questions and commands of the worker and of an admission on it, one at a time, and the opening of it.
//! Nothing is asserted: machines differ and are shared. The flush line is what the disk itself takes for an append and an
//! fdatasync of 4 KiB, since an admission waits for one.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark talks, and stops when it cannot go on"
)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and its environment")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use foreman::domain::dialect::Dialect;
use foreman::domain::job::{Class, Event, JobId, Kind};
use foreman::domain::retry::Charge;
use foreman::store::{
    Admission, Answer, AnswerBody, Claim, Ending, Extras, GiveBack, Measured, NewJob, QueueLimits,
    Store,
};
use tokio::task::JoinSet;
use ulid::Ulid;

/// Waiting jobs, unless the environment says otherwise.
const JOBS: usize = 1_000_000;

/// Lanes they wait in.
const LANES: usize = 50;

/// Admissions at once while filling.
const FILLERS: usize = 256;

/// Times each thing is measured.
const ROUNDS: usize = 1_000;

/// Times the database is opened.
const OPENINGS: usize = 7;

/// Jobs whose clients wait on connections: as many as a daemon takes by default.
const ATTENDED: usize = 16_384;

/// Jobs listed by an overview; jobs of a trace.
const LISTED: usize = 100;
const TRACED: usize = 1_000;

const LIMITS: QueueLimits = QueueLimits {
    jobs_max: u64::MAX,
    bytes_max: u64::MAX,
    class_max: [None, None, Some(u64::MAX)],
};

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let jobs = std::env::var("FOREMAN_BENCH_JOBS").map_or(JOBS, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("foreman.db");
    let (store, _) = Store::open(&path, 0).unwrap();
    let began = Instant::now();
    fill(&store, jobs).await;
    let taken = began.elapsed();
    let bytes = std::fs::metadata(&path).unwrap().len();
    println!(
        "{jobs} waiting jobs in {LANES} lanes; {} MB; filled in {:.1} s, {FILLERS} at once; times in microseconds",
        bytes / 1_000_000,
        taken.as_secs_f64()
    );
    println!("{:<52} {:>9} {:>9} {:>9}", "", "p50", "p99", "most");
    measure(&store, "").await;
    store.close().await;
    drop(store);
    openings(&path, jobs);
    attended(&path).await;
    let (store, _) = Store::open(&path, 4).unwrap();
    measure(&store, ", after an opening").await;
    store.close().await;
    report("the disk's flush (4 KiB, fdatasync)", flushes(&folder.path().join("flush")));
}

async fn fill(store: &Store, jobs: usize) {
    let mut fillers = JoinSet::new();
    for filler in 0..FILLERS {
        let store = store.clone();
        fillers.spawn(async move {
            for number in (filler..jobs).step_by(FILLERS) {
                admit(&store, number).await;
            }
        });
    }
    while let Some(ended) = fillers.join_next().await {
        ended.unwrap();
    }
}

async fn admit(store: &Store, number: usize) {
    let admission = store.admit(job(number), LIMITS, 1).await.unwrap();
    assert!(matches!(admission, Admission::Admitted { .. }));
}

fn job(number: usize) -> NewJob {
    NewJob {
        id: JobId(Ulid::generate()),
        dialect: Dialect::Chat,
        kind: Kind::Run,
        lane: lane(number),
        model: lane(number),
        class: Class::ALL[number / LANES % Class::ALL.len()],
        client: "4f1d2c3b5a69".to_owned(),
        is_streamed: true,
        path_and_query: "/api/chat".to_owned(),
        headers: vec![("content-type".to_owned(), b"application/json".to_vec())],
        body: Bytes::from_static(
            br#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#,
        ),
        // A million clients do not wait on a connection each.
        extras: Extras { is_async: true, ..Extras::default() },
    }
}

fn lane(number: usize) -> String {
    format!("llama3.{}:8b-instruct-q4_K_M num_ctx=8192", number % LANES)
}

/// Each thing the worker and the handlers ask of the store, one at a time.
async fn measure(store: &Store, when: &str) {
    let mut times: [Vec<u128>; 7] = Default::default();
    for round in 0..ROUNDS {
        times[0].push(timed(store.waiting_lanes(2)).await.1);
        times[6].push(timed(store.waiting_lanes(2)).await.1);
        let (claimed, taken) = claim(store, round).await;
        times[1].push(taken);
        times[2].push(timed(admit(store, round)).await.1);
        // One in four waits for a retry; the lanes must not step over those.
        if let Some(claim) = claimed {
            let (seq, epoch) = (claim.seq, claim.lease_epoch);
            times[3].push(match round % 4 {
                0 => timed(store.give_back(seq, epoch, back())).await.1,
                _ => timed(store.finish(seq, epoch, ending(), 3)).await.1,
            });
        }
    }
    for _ in 0..ROUNDS / 10 {
        times[4].push(timed(store.overview(Vec::new(), LISTED)).await.1);
        times[5].push(timed(store.finished_jobs(TRACED)).await.1);
    }
    let names = [
        "waiting_lanes",
        "claim",
        "admit (synced)",
        "finish (synced) or give_back",
        "overview of 100 jobs",
        "finished_jobs (up to 1,000)",
        "waiting_lanes, nothing written since",
    ];
    for (name, times) in names.into_iter().zip(times) {
        report(&format!("{name}{when}"), times);
    }
}

/// Claims as the worker does: the most urgent class of a lane that has a job.
async fn claim(store: &Store, round: usize) -> (Option<Claim>, u128) {
    for class in Class::ALL {
        let claimed = timed(store.claim(lane(round), class, Event::ClaimToWork, 2)).await;
        if let (Ok(Some(claim)), taken) = claimed {
            return (Some(claim), taken);
        }
    }
    (None, 0)
}

fn ending() -> Ending {
    let body = AnswerBody::Inline(Bytes::from_static(b"whole"));
    let answer = Answer { status: 200, headers: Vec::new(), body };
    Ending {
        event: Event::Complete,
        answer: Some(answer),
        error: None,
        error_status: None,
        measured: Measured::default(),
    }
}

fn back() -> GiveBack {
    let error = "connection refused".to_owned();
    GiveBack { charge: Charge::Deferral, not_before_ms: 60_000, error, at_ms: 3 }
}

/// Opens the database again and again.
fn openings(path: &Path, jobs: usize) {
    let times = (0..OPENINGS).map(|_| {
        let began = Instant::now();
        let (store, recovered) = Store::open(path, 3).unwrap();
        let taken = began.elapsed().as_micros();
        assert!(recovered.waiting > 0 || jobs == 0);
        drop(store);
        taken
    });
    let times: Vec<u128> = times.collect();
    println!("{:<52} {:>9}", "opening, the first time after the writes", times[0]);
    report("opening, again", times[1..].to_vec());
}

/// What an opening costs when the queue is full of jobs whose clients waited on connections: each is written.
async fn attended(path: &Path) {
    let mut times = Vec::new();
    for round in 0..OPENINGS {
        let (store, _) = Store::open(path, 3).unwrap();
        let mut fillers = JoinSet::new();
        for number in 0..ATTENDED {
            let (store, extras) = (store.clone(), Extras::default());
            fillers.spawn(async move {
                let job = NewJob { extras, ..job(round * ATTENDED + number) };
                store.admit(job, LIMITS, 1).await.unwrap();
            });
        }
        while let Some(ended) = fillers.join_next().await {
            ended.unwrap();
        }
        store.close().await;
        drop(store);
        let began = Instant::now();
        drop(Store::open(path, 3).unwrap());
        times.push(began.elapsed().as_micros());
    }
    report(&format!("opening with {ATTENDED} more that clients waited for"), times);
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, u128) {
    let began = Instant::now();
    let outcome = work.await;
    (outcome, began.elapsed().as_micros())
}

fn flushes(path: &Path) -> Vec<u128> {
    let mut file = File::create(path).unwrap();
    let times = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        file.write_all(&[0; 4096]).unwrap();
        file.sync_data().unwrap();
        began.elapsed().as_micros()
    });
    times.collect()
}

fn report(name: &str, mut times: Vec<u128>) {
    times.sort_unstable();
    let Some(most) = times.last() else { return };
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!("{name:<52} {:>9} {:>9} {most:>9}", at(50), at(99));
}
