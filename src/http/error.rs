//! Foreman's own errors on the routes of others: each in the shape of its route, each saying what happened and whether
//! it is safe to try again. Errors of Ollama's are relayed, never imitated.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response as HttpResponse, StatusCode};
use serde_json::{Value, json};

use crate::domain::dialect::{Dialect, ErrorShape};
use crate::ollama::client::full_body;

use super::Response;
use super::problem::Problem;

/// An error foreman tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) status: StatusCode,
    pub(super) text: String,
    pub(super) retry_after_s: Option<u64>,
}

impl Told {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Told {
        Told { status, text: text.into(), retry_after_s: None }
    }

    pub(super) fn retry_after(self, seconds: u64) -> Told {
        Told { retry_after_s: Some(seconds), ..self }
    }

    /// This error as an answer in the shape of `dialect`.
    pub(super) fn answer(&self, dialect: Dialect) -> Response {
        let body = shaped(dialect, self.status.as_u16(), &self.text).to_string();
        let mut response = HttpResponse::new(full_body(Bytes::from(body)));
        *response.status_mut() = self.status;
        let content_type = match dialect.error_shape() {
            ErrorShape::Native => "application/json; charset=utf-8",
            ErrorShape::OpenAi | ErrorShape::Anthropic => "application/json",
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A problem of foreman's own, on a route of others.
impl From<Problem> for Told {
    fn from(problem: Problem) -> Told {
        Told {
            status: problem.code.status(),
            text: problem.detail,
            retry_after_s: problem.retry_after_s.map(u64::from),
        }
    }
}

/// The body of an error, in the shape of `dialect` (Ollama's `api/types.go`, `openai/openai.go`,
/// `anthropic/anthropic.go`).
fn shaped(dialect: Dialect, status: u16, text: &str) -> Value {
    match dialect.error_shape() {
        ErrorShape::Native => json!({ "error": text }),
        ErrorShape::OpenAi => {
            let kind = match status {
                400 => "invalid_request_error",
                404 => "not_found_error",
                _ => "api_error",
            };
            json!({ "error": { "message": text, "type": kind, "param": null, "code": null } })
        }
        ErrorShape::Anthropic => {
            let kind = match status {
                400 | 413 => "invalid_request_error",
                401 => "authentication_error",
                403 => "permission_error",
                404 => "not_found_error",
                429 => "rate_limit_error",
                503 | 529 => "overloaded_error",
                _ => "api_error",
            };
            json!({ "type": "error", "error": { "type": kind, "message": text } })
        }
    }
}

/// An error inside a stream that has begun, as one record of `dialect`. A line break before it ends a record that was
/// cut in the middle; after it the connection is cut without the last chunk, which every client notices.
pub(super) fn in_stream(dialect: Dialect, text: &str, is_at_line_start: LineStart) -> Bytes {
    let value = shaped(dialect, 500, text);
    let line = match dialect.error_shape() {
        ErrorShape::Native => format!("{value}\n"),
        ErrorShape::OpenAi => format!("data: {value}\n\n"),
        ErrorShape::Anthropic => format!("event: error\ndata: {value}\n\n"),
    };
    // An event ends with an empty line: one break alone would make the cut record and the error one event.
    let end = if dialect.error_shape() == ErrorShape::Native { "\n" } else { "\n\n" };
    match is_at_line_start {
        LineStart::Yes => Bytes::from(line),
        LineStart::No => Bytes::from(format!("{end}{line}")),
    }
}

/// Whether the bytes sent so far end with a line break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineStart {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_shape() {
        assert_eq!(shaped(Dialect::Generate, 503, "no").to_string(), r#"{"error":"no"}"#);
        assert_eq!(shaped(Dialect::Responses, 404, "no")["error"]["type"], "not_found_error");
        assert_eq!(shaped(Dialect::Messages, 503, "no")["error"]["type"], "overloaded_error");
    }

    #[test]
    fn an_error_inside_a_stream_is_a_record_of_its_own() {
        assert_eq!(
            in_stream(Dialect::Chat, "no", LineStart::No).as_ref(),
            b"\n{\"error\":\"no\"}\n"
        );
        let event = in_stream(Dialect::Messages, "no", LineStart::Yes);
        assert!(event.starts_with(b"event: error\ndata: {"));
        assert!(event.ends_with(b"}\n\n"));
    }
}
