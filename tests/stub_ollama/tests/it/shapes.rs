//! Pins the bytes against exchanges recorded from a real Ollama: what is constant there must be
//! the same here, what varies (times, words, counts) only keeps its place.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::{finish, post, send};
use stub_ollama::{Capability, Model, Stub, StubConfig, expected_text};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

async fn stub() -> Stub {
    let all = [Capability::Completion, Capability::Tools, Capability::Thinking];
    Stub::start(StubConfig {
        fixed_time: true,
        pullable: vec![Model::new("new")],
        ..StubConfig::with_models([
            Model::new("gemma-a").parameter("num_ctx", "2048"),
            Model::new("thinker").with(&all),
            Model::embedding("e"),
        ])
    })
    .await
}

/// Cuts a recorded header block down to what does not vary.
fn header_names(head: &str) -> Vec<&str> {
    let mut names: Vec<&str> =
        head.lines().skip(1).map(|line| line.split(':').next().unwrap()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn native_streams_have_ollama_s_lines() {
    let stub = stub().await;
    let body = r#"{"model": "GEMMA-A", "messages": [{"role": "user", "content": "sea"}], "options": {"num_predict": 2, "seed": 7}}"#;
    let answer = post(&stub, "/api/chat", body).await;
    assert_eq!(
        header_names(&answer.head),
        ["Connection", "Content-Type", "Date", "Transfer-Encoding"]
    );
    assert!(answer.head.contains("Content-Type: application/x-ndjson\r\n"));
    let words: Vec<String> = expected_text("gemma-a:latest", "sea", Some(7), 2)
        .split_inclusive(' ')
        .map(|word| word.trim_end().replace('<', "\\u003c").replace('>', "\\u003e"))
        .collect();
    let stamp = "\"created_at\":\"2026-01-01T00:00:00Z\"";
    let word = |text: &str| {
        format!(
            "{{\"model\":\"GEMMA-A\",{stamp},\"message\":{{\"role\":\"assistant\",\"content\":\"{text}\"}},\"done\":false}}\n"
        )
        .replace('&', "\\u0026")
    };
    let last = format!(
        "{{\"model\":\"GEMMA-A\",{stamp},\"message\":{{\"role\":\"assistant\",\"content\":\"\"}},\
         \"done\":true,\"done_reason\":\"length\",\"total_duration\":1000000,\"load_duration\":1000000,\
         \"prompt_eval_count\":5,\"prompt_eval_duration\":1000000,\"eval_count\":2,\"eval_duration\":1000000}}\n"
    );
    assert_eq!(answer.body, word(&words[0]) + &word(&format!(" {}", words[1])) + &last);
    assert_eq!(answer.chunks, 3);
    stub.shutdown().await;
}

#[tokio::test]
async fn equal_requests_get_equal_bytes() {
    let stub = stub().await;
    for (path, body) in [
        ("/api/generate", r#"{"model":"gemma-a","prompt":"Hi","options":{"num_predict":5}}"#),
        (
            "/v1/chat/completions",
            r#"{"model":"thinker","messages":[{"content":"x"}],"stream":true}"#,
        ),
        ("/v1/responses", r#"{"model":"gemma-a","input":"Hi","stream":true}"#),
        ("/v1/messages", r#"{"model":"gemma-a","max_tokens":3,"messages":[{"content":"x"}]}"#),
        ("/api/embed", r#"{"model":"e","input":["a","b"]}"#),
    ] {
        let cold = post(&stub, path, body).await;
        let warm = post(&stub, path, body).await;
        assert_eq!(cold.status, 200, "{path}: {}", cold.body);
        assert_eq!(cold.body, warm.body, "{path}");
    }
    stub.shutdown().await;
}

#[tokio::test]
async fn embeddings_come_packed_to_who_asks_for_it() {
    let stub = stub().await;
    let answer = async |format: &str| {
        let body = format!(r#"{{"model":"e","input":"a"{format}}}"#);
        let answer = post(&stub, "/v1/embeddings", &body).await;
        let (_, rest) = answer.body.split_once(r#""embedding":"#).unwrap();
        let (vector, _) = rest.split_once(r#","index""#).unwrap();
        vector.trim_matches(['[', ']', '"']).to_owned()
    };
    let bytes: Vec<u8> = answer("")
        .await
        .split(',')
        .flat_map(|digits| digits.parse::<f32>().unwrap().to_le_bytes())
        .collect();
    assert!(!bytes.is_empty());
    assert_eq!(STANDARD.encode(bytes), answer(r#","encoding_format":"base64""#).await);
    stub.shutdown().await;
}

/// A chat with `gemma-a`, without its closing brace.
const CHAT: &str = r#"{"model":"gemma-a","messages":[{"role":"user","content":"x"}]"#;

/// Path, rest of the body after `CHAT` (or a whole body), status, answer.
const ERRORS: [(&str, &str, u16, &str); 15] = [
    (
        "/api/chat",
        "{bad",
        400,
        r#"{"error":"invalid character 'b' looking for beginning of object key string"}"#,
    ),
    ("/api/chat", "", 400, r#"{"error":"missing request body"}"#),
    ("/api/chat", "{\"messages\":[]}", 400, r#"{"error":"model is required"}"#),
    ("/api/generate", "{}", 404, r#"{"error":"model '' not found"}"#),
    ("/api/chat", "{\"model\":\"nope\"}", 404, r#"{"error":"model 'nope' not found"}"#),
    (
        "/api/embed",
        "{\"model\":\"nope\"}",
        404,
        r#"{"error":"model \"nope\" not found, try pulling it first"}"#,
    ),
    ("/api/show", "{\"model\":\"nope\"}", 404, r#"{"error":"model 'nope:latest' not found"}"#),
    (
        "/api/embed",
        "{\"model\":\"gemma-a\",\"input\":\"x\"}",
        501,
        r#"{"error":"This server does not support embeddings. Start it with `--embeddings`"}"#,
    ),
    ("/api/chat", ",\"keep_alive\":\"abc\"}", 400, r#"{"error":"time: invalid duration \"abc\""}"#),
    (
        "/api/chat",
        ",\"format\":\"xml\"}",
        500,
        r#"{"error":"invalid format: \"\\\"xml\\\"\"; expected \"json\" or a valid JSON Schema object"}"#,
    ),
    ("/api/chat", ",\"think\":true}", 400, r#"{"error":"\"gemma-a\" does not support thinking"}"#),
    (
        "/api/chat",
        ",\"tools\":[{}]}",
        400,
        r#"{"error":"registry.ollama.ai/library/gemma-a:latest does not support tools"}"#,
    ),
    (
        "/api/chat",
        ",\"stream\":\"false\"}",
        400,
        r#"{"error":"json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool"}"#,
    ),
    (
        "/api/chat",
        ",\"options\":{\"num_ctx\":\"x\"}}",
        500,
        r#"{"error":"option \"num_ctx\" must be of type integer"}"#,
    ),
    (
        "/api/chat",
        "{\"model\":\"x:cloud:local\"}",
        400,
        r#"{"error":"use either :local or :cloud, not both: \"x:cloud:local\""}"#,
    ),
];

#[tokio::test]
async fn errors_have_ollama_s_texts() {
    let stub = stub().await;
    for (path, rest, status, expected) in ERRORS {
        let body = if rest.starts_with(',') { format!("{CHAT}{rest}") } else { rest.to_owned() };
        let answer = post(&stub, path, &body).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, expected), "{path} {body}");
        assert!(answer.head.contains("Content-Type: application/json; charset=utf-8"));
    }
    let v1 = post(&stub, "/v1/chat/completions", r#"{"model":"nope","messages":[{}]}"#).await;
    let expected = "{\"error\":{\"message\":\"model 'nope' not found\",\"type\":\"not_found_error\",\"param\":null,\"code\":null}}\n";
    assert_eq!(v1.body, expected);
    assert!(v1.head.contains("Content-Type: application/json\r\n"));
    stub.shutdown().await;
}

#[tokio::test]
async fn load_and_unload_are_one_object() {
    let stub = stub().await;
    let load = post(&stub, "/api/chat", r#"{"model": "gemma-a", "messages": []}"#).await;
    assert_eq!(
        load.body,
        r#"{"model":"gemma-a","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}"#
    );
    assert_eq!(header_names(&load.head), ["Connection", "Content-Length", "Content-Type", "Date"]);
    let unload = post(&stub, "/api/generate", r#"{"model":"gemma-a","keep_alive":0}"#).await;
    assert_eq!(
        unload.body,
        r#"{"model":"gemma-a","created_at":"2026-01-01T00:00:00Z","response":"","done":true,"done_reason":"unload"}"#
    );
    stub.shutdown().await;
}

#[tokio::test]
async fn v1_chat_streams_usage_and_done_in_the_last_chunk() {
    let stub = stub().await;
    let body = r#"{"model": "gemma-a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "stream": true, "stream_options": {"include_usage": true}}"#;
    let answer = post(&stub, "/v1/chat/completions", body).await;
    assert_eq!(answer.chunks, 3);
    assert!(answer.head.contains("Content-Type: text/event-stream\r\n"));
    let events: Vec<&str> = answer.body.split_terminator("\n\n").collect();
    assert_eq!(events.len(), 5);
    assert!(events[0].contains("\"delta\":{\"role\":\"assistant\",\"content\":"));
    assert!(events[1].contains("\"delta\":{\"content\":\" "));
    assert!(
        events[2]
            .ends_with("\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}")
    );
    assert!(events[3].ends_with(
        "\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}"
    ));
    assert_eq!(events[4], "data: [DONE]");
    stub.shutdown().await;
}

#[tokio::test]
async fn messages_stream_one_event_a_chunk() {
    let stub = stub().await;
    let body = r#"{"model":"gemma-a","max_tokens":2,"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"stream":true}"#;
    let answer = post(&stub, "/v1/messages", body).await;
    let names: Vec<&str> =
        answer.body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    assert_eq!(answer.chunks, 7);
    assert!(answer.body.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"));
    stub.shutdown().await;
}

#[tokio::test]
async fn thinking_tools_and_formats_have_their_fields() {
    let stub = stub().await;
    let ask = |content: &str, rest: &str| {
        format!(
            "{{\"model\":\"thinker\",\"stream\":false,\"messages\":[{{\"content\":\"{content}\"}}]{rest}}}"
        )
    };
    let thinking = post(&stub, "/api/chat", &ask("x", "")).await;
    assert!(thinking.body.contains("\"thinking\":\""), "{}", thinking.body);
    let plain = post(&stub, "/api/chat", &ask("x", ",\"think\":false")).await;
    assert!(!plain.body.contains("thinking"));
    let tools = r#","think":false,"tools":[{"type":"function","function":{"name":"look"}}]"#;
    let called = post(&stub, "/api/chat", &ask("use the tool", tools)).await;
    assert!(called.body.contains("\"function\":{\"index\":0,\"name\":\"look\",\"arguments\":{"));
    let json = post(&stub, "/api/chat", &ask("x", ",\"think\":false,\"format\":\"json\"")).await;
    assert!(json.body.contains(r#""content":"{\"answer\":\""#), "{}", json.body);
    stub.shutdown().await;
}

#[tokio::test]
async fn odd_paths_hosts_and_origins_get_gin_s_answers() {
    let stub = stub().await;
    for (method, path, status, header) in [
        ("GET", "/nope", 404, "Content-Type: text/plain\r\n"),
        ("GET", "/api/chat", 405, "Allow: POST"),
        ("GET", "/api/tags/", 301, "Location: /api/tags\r\n"),
        ("POST", "/api/chat/", 307, "Location: /api/chat\r\n"),
        ("GET", "//api/version", 307, "Location: /api/version\r\n"),
        ("HEAD", "/", 200, "Content-Length: 17"),
    ] {
        let answer = send(&stub, method, path, "").await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.head.contains(header), "{path}: {}", answer.head);
    }
    for (headers, status) in [
        ("Host: evil.example", 403),
        ("Host: localhost\r\nOrigin: http://evil.example", 403),
        ("Host: localhost\r\nOrigin: http://localhost:3000", 200),
    ] {
        let mut stream = TcpStream::connect(stub.addr()).await.unwrap();
        let request =
            format!("GET /api/version HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(finish(stream).await.status, status, "{headers}");
    }
    stub.shutdown().await;
}

#[tokio::test]
async fn pulls_stream_progress_and_fail_in_band() {
    let stub = stub().await;
    let pulled = post(&stub, "/api/pull", r#"{"model":"new"}"#).await;
    assert!(pulled.body.starts_with("{\"status\":\"pulling manifest\"}\n"));
    assert!(pulled.body.ends_with("{\"status\":\"success\"}\n"));
    assert_eq!(post(&stub, "/api/chat", r#"{"model":"new"}"#).await.status, 200);
    let unknown = post(&stub, "/api/pull", r#"{"model":"nope"}"#).await;
    assert_eq!(unknown.status, 200);
    assert_eq!(
        unknown.body,
        "{\"status\":\"pulling manifest\"}\n{\"error\":\"pull model manifest: file does not exist\"}\n"
    );
    let created =
        r#"{"model":"mine","from":"gemma-a","parameters":{"num_ctx":512},"stream":false}"#;
    assert_eq!(post(&stub, "/api/create", created).await.body, r#"{"status":"success"}"#);
    assert_eq!(
        post(&stub, "/api/copy", r#"{"source":"mine","destination":"m2"}"#).await.status,
        200
    );
    let shown = post(&stub, "/api/show", r#"{"model":"m2"}"#).await;
    assert!(shown.body.contains("PARAMETER num_ctx 512"), "{}", shown.body);
    stub.shutdown().await;
}

/// Show tells the files of the runner first, and the parameters as Go prints them.
#[tokio::test]
async fn show_tells_the_files_and_the_parameters() {
    let model = Model::new("m")
        .blob("sha256-0a")
        .adapter("/b/sha256-0b")
        .projector("/b/sha256-0c")
        .parameter("num_ctx", "1048576")
        .parameter("stop", "<end>")
        .parameter("use_mmap", "false");
    let stub = Stub::start(StubConfig::with_models([model])).await;
    let shown = post(&stub, "/api/show", r#"{"model":"m"}"#).await.body;
    let files = r"FROM /var/lib/ollama/models/blobs/sha256-0a\nADAPTER /b/sha256-0b\nFROM /b/sha256-0c\nTEMPLATE ";
    assert!(shown.contains(files), "{shown}");
    assert!(
        shown.contains(r"PARAMETER num_ctx 1.048576e+06\nPARAMETER stop \u003cend\u003e\n"),
        "{shown}"
    );
    let column = " ".repeat(24);
    let text = format!(
        r#""parameters":"num_ctx{column}1.048576e+06\nstop   {column}\"\u003cend\u003e\"\nuse_mmap"#
    );
    assert!(shown.contains(&text), "{shown}");
    stub.shutdown().await;
}

/// A manifest's digest is that of its contents: a copy has it too, a change makes another.
#[tokio::test]
async fn a_digest_is_of_the_contents() {
    let stub = stub().await;
    let create = |name: &str, num_ctx: u32| {
        format!(
            r#"{{"model":"{name}","from":"gemma-a","parameters":{{"num_ctx":{num_ctx}}},"stream":false}}"#
        )
    };
    let digest = async |name: &str| {
        let tags = send(&stub, "GET", "/api/tags", "").await.body;
        let (_, entry) = tags.split_once(&format!("\"name\":\"{name}:latest\"")).unwrap();
        entry.split_once("\"digest\":\"").unwrap().1[..64].to_owned()
    };
    for (name, num_ctx) in [("one", 512), ("same", 512), ("other", 1024)] {
        post(&stub, "/api/create", &create(name, num_ctx)).await;
    }
    post(&stub, "/api/copy", r#"{"source":"one","destination":"copy"}"#).await;
    let first = digest("one").await;
    assert_eq!((&digest("same").await, &digest("copy").await), (&first, &first));
    assert_ne!(digest("other").await, first);
    post(&stub, "/api/create", &create("one", 1024)).await;
    assert_eq!(digest("one").await, digest("other").await);
    stub.shutdown().await;
}

#[tokio::test]
async fn blobs_are_counted_and_a_known_one_is_answered_unread() {
    let stub = stub().await;
    let path = format!("/api/blobs/sha256:{}", "ab".repeat(32));
    assert_eq!(send(&stub, "HEAD", &path, "").await.status, 404);
    let body = "x".repeat(100_000);
    assert_eq!(post(&stub, &path, &body).await.status, 201);
    assert_eq!(stub.counts().blob_bytes, 100_000);
    assert_eq!(send(&stub, "HEAD", &path, "").await.status, 200);
    // Announces a gigabyte and sends nothing of it: the answer comes all the same.
    let mut stream = TcpStream::connect(stub.addr()).await.unwrap();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = finish(stream).await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.to_lowercase().contains("connection: close"), "{}", answer.head);
    assert_eq!(post(&stub, "/api/blobs/sha256:zz", "").await.status, 400);
    stub.shutdown().await;
}

#[tokio::test]
async fn audio_forms_name_their_model() {
    let stub = stub().await;
    let form = "--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ngemma-a\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--B--\r\n";
    let mut stream = TcpStream::connect(stub.addr()).await.unwrap();
    let head = format!(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = finish(stream).await;
    assert!(answer.status == 200 && answer.body.starts_with("{\"text\":\""), "{}", answer.body);
    assert_eq!(stub.log()[0].model.as_deref(), Some("gemma-a"));
    stub.shutdown().await;
}

#[tokio::test]
async fn bodies_are_read_as_go_reads_them() {
    let stub = stub().await;
    for body in [
        r#"{"MODEL":"nope","Model":"gemma-a","prompt":"x"} trailing"#,
        r#"{"model":"gemma-a","prompt":"\ud800","unknown":[{}],"stream":null}"#,
    ] {
        assert_eq!(post(&stub, "/api/generate", body).await.status, 200, "{body}");
    }
    stub.shutdown().await;
}
