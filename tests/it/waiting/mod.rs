//! Waits that clients survive: a stream that waits begins early, with bytes that every client ignores, and what follows is
//! the answer; clients that try again by themselves find their job.

mod early;
mod early_ends;
mod retries;

use std::net::SocketAddr;

use stub_ollama::Stub;
use tokio::task::JoinHandle;

use crate::harness::client::{chat, post};
use crate::harness::{Answer, Foreman};
use crate::same::{body_of, even};

const NATIVE: [&str; 2] = ["/api/chat", "/api/generate"];
const EVENTS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/responses"];

/// A short interval, so that many bytes come in a test.
const INTERVAL: &str = "100ms";

fn given(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// A stub whose only slot is taken until its tokens are released, and foreman before it.
async fn busy(
    tweak: impl FnOnce(&mut foreman::config::Raw),
) -> (Stub, Foreman, JoinHandle<Answer>) {
    let stub = Stub::start(even(&["a", "b"])).await;
    let foreman = Foreman::start_with(&stub, |raw| {
        raw.waiting_interval = given(INTERVAL);
        tweak(raw);
    });
    let foreman = foreman.await.up().await;
    let before = occupy(&stub, foreman.addr).await;
    (stub, foreman, before)
}

/// Takes the slot: whatever comes next waits.
async fn occupy(stub: &Stub, addr: SocketAddr) -> JoinHandle<Answer> {
    stub.hold_tokens();
    let before = tokio::spawn(async move { post(addr, "/api/chat", &chat("b", "before")).await });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    before
}

/// What the stub itself answers to this request.
async fn direct(stub: &Stub, route: &str, is_streamed: bool) -> Answer {
    post(stub.addr(), route, &body_of(route, "a", "x", is_streamed)).await
}
