//! `x-foreman-priority`: one of three words, on every queued route, for foreman alone.

use std::collections::BTreeMap;

use serde_json::Value;
use stub_ollama::{Capability, Stub};

use crate::harness::raw::{self, RawAnswer};
use crate::harness::{Foreman, model, stub_config};

const CHAT: &str = r#"{"model":"a","messages":[{"role":"user","content":"x"}]}"#;

const FORM: &str = "--X\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nhears\r\n--X\r\n\
    content-disposition: form-data; name=\"file\"; filename=\"s.wav\"\r\n\r\nRIFF\r\n--X--\r\n";

/// The queued routes, with a good body each.
const QUEUED: [(&str, &str); 7] = [
    ("/api/chat", CHAT),
    ("/api/generate", r#"{"model":"a","prompt":"x"}"#),
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", r#"{"model":"a","prompt":"x"}"#),
    ("/v1/responses", r#"{"model":"a","input":"x"}"#),
    ("/v1/messages", r#"{"model":"a","max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#),
    ("/v1/audio/transcriptions", FORM),
];

async fn start() -> (Stub, Foreman) {
    let mut config = stub_config(&["a"]);
    config.models.push(model("hears").with(&[Capability::Completion, Capability::Audio]));
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    (stub, foreman)
}

async fn ask(foreman: &Foreman, target: &str, lines: &[&str], body: &str) -> RawAnswer {
    let form = "Content-Type: multipart/form-data; boundary=X";
    let json = "Content-Type: application/json";
    let kind = if body == FORM { form } else { json };
    let lines: Vec<&str> = lines.iter().copied().chain([kind]).collect();
    raw::ask(foreman.addr, "POST", target, &lines, body.as_bytes()).await
}

/// A typing error must not make an urgent job of a nightly one, or the other way round.
#[tokio::test]
async fn a_word_that_is_no_priority_is_refused_in_each_shape() {
    let (stub, foreman) = start().await;
    let before = foreman.status().await["stored"].clone();
    let bad: [&[&str]; 4] = [
        &["X-Foreman-Priority: urgent"],
        &["X-Foreman-Priority:"],
        &["X-Foreman-Priority: batch, batch"],
        &["X-Foreman-Priority: batch", "X-Foreman-Priority: normal"],
    ];
    for (target, body) in QUEUED {
        for lines in bad {
            let answer = ask(&foreman, target, lines, body).await;
            assert_eq!(answer.status(), 400, "{target} {lines:?}: {}", answer.text());
            let told: Value = serde_json::from_str(&answer.text()).unwrap();
            let text = match target {
                "/api/chat" | "/api/generate" => &told["error"],
                _ => &told["error"]["message"],
            };
            assert_eq!(told["type"] == "error", target == "/v1/messages", "{told}");
            let text = text.as_str().unwrap_or_else(|| panic!("{target}: {told}"));
            assert!(text.contains("one of interactive, normal, batch"), "{text}");
        }
    }
    // Also where a client sends all of a large body before it reads.
    let large = "x".repeat(8 * 1024 * 1024);
    let answer = ask(&foreman, "/api/chat", bad[0], &large).await;
    assert_eq!(answer.status(), 400);
    assert_eq!(foreman.status().await["stored"], before, "nothing is stored");
    assert!(stub.log().iter().all(|entry| entry.method == "GET"), "nothing went upstream");
}

/// Each job is stored with its class, and Ollama never hears of it, whatever road the request takes.
#[tokio::test]
async fn a_priority_is_stored_and_never_sent_upstream() {
    let (stub, foreman) = start().await;
    let mut wanted = BTreeMap::new();
    let words = [("", "interactive"), ("batch", "batch"), ("NORMAL", "normal")];
    for ((target, body), (word, class)) in QUEUED.into_iter().zip(words.into_iter().cycle()) {
        let line = format!("X-FOREMAN-PRIORITY:  {word} ");
        let lines: Vec<&str> = ["X-Foreman-Other: 1"]
            .into_iter()
            .chain((!word.is_empty()).then_some(&*line))
            .collect();
        let answer = ask(&foreman, target, &lines, body).await;
        assert_eq!(answer.status(), 200, "{target}: {}", answer.text());
        let id = answer.head.header("x-foreman-job-id").unwrap().to_owned();
        wanted.insert(id, class.to_owned());
    }
    let beside = [
        ("/api/embed", r#"{"model":"embed","input":"x"}"#),
        ("/v1/embeddings", r#"{"model":"embed","input":"x"}"#),
        ("/api/show", r#"{"model":"a"}"#),
        ("/api/chat", r#"{"model":"nope","messages":[]}"#),
    ];
    for (target, body) in beside {
        let answer = ask(&foreman, target, &["X-Foreman-Priority: batch"], body).await;
        assert!(answer.head.header("x-foreman-job-id").is_none(), "{target} was queued");
    }
    let log = stub.log();
    assert!(log.len() > QUEUED.len() + beside.len());
    for entry in &log {
        let said = entry.headers.iter().find(|(name, _)| name.starts_with("x-foreman"));
        assert_eq!(said, None, "{} {}", entry.method, entry.path);
    }
    let database = rusqlite::Connection::open(foreman.db()).unwrap();
    let mut classes = database.prepare("SELECT id, class FROM job").unwrap();
    let rows = classes.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(rows.collect::<Result<BTreeMap<String, String>, _>>().unwrap(), wanted);
}

/// What is nobody's business but a job's is not judged elsewhere.
#[tokio::test]
async fn beside_the_queue_a_priority_means_nothing() {
    let (_stub, foreman) = start().await;
    let lines = ["X-Foreman-Priority: urgent"];
    let embed = ask(&foreman, "/api/embed", &lines, r#"{"model":"embed","input":"x"}"#).await;
    let show = ask(&foreman, "/api/show", &lines, r#"{"model":"a"}"#).await;
    assert_eq!((embed.status(), show.status()), (200, 200));
}
