//! A model that does not load cools down and delays the others by one attempt.

use stub_ollama::{Action, Fault, Stub};

use super::{ask, load_times, serve, served};
use crate::harness::{Foreman, stub_config};

fn no_memory() -> Fault {
    Fault::new(Action::FailLoad("cudaMalloc failed: out of memory".to_owned())).model("a")
}

/// The pause doubles with each failure, the others are served meanwhile, and a load that succeeds makes the next failure a
/// first one again.
#[tokio::test]
async fn a_model_that_does_not_load_cools_down_while_others_are_served() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.faults(no_memory().times(2));
    stub.hold_loads();
    let failing = ask(addr, "a", "1");
    stub.wait_until(|snapshot| snapshot.loading.as_deref() == Some("a:latest")).await;
    let other = ask(addr, "b", "2");
    foreman.wait_for_depth(1).await;
    stub.release_loads();
    served(other).await;
    assert_eq!(stub.counts().failed_loads, 1, "it waited for one attempt");
    for _ in 0..5 {
        serve(addr, "b", "3").await;
    }
    assert_eq!(stub.counts().failed_loads, 1, "the others are served while it cools down");
    served(failing).await;
    serve(addr, "b", "4").await;
    stub.faults(no_memory());
    serve(addr, "a", "5").await;
    let at_ms = load_times(&stub, "a");
    assert_eq!(at_ms.len(), 5, "fails, fails, succeeds; fails, succeeds: {at_ms:?}");
    let (first, second) = (at_ms[1] - at_ms[0], at_ms[2] - at_ms[1]);
    let after_success = at_ms[4] - at_ms[3];
    assert!(2 * second > 3 * first, "the pause doubles: {at_ms:?}");
    assert!(3 * after_success < 2 * second, "a success resets it: {at_ms:?}");
    assert_eq!(stub.counts().evictions, 0);
}
