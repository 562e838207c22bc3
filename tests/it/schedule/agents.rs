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
use crate::harness::client::{post, request};

/// How an agent goes on after an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    /// Another question, over the same connection.
    KeepsConnection,
    /// The conversation so far and another question, over a new connection.
    GrowsConversation,
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

/// Asks that many times, each time as soon as the last answer was read.
pub(super) async fn agent(addr: SocketAddr, model: &str, steps: usize, manner: Manner) {
    match manner {
        Manner::KeepsConnection => {
            let mut connection = Connection::open(addr).await;
            for step in 0..steps {
                let message = json!({ "role": "user", "content": format!("question {step}") });
                let body = json!({ "model": model, "messages": [message] });
                connection.chat(&body).await;
            }
        }
        Manner::GrowsConversation => {
            let mut messages = Vec::new();
            for step in 0..steps {
                let question = format!("question {step} to {model}");
                messages.push(json!({ "role": "user", "content": question }));
                let body = json!({ "model": model, "messages": messages, "stream": false });
                let answer = post(addr, "/api/chat", &body).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                messages.push(answer.json()["message"].clone());
            }
        }
    }
}

/// One agent a model, all at once. Answers the time until the last one has ended.
pub(super) async fn agents(
    addr: SocketAddr,
    models: &[&'static str],
    steps: usize,
    manner: Manner,
) -> Duration {
    let began = Instant::now();
    let running: Vec<_> =
        models.iter().map(|model| tokio::spawn(agent(addr, model, steps, manner))).collect();
    for agent in running {
        agent.await.unwrap();
    }
    began.elapsed()
}
