//! Closed loops: clients that ask, read the answer, and ask again at once.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::harness::DEADLINE;
use crate::harness::client::{Answer, open, post, request};

/// How an agent goes on after an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    /// Another question, over the same connection.
    KeepsConnection,
    /// The conversation so far and another question, over a new connection.
    GrowsConversation,
    /// A question that goes on from nothing, over a new connection: nothing tells this agent from others.
    SingleTurn,
    /// A run of the `ollama` program for each question: it looks whether the server and the model are there, then asks.
    ShellLoop,
}

/// A connection that is kept. Dropping it closes it.
struct Connection {
    addr: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    async fn open(addr: SocketAddr) -> Connection {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Connection { addr, sender }
    }

    async fn chat(&mut self, body: &Value) {
        self.sender.ready().await.unwrap();
        let mut asked = request(self.addr, "POST", "/api/chat", body.to_string());
        asked.headers_mut().insert("user-agent", "agent/1".parse().unwrap());
        let answer = timeout(DEADLINE, self.sender.send_request(asked)).await;
        let answer = answer.expect("no answer came").unwrap();
        assert_eq!(answer.status(), 200);
        let body = timeout(DEADLINE, answer.into_body().collect()).await;
        let body = body.expect("no end came").unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("\"done\":true"));
    }
}

/// Asks that many times, each time as soon as the last answer was read; the models by turns.
pub(super) async fn agent(addr: SocketAddr, models: &[&str], steps: usize, manner: Manner) {
    let model = |step: usize| models[step % models.len()];
    let turn = |step: usize| json!({ "role": "user", "content": format!("question {step}") });
    match manner {
        Manner::KeepsConnection => {
            let mut connection = Connection::open(addr).await;
            for step in 0..steps {
                connection.chat(&json!({ "model": model(step), "messages": [turn(step)] })).await;
            }
        }
        Manner::GrowsConversation => {
            let mut messages = Vec::new();
            for step in 0..steps {
                let question = format!("question {step} to {}", model(step));
                messages.push(json!({ "role": "user", "content": question }));
                let body = json!({ "model": model(step), "messages": messages, "stream": false });
                messages.push(asked(addr, "/api/chat", &body).await.json()["message"].clone());
            }
        }
        Manner::SingleTurn => {
            for step in 0..steps {
                let messages = [turn(step)];
                let body = json!({ "model": model(step), "messages": messages, "stream": false });
                asked(addr, "/api/chat", &body).await;
            }
        }
        Manner::ShellLoop => {
            for step in 0..steps {
                let found = open(addr, request(addr, "HEAD", "/", String::new())).await.unwrap();
                assert_eq!(found.status, 200);
                asked(addr, "/api/show", &json!({ "model": model(step) })).await;
                let body = json!({ "model": model(step), "prompt": format!("question {step}") });
                asked(addr, "/api/generate", &body).await;
            }
        }
    }
}

async fn asked(addr: SocketAddr, path: &str, body: &Value) -> Answer {
    let answer = post(addr, path, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// An agent for each of these lists of models, all at once. Answers the time until the last one has ended.
pub(super) async fn agents(
    addr: SocketAddr,
    lists: &[&'static [&'static str]],
    steps: usize,
    manner: Manner,
) -> Duration {
    let began = Instant::now();
    let running: Vec<_> =
        lists.iter().map(|models| tokio::spawn(agent(addr, models, steps, manner))).collect();
    for agent in running {
        agent.await.unwrap();
    }
    began.elapsed()
}
