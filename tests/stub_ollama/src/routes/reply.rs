//! Answers before they are HTTP, and errors in the shape of each API.

use std::sync::Arc;

use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use crate::board::Entry;
use crate::body::{AnswerBody, Chunks, Content, Flow};
use crate::faults::{Cut, Refusal};
use crate::generation::{Piece, Session};
use crate::json::{Json, Object};
use crate::server::Wire;

pub(super) const JSON_UTF8: &str = "application/json; charset=utf-8";
pub(super) const JSON: &str = "application/json";
pub(super) const NDJSON: &str = "application/x-ndjson";
pub(super) const EVENTS: &str = "text/event-stream";

/// An answer.
pub(crate) struct Reply {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    content: Content,
}

impl Reply {
    pub(super) fn new(status: u16, content_type: &str, content: Content) -> Self {
        let headers = vec![(CONTENT_TYPE.to_string(), content_type.to_owned())];
        Self { status, headers, content }
    }

    /// An answer without body and content type.
    pub(super) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), content: Content::empty() }
    }

    pub(super) fn text(status: u16, text: &str) -> Self {
        Self::new(status, "text/plain", Content::sized(text.to_owned()))
    }

    /// A 200 of the native API.
    pub(super) fn native(object: Object) -> Self {
        Self::new(200, JSON_UTF8, Content::sized(object.encode()))
    }

    /// A 200 of the compatibility APIs, whose writer ends the object with a newline.
    pub(super) fn compatible(object: Object) -> Self {
        Self::new(200, JSON, Content::sized(object.line()))
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends the client to another path, keeping the query.
    pub(super) fn redirect(status: u16, path: &str, parts: &Parts) -> Self {
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let location = format!("{path}{query}");
        if parts.method == Method::GET || parts.method == Method::HEAD {
            let phrase = if status == 301 { "Moved Permanently" } else { "Temporary Redirect" };
            let body = format!("<a href=\"{location}\">{phrase}</a>.\n\n");
            return Self::new(status, "text/html; charset=utf-8", Content::sized(body))
                .header("location", &location);
        }
        Self::empty(status).header("location", &location)
    }

    /// Streams a session; waits for its first piece, because until then there are no headers.
    pub(super) async fn stream(
        content_type: &str,
        mut session: Session,
        mut render: impl FnMut(&Piece) -> String + Send + 'static,
    ) -> Result<Self, Failure> {
        let first = session.next().await;
        if let Piece::Failed(text) = first {
            return Err(Failure::new(500, text));
        }
        let flow = Flow::new(move |chunks| async move {
            let mut piece = first;
            while !piece.is_last() {
                send_events(&chunks, &render(&piece)).await;
                piece = session.next().await;
            }
            // Idle before the client sees the end, so that tests can rely on it.
            drop(session);
            send_events(&chunks, &render(&piece)).await;
        });
        Ok(Self::new(200, content_type, Content::Flow(flow)))
    }

    /// Streams what is there already.
    pub(super) fn pieces(
        content_type: &str,
        pieces: Vec<Piece>,
        mut render: impl FnMut(&Piece) -> String + Send + 'static,
    ) -> Self {
        let flow = Flow::new(move |chunks| async move {
            for piece in pieces {
                send_events(&chunks, &render(&piece)).await;
            }
        });
        Self::new(200, content_type, Content::Flow(flow))
    }

    pub(super) fn into_response(
        self,
        entry: Option<Entry>,
        wire: Arc<Wire>,
        cut: Option<(u64, Cut)>,
        method: &Method,
    ) -> Response<AnswerBody> {
        let mut body = AnswerBody::new(self.content, entry, wire, cut);
        if method == Method::HEAD {
            body.close();
        }
        let mut response = Response::new(body);
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in self.headers {
            // A scripted header that is no header is left out.
            if let (Ok(name), Ok(value)) =
                (name.parse::<HeaderName>(), HeaderValue::from_str(&value))
            {
                response.headers_mut().append(name, value);
            }
        }
        response
    }
}

async fn send_events(chunks: &Chunks, rendered: &str) {
    for event in split_events(rendered) {
        chunks.send(event.to_owned()).await;
    }
}

/// Splits named events, which Ollama flushes one by one; everything else stays whole.
fn split_events(rendered: &str) -> impl Iterator<Item = &str> {
    const NAMED: &str = "event: ";
    const END: &str = "\n\n";
    let mut rest = rendered;
    std::iter::from_fn(move || {
        let end = match rest.find(END) {
            _ if rest.is_empty() => return None,
            Some(at) if rest.starts_with(NAMED) => at + END.len(),
            Some(_) | None => rest.len(),
        };
        let (event, after) = rest.split_at(end);
        rest = after;
        Some(event)
    })
}

/// Which error shape a path has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Native,
    OpenAi,
    Anthropic,
}

impl Family {
    pub(super) fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else if path.starts_with("/v1/") {
            Self::OpenAi
        } else {
            Self::Native
        }
    }
}

/// An error answer, still without its shape.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u16,
    text: String,
    retry_after_seconds: Option<u32>,
    is_crash: bool,
}

impl Failure {
    pub(crate) fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), retry_after_seconds: None, is_crash: false }
    }

    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(400, text)
    }

    pub(crate) fn scripted(refusal: &Refusal) -> Self {
        Self {
            retry_after_seconds: refusal.retry_after_seconds,
            ..Self::new(refusal.status, refusal.text.clone())
        }
    }

    /// A runner's failure, which some routes report with another status.
    pub(crate) fn crash(text: String) -> Self {
        Self { is_crash: true, ..Self::new(500, text) }
    }

    /// Turns a runner's failure into a 400, as `/api/embed` does.
    pub(super) fn crash_as_bad_request(mut self) -> Self {
        if self.is_crash {
            self.status = 400;
        }
        self
    }

    /// Replaces the text of a 404.
    pub(super) fn reword_not_found(mut self, text: String) -> Self {
        if self.status == 404 {
            self.text = text;
        }
        self
    }

    pub(super) fn render(self, family: Family) -> Reply {
        let reply = match family {
            Family::Native => {
                let object = Object::new().with("error", self.text.as_str());
                Reply::new(self.status, JSON_UTF8, Content::sized(object.encode()))
            }
            Family::OpenAi => {
                let error = Object::new()
                    .with("message", self.text.as_str())
                    .with("type", openai_type(self.status))
                    .with("param", Json::Null)
                    .with("code", Json::Null);
                let object = Object::new().with("error", error);
                Reply::new(self.status, JSON, Content::sized(object.line()))
            }
            Family::Anthropic => {
                let error = Object::new()
                    .with("type", anthropic_type(self.status))
                    .with("message", self.text.as_str());
                let request_id = format!("req_{}", &crate::hash::hex64(&self.text)[..24]);
                let object = Object::new()
                    .with("type", "error")
                    .with("error", error)
                    .with("request_id", request_id);
                Reply::new(self.status, JSON, Content::sized(object.line()))
            }
        };
        match self.retry_after_seconds {
            Some(seconds) => reply.header("retry-after", &seconds.to_string()),
            None => reply,
        }
    }
}

fn openai_type(status: u16) -> &'static str {
    match status {
        400 => "invalid_request_error",
        404 => "not_found_error",
        _ => "api_error",
    }
}

fn anthropic_type(status: u16) -> &'static str {
    match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        _ => "api_error",
    }
}
