//! Foreman's asynchronous surface as a program uses it: submits, looks, waits, follows and hears events.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use stub_ollama::{Action, Fault, Stage};

use super::client::{self, Answer, Stream, get, open, send};
use super::upstream::Asked;
use super::{DEADLINE, Foreman};

/// A request with one more header.
pub(crate) fn with_header(
    mut request: Request<Full<Bytes>>,
    (name, value): (&'static str, &str),
) -> Request<Full<Bytes>> {
    let value = HeaderValue::from_str(value).unwrap();
    request.headers_mut().insert(HeaderName::from_static(name), value);
    request
}

/// An Ollama that loads the model, answers the chat once with 503 and asks to be left alone for a minute: the job goes
/// back to the queue and waits there.
pub(crate) fn busy_for_a_minute() -> Fault {
    let busy = Action::Answer {
        status: 503,
        text: "later".to_owned(),
        retry_after_seconds: Some(60),
        stage: Stage::AfterLoad,
    };
    Fault::new(busy).path("/api/chat")
}

/// POSTs a submission; the answer as it is.
pub(crate) async fn try_submit(addr: SocketAddr, body: &Value) -> Answer {
    send(addr, "POST", "/jobs", body.to_string()).await
}

/// Submits a job that must be taken; its id.
pub(crate) async fn submit(addr: SocketAddr, body: &Value) -> String {
    taken(&try_submit(addr, body).await)
}

/// Submits a job that the test answers as Ollama.
pub(crate) async fn submit_scripted(addr: SocketAddr, body: &Value) -> String {
    let request = client::request(addr, "POST", "/jobs", body.to_string());
    let request = with_header(request, ("x-script", "body"));
    taken(&open(addr, request).await.unwrap().rest().await)
}

fn taken(answer: &Answer) -> String {
    assert_eq!(answer.status, 202, "{}", answer.text());
    id_of(&answer.json())
}

/// The id in a job object.
pub(crate) fn id_of(object: &Value) -> String {
    object["job_id"].as_str().unwrap().to_owned()
}

/// The job object.
pub(crate) async fn object(addr: SocketAddr, id: &str) -> Value {
    let answer = get(addr, &format!("/jobs/{id}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Looks at a job until it is as wanted. Each look is a request, so this waits for foreman, not for the clock.
pub(crate) async fn wait_for(addr: SocketAddr, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let found = tokio::time::timeout(DEADLINE, async {
        loop {
            last = object(addr, id).await;
            if wanted(&last) {
                return;
            }
        }
    });
    let found = found.await;
    assert!(found.is_ok(), "the awaited object never came: {last:#}");
    last
}

/// Waits until a job is in a state.
pub(crate) async fn wait_until_state(addr: SocketAddr, id: &str, state: &str) -> Value {
    wait_for(addr, id, |object| object["state"] == state).await
}

/// Waits for the end of a job, by a long poll; its object.
pub(crate) async fn ended(addr: SocketAddr, id: &str) -> Value {
    let object = get(addr, &format!("/jobs/{id}?wait=25s")).await.json();
    let state = object["state"].as_str().unwrap_or_default();
    assert!(matches!(state, "done" | "failed" | "cancelled"), "it has not ended: {object:#}");
    object
}

/// Waits for the end of a job that must be done.
pub(crate) async fn done(addr: SocketAddr, id: &str) -> Value {
    let object = ended(addr, id).await;
    assert_eq!(object["state"], "done", "{object:#}");
    object
}

/// POSTs without a body to `/jobs/{id}/{what}`.
pub(crate) async fn act(addr: SocketAddr, id: &str, what: &str) -> Answer {
    send(addr, "POST", &format!("/jobs/{id}/{what}"), Bytes::new()).await
}

/// Cancels a job that can be cancelled; its object.
pub(crate) async fn cancel(addr: SocketAddr, id: &str) -> Value {
    let answer = act(addr, id, "cancel").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The output of a job, whole.
pub(crate) async fn output(addr: SocketAddr, id: &str, query: &str) -> Answer {
    get(addr, &format!("/jobs/{id}/output{query}")).await
}

/// Opens the output of a job, to be read as it comes.
pub(crate) async fn follow(addr: SocketAddr, id: &str, query: &str) -> Stream {
    open(addr, client::request(addr, "GET", &format!("/jobs/{id}/output{query}"), Bytes::new()))
        .await
        .unwrap()
}

/// A problem with this status and code, as RFC 9457 has it.
#[track_caller]
pub(crate) fn problem(answer: &Answer, status: u16, code: &str) -> Value {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem = answer.json();
    assert_eq!(problem["code"], code, "{problem:#}");
    assert_eq!(problem["type"], format!("/problems/{code}"));
    assert_eq!(problem["status"], status);
    assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem:#}");
    problem
}

/// A streamed generate request of that many tokens.
pub(crate) fn generate(model: &str, tokens: u32) -> Value {
    json!({ "endpoint": "/api/generate", "body":
        { "model": model, "prompt": "x", "options": { "num_predict": tokens } } })
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// Its place in the log; none for progress.
    pub(crate) id: Option<i64>,
    pub(crate) kind: String,
    pub(crate) data: Value,
}

impl Event {
    fn parse(text: &str) -> Option<Event> {
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let data = field("data")?;
        Some(Event {
            id: field("id").map(|id| id.parse().unwrap()),
            kind: field("event").unwrap().to_owned(),
            data: serde_json::from_str(data).unwrap(),
        })
    }
}

/// A subscriber.
pub(crate) struct Events {
    stream: Stream,
    held: String,
    ready: VecDeque<Event>,
}

impl Events {
    /// Subscribes, behind an event if one is given.
    pub(crate) async fn open(addr: SocketAddr, path: &str, after: Option<i64>) -> Events {
        let mut request = client::request(addr, "GET", path, Bytes::new());
        if let Some(after) = after {
            request = with_header(request, ("last-event-id", &after.to_string()));
        }
        let stream = open(addr, request).await.unwrap();
        assert_eq!(stream.status, 200);
        assert_eq!(stream.headers["content-type"], "text/event-stream");
        Events { stream, held: String::new(), ready: VecDeque::new() }
    }

    /// The next event; `None` at the end of the stream, however it ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let bytes = self.stream.next().await?.ok()?;
            self.held.push_str(std::str::from_utf8(&bytes).unwrap());
            while let Some(end) = self.held.find("\n\n") {
                let text: String = self.held.drain(..end + 2).collect();
                self.ready.extend(Event::parse(&text));
            }
        }
    }

    /// The next change of state.
    pub(crate) async fn next_change(&mut self) -> Option<Event> {
        loop {
            let event = self.next().await?;
            if event.kind != "job.progress" {
                return Some(event);
            }
        }
    }

    /// That many changes of state.
    pub(crate) async fn changes(&mut self, count: usize) -> Vec<Event> {
        let mut changes = Vec::new();
        while changes.len() < count {
            changes.push(self.next_change().await.expect("the stream of events ended"));
        }
        changes
    }

    /// The changes of state to the end of the stream.
    pub(crate) async fn rest(mut self) -> Vec<Event> {
        let mut changes = Vec::new();
        while let Some(event) = self.next_change().await {
            changes.push(event);
        }
        changes
    }
}

/// The states that events tell of.
pub(crate) fn states(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.data["state"].as_str().unwrap()).collect()
}

/// The ids of events.
pub(crate) fn ids(events: &[Event]) -> Vec<i64> {
    events.iter().map(|event| event.id.unwrap()).collect()
}

impl Asked {
    /// Begins an answer of lines.
    pub(crate) async fn begin_lines(&mut self) {
        self.begin("application/x-ndjson").await;
    }

    /// Begins an answer in chunks.
    pub(crate) async fn begin(&mut self, content_type: &str) {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type";
        self.write(format!("{head}: {content_type}\r\n\r\n")).await;
    }

    /// Sends one chunk.
    pub(crate) async fn chunk(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.write(chunk).await;
    }

    /// Ends the answer.
    pub(crate) async fn end(&mut self) {
        self.write("0\r\n\r\n").await;
    }
}

impl Foreman {
    /// Keeps the one slot of the stub busy with a job of this model; its id. The tokens must be on hold.
    pub(crate) async fn occupy(&self, stub: &stub_ollama::Stub, model: &str) -> String {
        let id = submit(self.addr, &client::chat(model, "occupies")).await;
        stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        id
    }
}
