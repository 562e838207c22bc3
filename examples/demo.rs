//! A look at foreman in one command: `cargo run --release --example demo`.
//!
//! Starts the stub (a stand-in for Ollama with its scheduler, no GPU needed) and foreman in this process, plays the same
//! two-model workload straight at a stub and through foreman in front of another one, and prints loads, evictions, wall
//! time and waits side by side. Everything it prints is measured in this run; it never touches a real Ollama.
//!
//! The workload is the one foreman is for: a burst of chats for two models by turns, of which one fits into memory.
//! There are no embeddings in it, because the stub counts models and not bytes: an embedder could not fit beside a large
//! model where two large ones do not.

#![expect(clippy::print_stdout, reason = "a demo shows its result on the terminal")]

use std::error::Error;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use foreman::app::{App, Stopped};
use foreman::clock::Clock;
use foreman::config::{ADDR_DEFAULT, Config, Raw};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use stub_ollama::{Model, Stub, StubConfig};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Two models that do not fit into memory together.
const MODELS: [&str; 2] = ["llama3", "qwen3"];

/// What making one of them resident takes: a hundredth of what a large model on a disk does.
const LOAD_TIME: Duration = Duration::from_millis(400);

/// What a token takes.
const TOKEN_TIME: Duration = Duration::from_millis(2);

/// Tokens of an answer: an answer takes a third of a load, as a short chat does.
const TOKENS: u32 = 40;

/// Chats in all, for the two models by turns.
const JOBS: usize = 24;

/// The time between two arrivals: all are there before the first model is loaded, and in the same order in both runs.
const ARRIVAL_GAP: Duration = Duration::from_millis(10);

/// The longest a run may take; it takes a tenth of that.
const RUN_LIMIT: Duration = Duration::from_secs(120);

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What one run came to.
struct Measured {
    loads: u64,
    evictions: u64,
    wall_ms: i64,
    waits_ms: Vec<i64>,
    /// The texts, in the order of the questions: they must be the same in both runs.
    answers: Vec<String>,
}

/// One answer and how long its client waited for it.
struct Answered {
    number: u32,
    wait_ms: i64,
    text: String,
}

#[tokio::main]
async fn main() -> Fallible<()> {
    println!("{JOBS} chats arrive at once, for two models by turns; one model fits into memory.\n");
    let straight = straight_at_ollama().await?;
    let through = through_foreman().await?;
    if straight.answers != through.answers {
        return Err("the answers through foreman are not those of ollama".into());
    }
    print!("{}", table(&straight, &through));
    Ok(())
}

/// Every client asks the stub itself.
async fn straight_at_ollama() -> Fallible<Measured> {
    let stub = Stub::try_start(stub_config()).await?;
    let measured = play("straight at Ollama", stub.addr(), &stub).await;
    stub.shutdown().await;
    measured
}

/// Every client asks foreman, which stands in front of a fresh stub.
async fn through_foreman() -> Fallible<Measured> {
    let stub = Stub::try_start(stub_config()).await?;
    let folder = tempfile::tempdir()?;
    let given = |text: &str| Some(text.to_owned());
    let raw = Raw {
        addr: given("127.0.0.1:0"),
        ollama_url: given(&stub.url()),
        beside: given("off"),
        db: Some(folder.path().join("foreman.db").display().to_string()),
        ..Raw::default()
    };
    let config = Config::check(&raw).map_err(|faults| format!("{faults:?}"))?;
    let app = App::build(config, Clock::system()).await?;
    let addr = app.addr();
    let (stops, receiver) = mpsc::channel(1);
    let mut daemon: JoinSet<Stopped> = JoinSet::new();
    daemon.spawn(app.run(receiver));
    let measured = play("through foreman", addr, &stub).await;
    stops.send(()).await?;
    daemon.join_all().await;
    stub.shutdown().await;
    measured
}

fn stub_config() -> StubConfig {
    let models = MODELS.map(|name| Model::new(name).load_time(LOAD_TIME));
    StubConfig { token_time: TOKEN_TIME, max_loaded: 1, ..StubConfig::with_models(models) }
}

/// Plays the workload against `addr` and reads from the stub behind it what it cost.
async fn play(label: &'static str, addr: SocketAddr, stub: &Stub) -> Fallible<Measured> {
    let clock = Clock::system();
    let began_ms = clock.now_ms();
    let progress = progress(label);
    let mut clients = JoinSet::new();
    for (number, model) in (0..).zip(MODELS.iter().cycle().take(JOBS)) {
        clients.spawn(run_client(addr, number, model, progress.clone()));
    }
    let mut answered = Vec::with_capacity(JOBS);
    let collect = async {
        while let Some(client) = clients.join_next().await {
            answered.push(client??);
        }
        Fallible::Ok(())
    };
    tokio::time::timeout(RUN_LIMIT, collect).await??;
    let wall_ms = clock.now_ms() - began_ms;
    progress.finish();
    if progress.is_hidden() {
        println!("{label}: {} chats in {}", answered.len(), seconds(wall_ms));
    }
    let counts = stub.counts();
    answered.sort_by_key(|answer| answer.number);
    Ok(Measured {
        loads: counts.loads,
        evictions: counts.evictions,
        wall_ms,
        waits_ms: answered.iter().map(|answer| answer.wait_ms).collect(),
        answers: answered.into_iter().map(|answer| answer.text).collect(),
    })
}

/// A bar on the terminal, or nothing where stdout goes elsewhere.
fn progress(label: &'static str) -> ProgressBar {
    if !std::io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let length = u64::try_from(JOBS).unwrap_or(u64::MAX);
    let template = "{msg:<18} [{bar:40}] {pos:>2}/{len} {elapsed:>4}";
    // The template is constant; should it not parse, the bar has its default look.
    let style = ProgressStyle::with_template(template)
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "));
    ProgressBar::new(length).with_style(style).with_message(label)
}

/// Waits for its turn to arrive, and asks.
async fn run_client(
    addr: SocketAddr,
    number: u32,
    model: &'static str,
    progress: ProgressBar,
) -> Fallible<Answered> {
    tokio::time::sleep(ARRIVAL_GAP * number).await;
    let clock = Clock::system();
    let asked_ms = clock.now_ms();
    let text = chat(addr, model, &format!("This is question {number}.")).await?;
    progress.inc(1);
    Ok(Answered { number, wait_ms: clock.now_ms() - asked_ms, text })
}

/// One unstreamed chat on a connection of its own, as any client of Ollama's would make it.
async fn chat(addr: SocketAddr, model: &str, question: &str) -> Fallible<String> {
    let body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": question }],
        "stream": false,
        "options": { "num_predict": TOKENS },
    });
    let request = Request::post("/api/chat")
        .header("host", addr.to_string())
        .body(Full::new(Bytes::from(body.to_string())))?;
    let stream = TcpStream::connect(addr).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let answer: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
    match answer["message"]["content"].as_str() {
        Some(text) if status.is_success() => Ok(text.to_owned()),
        _ => Err(format!("{addr} answered {status}: {answer}").into()),
    }
}

/// The two runs side by side, what that means, and what to do next.
fn table(straight: &Measured, through: &Measured) -> String {
    let row = |name: &str, straight: String, through: String| {
        format!("{name:<28}{straight:>20}{through:>20}\n")
    };
    let numbers = |name, of: fn(&Measured) -> u64| {
        row(name, of(straight).to_string(), of(through).to_string())
    };
    let times =
        |name, of: fn(&Measured) -> i64| row(name, seconds(of(straight)), seconds(of(through)));
    [
        "\n".to_owned(),
        row("", "straight at Ollama".to_owned(), "through foreman".to_owned()),
        numbers("model loads", |run| run.loads),
        numbers("evictions chosen by Ollama", |run| run.evictions),
        times("wall time", |run| run.wall_ms),
        times("mean wait for an answer", |run| mean(&run.waits_ms)),
        times("longest wait", |run| run.waits_ms.iter().max().copied().unwrap_or(0)),
        format!(
            "\nforeman: {} times fewer loads, {} times faster; the {JOBS} answers are the same.\n",
            ratio(straight.loads, through.loads),
            ratio(whole(straight.wall_ms), whole(through.wall_ms)),
        ),
        format!("Next: run `foreman serve` and point a client at it: OLLAMA_HOST={ADDR_DEFAULT}\n"),
    ]
    .concat()
}

fn mean(values: &[i64]) -> i64 {
    let count = i64::try_from(values.len()).unwrap_or(i64::MAX).max(1);
    values.iter().sum::<i64>() / count
}

fn whole(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

/// `2.34 s`
fn seconds(ms: i64) -> String {
    format!("{:.2} s", Duration::from_millis(whole(ms)).as_secs_f64())
}

/// How many times `less` goes into `more`, with one decimal, rounded down.
fn ratio(more: u64, less: u64) -> String {
    let tenths = more * 10 / less.max(1);
    format!("{}.{}", tenths / 10, tenths % 10)
}
