//! How values of the domain are written into rows and read back.

use serde_json::Value;

use crate::domain::job::{Class, JobId, State};

use super::error::StoreError;

/// Header lines in order: lower-case name, raw value. Values may hold any byte, so they are stored as Latin-1.
pub type HeaderList = Vec<(String, Vec<u8>)>;

/// Header lines as a JSON array of pairs.
pub(super) fn headers_to_text(headers: &HeaderList) -> String {
    let pairs = headers.iter().map(|(name, value)| {
        let text: String = value.iter().copied().map(char::from).collect();
        Value::Array(vec![Value::String(name.clone()), Value::String(text)])
    });
    Value::Array(pairs.collect()).to_string()
}

/// The reverse of [`headers_to_text`].
pub(super) fn headers_from_text(text: &str) -> Result<HeaderList, StoreError> {
    let pairs: Vec<(String, String)> = serde_json::from_str(text)
        .map_err(|fault| StoreError::Strange(format!("header list: {fault}")))?;
    let latin = |text: String| text.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect();
    Ok(pairs.into_iter().map(|(name, value)| (name, latin(value))).collect())
}

/// A column value as a class.
pub(super) fn class(name: &str) -> Result<Class, StoreError> {
    Class::from_name(name).ok_or_else(|| StoreError::Strange(format!("class {name:?}")))
}

/// A column value as the public name of a job.
pub(super) fn job_id(text: &str) -> Result<JobId, StoreError> {
    text.parse().map_err(|_| StoreError::Strange(format!("id {text:?}")))
}

/// A column value as a state.
pub(super) fn state(name: &str) -> Result<State, StoreError> {
    State::from_name(name).ok_or_else(|| StoreError::Strange(format!("state {name:?}")))
}

/// A count as a column value.
pub(super) fn counted(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// An unsigned count as a column value.
pub(super) fn to_column(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A column value as an unsigned count; a negative one reads as 0.
pub(super) fn count(column: i64) -> u64 {
    u64::try_from(column).unwrap_or(0)
}

/// A column value as a small counter.
pub(super) fn small(column: i64) -> u32 {
    u32::try_from(column).unwrap_or(u32::MAX)
}

/// The condition that a job is in one of these states. Of the few that ended without an answer it is written so that SQLite
/// sees that their own index will do: it does not conclude that from the state alone.
pub(super) fn in_states(states: &[State]) -> String {
    if let [only @ (State::Failed | State::Cancelled)] = states {
        return format!("state IN ('failed','cancelled') AND state = '{}'", only.name());
    }
    let names: Vec<String> = states.iter().map(|state| format!("'{}'", state.name())).collect();
    format!("state IN ({})", names.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_header_value_survives() {
        let headers = vec![
            ("x-a".to_owned(), (0_u8..=255).collect::<Vec<u8>>()),
            ("x-a".to_owned(), b"second".to_vec()),
        ];
        assert_eq!(headers_from_text(&headers_to_text(&headers)).unwrap(), headers);
    }
}
