//! The same request by another key is another request: by idempotency key, by equality, and after a crash.

use serde_json::json;

use super::{ALICE, BOB, House, three};
use crate::harness::Answer;
use crate::harness::client::{self, chat, chat_unstreamed, open, try_open};
use crate::harness::daemon::{Daemon, Starting};
use crate::harness::jobs::{problem, with_header};
use crate::harness::stub_config;

const JOB: &str = "x-foreman-job-id";

async fn keyed(house: &House, key: &str, path: &str, body: String) -> Answer {
    let request = client::request(house.addr(), "POST", path, body);
    let request = with_header(request, ("authorization", &format!("Bearer {key}")));
    let request = with_header(request, ("idempotency-key", "once"));
    open(house.addr(), request).await.unwrap().rest().await
}

#[tokio::test]
async fn an_idempotency_key_is_its_owners_alone() {
    let house = House::start(&three()).await;
    for path in ["/jobs", "/api/chat"] {
        let body = || chat_unstreamed("a", path).to_string();
        let id = async |key: &str| {
            let answer = keyed(&house, key, path, body()).await;
            answer.header(JOB).unwrap_or_else(|| panic!("{}", answer.text())).to_owned()
        };
        let (first, again, other) = (id(ALICE).await, id(ALICE).await, id(BOB).await);
        assert_eq!(first, again, "{path}");
        assert_ne!(first, other, "{path}");
        assert_eq!(house.ended(BOB, &other).await["owner"], "bob");
        // Another body under it tells of one's own job, and of no other.
        let answer = keyed(&house, BOB, "/jobs", chat("a", "other").to_string()).await;
        assert!(!answer.text().contains(&first), "{}", answer.text());
        problem(&answer, 422, "idempotency-mismatch");
        for (key, id) in [(ALICE, &first), (BOB, &other)] {
            house.ended(key, id).await;
            assert_eq!(house.ask(key, "DELETE", &format!("/jobs/{id}"), "").await.status, 204);
        }
    }
}

#[tokio::test]
async fn equal_requests_of_two_keys_are_two_jobs() {
    let duplicates = |raw: &mut foreman::config::Raw| raw.duplicates = Some("completed".to_owned());
    let house = House::start_with(&three(), stub_config(&["a"]), duplicates).await;
    let mut body = chat("a", "x");
    body["options"] = json!({ "temperature": 0 });
    let submit = async |key| super::submit(house.addr(), key, &body).await;
    let first = submit(ALICE).await;
    house.ended(ALICE, &first).await;
    assert_eq!(submit(ALICE).await, first, "of one key it is one");
    let other = submit(BOB).await;
    assert_ne!(other, first);
    assert_eq!(house.ended(BOB, &other).await["owner"], "bob");
}

/// From the same address, with the same bytes.
#[tokio::test]
async fn after_a_crash_a_job_goes_to_its_owner_and_to_nobody_else() {
    let house = House::start(&three()).await;
    house.stub.hold_tokens();
    let (db, keys) = (house.folder.path().join("b.db"), house.keys());
    let flags = ["--keys", keys.to_str().unwrap()];
    let daemon = Daemon::start(&house.stub.url(), &db, &flags).await;
    let asks = |addr, key: &str| {
        let request = client::request(addr, "POST", "/api/chat", chat("a", "x").to_string());
        let request = with_header(request, ("authorization", &format!("Bearer {key}")));
        tokio::spawn(async move { Some(try_open(addr, request).await?.rest().await) })
    };
    let first = asks(daemon.addr, ALICE);
    house.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    daemon.kill().await;
    assert!(first.await.unwrap().is_none_or(|answer| !answer.is_whole));
    let mut starting = Starting::begin(&house.stub.url(), &db, &flags);
    let addr = starting.serves().await;
    let daemon = starting.into_daemon(addr);
    house.stub.release_tokens();
    let other = asks(addr, BOB).await.unwrap().unwrap();
    assert_eq!((other.status.as_u16(), other.header("x-foreman-attached")), (200, None));
    let back = asks(addr, ALICE).await.unwrap().unwrap();
    assert_eq!((back.status.as_u16(), back.header("x-foreman-attached")), (200, Some("true")));
    assert_ne!(back.header(JOB), other.header(JOB));
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));
}
