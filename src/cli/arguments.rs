//! The flags, each with its variable. Values stay texts here: `config` checks them, all together.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Raw;

use super::jobs::arguments::{Jobs, Submit};

/// A durable, model-draining queue in front of one Ollama, speaking Ollama's own protocol.
#[derive(Debug, Parser)]
#[command(name = "foreman", version, max_term_width = 100)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve Ollama's clients in front of an Ollama
    Serve(Box<Serve>),
    /// Show what a running foreman is doing
    Status(Status),
    /// Hand in a job and get its id at once
    Submit(Box<Submit>),
    /// List, show, wait for, follow, cancel, retry and purge jobs
    Jobs(Box<Jobs>),
    /// Write a trace of the jobs that ran last, for `foreman replay`
    Trace(Trace),
    /// Write lines for the file of named keys
    Keys(Keys),
    /// Replay traces in virtual time and show what another policy would have come to
    Replay(Box<Replay>),
    /// Write the completions of a shell to stdout
    Completions(Completions),
}

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(super) shell: ShellName,
}

#[derive(Debug, Args)]
pub(super) struct Keys {
    #[command(subcommand)]
    pub(super) command: KeysCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Read a key from stdin and print its line for that file, with its SHA-256 in its place
    Hash {
        /// Whose key it is
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// A shell with completions.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ShellName {
    Bash,
    Zsh,
    Fish,
}

/// Sizes take KiB, MiB, GiB; durations take ms, s, m, h; an empty value counts as not given.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Where to listen [default: 127.0.0.1:11435]
    #[arg(long, env = "FOREMAN_ADDR", value_name = "IP:PORT")]
    addr: Option<String>,
    #[arg(
        long,
        env = "FOREMAN_OLLAMA_URL",
        value_name = "URL",
        help = "Ollama's address, as OLLAMA_HOST would say it [default: http://127.0.0.1:11434]"
    )]
    ollama_url: Option<String>,
    /// Bearer token sent to Ollama
    #[arg(long, env = "FOREMAN_OLLAMA_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    ollama_token: Option<String>,
    /// PEM file of the CA that vouches for Ollama over https, instead of the system's [default: none]
    #[arg(long, env = "FOREMAN_OLLAMA_CA", value_name = "FILE")]
    ollama_ca: Option<String>,
    /// The database file [default: foreman/foreman.db in the state directory]
    #[arg(long, env = "FOREMAN_DB", value_name = "FILE")]
    db: Option<String>,
    /// Free disk space below which nothing new is taken; 0 is off [default: 256MiB]
    #[arg(long, env = "FOREMAN_FREE_MIN", value_name = "SIZE")]
    free_min: Option<String>,
    /// Bearer token asked of clients [default: none]
    #[arg(long, env = "FOREMAN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file of named keys of clients, one a line (docs/keys.md) [default: none]
    #[arg(long, env = "FOREMAN_KEYS", value_name = "FILE")]
    keys: Option<String>,
    /// Web origins allowed beside Ollama's defaults, comma-separated
    #[arg(long, env = "OLLAMA_ORIGINS", value_name = "ORIGINS")]
    origins: Option<String>,
    /// How long an idle model stays loaded; -1 is for ever [default: -1]
    #[arg(long, env = "FOREMAN_KEEP_ALIVE", value_name = "DURATION", allow_hyphen_values = true)]
    keep_alive: Option<String>,
    /// An embedding model to keep warm
    #[arg(long, env = "FOREMAN_EMBED_MODEL", value_name = "MODEL")]
    embed_model: Option<String>,
    /// How often Ollama is asked what it has [default: 30s]
    #[arg(long, env = "FOREMAN_POLL_INTERVAL", value_name = "DURATION")]
    poll_interval: Option<String>,
    /// Tries per job [default: 3]
    #[arg(long, env = "FOREMAN_MAX_ATTEMPTS", value_name = "N")]
    max_attempts: Option<String>,
    /// How long finished jobs and their answers are kept [default: 24h]
    #[arg(long, env = "FOREMAN_JOB_TTL", value_name = "DURATION")]
    job_ttl: Option<String>,
    /// How long failed jobs and their requests are kept [default: 7d]
    #[arg(long, env = "FOREMAN_FAILED_TTL", value_name = "DURATION")]
    failed_ttl: Option<String>,
    /// Whether equal requests are answered once: off, inflight or completed [default: off]
    #[arg(long, env = "FOREMAN_DUPLICATES", value_name = "off|inflight|completed")]
    duplicates: Option<String>,
    /// Jobs that may wait, in all and of a class, such as 10000,batch=500 [default: 10000]
    #[arg(long, env = "FOREMAN_MAX_QUEUE", value_name = "N")]
    max_queue: Option<String>,
    /// Bytes of requests that may wait [default: 4GiB]
    #[arg(long, env = "FOREMAN_MAX_QUEUE_BYTES", value_name = "SIZE")]
    max_queue_bytes: Option<String>,
    /// Requests that may be served at once, waiting ones included [default: 16384]
    #[arg(long, env = "FOREMAN_CONNECTIONS_MAX", value_name = "N")]
    connections_max: Option<String>,
    #[arg(
        long,
        env = "FOREMAN_MAX_WAIT",
        value_name = "DURATIONS",
        help = "How long a job may wait, for interactive ones such as 2m, or by class, and \
                an embed [default: interactive=2m,normal=10m,batch=6h,embed=20s]"
    )]
    max_wait: Option<String>,
    /// Whether a model is kept for a client that will be back: auto, off, or a duration [default: auto]
    #[arg(long, env = "FOREMAN_HOLD", value_name = "auto|off|DURATION")]
    hold: Option<String>,
    /// Jobs of one model that run at once; Ollama must allow as many [default: 1]
    #[arg(long, env = "FOREMAN_PARALLEL", value_name = "N")]
    parallel: Option<String>,
    /// Whether models are tried beside each other, and kept so where they fit [default: auto]
    #[arg(long, env = "FOREMAN_BESIDE", value_name = "auto|off")]
    beside: Option<String>,
    /// The largest request body of a queued or embed route [default: 128MiB]
    #[arg(long, env = "FOREMAN_BODY_MAX", value_name = "SIZE")]
    body_max: Option<String>,
    /// The largest answer [default: 256MiB]
    #[arg(long, env = "FOREMAN_ANSWER_MAX", value_name = "SIZE")]
    answer_max: Option<String>,
    /// Embeds in flight at once [default: 64]
    #[arg(long, env = "FOREMAN_EMBED_PARALLEL", value_name = "N")]
    embed_parallel: Option<String>,
    /// The longest a model may take to load [default: 10m]
    #[arg(long, env = "FOREMAN_LOAD_LIMIT", value_name = "DURATION")]
    load_limit: Option<String>,
    /// The longest silence inside an answer [default: 10m]
    #[arg(long, env = "FOREMAN_IDLE_LIMIT", value_name = "DURATION")]
    idle_limit: Option<String>,
    #[arg(
        long,
        env = "FOREMAN_WAITING_INTERVAL",
        value_name = "off|DURATION",
        help = "The silence after which a waiting stream begins with a byte that clients ignore [default: 15s]"
    )]
    waiting_interval: Option<String>,
    /// What those bytes are on native streams [default: spaces]
    #[arg(long, env = "FOREMAN_WAITING_STREAM", value_name = "spaces|chunks")]
    waiting_stream: Option<String>,
    /// Whether unstreamed answers that wait begin early, too [default: nothing]
    #[arg(long, env = "FOREMAN_WAITING_UNSTREAMED", value_name = "nothing|spaces")]
    waiting_unstreamed: Option<String>,
    /// The first delay before a retry; it doubles, up to a minute [default: 1s]
    #[arg(long, env = "FOREMAN_RETRY_DELAY", value_name = "DURATION")]
    retry_delay: Option<String>,
    #[arg(
        long,
        env = "FOREMAN_WEBHOOK_SECRET",
        value_name = "SECRET",
        hide_env_values = true,
        help = "What webhooks are signed with: whsec_ and base64, or any text [default: not signed]"
    )]
    webhook_secret: Option<String>,
    /// The first delay before a webhook is tried again; it quadruples, up to 6h [default: 5s]
    #[arg(long, env = "FOREMAN_WEBHOOK_RETRY_DELAY", value_name = "DURATION")]
    webhook_retry_delay: Option<String>,
    /// Tries per webhook [default: 10]
    #[arg(long, env = "FOREMAN_WEBHOOK_TRIES", value_name = "N")]
    webhook_tries: Option<String>,
    /// How long a stop waits for what runs [default: 30s]
    #[arg(long, env = "FOREMAN_SHUTDOWN_GRACE", value_name = "DURATION")]
    shutdown_grace: Option<String>,
    #[arg(
        long,
        env = "FOREMAN_LOG",
        value_name = "FILTER",
        help = "What to log, such as info, debug or foreman::worker=debug [default: info]"
    )]
    pub(super) log: Option<String>,
}

/// A running foreman.
#[derive(Debug, Args)]
pub(super) struct Daemon {
    /// Where foreman listens [default: 127.0.0.1:11435]
    #[arg(long, env = "FOREMAN_ADDR", value_name = "IP:PORT", global = true)]
    pub(super) addr: Option<String>,
    /// Foreman's bearer token, or a key of yours
    #[arg(
        long,
        env = "FOREMAN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        global = true
    )]
    pub(super) token: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    pub(super) daemon: Daemon,
    /// Print the status document (a stable contract: docs/status.md)
    #[arg(long)]
    pub(super) json: bool,
    /// Show the last decisions with their reasons, the holds, and how near the loads are to the fewest possible
    #[arg(long, conflicts_with = "json")]
    pub(super) explain: bool,
}

#[derive(Debug, Args)]
pub(super) struct Trace {
    #[command(flatten)]
    pub(super) daemon: Daemon,
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(1..=100_000),
        help = "How many jobs, at most 100000"
    )]
    pub(super) last: u32,
    /// Where to write it, instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
}

/// Times are virtual: a day takes a moment.
#[derive(Debug, Args)]
pub(super) struct Replay {
    /// Traces (docs/scheduling.md); - is stdin
    #[arg(value_name = "TRACE.jsonl", required_unless_present = "suite")]
    pub(super) traces: Vec<PathBuf>,
    #[arg(
        long,
        value_name = "DIR",
        num_args = 0..=1,
        default_missing_value = SUITE_DEFAULT,
        conflicts_with_all = ["traces", "policy"],
        help = "Replay all NAME.SEED.jsonl of a folder with each policy: a row for each NAME [default: \
                tests/fixtures/traces]"
    )]
    pub(super) suite: Option<PathBuf>,
    /// Who chooses: first come first served, draining alone, foreman, or each of them
    #[arg(long, value_name = "POLICY", default_value = "foreman", value_parser = ["fifo", "drain", "foreman", "all"])]
    pub(super) policy: String,
    #[arg(
        long,
        value_name = "DURATIONS",
        help = "As FOREMAN_MAX_WAIT [default: interactive=2m,normal=10m,batch=6h]"
    )]
    max_wait: Option<String>,
    #[arg(long, value_name = "auto|off|DURATION", help = "As FOREMAN_HOLD [default: auto]")]
    hold: Option<String>,
    #[arg(long, value_name = "N", help = "As FOREMAN_PARALLEL [default: 1]")]
    parallel: Option<String>,
    #[arg(long, value_name = "auto|off", help = "As FOREMAN_BESIDE [default: auto]")]
    beside: Option<String>,
    /// Replay as if all clients were one program: the same address, the same User-Agent
    #[arg(long)]
    pub(super) alike: bool,
    /// Load keys that fit in memory at once [default: what the trace says, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(super) slots: Option<u16>,
    /// What loading takes where the trace does not say [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) load: Option<f64>,
    /// What loading this key takes, whatever the trace says; may be given again
    #[arg(long, value_name = "KEY=SECONDS", value_parser = load_of)]
    pub(super) load_of: Vec<(String, f64)>,
    /// Print all figures as JSON (a stable contract: docs/cli.md)
    #[arg(long)]
    pub(super) json: bool,
    /// Print the table of a suite as Markdown
    #[arg(long, conflicts_with_all = ["traces", "json"])]
    pub(super) markdown: bool,
}

/// Where the suite of foreman's own repository is.
pub(super) const SUITE_DEFAULT: &str = "tests/fixtures/traces";

/// A load that takes longer than a day is a mistake.
const LOAD_S_MAX: f64 = 86_400.0;

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=LOAD_S_MAX).contains(seconds));
    seconds.ok_or_else(|| "a number of seconds, such as 8 or 2.5".to_owned())
}

/// A key may hold `=` itself: the last one counts.
fn load_of(text: &str) -> Result<(String, f64), String> {
    let (key, load_s) = text.rsplit_once('=').ok_or("a load key and seconds, such as llama3=8")?;
    Ok((key.to_owned(), seconds(load_s)?))
}

impl Replay {
    /// The rules, for `config`.
    pub(super) fn raw(&self) -> Raw {
        Raw {
            max_wait: self.max_wait.clone(),
            hold: self.hold.clone(),
            parallel: self.parallel.clone(),
            beside: self.beside.clone(),
            ..Raw::default()
        }
    }
}

impl Serve {
    /// The texts, for `config`.
    pub(super) fn raw(&self) -> Raw {
        Raw {
            addr: self.addr.clone(),
            ollama_url: self.ollama_url.clone(),
            ollama_token: self.ollama_token.clone(),
            ollama_ca: self.ollama_ca.clone(),
            db: self.db.clone(),
            free_min: self.free_min.clone(),
            token: self.token.clone(),
            keys: self.keys.clone(),
            origins: self.origins.clone(),
            keep_alive: self.keep_alive.clone(),
            embed_model: self.embed_model.clone(),
            poll_interval: self.poll_interval.clone(),
            max_attempts: self.max_attempts.clone(),
            job_ttl: self.job_ttl.clone(),
            failed_ttl: self.failed_ttl.clone(),
            duplicates: self.duplicates.clone(),
            max_queue: self.max_queue.clone(),
            max_queue_bytes: self.max_queue_bytes.clone(),
            connections_max: self.connections_max.clone(),
            max_wait: self.max_wait.clone(),
            hold: self.hold.clone(),
            parallel: self.parallel.clone(),
            beside: self.beside.clone(),
            body_max: self.body_max.clone(),
            answer_max: self.answer_max.clone(),
            embed_parallel: self.embed_parallel.clone(),
            load_limit: self.load_limit.clone(),
            idle_limit: self.idle_limit.clone(),
            waiting_interval: self.waiting_interval.clone(),
            waiting_stream: self.waiting_stream.clone(),
            waiting_unstreamed: self.waiting_unstreamed.clone(),
            retry_delay: self.retry_delay.clone(),
            webhook_secret: self.webhook_secret.clone(),
            webhook_retry_delay: self.webhook_retry_delay.clone(),
            webhook_tries: self.webhook_tries.clone(),
            shutdown_grace: self.shutdown_grace.clone(),
        }
    }
}
