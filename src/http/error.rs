//! Foreman's own errors on the routes of others: each in the shape of its route, each saying what happened and whether
//! it is safe to try again. Errors of Ollama's are relayed, never imitated.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response as HttpResponse, StatusCode};
use serde_json::{Value, json};

use crate::domain::dialect::{Dialect, ErrorShape};
use crate::ollama::calls::error_text;
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

    /// What is told, with the time after which to try again: most clients show the text and no header.
    pub(super) fn sentence(&self) -> String {
        match self.retry_after_s {
            Some(seconds) if self.text.ends_with("try again") => {
                format!("{} in {seconds} s", self.text)
            }
            Some(_) | None => self.text.clone(),
        }
    }

    /// This error as an answer in the shape of `dialect`.
    pub(super) fn answer(&self, dialect: Dialect) -> Response {
        let body = shaped(dialect, self.status.as_u16(), &self.sentence()).to_string();
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

/// Of what records an answer is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Lines of JSON.
    Lines,
    /// Server-sent events.
    Events,
    /// One JSON value: no stream.
    Value,
}

impl Form {
    /// The form of this dialect's streams.
    pub(super) fn of_stream(dialect: Dialect) -> Form {
        match dialect.error_shape() {
            ErrorShape::Native => Form::Lines,
            ErrorShape::OpenAi | ErrorShape::Anthropic => Form::Events,
        }
    }
}

/// An error inside an answer that has begun, as one record of `dialect`. A line break before it ends a record that was
/// cut in the middle; after it the connection is cut without the last chunk, which every client notices.
pub(super) fn in_band(
    (dialect, form): (Dialect, Form),
    text: &str,
    is_at_line_start: LineStart,
) -> Bytes {
    let record = record(dialect, form, &shaped(dialect, 500, text).to_string());
    match (is_at_line_start, form) {
        (LineStart::Yes, _) | (_, Form::Value) => record,
        (LineStart::No, Form::Lines) => Bytes::from([b"\n", record.as_ref()].concat()),
        // An event ends with an empty line: one break alone would make the cut record and the error one event.
        (LineStart::No, Form::Events) => Bytes::from([b"\n\n", record.as_ref()].concat()),
    }
}

/// An error answer of Ollama's, inside an answer that has begun: its own bytes, unless they cannot stand in one record.
pub(super) fn relayed_in_band((dialect, form): (Dialect, Form), body: &[u8]) -> Bytes {
    let one_line = std::str::from_utf8(body.trim_ascii())
        .ok()
        .filter(|line| line.starts_with('{') && !line.contains(['\n', '\r']));
    match one_line {
        Some(line) => record(dialect, form, line),
        None => in_band((dialect, form), &error_text(body), LineStart::Yes),
    }
}

fn record(dialect: Dialect, form: Form, json: &str) -> Bytes {
    Bytes::from(match (form, dialect.error_shape()) {
        (Form::Value, _) => json.to_owned(),
        (Form::Lines, _) => format!("{json}\n"),
        (Form::Events, ErrorShape::Anthropic) => format!("event: error\ndata: {json}\n\n"),
        (Form::Events, ErrorShape::OpenAi | ErrorShape::Native) => format!("data: {json}\n\n"),
    })
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
    fn a_sentence_says_when_to_try_again() {
        let told = Told::new(StatusCode::SERVICE_UNAVAILABLE, "it is full, try again");
        assert_eq!(told.sentence(), "it is full, try again");
        assert_eq!(told.retry_after(10).sentence(), "it is full, try again in 10 s");
        let other = Told::new(StatusCode::BAD_GATEWAY, "it is gone: why").retry_after(5);
        assert_eq!(other.sentence(), "it is gone: why");
    }

    #[test]
    fn an_error_inside_an_answer_is_a_record_of_its_own() {
        assert_eq!(
            in_band((Dialect::Chat, Form::Lines), "no", LineStart::No).as_ref(),
            b"\n{\"error\":\"no\"}\n"
        );
        let event = in_band((Dialect::Messages, Form::Events), "no", LineStart::Yes);
        assert!(event.starts_with(b"event: error\ndata: {"));
        assert!(event.ends_with(b"}\n\n"));
        let value = in_band((Dialect::OpenAiChat, Form::Value), "no", LineStart::Yes);
        assert!(value.starts_with(b"{\"error\":{\"message\":\"no\"") && value.ends_with(b"}"));
    }

    #[test]
    fn an_error_answer_keeps_its_bytes_where_they_fit_into_a_record() {
        let chat = (Dialect::Chat, Form::Lines);
        assert_eq!(relayed_in_band(chat, b"{\"error\":\"x\"}").as_ref(), b"{\"error\":\"x\"}\n");
        assert_eq!(
            relayed_in_band((Dialect::OpenAiChat, Form::Events), b"{\"error\":1}\n").as_ref(),
            b"data: {\"error\":1}\n\n"
        );
        for body in [&b"{\n\"error\":\"x\"}"[..], b"404 page\nnot found", b"\xff", b""] {
            let record = relayed_in_band(chat, body);
            let (last, line) = record.split_last().unwrap();
            assert!(*last == b'\n' && !line.contains(&b'\n'), "{body:?}");
            let value: Value = serde_json::from_slice(line).unwrap();
            assert!(value["error"].is_string(), "{body:?}");
        }
    }
}
