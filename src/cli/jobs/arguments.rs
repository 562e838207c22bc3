//! The flags of `foreman submit` and `foreman jobs`. Times and ids stay texts: the daemon judges them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::arguments::Daemon;

/// The id of the job goes to stdout. With --wait or --follow the answer does, and the id goes to stderr.
#[derive(Debug, Args)]
pub(in crate::cli) struct Submit {
    #[command(flatten)]
    pub(super) daemon: Daemon,
    /// The prompt; - or nothing is stdin
    #[arg(value_name = "PROMPT", conflicts_with_all = ["body", "batch", "file"])]
    pub(super) prompt: Option<String>,
    /// The model
    #[arg(long, short, value_name = "MODEL", required_unless_present_any = ["body", "batch"])]
    pub(super) model: Option<String>,
    /// Read the prompt from a file
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["body", "batch"])]
    pub(super) file: Option<PathBuf>,
    /// The system prompt
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["body", "batch"])]
    pub(super) system: Option<String>,
    /// An option of the model, such as temperature=0; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, conflicts_with_all = ["body", "batch"])]
    pub(super) option: Vec<(String, String)>,
    /// Send this body instead of a prompt; - is stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batch", "model"])]
    pub(super) body: Option<PathBuf>,
    /// The route of the body, such as /v1/chat/completions
    #[arg(long, value_name = "PATH", requires = "body", conflicts_with = "model")]
    pub(super) endpoint: Option<String>,
    /// interactive, normal or batch [default: normal]
    #[arg(long, value_name = "CLASS", conflicts_with = "batch")]
    pub(super) priority: Option<String>,
    /// Not before this time (RFC 3339)
    #[arg(long, value_name = "TIME", conflicts_with_all = ["batch", "in"])]
    pub(super) run_at: Option<String>,
    /// Not before that long from now, such as 10m
    #[arg(long = "in", id = "in", value_name = "DURATION", value_parser = duration, conflicts_with = "batch")]
    pub(super) run_in: Option<Duration>,
    /// After this the answer is of no use: a time (RFC 3339), or how long from now
    #[arg(long, value_name = "TIME|DURATION", conflicts_with = "batch")]
    pub(super) deadline: Option<String>,
    /// Who is told of each change of state
    #[arg(long, value_name = "URL", conflicts_with = "batch")]
    pub(super) webhook: Option<String>,
    /// A JSON object that is given back with the job
    #[arg(long, value_name = "JSON", conflicts_with = "batch")]
    pub(super) metadata: Option<String>,
    /// A member of the metadata; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, conflicts_with = "batch")]
    pub(super) meta: Vec<(String, String)>,
    /// The same key and request are the same job, however often they are sent
    #[arg(long, value_name = "KEY", conflicts_with = "batch")]
    pub(super) idempotency_key: Option<String>,
    /// Submit many: a JSON array of bodies, or JSON lines; - is stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "wait", "follow"])]
    pub(super) batch: Option<PathBuf>,
    /// Wait for the end and print the completion
    #[arg(long, conflicts_with = "follow")]
    pub(super) wait: bool,
    /// Print the text of the answer as it comes
    #[arg(long, conflicts_with = "json")]
    pub(super) follow: bool,
    /// How long --wait waits, such as 5m [default: until the end]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "wait")]
    pub(super) timeout: Option<Duration>,
    /// Print the job object (of a batch: foreman's answer) instead
    #[arg(long)]
    pub(super) json: bool,
}

/// Jobs of a running foreman.
#[derive(Debug, Args)]
pub(in crate::cli) struct Jobs {
    #[command(flatten)]
    pub(super) daemon: Daemon,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List jobs, the newest first
    List(List),
    /// Show one job: its states, attempts, timings and the beginning of its result
    Show(One),
    /// Wait until jobs have ended
    Wait(Wait),
    /// Print the text of an answer as it comes, from its beginning
    Follow(Follow),
    /// Cancel jobs that wait or run
    Cancel(Many),
    /// Queue failed and cancelled jobs again
    Retry(Retry),
    /// Drop ended jobs with their answers
    Purge(Purge),
    /// Print changes of state as they happen
    Events(Events),
    /// List webhook deliveries, or send them again
    Deliveries(Deliveries),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only these states, comma-separated: queued, loading, working, done, failed, cancelled
    #[arg(long, value_name = "STATES")]
    pub(super) state: Option<String>,
    /// Only this model
    #[arg(long, value_name = "MODEL")]
    pub(super) model: Option<String>,
    /// Only this class
    #[arg(long, value_name = "CLASS")]
    pub(super) priority: Option<String>,
    /// Only jobs that outlive their caller, or only others
    #[arg(long, value_name = "true|false")]
    pub(super) is_async: Option<bool>,
    /// Only jobs from after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub(super) created_after: Option<String>,
    /// Only jobs from before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub(super) created_before: Option<String>,
    /// Jobs of a page, 1 to 100 [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(super) limit: Option<u8>,
    /// Begin behind this job
    #[arg(long, value_name = "ID")]
    pub(super) after: Option<String>,
    /// All pages
    #[arg(long)]
    pub(super) all: bool,
    /// Print the list as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct One {
    /// The job
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// Print the job object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Many {
    /// The jobs
    #[arg(value_name = "ID", required = true)]
    pub(super) ids: Vec<String>,
    /// Print the job objects, a line each
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Wait {
    #[command(flatten)]
    pub(super) jobs: Many,
    /// How long, such as 5m; a daemon that is away is tried as long [default: until the end]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Follow {
    /// The job
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// The bytes as Ollama sent them, instead of the text in them
    #[arg(long)]
    pub(super) raw: bool,
}

#[derive(Debug, Args)]
pub(super) struct Retry {
    /// The jobs
    #[arg(value_name = "ID", required_unless_present = "failed", conflicts_with = "failed")]
    pub(super) ids: Vec<String>,
    /// All failed jobs
    #[arg(long)]
    pub(super) failed: bool,
    /// Only those of this model
    #[arg(long, value_name = "MODEL", requires = "failed")]
    pub(super) model: Option<String>,
    /// Print the job objects, or the counts, as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Purge {
    /// The jobs
    #[arg(value_name = "ID", required_unless_present = "state", conflicts_with = "state")]
    pub(super) ids: Vec<String>,
    /// All jobs in this state
    #[arg(long, value_parser = ["failed", "done", "cancelled"])]
    pub(super) state: Option<String>,
    /// Only those of this model
    #[arg(long, value_name = "MODEL", requires = "state")]
    pub(super) model: Option<String>,
    /// Only those that are older, such as 7d
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "state")]
    pub(super) older_than: Option<Duration>,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Only of this job, from its first; without it of all jobs, from now
    #[arg(value_name = "ID")]
    pub(super) id: Option<String>,
    /// Begin behind this event
    #[arg(long, value_name = "EVENT")]
    pub(super) after: Option<u64>,
    /// Print the data of the events, a line each
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Deliveries {
    /// Only of this job
    #[arg(value_name = "ID", conflicts_with = "resend")]
    pub(super) id: Option<String>,
    /// Only in this state
    #[arg(long, value_parser = ["pending", "delivered", "dead"], conflicts_with = "resend")]
    pub(super) state: Option<String>,
    /// Send this delivery again, or all dead ones
    #[arg(long, value_name = "DELIVERY|all-dead")]
    pub(super) resend: Option<String>,
    /// Print the list as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `10m`, `1h 30m`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "a duration, such as 30s, 10m or 7d".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a key and a value, such as temperature=0".to_owned()),
    }
}
