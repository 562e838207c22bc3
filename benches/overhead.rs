//! What foreman adds, beside the alternative, in one run: `cargo bench --bench overhead`.
//!
//! One client on one keep-alive connection asks the stub directly and through foreman, in interleaved rounds; the figures
//! are medians over the rounds, with their spread. Nothing is asserted: machines differ and are shared. The flush line is
//! what the disk itself takes for an append and an fdatasync of 4 KiB, since a queued answer waits for one.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark talks, and stops when it cannot go on"
)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foreman::app::App;
use foreman::clock::Clock;
use foreman::config::{Config, Raw};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use stub_ollama::{Model, Stub, StubConfig};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Rounds of each kind; medians are over them.
const ROUNDS: usize = 7;

/// Requests in a round.
const REQUESTS: usize = 400;

/// A request to be measured.
struct Case {
    name: &'static str,
    method: &'static str,
    path: &'static str,
    body: &'static str,
}

const CASES: [Case; 4] = [
    Case { name: "relayed: GET /api/version", method: "GET", path: "/api/version", body: "" },
    Case {
        name: "embed: POST /api/embed",
        method: "POST",
        path: "/api/embed",
        body: r#"{"model":"embed","input":"x"}"#,
    },
    Case {
        name: "queued chat, streamed, one token (first byte)",
        method: "POST",
        path: "/api/chat",
        body: r#"{"model":"a","messages":[{"role":"user","content":"x"}],"options":{"num_predict":1}}"#,
    },
    Case {
        name: "queued chat, unstreamed, one token",
        method: "POST",
        path: "/api/chat",
        body: r#"{"model":"a","stream":false,"messages":[{"role":"user","content":"x"}],"options":{"num_predict":1}}"#,
    },
];

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let models = [Model::new("a"), Model::embedding("embed")];
    let config = StubConfig {
        token_time: Duration::ZERO,
        embed_time: Duration::ZERO,
        max_loaded: 2,
        ..StubConfig::with_models(models)
    };
    let stub = Stub::start(config).await;
    let given = |text: &str| Some(text.to_owned());
    let raw = Raw {
        addr: given("127.0.0.1:0"),
        ollama_url: given(&stub.url()),
        db: given(folder.path().join("foreman.db").to_str().unwrap()),
        embed_model: given("embed"),
        ..Raw::default()
    };
    let app = App::build(Config::check(&raw).unwrap(), Clock::system()).await.unwrap();
    let through = app.addr();
    let (stops, receiver) = mpsc::channel(2);
    let running = tokio::spawn(app.run(receiver));
    println!("{REQUESTS} requests a round, {ROUNDS} interleaved rounds, one client; microseconds");
    println!("{:<46} {:>13} {:>15} {:>7}", "", "direct p50/99", "through p50/99", "added");
    for case in &CASES {
        compare(case, stub.addr(), through).await;
    }
    let flush = flush_us(&folder.path().join("flush"));
    println!(
        "{:<46} {:>13}",
        "the disk's flush (4 KiB, fdatasync), p50/99",
        format!("{}/{}", flush.0, flush.1)
    );
    stops.send(()).await.unwrap();
    running.await.unwrap();
}

async fn compare(case: &Case, direct: SocketAddr, through: SocketAddr) {
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (side, addr) in [direct, through].into_iter().enumerate() {
            rounds[side].push(round(case, addr).await);
        }
    }
    let [direct, through] = rounds.map(|rounds| {
        let middle = |pick: fn(&(u128, u128)) -> u128| {
            let mut values: Vec<u128> = rounds.iter().map(pick).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        (middle(|round| round.0), middle(|round| round.1))
    });
    println!(
        "{:<46} {:>13} {:>15} {:>7}",
        case.name,
        format!("{}/{}", direct.0, direct.1),
        format!("{}/{}", through.0, through.1),
        through.0.saturating_sub(direct.0)
    );
}

/// Median and 99th percentile of a round, to the first byte of the body.
async fn round(case: &Case, addr: SocketAddr) -> (u128, u128) {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        times.push(ask(&mut sender, case, addr).await.as_micros());
    }
    percentiles(times)
}

async fn ask(sender: &mut SendRequest<Full<Bytes>>, case: &Case, addr: SocketAddr) -> Duration {
    let request = Request::builder()
        .method(case.method)
        .uri(case.path)
        .header("host", addr.to_string())
        .body(Full::new(Bytes::from_static(case.body.as_bytes())))
        .unwrap();
    sender.ready().await.unwrap();
    let began = Instant::now();
    let mut response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200, "{}", case.path);
    let first = response.body_mut().frame().await;
    let taken = began.elapsed();
    first.unwrap().unwrap();
    while let Some(frame) = response.body_mut().frame().await {
        frame.unwrap();
    }
    taken
}

fn flush_us(path: &std::path::Path) -> (u128, u128) {
    let mut file = File::create(path).unwrap();
    let times = (0..REQUESTS).map(|_| {
        let began = Instant::now();
        file.write_all(&[0; 4096]).unwrap();
        file.sync_data().unwrap();
        began.elapsed().as_micros()
    });
    percentiles(times.collect())
}

fn percentiles(mut times: Vec<u128>) -> (u128, u128) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}
