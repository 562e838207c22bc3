//! What is wrong with what was typed: told with key, value and what is allowed, all together, and never with a secret.

use std::fmt;

use crate::ollama::url::without_secrets;

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its name in the environment.
    pub key: &'static str,
    /// What was given; a secret is not repeated.
    pub value: String,
    /// What is allowed.
    pub allowed: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={:?}: {}", self.key, self.value, self.allowed)
    }
}

/// Collects faults while values are read, so that all are told at once.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_list(self) -> Vec<Fault> {
        self.0
    }

    /// Reads a value, or the default where none is given, and keeps the fault if there is one.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        given: Option<&String>,
        default: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = given.map(String::as_str).filter(|text| !text.trim().is_empty());
        match parse(text.unwrap_or(default).trim()) {
            Ok(value) => Some(value),
            Err(allowed) => {
                let value = told(key, text.unwrap_or(default));
                // It may repeat parts of the value, and is for a terminal.
                let allowed = allowed.replace(char::is_control, "\u{fffd}");
                self.0.push(Fault { key, value, allowed });
                None
            }
        }
    }
}

/// A value as far as it may be told: it is read on terminals and kept in logs.
fn told(key: &str, value: &str) -> String {
    match key {
        "FOREMAN_OLLAMA_URL" => without_secrets(value),
        _ if key.ends_with("TOKEN") || key.ends_with("SECRET") => "(hidden)".to_owned(),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Raw};

    fn given(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    /// Found by fuzzing: what is allowed hid the password, and the value beside it did not.
    #[test]
    fn a_secret_in_a_url_is_not_repeated() {
        for url in ["http://u:hunter2@h/", "http://h/?token=hunter2", "http://h/#hunter2"] {
            let faults = Config::check(&Raw { ollama_url: given(url), ..Raw::default() });
            let told = faults.unwrap_err()[0].to_string();
            assert!(
                told.starts_with("FOREMAN_OLLAMA_URL=\"") && !told.contains("hunter2"),
                "{told}"
            );
        }
    }

    /// Found by fuzzing.
    #[test]
    fn a_fault_has_no_control_characters() {
        let raw = Raw { origins: given("a\u{1b}[2J"), addr: given("\n"), ..Raw::default() };
        let faults = Config::check(&raw).unwrap_err();
        assert!(!faults[0].to_string().contains(char::is_control), "{}", faults[0]);
    }
}
