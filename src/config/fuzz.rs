//! Fuzz target of the configuration. Called by `crate::fuzz` only.
#![expect(clippy::panic, reason = "a broken promise must end the run")]

use super::{Config, Raw, policy};

/// What stands in every secret of a run, and must stand in nothing that is told.
const SECRET: &str = "hunter2";

/// Settings: lines of `NAME=value`; a name that comes twice counts the last time.
///
/// # Panics
/// Where a fault does not name its key and its value, where a secret is told, and where a second check says otherwise.
pub fn config(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    if text.contains(SECRET) {
        return;
    }
    let mut raw = Raw::default();
    let mut given = Vec::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else { continue };
        let value = with_secret(name, value);
        if let Some(place) = place(&mut raw, name) {
            *place = Some(value.clone());
            given.retain(|(other, _)| *other != name);
            given.push((name, value));
        }
    }
    let _is_read = policy(&raw);
    match (Config::check(&raw), Config::check(&raw)) {
        (Ok(config), Ok(again)) => {
            let told = format!("{config:?}");
            assert!(!told.contains(SECRET), "a secret is told: {told}");
            assert_eq!(told, format!("{again:?}"));
            assert!(config.max_wait.iter().all(|wait| !wait.is_zero()));
            assert!(config.parallel >= 1 && config.max_attempts >= 1 && config.embed_parallel >= 1);
            let _rules = config.policy();
        }
        (Err(faults), Err(again)) => {
            assert!(!faults.is_empty() && faults == again);
            for fault in faults {
                let told = fault.to_string();
                assert!(!told.contains(SECRET), "a secret is told: {told}");
                assert!(told.starts_with(fault.key) && !fault.allowed.is_empty(), "{told}");
                assert!(!told.contains(|told: char| told.is_control()), "{told:?}");
                if fault.key == "FOREMAN_OLLAMA_URL" || is_secret(fault.key) {
                    continue;
                }
                let is_given = given
                    .iter()
                    .any(|(name, value)| *name == fault.key && fault.value.trim() == value.trim());
                assert!(is_given, "{fault:?} is not what was given");
            }
        }
        (first, second) => panic!("{first:?} and then {second:?}"),
    }
}

fn is_secret(name: &str) -> bool {
    matches!(name, "FOREMAN_TOKEN" | "FOREMAN_OLLAMA_TOKEN" | "FOREMAN_WEBHOOK_SECRET")
}

/// The value with [`SECRET`] in it where somebody could have a secret: in what is one, in the password of a URL, and in its
/// query.
fn with_secret(name: &str, value: &str) -> String {
    if is_secret(name) {
        return match value.strip_prefix("whsec_") {
            Some(rest) => format!("whsec_{SECRET}{rest}"),
            None if value.trim().is_empty() => value.to_owned(),
            None => format!("{value}{SECRET}"),
        };
    }
    if name != "FOREMAN_OLLAMA_URL" {
        return value.to_owned();
    }
    let value = match value.rsplit_once('@') {
        Some((user, host)) => format!("{user}{SECRET}@{host}"),
        None => value.to_owned(),
    };
    match value.find(['?', '#']) {
        Some(at) => format!("{}{SECRET}{}", &value[..=at], &value[at + 1..]),
        None => value,
    }
}

/// Where a variable of the environment goes.
fn place<'a>(raw: &'a mut Raw, name: &str) -> Option<&'a mut Option<String>> {
    Some(match name {
        "FOREMAN_ADDR" => &mut raw.addr,
        "FOREMAN_OLLAMA_URL" => &mut raw.ollama_url,
        "FOREMAN_OLLAMA_TOKEN" => &mut raw.ollama_token,
        "FOREMAN_DB" => &mut raw.db,
        "FOREMAN_FREE_MIN" => &mut raw.free_min,
        "FOREMAN_TOKEN" => &mut raw.token,
        "OLLAMA_ORIGINS" => &mut raw.origins,
        "FOREMAN_KEEP_ALIVE" => &mut raw.keep_alive,
        "FOREMAN_EMBED_MODEL" => &mut raw.embed_model,
        "FOREMAN_POLL_INTERVAL" => &mut raw.poll_interval,
        "FOREMAN_MAX_ATTEMPTS" => &mut raw.max_attempts,
        "FOREMAN_JOB_TTL" => &mut raw.job_ttl,
        "FOREMAN_FAILED_TTL" => &mut raw.failed_ttl,
        "FOREMAN_DUPLICATES" => &mut raw.duplicates,
        "FOREMAN_MAX_QUEUE" => &mut raw.max_queue,
        "FOREMAN_MAX_QUEUE_BYTES" => &mut raw.max_queue_bytes,
        "FOREMAN_MAX_WAIT" => &mut raw.max_wait,
        "FOREMAN_HOLD" => &mut raw.hold,
        "FOREMAN_PARALLEL" => &mut raw.parallel,
        "FOREMAN_BESIDE" => &mut raw.beside,
        "FOREMAN_BODY_MAX" => &mut raw.body_max,
        "FOREMAN_ANSWER_MAX" => &mut raw.answer_max,
        "FOREMAN_EMBED_PARALLEL" => &mut raw.embed_parallel,
        "FOREMAN_LOAD_LIMIT" => &mut raw.load_limit,
        "FOREMAN_IDLE_LIMIT" => &mut raw.idle_limit,
        "FOREMAN_WAITING_INTERVAL" => &mut raw.waiting_interval,
        "FOREMAN_WAITING_STREAM" => &mut raw.waiting_stream,
        "FOREMAN_WAITING_UNSTREAMED" => &mut raw.waiting_unstreamed,
        "FOREMAN_RETRY_DELAY" => &mut raw.retry_delay,
        "FOREMAN_WEBHOOK_SECRET" => &mut raw.webhook_secret,
        "FOREMAN_WEBHOOK_RETRY_DELAY" => &mut raw.webhook_retry_delay,
        "FOREMAN_WEBHOOK_TRIES" => &mut raw.webhook_tries,
        "FOREMAN_SHUTDOWN_GRACE" => &mut raw.shutdown_grace,
        _ => return None,
    })
}
