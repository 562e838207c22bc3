//! An Ollama whose metadata is slow, or never comes: what was known last is used, the question goes on beside, and no request
//! waits for it. As many chats follow each other here as would take minutes if each waited.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use stub_ollama::{Action, Fault, Stub};

use crate::harness::client::chat_unstreamed;
use crate::harness::{DEADLINE, Foreman, get, post, stub_config};

const PATHS: [&str; 4] = ["/api/tags", "/api/version", "/api/ps", "/api/show"];

/// Longer than foreman once gave each question.
const SLOW: Duration = Duration::from_secs(11);

const CHATS: usize = 40;

fn hang(stub: &Stub, path: &str) {
    stub.faults(Fault::new(Action::HangBeforeHeaders).path(path).forever());
}

/// Sends chats one after the other to these models in turn; each is a job, and answered well, while the metadata is still out.
async fn chats(addr: SocketAddr, models: &[&str], what: &str) {
    let chats = async {
        for number in 0..CHATS {
            let body = chat_unstreamed(models[number % models.len()], "x");
            let answer = post(addr, "/api/chat", &body).await;
            assert_eq!(answer.status, 200, "{what}: {}", answer.text());
            assert!(answer.header("x-foreman-job-id").is_some(), "{what}: beside the queue");
        }
    };
    let in_time = tokio::time::timeout(DEADLINE, chats).await;
    assert!(in_time.is_ok(), "{what}: each of the chats waits for it");
}

#[tokio::test]
async fn chats_go_on_where_metadata_was_never_known() {
    for path in PATHS {
        for action in [Action::HangBeforeHeaders, Action::Stall(SLOW)] {
            let what = format!("{path} {action:?}");
            let stub = Stub::start(stub_config(&["a"])).await;
            stub.faults(Fault::new(action).path(path).forever());
            let foreman = Foreman::start(&stub).await;
            chats(foreman.addr, &["a"], &what).await;
        }
    }
}

#[tokio::test]
async fn chats_go_on_by_what_was_known_last() {
    for path in PATHS {
        let stub = Stub::start(stub_config(&["a"])).await;
        let foreman = Foreman::start(&stub).await.up().await;
        foreman.wait_for(|status| status["upstream"]["models"] == 2).await;
        hang(&stub, path);
        chats(foreman.addr, &["a"], path).await;
    }
}

/// A swap asks ps before it, while the old model goes, and after the load.
#[tokio::test]
async fn swaps_go_on_without_ps() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    hang(&stub, "/api/ps");
    let foreman = Foreman::start_with(&stub, |raw| raw.hold = Some("off".to_owned())).await;
    chats(foreman.addr, &["a", "b"], "swaps").await;
    assert_eq!(stub.counts().evictions, 0, "foreman knows by itself what it has loaded");
}

/// Foreman asks again after each of these, and nobody waits for that.
#[tokio::test]
async fn chats_go_on_after_the_models_were_changed() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    foreman.wait_for(|status| status["upstream"]["models"] == 3).await;
    hang(&stub, "/api/tags");
    let copy = json!({ "source": "a", "destination": "c" });
    assert_eq!(post(foreman.addr, "/api/copy", &copy).await.status, 200);
    chats(foreman.addr, &["a", "c"], "copy").await;
    let delete = json!({ "model": "b" }).to_string();
    let deleted = crate::harness::send(foreman.addr, "DELETE", "/api/delete", delete).await;
    assert_eq!(deleted.status, 200);
    chats(foreman.addr, &["c"], "delete").await;
}

/// What nobody can place is a job: Ollama judges it, in its own words.
#[tokio::test]
async fn a_model_that_is_not_known_is_a_job_that_ollama_judges() {
    let stub = Stub::start(stub_config(&["a"])).await;
    hang(&stub, "/api/tags");
    let foreman = Foreman::start(&stub).await;
    let body = chat_unstreamed("nobody", "x");
    let refused = post(foreman.addr, "/api/chat", &body).await;
    assert!(refused.header("x-foreman-job-id").is_some(), "{}", refused.text());
    let straight = post(stub.addr(), "/api/chat", &body).await;
    assert_eq!((refused.status, refused.body), (straight.status, straight.body));
}

/// A late answer is an answer.
#[tokio::test]
async fn what_comes_late_is_taken() {
    let late = || Action::Stall(Duration::from_millis(1_500));
    let stub = Stub::start(stub_config(&["a"])).await;
    for path in ["/api/tags", "/api/version", "/api/ps"] {
        stub.faults(Fault::new(late()).path(path).forever());
    }
    // Loaded by somebody else: only ps can tell.
    assert_eq!(post(stub.addr(), "/api/chat", &chat_unstreamed("a", "x")).await.status, 200);
    let foreman = Foreman::start(&stub).await;
    let known = |status: &Value| {
        let resident = status["resident"].as_array().is_some_and(|list| list.len() == 1);
        let version = status["upstream"]["version"].as_str().is_some_and(|text| text != "unknown");
        resident && version && status["upstream"]["models"] == 2
    };
    foreman.wait_for(known).await;
}

/// A client that asks for metadata by itself is told by Ollama, however long that takes.
#[tokio::test]
async fn metadata_that_a_client_asks_for_is_relayed_as_it_comes() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let straight = get(stub.addr(), "/api/tags").await;
    stub.faults(Fault::new(Action::Stall(Duration::from_secs(2))).path("/api/tags").forever());
    let foreman = Foreman::start(&stub).await;
    let asking = tokio::spawn(async move { get(foreman.addr, "/api/tags").await });
    chats(foreman.addr, &["a"], "beside").await;
    let relayed = asking.await.unwrap();
    assert_eq!((relayed.status, relayed.body), (straight.status, straight.body));
}
