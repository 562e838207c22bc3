//! Who has joined a job shares it: it lives as long as one of them waits, and nobody inherits a cancelled one.

use serde_json::json;
use stub_ollama::Stub;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{DUPLICATE, JOB, ask, calls, ended, even, with};
use crate::harness::client::{chat, chat_unstreamed, open};
use crate::harness::random::Random;
use crate::harness::{Foreman, get};

/// Rounds of joins that race with a leaving client.
const ROUNDS: u64 = 60;

async fn foreman(stub: &Stub) -> Foreman {
    let given = Some("inflight".to_owned());
    Foreman::start_with(stub, |raw| raw.duplicates = given).await.up().await
}

/// The first, who asked for it, may leave: the others have their answer. When the last one leaves, it is cancelled.
#[tokio::test]
async fn a_shared_job_is_cancelled_when_the_last_of_its_clients_leaves() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = foreman(&stub).await;
    let addr = foreman.addr;
    let mut body = chat("a", "x");
    body["options"] = json!({ "num_predict": 100_000 });
    let body = body.to_string();
    let begin = async || open(addr, with(addr, "/api/chat", body.clone(), &[])).await.unwrap();
    let mut first = begin().await;
    first.next().await.unwrap().unwrap();
    let (second, mut third) = (begin().await, begin().await);
    for joined in [&second, &third] {
        assert_eq!(joined.headers.get(DUPLICATE).unwrap(), "inflight");
        assert_eq!(joined.headers.get(JOB), first.headers.get(JOB));
    }
    drop(first);
    drop(second);
    // More bytes come than were on their way when the others left.
    for _ in 0..200 {
        third.next().await.unwrap().unwrap();
    }
    let id = third.headers.get(JOB).unwrap().to_str().unwrap().to_owned();
    assert_eq!(get(addr, &format!("/jobs/{id}")).await.json()["state"], "working");
    assert_eq!(stub.counts().client_gone, 0);
    drop(third);
    assert_eq!(ended(addr, &id).await["state"], "cancelled");
    stub.wait_until(|snapshot| snapshot.counts.client_gone == 1 && snapshot.generating.is_empty())
        .await;
    assert_eq!(calls(&stub, "\"x\""), 1);
}

/// While one client leaves another joins: it has the answer of that job, or of a job of its own, and never a cancelled one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_while_the_last_one_leaves_has_an_answer() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut random = Random::new(seed, 0);
    let stub = Stub::start(even(&["a"])).await;
    let foreman = foreman(&stub).await;
    let addr = foreman.addr;
    for round in 0..ROUNDS {
        let body =
            if round % 2 == 0 { chat("a", "x") } else { chat_unstreamed("a", "x") }.to_string();
        stub.hold_tokens();
        let blocker = (round % 4 < 2).then(|| {
            ask(addr, "/api/chat", chat("a", &format!("blocker {round}")).to_string(), &[])
        });
        if blocker.is_some() {
            stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        }
        let leaves = tokio::spawn(open(addr, with(addr, "/api/chat", body.clone(), &[])));
        match blocker {
            Some(_) => foreman.wait_for_depth(1).await,
            None => drop(stub.wait_until(|snapshot| snapshot.generating.len() == 1).await),
        }
        let mut joining = Vec::new();
        for turn in 0..3 {
            if turn == random.below(3) {
                leaves.abort();
            }
            joining.push(ask(addr, "/api/chat", body.clone(), &[]));
            for _ in 0..random.below(200) {
                tokio::task::yield_now().await;
            }
        }
        leaves.abort();
        stub.release_tokens();
        for client in joining {
            let answer = client.await.unwrap().unwrap();
            assert_eq!(
                (answer.status.as_u16(), answer.is_whole),
                (200, true),
                "round {round}: {}",
                answer.text()
            );
        }
        if let Some(blocker) = blocker {
            assert!(blocker.await.unwrap().unwrap().is_whole);
        }
    }
}

/// A client that left during its load leaves a job that only ends with the load: who comes then gets another one at once.
#[tokio::test]
async fn nobody_joins_a_job_that_was_left_during_its_load() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = foreman(&stub).await;
    let addr = foreman.addr;
    stub.hold_loads();
    let body = chat("a", "x").to_string();
    let mut leaves = TcpStream::connect(addr).await.unwrap();
    let head = format!(
        "POST /api/chat HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    leaves.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
    let left = get(addr, "/jobs").await.json()["data"][0]["job_id"].as_str().unwrap().to_owned();
    // Half a close is a leave; the other half tells that it was noticed.
    leaves.shutdown().await.unwrap();
    assert_eq!(leaves.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    let second = ask(addr, "/api/chat", body.clone(), &[]);
    foreman.wait_for_depth(1).await;
    assert_eq!(get(addr, &format!("/jobs/{left}")).await.json()["is_cancelling"], true);
    stub.release_loads();
    let second = second.await.unwrap().unwrap();
    assert_eq!((second.status.as_u16(), second.header(DUPLICATE)), (200, None));
    assert_ne!(second.header(JOB), Some(left.as_str()));
    assert_eq!(ended(addr, &left).await["state"], "cancelled");
    assert_eq!(calls(&stub, "\"x\""), 1);
}
