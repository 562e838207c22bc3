//! Following an answer: from any byte, at any pace, by anybody; each gets the bytes that Ollama sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use stub_ollama::{Action, Fault, Stub};
use tokio::task::JoinHandle;

use crate::harness::client::{Stream, chat, chat_unstreamed, post_stream};
use crate::harness::jobs::{
    cancel, done, ended, follow, generate, output, problem, submit, submit_scripted, wait_for,
    wait_until_state,
};
use crate::harness::random::Random;
use crate::harness::upstream::Upstream;
use crate::harness::{Foreman, stub_config};

/// Lines of random lengths, so many bytes at least, and the end mark.
fn answer(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut lines = String::new();
    while lines.len() < bytes {
        let length = usize::try_from(random.below(4_000)).unwrap();
        let letter = random.one_of(&["a", "b", "c", "d"]);
        lines.push_str(&format!("{{\"response\":\"{}\",\"done\":false}}\n", letter.repeat(length)));
    }
    lines.push_str("{\"response\":\"\",\"done\":true,\"eval_count\":7}\n");
    lines.into_bytes()
}

/// A follower that is always ahead of all others, and counts.
fn lead(mut stream: Stream) -> (Arc<AtomicUsize>, JoinHandle<Vec<u8>>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let reading = tokio::spawn(async move {
        let mut bytes = Vec::new();
        while let Some(more) = stream.next().await {
            bytes.extend_from_slice(&more.unwrap());
            counted.store(bytes.len(), Ordering::Relaxed);
        }
        bytes
    });
    (count, reading)
}

/// Property: whoever begins wherever and reads however slowly gets exactly the rest. The answer is larger than what is kept in
/// memory.
#[tokio::test]
async fn a_follower_from_any_byte_gets_exactly_the_rest() {
    let seed = 20_261_124;
    println!("seed {seed}");
    let mut random = Random::new(seed, 0);
    let mut upstream = Upstream::with_models(&["a"]).await;
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    let whole = answer(&mut random, 3 * 1024 * 1024);
    let id = submit_scripted(foreman.addr, &generate("a", 1)).await;
    let mut asked = upstream.next().await;
    asked.begin_lines().await;
    let (mut sent, mut followers, mut slow) = (0, Vec::new(), Vec::new());
    asked.chunk(&whole[..5_000]).await;
    sent += 5_000;
    let leader = follow(foreman.addr, &id, "?stream=true").await;
    assert_eq!(leader.headers["x-foreman-attempt"], "1");
    let (count, leader) = lead(leader);
    while sent < whole.len() {
        let piece = usize::try_from(random.below(60_000)).unwrap() + 1;
        let piece = piece.min(whole.len() - sent);
        if random.below(4) == 0 {
            let seen = u64::try_from(count.load(Ordering::Relaxed)).unwrap();
            let offset = random.below(seen + 1);
            let query = format!("?stream=true&offset={offset}&attempt=1");
            let stream = follow(foreman.addr, &id, &query).await;
            assert_eq!(stream.status, 200);
            let offset = usize::try_from(offset).unwrap();
            match random.below(3) {
                0 => slow.push((offset, stream)),
                _ => followers.push((offset, tokio::spawn(stream.rest()))),
            }
        }
        asked.chunk(&whole[sent..sent + piece]).await;
        sent += piece;
    }
    asked.end().await;
    done(foreman.addr, &id).await;
    assert!(leader.await.unwrap() == whole);
    for (offset, stream) in slow {
        followers.push((offset, tokio::spawn(stream.rest())));
    }
    assert!(followers.len() > 5);
    for (offset, follower) in followers {
        let got = follower.await.unwrap();
        assert!(
            got.is_whole && got.body == whole[offset..],
            "from {offset}: {} bytes",
            got.body.len()
        );
    }
    for _ in 0..10 {
        let offset = random.below(u64::try_from(whole.len()).unwrap() + 1);
        let stream = random.one_of(&["", "&stream=true"]);
        let got = output(foreman.addr, &id, &format!("?offset={offset}&attempt=1{stream}")).await;
        assert_eq!(got.header("x-foreman-attempt"), Some("1"));
        assert!(got.is_whole && got.body == whole[usize::try_from(offset).unwrap()..]);
    }
    assert!(output(foreman.addr, &id, "").await.body == whole);
}

#[tokio::test]
async fn a_follower_that_drops_and_comes_back_loses_no_byte() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let id = submit(foreman.addr, &generate("a", 400)).await;
    let mut got = Vec::new();
    let mut returns = 0;
    'whole: loop {
        let query = format!("?stream=true&offset={}&attempt=1", got.len());
        let query = if got.is_empty() { "?stream=true" } else { &query };
        let mut stream = follow(foreman.addr, &id, query).await;
        assert_eq!(stream.status, 200);
        for _ in 0..20 {
            match stream.next().await {
                Some(bytes) => got.extend_from_slice(&bytes.unwrap()),
                None => break 'whole,
            }
        }
        returns += 1;
    }
    assert!(returns > 1, "it read all at once");
    done(foreman.addr, &id).await;
    assert!(output(foreman.addr, &id, "").await.body == got);
}

#[tokio::test]
async fn an_offset_belongs_to_an_attempt_and_ends_with_the_answer() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let id = submit(addr, &generate("a", 5)).await;
    done(addr, &id).await;
    let bytes = output(addr, &id, "").await.body.len();
    problem(&output(addr, &id, "?offset=1").await, 400, "malformed-parameter");
    for bad in ["?attempt=0", "?offset=-1", "?attempt=x", "?stream=maybe", "?ofset=1"] {
        problem(&output(addr, &id, bad).await, 400, "malformed-parameter");
    }
    let at_the_end = output(addr, &id, &format!("?offset={bytes}&attempt=1")).await;
    assert_eq!((at_the_end.status.as_u16(), at_the_end.body.len()), (200, 0));
    let beyond = output(addr, &id, &format!("?offset={}&attempt=1", bytes + 1)).await;
    problem(&beyond, 416, "offset-beyond-answer");
    let other = problem(&output(addr, &id, "?attempt=2").await, 409, "attempt-replaced");
    assert_eq!(other["attempt"], 1);
    stub.hold_tokens();
    let id = submit(addr, &generate("a", 5)).await;
    let refused = output(addr, &id, "").await;
    problem(&refused, 409, "not-finished");
    assert!(refused.header("retry-after").is_some());
    stub.release_tokens();
}

/// Asked for before anything is there, it begins when the answer does.
#[tokio::test]
async fn an_answer_can_be_followed_before_it_begins() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for body in [chat("a", "x"), chat_unstreamed("a", "x"), chat("nobody", "x")] {
        stub.hold_tokens();
        let running = foreman.occupy(&stub, "a").await;
        let id = submit(foreman.addr, &body).await;
        let follower = tokio::spawn({
            let (addr, id) = (foreman.addr, id.clone());
            async move { follow(addr, &id, "?stream=true").await.rest().await }
        });
        wait_until_state(foreman.addr, &id, "queued").await;
        stub.release_tokens();
        let got = follower.await.unwrap();
        let status = if body["model"] == "a" { "200" } else { "404" };
        assert_eq!(got.header("x-foreman-status"), Some(status));
        assert!(got.is_whole);
        for id in [&running, &id] {
            ended(foreman.addr, id).await;
        }
        assert_eq!(output(foreman.addr, &id, "").await.body, got.body);
    }
}

/// The stream of a waiting client can be looked at by somebody else, whose leaving means nothing.
#[tokio::test]
async fn a_job_of_a_waiting_client_can_be_followed_too() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 200 } });
    let client = post_stream(foreman.addr, "/api/generate", &body).await;
    let id = client.headers["x-foreman-job-id"].to_str().unwrap().to_owned();
    let mut leaves = follow(foreman.addr, &id, "?stream=true").await;
    leaves.next().await.unwrap().unwrap();
    drop(leaves);
    let stays = follow(foreman.addr, &id, "?stream=true").await.rest().await;
    let client = client.rest().await;
    assert!(stays.is_whole && client.is_whole && stays.body == client.body);
    assert_eq!(done(foreman.addr, &id).await["is_async"], false);
}

/// The follower of a client that leaves is told that the job is over.
#[tokio::test]
async fn a_job_whose_client_leaves_is_cancelled_although_it_is_followed() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 100_000 } });
    let client = post_stream(foreman.addr, "/api/generate", &body).await;
    let id = client.headers["x-foreman-job-id"].to_str().unwrap().to_owned();
    let mut follower = follow(foreman.addr, &id, "?stream=true").await;
    follower.next().await.unwrap().unwrap();
    drop(client);
    let rest = follower.rest().await;
    assert!(!rest.is_whole);
    assert!(rest.text().lines().last().unwrap().contains("\"error\""), "{}", rest.text());
    assert_eq!(ended(foreman.addr, &id).await["state"], "cancelled");
    stub.wait_until(|snapshot| snapshot.counts.client_gone == 1).await;
}

/// An error record in the shape of the route, and a cut: a broken answer never ends as a whole one does.
#[tokio::test]
async fn followers_of_a_cancelled_job_are_told_and_cut() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for (path, begin) in [
        ("/api/chat", "{\"error\":\""),
        ("/v1/chat/completions", "data: {\"error\":{"),
        ("/v1/messages", "data: {\"type\":\"error\""),
    ] {
        let body = json!({ "model": "a", "stream": true, "max_tokens": 100_000,
            "options": { "num_predict": 100_000 },
            "messages": [{ "role": "user", "content": "x" }] });
        let id = submit(foreman.addr, &json!({ "endpoint": path, "body": body })).await;
        let mut follower = follow(foreman.addr, &id, "?stream=true").await;
        follower.next().await.unwrap().unwrap();
        cancel(foreman.addr, &id).await;
        let rest = follower.rest().await;
        assert!(!rest.is_whole);
        let last = rest.text().trim_end().lines().last().unwrap().to_owned();
        assert!(last.starts_with(begin) && last.contains("cancelled"), "{path}: {last}");
        ended(foreman.addr, &id).await;
        for query in ["", "?stream=true"] {
            problem(&output(foreman.addr, &id, query).await, 409, "no-answer");
        }
    }
}

/// An answer that is decided but whose connection stays open is whole for those who follow it.
#[tokio::test]
async fn an_answer_is_whole_at_its_end_mark() {
    let mut upstream = Upstream::with_models(&["a"]).await;
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    let id = submit_scripted(foreman.addr, &generate("a", 1)).await;
    let mut asked = upstream.next().await;
    asked.begin_lines().await;
    asked.chunk("{\"response\":\"x\",\"done\":false}\n{\"response\":\"\",\"done\":true}\n").await;
    let follower = follow(foreman.addr, &id, "?stream=true").await.rest().await;
    assert!(follower.is_whole && follower.text().ends_with("\"done\":true}\n"));
    wait_for(foreman.addr, &id, |object| object["state"] == "done").await;
}

/// It is told as it came, once, and the stream does not end as a whole one.
#[tokio::test]
async fn an_error_of_ollamas_inside_a_stream_is_passed_on_and_cut() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let text = Some("no more of this".to_owned());
    stub.faults(Fault::new(Action::ErrorAfterChunks { chunks: 3, text }).path("/api/chat"));
    stub.hold_tokens();
    let id = submit(foreman.addr, &chat("a", "x")).await;
    let follower = tokio::spawn({
        let (addr, id) = (foreman.addr, id.clone());
        async move { follow(addr, &id, "?stream=true").await.rest().await }
    });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    foreman.status().await;
    stub.release_tokens();
    let object = ended(foreman.addr, &id).await;
    assert_eq!((&object["state"], &object["attempt"]), (&json!("failed"), &json!(1)));
    assert_eq!(object["error"]["message"], "no more of this");
    let got = follower.await.unwrap();
    // It may have come too late for the stream.
    if got.status == 200 {
        assert!(!got.is_whole && got.text().matches("\"error\"").count() == 1, "{}", got.text());
    }
    problem(&output(foreman.addr, &id, "").await, 409, "no-answer");
}
