//! Events are told to whom the job belongs: live, replayed, and of progress.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{ADMIN, ALICE, BOB, House, three, write};
use crate::harness::client::{self, Stream, open};
use crate::harness::jobs::with_header;
use crate::harness::stub_config;

/// A subscriber with a key: what it hears, as texts of whole events.
struct Feed {
    stream: Stream,
    held: String,
}

impl Feed {
    async fn open(house: &House, key: &str, path: &str) -> Feed {
        let request = client::request(house.addr(), "GET", path, "");
        let request = with_header(request, ("authorization", &format!("Bearer {key}")));
        let stream = open(house.addr(), request).await.unwrap();
        assert_eq!(stream.status, 200);
        let mut feed = Feed { stream, held: String::new() };
        assert!(feed.next().await.unwrap().starts_with("id: "));
        feed
    }

    /// The next piece between empty lines; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.held.find("\n\n") {
                return Some(self.held.drain(..end + 2).collect());
            }
            let bytes = self.stream.next().await?.ok()?;
            self.held.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// The data of all events up to the end of a job.
    async fn until_done(&mut self, id: &str) -> Vec<Value> {
        let mut heard = Vec::new();
        loop {
            let text = self.next().await.expect("the stream of events ended");
            let Some((_, data)) = text.split_once("data: ") else { continue };
            let data: Value = serde_json::from_str(data.trim()).unwrap();
            heard.push(data);
            let last = heard.last().unwrap();
            if last["job_id"] == id && last["type"] == "job.done" {
                return heard;
            }
        }
    }
}

fn jobs_of(heard: &[Value]) -> BTreeSet<&str> {
    heard.iter().map(|event| event["job_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn each_hears_of_its_own_jobs_live_and_again() {
    let house = House::start(&three()).await;
    let mut live = Feed::open(&house, BOB, "/events").await;
    let mut all = Feed::open(&house, ADMIN, "/events").await;
    let mut of_bob = Vec::new();
    let mut of_alice = Vec::new();
    for _ in 0..3 {
        of_alice.push(house.submit(ALICE, "a").await);
        of_bob.push(house.submit(BOB, "a").await);
    }
    for (key, ids) in [(ALICE, &of_alice), (BOB, &of_bob)] {
        for id in ids {
            house.ended(key, id).await;
        }
    }
    let own: BTreeSet<&str> = of_bob.iter().map(String::as_str).collect();
    let heard = live.until_done(&of_bob[2]).await;
    assert_eq!(jobs_of(&heard), own);
    let mut replayed = Feed::open(&house, BOB, "/events?last_event_id=0").await;
    assert_eq!(replayed.until_done(&of_bob[2]).await, heard);
    let mut everything = all.until_done(&of_bob[2]).await;
    everything.extend(
        Feed::open(&house, ADMIN, "/events?last_event_id=0").await.until_done(&of_alice[2]).await,
    );
    assert_eq!(jobs_of(&everything).len(), 6);
}

/// What runs is told of about once a second.
#[tokio::test]
async fn progress_is_told_to_the_owner_and_to_admins() {
    let mut slow = stub_config(&["a"]);
    slow.token_time = std::time::Duration::from_millis(60);
    let house = House::start_with(&three(), slow, |_| ()).await;
    let mut of_bob = Feed::open(&house, BOB, "/events").await;
    let mut all = Feed::open(&house, ADMIN, "/events").await;
    let body = json!({ "endpoint": "/api/generate", "body":
        { "model": "a", "prompt": "x", "options": { "num_predict": 50 } } });
    let of_alice = super::submit(house.addr(), ALICE, &body).await;
    let own = super::submit(house.addr(), BOB, &body).await;
    let heard = of_bob.until_done(&own).await;
    assert_eq!(jobs_of(&heard), BTreeSet::from([own.as_str()]));
    assert!(heard.iter().any(|event| event["type"] == "job.progress"), "{heard:?}");
    let heard = all.until_done(&own).await;
    let progress = heard.iter().filter(|event| event["type"] == "job.progress");
    assert!(progress.clone().any(|event| event["job_id"] == of_alice), "{heard:?}");
}

/// Whoever lost his key hears nothing more with it.
#[tokio::test]
async fn a_stream_of_events_ends_with_its_key() {
    let house = super::reload::Home::start(&three()).await;
    let request = client::request(house.addr(), "GET", "/events", "");
    let request = with_header(request, ("authorization", &format!("Bearer {BOB}")));
    let mut stream = open(house.addr(), request).await.unwrap();
    write(&house.keys(), &[three()[0].clone(), three()[2].clone()]);
    house.hang_up();
    while let Some(piece) = stream.next().await {
        piece.unwrap();
    }
    assert_eq!(super::ask(house.addr(), BOB, "GET", "/jobs", "").await.status, 401);
}
