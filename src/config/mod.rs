//! What foreman was told to do: raw texts from flags and environment, checked here once, all faults together.
//!
//! Who reads the environment is clap (`cli`); nothing else in the program does.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::domain::schedule::Beside;
use crate::keys::KeyFile;
use crate::ollama::url::UpstreamUrl;
use crate::tls::Roots;

mod classes;
mod faults;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod keys;
mod policy;
mod upstream;
mod values;
mod waiting;
mod webhooks;

use classes::max_queue;
pub use faults::Fault;
use faults::Faults;
pub use policy::policy;
pub use values::{Duplicates, HoldSetting, address};
use values::{
    attempts, bytes, connections, count, database, duplicates, duration, floor, keep_alive, model,
    origins, positive, roots, secret,
};
pub use waiting::{NativeByte, Unstreamed, Waiting};
pub use webhooks::{SigningKey, Webhooks};

/// The listening address when none is given: loopback, one above Ollama's own port.
pub const ADDR_DEFAULT: &str = "127.0.0.1:11435";

/// Everything the daemon needs to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub addr: SocketAddr,
    /// The upstream.
    pub ollama_url: UpstreamUrl,
    /// Bearer token sent to the upstream.
    pub ollama_token: Option<Secret>,
    /// Who vouches for an upstream over https; `None` is whom the system trusts.
    pub ollama_ca: Option<Roots>,
    /// The database file.
    pub db: PathBuf,
    /// Bearer token asked of clients; with neither it nor keys foreman is open.
    pub token: Option<Secret>,
    /// Named keys of clients.
    pub keys: Option<KeyFile>,
    /// Web origins allowed beside Ollama's own defaults, comma-separated.
    pub origins: String,
    /// How long an idle model stays resident; `None` is for ever.
    pub keep_alive: Option<Duration>,
    /// An embedding model to keep warm.
    pub embed_model: Option<String>,
    /// How often the upstream is asked what it has.
    pub poll_interval: Duration,
    /// Tries per job.
    pub max_attempts: u32,
    /// Free bytes on the database's file system below which nothing new is taken; 0 is off.
    pub free_min: u64,
    /// How long a finished job and its answer are kept.
    pub job_ttl: Duration,
    /// How long a failed job is kept.
    pub failed_ttl: Duration,
    /// Which requests are answered by an equal one.
    pub duplicates: Duplicates,
    /// Jobs that may wait, of all classes.
    pub max_queue: u64,
    /// Jobs of each class that may wait, by [`Class::ALL`]; `None` where only `max_queue` counts.
    ///
    /// [`Class::ALL`]: crate::domain::job::Class::ALL
    pub class_max: [Option<u64>; 3],
    /// Bytes of request bodies that may wait.
    pub max_queue_bytes: u64,
    /// Requests that may be served at once, each on a connection of its own.
    pub connections_max: usize,
    /// How long a job of each class may wait before its model is loaded for it, by [`Class::ALL`].
    ///
    /// [`Class::ALL`]: crate::domain::job::Class::ALL
    pub max_wait: [Duration; 3],
    /// How long an embed may wait for a model that does not fit beside what is resident.
    pub embed_wait: Duration,
    /// Whether a model is kept a moment for a client that will be back.
    pub hold: HoldSetting,
    /// Jobs of one load key that may run at once; at least 1.
    pub parallel: usize,
    /// Whether models are tried beside each other.
    pub beside: Beside,
    /// The largest request body of a queued or embed route.
    pub body_max: u64,
    /// The largest answer.
    pub answer_max: u64,
    /// Embeds in flight at once.
    pub embed_parallel: usize,
    /// The longest a load may take.
    pub load_limit: Duration,
    /// The longest silence inside an answer.
    pub idle_limit: Duration,
    /// What clients get to see while they wait.
    pub waiting: Waiting,
    /// The first delay before a retry; it doubles.
    pub retry_delay: Duration,
    /// How receivers of webhooks are told.
    pub webhooks: Webhooks,
    /// How long a drain waits before it forces.
    pub shutdown_grace: Duration,
}

/// A text that must not be shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself: for the wire only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("<secret>")
    }
}

/// What was typed, unchecked. An empty text counts as not given.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    /// `FOREMAN_ADDR`
    pub addr: Option<String>,
    /// `FOREMAN_OLLAMA_URL`
    pub ollama_url: Option<String>,
    /// `FOREMAN_OLLAMA_TOKEN`
    pub ollama_token: Option<String>,
    /// `FOREMAN_OLLAMA_CA`
    pub ollama_ca: Option<String>,
    /// `FOREMAN_DB`
    pub db: Option<String>,
    /// `FOREMAN_FREE_MIN`
    pub free_min: Option<String>,
    /// `FOREMAN_TOKEN`
    pub token: Option<String>,
    /// `FOREMAN_KEYS`
    pub keys: Option<String>,
    /// `OLLAMA_ORIGINS`
    pub origins: Option<String>,
    /// `FOREMAN_KEEP_ALIVE`
    pub keep_alive: Option<String>,
    /// `FOREMAN_EMBED_MODEL`
    pub embed_model: Option<String>,
    /// `FOREMAN_POLL_INTERVAL`
    pub poll_interval: Option<String>,
    /// `FOREMAN_MAX_ATTEMPTS`
    pub max_attempts: Option<String>,
    /// `FOREMAN_JOB_TTL`
    pub job_ttl: Option<String>,
    /// `FOREMAN_FAILED_TTL`
    pub failed_ttl: Option<String>,
    /// `FOREMAN_DUPLICATES`
    pub duplicates: Option<String>,
    /// `FOREMAN_MAX_QUEUE`
    pub max_queue: Option<String>,
    /// `FOREMAN_MAX_QUEUE_BYTES`
    pub max_queue_bytes: Option<String>,
    /// `FOREMAN_CONNECTIONS_MAX`
    pub connections_max: Option<String>,
    /// `FOREMAN_MAX_WAIT`
    pub max_wait: Option<String>,
    /// `FOREMAN_HOLD`
    pub hold: Option<String>,
    /// `FOREMAN_PARALLEL`
    pub parallel: Option<String>,
    /// `FOREMAN_BESIDE`
    pub beside: Option<String>,
    /// `FOREMAN_BODY_MAX`
    pub body_max: Option<String>,
    /// `FOREMAN_ANSWER_MAX`
    pub answer_max: Option<String>,
    /// `FOREMAN_EMBED_PARALLEL`
    pub embed_parallel: Option<String>,
    /// `FOREMAN_LOAD_LIMIT`
    pub load_limit: Option<String>,
    /// `FOREMAN_IDLE_LIMIT`
    pub idle_limit: Option<String>,
    /// `FOREMAN_WAITING_INTERVAL`
    pub waiting_interval: Option<String>,
    /// `FOREMAN_WAITING_STREAM`
    pub waiting_stream: Option<String>,
    /// `FOREMAN_WAITING_UNSTREAMED`
    pub waiting_unstreamed: Option<String>,
    /// `FOREMAN_RETRY_DELAY`
    pub retry_delay: Option<String>,
    /// `FOREMAN_WEBHOOK_SECRET`
    pub webhook_secret: Option<String>,
    /// `FOREMAN_WEBHOOK_RETRY_DELAY`
    pub webhook_retry_delay: Option<String>,
    /// `FOREMAN_WEBHOOK_TRIES`
    pub webhook_tries: Option<String>,
    /// `FOREMAN_SHUTDOWN_GRACE`
    pub shutdown_grace: Option<String>,
}

impl Config {
    /// Checks what was typed.
    ///
    /// # Errors
    /// Every fault there is, not just the first.
    pub fn check(raw: &Raw) -> Result<Config, Vec<Fault>> {
        let mut faults = Faults::default();
        let config = read(raw, &mut faults);
        match config {
            Some(config) if faults.is_empty() => {
                let fault = upstream::fault(&config, raw);
                fault.map_or(Ok(config), |fault| Err(vec![fault]))
            }
            _ => Err(faults.into_list()),
        }
    }
}

fn read(raw: &Raw, faults: &mut Faults) -> Option<Config> {
    // Every value is read before the first `?`, so that all faults are collected.
    let addr = faults.read("FOREMAN_ADDR", raw.addr.as_ref(), ADDR_DEFAULT, address);
    let url = faults.read("FOREMAN_OLLAMA_URL", raw.ollama_url.as_ref(), "", UpstreamUrl::parse);
    let ollama_token = faults.read("FOREMAN_OLLAMA_TOKEN", raw.ollama_token.as_ref(), "", secret);
    let ollama_ca = faults.read("FOREMAN_OLLAMA_CA", raw.ollama_ca.as_ref(), "", roots);
    let db = faults.read("FOREMAN_DB", raw.db.as_ref(), "", database);
    let free_min = faults.read("FOREMAN_FREE_MIN", raw.free_min.as_ref(), "256MiB", floor);
    let token = faults.read("FOREMAN_TOKEN", raw.token.as_ref(), "", secret);
    let keys = keys::keys(raw, faults);
    let origins = faults.read("OLLAMA_ORIGINS", raw.origins.as_ref(), "", origins);
    let keep_alive = faults.read("FOREMAN_KEEP_ALIVE", raw.keep_alive.as_ref(), "-1", keep_alive);
    let embed_model = faults.read("FOREMAN_EMBED_MODEL", raw.embed_model.as_ref(), "", model);
    let poll = faults.read("FOREMAN_POLL_INTERVAL", raw.poll_interval.as_ref(), "30s", positive);
    let attempts = faults.read("FOREMAN_MAX_ATTEMPTS", raw.max_attempts.as_ref(), "3", attempts);
    let ttl = faults.read("FOREMAN_JOB_TTL", raw.job_ttl.as_ref(), "24h", positive);
    let failed_ttl = faults.read("FOREMAN_FAILED_TTL", raw.failed_ttl.as_ref(), "7d", positive);
    let duplicates = faults.read("FOREMAN_DUPLICATES", raw.duplicates.as_ref(), "off", duplicates);
    let queue = faults.read("FOREMAN_MAX_QUEUE", raw.max_queue.as_ref(), "10000", max_queue);
    let queue_bytes =
        faults.read("FOREMAN_MAX_QUEUE_BYTES", raw.max_queue_bytes.as_ref(), "4GiB", bytes);
    let connections =
        faults.read("FOREMAN_CONNECTIONS_MAX", raw.connections_max.as_ref(), "16384", connections);
    let rules = policy::rules(raw, faults);
    let body_max = faults.read("FOREMAN_BODY_MAX", raw.body_max.as_ref(), "128MiB", bytes);
    let answer_max = faults.read("FOREMAN_ANSWER_MAX", raw.answer_max.as_ref(), "256MiB", bytes);
    let embeds = faults.read("FOREMAN_EMBED_PARALLEL", raw.embed_parallel.as_ref(), "64", count);
    let load_limit = faults.read("FOREMAN_LOAD_LIMIT", raw.load_limit.as_ref(), "10m", positive);
    let idle_limit = faults.read("FOREMAN_IDLE_LIMIT", raw.idle_limit.as_ref(), "10m", positive);
    let waiting = waiting::waiting(raw, faults);
    let retry = faults.read("FOREMAN_RETRY_DELAY", raw.retry_delay.as_ref(), "1s", positive);
    let webhooks = webhooks::webhooks(raw, faults);
    let grace = faults.read("FOREMAN_SHUTDOWN_GRACE", raw.shutdown_grace.as_ref(), "30s", duration);
    Some(Config {
        addr: addr?,
        ollama_url: url?,
        ollama_token: ollama_token?,
        ollama_ca: ollama_ca?,
        db: db?,
        free_min: free_min?,
        token: token?,
        keys: keys?,
        origins: origins?,
        keep_alive: keep_alive?,
        embed_model: embed_model?,
        poll_interval: poll?,
        max_attempts: attempts?,
        job_ttl: ttl?,
        failed_ttl: failed_ttl?,
        duplicates: duplicates?,
        max_queue: queue?.total,
        class_max: queue?.by_class,
        max_queue_bytes: queue_bytes?,
        connections_max: connections?,
        max_wait: rules?.max_wait,
        embed_wait: rules?.embed_wait,
        hold: rules?.hold,
        parallel: rules?.parallel,
        beside: rules?.beside,
        body_max: body_max?,
        answer_max: answer_max?,
        embed_parallel: usize::try_from(embeds?).unwrap_or(usize::MAX).min(EMBED_PARALLEL_MAX),
        load_limit: load_limit?,
        idle_limit: idle_limit?,
        waiting: waiting?,
        retry_delay: retry?,
        webhooks: webhooks?,
        shutdown_grace: grace?,
    })
}

/// More connections to one Ollama than this only queue inside it.
const EMBED_PARALLEL_MAX: usize = 4_096;

#[cfg(test)]
mod tests;
