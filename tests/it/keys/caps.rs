//! What a key may have, and how urgently.

use serde_json::{Value, json};

use super::{ALICE, BOB, House, with_alice};
use crate::harness::Answer;
use crate::harness::client::{self, chat, open};
use crate::harness::jobs::{problem, with_header};

const NATIVE: [(&str, &str); 3] = [
    ("/api/chat", r#"{"model":"a","messages":[{"role":"user","content":"x"}]}"#),
    ("/v1/chat/completions", r#"{"model":"a","messages":[{"role":"user","content":"x"}]}"#),
    ("/v1/messages", r#"{"model":"a","max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#),
];

/// A house whose Ollama is busy with a job of the admin's.
async fn busy(more: &Value) -> House {
    let house = House::start(&with_alice(more)).await;
    house.stub.hold_tokens();
    house.submit(super::ADMIN, "a").await;
    house.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    house
}

#[tokio::test]
async fn a_key_has_no_more_jobs_waiting_than_it_may() {
    let house = busy(&json!({ "queued_max": 3 })).await;
    let first = house.submit(ALICE, "a").await;
    let batch = json!([chat("a", "1"), chat("b", "2"), chat("a", "3")]).to_string();
    let told = house.ask(ALICE, "POST", "/jobs/batch", batch.clone()).await.json();
    assert_eq!((&told["accepted"], &told["rejected"]), (&json!(2), &json!(1)), "{told:#}");
    assert_eq!(told["jobs"][2]["error"]["code"], "key-full");
    let refused = house.ask(ALICE, "POST", "/jobs", chat("a", "x").to_string()).await;
    let detail = problem(&refused, 429, "key-full")["detail"].to_string();
    assert!(detail.contains("3 jobs waiting") && detail.contains("nothing was stored"), "{detail}");
    assert_eq!(refused.header("retry-after"), Some("10"));
    let none = house.ask(ALICE, "POST", "/jobs/batch", batch).await;
    assert_eq!((none.status.as_u16(), none.header("retry-after")), (429, Some("10")));
    for (path, body) in NATIVE {
        let answer = house.ask(ALICE, "POST", path, body).await;
        assert_eq!(answer.status, 429, "{path}: {}", answer.text());
        assert_eq!(answer.header("retry-after"), Some("10"));
        let error = &answer.json()["error"];
        let text = if path == "/api/chat" { error } else { &error["message"] };
        assert!(text.as_str().unwrap().contains("jobs waiting"), "{error}");
    }
    for _ in 0..4 {
        house.submit(BOB, "a").await;
    }
    assert_eq!(house.ask(ALICE, "POST", &format!("/jobs/{first}/cancel"), "").await.status, 200);
    let again = house.submit(ALICE, "a").await;
    let retried = house.ask(ALICE, "POST", &format!("/jobs/{first}/retry"), "").await;
    problem(&retried, 429, "key-full");
    house.stub.release_tokens();
    assert_eq!(house.ended(ALICE, &again).await["state"], "done");
    assert_eq!(house.ask(ALICE, "POST", &format!("/jobs/{first}/retry"), "").await.status, 202);
}

async fn with_priority(house: &House, path: &str, body: &str, priority: Option<&str>) -> Answer {
    let mut request = client::request(house.addr(), "POST", path, body.to_owned());
    request = with_header(request, ("authorization", &format!("Bearer {ALICE}")));
    request = with_header(request, ("prefer", "respond-async"));
    if let Some(priority) = priority {
        request = with_header(request, ("x-foreman-priority", priority));
    }
    let answer = open(house.addr(), request).await.unwrap().rest().await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer
}

/// More urgent than it may is lowered and not refused: clients that know nothing of foreman ask for the most urgent by saying
/// nothing, and the job tells its class.
#[tokio::test]
async fn a_priority_is_the_keys_own_and_no_higher_than_it_may() {
    let defaulted = json!({ "priority": "batch", "priority_max": "normal" });
    let capped = json!({ "priority_max": "normal" });
    let cases = [
        (&defaulted, None, "batch", "batch"),
        (&defaulted, Some("interactive"), "normal", "normal"),
        (&defaulted, Some("normal"), "normal", "normal"),
        (&capped, None, "normal", "normal"),
        (&capped, Some("interactive"), "normal", "normal"),
        (&capped, Some("batch"), "batch", "batch"),
        (&json!({}), None, "interactive", "normal"),
        (&json!({ "priority": "interactive" }), None, "interactive", "interactive"),
    ];
    for (more, asked, native, submitted) in cases {
        let house = busy(more).await;
        let (path, body) = NATIVE[0];
        let answer = with_priority(&house, path, body, asked).await;
        assert_eq!(answer.json()["priority"], native, "{more} {asked:?}");
        let mut body = chat("a", "x");
        if let Some(asked) = asked {
            body["priority"] = json!(asked);
        }
        let one = house.ask(ALICE, "POST", "/jobs", body.to_string()).await.json();
        assert_eq!(one["priority"], submitted, "{more} {asked:?}");
        let batch = json!([body]).to_string();
        let many = house.ask(ALICE, "POST", "/jobs/batch", batch).await.json();
        let path = many["jobs"][0]["url"].as_str().unwrap().to_owned();
        let job = house.get(ALICE, &path).await.json();
        assert_eq!(job["priority"], submitted, "{more} {asked:?}");
        house.stub.release_tokens();
    }
}
