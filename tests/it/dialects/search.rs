//! Ollama searches the web by itself for some requests, and goes on with requests of its own. They usually do not come through
//! foreman. Where they do, they do not wait for the job that waits for them.

use std::time::Duration;

use serde_json::{Value, json};
use stub_ollama::{Capability, Stub, StubConfig};

use crate::harness::client::{Answer, chat_unstreamed, open, post, request};
use crate::harness::{DEADLINE, Foreman, model, stub_config};

const AGENT: &str = "ollama/0.33.0 (amd64 linux) Go/go1.26.6";

async fn searching(tweak: impl FnOnce(&mut StubConfig)) -> (Stub, Foreman) {
    let chatty = model("s").with(&[Capability::Completion, Capability::Tools]);
    let mut config = stub_config(&["a"]).model(chatty);
    tweak(&mut config);
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    (stub, foreman)
}

fn requests() -> [(&'static str, Value); 4] {
    let user = json!([{ "role": "user", "content": "search the news" }]);
    let tool = json!([{ "type": "web_search_20250305", "name": "web_search" }]);
    let messages = json!({ "model": "s", "max_tokens": 9, "messages": user, "tools": tool });
    let tool = json!([{ "type": "web_search" }]);
    let responses = json!({ "model": "s", "input": "search the news", "tools": tool });
    let streamed = |body: &Value| {
        let mut body = body.clone();
        body["stream"] = json!(true);
        body
    };
    [
        ("/v1/messages", streamed(&messages)),
        ("/v1/messages", messages),
        ("/v1/responses", streamed(&responses)),
        ("/v1/responses", responses),
    ]
}

/// The chats Ollama made, as it got them.
fn follow_ups(stub: &Stub) -> usize {
    let is_one = |agent: Option<&str>| agent.is_some_and(|agent| agent.starts_with("ollama/"));
    let log = stub.log();
    let chats = log.iter().filter(|entry| entry.path == "/api/chat");
    chats.filter(|entry| is_one(entry.header("user-agent"))).count()
}

async fn in_time(asking: impl Future<Output = Answer>) -> Answer {
    tokio::time::timeout(DEADLINE, asking).await.expect("wedged")
}

#[tokio::test]
async fn by_default_ollama_goes_on_without_foreman() {
    let (stub, foreman) = searching(|config| config.searches = 3).await;
    for (path, body) in requests() {
        stub.reset();
        let answer = in_time(post(foreman.addr, path, &body)).await;
        assert!(answer.status == 200 && answer.is_whole, "{path}: {}", answer.text());
        assert_eq!(follow_ups(&stub), 3, "{path}");
    }
    let status = foreman.status().await;
    assert_eq!(status["since_start"]["done"], 4, "the follow-ups are no jobs of foreman's");
}

/// `OLLAMA_HOST` leads to foreman, and the one slot is taken by the job that searches: its follow-ups pass all the same.
#[tokio::test]
async fn a_search_that_comes_back_to_foreman_passes() {
    let (stub, foreman) = searching(|config| config.searches = 3).await;
    stub.set_ollama_host(foreman.addr);
    for (path, body) in requests() {
        stub.reset();
        let answer = in_time(post(foreman.addr, path, &body)).await;
        assert!(answer.status == 200 && answer.is_whole, "{path}: {}", answer.text());
        assert_eq!(follow_ups(&stub), 3, "{path}");
    }
    let body = requests()[1].1.to_string();
    let packed = zstd::bulk::compress(body.as_bytes(), 3).unwrap();
    let asked = super::with_encoding(foreman.addr, "/v1/messages", "zstd", packed);
    let answer = in_time(async { open(foreman.addr, asked).await.unwrap().rest().await }).await;
    assert_eq!(answer.status, 200, "compressed: {}", answer.text());
    let status = foreman.status().await;
    assert_eq!(status["since_start"]["done"], 5, "the follow-ups are no jobs: {status:#}");
    assert_eq!(stub.counts().loads, 0, "and load nothing more");
}

/// Even a follow-up that foreman does not recognise wedges nothing: Ollama gives up when its time is over.
#[tokio::test]
async fn a_search_that_is_not_recognised_ends_with_ollamas_patience() {
    let (stub, foreman) = searching(|config| {
        config.search_budget = Duration::from_millis(300);
        config.search_agent = "strange".to_owned();
    })
    .await;
    stub.set_ollama_host(foreman.addr);
    let (path, body) = &requests()[1];
    let answer = in_time(post(foreman.addr, path, body)).await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(answer.text().contains("deadline exceeded"), "{}", answer.text());
    assert_eq!(post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await.status, 200);
    let status = foreman.wait_for(|status| status["queue"]["depth"] == 0).await;
    assert_eq!(status["since_start"]["cancelled"], 1, "the follow-up left the queue: {status:#}");
}

/// Without a job in flight that may search, the same request is a job like any other, whoever sends it.
#[tokio::test]
async fn nobody_else_passes_as_a_search() {
    let (stub, foreman) = searching(|_| ()).await;
    let call = json!({ "id": "c", "function": { "name": "web_search", "arguments": {} } });
    let follow_up = json!({ "model": "s", "stream": false, "messages": [
        { "role": "user", "content": "x" },
        { "role": "assistant", "content": "", "tool_calls": [call] },
        { "role": "tool", "content": "found" },
    ] });
    let mut asked = request(foreman.addr, "POST", "/api/chat", follow_up.to_string());
    asked.headers_mut().insert("user-agent", AGENT.parse().unwrap());
    let answer = open(foreman.addr, asked).await.unwrap().rest().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("x-foreman-job-id").is_some());
    assert_eq!(follow_ups(&stub), 1);
}
