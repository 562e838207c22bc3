//! Somebody else on the same Ollama: foreman serves its jobs and does not fight.

use std::time::Duration;

use stub_ollama::{Model, Stub, StubConfig};

use super::{ask, given, load_times, serve, served};
use crate::harness::Foreman;

/// Foreman never loads a key that was pushed out again before this many of its load times have passed.
const RESIDENCE_LOADS: u128 = 8;

/// Somebody pushes foreman's model out again and again: each time is counted, the jobs are served all the same, and foreman
/// loads no faster than once in eight load times.
#[tokio::test]
async fn a_model_pushed_out_by_others_comes_back_no_faster_than_its_residence() {
    let load_time = Duration::from_millis(200);
    let models = ["a", "b"].map(|name| Model::new(name).load_time(load_time));
    let stub = Stub::start(StubConfig {
        token_time: Duration::from_millis(1),
        ..StubConfig::with_models(models)
    })
    .await;
    let tweak = |raw: &mut foreman::config::Raw| raw.poll_interval = given("50ms");
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    serve(foreman.addr, "a", "0").await;
    for round in 1..=3_u64 {
        served(ask(stub.addr(), "b", "direct")).await;
        foreman.wait_for(|status| status["since_start"]["external_unloads"] == round).await;
        let pair = [ask(foreman.addr, "a", "x"), ask(foreman.addr, "a", "y")];
        for client in pair {
            served(client).await;
        }
    }
    let at_ms = load_times(&stub, "a");
    assert_eq!(at_ms.len(), 4, "{at_ms:?}");
    for pair in at_ms.windows(2) {
        let pause = pair[1] - pair[0];
        assert!(pause >= RESIDENCE_LOADS * load_time.as_millis(), "{at_ms:?}");
    }
    let counts = stub.counts();
    assert_eq!(counts.evictions, 3, "only the others' loads pushed anything out: {counts:?}");
}
