//! A program of the kill test: it hands work in over the asynchronous surface.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::client::{Answer, request, try_open};
use crate::harness::{DEADLINE, get};

use super::ask::Ask;

/// The body of a submission.
pub(super) fn submission(ask: &Ask, hook: Option<&str>) -> Value {
    json!({ "endpoint": ask.shape.path(), "body": ask.body(), "state_webhook_url": hook })
}

/// A whole answer, if foreman lives to give it.
pub(super) async fn told(
    addr: SocketAddr,
    method: &str,
    path: &str,
    body: &Value,
) -> Option<Answer> {
    let sent = request(addr, method, path, body.to_string());
    let answer = try_open(addr, sent).await?.rest().await;
    answer.is_whole.then_some(answer)
}

/// Waits until nothing waits, runs or is to be told.
pub(super) async fn idle(addr: SocketAddr) {
    let mut status = Value::Null;
    let idle = tokio::time::timeout(DEADLINE, async {
        while status["queue"]["depth"] != 0
            || status["webhooks"]["pending"] != 0
            || status["running"].as_array().is_some_and(|running| !running.is_empty())
        {
            status = get(addr, "/status").await.json();
        }
    });
    assert!(idle.await.is_ok(), "it never came to rest: {status:#}");
}
