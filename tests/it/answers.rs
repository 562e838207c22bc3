//! Answers reach their clients byte by byte as Ollama sends them, and no client can hold Ollama up.

use serde_json::json;
use stub_ollama::{Stub, StubConfig};

use crate::harness::client::{chat, chat_unstreamed, post, post_stream};
use crate::harness::{Foreman, stub_config};

/// A stub that makes large answers as fast as it can.
fn quick() -> StubConfig {
    let wait_max = crate::harness::DEADLINE;
    StubConfig { token_time: std::time::Duration::ZERO, wait_max, ..stub_config(&["a"]) }
}

/// The first chunk is there while the stub still holds the rest back.
#[tokio::test]
async fn a_stream_flows_chunk_by_chunk() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    post(foreman.addr, "/api/chat", &chat_unstreamed("a", "warm")).await;
    let body = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 400 } });
    let mut stream = post_stream(foreman.addr, "/api/generate", &body).await;
    let first = stream.next().await.unwrap().unwrap();
    assert!(first.ends_with(b"}\n") && first.iter().filter(|byte| **byte == b'\n').count() == 1);
    assert_eq!(stub.snapshot().generating.len(), 1, "the rest is still being made");
    let rest = stream.rest().await;
    assert!(rest.is_whole && rest.text().contains("\"done\":true"));
}

/// Timings and the id travel as headers.
#[tokio::test]
async fn answers_name_their_job_and_its_waits() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let cold = post(foreman.addr, "/api/chat", &chat("a", "x")).await;
    let load_ms: i64 = cold.header("x-foreman-load-ms").unwrap().parse().unwrap();
    assert!(load_ms >= 20, "the stub takes 20 ms to load: {load_ms}");
    assert!(cold.header("x-foreman-queue-ms").is_some());
    let warm = post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await;
    assert_eq!(warm.header("x-foreman-load-ms"), Some("0"));
    assert_ne!(warm.header("x-foreman-job-id"), cold.header("x-foreman-job-id"));
}

/// A client that reads nothing: Ollama is drained all the same, the next job runs, and the client later gets every byte.
#[tokio::test]
async fn a_stalled_client_never_holds_ollama_up() {
    let config = quick();
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    // More than the sockets' buffers and the in-memory part of an output hold together.
    let body = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 60_000 } });
    let stalled = post_stream(foreman.addr, "/api/generate", &body).await;
    stub.wait_until(|snapshot| snapshot.generating.is_empty()).await;
    let other = post(foreman.addr, "/api/chat", &chat_unstreamed("a", "next")).await;
    assert_eq!(other.status, 200);
    let answer = stalled.rest().await;
    assert!(answer.is_whole);
    let expected = stub_ollama::expected_text("a:latest", "x", None, 60_000);
    assert!(answer.streamed_text() == expected, "{} bytes", answer.body.len());
}

/// Beyond `FOREMAN_ANSWER_MAX` an answer fails in-band; the upstream is not read on.
#[tokio::test]
async fn an_answer_beyond_the_limit_fails_in_band() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman =
        Foreman::start_with(&stub, |raw| raw.answer_max = Some("4KiB".to_owned())).await.up().await;
    let body = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 2000 } });
    let answer = post_stream(foreman.addr, "/api/generate", &body).await.rest().await;
    assert!(!answer.is_whole, "the connection is cut");
    let last = answer.text().lines().last().unwrap().to_owned();
    assert_eq!(last, r#"{"error":"the answer is larger than 4096 bytes"}"#);
    stub.wait_until(|snapshot| snapshot.counts.client_gone == 1 && snapshot.generating.is_empty())
        .await;
    let mut unstreamed = body.clone();
    unstreamed["stream"] = json!(false);
    let answer = post(foreman.addr, "/api/generate", &unstreamed).await;
    assert_eq!(answer.status, 500);
    assert!(answer.json()["error"].as_str().unwrap().contains("larger than 4096 bytes"));
}

/// Large answers are kept in a file, are whole, and small ones in the row.
#[tokio::test]
async fn a_large_unstreamed_answer_is_whole() {
    let config = quick();
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = json!({ "model": "a", "prompt": "x", "stream": false, "options": { "num_predict": 150_000 } });
    let answer = post(foreman.addr, "/api/generate", &body).await;
    assert!(answer.is_whole);
    let text = answer.json()["response"].as_str().unwrap().to_owned();
    assert!(text == stub_ollama::expected_text("a:latest", "x", None, 150_000));
    let folder = foreman.db().with_extension("db.answers");
    let kept: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
    assert_eq!(kept.len(), 1);
    let kept = std::fs::read(kept[0].as_ref().unwrap().path()).unwrap();
    assert!(kept == answer.body, "the file holds {} of {} bytes", kept.len(), answer.body.len());
}

/// A death between the file of an answer and its row leaves the file. (Since each attempt has one of its own, with its
/// number behind the job's id, none was ever known as a job's, and all stayed for ever.)
#[tokio::test]
async fn the_file_of_an_answer_that_no_row_names_goes_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let answers = folder.path().join("foreman.db.answers");
    std::fs::create_dir(&answers).unwrap();
    let orphan = answers.join("01ARZ3NDEKTSV4RRFFQ69G5FAV.2");
    let others = answers.join("notes.txt");
    for file in [&orphan, &others] {
        std::fs::write(file, "x").unwrap();
    }
    let stub = Stub::start(quick()).await;
    let foreman = Foreman::start_on(&stub.url(), &db, |_| ()).await.up().await;
    foreman.wait_for(|_| !orphan.exists()).await;
    assert!(others.exists(), "what is no job's is not foreman's");
    foreman.stop().await;
}

/// A client that reads only when all is over still gets the error record at the end of a broken stream, and then the cut.
#[tokio::test]
async fn a_late_client_gets_the_last_words_of_a_broken_stream() {
    let stub = Stub::start(quick()).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let fault = stub_ollama::Action::EndWithoutDone(20_000);
    stub.faults(stub_ollama::Fault::new(fault).path("/api/generate").skip(1));
    let body =
        json!({ "model": "a", "prompt": "x", "options": { "num_predict": 30_000 } }).to_string();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut client = socket.connect(foreman.addr).await.unwrap();
    let head = format!(
        "POST /api/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut client, head.as_bytes()).await.unwrap();
    foreman.wait_for(|status| status["since_start"]["failed"] == 1).await;
    let mut seen = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut client, &mut seen).await.unwrap();
    let text = String::from_utf8_lossy(&seen);
    let last = text.lines().rfind(|line| line.starts_with("{\"")).unwrap();
    assert!(last.starts_with("{\"error\""), "{last}");
    assert!(!text.ends_with("0\r\n\r\n"), "and then the cut");
}
