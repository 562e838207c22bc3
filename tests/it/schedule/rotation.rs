//! Rotation: a flow that never ends keeps nobody else from the GPU for ever, and costs no more loads than it must.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stub_ollama::Stub;

use super::{chats, decisions, given, serve};
use crate::harness::{Foreman, stub_config};

/// Three clients that ask for A without end, and one job for B: it is served while the flow goes on. (A drain alone never
/// serves it.)
#[tokio::test]
async fn a_steady_flow_for_one_model_does_not_starve_another() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.max_wait = given("1s")).await.up().await;
    let addr = foreman.addr;
    let answered = Arc::new(AtomicU64::new(0));
    let flow: Vec<_> = (0..3)
        .map(|_| {
            let answered = Arc::clone(&answered);
            tokio::spawn(async move {
                loop {
                    serve(addr, "a", "flow").await;
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    foreman.wait_for(|_| answered.load(Ordering::SeqCst) >= 10).await;
    for round in 1..=2 {
        serve(addr, "b", "rare").await;
        stub.hold_tokens();
        let told = decisions(&foreman.status().await);
        assert!(told.contains(&"swap rotate b:latest".to_owned()), "{told:?}");
        assert!(flow.iter().all(|client| !client.is_finished()), "the flow goes on");
        let before = answered.load(Ordering::SeqCst);
        stub.release_tokens();
        // The swap back has been made, and the flow flows.
        foreman.wait_for(|_| answered.load(Ordering::SeqCst) >= before + 10).await;
        assert_eq!(stub.counts().loads, 1 + 2 * round);
    }
    for client in flow {
        client.abort();
    }
    let chats = chats(&stub);
    let places: Vec<usize> = (0..chats.len()).filter(|place| chats[*place].0 == "b").collect();
    assert!(places[0] >= 10 && places[1] - places[0] > 10, "A was served meanwhile: {places:?}");
    assert_eq!(stub.counts().evictions, 0);
}
