//! Everything at once: what clients do in the moment in which something ends, and a day of random doings after which each job has
//! one history that all tell alike.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use stub_ollama::Stub;
use tokio::time::timeout;

use crate::harness::client::{chat, post, post_stream};
use crate::harness::jobs::{
    Event, Events, act, done, ended, follow, generate, object, output, submit, wait_for,
};
use crate::harness::random::Random;
use crate::harness::{DEADLINE, Foreman, send, stub_config};

/// The answer of a job that is tried again in the moment in which it ends is that of its second life alone.
#[tokio::test]
async fn a_retry_right_at_the_end_has_an_answer_of_its_own() {
    let mut config = stub_config(&["a"]);
    config.fixed_time = true;
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let mut body = generate("a", 12);
    let straight = post(stub.addr(), "/api/generate", &body["body"]).await.text();
    body["priority"] = json!("interactive");
    for _ in 0..40 {
        let mut events = Events::open(addr, "/events", None).await;
        let id = submit(addr, &body).await;
        let mut follower = follow(addr, &id, "?stream=true").await;
        follower.next().await.unwrap().unwrap();
        // It may be done by now.
        act(addr, &id, "cancel").await;
        loop {
            let event = events.next_change().await.unwrap();
            if matches!(event.kind.as_str(), "job.cancelled" | "job.done") {
                break;
            }
        }
        if act(addr, &id, "retry").await.status != 202 {
            continue;
        }
        let followed = output(addr, &id, "?stream=true").await;
        let object = done(addr, &id).await;
        let kept = output(addr, &id, "").await;
        assert_eq!(kept.text(), straight, "{object:#}");
        assert!(followed.status == 200 && followed.text() == straight, "{}", followed.text());
    }
}

async fn delete_when_it_can(addr: SocketAddr, id: String) {
    while send(addr, "DELETE", &format!("/jobs/{id}"), "").await.status == 409 {}
}

/// A job that is deleted in the moment in which it ends has told of its end, or its events are told as lost. (Where both were
/// written in one transaction, live subscribers heard nothing of it.)
#[tokio::test]
async fn a_delete_right_at_the_end_leaves_no_silent_gap() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let mut events = Events::open(addr, "/events", None).await;
    let mut jobs = Vec::new();
    for _ in 0..60 {
        let id = submit(addr, &generate("a", 2)).await;
        let deleting = (0..4).map(|_| tokio::spawn(delete_when_it_can(addr, id.clone())));
        for deleting in deleting.collect::<Vec<_>>() {
            timeout(DEADLINE, deleting).await.unwrap().unwrap();
        }
        jobs.push(id);
    }
    let last = submit(addr, &chat("a", "last")).await;
    done(addr, &last).await;
    let mut ends = HashMap::new();
    let mut lost = Vec::new();
    loop {
        let event = events.next_change().await.unwrap();
        if event.kind == "events.lost" {
            lost.push(event.data);
            continue;
        }
        let id = event.data["job_id"].as_str().unwrap().to_owned();
        if event.kind == "job.done" {
            if id == last {
                break;
            }
            ends.insert(id, event.id);
        }
    }
    let missing = jobs.iter().filter(|id| !ends.contains_key(*id)).count();
    assert!(missing <= lost.len(), "{missing} ends were neither told nor told as lost: {lost:?}");
}

/// Two equal requests are one job: it goes on while one of their clients waits, and is cancelled when the last one leaves.
#[tokio::test]
async fn a_shared_job_is_cancelled_by_the_last_client_that_leaves() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let shared = |raw: &mut foreman::config::Raw| raw.duplicates = Some("inflight".to_owned());
    let foreman = Foreman::start_with(&stub, shared).await.up().await;
    let addr = foreman.addr;
    let body = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 100_000 } });
    let mut first = post_stream(addr, "/api/generate", &body).await;
    first.next().await.unwrap().unwrap();
    let id = first.headers["x-foreman-job-id"].to_str().unwrap().to_owned();
    let mut second = post_stream(addr, "/api/generate", &body).await;
    assert_eq!(second.headers["x-foreman-duplicate"], "inflight");
    assert_eq!(second.headers["x-foreman-job-id"], id);
    drop(first);
    for _ in 0..100 {
        second.next().await.unwrap().unwrap();
    }
    assert_eq!(object(addr, &id).await["state"], "working");
    drop(second);
    assert_eq!(ended(addr, &id).await["state"], "cancelled");
    stub.wait_until(|snapshot| snapshot.generating.is_empty()).await;
}

/// Followers do not hold a stop up: one that waits for a job that waits is sent away, one of a running job gets its rest.
#[tokio::test]
async fn a_drain_sends_waiting_followers_away_and_finishes_others() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let running = submit(addr, &generate("a", 60)).await;
    let mut follower = follow(addr, &running, "?stream=true").await;
    follower.next().await.unwrap().unwrap();
    stub.hold_tokens();
    let waiting = submit(addr, &chat("a", "x")).await;
    let polls = tokio::spawn({
        let id = waiting.clone();
        async move { crate::harness::get(addr, &format!("/jobs/{id}?wait=25s")).await }
    });
    let waits = tokio::spawn({
        let id = waiting.clone();
        async move { output(addr, &id, "?stream=true").await }
    });
    wait_for(addr, &waiting, |object| object["state"] == "queued").await;
    foreman.status().await;
    foreman.signal().await;
    let polled = polls.await.unwrap();
    assert_eq!((polled.status.as_u16(), &polled.json()["state"]), (200, &json!("queued")));
    crate::harness::jobs::problem(&waits.await.unwrap(), 503, "stopping");
    stub.release_tokens();
    assert!(follower.rest().await.is_whole);
    foreman.ended().await;
}

/// What the random clients share.
#[derive(Clone)]
struct Day {
    addr: SocketAddr,
    jobs: Arc<Mutex<Vec<String>>>,
}

impl Day {
    async fn client(self, mut random: Random) {
        for _ in 0..60 {
            let id = {
                let jobs = self.jobs.lock().unwrap();
                let at = random.below(u64::try_from(jobs.len()).unwrap().max(1));
                jobs.get(usize::try_from(at).unwrap()).cloned()
            };
            let Some(id) = id.filter(|_| random.below(3) != 0) else {
                let tokens = u32::try_from(random.below(25)).unwrap() + 1;
                let id = submit(self.addr, &generate("a", tokens)).await;
                self.jobs.lock().unwrap().push(id);
                continue;
            };
            self.touch(&id, random.below(6)).await;
        }
    }

    async fn touch(&self, id: &str, what: u64) {
        let answer = match what {
            0 => act(self.addr, id, "cancel").await,
            1 | 2 => act(self.addr, id, "retry").await,
            3 => send(self.addr, "DELETE", &format!("/jobs/{id}"), "").await,
            _ => {
                let answer = output(self.addr, id, "?stream=true").await;
                if answer.status == 200 && answer.is_whole {
                    let text = answer.text();
                    let is_one = text.matches("\"done\":true").count() == 1;
                    assert!(is_one && text.trim_end().ends_with('}'), "{text}");
                }
                answer
            }
        };
        assert!(answer.status.as_u16() < 500, "{what}: {}", answer.text());
    }
}

/// Property: after a random day each job has ended, its events are one chain, live as in the replay, and its object tells
/// the same.
#[tokio::test]
async fn after_a_random_day_each_job_has_one_history() {
    for (seed, parallel) in [(1, 1), (2, 3), (3, 2)] {
        println!("seed {seed}, parallel {parallel}");
        let mut config = stub_config(&["a"]);
        config.num_parallel = parallel;
        let stub = Stub::start(config).await;
        let settings = |raw: &mut foreman::config::Raw| raw.parallel = Some(parallel.to_string());
        let foreman = Foreman::start_with(&stub, settings).await.up().await;
        let mut live = Events::open(foreman.addr, "/events", None).await;
        let day = Day { addr: foreman.addr, jobs: Arc::default() };
        let clients: Vec<_> =
            (0..5).map(|n| tokio::spawn(day.clone().client(Random::new(seed, n)))).collect();
        for client in clients {
            client.await.unwrap();
        }
        let jobs = day.jobs.lock().unwrap().clone();
        let mut told: HashMap<String, Vec<Event>> = HashMap::new();
        let last = submit(foreman.addr, &chat("a", "last")).await;
        ended(foreman.addr, &last).await;
        while told.get(&last).is_none_or(|events| events.last().unwrap().kind != "job.done") {
            let event = live.next_change().await.unwrap();
            if event.kind != "events.lost" {
                let id = event.data["job_id"].as_str().unwrap().to_owned();
                told.entry(id).or_default().push(event);
            }
        }
        for id in jobs {
            check(foreman.addr, &id, &told[&id]).await;
        }
    }
}

async fn check(addr: SocketAddr, id: &str, live: &[Event]) {
    for pair in live.windows(2) {
        assert_eq!(pair[1].data["previous_state"], pair[0].data["state"], "{live:#?}");
    }
    let answer = crate::harness::get(addr, &format!("/jobs/{id}?wait=25s")).await;
    if answer.status == 410 {
        return;
    }
    let object = answer.json();
    let replay = Events::open(addr, &format!("/jobs/{id}/events"), None).await.rest().await;
    assert_eq!(live, &replay[..live.len()]);
    let last = replay.last().unwrap();
    assert_eq!(object["state"], last.data["state"], "{object:#}");
    assert_eq!(object["attempt"], last.data["attempt"]);
    let begins = |event: &&Event| {
        let is_open = |state: &serde_json::Value| state == "loading" || state == "working";
        is_open(&event.data["state"]) && !is_open(&event.data["previous_state"])
    };
    let attempts = object["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), replay.iter().filter(begins).count(), "{object:#}");
    assert!(attempts.iter().all(|attempt| attempt["outcome"] != "running"), "{object:#}");
    if object["state"] == "done" {
        assert!(output(addr, id, "").await.text().contains("\"done\":true"));
    }
}

/// Sends a request and closes the connection: the answer is not waited for.
async fn fire(addr: SocketAddr, path: &str, body: &str) {
    let mut client = tokio::net::TcpStream::connect(addr).await.unwrap();
    let length = body.len();
    let text = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    tokio::io::AsyncWriteExt::write_all(&mut client, text.as_bytes()).await.unwrap();
}

/// Fire and forget, to the letter. (What follows on a commit went with the connection: the job was on disk, but the worker
/// was not told, and slept on for half a minute.)
#[tokio::test]
async fn a_job_whose_sender_closes_at_once_is_served_at_once() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let many = json!([chat("a", "x"), chat("a", "y")]).to_string();
    let mut sent = 0;
    for (path, body, jobs) in [("/jobs", chat("a", "x").to_string(), 1), ("/jobs/batch", many, 2)] {
        for _ in 0..5 {
            fire(foreman.addr, path, &body).await;
            sent += jobs;
            let served = foreman.wait_for(|status| status["stored"]["done"] == sent);
            timeout(DEADLINE / 2, served).await.expect("the worker sleeps");
        }
    }
}

/// The same of a cancel: the job was cancelled, and who waited for it waited for ever.
#[tokio::test]
async fn who_waits_is_told_of_a_cancel_whose_sender_has_left() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    foreman.occupy(&stub, "a").await;
    for number in 0..5 {
        let id = submit(foreman.addr, &chat("a", &number.to_string())).await;
        let follower = follow(foreman.addr, &id, "?stream=true");
        let cancelling = async {
            while object(foreman.addr, &id).await["state"] != "cancelled" {
                fire(foreman.addr, &format!("/jobs/{id}/cancel"), "").await;
            }
        };
        let (followed, ()) = tokio::join!(follower, cancelling);
        assert_eq!(followed.status, 409, "{number}");
    }
    stub.release_tokens();
}
