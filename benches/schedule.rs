//! What a decision costs when the queue is deep, and what the decisions are worth: `cargo bench --bench schedule`.
//!
//! Fills a database file with waiting jobs of 1,000 clients over 50 load keys and three classes (1,000,000;
//! `FOREMAN_BENCH_JOBS` says otherwise) and times whole decisions on it, as the worker makes them: what waits, by the store; the board, by what was
//! learned; the decision. Then that of a board alone. The same with 10,000 load keys (`FOREMAN_BENCH_KEYS`) beside an eighth of
//! them, and what a look at a job and the status read there. Then the workloads of `tests/fixtures/traces` go through the three
//! policies in virtual time. Nothing is asserted: machines differ and are shared.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark talks, and stops when it cannot go on"
)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and its environment")]

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use foreman::domain::dialect::Dialect;
use foreman::domain::job::{Class, Event, JobId, Kind};
use foreman::domain::learning::{Held, Learning, NamesOnly, Waiting};
use foreman::domain::schedule::{Board, Decision, Lane, Policy, decide};
use foreman::replay::{Form, Setup, Trace, Workload, suite, workload_of};
use foreman::store::{Admission, Extras, NewJob, QueueLimits, Store, ViewOf, WaitingLane};
use tokio::task::JoinSet;
use ulid::Ulid;

/// Waiting jobs, unless the environment says otherwise.
const JOBS: usize = 1_000_000;

/// Load keys they wait for.
const KEYS: usize = 50;

/// Clients they are of.
const CLIENTS: usize = 1_000;

/// Admissions at once while filling.
const FILLERS: usize = 256;

/// Load keys of the long board, unless the environment says otherwise: a batch in which each job has its own context.
const MANY_KEYS: usize = 10_000;

/// Jobs handed in with one write.
const AT_ONCE: usize = 1_000;

/// Decisions timed.
const ROUNDS: usize = 1_000;

/// What loading takes, by the fixtures' README.
const LOADS_S: [(&str, f64); 3] = [("A", 8.0), ("B", 10.0), ("C", 6.0)];

const LIMITS: QueueLimits =
    QueueLimits { jobs_max: u64::MAX, bytes_max: u64::MAX, class_max: [None; 3] };

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(decisions());
    let keys = std::env::var("FOREMAN_BENCH_KEYS").map_or(MANY_KEYS, |text| text.parse().unwrap());
    for keys in [keys / 8, keys] {
        runtime.block_on(many_keys(keys));
    }
    workloads();
}

async fn decisions() {
    let jobs = std::env::var("FOREMAN_BENCH_JOBS").map_or(JOBS, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("foreman.db"), 0).unwrap();
    fill(&store, jobs).await;
    println!("{jobs} waiting jobs for {KEYS} load keys; times in microseconds");
    println!("{:<64} {:>9} {:>9} {:>9}", "", "p50", "p99", "most");
    let mut learning = learned();
    let held = held();
    let (mut whole, mut changing, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let began = Instant::now();
        let board = look(&store, &mut learning, &held, round).await;
        let decision = decide(&board);
        whole.push(began.elapsed().as_nanos());
        assert!(matches!(decision, Decision::Run { .. } | Decision::Swap { .. }), "{decision:?}");
        let began = Instant::now();
        std::hint::black_box(decide(std::hint::black_box(&board)));
        alone.push(began.elapsed().as_nanos());
        // As after each job: what waits has changed since the last look.
        let claimed =
            store.claim(lane(0), Class::Interactive, Event::ClaimToWork, 2).await.unwrap();
        std::hint::black_box(claimed);
        let began = Instant::now();
        std::hint::black_box(decide(&look(&store, &mut learning, &held, round).await));
        changing.push(began.elapsed().as_nanos());
    }
    report("a whole decision (lanes_in_view, board, decide)", whole);
    report("the same just after a claim", changing);
    report("decide alone", alone);
    store.close().await;
}

/// What the worker sees.
async fn look(store: &Store, learning: &mut Learning, held: &[Held], round: usize) -> Board {
    let now_ms = 1_000 + i64::try_from(round).unwrap();
    let of = ViewOf { held: held.to_vec(), ..ViewOf::default() };
    let view = store.lanes_in_view(now_ms, of).await.unwrap();
    let waiting: Vec<Waiting> = view.lanes.iter().filter_map(WaitingLane::ready).collect();
    assert!(waiting.len() >= KEYS.min(3), "the lanes are those of load keys");
    learning.see(held, &waiting, now_ms);
    learning.board(now_ms, &waiting, held, &NamesOnly, &Policy::default())
}

/// A queue in which each job has a key of its own.
async fn many_keys(keys: usize) {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("foreman.db"), 0).unwrap();
    let numbers: Vec<usize> = (0..keys).collect();
    for numbers in numbers.chunks(AT_ONCE) {
        let job = |number: &usize| NewJob { lane: own_lane(*number), ..job(KEYS * 2 + *number) };
        store.admit_all(numbers.iter().map(job).collect(), LIMITS, 1).await.unwrap();
    }
    println!("{keys} waiting jobs, each for a load key of its own; times in microseconds");
    let (mut learning, held, policy) = (learned(), held(), Policy::default());
    let (mut whole, mut changing, mut looks, mut shown) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS.min(200) {
        let began = Instant::now();
        std::hint::black_box(decide(&look(&store, &mut learning, &held, round).await));
        whole.push(began.elapsed().as_nanos());
        let lane = own_lane(round);
        for class in Class::ALL {
            let claimed = store.claim(lane.clone(), class, Event::ClaimToWork, 2).await.unwrap();
            std::hint::black_box(claimed);
        }
        let began = Instant::now();
        std::hint::black_box(decide(&look(&store, &mut learning, &held, round).await));
        changing.push(began.elapsed().as_nanos());
        let began = Instant::now();
        look(&store, &mut learning, &held, round).await;
        let lane = own_lane(keys - 1 - round);
        std::hint::black_box(store.due_before(lane, policy.max_wait_ms).await.unwrap());
        looks.push(began.elapsed().as_nanos());
        let began = Instant::now();
        look(&store, &mut learning, &held, round).await;
        let order = store.lanes_by_due(policy.max_wait_ms, 100).await.unwrap();
        std::hint::black_box(store.overview(order, 100).await.unwrap());
        shown.push(began.elapsed().as_nanos());
    }
    report("a whole decision (lanes_in_view, board, decide)", whole);
    report("the same just after a claim", changing);
    report("the place of a job (lanes_in_view, board, due_before)", looks);
    report("what the status shows (the same, lanes_by_due, overview)", shown);
    store.close().await;
}

fn own_lane(number: usize) -> String {
    format!("llama3.0:8b-instruct-q4_k_m num_ctx={}", 10_000 + number)
}

/// As much as is ever learned about each key.
fn learned() -> Learning {
    let mut learning = Learning::default();
    for key in (0..KEYS).map(lane) {
        for n in 0..40 {
            learning.load_times.measured(&key, 5_000 + n, None);
            learning.rates.served(&key, 3_000 + n);
            learning.rates.arrived(&key, n * 20);
            learning.returns.learn(&format!("client {key}"), Some(500 + n));
        }
    }
    learning
}

fn held() -> Vec<Held> {
    let Some(Lane::Key(key)) = Lane::from_text(&lane(0)) else { return Vec::new() };
    vec![Held { model: key.model.clone(), key: Some(key), is_embedder: false }]
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
        class: Class::ALL[number / KEYS % Class::ALL.len()],
        client: format!("{:012x}", number * 7 % CLIENTS),
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
    format!("llama3.{}:8b-instruct-q4_k_m num_ctx=8192", number % KEYS)
}

fn report(name: &str, mut times_ns: Vec<u128>) {
    times_ns.sort_unstable();
    let at = |permille: usize| {
        let place = (times_ns.len() * permille / 1_000).min(times_ns.len() - 1);
        times_ns[place] as f64 / 1_000.0
    };
    println!("{name:<64} {:>9.1} {:>9.1} {:>9.1}", at(500), at(990), at(1_000));
}

/// The table of the suite, as `foreman replay --suite` prints it.
fn workloads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/traces");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut traces: Vec<(String, Trace)> = files
        .filter_map(|path| {
            let name = workload_of(path.file_name()?.to_str()?)?.to_owned();
            let mut trace = Trace::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
            trace.loads_s = LOADS_S.map(|(key, load_s)| (key.to_owned(), load_s)).to_vec();
            Some((name, trace))
        })
        .collect();
    traces.sort_by(|(a, _), (b, _)| a.cmp(b));
    let began = Instant::now();
    let workloads = suite(&traces, &Setup::default()).unwrap();
    println!(
        "\n{} days with three policies in {:.1} s: loads per 100 jobs · makespan s · mean latency s · longest wait s",
        traces.len(),
        began.elapsed().as_secs_f64()
    );
    println!("{}", Workload::table(&workloads, Form::Plain));
}
