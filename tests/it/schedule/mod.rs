//! The scheduler on the real program: how many loads it needs, who is served when, and what it does when Ollama or
//! somebody beside it does not play along. What is measured is compared with what is measured beside it, never with a clock.

mod agents;
mod beside;
mod classes;
mod embed_visits;
mod embeds;
mod external;
mod failed_loads;
mod fair;
mod hold;
mod invariants;
mod learned;
mod many_keys;
mod parallel;
mod random_day;
mod rotation;
mod wedge;

use std::net::SocketAddr;

use serde_json::Value;
use stub_ollama::Stub;
use tokio::task::JoinHandle;

use crate::harness::Foreman;
use crate::harness::client::{Answer, chat_unstreamed, open, post, request};

/// Asks in the background, without streaming.
fn ask(addr: SocketAddr, model: &str, text: &str) -> JoinHandle<Answer> {
    let body = chat_unstreamed(model, text);
    tokio::spawn(async move { post(addr, "/api/chat", &body).await })
}

/// The same in a class.
fn ask_as(addr: SocketAddr, class: &str, model: &str, text: &str) -> JoinHandle<Answer> {
    let body = chat_unstreamed(model, text).to_string();
    let mut asked = request(addr, "POST", "/api/chat", body);
    asked.headers_mut().insert("x-foreman-priority", class.parse().unwrap());
    tokio::spawn(async move { open(addr, asked).await.unwrap().rest().await })
}

/// Waits for an answer, which must be a good one.
async fn served(client: JoinHandle<Answer>) -> Answer {
    let answer = client.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.is_whole);
    answer
}

/// Asks, and waits for the answer.
async fn serve(addr: SocketAddr, model: &str, text: &str) -> Answer {
    served(ask(addr, model, text)).await
}

/// Waits until that many jobs are known: waiting, loading or working.
async fn known(foreman: &Foreman, jobs: u64) {
    foreman
        .wait_for(|status| {
            let running = status["running"].as_array().unwrap().len();
            status["queue"]["depth"].as_u64().unwrap() + u64::try_from(running).unwrap() == jobs
        })
        .await;
}

/// The chats the stub was given, in order: the model and the last message of each.
fn chats(stub: &Stub) -> Vec<(String, String)> {
    let log = stub.log();
    let chats = log.iter().filter(|entry| entry.path == "/api/chat");
    chats
        .filter_map(|entry| {
            let body: Value = serde_json::from_slice(&entry.body).ok()?;
            let last = body["messages"].as_array()?.last()?;
            let model = body["model"].as_str()?.to_owned();
            Some((model, last["content"].as_str()?.to_owned()))
        })
        .collect()
}

/// The last messages of the chats the stub was given, in order.
fn texts(stub: &Stub) -> Vec<String> {
    chats(stub).into_iter().map(|(_, text)| text).collect()
}

/// When foreman asked the stub to load a model, and nothing else of it, in milliseconds since the stub started.
fn load_times(stub: &Stub, model: &str) -> Vec<u128> {
    let is_load = |body: &Value| {
        body["model"].as_str().and_then(|name| name.split(':').next()) == Some(model)
            && body["keep_alive"] == -1
            && body["prompt"].is_null()
    };
    let log = stub.log();
    let loads = log.iter().filter(|entry| {
        entry.path == "/api/generate"
            && serde_json::from_slice(&entry.body).is_ok_and(|body| is_load(&body))
    });
    loads.map(|entry| entry.arrived_at.as_millis()).collect()
}

/// The reasons of the last decisions, newest first, each as `decision reason lane`.
fn decisions(status: &Value) -> Vec<String> {
    let decisions = status["scheduler"]["decisions"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    decisions
        .iter()
        .map(|one| [&one["decision"], &one["reason"], &one["lane"]].map(text).join(" "))
        .collect()
}

/// A setting that is given.
fn given(text: &str) -> Option<String> {
    Some(text.to_owned())
}
