//! Random clients under random settings: whatever they do, the rules that every schedule keeps hold.

use std::net::SocketAddr;
use std::time::Duration;

use foreman::clock::Clock;
use foreman::config::Raw;
use serde_json::{Value, json};
use stub_ollama::{Stub, StubConfig};

use super::{given, load_times};
use crate::harness::client::{chat, get, open, post, request};
use crate::harness::random::Random;
use crate::harness::{Foreman, stub_config};

const MODELS: [&str; 3] = ["a", "b", "c"];
const CLIENTS: u64 = 6;
const STEPS: u64 = 12;
const DAYS: u64 = 4;

/// Sets of models that may have to be tried: pairs, and all three, each with the embedder and without.
const TRIALS_MAX: u64 = 8;

/// What is set for one day.
#[derive(Debug)]
struct Settings {
    beside: &'static str,
    hold: &'static str,
    parallel: &'static str,
    max_wait: &'static str,
    max_loaded: usize,
}

impl Settings {
    fn random(random: &mut Random) -> Settings {
        Settings {
            beside: random.one_of(&["off", "auto"]),
            hold: random.one_of(&["off", "auto", "50ms"]),
            parallel: random.one_of(&["1", "3"]),
            max_wait: random.one_of(&["interactive=100ms,normal=300ms,batch=2s", "2m"]),
            // Room for the embedder beside at least one.
            max_loaded: random.one_of(&[2, 3]),
        }
    }

    fn tweak(&self, raw: &mut Raw) {
        raw.beside = given(self.beside);
        raw.hold = given(self.hold);
        raw.parallel = given(self.parallel);
        raw.max_wait = given(self.max_wait);
    }
}

/// A request of a random kind. What stays must be answered well.
async fn step(addr: SocketAddr, random: &mut Random) {
    let model = random.one_of(&MODELS);
    match random.below(12) {
        0 => {
            let body = json!({ "model": "embed", "input": "x" });
            assert_eq!(post(addr, "/api/embed", &body).await.status, 200);
        }
        1 => {
            let body = json!({ "model": model, "keep_alive": 0 });
            assert_eq!(post(addr, "/api/generate", &body).await.status, 200);
        }
        2 => {
            let asked = request(addr, "POST", "/api/chat", chat(model, "leaves").to_string());
            let leaving = tokio::spawn(open(addr, asked));
            for _ in 0..random.below(5) {
                get(addr, "/api/version").await;
            }
            leaving.abort();
        }
        _ => {
            let mut body = chat(model, "stays");
            body["stream"] = Value::Bool(random.below(2) == 0);
            if random.below(4) == 0 {
                body["options"] = json!({ "num_ctx": 8192 });
            }
            let mut asked = request(addr, "POST", "/api/chat", body.to_string());
            let class = random.one_of(&["interactive", "normal", "batch"]);
            asked.headers_mut().insert("x-foreman-priority", class.parse().unwrap());
            let answer = open(addr, asked).await.unwrap().rest().await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert!(answer.is_whole && answer.text().contains("\"done\":true"));
        }
    }
}

async fn client(addr: SocketAddr, mut random: Random) {
    for _ in 0..STEPS {
        step(addr, &mut random).await;
    }
}

/// Everybody who stays is answered, no two models ever generate at once, Ollama reloads nothing by itself and evicts
/// nothing but in trials, and no more is loaded than there are jobs.
#[tokio::test]
async fn a_random_day_keeps_the_rules() {
    let given_seed = std::env::var("FOREMAN_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = given_seed.unwrap_or_else(|| u64::try_from(Clock::system().now_ms()).unwrap());
    println!("FOREMAN_TEST_SEED={seed}");
    for day in 0..DAYS {
        let mut random = Random::new(seed, day * 1_000);
        let settings = Settings::random(&mut random);
        println!("day {day}: {settings:?}");
        let stub = Stub::start(StubConfig {
            max_loaded: settings.max_loaded,
            num_parallel: 3,
            unload_time: Duration::from_millis(random.below(2) * 10),
            ..stub_config(&MODELS)
        })
        .await;
        let foreman = Foreman::start_with(&stub, |raw| settings.tweak(raw)).await.up().await;
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|number| {
                let random = Random::new(seed, day * 1_000 + number);
                tokio::spawn(client(foreman.addr, random))
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        let status = foreman
            .wait_for(|status| {
                status["queue"]["depth"] == 0 && status["running"].as_array().unwrap().is_empty()
            })
            .await;
        check(&stub, &settings, &status);
    }
}

fn check(stub: &Stub, settings: &Settings, status: &Value) {
    let counts = stub.counts();
    let since = &status["since_start"];
    assert!(counts.models_generating_max <= 1, "{counts:?}");
    assert_eq!((counts.reloads, counts.aborted_loads), (0, 0), "{counts:?}");
    let evictions_max = if settings.beside == "off" { 0 } else { TRIALS_MAX };
    assert!(counts.evictions <= evictions_max, "{counts:?}");
    assert_eq!(
        (&since["failed"], &since["wedges"], &since["retries"]),
        (&0.into(), &0.into(), &0.into())
    );
    // An embed that meets a trial may find its model just gone, and then Ollama loads it.
    assert!(since["external_unloads"].as_u64().unwrap() <= evictions_max, "{since}");
    let loads: usize = MODELS.iter().map(|model| load_times(stub, model).len()).sum();
    let jobs = since["done"].as_u64().unwrap() + since["cancelled"].as_u64().unwrap();
    assert!(u64::try_from(loads).unwrap() <= jobs, "{loads} loads for {jobs} jobs");
    let parallel: u64 = settings.parallel.parse().unwrap();
    assert!(counts.generations_max <= parallel, "{counts:?}");
    if settings.beside == "off" {
        let workers = status["resident"].as_array().unwrap().iter();
        assert!(workers.filter(|entry| entry["is_embedder"] == false).count() <= 1, "{status:#}");
    }
}
