//! What a key may have running: it is passed over, and nothing is loaded or held up for it.

use serde_json::{Value, json};

use super::{ALICE, BOB, House, with_alice};
use crate::harness::client::chat;
use crate::harness::stub_config;

/// A house that runs four at once, of whom Alice may have one.
async fn house() -> House {
    let mut stub = stub_config(&["a", "b"]);
    stub.num_parallel = 4;
    let parallel = |raw: &mut foreman::config::Raw| raw.parallel = Some("4".to_owned());
    let lines = with_alice(&json!({ "in_flight_max": 1 }));
    let house = House::start_with(&lines, stub, parallel).await;
    house.stub.hold_tokens();
    house
}

async fn states(house: &House, key: &str) -> Vec<Value> {
    let list = house.get(key, "/jobs?limit=100").await.json();
    list["data"].as_array().unwrap().iter().map(|job| job["state"].clone()).collect()
}

#[tokio::test]
async fn a_key_has_no_more_running_than_it_may_and_others_go_before() {
    let house = house().await;
    let mut of_alice = Vec::new();
    for _ in 0..5 {
        of_alice.push(house.submit(ALICE, "a").await);
    }
    house.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    for _ in 0..2 {
        house.submit(BOB, "a").await;
    }
    house.stub.wait_until(|snapshot| snapshot.generating.len() == 3).await;
    let running = |states: &[Value]| states.iter().filter(|state| *state == "working").count();
    assert_eq!(running(&states(&house, ALICE).await), 1);
    assert_eq!(running(&states(&house, BOB).await), 2);
    house.stub.release_tokens();
    for id in &of_alice {
        assert_eq!(house.ended(ALICE, id).await["state"], "done", "all of them run in the end");
    }
    assert_eq!(
        house.wait_for(|status| status["stored"]["done"] == 7).await["since_start"]["loads"],
        1
    );
}

/// Its jobs for another model are neither loaded for, though they are long overdue, nor in the way of anybody.
#[tokio::test]
async fn no_model_is_loaded_for_jobs_that_may_not_run() {
    let mut stub = stub_config(&["a", "b"]);
    stub.num_parallel = 4;
    let lines = with_alice(&json!({ "in_flight_max": 1 }));
    let house = House::start_with(&lines, stub, |raw| {
        raw.parallel = Some("4".to_owned());
        raw.max_wait = Some("interactive=1ms,normal=1ms,batch=1ms".to_owned());
        raw.hold = Some("off".to_owned());
    });
    let house = house.await;
    house.stub.hold_tokens();
    let first = house.submit(ALICE, "a").await;
    house.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let other = house.submit(ALICE, "b").await;
    let mut of_bob = Vec::new();
    for _ in 0..3 {
        of_bob.push(house.submit(BOB, "a").await);
    }
    house.stub.wait_until(|snapshot| snapshot.generating.len() == 4).await;
    let status = house.wait_for(|status| status["queue"]["depth"] == 1).await;
    assert_eq!(status["since_start"]["loads"], 1, "{status:#}");
    house.stub.release_tokens();
    for (key, id) in of_bob.iter().map(|id| (BOB, id)).chain([(ALICE, &first), (ALICE, &other)]) {
        assert_eq!(house.ended(key, id).await["state"], "done");
    }
    let status = house.wait_for(|status| status["stored"]["done"] == 5).await;
    assert_eq!(status["since_start"]["loads"], 2);
}

/// A cap that is taken away lets go what waited for it, without another event.
#[tokio::test]
async fn a_cap_that_is_raised_by_a_reload_counts_at_once() {
    let flags = ["--parallel", "4"];
    let lines = with_alice(&json!({ "in_flight_max": 1 }));
    let mut stub = stub_config(&["a"]);
    stub.num_parallel = 4;
    let home = super::reload::Home::start_with(&lines, stub, &flags).await;
    home.stub.hold_tokens();
    for _ in 0..3 {
        super::submit(home.addr(), ALICE, &chat("a", "x")).await;
    }
    home.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    super::write(&home.keys(), &super::three());
    home.hang_up();
    home.stub.wait_until(|snapshot| snapshot.generating.len() == 3).await;
    home.stub.release_tokens();
}
