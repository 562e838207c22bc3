//! Transparency: for every route and every error, foreman's answer is the upstream's: status line, end-to-end headers,
//! body bytes, and for a stream the chunks. Each request goes to a stub directly and, through foreman, to an equal one.

mod answers;
mod compressed;
mod errors;
mod metadata;
mod shapes;

use std::net::SocketAddr;

use stub_ollama::{Capability, Fault, LogEntry, Stub, StubConfig};

use crate::harness::raw::{self, Framing, Raw, RawAnswer};
use crate::harness::{Foreman, model, stub_config};

/// A request of the table.
#[derive(Debug, Clone)]
struct Ask {
    method: &'static str,
    target: String,
    lines: Vec<String>,
    body: Vec<u8>,
}

fn ask(method: &'static str, target: &str, body: impl Into<Vec<u8>>) -> Ask {
    Ask { method, target: target.to_owned(), lines: Vec::new(), body: body.into() }
}

fn get(target: &str) -> Ask {
    ask("GET", target, "")
}

fn post(target: &str, body: impl Into<Vec<u8>>) -> Ask {
    ask("POST", target, body)
}

impl Ask {
    fn line(mut self, line: &str) -> Ask {
        self.lines.push(line.to_owned());
        self
    }

    /// The request in a line, for messages.
    fn name(&self) -> String {
        let body = String::from_utf8_lossy(&self.body).chars().take(120).collect::<String>();
        format!("{} {} {} {body}", self.method, self.target, self.lines.join("; "))
    }

    async fn send(&self, addr: SocketAddr) -> RawAnswer {
        let mut bytes = raw::head(addr, self.method, &self.target, &self.sent_lines()).into_bytes();
        bytes.extend_from_slice(&self.body);
        Raw::send(addr, &bytes).await.answer(self.method).await
    }

    /// The lines, with a length where the body is not chunked and there may be one.
    fn sent_lines(&self) -> Vec<&str> {
        self.lines.iter().map(String::as_str).collect()
    }

    /// Adds the length that a body needs. A request without a body has none, as clients send it.
    fn framed(self) -> Ask {
        let is_chunked = self.lines.iter().any(|line| line.contains("chunked"));
        if is_chunked || (self.body.is_empty() && self.method != "POST") {
            return self;
        }
        let length = format!("Content-Length: {}", self.body.len());
        self.line(&length)
    }
}

/// What must be equal.
#[derive(Debug, PartialEq)]
struct Seen {
    status_line: String,
    headers: Vec<(String, String)>,
    framing: Framing,
    body: Vec<Vec<u8>>,
    is_whole: bool,
}

fn seen(answer: &RawAnswer) -> Seen {
    let (status_line, headers) = answer.head.end_to_end();
    let kind = answer.head.header("content-type").unwrap_or_default();
    let is_stream = kind.contains("ndjson") || kind.contains("event-stream");
    // A record that is larger than what is read at once comes in other pieces.
    let has_large = answer.chunks.iter().any(|chunk| chunk.len() > 16 * 1024);
    let body = if is_stream && !has_large { answer.chunks.clone() } else { vec![answer.body()] };
    Seen { status_line, headers, framing: answer.framing, body, is_whole: answer.is_whole }
}

fn told(seen: &Seen) -> String {
    let body = seen.body.iter().map(|chunk| String::from_utf8_lossy(chunk)).collect::<Vec<_>>();
    let body = body.join("|");
    let shown: String = body.chars().take(600).collect();
    let Seen { status_line, headers, framing, is_whole, .. } = seen;
    format!("{status_line} {headers:?} {framing:?} whole={is_whole} {} bytes {shown}", body.len())
}

/// A header line by which a request is found in the logs of both stubs.
const NUMBER: &str = "x-number";

/// What the upstream must get of a request: everything the client sent, less what ends at a hop.
fn received(stub: &Stub, number: usize) -> Option<LogEntry> {
    let number = number.to_string();
    stub.log().into_iter().rev().find(|entry| entry.header(NUMBER) == Some(&number))
}

/// The end-to-end part of what a stub received.
fn end_to_end(entry: &LogEntry) -> String {
    let hop = ["host", "connection", "content-length", "transfer-encoding", "origin"];
    let mut headers = entry.headers.clone();
    headers.retain(|(name, _)| !hop.contains(&name.as_str()));
    headers.sort();
    let body = match std::str::from_utf8(&entry.body) {
        Ok(text) => text.to_owned(),
        Err(_) => entry.body.escape_ascii().to_string(),
    };
    let LogEntry { method, path, query, body_bytes, .. } = entry;
    // The log keeps the beginning of a large body only.
    let rest = *body_bytes > 1_000_000;
    format!("{method} {path} {query:?} {headers:?} {body} {:?}", rest.then_some(body_bytes))
}

/// The same without the `keep_alive` that foreman takes out of what it runs.
fn without_keep_alive(text: &str) -> String {
    let Some((before, after)) = text.split_once(",\"keep_alive\":") else {
        return text.to_owned();
    };
    let end = after.find([',', '}']).unwrap_or(after.len());
    format!("{before}{}", &after[end..])
}

/// Sends all to both sides, in order, and tells every difference at once.
async fn compare(config: StubConfig, fault: Option<Fault>, asks: Vec<Ask>) {
    let direct = Stub::start(config.clone()).await;
    let upstream = Stub::start(config).await;
    let foreman = Foreman::start(&upstream).await.up().await;
    if let Some(fault) = fault {
        direct.faults(fault.clone());
        upstream.faults(fault);
    }
    let mut differences = Vec::new();
    for (number, ask) in asks.into_iter().enumerate() {
        let ask = ask.line(&format!("{NUMBER}: {number}")).framed();
        let wanted = seen(&ask.send(direct.addr()).await);
        let got = seen(&ask.send(foreman.addr).await);
        if got != wanted {
            let (wanted, got) = (told(&wanted), told(&got));
            differences.push(format!("{}\n  direct  {wanted}\n  through {got}", ask.name()));
        }
        let wanted = received(&direct, number).map(|entry| end_to_end(&entry)).unwrap();
        // What foreman's own guard answers never reaches the upstream.
        let got = received(&upstream, number).map(|entry| end_to_end(&entry));
        let is_guarded = ask.lines.iter().any(|line| line.starts_with("Origin: "));
        let is_same =
            got.as_ref().is_some_and(|got| *got == wanted || *got == without_keep_alive(&wanted));
        let is_refused_here = got.is_none() && is_guarded;
        if !is_same && !is_refused_here {
            let name = ask.name();
            differences.push(format!("{name}\n  upstream directly {wanted}\n  through {got:?}"));
        }
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
    let status = foreman.status().await;
    assert_eq!(status["queue"]["depth"], 0, "nothing is left behind: {status:#}");
}

fn models() -> StubConfig {
    use Capability::{Completion, Insert, Thinking, Tools, Vision};
    let config = StubConfig { fixed_time: true, ..stub_config(&["m"]) };
    StubConfig { pullable: vec![model("new")], ..config }
        .model(model("think").with(&[Completion, Tools, Thinking]))
        .model(model("fim").with(&[Completion, Insert, Vision]).parameter("num_ctx", "2048"))
        .model(model("far").remote("https://ollama.com"))
}

/// A chat with `m`, and these further members.
fn chat(members: &str) -> String {
    let messages = r#""messages":[{"role":"user","content":"Tell <me> & \u00e9 now"}]"#;
    format!(r#"{{"model":"m",{messages}{members}}}"#)
}

/// The same with `think`.
fn think(members: &str) -> String {
    chat(members).replacen("\"m\"", "\"think\"", 1)
}

const FORM: &str = "Content-Type: multipart/form-data; boundary=B";

fn form(model: &str, format: &str) -> String {
    let part = |name: &str, rest: &str, text: &str| {
        format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"{rest}\r\n\r\n{text}\r\n")
    };
    let sound = part("file", "; filename=\"a.wav\"", "RIFF");
    format!("{}{}{sound}--B--\r\n", part("model", "", model), part("response_format", "", format))
}
