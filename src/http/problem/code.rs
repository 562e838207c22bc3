//! The codes of foreman's problems: one for each thing a client may want to do about one. The table is in docs/jobs.md.

use hyper::StatusCode;

/// What went wrong. A client branches on this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The body is not JSON.
    MalformedBody,
    /// A query parameter cannot be used.
    MalformedParameter,
    /// A header cannot be used.
    MalformedHeader,
    /// The token is missing or wrong.
    Unauthorised,
    /// There is no such job, and there was none.
    UnknownJob,
    /// There is no such artifact.
    UnknownArtifact,
    /// There is no such delivery.
    UnknownDelivery,
    /// There is no such route below foreman's own.
    UnknownRoute,
    /// The route has other methods; told in `Allow`.
    MethodNotAllowed,
    /// The body stopped coming.
    SlowBody,
    /// The job is in a state in which that cannot be done.
    WrongState,
    /// The attempt that was asked for is not the job's current one.
    AttemptReplaced,
    /// The answer is not whole yet.
    NotFinished,
    /// The job ended without an answer.
    NoAnswer,
    /// The request is no longer kept.
    NoRequest,
    /// It was there, and was dropped.
    Purged,
    /// The body is above the limit.
    BodyTooLarge,
    /// The offset is larger than the answer.
    OffsetBeyondAnswer,
    /// The body has faults.
    InvalidJob,
    /// The key was used with another request.
    IdempotencyMismatch,
    /// The key has as many jobs waiting as it may.
    KeyFull,
    /// The queue takes no more.
    QueueFull,
    /// The daemon is going down.
    Stopping,
    /// The database does not answer.
    StoreUnavailable,
    /// There is no space on the disk.
    DiskFull,
}

impl Code {
    /// All codes, for tables and tests.
    pub const ALL: [Code; 25] = [
        Code::MalformedBody,
        Code::MalformedParameter,
        Code::MalformedHeader,
        Code::Unauthorised,
        Code::UnknownJob,
        Code::UnknownArtifact,
        Code::UnknownDelivery,
        Code::UnknownRoute,
        Code::MethodNotAllowed,
        Code::SlowBody,
        Code::WrongState,
        Code::AttemptReplaced,
        Code::NotFinished,
        Code::NoAnswer,
        Code::NoRequest,
        Code::Purged,
        Code::BodyTooLarge,
        Code::OffsetBeyondAnswer,
        Code::InvalidJob,
        Code::IdempotencyMismatch,
        Code::KeyFull,
        Code::QueueFull,
        Code::Stopping,
        Code::StoreUnavailable,
        Code::DiskFull,
    ];

    /// The status of its answer.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Code::MalformedBody | Code::MalformedParameter | Code::MalformedHeader => {
                StatusCode::BAD_REQUEST
            }
            Code::Unauthorised => StatusCode::UNAUTHORIZED,
            Code::UnknownJob
            | Code::UnknownArtifact
            | Code::UnknownDelivery
            | Code::UnknownRoute => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Code::WrongState
            | Code::AttemptReplaced
            | Code::NotFinished
            | Code::NoAnswer
            | Code::NoRequest => StatusCode::CONFLICT,
            Code::Purged => StatusCode::GONE,
            Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::OffsetBeyondAnswer => StatusCode::RANGE_NOT_SATISFIABLE,
            Code::InvalidJob | Code::IdempotencyMismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Code::KeyFull => StatusCode::TOO_MANY_REQUESTS,
            Code::QueueFull | Code::Stopping | Code::StoreUnavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Code::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// The stable name, in `code` and at the end of `type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// What a person reads first; the same for every problem of this code.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.words().1
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Code::MalformedBody => ("malformed-body", "The body cannot be read"),
            Code::MalformedParameter => ("malformed-parameter", "A parameter cannot be used"),
            Code::MalformedHeader => ("malformed-header", "A header cannot be used"),
            Code::Unauthorised => ("unauthorised", "The token is missing or wrong"),
            Code::UnknownJob => ("unknown-job", "There is no such job"),
            Code::UnknownArtifact => ("unknown-artifact", "There is no such artifact"),
            Code::UnknownDelivery => ("unknown-delivery", "There is no such delivery"),
            Code::UnknownRoute => ("unknown-route", "There is no such route"),
            Code::MethodNotAllowed => ("method-not-allowed", "The route has no such method"),
            Code::SlowBody => ("slow-body", "The body stopped coming"),
            Code::WrongState => ("wrong-state", "The job is in another state"),
            Code::AttemptReplaced => ("attempt-replaced", "The attempt was replaced"),
            Code::NotFinished => ("not-finished", "The answer is not whole yet"),
            Code::NoAnswer => ("no-answer", "The job ended without an answer"),
            Code::NoRequest => ("no-request", "The request is no longer kept"),
            Code::Purged => ("purged", "It was there, and was dropped"),
            Code::BodyTooLarge => ("body-too-large", "The body is too large"),
            Code::OffsetBeyondAnswer => ("offset-beyond-answer", "The answer is shorter"),
            Code::InvalidJob => ("invalid-job", "The job has faults"),
            Code::IdempotencyMismatch => {
                ("idempotency-mismatch", "The key was used with another request")
            }
            Code::KeyFull => ("key-full", "The key has as many jobs waiting as it may"),
            Code::QueueFull => ("queue-full", "The queue is full"),
            Code::Stopping => ("stopping", "Foreman is stopping"),
            Code::StoreUnavailable => ("store-unavailable", "The database does not answer"),
            Code::DiskFull => ("disk-full", "The disk is full"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_contract() {
        let contract = include_str!("../../../docs/jobs.md");
        for code in Code::ALL {
            let row = contract
                .lines()
                .find(|line| line.starts_with('|') && line.contains(&format!("`{}`", code.name())));
            let row = row.unwrap_or_else(|| panic!("{} is not in docs/jobs.md", code.name()));
            assert!(row.starts_with(&format!("| {} |", code.status().as_u16())), "{row}");
            assert!(code.title().len() > 5);
        }
        let rows =
            contract.lines().filter(|line| line.starts_with("| 4") || line.starts_with("| 5"));
        let told = rows
            .filter_map(|row| row.split('|').nth(2))
            .map(|codes| codes.matches('`').count() / 2);
        assert_eq!(told.sum::<usize>(), Code::ALL.len());
    }
}
