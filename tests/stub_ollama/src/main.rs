//! The stub as a program, for the Python client suite and the demo.
//!
//! Prints `listening on http://…` on stdout and ends by itself: after `--exit-after` seconds,
//! when its parent is gone, or on Ctrl-C.

#![expect(
    clippy::disallowed_methods,
    reason = "foreman's clock and task registry are its own; the stub has neither"
)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use stub_ollama::{Capability, Model, Stub, StubConfig};
use tokio::time::{Instant, interval, sleep_until};

/// How often the parent is looked for.
const PARENT_CHECK: Duration = Duration::from_secs(1);
const BYTES_PER_MB: u64 = 1024 * 1024;

/// A deterministic Ollama stand-in.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// Address to listen on; port 0 chooses one.
    #[arg(long, default_value = "127.0.0.1:11434")]
    addr: SocketAddr,
    /// A model: `NAME[=LOADMS[,SIZE_MB[,caps+caps]]]`. Default: llama3, qwen3 and embed.
    #[arg(long, value_parser = parse_model)]
    model: Vec<Model>,
    /// A model `/api/pull` can bring, written as `--model`.
    #[arg(long, value_parser = parse_model)]
    pullable: Vec<Model>,
    /// Runners resident at once.
    #[arg(long, default_value_t = 1)]
    max_loaded: usize,
    /// Slots per runner.
    #[arg(long, default_value_t = 1)]
    num_parallel: usize,
    /// Requests that may wait for a load.
    #[arg(long, default_value_t = 512)]
    max_queue: usize,
    /// Pause before each token, in milliseconds.
    #[arg(long, default_value_t = 2)]
    token_ms: u64,
    /// Tokens of an answer without a limit.
    #[arg(long, default_value_t = 8)]
    tokens: u32,
    /// Time an embedding request takes, in milliseconds.
    #[arg(long, default_value_t = 2)]
    embed_ms: u64,
    /// Keep-alive of a load without its own, in seconds.
    #[arg(long, default_value_t = 300)]
    keep_alive_seconds: u64,
    /// What `/api/version` says.
    #[arg(long, default_value = "0.33.0")]
    ollama_version: String,
    /// Makes equal requests get equal bytes.
    #[arg(long)]
    fixed_time: bool,
    /// Ends after this many seconds.
    #[arg(long, default_value_t = 3600)]
    exit_after: u64,
    /// Ends when this process is gone.
    #[arg(long)]
    parent_pid: Option<u32>,
}

fn parse_model(text: &str) -> Result<Model, String> {
    let (name, rest) = text.split_once('=').unwrap_or((text, ""));
    let mut parts = rest.split(',');
    let mut model = Model::new(name);
    let whole = |part: &str| part.parse::<u64>().map_err(|error| format!("{part}: {error}"));
    if let Some(part) = parts.next().filter(|part| !part.is_empty()) {
        model = model.load_time(Duration::from_millis(whole(part)?));
    }
    if let Some(part) = parts.next().filter(|part| !part.is_empty()) {
        model = model.size_bytes(whole(part)?.saturating_mul(BYTES_PER_MB));
    }
    if let Some(part) = parts.next().filter(|part| !part.is_empty()) {
        let capability = |word: &str| {
            let found = Capability::ALL.into_iter().find(|known| known.word() == word);
            found.ok_or_else(|| format!("there is no capability {word}"))
        };
        let capabilities: Vec<Capability> =
            part.split('+').map(capability).collect::<Result<_, _>>()?;
        model = model.with(&capabilities);
    }
    Ok(model)
}

impl Flags {
    fn config(&self) -> StubConfig {
        let models =
            if self.model.is_empty() { StubConfig::demo_models() } else { self.model.clone() };
        StubConfig {
            models,
            pullable: self.pullable.clone(),
            listen: self.addr,
            max_loaded: self.max_loaded,
            num_parallel: self.num_parallel,
            max_queue: self.max_queue,
            default_keep_alive: Duration::from_secs(self.keep_alive_seconds),
            token_time: Duration::from_millis(self.token_ms),
            embed_time: Duration::from_millis(self.embed_ms),
            default_tokens: self.tokens,
            version: self.ollama_version.clone(),
            fixed_time: self.fixed_time,
            ..StubConfig::default()
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let end = Instant::now() + Duration::from_secs(flags.exit_after);
    let stub = match Stub::try_start(flags.config()).await {
        Ok(stub) => stub,
        Err(error) => {
            // Nothing better to do when stderr itself is gone.
            drop(writeln!(std::io::stderr(), "cannot listen on {}: {error}", flags.addr));
            return ExitCode::FAILURE;
        }
    };
    let mut stdout = std::io::stdout();
    drop(writeln!(stdout, "listening on {}", stub.url()));
    drop(stdout.flush());
    tokio::select! {
        () = sleep_until(end) => {}
        () = parent_gone(flags.parent_pid) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    stub.shutdown().await;
    ExitCode::SUCCESS
}

/// Waits until the parent has ended; for ever without one. Linux only, as the tests are.
async fn parent_gone(parent: Option<u32>) {
    let Some(pid) = parent else { return std::future::pending().await };
    let path = PathBuf::from(format!("/proc/{pid}"));
    let mut ticks = interval(PARENT_CHECK);
    loop {
        ticks.tick().await;
        if !path.exists() {
            return;
        }
    }
}
