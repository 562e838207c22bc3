//! Classes: who goes first inside a lane and between lanes, and how many of each may wait.

use stub_ollama::Stub;

use super::{ask, ask_as, given, known, serve, served, texts};
use crate::harness::{Foreman, stub_config};

/// Inside a lane the class counts before the arrival, inside a class the arrival.
#[tokio::test]
async fn interactive_goes_before_batch_inside_a_lane() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let mut clients = vec![ask(foreman.addr, "a", "running")];
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let asked = [
        ("batch", "1"),
        ("normal", "2"),
        ("interactive", "3"),
        ("batch", "4"),
        ("interactive", "5"),
    ];
    for (jobs, (class, text)) in (2..).zip(asked) {
        clients.push(ask_as(foreman.addr, class, "a", text));
        known(&foreman, jobs).await;
    }
    stub.release_tokens();
    for client in clients {
        served(client).await;
    }
    assert_eq!(texts(&stub), ["running", "3", "5", "2", "1", "4"]);
    assert_eq!(stub.counts().loads, 1);
}

/// A long queue of a lower class makes room for one of a higher class on another model, and is finished afterwards.
#[tokio::test]
async fn batch_jobs_of_the_resident_model_make_room_for_an_interactive_one() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    serve(foreman.addr, "a", "warm").await;
    stub.hold_tokens();
    let mut clients: Vec<_> =
        (0..30).map(|_| ask_as(foreman.addr, "batch", "a", "nightly")).collect();
    known(&foreman, 30).await;
    clients.push(ask(foreman.addr, "b", "urgent"));
    known(&foreman, 31).await;
    stub.release_tokens();
    for client in clients {
        served(client).await;
    }
    let texts = texts(&stub);
    let place = texts.iter().position(|text| text == "urgent").unwrap();
    assert!(place < texts.len() - 1, "it waited for the whole queue: {texts:?}");
    assert_eq!((stub.counts().loads, stub.counts().evictions), (3, 0), "a, b, a");
}

/// The cap of one class refuses that class only, and says which it is.
#[tokio::test]
async fn the_cap_of_a_class_refuses_with_its_name() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman =
        Foreman::start_with(&stub, |raw| raw.max_queue = given("10,batch=1")).await.up().await;
    stub.hold_tokens();
    let mut clients = vec![ask(foreman.addr, "a", "running")];
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    clients.push(ask_as(foreman.addr, "batch", "a", "one"));
    known(&foreman, 2).await;
    let refused = ask_as(foreman.addr, "batch", "a", "two").await.unwrap();
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    let text = refused.text();
    assert!(text.contains("class batch") && text.contains("1 jobs wait"), "{text}");
    for class in ["normal", "interactive"] {
        clients.push(ask_as(foreman.addr, class, "a", class));
    }
    known(&foreman, 4).await;
    stub.release_tokens();
    for client in clients {
        served(client).await;
    }
    assert!(!texts(&stub).contains(&"two".to_owned()));
}
