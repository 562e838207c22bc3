//! Embeds beside chats: where their model fits it is loaded at once, beside whatever runs; where it does not, they have
//! visits like any other key, and the chats lose few loads to them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stub_ollama::{Capability, Model, Stub, StubConfig};
use tokio::task::JoinHandle;

use super::{ask, given, serve, served};
use crate::harness::client::{Stream, post, post_stream};
use crate::harness::{DEADLINE, Foreman, stub_config};

/// Loads take many times as long as tokens, as in reality.
fn slow_loads(names: &[&str], max_loaded: usize) -> StubConfig {
    let mut config = StubConfig { max_loaded, num_parallel: 8, ..stub_config(names) };
    config.models.push(Model::embedding("other"));
    for model in &mut config.models {
        model.load_time = Duration::from_millis(100);
    }
    config
}

async fn embed(addr: SocketAddr, model: &str) -> u16 {
    let body = json!({ "model": model, "input": "x" });
    post(addr, "/api/embed", &body).await.status.as_u16()
}

fn ask_embed(addr: SocketAddr, model: &'static str) -> JoinHandle<u16> {
    tokio::spawn(embed(addr, model))
}

async fn answered(embed: JoinHandle<u16>) {
    let status = tokio::time::timeout(DEADLINE, embed).await.expect("never answered").unwrap();
    assert_eq!(status, 200);
}

/// A chat that goes on until it is dropped.
async fn endless_chat(addr: SocketAddr, model: &str) -> Stream {
    let body = json!({ "model": model, "prompt": "x", "options": { "num_predict": 1_000_000 } });
    let mut chat = post_stream(addr, "/api/generate", &body).await;
    chat.next().await.unwrap().unwrap();
    chat
}

/// The loads of a day: a chat that asks again as soon as it is answered, and an embed every 20 ms, each from a client of its
/// own. Answers how long the embeds waited.
async fn chats_and_embeds(addr: SocketAddr, chats: usize) -> Vec<Duration> {
    let is_over = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_over);
    let embeds = tokio::spawn(async move {
        let mut clients = Vec::new();
        while !flag.load(Ordering::SeqCst) {
            clients.push(tokio::spawn(async move {
                let began = Instant::now();
                assert_eq!(embed(addr, "embed").await, 200);
                began.elapsed()
            }));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut waits = Vec::new();
        for client in clients {
            waits.push(client.await.unwrap());
        }
        waits
    });
    let body = json!({ "model": "a", "messages": [{ "role": "user", "content": "x" }],
        "stream": false, "options": { "num_predict": 30 } });
    for _ in 0..chats {
        assert_eq!(post(addr, "/api/chat", &body).await.status, 200);
    }
    is_over.store(true, Ordering::SeqCst);
    embeds.await.unwrap()
}

#[expect(clippy::print_stdout, reason = "the figures are to be read")]
fn told(who: &str, loads: u64, waits: &[Duration]) {
    let mean = waits.iter().sum::<Duration>() / u32::try_from(waits.len()).unwrap();
    let longest = waits.iter().max().unwrap();
    println!(
        "{who}: {loads} loads, {} embeds, mean wait {mean:?}, longest {longest:?}",
        waits.len()
    );
}

/// One slot, a chat in a closed loop and a flow of embeds. (Each embed that came while foreman loaded the chat's model was passed
/// on, waited in Ollama behind that load, and pushed out what had just been loaded: twice the loads of Ollama alone.)
#[tokio::test]
async fn embeds_beside_a_chat_on_one_slot_cost_a_third_of_ollamas_loads() {
    const CHATS: usize = 40;
    let alone = Stub::start(slow_loads(&["a"], 1)).await;
    let waits = chats_and_embeds(alone.addr(), CHATS).await;
    let loads_alone = alone.counts().loads;
    told("ollama alone", loads_alone, &waits);
    let stub = Stub::start(slow_loads(&["a"], 1)).await;
    let tweak = |raw: &mut foreman::config::Raw| {
        raw.beside = given("auto");
        raw.max_wait = given("embed=1s");
    };
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    let waits = chats_and_embeds(foreman.addr, CHATS).await;
    let counts = stub.counts();
    told("through foreman", counts.loads, &waits);
    assert!(counts.loads * 3 <= loads_alone, "{} loads, alone {loads_alone}", counts.loads);
    // But for the first meeting foreman makes the room, and nothing that was just loaded is pushed out.
    assert!(counts.evictions <= 1, "{counts:?}");
}

/// An embed that comes while the load runs that pushes its model out waits for the next visit.
#[tokio::test]
async fn an_embed_that_comes_during_a_load_pushes_nothing_out() {
    let stub = Stub::start(slow_loads(&["a"], 1)).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.max_wait = given("embed=1m");
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    let addr = foreman.addr;
    for _ in 0..2 {
        // The first time nobody knows that they do not fit.
        assert_eq!(embed(addr, "embed").await, 200);
        let before = stub.counts();
        stub.hold_loads();
        let chat = ask(addr, "a", "x");
        stub.wait_until(|snapshot| snapshot.loading.as_deref() == Some("a:latest")).await;
        let embeds: Vec<_> = (0..3).map(|_| ask_embed(addr, "embed")).collect();
        foreman.wait_for(|status| status["embeds"]["waiting"] == 3).await;
        stub.release_loads();
        served(chat).await;
        for embed in embeds {
            answered(embed).await;
        }
        let loads = stub.counts().loads - before.loads;
        assert_eq!(loads, 2, "one for the chat, then one for the embeds");
    }
}

/// What somebody else has loaded behind foreman is resident: ps is asked before anybody waits.
#[tokio::test]
async fn an_embed_whose_model_was_loaded_behind_foreman_waits_for_nobody() {
    let stub = Stub::start(slow_loads(&["a"], 2)).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.poll_interval = given("1h");
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    let chat = endless_chat(foreman.addr, "a").await;
    assert_eq!(embed(stub.addr(), "embed").await, 200);
    answered(ask_embed(foreman.addr, "embed")).await;
    assert_eq!(stub.snapshot().generating, ["a:latest"], "the chat still runs");
    assert_eq!(stub.counts().loads, 2, "nothing is loaded twice");
    drop(chat);
}

/// Two slots: the first embed of a cold embedder does not wait for the end of a chat, whether they were seen together or
/// not, by whatever route.
#[tokio::test]
async fn a_cold_embedder_is_loaded_beside_a_running_chat() {
    for beside in ["auto", "off"] {
        let stub = Stub::start(slow_loads(&["a"], 2)).await;
        let foreman = Foreman::start_with(&stub, |raw| raw.beside = given(beside)).await.up().await;
        let addr = foreman.addr;
        for path in ["/api/embed", "/api/embeddings", "/v1/embeddings"] {
            let chat = endless_chat(addr, "a").await;
            let body = json!({ "model": "embed", "input": "x", "prompt": "x" });
            let embed = tokio::spawn(async move { post(addr, path, &body).await });
            let answer = tokio::time::timeout(DEADLINE, embed).await.expect("waits for the chat");
            assert_eq!(answer.unwrap().status, 200);
            assert_eq!(stub.snapshot().generating, ["a:latest"], "the chat still runs");
            drop(chat);
            stub.wait_until(|snapshot| snapshot.generating.is_empty()).await;
            // As after its keep_alive.
            let gone = json!({ "model": "embed", "keep_alive": 0, "prompt": "" });
            post(stub.addr(), "/api/generate", &gone).await;
            stub.wait_until(|snapshot| !snapshot.is_resident("embed:latest")).await;
            foreman.wait_for(|status| status["resident"].as_array().unwrap().len() == 1).await;
        }
        assert_eq!(stub.counts().loads_by_model["a:latest"], 1, "{beside}: it was left alone");
        assert_eq!(stub.counts().evictions, 0);
    }
}

/// One slot and a long chat: nothing fits beside it, so the embed waits for its end, and no longer; the chat is not
/// disturbed, and a chat that follows it waits behind the embed.
#[tokio::test]
async fn on_one_slot_an_embed_waits_for_the_end_of_a_long_chat_only() {
    let stub = Stub::start(slow_loads(&["a"], 1)).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.beside = given("auto")).await.up().await;
    let addr = foreman.addr;
    let mut chat = endless_chat(addr, "a").await;
    let embed = ask_embed(addr, "embed");
    foreman.wait_for(|status| status["embeds"]["waiting"] == 1).await;
    for _ in 0..20 {
        chat.next().await.unwrap().unwrap();
        foreman.status().await;
    }
    assert!(!embed.is_finished());
    let next = ask(addr, "a", "next");
    foreman.wait_for_depth(1).await;
    drop(chat);
    answered(embed).await;
    served(next).await;
    let counts = stub.counts();
    assert_eq!((counts.loads_by_model["embed:latest"], counts.loads_by_model["a:latest"]), (1, 2));
}

/// An upload of documents, one after another, and a chat that asks without a pause, on one slot: a visit serves many of
/// them. (To leave the embedder after each embed would cost two loads for each.)
#[tokio::test]
async fn an_upload_beside_a_chat_is_served_in_visits() {
    const DOCUMENTS: u64 = 60;
    let stub = Stub::start(slow_loads(&["a"], 1)).await;
    let tweak = |raw: &mut foreman::config::Raw| {
        raw.beside = given("auto");
        raw.max_wait = given("embed=500ms");
    };
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    let addr = foreman.addr;
    serve(addr, "a", "first").await;
    let upload = tokio::spawn(async move {
        for _ in 0..DOCUMENTS {
            assert_eq!(embed(addr, "embed").await, 200);
        }
    });
    let mut chats = 0;
    while !upload.is_finished() {
        serve(addr, "a", "x").await;
        chats += 1;
    }
    upload.await.unwrap();
    let loads = stub.counts().loads_by_model["embed:latest"];
    assert!(
        loads * 4 <= DOCUMENTS,
        "{loads} visits for {DOCUMENTS} documents, {chats} chats meanwhile"
    );
}

/// Two embedders on one slot: each has its visits, and makes room for the other.
#[tokio::test]
async fn two_embedders_on_one_slot_have_their_visits() {
    let stub = Stub::start(slow_loads(&["a"], 1)).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.beside = given("auto")).await.up().await;
    let addr = foreman.addr;
    assert_eq!(embed(addr, "embed").await, 200);
    assert_eq!(embed(addr, "other").await, 200);
    let before = stub.counts().loads;
    let flow = |name: &'static str| {
        tokio::spawn(async move {
            for _ in 0..30 {
                assert_eq!(embed(addr, name).await, 200);
            }
        })
    };
    let (one, two) = (flow("embed"), flow("other"));
    serve(addr, "a", "x").await;
    one.await.unwrap();
    two.await.unwrap();
    let loads = stub.counts().loads - before;
    assert!(loads <= 20, "{loads} loads for 60 embeds and a chat");
}

/// A chat model that embeds, too: resident it serves both side by side; where it is not, its embeds wait as its jobs do, and
/// it is loaded for them with its key.
#[tokio::test]
async fn a_chat_model_embeds_beside_its_own_chats() {
    let mut config = slow_loads(&["b"], 1);
    let both = [Capability::Completion, Capability::Embedding];
    config.models.push(Model::new("a").with(&both).load_time(Duration::from_millis(100)));
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let chat = endless_chat(addr, "a").await;
    answered(ask_embed(addr, "a")).await;
    assert_eq!(stub.snapshot().generating, ["a:latest"], "the chat still runs");
    drop(chat);
    serve(addr, "b", "x").await;
    answered(ask_embed(addr, "a")).await;
    serve(addr, "a", "x").await;
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.evictions, counts.reloads), (3, 0, 0), "{counts:?}");
}

/// An embed with other runner options than those the model was loaded with would have Ollama restart the runner under the
/// jobs: it waits for its own key.
#[tokio::test]
async fn an_embed_with_other_options_waits_for_its_own_key() {
    let mut config = slow_loads(&["b"], 1);
    let both = [Capability::Completion, Capability::Embedding];
    config.models.push(Model::new("a").with(&both));
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let body = json!({ "model": "a", "prompt": "x", "options": { "num_ctx": 8192, "num_predict": 1_000_000 } });
    let mut chat = post_stream(addr, "/api/generate", &body).await;
    chat.next().await.unwrap().unwrap();
    let embed = ask_embed(addr, "a");
    foreman.wait_for(|status| status["embeds"]["waiting"] == 1).await;
    assert_eq!(stub.counts().reloads, 0);
    drop(chat);
    answered(embed).await;
    assert_eq!(stub.counts().reloads, 0, "foreman unloaded it first");
}

/// Embeds whose clients have left while they waited cause no load.
#[tokio::test]
async fn embeds_whose_clients_have_left_cause_no_load() {
    let stub = Stub::start(slow_loads(&["a"], 1)).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    // So that they are known not to fit.
    assert_eq!(embed(addr, "embed").await, 200);
    serve(addr, "a", "x").await;
    let before = stub.counts().loads;
    let chat = endless_chat(addr, "a").await;
    let embeds: Vec<_> = (0..3).map(|_| ask_embed(addr, "embed")).collect();
    foreman.wait_for(|status| status["embeds"]["waiting"] == 3).await;
    for embed in embeds {
        embed.abort();
    }
    foreman.wait_for(|status| status["embeds"]["waiting"] == 0).await;
    drop(chat);
    serve(addr, "a", "again").await;
    assert_eq!(stub.counts().loads, before);
}

/// No more than a thousand wait in memory; the next one is told so at once, and those that wait are served.
#[tokio::test]
async fn a_thousand_embeds_wait_and_no_more() {
    let stub = Stub::start(slow_loads(&["a"], 1)).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.connections_max = given("4000");
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    let addr = foreman.addr;
    assert_eq!(embed(addr, "embed").await, 200);
    let chat = endless_chat(addr, "a").await;
    let clients: Vec<_> = (0..1_010).map(|_| ask_embed(addr, "embed")).collect();
    foreman.wait_for(|status| status["embeds"]["waiting"] == 1_000).await;
    drop(chat);
    let mut refused = 0;
    for client in clients {
        match client.await.unwrap() {
            200 => (),
            503 => refused += 1,
            status => panic!("{status}"),
        }
    }
    assert_eq!(refused, 10);
}

/// Ollama is restarted while embeds wait: they are told, or served by the new one, and none hangs.
#[tokio::test]
async fn embeds_that_wait_survive_a_restart_of_ollama() {
    let stub = Stub::start(slow_loads(&["a"], 1)).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    assert_eq!(embed(addr, "embed").await, 200);
    let chat = endless_chat(addr, "a").await;
    let waiting: Vec<_> = (0..3).map(|_| ask_embed(addr, "embed")).collect();
    foreman.wait_for(|status| status["embeds"]["waiting"] == 3).await;
    stub.set_down(true).await;
    stub.unload_all();
    drop(chat);
    for client in waiting {
        assert_eq!(tokio::time::timeout(DEADLINE, client).await.unwrap().unwrap(), 502);
    }
    stub.set_down(false).await;
    let foreman = foreman.up().await;
    answered(ask_embed(foreman.addr, "embed")).await;
}

/// The reasons are shown, and the longest wait of embeds is a setting.
#[tokio::test]
async fn the_load_of_an_embedder_is_explained() {
    let stub = Stub::start(slow_loads(&["a"], 2)).await;
    let foreman = Foreman::start(&stub).await.up().await;
    assert_eq!(embed(foreman.addr, "embed").await, 200);
    let status: Value = foreman.status().await;
    assert_eq!(super::decisions(&status)[0], "load embed embed:latest");
}
