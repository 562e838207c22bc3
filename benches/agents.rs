//! What foreman is worth to programs that look alike, beside the alternative, in one run: `cargo bench --bench agents`.
//!
//! Closed loops (ask, read the answer, think, ask again) over more models than fit into memory, each request over a new
//! connection, from one address, with one `User-Agent`, and with prompts that go on from nothing: nothing tells the programs
//! apart. Each row is played straight at a stub of Ollama and through foreman before another one, in interleaved rounds; the
//! figures are medians over the rounds, the ratio with its lowest and highest. Each round begins on a fresh database. Nothing
//! is asserted: machines differ and are shared.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark talks, and stops when it cannot go on"
)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foreman::app::App;
use foreman::clock::Clock;
use foreman::config::{Config, Raw};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::json;
use stub_ollama::{Model, Stub, StubConfig};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Rounds of each row; medians are over them.
const ROUNDS: usize = 3;

/// What each program asks for.
const STEPS: usize = 20;

/// A load takes as long as some answers, as with a real Ollama; everything is twenty times faster.
const LOAD: Duration = Duration::from_millis(400);
const TOKEN: Duration = Duration::from_millis(4);
const TOKENS: u32 = 20;
const THINK: Duration = Duration::from_millis(20);

/// Programs, each with the models it asks by turns.
struct Case {
    name: &'static str,
    programs: &'static [&'static [&'static str]],
}

const CASES: [Case; 4] = [
    Case { name: "one program a model", programs: &[&["a"], &["b"], &["c"]] },
    Case {
        name: "two programs a model",
        programs: &[&["a"], &["a"], &["b"], &["b"], &["c"], &["c"]],
    },
    Case {
        name: "three programs a model",
        programs: &[&["a"], &["a"], &["a"], &["b"], &["b"], &["b"], &["c"], &["c"], &["c"]],
    },
    Case { name: "to another model each step", programs: &[&["a", "b"], &["b", "c"], &["c", "a"]] },
];

/// What a round came to.
struct Round {
    loads_per_100: f64,
    took: Duration,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    println!(
        "{STEPS} steps a program, {ROUNDS} interleaved rounds; a load {} ms, an answer {} ms, a thought {} ms",
        LOAD.as_millis(),
        (TOKEN * TOKENS).as_millis(),
        THINK.as_millis()
    );
    println!(
        "{:<28} {:>14} {:>14} {:>11} {:>11} {:>20}",
        "", "alone loads/100", "foreman", "alone s", "foreman s", "shorter by"
    );
    for case in &CASES {
        let mut rounds = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            rounds[0].push(alone(case).await);
            rounds[1].push(through(case).await);
        }
        report(case, &rounds);
    }
}

fn report(case: &Case, [alone, through]: &[Vec<Round>; 2]) {
    let loads = |rounds: &[Round]| median(rounds.iter().map(|round| round.loads_per_100).collect());
    let took =
        |rounds: &[Round]| median(rounds.iter().map(|round| round.took.as_secs_f64()).collect());
    let ratios: Vec<f64> = alone
        .iter()
        .zip(through)
        .map(|(alone, through)| alone.took.as_secs_f64() / through.took.as_secs_f64())
        .collect();
    let (low, high) = ratios
        .iter()
        .fold((f64::MAX, 0.0_f64), |(low, high), ratio| (low.min(*ratio), high.max(*ratio)));
    println!(
        "{:<28} {:>14.1} {:>14.1} {:>11.2} {:>11.2} {:>20}",
        case.name,
        loads(alone),
        loads(through),
        took(alone),
        took(through),
        format!("{:.1} ({low:.1} to {high:.1})", median(ratios.clone()))
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn stub() -> Stub {
    let models = ["a", "b", "c"].map(|name| Model::new(name).load_time(LOAD));
    let config =
        StubConfig { token_time: TOKEN, default_tokens: TOKENS, ..StubConfig::with_models(models) };
    Stub::start(config).await
}

async fn alone(case: &Case) -> Round {
    let stub = stub().await;
    let took = play(case, stub.addr()).await;
    round(case, &stub, took)
}

async fn through(case: &Case) -> Round {
    let stub = stub().await;
    let folder = tempfile::tempdir().unwrap();
    let given = |text: &str| Some(text.to_owned());
    let raw = Raw {
        addr: given("127.0.0.1:0"),
        ollama_url: given(&stub.url()),
        db: given(folder.path().join("foreman.db").to_str().unwrap()),
        ..Raw::default()
    };
    let app = App::build(Config::check(&raw).unwrap(), Clock::system()).await.unwrap();
    let addr = app.addr();
    let (stops, receiver) = mpsc::channel(2);
    let running = tokio::spawn(app.run(receiver));
    let took = play(case, addr).await;
    let round = round(case, &stub, took);
    stops.send(()).await.unwrap();
    running.await.unwrap();
    round
}

fn round(case: &Case, stub: &Stub, took: Duration) -> Round {
    let jobs = u32::try_from(case.programs.len() * STEPS).unwrap();
    let loads = u32::try_from(stub.counts().loads).unwrap();
    Round { loads_per_100: 100.0 * f64::from(loads) / f64::from(jobs), took }
}

async fn play(case: &Case, addr: SocketAddr) -> Duration {
    let began = Instant::now();
    let programs: Vec<_> =
        case.programs.iter().map(|models| tokio::spawn(program(addr, models))).collect();
    for program in programs {
        program.await.unwrap();
    }
    began.elapsed()
}

async fn program(addr: SocketAddr, models: &[&str]) {
    for step in 0..STEPS {
        let message = json!({ "role": "user", "content": format!("question {step}") });
        let model = models[step % models.len()];
        ask(addr, &json!({ "model": model, "messages": [message] }).to_string()).await;
        tokio::time::sleep(THINK).await;
    }
}

/// One question over a connection of its own.
async fn ask(addr: SocketAddr, body: &str) {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/api/chat")
        .header("host", addr.to_string())
        .header("user-agent", "python-requests/2.32.3")
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
}
