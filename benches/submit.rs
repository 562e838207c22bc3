//! What handing a job in takes, whatever Ollama does: `cargo bench --bench submit`.
//!
//! Sixty-four clients on keep-alive connections post to `/jobs` while the upstream is down, takes connections and never
//! answers, or is busy with one long stream. Then how many durable jobs a second go through an upstream that answers at
//! once, and what a batch of ten thousand takes. Nothing is asserted: machines differ and are shared. The flush lines are
//! what the disk itself takes for an append and an fdatasync of 4 KiB, since a 202 waits for one.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark talks, and stops when it cannot go on"
)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and its environment")]

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foreman::app::App;
use foreman::clock::Clock;
use foreman::config::{Config, Raw};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use stub_ollama::{Model, Stub, StubConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// Clients at once.
const CLIENTS: usize = 64;

/// Jobs each of them hands in, unless the environment says otherwise.
const JOBS: usize = 300;

/// Jobs of a batch.
const BATCH: usize = 10_000;

/// Appends of a flush line.
const FLUSHES: usize = 400;

const JOB: &str =
    r#"{"model":"a","messages":[{"role":"user","content":"hello"}],"options":{"num_predict":1}}"#;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let jobs = std::env::var("FOREMAN_BENCH_JOBS").map_or(JOBS, |text| text.parse().unwrap());
    let title = format!("{CLIENTS} clients, {jobs} jobs each; latency of the 202 in microseconds");
    println!("{title:<64} {:>9} {:>9} {:>9} {:>9}", "jobs/s", "p50", "p99", "most");
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = free.local_addr().unwrap();
    drop(free);
    submit("the upstream is down", &format!("http://{nobody}"), jobs).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    submit(
        "it takes connections and never answers",
        &format!("http://{}", silent.local_addr().unwrap()),
        jobs,
    )
    .await;
    let stub = Stub::start(StubConfig { token_time: Duration::from_millis(5), ..quick() }).await;
    busy(&stub, jobs).await;
    for parallel in [16, 1] {
        drain(parallel, jobs).await;
    }
    batch(&format!("http://{nobody}")).await;
}

fn quick() -> StubConfig {
    StubConfig {
        token_time: Duration::ZERO,
        num_parallel: 16,
        log_entries_max: 10,
        wait_max: Duration::from_mins(1),
        ..StubConfig::with_models([Model::new("a")])
    }
}

/// A foreman in a folder of its own.
struct Daemon {
    addr: SocketAddr,
    folder: tempfile::TempDir,
    stops: mpsc::Sender<()>,
    running: JoinHandle<foreman::app::Stopped>,
}

impl Daemon {
    async fn start(url: &str, tweak: impl FnOnce(&mut Raw)) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let given = |text: &str| Some(text.to_owned());
        let mut raw = Raw {
            addr: given("127.0.0.1:0"),
            ollama_url: given(url),
            db: given(folder.path().join("foreman.db").to_str().unwrap()),
            max_queue: given("1000000"),
            shutdown_grace: given("1s"),
            ..Raw::default()
        };
        tweak(&mut raw);
        let app = App::build(Config::check(&raw).unwrap(), Clock::system()).await.unwrap();
        let addr = app.addr();
        let (stops, receiver) = mpsc::channel(4);
        let running = tokio::spawn(app.run(receiver));
        Daemon { addr, folder, stops, running }
    }

    async fn stop(self) {
        for _ in 0..2 {
            self.stops.send(()).await.unwrap();
        }
        self.running.await.unwrap();
    }

    async fn status(&self) -> Value {
        let mut client = connect(self.addr).await;
        let (_, body) = send(&mut client, self.addr, "GET", "/status", "").await;
        serde_json::from_slice(&body).unwrap()
    }

    /// Returns when so many jobs are done.
    async fn done(&self, jobs: usize) {
        while self.status().await["since_start"]["done"].as_u64().unwrap()
            < u64::try_from(jobs).unwrap()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn submit(name: &str, url: &str, jobs: usize) {
    let daemon = Daemon::start(url, |_| ()).await;
    let (taken, times) = hand_in(daemon.addr, jobs).await;
    report(name, times, taken);
    report("  the disk's flush", flushes(daemon.folder.path()), Duration::ZERO);
    daemon.stop().await;
}

async fn busy(stub: &Stub, jobs: usize) {
    let daemon = Daemon::start(&stub.url(), |raw| raw.parallel = Some("1".to_owned())).await;
    let mut client = connect(daemon.addr).await;
    let long = r#"{"model":"a","prompt":"x","options":{"num_predict":1000000000}}"#;
    let mut stream =
        client.send_request(request(daemon.addr, "POST", "/api/generate", long)).await.unwrap();
    let reading =
        tokio::spawn(async move { while let Some(Ok(_)) = stream.body_mut().frame().await {} });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let (taken, times) = hand_in(daemon.addr, jobs).await;
    report("it is busy with one stream of 200 tokens a second", times, taken);
    report("  the disk's flush", flushes(daemon.folder.path()), Duration::ZERO);
    reading.abort();
    drop(client);
    daemon.stop().await;
}

/// From the first submission to the record of the last outcome.
async fn drain(parallel: usize, jobs: usize) {
    let stub = Stub::start(quick()).await;
    let daemon = Daemon::start(&stub.url(), |raw| raw.parallel = Some(parallel.to_string())).await;
    let began = Instant::now();
    let (_, times) = hand_in(daemon.addr, jobs / 4).await;
    let count = times.len();
    daemon.done(count).await;
    let name = format!("through an upstream that answers at once, {parallel} in parallel");
    report(&name, times, began.elapsed());
    daemon.stop().await;
}

async fn batch(url: &str) {
    let daemon = Daemon::start(url, |_| ()).await;
    let mut client = connect(daemon.addr).await;
    let body = format!("{JOB}\n").repeat(BATCH);
    let mut times = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        let (status, _) = send(&mut client, daemon.addr, "POST", "/jobs/batch", &body).await;
        times.push(began.elapsed().as_micros());
        assert_eq!(status, StatusCode::ACCEPTED);
    }
    let whole = Duration::from_micros(times.iter().sum::<u128>().try_into().unwrap());
    println!(
        "{:<64} {:>9.0}",
        format!("batches of {BATCH}"),
        (BATCH * times.len()) as f64 / whole.as_secs_f64()
    );
    report("  latency of one", times, Duration::ZERO);
    daemon.stop().await;
}

/// All clients at once; how long it took, and the time of each 202.
async fn hand_in(addr: SocketAddr, jobs: usize) -> (Duration, Vec<u128>) {
    let mut clients = JoinSet::new();
    let began = Instant::now();
    for _ in 0..CLIENTS {
        clients.spawn(async move {
            let mut client = connect(addr).await;
            let mut times = Vec::with_capacity(jobs);
            for _ in 0..jobs {
                let began = Instant::now();
                let (status, body) = send(&mut client, addr, "POST", "/jobs", JOB).await;
                times.push(began.elapsed().as_micros());
                assert_eq!(status, StatusCode::ACCEPTED, "{body:?}");
            }
            times
        });
    }
    let mut times = Vec::new();
    while let Some(client) = clients.join_next().await {
        times.extend(client.unwrap());
    }
    (began.elapsed(), times)
}

async fn connect(addr: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(addr: SocketAddr, method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", addr.to_string());
    request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()
}

async fn send(
    client: &mut SendRequest<Full<Bytes>>,
    addr: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> (StatusCode, Bytes) {
    client.ready().await.unwrap();
    let response = client.send_request(request(addr, method, path, body)).await.unwrap();
    (response.status(), response.into_body().collect().await.unwrap().to_bytes())
}

fn flushes(folder: &Path) -> Vec<u128> {
    let mut file = File::create(folder.join("flush")).unwrap();
    let times = (0..FLUSHES).map(|_| {
        let began = Instant::now();
        file.write_all(&[0; 4096]).unwrap();
        file.sync_data().unwrap();
        began.elapsed().as_micros()
    });
    times.collect()
}

fn report(name: &str, mut times: Vec<u128>, taken: Duration) {
    times.sort_unstable();
    let Some(most) = times.last() else { return };
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let rate = match taken.is_zero() {
        true => String::new(),
        false => format!("{:.0}", times.len() as f64 / taken.as_secs_f64()),
    };
    println!("{name:<64} {rate:>9} {:>9} {:>9} {most:>9}", at(50), at(99));
}
