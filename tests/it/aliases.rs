//! Names that share a runner share its key: one load serves them all. What a model file says counts as much as a request.

use serde_json::{Value, json};
use stub_ollama::{Action, Fault, Model, Stage, Stub, StubConfig};

use crate::harness::client::{Answer, chat, chat_unstreamed, get, post, send};
use crate::harness::{Foreman, model, stub_config};

const BLOB: &str = "sha256-0a";

/// A name on the one blob.
fn alias(name: &str) -> Model {
    model(name).blob(BLOB)
}

async fn started(models: impl IntoIterator<Item = Model>) -> (Stub, Foreman) {
    let stub = Stub::start(with(models)).await;
    let foreman = Foreman::start(&stub).await.up().await;
    (stub, foreman)
}

fn with(models: impl IntoIterator<Item = Model>) -> StubConfig {
    let mut config = stub_config(&[]);
    config.models.extend(models);
    config
}

async fn served(foreman: &Foreman, name: &str) {
    served_with(foreman, name, json!({})).await;
}

async fn served_with(foreman: &Foreman, name: &str, options: Value) {
    let mut body = chat_unstreamed(name, "x");
    body["options"] = options;
    let answer = post(foreman.addr, "/api/chat", &body).await;
    assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    assert_eq!(answer.json()["model"], name);
}

/// Loads so far; none of them, nor any job, made Ollama reload or evict by itself.
fn loads(stub: &Stub) -> u64 {
    let counts = stub.counts();
    assert_eq!((counts.reloads, counts.evictions, counts.aborted_loads), (0, 0, 0), "{counts:?}");
    counts.loads
}

fn shows(stub: &Stub) -> Vec<String> {
    let log = stub.log();
    let shows = log.iter().filter(|entry| entry.path == "/api/show");
    shows.map(|entry| entry.model.clone().unwrap_or_default()).collect()
}

/// What foreman's own load and unload requests were, in order.
fn own_requests(stub: &Stub) -> Vec<Value> {
    let log = stub.log();
    let own = log.iter().filter(|entry| entry.path == "/api/generate");
    own.map(|entry| serde_json::from_slice(&entry.body).unwrap()).collect()
}

async fn swaps(foreman: &Foreman) -> Value {
    foreman.status().await["since_start"]["swaps"].clone()
}

#[tokio::test]
async fn all_names_of_a_blob_are_served_by_one_load() {
    let (stub, foreman) = started([alias("zed"), alias("assistant"), alias("mid")]).await;
    for name in ["zed", "assistant", "mid", "Library/ZED:latest", "registry.ollama.ai/library/mid"]
    {
        served(&foreman, name).await;
    }
    assert_eq!(loads(&stub), 1);
    assert_eq!(swaps(&foreman).await, 0);
    assert!(stub.snapshot().is_resident("zed:latest"), "the name that was asked for first");
    let status = foreman.status().await;
    assert_eq!(status["resident"].as_array().map(Vec::len), Some(1), "{status:#}");
    assert_eq!(status["resident"][0]["key"], "assistant:latest");
}

/// Programs look into ps for the model that they use (Ollama's own tests do): it is there by the name they asked for.
#[tokio::test]
async fn a_twin_is_loaded_under_the_name_that_is_asked_for() {
    let (stub, foreman) = started([model("tiny").blob(BLOB), model("other")]).await;
    let copy = json!({ "source": "tiny", "destination": "det9" });
    assert_eq!(post(foreman.addr, "/api/copy", &copy).await.status, 200);
    for name in ["det9", "other", "tiny", "other", "library/DET9"] {
        served(&foreman, name).await;
        let ps = get(foreman.addr, "/api/ps").await.json();
        let loaded = name.rsplit('/').next().unwrap().to_lowercase();
        assert_eq!(ps["models"].as_array().map(Vec::len), Some(1), "{ps:#}");
        assert_eq!(ps["models"][0]["name"], format!("{loaded}:latest"), "{ps:#}");
        let status = foreman.status().await;
        assert_eq!(status["resident"].as_array().map(Vec::len), Some(1), "{status:#}");
    }
    served(&foreman, "tiny").await;
    assert_eq!(loads(&stub), 5, "the runner of one name serves the other");
    assert_eq!(foreman.status().await["since_start"]["external_unloads"], 0);
}

/// Ollama clamps a context to the trained one before it compares: foreman's keys must too, or it swaps where Ollama would not.
#[tokio::test]
async fn contexts_above_the_trained_one_are_served_by_one_load() {
    let trained = |name: &str| Model { context_length: 2_048, ..alias(name) };
    let (stub, foreman) =
        started([trained("m"), trained("large").parameter("num_ctx", "65536")]).await;
    for context in [32_768, 131_072, 2_048, 40_000] {
        served_with(&foreman, "m", json!({ "num_ctx": context })).await;
        served(&foreman, "large").await;
        let v1 = json!({ "model": "large", "messages": [{ "role": "user", "content": "x" }] });
        assert_eq!(post(foreman.addr, "/v1/chat/completions", &v1).await.status, 200);
    }
    assert_eq!(loads(&stub), 1);
    let status = foreman.status().await;
    assert_eq!(status["resident"][0]["key"], "m:latest num_ctx=2048", "{status:#}");
    served_with(&foreman, "m", json!({ "num_ctx": 1_024 })).await;
    assert_eq!(loads(&stub), 2);
}

#[tokio::test]
async fn a_parameter_of_the_file_counts_as_an_option_of_the_request() {
    let small = alias("small").parameter("num_ctx", "2048").parameter("stop", "<end>");
    let (stub, foreman) = started([small, alias("zed")]).await;
    served(&foreman, "small").await;
    served_with(&foreman, "zed", json!({ "num_ctx": 2048 })).await;
    served_with(&foreman, "small", json!({ "temperature": 0.5 })).await;
    assert_eq!(loads(&stub), 1);
    served(&foreman, "zed").await;
    served_with(&foreman, "small", json!({ "num_ctx": 512 })).await;
    served_with(&foreman, "zed", json!({ "num_ctx": 512 })).await;
    served(&foreman, "small").await;
    assert_eq!(loads(&stub), 4, "each other context is a swap of foreman's own");
    assert_eq!(swaps(&foreman).await, 3);
    let requests = own_requests(&stub);
    let loads: Vec<(&Value, &Value)> = requests
        .iter()
        .filter(|body| body["keep_alive"] == -1)
        .map(|body| (&body["model"], &body["options"]["num_ctx"]))
        .collect();
    let (small, zed) = (json!("small:latest"), json!("zed:latest"));
    let expected = [(&small, &json!(2048)), (&zed, &Value::Null)];
    assert_eq!(loads, [&expected[..], &[(&small, &json!(512)), (&small, &json!(2048))]].concat());
}

/// Mixed arrivals drain together, whatever name they come under.
#[tokio::test]
async fn names_of_one_runner_drain_together() {
    let (stub, foreman) = started([alias("a"), alias("z"), model("other")]).await;
    stub.hold_loads();
    let mut clients = Vec::new();
    for (number, name) in (1_u64..).zip(["other", "z", "other", "a", "other", "z"]) {
        let addr = foreman.addr;
        clients.push(tokio::spawn(async move { post(addr, "/api/chat", &chat(name, "x")).await }));
        foreman
            .wait_for(|status| {
                let running = status["running"].as_array().map_or(0, Vec::len);
                status["queue"]["depth"].as_u64() == Some(number - u64::try_from(running).unwrap())
            })
            .await;
    }
    let lanes = foreman.status().await["queue"]["lanes"].clone();
    assert_eq!(lanes.as_array().map(Vec::len), Some(2), "{lanes:#}");
    stub.release_loads();
    for client in clients {
        assert!(client.await.unwrap().is_whole);
    }
    assert_eq!(loads(&stub), 2);
}

/// Adapters and projectors are other runners: foreman swaps between them, Ollama never reloads.
#[tokio::test]
async fn names_with_other_adapters_are_other_runners() {
    let names =
        [alias("a"), alias("b").adapter("/b/sha256-0b"), alias("c").projector("/b/sha256-0c")];
    let (stub, foreman) = started(names).await;
    for name in ["a", "b", "a", "c", "b"] {
        served(&foreman, name).await;
    }
    assert_eq!(loads(&stub), 5);
    assert_eq!(swaps(&foreman).await, 4);
}

/// The copy's name comes first in the alphabet: it does not become the one that loads.
#[tokio::test]
async fn a_copy_of_the_resident_model_needs_no_load() {
    let (stub, foreman) = started([alias("m").parameter("num_ctx", "2048")]).await;
    served(&foreman, "m").await;
    let copy = json!({ "source": "m", "destination": "copy" });
    assert_eq!(post(foreman.addr, "/api/copy", &copy).await.status, 200);
    served(&foreman, "copy").await;
    let create =
        json!({ "model": "another", "from": "m", "parameters": { "seed": 1 }, "stream": false });
    assert_eq!(post(foreman.addr, "/api/create", &create).await.status, 200);
    foreman.wait_for(|status| status["upstream"]["models"] == 4).await;
    served(&foreman, "another").await;
    served(&foreman, "m").await;
    assert_eq!(loads(&stub), 1);
}

#[tokio::test]
async fn the_others_are_served_when_the_name_that_loads_is_deleted() {
    let (stub, foreman) = started([alias("a"), alias("b"), alias("c")]).await;
    served(&foreman, "c").await;
    let delete = |name: &str| json!({ "model": name }).to_string();
    let answer: Answer = send(foreman.addr, "DELETE", "/api/delete", delete("b")).await;
    assert_eq!(answer.status, 200);
    served(&foreman, "c").await;
    assert_eq!(loads(&stub), 1, "another name of the runner is deleted without an unload");
    assert_eq!(send(foreman.addr, "DELETE", "/api/delete", delete("a")).await.status, 200);
    stub.wait_until(|snapshot| snapshot.resident.is_empty()).await;
    served(&foreman, "c").await;
    assert_eq!(loads(&stub), 2);
    assert!(stub.snapshot().is_resident("c:latest"));
    assert_eq!(foreman.status().await["since_start"]["external_unloads"], 0);
}

/// Deleted at Ollama itself, the runner stays under a name that is gone: it is known by its file.
#[tokio::test]
async fn a_runner_whose_name_was_deleted_beside_foreman_is_known_again() {
    let (stub, foreman) =
        started([alias("a").parameter("seed", "1").digest_of_contents(), alias("b")]).await;
    served(&foreman, "a").await;
    assert!(stub.snapshot().is_resident("a:latest"));
    let body = json!({ "model": "a" }).to_string();
    assert_eq!(send(stub.addr(), "DELETE", "/api/delete", body).await.status, 200);
    foreman.wait_for(|status| status["upstream"]["models"] == 2).await;
    for _ in 0..3 {
        served(&foreman, "b").await;
    }
    assert_eq!(loads(&stub), 1);
    assert_eq!(swaps(&foreman).await, 0);
    let status = foreman.wait_for(|status| status["resident"][0]["key"] == "b:latest").await;
    assert_eq!(status["resident"].as_array().map(Vec::len), Some(1), "{status:#}");
}

/// Ps lists a runner under the name it was loaded by, which need not be foreman's.
#[tokio::test]
async fn a_runner_loaded_by_others_under_another_name_is_recognised() {
    let (stub, foreman) = started([alias("a"), alias("z")]).await;
    assert_eq!(post(stub.addr(), "/api/chat", &chat_unstreamed("z", "x")).await.status, 200);
    served(&foreman, "a").await;
    served(&foreman, "z").await;
    assert_eq!(loads(&stub), 1);
    assert!(stub.snapshot().is_resident("z:latest"));
    assert_eq!(swaps(&foreman).await, 0);
}

/// Ollama unloads by blob, so any name will do.
#[tokio::test]
async fn an_unload_under_any_name_unloads_the_runner() {
    let (stub, foreman) = started([alias("a"), alias("z")]).await;
    served(&foreman, "z").await;
    let unload = json!({ "model": "z", "keep_alive": 0 });
    let answer = post(foreman.addr, "/api/generate", &unload).await;
    assert_eq!(answer.json()["done_reason"], "unload");
    stub.wait_until(|snapshot| snapshot.resident.is_empty()).await;
    assert_eq!(foreman.status().await["resident"], json!([]));
    served(&foreman, "a").await;
    assert_eq!(loads(&stub), 2);
    let mut last = chat_unstreamed("z", "x");
    last["keep_alive"] = json!(0);
    assert_eq!(post(foreman.addr, "/api/chat", &last).await.status, 200);
    stub.wait_until(|snapshot| snapshot.resident.is_empty()).await;
}

/// The configured embedder under one name, embeds under another: it is never a victim, nor loaded twice.
#[tokio::test]
async fn an_embedder_is_one_under_all_its_names() {
    let vectors = Model { name: "vectors:latest".to_owned(), ..Model::embedding("embed") };
    let config = StubConfig { max_loaded: 2, ..with([vectors, model("a"), model("b")]) };
    let stub = Stub::start(config).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.embed_model = Some("vectors".to_owned());
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    stub.wait_until(|snapshot| snapshot.is_resident("vectors:latest")).await;
    for name in ["a", "b"] {
        served(&foreman, name).await;
        let embed = json!({ "model": "embed", "input": "x" });
        assert_eq!(post(foreman.addr, "/api/embed", &embed).await.status, 200);
    }
    assert_eq!(loads(&stub), 3);
    let status = foreman.wait_for(|status| status["resident"].as_array().unwrap().len() == 2).await;
    assert!(status["resident"].as_array().unwrap().iter().any(|it| it["is_embedder"] == true));
}

/// One show for each digest, however many requests want it at once, and however long foreman runs.
#[tokio::test]
async fn a_file_is_asked_for_once_per_digest() {
    let names = ["a", "b", "c"].map(|name| alias(name).digest_of_contents());
    let (stub, foreman) = started(names.into_iter().chain([model("other")])).await;
    let clients: Vec<_> = ["a", "b", "c", "a", "b", "c", "other", "other"]
        .into_iter()
        .map(|name| {
            let addr = foreman.addr;
            tokio::spawn(async move { post(addr, "/api/chat", &chat(name, "x")).await })
        })
        .collect();
    for client in clients {
        assert!(client.await.unwrap().is_whole);
    }
    let polls = |stub: &Stub| stub.log().iter().filter(|entry| entry.path == "/api/tags").count();
    let before = polls(&stub);
    stub.wait_for_log(|log| log.iter().filter(|entry| entry.path == "/api/tags").count() > before)
        .await;
    served(&foreman, "a").await;
    let shown = shows(&stub);
    assert_eq!(shown.len(), 2, "{shown:?}");
    loads(&stub);
}

/// Without model files every name is a model of its own, as its requests say.
#[tokio::test]
async fn an_upstream_without_show_is_served_by_name() {
    for status in [404, 500] {
        let stub = Stub::start(with([alias("a"), alias("z")])).await;
        let refusal = Action::Answer {
            status,
            text: "no".to_owned(),
            retry_after_seconds: None,
            stage: Stage::BeforeLoad,
        };
        stub.faults(Fault::new(refusal).path("/api/show").forever());
        let foreman = Foreman::start(&stub).await.up().await;
        for name in ["a", "A", "z"] {
            served(&foreman, name).await;
        }
        assert_eq!(loads(&stub), 2);
        assert_eq!(swaps(&foreman).await, 1);
    }
}

/// A show that hangs holds requests up once, not each of them.
#[tokio::test]
async fn a_show_that_hangs_is_waited_for_once() {
    let stub = Stub::start(with([alias("a"), alias("z"), model("b")])).await;
    stub.faults(Fault::new(Action::HangBeforeHeaders).path("/api/show").forever());
    let tweak = |raw: &mut foreman::config::Raw| raw.poll_interval = Some("1h".to_owned());
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    for name in ["a", "b", "z", "a"] {
        served(&foreman, name).await;
    }
    assert_eq!(shows(&stub).len(), 1);
    loads(&stub);
}

/// Jobs that were queued by name, before the files were known, are served beside those queued by file.
#[tokio::test]
async fn jobs_queued_under_an_older_key_still_run() {
    let stub = Stub::start(with([alias("a"), alias("z").parameter("num_ctx", "2048")])).await;
    let refusal = Action::Answer {
        status: 500,
        text: "no".to_owned(),
        retry_after_seconds: None,
        stage: Stage::BeforeLoad,
    };
    stub.faults(Fault::new(refusal).path("/api/show").forever());
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_loads();
    let mut clients = Vec::new();
    let mut ask = |name: &'static str| {
        let addr = foreman.addr;
        clients.push(tokio::spawn(async move { post(addr, "/api/chat", &chat(name, "x")).await }));
    };
    for name in ["a", "z", "z", "z"] {
        ask(name);
    }
    foreman.wait_for(|status| status["queue"]["depth"] == 3).await;
    stub.clear_faults();
    let tags = |stub: &Stub| stub.log().iter().filter(|entry| entry.path == "/api/tags").count();
    let before = tags(&stub);
    stub.wait_for_log(|log| log.iter().filter(|it| it.path == "/api/tags").count() > before + 1)
        .await;
    for name in ["z", "a", "z"] {
        ask(name);
    }
    foreman.wait_for(|status| status["queue"]["depth"] == 6).await;
    let status = foreman.status().await;
    let lanes: Vec<&str> = status["queue"]["lanes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|lane| lane["lane"].as_str().unwrap())
        .collect();
    assert!(lanes.contains(&"z:latest") && lanes.contains(&"a:latest num_ctx=2048"), "{lanes:?}");
    stub.release_loads();
    for client in clients {
        assert!(client.await.unwrap().is_whole);
    }
    assert!(loads(&stub) <= 4, "a load for each key at most: {:?}", stub.counts());
}
