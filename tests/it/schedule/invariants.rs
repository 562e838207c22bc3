//! What other servers have got wrong: one load for many waiters, no load for those who only look, order over a restart.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use foreman::domain::dialect::Dialect;
use foreman::domain::job::{Class, JobId, Kind};
use foreman::store::{Admission, Extras, NewJob, QueueLimits, Store};
use serde_json::json;
use stub_ollama::{Stub, StubConfig};

use super::{ask, chats, known, serve, served};
use crate::harness::client::{chat_unstreamed, get, post};
use crate::harness::{Foreman, stub_config};

/// Two cold first requests for different models at once, again and again: one load each, both served.
#[tokio::test]
async fn two_cold_models_at_once_are_loaded_once_each() {
    for round in 0..5 {
        let stub = Stub::start(stub_config(&["a", "b"])).await;
        let foreman = Foreman::start(&stub).await.up().await;
        let clients = ["a", "b"].map(|model| ask(foreman.addr, model, "first"));
        for client in clients {
            served(client).await;
        }
        let counts = stub.counts();
        assert_eq!((counts.loads, counts.evictions, counts.reloads), (2, 0, 0), "round {round}");
    }
}

/// Forty waiters for a missing key, half of them from before its load began: one load.
#[tokio::test]
async fn many_waiters_for_a_missing_key_cost_one_load() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_loads();
    let mut clients: Vec<_> = (0..20).map(|_| ask(foreman.addr, "a", "early")).collect();
    stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
    clients.extend((0..20).map(|_| ask(foreman.addr, "a", "late")));
    known(&foreman, 40).await;
    stub.release_loads();
    for client in clients {
        served(client).await;
    }
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.reloads, counts.evictions), (1, 0, 0));
    assert_eq!(foreman.status().await["since_start"]["loads"], 1);
}

/// Requests that arrive while a model is on its way out, be it in a swap or because a client unloads it, are served after it.
#[tokio::test]
async fn a_request_that_arrives_during_an_unload_is_served_after_it() {
    let config = StubConfig { unload_time: Duration::from_millis(300), ..stub_config(&["a", "b"]) };
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    serve(addr, "a", "one").await;
    stub.hold_loads();
    let other = ask(addr, "b", "other");
    stub.wait_until(|snapshot| snapshot.counts.unloads == 1).await;
    let meanwhile = [ask(addr, "a", "meanwhile"), ask(addr, "b", "meanwhile")];
    known(&foreman, 3).await;
    stub.release_loads();
    served(other).await;
    for client in meanwhile {
        served(client).await;
    }
    assert_eq!(stub.counts().loads, 3, "a, b, a");
    let unload = json!({ "model": "a", "keep_alive": 0 });
    let unload = tokio::spawn(async move { post(addr, "/api/generate", &unload).await });
    stub.wait_until(|snapshot| snapshot.counts.unloads == 3).await;
    let late = ask(addr, "a", "late");
    assert_eq!(unload.await.unwrap().status, 200);
    served(late).await;
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.evictions, counts.reloads), (4, 0, 0));
}

/// Who only looks loads nothing.
#[tokio::test]
async fn metadata_calls_never_cause_a_load() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for path in ["/api/tags", "/api/ps", "/api/version", "/", "/v1/models", "/v1/models/a"] {
        assert_eq!(get(foreman.addr, path).await.status, 200, "{path}");
    }
    for body in [json!({ "model": "a" }), json!({ "model": "a", "verbose": true })] {
        assert_eq!(post(foreman.addr, "/api/show", &body).await.status, 200);
    }
    let snapshot = stub.snapshot();
    assert_eq!((snapshot.counts.loads, snapshot.resident.len()), (0, 0));
    serve(foreman.addr, "a", "x").await;
    post(foreman.addr, "/api/show", &json!({ "model": "b" })).await;
    assert_eq!((stub.counts().loads, stub.counts().unloads), (1, 0));
}

/// The same model with another `num_ctx` is another key: a swap, made by foreman's own unload, not a reload of Ollama's.
#[tokio::test]
async fn another_num_ctx_is_a_swap() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let mut wide = chat_unstreamed("a", "wide");
    wide["options"] = json!({ "num_ctx": 8192 });
    serve(foreman.addr, "a", "plain").await;
    for _ in 0..3 {
        assert_eq!(post(foreman.addr, "/api/chat", &wide).await.status, 200);
    }
    assert_eq!(stub.snapshot().resident[0].num_ctx, 8192);
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.unloads, counts.reloads), (2, 1, 0));
    let since = &foreman.status().await["since_start"];
    assert_eq!((&since["loads"], &since["swaps"]), (&json!(2), &json!(1)));
}

/// A thousand jobs over three keys, admitted before a restart: one load a key, and inside a key the order of arrival. They
/// are all of one class then, since the connections they were for are gone.
#[tokio::test]
async fn a_restart_with_a_thousand_queued_keeps_their_order() {
    const JOBS: usize = 1_000;
    let models = ["a", "b", "c"];
    let config =
        StubConfig { token_time: Duration::ZERO, default_tokens: 1, ..stub_config(&models) };
    let stub = Stub::start(config).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let (store, _) = Store::open(&db, 1).unwrap();
    let limits = QueueLimits { jobs_max: 10_000, bytes_max: u64::MAX, class_max: [None; 3] };
    let admitting: Vec<_> = (0..JOBS)
        .map(|number| {
            let (store, model) = (store.clone(), models[number * 7 % 3]);
            let class = Class::ALL[number * 5 % 3];
            tokio::spawn(async move { store.admit(job(model, class, number), limits, 2).await })
        })
        .collect();
    let mut arrivals = BTreeMap::new();
    for (number, admitted) in admitting.into_iter().enumerate() {
        let Admission::Admitted { seq } = admitted.await.unwrap().unwrap() else {
            panic!("the queue is full")
        };
        arrivals.insert(seq, number);
    }
    store.close().await;
    drop(store);
    let foreman = Foreman::start_on(&stub.url(), &db, |_| ()).await.up().await;
    foreman.wait_for(|status| status["stored"]["done"] == JOBS).await;
    let chats = chats(&stub);
    assert_eq!(chats.len(), JOBS);
    for model in models {
        let of_model = |number: &&usize| models[**number * 7 % 3] == model;
        let wanted: Vec<String> =
            arrivals.values().filter(of_model).map(ToString::to_string).collect();
        let got: Vec<String> =
            chats.iter().filter(|(name, _)| name == model).map(|(_, text)| text.clone()).collect();
        assert_eq!(got, wanted, "{model}");
    }
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.evictions, counts.models_generating_max), (3, 0, 1));
    foreman.stop().await;
}

fn job(model: &str, class: Class, number: usize) -> NewJob {
    NewJob {
        id: JobId(ulid::Ulid::generate()),
        dialect: Dialect::Chat,
        kind: Kind::Run,
        lane: format!("{model}:latest"),
        model: model.to_owned(),
        class,
        client: String::new(),
        is_streamed: false,
        path_and_query: "/api/chat".to_owned(),
        headers: Vec::new(),
        body: Bytes::from(chat_unstreamed(model, &number.to_string()).to_string()),
        extras: Extras::default(),
    }
}
