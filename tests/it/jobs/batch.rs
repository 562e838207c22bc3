//! Many submissions in one call: in order, each for itself.

use serde_json::{Value, json};
use stub_ollama::Stub;

use crate::harness::client::{chat, open, request};
use crate::harness::jobs::{done, id_of, problem, with_header};
use crate::harness::{Answer, Foreman, get, send, stub_config};

async fn post(foreman: &Foreman, body: impl Into<String>) -> Answer {
    send(foreman.addr, "POST", "/jobs/batch", body.into()).await
}

fn items(answer: &Answer) -> Vec<Value> {
    answer.json()["jobs"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_batch_is_served_in_the_order_of_its_items() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let bodies: Vec<Value> = (0..150).map(|n| chat("a", &format!("{n}"))).collect();
    let answer = post(&foreman, json!(bodies).to_string()).await;
    assert_eq!(answer.status, 202);
    assert_eq!((&answer.json()["accepted"], &answer.json()["rejected"]), (&json!(150), &json!(0)));
    let items = items(&answer);
    for (index, item) in items.iter().enumerate() {
        assert_eq!(item["index"], index);
    }
    let last = id_of(items.last().unwrap());
    done(foreman.addr, &last).await;
    let texts: Vec<String> = stub
        .log()
        .iter()
        .filter(|entry| entry.path == "/api/chat")
        .map(|entry| {
            let body: Value = serde_json::from_slice(&entry.body).unwrap();
            body["messages"][0]["content"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(texts, (0..150).map(|n| n.to_string()).collect::<Vec<_>>());
    // The list gives them from the newest on, so in the opposite order.
    let mut listed = Vec::new();
    let mut after = String::new();
    while listed.len() < 150 {
        let page = get(foreman.addr, &format!("/jobs?limit=100{after}")).await.json();
        listed.extend(page["data"].as_array().unwrap().iter().map(id_of));
        after = format!("&after={}", listed.last().unwrap());
    }
    listed.reverse();
    assert_eq!(listed, items.iter().map(id_of).collect::<Vec<_>>());
}

/// The headers stand with each job: a quarter of a megabyte that was sent took 800 MB of disk, and half as much memory.
#[tokio::test]
async fn headers_that_a_batch_would_multiply_beyond_a_body_are_refused() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let small = |raw: &mut foreman::config::Raw| raw.body_max = Some("64KiB".to_owned());
    let foreman = Foreman::start_with(&stub, small).await.up().await;
    let body = json!(vec![chat("a", "x"); 100]).to_string();
    let sent = request(foreman.addr, "POST", "/jobs/batch", body.clone());
    let sent = with_header(sent, ("x-large", &"a".repeat(2_000)));
    let answer = open(foreman.addr, sent).await.unwrap().rest().await;
    problem(&answer, 413, "body-too-large");
    assert_eq!(get(foreman.addr, "/jobs").await.json()["data"], json!([]));
    assert_eq!(post(&foreman, body).await.status, 202);
}

#[tokio::test]
async fn one_bad_item_harms_no_other() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let answer =
        post(&foreman, json!([chat("a", "x"), { "model": 1 }, chat("a", "y")]).to_string());
    let answer = answer.await;
    assert_eq!(answer.status, 202);
    let told = answer.json();
    assert_eq!(
        (&told["object"], &told["accepted"], &told["rejected"]),
        (&json!("batch"), &json!(2), &json!(1))
    );
    let items = items(&answer);
    assert_eq!(items[1]["error"]["type"], "/problems/invalid-job");
    assert_eq!(items[1]["error"]["errors"][0]["pointer"], "/model");
    assert!(items[1].get("job_id").is_none());
    for index in [0, 2] {
        done(foreman.addr, &id_of(&items[index])).await;
    }
}

#[tokio::test]
async fn json_lines_are_a_batch_too() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let lines = format!("{}\r\n\n{{oops\n  {}  ", chat("a", "x"), chat("a", "y"));
    let answer = post(&foreman, lines).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let items = items(&answer);
    assert_eq!(items.len(), 3);
    assert_eq!(items[1]["error"]["code"], "malformed-body");
    for index in [0, 2] {
        done(foreman.addr, &id_of(&items[index])).await;
    }
}

#[tokio::test]
async fn a_batch_that_is_none_stores_nothing() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for body in ["", "  \n", "\"x\"", "[{}", "[]]", "17"] {
        problem(&post(&foreman, body).await, 400, "malformed-body");
    }
    let empty = post(&foreman, "[]").await;
    assert_eq!((empty.status.as_u16(), &empty.json()["accepted"]), (202, &json!(0)));
    let many = format!("[{}{{}}]", "{},".repeat(10_000));
    problem(&post(&foreman, many).await, 413, "body-too-large");
    let all_bad = post(&foreman, "[{\"model\":1},\"x\"]").await;
    assert_eq!(all_bad.status, 422);
    assert_eq!((&all_bad.json()["accepted"], &all_bad.json()["rejected"]), (&json!(0), &json!(2)));
    assert_eq!(get(foreman.addr, "/jobs").await.json()["data"], json!([]));
}

/// What there is room for is taken, from the first item on.
#[tokio::test]
async fn a_queue_that_fills_up_in_a_batch_takes_what_it_has_room_for() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let limit = |raw: &mut foreman::config::Raw| raw.max_queue = Some("3".to_owned());
    let foreman = Foreman::start_with(&stub, limit).await.up().await;
    stub.hold_tokens();
    foreman.occupy(&stub, "a").await;
    let bodies: Vec<Value> = (0..5).map(|n| chat("a", &format!("{n}"))).collect();
    let answer = post(&foreman, json!(bodies).to_string()).await;
    assert_eq!(answer.status, 202);
    let items = items(&answer);
    assert!(items[..3].iter().all(|item| item["job_id"].is_string()), "{items:#?}");
    for full in &items[3..] {
        assert_eq!(full["error"]["code"], "queue-full");
        assert!(full["error"]["retry_after"].is_number());
    }
    let none = post(&foreman, json!(bodies).to_string()).await;
    assert_eq!(
        (none.status.as_u16(), none.header("content-type")),
        (503, Some("application/json; charset=utf-8"))
    );
    stub.release_tokens();
    for item in &items[..3] {
        done(foreman.addr, &id_of(item)).await;
    }
}

/// The second of two equal items is the first; one with another body is refused.
#[tokio::test]
async fn a_key_that_comes_twice_in_a_batch_makes_one_job() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let keyed = |text: &str| {
        let mut body = chat("a", text);
        body["idempotency_key"] = json!("k");
        body
    };
    let batch = json!([keyed("x"), keyed("x"), keyed("y")]).to_string();
    for _ in 0..2 {
        let answer = post(&foreman, batch.clone()).await;
        assert_eq!(answer.status, 202);
        let items = items(&answer);
        assert_eq!(items[0]["job_id"], items[1]["job_id"]);
        assert_eq!(items[2]["error"]["code"], "idempotency-mismatch");
        done(foreman.addr, &id_of(&items[0])).await;
    }
    assert_eq!(get(foreman.addr, "/jobs").await.json()["data"].as_array().unwrap().len(), 1);
}

/// A key for all of them would be one for none: a client that sends one is told where keys belong.
#[tokio::test]
async fn a_key_for_a_whole_batch_is_refused() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = json!([chat("a", "x")]).to_string();
    let sent = request(foreman.addr, "POST", "/jobs/batch", body);
    let sent = with_header(sent, ("idempotency-key", "one"));
    let answer = open(foreman.addr, sent).await.unwrap().rest().await;
    problem(&answer, 400, "malformed-header");
    assert_eq!(get(foreman.addr, "/jobs").await.json()["data"], json!([]));
}
