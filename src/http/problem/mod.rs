//! Errors on foreman's own routes, as RFC 9457 problems; the table is in docs/jobs.md.
//!
//! Each says what happened and whether it is safe to try again. The routes of others have errors in the shape of their
//! dialect instead ([`super::error`]).

use bytes::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response as HttpResponse, StatusCode};
use serde::{Serialize, Serializer};

use crate::domain::job::JobId;
use crate::ollama::client::{Body, full_body};

use super::error::Told;

mod code;

pub use code::Code;

/// Faults of one body that are told; a client that made more will find the rest after it has mended these.
const ERRORS_MAX: usize = 100;

/// One fault of a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pointed {
    /// Where it is: a JSON pointer (RFC 6901), empty for the whole body.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

/// An error, ready to be told. As JSON it is the body of its answer, or the `error` of an item of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What went wrong.
    pub code: Code,
    /// What happened this time, and whether it is safe to try again.
    pub detail: String,
    /// The job it is about.
    pub job_id: Option<JobId>,
    /// The current attempt of that job.
    pub attempt: Option<u32>,
    /// Seconds after which another try may do better.
    pub retry_after_s: Option<u32>,
    /// The faults of the body.
    pub errors: Box<[Pointed]>,
    /// The methods the route has.
    pub allow: Option<&'static str>,
}

impl Problem {
    /// A problem with nothing but its detail.
    pub fn new(code: Code, detail: impl Into<String>) -> Problem {
        Problem {
            code,
            detail: detail.into(),
            job_id: None,
            attempt: None,
            retry_after_s: None,
            errors: Box::default(),
            allow: None,
        }
    }

    /// A body with faults.
    #[must_use]
    pub fn invalid(mut errors: Vec<Pointed>) -> Problem {
        let detail = match errors.as_slice() {
            [only] if only.pointer.is_empty() => format!("the body {}", only.detail),
            [only] => format!("{} {}", only.pointer, only.detail),
            _ => format!("the body has {} faults", errors.len()),
        };
        errors.truncate(ERRORS_MAX);
        let detail = format!("{detail}; nothing was stored, the same body will be refused again");
        Problem { errors: errors.into(), ..Problem::new(Code::InvalidJob, detail) }
    }

    /// Names the job.
    #[must_use]
    pub fn job(self, id: JobId) -> Problem {
        Problem { job_id: Some(id), ..self }
    }

    /// Names the job's current attempt.
    #[must_use]
    pub fn attempt(self, attempt: u32) -> Problem {
        Problem { attempt: Some(attempt), ..self }
    }

    /// Says after how many seconds to try again.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Problem {
        Problem { retry_after_s: Some(u32::try_from(seconds).unwrap_or(u32::MAX)), ..self }
    }

    /// Says which methods the route has.
    #[must_use]
    pub fn allow(self, methods: &'static str) -> Problem {
        Problem { allow: Some(methods), ..self }
    }

    /// This problem as an answer.
    #[must_use]
    pub fn answer(&self) -> HttpResponse<Body> {
        // Texts and numbers only: there is nothing in it that could fail to be written.
        let body = serde_json::to_vec(self).unwrap_or_default();
        let mut response = HttpResponse::new(full_body(Bytes::from(body)));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(methods) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(methods));
        }
        response
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Members<'a> {
            #[serde(rename = "type")]
            kind: String,
            title: &'a str,
            status: u16,
            detail: &'a str,
            code: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            job_id: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            attempt: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after: Option<u32>,
            #[serde(skip_serializing_if = "<[Pointed]>::is_empty")]
            errors: &'a [Pointed],
        }
        Members {
            kind: format!("/problems/{}", self.code.name()),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            detail: &self.detail,
            code: self.code.name(),
            job_id: self.job_id.map(|id| id.to_string()),
            attempt: self.attempt,
            retry_after: self.retry_after_s,
            errors: &self.errors,
        }
        .serialize(serializer)
    }
}

/// What [`super::body::read`] and admission tell, on a route of foreman's own. A 503 of theirs means that there is no room.
impl From<Told> for Problem {
    fn from(told: Told) -> Problem {
        let code = match told.status {
            StatusCode::BAD_REQUEST => Code::MalformedBody,
            StatusCode::UNAUTHORIZED => Code::Unauthorised,
            StatusCode::REQUEST_TIMEOUT => Code::SlowBody,
            StatusCode::TOO_MANY_REQUESTS => Code::KeyFull,
            StatusCode::PAYLOAD_TOO_LARGE => Code::BodyTooLarge,
            StatusCode::INSUFFICIENT_STORAGE => Code::DiskFull,
            _ if told.retry_after_s.is_some() => Code::QueueFull,
            _ => Code::StoreUnavailable,
        };
        let problem = Problem::new(code, told.text);
        match (told.retry_after_s, code.status()) {
            (Some(seconds), _) => problem.retry_after(seconds),
            // The contract promises one with each of these.
            (None, StatusCode::SERVICE_UNAVAILABLE) => problem.retry_after(RETRY_S),
            (None, _) => problem,
        }
    }
}

/// Seconds after which a database that did not answer may do so again.
const RETRY_S: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_problem_has_what_applies_and_no_more() {
        let id = JobId(ulid::Ulid::from_parts(1, 2));
        let problem = Problem::new(Code::AttemptReplaced, "attempt 1 was replaced by 2");
        let answer = problem.job(id).attempt(2).retry_after(3).answer();
        assert_eq!(answer.status(), 409);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-store");
        assert_eq!(answer.headers()[RETRY_AFTER], "3");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let wanted = format!(
            r#"{{"type":"/problems/attempt-replaced","title":"The attempt was replaced","status":409,"detail":"attempt 1 was replaced by 2","code":"attempt-replaced","job_id":"{id}","attempt":2,"retry_after":3}}"#
        );
        assert_eq!(body, wanted);
        let plain = Problem::new(Code::MethodNotAllowed, "no").allow("GET");
        assert_eq!(plain.answer().headers()[ALLOW], "GET");
        assert!(plain.answer().headers().get(RETRY_AFTER).is_none());
    }

    #[test]
    fn faults_are_listed_up_to_a_limit() {
        let fault = |pointer: &str| Pointed { pointer: pointer.into(), detail: "is bad".into() };
        let one = Problem::invalid(vec![fault("/model")]);
        assert!(one.detail.starts_with("/model is bad; nothing was stored"));
        let many = Problem::invalid(vec![fault("/x"); ERRORS_MAX + 1]);
        assert!(many.detail.contains("101 faults"));
        assert_eq!(many.errors.len(), ERRORS_MAX);
        let value = serde_json::to_value(&one).unwrap();
        assert_eq!(value["errors"][0]["pointer"], "/model");
    }

    #[test]
    fn what_the_reader_of_bodies_tells_has_a_code() {
        for (status, retry, code) in [
            (400, None, Code::MalformedBody),
            (408, None, Code::SlowBody),
            (413, None, Code::BodyTooLarge),
            (429, Some(10), Code::KeyFull),
            (503, Some(1), Code::QueueFull),
            (503, None, Code::StoreUnavailable),
            (507, None, Code::DiskFull),
        ] {
            let mut told = Told::new(StatusCode::from_u16(status).unwrap(), "why");
            told.retry_after_s = retry;
            let problem = Problem::from(told);
            assert_eq!((problem.code, problem.code.status().as_u16()), (code, status));
            assert_eq!(problem.retry_after_s.is_some(), matches!(status, 429 | 503));
        }
    }
}
