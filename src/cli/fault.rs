//! What can go wrong between the command line and a daemon, as a sentence and an exit code.

use std::net::SocketAddr;

use serde_json::Value;

use super::ask::Answer;
use super::{Exit, say};

/// Why a call came to nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// No whole answer came: nobody listens, or the connection was cut. It may be tried again where the call allows it.
    Lost(String),
    /// The daemon answered with an error.
    Told(Box<Problem>),
    /// Anything else, with its exit code; an empty text is not told.
    Other(Exit, String),
}

/// An error that the daemon told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: u16,
    /// Such as `unknown-job`; none where it was no problem document.
    pub(super) code: Option<String>,
    /// The current attempt, beside `attempt-replaced`.
    pub(super) attempt: Option<u64>,
    /// A sentence, and a line for each fault of the body.
    pub(super) text: String,
    /// The whole document; null where it is none.
    pub(super) document: Value,
}

impl Fault {
    /// Says it; what is left is the exit code.
    pub(super) fn tell(self) -> Exit {
        let (exit, text) = (self.exit(), self.text());
        if !text.is_empty() {
            say(text);
        }
        exit
    }

    /// The exit code.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Fault::Lost(_) => Exit::Unavailable,
            Fault::Told(problem) => problem.exit(),
            Fault::Other(exit, _) => *exit,
        }
    }

    /// The sentence.
    pub(super) fn text(&self) -> &str {
        match self {
            Fault::Lost(text) | Fault::Other(_, text) => text,
            Fault::Told(problem) => &problem.text,
        }
    }

    /// Whether a daemon that comes back, or has room again, may answer otherwise.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Fault::Lost(_) => true,
            Fault::Told(problem) => problem.status == 503,
            Fault::Other(..) => false,
        }
    }
}

impl Problem {
    /// Reads an answer that is an error.
    pub(super) fn of(addr: SocketAddr, answer: &Answer) -> Problem {
        let status = answer.status;
        let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let code = document["code"].as_str().map(str::to_owned);
        let attempt = document["attempt"].as_u64();
        let text = match (status, &code) {
            (401, _) => format!("foreman on {addr} refused the token (FOREMAN_TOKEN)"),
            (403, None) => {
                let why = document["error"].as_str().unwrap_or("your key may not do that");
                format!("foreman on {addr} refused it: {why}")
            }
            (_, Some(code)) => sentence(&document, code),
            (404 | 405, None) => {
                format!("{addr} answers, but does not know this: it is no foreman, or an older one")
            }
            (_, None) => format!("{addr} answered {status}: {}", answer.text().trim()),
        };
        Problem { status, code, attempt, text, document }
    }

    fn exit(&self) -> Exit {
        match (self.status, &self.code) {
            (401 | 403, _) => Exit::Refused,
            (_, None) => Exit::Unavailable,
            (400 | 413 | 422, _) => Exit::BadInput,
            (404 | 410, _) => Exit::NotThere,
            (429 | 500.., _) => Exit::Unavailable,
            _ => Exit::Failed,
        }
    }
}

/// A problem document (RFC 9457) as a sentence, with a line for each fault of a body.
pub(super) fn sentence(document: &Value, code: &str) -> String {
    let detail = document["detail"].as_str().or_else(|| document["title"].as_str());
    let mut text = format!("{} ({code})", detail.unwrap_or("foreman refused"));
    if let Some(seconds) = document["retry_after"].as_u64() {
        text.push_str(&format!("; try again in {seconds} s"));
    }
    for error in document["errors"].as_array().into_iter().flatten() {
        let pointer = error["pointer"].as_str().filter(|pointer| !pointer.is_empty());
        let detail = error["detail"].as_str().unwrap_or("cannot be used");
        text.push_str(&format!("\n  {}: {detail}", pointer.unwrap_or("the body")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::HeaderMap;
    use hyper::body::Bytes;

    fn problem(status: u16, body: &'static str) -> Problem {
        let body = Bytes::from_static(body.as_bytes());
        let answer = Answer { status, headers: HeaderMap::new(), body };
        Problem::of(([127, 0, 0, 1], 11435).into(), &answer)
    }

    #[test]
    fn every_fault_of_a_body_is_shown_with_its_pointer() {
        let text = r#"{"type":"/problems/invalid-job","title":"Invalid job","status":422,"code":"invalid-job",
            "detail":"the job was not stored","errors":[{"pointer":"/priority","detail":"one of …"},
            {"pointer":"","detail":"no model"}]}"#;
        let told = problem(422, text);
        assert_eq!(
            told.text,
            "the job was not stored (invalid-job)\n  /priority: one of …\n  the body: no model"
        );
        assert_eq!(told.exit(), Exit::BadInput);
    }

    #[test]
    fn each_kind_of_error_has_its_exit_code() {
        let of = |status, code: &'static str| problem(status, code.to_owned().leak()).exit();
        assert_eq!(of(404, r#"{"code":"unknown-job"}"#), Exit::NotThere);
        assert_eq!(of(410, r#"{"code":"purged"}"#), Exit::NotThere);
        assert_eq!(of(409, r#"{"code":"wrong-state"}"#), Exit::Failed);
        assert_eq!(of(503, r#"{"code":"queue-full","retry_after":3}"#), Exit::Unavailable);
        assert_eq!(of(507, r#"{"code":"disk-full"}"#), Exit::Unavailable);
        assert_eq!(of(429, r#"{"code":"key-full","retry_after":10}"#), Exit::Unavailable);
        assert_eq!(of(401, r#"{"code":"unauthorised"}"#), Exit::Refused);
        // An Ollama, or a foreman without these routes, relays what it does not know.
        assert_eq!(of(404, "404 page not found"), Exit::Unavailable);
    }

    #[test]
    fn a_wait_is_told_with_its_seconds() {
        let told = problem(503, r#"{"code":"queue-full","detail":"full","retry_after":3}"#);
        assert_eq!(told.text, "full (queue-full); try again in 3 s");
    }
}
