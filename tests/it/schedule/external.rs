//! Somebody else on the same Ollama: foreman serves its jobs and does not fight.

use std::time::Duration;

use stub_ollama::{Model, Stub, StubConfig};
use tokio::task::JoinHandle;

use super::{ask, given, load_times, serve, served};
use crate::harness::Foreman;

/// Foreman never loads a key that was pushed out again before this many of its load times have passed.
const RESIDENCE_LOADS: u128 = 8;

const LOAD_TIME: Duration = Duration::from_millis(200);

async fn two_models() -> Stub {
    let models = ["a", "b"].map(|name| Model::new(name).load_time(LOAD_TIME));
    Stub::start(StubConfig {
        token_time: Duration::from_millis(1),
        ..StubConfig::with_models(models)
    })
    .await
}

fn polls_often(raw: &mut foreman::config::Raw) {
    raw.poll_interval = given("50ms");
}

/// Somebody who uses a model past foreman, one question after the other, until it is aborted.
fn others_use(stub: &Stub, model: &'static str) -> JoinHandle<()> {
    let addr = stub.addr();
    tokio::spawn(async move {
        loop {
            drop(ask(addr, model, "direct").await);
        }
    })
}

/// Somebody pushes foreman's model out again and again and goes on: each time is counted, the jobs are served all the same, and
/// foreman loads no faster than once in eight load times.
#[tokio::test]
async fn a_model_pushed_out_by_others_comes_back_no_faster_than_its_residence() {
    let stub = two_models().await;
    let foreman = Foreman::start_with(&stub, polls_often).await.up().await;
    serve(foreman.addr, "a", "0").await;
    let others = others_use(&stub, "b");
    for round in 1..=3_u64 {
        foreman
            .wait_for(|status| status["since_start"]["external_unloads"].as_u64() >= Some(round))
            .await;
        let asked = ask(foreman.addr, "a", "x");
        foreman
            .wait_for(|status| {
                status["queue"]["lanes"][0]["blocked"]["reason"] == "pushed-out"
                    || status["queue"]["depth"] == 0
            })
            .await;
        served(asked).await;
    }
    others.abort();
    let at_ms = load_times(&stub, "a");
    assert!(at_ms.len() >= 4, "{at_ms:?}");
    for pair in at_ms.windows(2) {
        let pause = pair[1] - pair[0];
        assert!(pause >= RESIDENCE_LOADS * LOAD_TIME.as_millis(), "{at_ms:?}");
    }
}

/// One use of Ollama past foreman, then nothing: the job is served once the GPU is seen to be idle. (It waited for eight times
/// a load time that nobody had measured: 80 s.)
#[tokio::test]
async fn one_use_past_foreman_stalls_nobody() {
    let stub = two_models().await;
    served(ask(stub.addr(), "a", "before foreman was started")).await;
    let foreman = Foreman::start_with(&stub, polls_often).await.up().await;
    serve(foreman.addr, "a", "its load only confirms what is there").await;
    served(ask(stub.addr(), "b", "direct")).await;
    foreman.wait_for(|status| status["since_start"]["external_unloads"] == 1).await;
    serve(foreman.addr, "a", "x").await;
}

/// A class that waits less than the ban of its key is not made late by it.
#[tokio::test]
async fn others_make_no_job_late() {
    let stub = two_models().await;
    served(ask(stub.addr(), "a", "before foreman was started")).await;
    let tweak = |raw: &mut foreman::config::Raw| {
        polls_often(raw);
        raw.max_wait = given("12s");
    };
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    serve(foreman.addr, "a", "its load only confirms what is there").await;
    let others = others_use(&stub, "b");
    foreman.wait_for(|status| status["since_start"]["external_unloads"] == 1).await;
    serve(foreman.addr, "a", "x").await;
    others.abort();
}
