//! What was typed becomes a configuration, or the list of all its faults.

use super::*;

fn given(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn nothing_given_is_a_working_set_up() {
    let config = Config::check(&Raw::default()).unwrap();
    assert_eq!(config.addr.to_string(), ADDR_DEFAULT);
    assert_eq!(config.ollama_url.to_string(), "http://127.0.0.1:11434");
    assert_eq!(config.keep_alive, None);
    assert_eq!((config.hold, config.parallel), (HoldSetting::Auto, 1));
    assert_eq!((config.max_queue, config.class_max), (10_000, [None; 3]));
    let waits_s = config.max_wait.map(|wait| wait.as_secs());
    assert_eq!(waits_s, [120, 600, 21_600]);
    assert!(config.db.ends_with("foreman/foreman.db"));
}

#[test]
fn all_faults_are_told_together_with_key_value_and_what_is_allowed() {
    let raw = Raw {
        addr: given("nowhere"),
        max_attempts: given("0"),
        job_ttl: given("soon"),
        max_queue: given("batch=none"),
        max_wait: given("urgent=1m"),
        hold: given("maybe"),
        parallel: given("0"),
        body_max: given("12 parsecs"),
        ..Raw::default()
    };
    let faults = Config::check(&raw).unwrap_err();
    let keys: Vec<_> = faults.iter().map(|fault| fault.key).collect();
    assert_eq!(
        keys,
        [
            "FOREMAN_ADDR",
            "FOREMAN_MAX_ATTEMPTS",
            "FOREMAN_JOB_TTL",
            "FOREMAN_MAX_QUEUE",
            "FOREMAN_MAX_WAIT",
            "FOREMAN_HOLD",
            "FOREMAN_PARALLEL",
            "FOREMAN_BODY_MAX"
        ]
    );
    assert_eq!(faults[1].to_string(), "FOREMAN_MAX_ATTEMPTS=\"0\": a whole number from 1 to 100");
}

#[test]
fn an_empty_variable_is_not_a_value() {
    let raw = Raw { token: given(""), poll_interval: given("  "), ..Raw::default() };
    let config = Config::check(&raw).unwrap();
    assert!(config.token.is_none());
    assert_eq!(config.poll_interval, Duration::from_secs(30));
}

#[test]
fn a_secret_is_never_printed() {
    let raw = Raw { token: given("hunter2"), ..Raw::default() };
    let config = Config::check(&raw).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}
