//! How a job ended, as an exit code and a sentence.

use serde_json::Value;

use crate::cli::{Exit, say};

/// Where a job stands, for who waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has not ended.
    Open,
    Done,
    Failed,
    Cancelled,
}

/// Reads it off a job object.
pub(super) fn outcome(job: &Value) -> Outcome {
    match job["state"].as_str() {
        Some("done") => Outcome::Done,
        Some("failed") => Outcome::Failed,
        Some("cancelled") => Outcome::Cancelled,
        _ => Outcome::Open,
    }
}

/// Says what there is to say about an end; its exit code.
pub(super) fn tell(id: &str, job: &Value) -> Exit {
    match outcome(job) {
        Outcome::Done => Exit::Fine,
        Outcome::Failed => {
            say(&format!("job {id} failed: {}", reason(job)));
            Exit::JobFailed
        }
        Outcome::Cancelled => {
            say(&format!("job {id} was cancelled"));
            Exit::JobCancelled
        }
        Outcome::Open => {
            say(&format!("job {id} has not ended: it is {}", job["state"].as_str().unwrap_or("?")));
            Exit::TimeUp
        }
    }
}

/// Why it failed.
pub(super) fn reason(job: &Value) -> String {
    let error = &job["error"];
    let message = error["message"].as_str().or_else(|| error.as_str()).unwrap_or("no reason given");
    match error["status"].as_u64() {
        Some(status) => format!("{message} ({status})"),
        None => message.to_owned(),
    }
}

/// The exit code of several: that of the one that is worst for who waits.
pub(super) fn worst(exits: impl IntoIterator<Item = Exit>) -> Exit {
    let rank = |exit: &Exit| match exit {
        Exit::Fine => 0,
        Exit::JobCancelled => 1,
        Exit::JobFailed => 2,
        Exit::Failed => 3,
        Exit::TimeUp => 4,
        Exit::BadInput => 5,
        Exit::NotThere => 6,
        Exit::Usage | Exit::System | Exit::Database | Exit::InUse => 7,
        Exit::Unavailable => 8,
        Exit::Refused => 9,
    };
    exits.into_iter().max_by_key(rank).unwrap_or(Exit::Fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_the_worst_counts() {
        assert_eq!(worst([Exit::Fine, Exit::JobCancelled, Exit::JobFailed]), Exit::JobFailed);
        assert_eq!(worst([Exit::JobFailed, Exit::TimeUp]), Exit::TimeUp);
        assert_eq!(worst([]), Exit::Fine);
    }
}
