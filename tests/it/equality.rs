//! Transparency: for every route and every error, foreman's answer is the upstream's: status line, end-to-end headers,
//! body bytes, and for a stream the chunks. Each request goes to a stub directly and, through foreman, to an equal one.

use std::net::SocketAddr;

use stub_ollama::{Action, Capability, Cloud, Fault, LogEntry, Stage, Stub, StubConfig};

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
    let body = if is_stream { answer.chunks.clone() } else { vec![answer.body()] };
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
    let body = String::from_utf8_lossy(&entry.body);
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

#[tokio::test]
async fn every_metadata_route_answers_as_ollama_does() {
    let digest = format!("sha256:{}", "0f".repeat(32));
    let mut asks: Vec<Ask> = [
        "/",
        "/api/version",
        "/api/status",
        "/api/tags",
        "/api/ps",
        "/v1/models",
        "/v1/models/m",
        "/v1/models/nope",
        "/v1/models/a/b",
        "/api/experimental/model-recommendations",
        "/api/version?a=b&c=%20d",
        "/api/tags?",
        "/nope",
        "/favicon.ico",
        "/api",
        "/v1/nope",
        "/api/version/",
        "/api/tags/?x=1",
        "//api/tags",
        "//api//tags?x=1",
        "/api/./tags",
        "/api/x/../tags",
        "/api/%74ags",
        "/api/%zz",
        "/API/TAGS",
        "/api/chat",
        "/api/pull",
        "/api/delete",
        "/v1/chat/completions",
        "/v1/messages",
        "/api/blobs/x",
        "/jobsx",
        "/eventsx/1",
    ]
    .map(get)
    .to_vec();
    for target in ["/", "/api/version", "/api/tags", "/api/chat", "/api/ps", "/nope", "/api/tags/"]
    {
        asks.push(ask("HEAD", target, ""));
    }
    for method in ["PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "get"] {
        asks.extend([ask(method, "/api/chat", ""), ask(method, "/api/tags", "")]);
        asks.push(ask(method, "/nope", ""));
    }
    for target in ["/api/chat/", "//api/chat", "/v1//chat/completions", "/api/nope", "/api/embed/"]
    {
        asks.push(post(target, chat("")));
    }
    for target in ["/api/me", "/api/signout", "/api/experimental/web_search", "/api/version"] {
        asks.push(post(target, "{}"));
    }
    for body in
        ["{\"model\":\"m\"}", "{\"name\":\"fim\"}", "{\"model\":\"nope\"}", "{}", "", "{bad"]
    {
        asks.extend([post("/api/show", body), post("/api/show", format!(" {body} "))]);
    }
    asks.push(ask("DELETE", "/api/user/keys/abc", ""));
    asks.push(ask("HEAD", &format!("/api/blobs/{digest}"), ""));
    asks.push(ask("HEAD", "/api/blobs/sha256:zz", ""));
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn every_preflight_and_origin_answers_as_ollama_does() {
    let mut asks = Vec::new();
    for target in
        ["/api/chat", "/api/tags", "/v1/messages", "/nope", "/", "/api/embed", "/api/pull"]
    {
        let preflight = ask("OPTIONS", target, "").line("Access-Control-Request-Method: POST");
        asks.push(preflight.clone().line("Origin: http://localhost:3000"));
        asks.push(preflight.clone().line("Origin: http://evil.example"));
        asks.push(preflight);
    }
    for origin in ["http://localhost:3000", "app://x", "http://evil.example", "null"] {
        let line = format!("Origin: {origin}");
        asks.extend([get("/api/version").line(&line), get("/nope").line(&line)]);
        asks.extend([get("/api/chat").line(&line), post("/api/chat", chat("")).line(&line)]);
        asks.push(post("/v1/embeddings", r#"{"model":"embed","input":"x"}"#).line(&line));
        asks.push(post("/api/chat", "{bad").line(&line));
    }
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn every_change_of_the_library_answers_as_ollama_does() {
    let blob = |hex: &str| format!("/api/blobs/sha256:{}", hex.repeat(32));
    let encoded = blob("0e").replace(':', "%3A");
    let mut asks = Vec::new();
    for body in [
        "{\"model\":\"new\"}",
        "{\"name\":\"new\",\"stream\":false}",
        "{\"model\":\"nope\"}",
        "{\"model\":\"nope\",\"stream\":false}",
        "{\"model\":\"a b\"}",
        "{}",
        "",
        "{bad",
        "[1]",
        "{\"model\":\"m\",\"stream\":\"x\"}",
    ] {
        asks.extend([post("/api/pull", body), post("/api/push", body)]);
    }
    asks.extend([
        post(&blob("0e"), vec![7; 300_000]),
        ask("HEAD", &blob("0e"), ""),
        ask("HEAD", &encoded, ""),
        post(&blob("0e"), "known already"),
        post("/api/blobs/sha256:short", "x"),
        post(&blob("0d"), "5\r\nhello\r\n0\r\n\r\n").line("Transfer-Encoding: chunked"),
        post("/api/create", r#"{"model":"mine","from":"m","parameters":{"num_ctx":512}}"#),
        post("/api/create", r#"{"model":"own","from":"m","stream":false}"#),
        post("/api/create", r#"{"model":"mine"}"#),
        post("/api/create", r#"{"model":"mine","from":"nope"}"#),
        post("/api/show", r#"{"model":"mine"}"#),
        post("/api/copy", r#"{"source":"m","destination":"m2"}"#),
        post("/api/copy", r#"{"source":"nope","destination":"m3"}"#),
        post("/api/copy", r#"{"source":"m","destination":"a b"}"#),
        post("/api/chat", r#"{"model":"m2","messages":[{"role":"user","content":"x"}]}"#),
        ask("DELETE", "/api/delete", r#"{"model":"m2"}"#),
        ask("DELETE", "/api/delete", r#"{"name":"mine"}"#),
        ask("DELETE", "/api/delete", r#"{"model":"nope"}"#),
        ask("DELETE", "/api/delete", "{bad"),
        ask("DELETE", "/api/delete", ""),
        post("/api/chat", r#"{"model":"m2","messages":[{"role":"user","content":"x"}]}"#),
        get("/api/tags"),
    ]);
    compare(models(), None, asks).await;
}

/// Bodies that say something about reading JSON as Go does; the first `m` of each is a model.
fn odd_bodies() -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "null",
        "{}",
        "[]",
        "1",
        "\"x\"",
        "{bad",
        "{\"model\":\"m\"",
        "{\"model\":1}",
        "{\"model\":\"\"}",
        "{\"model\":\" \"}",
        "{\"model\":\"nope\"}",
        "{\"model\":\"a b\"}",
        "{\"model\":\"m:cloud:local\"}",
        "{\"model\":\"x:cloud\"}",
        "{\"model\":\"x:1b-cloud\"}",
        "{\"model\":\"../m\"}",
        "{\"model\":\"m:\"}",
        "{\"model\":\"nope\"} trailing",
        "\u{feff}{\"model\":\"m\"}",
        "{\"model\":\"nope\",}",
        "{\"model\":\"m\" // x\n}",
        "{\"model\":\"embed\"}",
        "{\"messages\":[]}",
        "{\"model\":\"nope\",\"stream\":false}",
    ]
    .map(Vec::from)
    .to_vec();
    bodies.push(b"{\"model\":\"\xff\xfe\"}".to_vec());
    bodies.push(br#"{"model":"\ud800"}"#.to_vec());
    bodies
}

#[tokio::test]
async fn every_error_answers_as_ollama_does() {
    let mut asks = Vec::new();
    for target in [
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/api/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/audio/transcriptions",
    ] {
        asks.extend(odd_bodies().into_iter().map(|body| post(target, body)));
    }
    for members in [
        r#","keep_alive":"abc""#,
        r#","keep_alive":"-1""#,
        r#","keep_alive":{}"#,
        r#","stream":"false""#,
        r#","stream":1"#,
        r#","format":"xml""#,
        r#","format":5"#,
        r#","options":{"num_ctx":"x"}"#,
        r#","options":{"temperature":"hot"}"#,
        r#","options":[]"#,
        r#","options":{"stop":1}"#,
        r#","think":true"#,
        r#","think":"huge""#,
        r#","think":1"#,
        r#","tools":[{}]"#,
        r#","tools":{}"#,
        r#","messages":5"#,
        r#","messages":[5]"#,
        r#","top_logprobs":99"#,
        r#","shift":"x""#,
        r#","messages":[{"role":5}]"#,
    ] {
        asks.push(post("/api/chat", chat(members)));
        asks.push(post("/v1/chat/completions", chat(members)));
        let generate = format!(r#"{{"model":"m","prompt":"x"{members}}}"#);
        asks.push(post("/api/generate", generate));
    }
    for (target, body) in [
        ("/api/chat", r#"{"model":"embed","messages":[{"role":"user","content":"x"}]}"#),
        ("/api/generate", r#"{"model":"embed","prompt":"x"}"#),
        ("/api/generate", r#"{"model":"m","prompt":"x","suffix":"y"}"#),
        ("/api/generate", r#"{"model":"m","prompt":5}"#),
        ("/api/embed", r#"{"model":"m","input":"x"}"#),
        ("/api/embeddings", r#"{"model":"m","prompt":"x"}"#),
        ("/api/embed", r#"{"model":"embed","input":5}"#),
        ("/v1/chat/completions", r#"{"model":"m","messages":[]}"#),
        ("/v1/chat/completions", r#"{"model":"embed","messages":[{"role":"user","content":"x"}]}"#),
        ("/v1/completions", r#"{"model":"embed","prompt":"x"}"#),
        ("/v1/messages", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#),
        ("/v1/messages", r#"{"model":"m","max_tokens":5}"#),
        ("/v1/messages", r#"{"max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#),
        ("/v1/responses", r#"{"input":"x"}"#),
        ("/v1/embeddings", r#"{"model":"embed"}"#),
    ] {
        asks.push(post(target, body));
    }
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn every_native_answer_is_ollama_s_streamed_or_not() {
    let tools = r#","tools":[{"type":"function","function":{"name":"look"}}]"#;
    let mut asks = Vec::new();
    for stream in ["", r#","stream":true"#, r#","stream":false"#, r#","stream":null"#] {
        let with = |members: &str| format!("{members}{stream}");
        for members in [
            "",
            r#","options":{"num_predict":3,"seed":1}"#,
            r#","keep_alive":"5m""#,
            r#","format":"json""#,
            r#","format":{"type":"object"}"#,
            r#","keep_alive":0"#,
            r#","options":{"num_ctx":1024}"#,
            r#","options":{"nonsense":1}"#,
            r#","shift":false"#,
        ] {
            asks.push(post("/api/chat", chat(&with(members))));
            let generate = format!(r#"{{"model":"fim","prompt":"x"{}}}"#, with(members));
            asks.push(post("/api/generate", generate));
        }
        for members in ["", r#","think":false"#, r#","think":"high""#, r#","think":true"#, tools] {
            asks.push(post("/api/chat", think(&with(members))));
        }
        asks.push(post("/api/chat", think(&with(tools)).replace("Tell", "use the tool")));
        for body in [
            r#"{"model":"fim","prompt":"x","suffix":"y"STREAM}"#,
            r#"{"model":"m","prompt":"x","raw":true,"system":"s"STREAM}"#,
            r#"{"model":"M:latest","prompt":"x"STREAM} trailing"#,
            r#"{"MODEL":"nope","Model":"m","prompt":"x"STREAM}"#,
            r#"{"model":"library/m","prompt":"x"STREAM}"#,
            r#"{"model":"m"STREAM}"#,
            r#"{"model":"m","keep_alive":-1STREAM}"#,
            r#"{"model":"m","keep_alive":0STREAM}"#,
            r#"{"model":"far","prompt":"x"STREAM}"#,
        ] {
            asks.push(post("/api/generate", body.replace("STREAM", stream)));
        }
        for body in [
            r#"{"model":"m"STREAM}"#,
            r#"{"model":"m","messages":[]STREAM}"#,
            r#"{"model":"m","messages":[],"keep_alive":0STREAM}"#,
            r#"{"model":"m","messages":[],"keep_alive":"10m"STREAM}"#,
            r#"{"model":"far","messages":[{"role":"user","content":"x"}]STREAM}"#,
        ] {
            asks.push(post("/api/chat", body.replace("STREAM", stream)));
        }
    }
    for body in [
        r#"{"model":"embed","input":"x"}"#,
        r#"{"model":"embed","input":["a","b","c"]}"#,
        r#"{"model":"embed","input":[]}"#,
        r#"{"model":"embed"}"#,
        r#"{"model":"embed","input":"x","keep_alive":"5m","dimensions":3}"#,
        r#"{"model":"embed","input":"x","options":{"num_ctx":64}}"#,
    ] {
        asks.push(post("/api/embed", body));
    }
    asks.push(post("/api/embeddings", r#"{"model":"embed","prompt":"x"}"#));
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn every_v1_answer_is_ollama_s_streamed_or_not() {
    let usage = r#","stream":true,"stream_options":{"include_usage":true}"#;
    let mut asks = Vec::new();
    for stream in ["", r#","stream":true"#, r#","stream":false"#, usage] {
        asks.push(post("/v1/chat/completions", chat(&format!(r#","max_tokens":3{stream}"#))));
        let tools = r#","tools":[{"type":"function","function":{"name":"look"}}]"#;
        let called = think(&format!("{tools}{stream}")).replace("Tell", "use the tool");
        asks.extend([
            post("/v1/chat/completions", called),
            post("/v1/chat/completions", think(stream)),
        ]);
        let json = format!(r#","response_format":{{"type":"json_object"}},"keep_alive":0{stream}"#);
        asks.push(post("/v1/chat/completions", chat(&json)));
        let completion = format!(r#"{{"model":"m","prompt":"x"{stream}}}"#);
        asks.push(post("/v1/completions", completion.replace(":\"x\"", ":\"\"")));
        asks.push(post("/v1/completions", completion));
        let responses = format!(r#"{{"model":"m","input":"Hi","max_output_tokens":4{stream}}}"#);
        asks.push(post("/v1/responses", responses));
        asks.push(post("/v1/messages", chat(&format!(r#","max_tokens":4{stream}"#))));
        asks.push(post("/v1/messages", think(&format!(r#","max_tokens":4{stream}"#))));
    }
    asks.push(post("/v1/embeddings", r#"{"model":"embed","input":["a","b"]}"#));
    asks.push(post(
        "/v1/embeddings",
        r#"{"model":"embed","input":"a","encoding_format":"base64"}"#,
    ));
    for format in ["json", "text"] {
        asks.push(post("/v1/audio/transcriptions", form("m", format)).line(FORM));
    }
    asks.push(post("/v1/audio/transcriptions", form("nope", "json")).line(FORM));
    asks.push(post("/v1/audio/transcriptions", form("", "json")).line(FORM));
    compare(models(), None, asks).await;
}

const FORM: &str = "Content-Type: multipart/form-data; boundary=B";

fn form(model: &str, format: &str) -> String {
    let part = |name: &str, rest: &str, text: &str| {
        format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"{rest}\r\n\r\n{text}\r\n")
    };
    let sound = part("file", "; filename=\"a.wav\"", "RIFF");
    format!("{}{}{sound}--B--\r\n", part("model", "", model), part("response_format", "", format))
}

/// Ways to send the same chat: types, encodings of the path, chunks, an old protocol's spellings.
#[tokio::test]
async fn the_same_request_in_other_clothes_is_still_answered_as_ollama_does() {
    let body = chat("");
    let chunked = format!("1\r\n{{\r\n{:x}\r\n{}\r\n0\r\n\r\n", body.len() - 1, &body[1..]);
    let large = chat("").replace("Tell", &"word ".repeat(2 * 1024 * 1024));
    let mut asks = vec![
        post("/api/chat", chunked.clone()).line("Transfer-Encoding: chunked"),
        post("/v1/chat/completions", chunked).line("Transfer-Encoding: chunked"),
        post("/api/%63hat", body.clone()),
        post("/api/chat?ts=1&x=%2F", body.clone()),
        post("http://127.0.0.1/api/chat", body.clone()),
        post("/api/chat", large.clone()),
        post("/api/generate", large.replace("\"messages\"", "\"x\"")),
        post("/v1/embeddings", r#"{"model":"embed","input":"x"}"#).line("X-Api-Key: k"),
    ];
    for kind in ["application/x-www-form-urlencoded", "text/plain", "application/json", "junk"] {
        asks.push(post("/api/chat", body.clone()).line(&format!("Content-Type: {kind}")));
    }
    for line in ["Authorization: Bearer x", "Accept-Encoding: gzip", "Accept: text/event-stream"] {
        asks.push(post("/api/chat", body.clone()).line(line));
    }
    asks.push(post("/api/chat", body).line("Content-Encoding: gzip"));
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn cloud_models_answer_as_ollama_does() {
    for cloud in [Cloud::Unreachable, Cloud::Disabled, Cloud::Answers] {
        let mut asks = Vec::new();
        for stream in ["true", "false"] {
            for name in ["big:cloud", "big:20b-cloud", "far", "nope:cloud"] {
                let members = format!(r#","stream":{stream}"#);
                let body = chat(&members).replacen("\"m\"", &format!("\"{name}\""), 1);
                asks.extend([post("/api/chat", body.clone()), post("/v1/chat/completions", body)]);
            }
        }
        compare(StubConfig { cloud, ..models() }, None, asks).await;
    }
}

/// Statuses that Ollama, or a proxy before it, may give. Those worth another try are tried until it gives up.
#[tokio::test]
async fn an_error_of_any_status_reaches_the_client_as_it_was() {
    let embed = r#"{"model":"embed","input":"x","prompt":"x"}"#.to_owned();
    let max = chat(r#","max_tokens":5"#);
    for status in [400, 401, 403, 404, 409, 413, 422, 429, 500, 501, 502, 503, 504] {
        let mut asks = Vec::new();
        for (target, body) in [
            ("/api/chat", chat("")),
            ("/api/chat", chat(r#","stream":false"#)),
            ("/v1/chat/completions", chat(r#","stream":true"#)),
            ("/v1/completions", r#"{"model":"m","prompt":"x"}"#.to_owned()),
            ("/v1/responses", r#"{"model":"m","input":"x"}"#.to_owned()),
            ("/v1/messages", max.clone()),
            ("/api/embed", embed.clone()),
            ("/v1/embeddings", embed.clone()),
            ("/api/embeddings", embed.clone()),
        ] {
            asks.push(post(target, body));
        }
        let fault = Action::Answer {
            status,
            text: "told <so> & \"thus\"".to_owned(),
            // Foreman waits as long as it is told to before it tries again.
            retry_after_seconds: Some(0),
            stage: Stage::AfterLoad,
        };
        let fault = Fault::new(fault).forever();
        // Not the calls foreman makes to load.
        let config = models();
        for ask in asks {
            let fault = fault.clone().path(&ask.target);
            compare(config.clone(), Some(fault), vec![ask]).await;
        }
    }
}

/// A runner that dies before the first byte, again and again: the client gets Ollama's own last word.
#[tokio::test]
async fn a_runner_that_always_dies_is_told_in_ollama_s_words() {
    for (target, body) in [
        ("/api/chat", chat("")),
        ("/v1/chat/completions", chat(r#","stream":true"#)),
        ("/v1/messages", chat(r#","max_tokens":5"#)),
        ("/api/embed", r#"{"model":"embed","input":"x"}"#.to_owned()),
        ("/api/embeddings", r#"{"model":"embed","prompt":"x"}"#.to_owned()),
    ] {
        let fault = Fault::new(Action::KillRunner(0)).path(target).forever();
        compare(models(), Some(fault), vec![post(target, body)]).await;
    }
}
