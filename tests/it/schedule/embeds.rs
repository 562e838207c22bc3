//! Embeds of a model that is not resident: foreman loads it at a border, once, and then they flow.

use serde_json::{Value, json};
use stub_ollama::{Action, Fault, Model, Stub, StubConfig};

use super::{ask, given, serve, served};
use crate::harness::client::post;
use crate::harness::{Foreman, stub_config};

/// The bodies of the embeds the stub was given, in order.
fn embeds(stub: &Stub) -> Vec<Value> {
    let log = stub.log();
    let embeds = log.iter().filter(|entry| entry.path == "/api/embed");
    embeds.map(|entry| serde_json::from_slice(&entry.body).unwrap()).collect()
}

/// Five embeds at once while a chat is in flight: it is not disturbed, one load makes them all run, and that load carries no
/// input of theirs. It waits for no border where there is room; `embed_visits` has the same without.
#[tokio::test]
async fn an_embedder_that_is_not_resident_is_loaded_once_for_all_that_wait() {
    for beside in ["off", "auto"] {
        let stub = Stub::start(StubConfig { max_loaded: 2, ..stub_config(&["a"]) }).await;
        let foreman = Foreman::start_with(&stub, |raw| raw.beside = given(beside)).await.up().await;
        let addr = foreman.addr;
        stub.hold_tokens();
        let chat = ask(addr, "a", "long");
        stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        stub.hold_loads();
        let clients: Vec<_> = (0..5)
            .map(|number| {
                let body = json!({ "model": "embed", "input": format!("text {number}") });
                tokio::spawn(async move { post(addr, "/api/embed", &body).await })
            })
            .collect();
        foreman.wait_for(|status| status["embeds"]["waiting"] == 5).await;
        stub.wait_until(|snapshot| snapshot.loading.as_deref() == Some("embed:latest")).await;
        assert_eq!(embeds(&stub).len(), 1, "one load, beside the job in flight");
        stub.release_loads();
        stub.wait_for_log(|log| log.iter().filter(|one| one.path == "/api/embed").count() == 6)
            .await;
        assert!(!chat.is_finished());
        stub.release_tokens();
        served(chat).await;
        for client in clients {
            assert_eq!(client.await.unwrap().status, 200);
        }
        let embeds = embeds(&stub);
        assert_eq!(embeds.len(), 6, "{embeds:?}");
        assert!(embeds[0]["input"].is_null(), "the load is foreman's own: {embeds:?}");
        assert!(embeds[1..].iter().all(|body| body["input"].is_string()), "{embeds:?}");
        let counts = stub.counts();
        assert_eq!((counts.loads, counts.evictions, counts.client_gone), (2, 0, 0), "{beside}");
        serve(addr, "a", "again").await;
        assert_eq!(stub.counts().loads, 2, "the worker's model was left alone");
    }
}

async fn embed(foreman: &Foreman) -> u16 {
    let body = json!({ "model": "embed", "input": "x" });
    post(foreman.addr, "/api/embed", &body).await.status.as_u16()
}

/// A trial of two worker models beside an embedder that costs the embedder its place has failed, too: from then on foreman
/// makes room for it, and it stays. (The embedder's loss was overlooked, and all three were taken to fit.)
#[tokio::test]
async fn a_trial_that_pushes_the_embedder_out_has_failed() {
    let stub = Stub::start(StubConfig { max_loaded: 2, ..stub_config(&["a", "b"]) }).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.beside = given("auto")).await.up().await;
    serve(foreman.addr, "a", "x").await;
    assert_eq!(embed(&foreman).await, 200);
    serve(foreman.addr, "b", "trial").await;
    assert_eq!(stub.counts().evictions, 1, "Ollama takes the shortest keep_alive: the embedder");
    for name in ["a", "b", "a"] {
        assert_eq!(embed(&foreman).await, 200);
        serve(foreman.addr, name, "x").await;
        assert!(stub.snapshot().is_resident("embed:latest"));
    }
    assert_eq!(stub.counts().evictions, 1);
    assert_eq!(foreman.status().await["since_start"]["external_unloads"], 0);
}

/// An embedder that cannot be loaded beside a worker model does not fit beside it: the next time foreman makes room first.
/// (Its failure was taken for a success, since nothing had gone.)
#[tokio::test]
async fn an_embedder_that_cannot_be_loaded_beside_a_model_gets_room() {
    let stub = Stub::start(StubConfig { max_loaded: 2, ..stub_config(&["a"]) }).await;
    let foreman = Foreman::start(&stub).await.up().await;
    serve(foreman.addr, "a", "x").await;
    // Foreman's own load, and that of the embed itself.
    let no_room = Action::FailLoad("cudaMalloc failed: out of memory".to_owned());
    stub.faults(Fault::new(no_room).model("embed").times(2));
    assert_eq!(embed(&foreman).await, 500, "Ollama tells it why");
    assert_eq!(embed(&foreman).await, 200);
    let snapshot = stub.snapshot();
    assert_eq!((snapshot.counts.unloads, snapshot.counts.evictions), (1, 0));
    assert!(!snapshot.is_resident("a:latest"), "it made room: {snapshot:?}");
}

/// An embedder that never loads costs a worker model its place once, not with each embed that somebody tries.
#[tokio::test]
async fn an_embedder_that_never_loads_cools_down() {
    let stub = Stub::start(StubConfig { max_loaded: 2, ..stub_config(&["a"]) }).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let broken = Action::FailLoad("unable to load model".to_owned());
    stub.faults(Fault::new(broken).model("embed").forever());
    for _ in 0..4 {
        serve(foreman.addr, "a", "x").await;
        assert_eq!(embed(&foreman).await, 500);
    }
    let counts = stub.counts();
    assert_eq!((counts.unloads, counts.loads, counts.evictions), (1, 2, 0), "{counts:?}");
}

/// While an embedder is known not to load, its embeds are told why and when it is tried again, and Ollama hears of none: with
/// one slot each would push the chat model out.
#[tokio::test]
async fn embeds_of_an_embedder_that_does_not_load_push_nothing_out() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let broken = Action::FailLoad("unable to load model".to_owned());
    stub.faults(Fault::new(broken).model("embed").forever());
    let ask = || async {
        post(foreman.addr, "/api/embed", &json!({ "model": "embed", "input": "x" })).await
    };
    assert_eq!(ask().await.status, 500);
    serve(foreman.addr, "a", "x").await;
    let before = (stub.counts().unloads, stub.log().len());
    for _ in 0..5 {
        let answer = ask().await;
        assert_eq!(answer.status, 500);
        assert!(answer.text().contains("unable to load model"), "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
    }
    let embeds = stub.log().split_off(before.1);
    let embeds: Vec<_> = embeds.iter().filter(|entry| entry.path == "/api/embed").collect();
    assert!(embeds.is_empty(), "{embeds:?}");
    assert_eq!(stub.counts().unloads, before.0);
    assert!(stub.snapshot().is_resident("a:latest"));
}

/// Embeds that wait for a load take no places: what is resident is embedded meanwhile.
#[tokio::test]
async fn embeds_that_wait_for_a_load_hold_up_no_others() {
    let mut config = StubConfig { max_loaded: 3, num_parallel: 8, ..stub_config(&["a"]) };
    config.models.push(Model::embedding("other"));
    let stub = Stub::start(config).await;
    let foreman =
        Foreman::start_with(&stub, |raw| raw.embed_parallel = given("1")).await.up().await;
    let addr = foreman.addr;
    assert_eq!(embed(&foreman).await, 200);
    let body = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 1_000_000 } });
    let mut chat = crate::harness::client::post_stream(addr, "/api/generate", &body).await;
    chat.next().await.unwrap().unwrap();
    let body = json!({ "model": "other", "input": "x" });
    let cold = tokio::spawn(async move { post(addr, "/api/embed", &body).await });
    foreman
        .wait_for(|status| {
            let count = |name: &str| status["embeds"][name].as_u64().unwrap();
            count("in_flight") + count("waiting") == 1
        })
        .await;
    assert_eq!(embed(&foreman).await, 200);
    drop(chat);
    assert_eq!(cold.await.unwrap().status, 200);
}

/// One slot, a flow of chats and a flow of embeds: like any other swap, an embedder waits until what it pushes out has stayed
/// for its residence, and the chats go on. (Each embed had the border at once: two chats for each load.)
#[tokio::test]
async fn embeds_do_not_push_a_busy_model_out_for_each_of_them() {
    let config = stub_config(&["a"]);
    let slow =
        |model: &Model| Model { load_time: std::time::Duration::from_millis(50), ..model.clone() };
    let models = config.models.iter().map(slow).collect();
    let stub = Stub::start(StubConfig { models, max_loaded: 1, ..config }).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.beside = given("auto")).await.up().await;
    let addr = foreman.addr;
    serve(addr, "a", "first").await;
    // The first meeting is a trial: it teaches that the two do not fit.
    assert_eq!(embed(&foreman).await, 200);
    let chats: Vec<_> = (0..2)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..100 {
                    served(ask(addr, "a", "x")).await;
                }
            })
        })
        .collect();
    let embeds = tokio::spawn(async move {
        loop {
            let body = json!({ "model": "embed", "input": "x" });
            assert_eq!(post(addr, "/api/embed", &body).await.status, 200);
        }
    });
    for client in chats {
        client.await.unwrap();
    }
    embeds.abort();
    let loads = stub.counts().loads_by_model["a:latest"];
    // A residence is a time, and on a busy machine fewer chats fit into one: some twenty loads are usual, fifty were seen. A
    // border for each embed costs a hundred at least.
    assert!(loads <= 80, "{loads} loads of the chats' model for 200 chats");
}
