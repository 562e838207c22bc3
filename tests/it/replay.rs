//! Transparency against a real Ollama: exchanges recorded from one (`tests/fixtures/ollama-wire`) go through foreman.
//! The upstream replays the recorded bytes, a stream chunk by chunk: none is sent before the client has the one before.

use std::path::Path;

use serde_json::Value;

use crate::harness::Foreman;
use crate::harness::raw::{self, Framing, Piece, Raw, RawHead};
use crate::harness::upstream::{Asked, SCRIPTED, Upstream};

/// One recorded exchange.
struct Recording {
    name: String,
    method: String,
    target: String,
    lines: Vec<String>,
    body: Vec<u8>,
    /// The answer's head, as it came.
    head: Vec<u8>,
    /// The rest of the answer, as it came.
    rest: Vec<u8>,
}

impl Recording {
    fn read(path: &Path) -> Recording {
        let bytes = std::fs::read(path).unwrap();
        let (asked, answered) = split(&bytes, b"\n---- answer");
        let (_, answered) = split(&answered, b"\n");
        let (request, body) = split(&asked, b"\n\n");
        let (head, rest) = split(&answered, b"\r\n\r\n");
        let request = String::from_utf8(request).unwrap();
        let mut lines = request.lines().map(str::to_owned);
        let line = lines.next().unwrap();
        let mut words = line.split(' ').map(str::to_owned);
        let lines: Vec<String> = lines
            .filter(|line| !line.starts_with("Host: ") && !line.starts_with("Connection: "))
            .collect();
        let length = lines.iter().find_map(|line| line.strip_prefix("Content-Length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        Recording {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            method: words.next().unwrap(),
            target: words.next().unwrap(),
            lines,
            body: body[..length].to_vec(),
            head: [head.as_slice(), b"\r\n\r\n"].concat(),
            rest,
        }
    }

    fn head(&self) -> RawHead {
        RawHead::parse(&String::from_utf8_lossy(&self.head))
    }

    /// The bytes of each chunk with its frame, and what follows the last whole one.
    fn chunks(&self) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut chunks, mut rest) = (Vec::new(), self.rest.clone());
        loop {
            let (size, after) = split(&rest, b"\r\n");
            let size = usize::from_str_radix(&String::from_utf8_lossy(&size), 16).unwrap_or(0);
            if size == 0 || after.len() < size + 2 {
                return (chunks, rest);
            }
            chunks.push(after[..size].to_vec());
            rest = after[size + 2..].to_vec();
        }
    }

    fn is_stream(&self) -> bool {
        let kind = self.head();
        let kind = kind.header("content-type").unwrap_or_default();
        kind.contains("ndjson") || kind.contains("event-stream")
    }

    /// Sends the recorded request.
    async fn ask(&self, foreman: &Foreman) -> Raw {
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).chain([SCRIPTED]).collect();
        let mut bytes = raw::head(foreman.addr, &self.method, &self.target, &lines).into_bytes();
        bytes.extend_from_slice(&self.body);
        Raw::send(foreman.addr, &bytes).await
    }

    /// Whether foreman answers this by itself: what its guard refuses, and preflights.
    fn is_guarded(&self) -> bool {
        self.lines.iter().any(|line| line.starts_with("Origin: "))
    }
}

/// What stands before and after the first `mark`.
fn split(bytes: &[u8], mark: &[u8]) -> (Vec<u8>, Vec<u8>) {
    match bytes.windows(mark.len()).position(|window| window == mark) {
        Some(at) => (bytes[..at].to_vec(), bytes[at + mark.len()..].to_vec()),
        None => (bytes.to_vec(), Vec::new()),
    }
}

fn recordings() -> Vec<Recording> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ollama-wire");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    let recordings: Vec<_> = paths.iter().map(|path| Recording::read(path)).collect();
    assert!(recordings.len() > 50, "the recordings are there");
    recordings
}

fn recording(name: &str) -> Recording {
    recordings().into_iter().find(|recording| recording.name == name).unwrap()
}

async fn start() -> (Upstream, Foreman) {
    let (chunks, _) = recording("tags").chunks();
    let upstream = Upstream::start(serde_json::from_slice(&chunks.concat()).unwrap()).await;
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await;
    (upstream, foreman.up().await)
}

fn assert_head(recording: &Recording, got: &RawHead) {
    let name = &recording.name;
    assert_eq!(got.end_to_end(), recording.head().end_to_end(), "{name}");
    assert_eq!(
        got.framing(&recording.method),
        recording.head().framing(&recording.method),
        "{name}"
    );
}

/// Takes the request as the upstream, checks that it is the client's.
async fn taken(recording: &Recording, upstream: &mut Upstream) -> Asked {
    let asked = upstream.next().await;
    let line = format!("{} {} HTTP/1.1", recording.method, recording.target);
    assert!(asked.head.starts_with(&line), "{}: {}", recording.name, asked.head);
    assert_eq!(asked.body, recording.body, "{}: the body is the client's", recording.name);
    asked
}

/// Replays a stream. Returns what came after its last whole chunk, and whether the connection ended as HTTP says.
async fn replay_stream(
    recording: &Recording,
    mut asked: Asked,
    client: &mut Raw,
) -> (Vec<u8>, bool) {
    let (chunks, rest) = recording.chunks();
    asked.write(&recording.head).await;
    for (number, chunk) in chunks.iter().enumerate() {
        let frame = [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
        asked.write(frame).await;
        if number == 0 {
            assert_head(recording, &client.head().await.unwrap());
        }
        let got = client.chunk().await;
        assert_eq!(got, Piece::Bytes(chunk.clone()), "{} chunk {number}", recording.name);
    }
    asked.write(rest).await;
    drop(asked);
    let mut tail = Vec::new();
    loop {
        match client.chunk().await {
            Piece::Bytes(bytes) => tail.extend(bytes),
            Piece::Whole => return (tail, true),
            Piece::Cut(bytes) => return ([tail, bytes].concat(), false),
        }
    }
}

#[tokio::test]
async fn a_recorded_exchange_passes_through_byte_for_byte() {
    let (mut upstream, foreman) = start().await;
    let broken = ["runner-killed-midstream", "runner-killed-v1", "client-close", "busy-a", "show"];
    for recording in recordings() {
        let is_refused_as_busy = recording.head().status() == 503;
        if broken.contains(&recording.name.as_str()) || is_refused_as_busy {
            continue;
        }
        let name = &recording.name;
        let mut client = recording.ask(&foreman).await;
        if recording.is_stream() {
            let asked = taken(&recording, &mut upstream).await;
            assert_eq!(
                replay_stream(&recording, asked, &mut client).await,
                (vec![], true),
                "{name}"
            );
            continue;
        }
        if !recording.is_guarded() {
            let mut asked = taken(&recording, &mut upstream).await;
            asked.write([&recording.head[..], &recording.rest].concat()).await;
        }
        let answer = client.answer(&recording.method).await;
        assert_head(&recording, &answer.head);
        let body = match recording.head().framing(&recording.method) {
            Framing::Chunked => recording.chunks().0.concat(),
            Framing::None | Framing::Length(_) | Framing::Close => recording.rest.clone(),
        };
        assert_eq!(answer.text(), String::from_utf8_lossy(&body), "{name}");
        assert_eq!(answer.body(), body, "{name}");
        assert!(answer.is_whole, "{name}: {answer:?}");
        assert!(client.ends().await, "{name}: nothing follows");
        assert!(!upstream.has_next(), "{name}: asked once");
    }
}

/// Ollama tells a native client of its dead runner in the last line, and ends cleanly: two of fifteen clients miss that.
#[tokio::test]
async fn a_told_error_inside_a_stream_is_kept_and_then_the_connection_is_cut() {
    let (mut upstream, foreman) = start().await;
    let recording = recording("runner-killed-midstream");
    let (chunks, _) = recording.chunks();
    assert!(chunks.last().unwrap().starts_with(b"{\"error\":"));
    let mut client = recording.ask(&foreman).await;
    let asked = taken(&recording, &mut upstream).await;
    assert_eq!(replay_stream(&recording, asked, &mut client).await, (vec![], false));
}

/// On /v1 Ollama swallows the error and ends cleanly without `[DONE]`: foreman says so, and cuts.
#[tokio::test]
async fn a_swallowed_error_inside_a_stream_is_told_and_then_the_connection_is_cut() {
    let (mut upstream, foreman) = start().await;
    let recording = recording("runner-killed-v1");
    let mut client = recording.ask(&foreman).await;
    let asked = taken(&recording, &mut upstream).await;
    let (tail, is_whole) = replay_stream(&recording, asked, &mut client).await;
    assert!(!is_whole);
    let tail = String::from_utf8(tail).unwrap();
    let event = tail.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n"));
    let error: Value = serde_json::from_str(event.unwrap_or_else(|| panic!("{tail:?}"))).unwrap();
    assert_eq!(error["error"]["type"], "api_error");
    assert_eq!(error["error"]["message"], "ollama ended the answer before it was whole");
    assert!(error["error"]["code"].is_null() && error["error"]["param"].is_null());
}

/// An upstream whose connection breaks inside a stream, between two records and within one.
#[tokio::test]
async fn a_broken_stream_ends_with_an_error_record_of_its_own_and_the_cut() {
    let (mut upstream, foreman) = start().await;
    for (name, add) in [("client-close", ""), ("busy-a", ""), ("client-close", "{\"half")] {
        let mut recording = recording(name);
        if !add.is_empty() {
            let frame = format!("ff\r\n{add}");
            recording.rest = [recording.rest.as_slice(), frame.as_bytes()].concat();
        }
        let mut client = recording.ask(&foreman).await;
        let asked = taken(&recording, &mut upstream).await;
        let (tail, is_whole) = replay_stream(&recording, asked, &mut client).await;
        assert!(!is_whole, "{name}");
        // Half a record is of no use to anybody: the error stands on a line of its own.
        let tail = String::from_utf8(tail).unwrap();
        let error: Value = serde_json::from_str(&tail).unwrap_or_else(|_| panic!("{tail:?}"));
        assert!(error["error"].as_str().unwrap().contains("broke inside the answer"), "{tail}");
        assert!(tail.ends_with("}\n"), "{tail:?}");
    }
}

/// Ollama's own queue being full is not the client's business: the job waits and is tried again.
#[tokio::test]
async fn a_busy_upstream_is_not_told_to_the_client() {
    let (mut upstream, foreman) = start().await;
    let good = recording("chat-ns");
    for name in ["q6-tiny1-s", "q7-tiny2-ns"] {
        let busy = recording(name);
        let mut client = busy.ask(&foreman).await;
        for _ in 0..2 {
            let mut asked = taken(&busy, &mut upstream).await;
            asked.write([&busy.head[..], &busy.rest].concat()).await;
        }
        let mut asked = taken(&busy, &mut upstream).await;
        asked.write([&good.head[..], &good.rest].concat()).await;
        let answer = client.answer("POST").await;
        assert_eq!((answer.status(), answer.body()), (200, good.rest.clone()), "{name}");
    }
}
