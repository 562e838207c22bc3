//! What people see: `foreman status`, its document and exit codes, health, and what a wrong configuration is told.

use serde_json::json;
use stub_ollama::Stub;

use crate::harness::client::{chat, get, post};
use crate::harness::daemon::foreman;
use crate::harness::{Foreman, stub_config};

async fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = foreman().args(arguments).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The page names what runs, what is resident and what waits in which order, in 80 columns; the document is JSON.
#[tokio::test]
async fn the_status_tells_the_whole_story() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let fm = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let mut clients = Vec::new();
    for (number, name) in (1_u64..).zip(["a", "b", "b", "a"]) {
        let addr = fm.addr;
        clients.push(tokio::spawn(async move { post(addr, "/api/chat", &chat(name, "x")).await }));
        fm.wait_for(|status| {
            let depth = status["queue"]["depth"].as_u64().unwrap();
            depth + status["running"].as_array().map_or(0, Vec::len) as u64 == number
        })
        .await;
        if number == 1 {
            stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        }
    }
    let document = fm.status().await;
    assert_eq!(document["upstream"]["state"], "up");
    assert_eq!(document["resident"][0]["key"], "a:latest");
    assert_eq!(document["running"][0]["state"], "working");
    let lanes = &document["queue"]["lanes"];
    assert_eq!((&lanes[0]["lane"], &lanes[0]["depth"]), (&json!("a:latest"), &json!(1)));
    assert_eq!((&lanes[1]["lane"], &lanes[1]["depth"]), (&json!("b:latest"), &json!(2)));
    let order: Vec<_> =
        document["queue"]["jobs"].as_array().unwrap().iter().map(|job| &job["lane"]).collect();
    assert_eq!(order, ["a:latest", "b:latest", "b:latest"]);
    let addr = fm.addr.to_string();
    let (code, page, words) = run(&["status", "--addr", &addr]).await;
    assert_eq!((code, words.as_str()), (Some(0), ""));
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    assert!(
        page.contains("3 waiting") && page.contains("a:latest") && page.contains("working"),
        "{page}"
    );
    let (code, text, _) = run(&["status", "--addr", &addr, "--json"]).await;
    assert_eq!(code, Some(0));
    let printed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(printed["queue"]["depth"], 3);
    stub.release_tokens();
    for client in clients {
        assert!(client.await.unwrap().is_whole);
    }
}

/// Exit codes are a contract.
#[tokio::test]
async fn status_says_who_does_not_answer_and_who_refuses() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let fm = Foreman::start_with(&stub, |raw| raw.token = Some("s3cret".to_owned())).await;
    let addr = fm.addr.to_string();
    let (code, page, words) = run(&["status", "--addr", &addr]).await;
    assert_eq!((code, page.as_str()), (Some(77), ""));
    assert!(words.contains("refused the token"), "{words}");
    assert_eq!(run(&["status", "--addr", &addr, "--token", "s3cret"]).await.0, Some(0));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, _, words) = run(&["status", "--addr", &free.to_string()]).await;
    assert_eq!(code, Some(69), "{words}");
    assert_eq!(run(&["status", "--addr", "nowhere"]).await.0, Some(64));
    assert_eq!(run(&["conquer"]).await.0, Some(64));
    assert_eq!(run(&["--help"]).await.0, Some(0));
}

/// All faults of a configuration are told together, and nothing is started.
#[tokio::test]
async fn a_wrong_configuration_is_told_whole() {
    let (code, _, words) =
        run(&["serve", "--addr", "x", "--max-attempts", "no", "--job-ttl", "0s", "--log", "a=b=c"])
            .await;
    assert_eq!(code, Some(64));
    let (code, _, typo) = run(&["serve", "--log", "inof"]).await;
    assert!(code == Some(64) && typo.contains("FOREMAN_LOG=\"inof\""), "{typo}");
    for told in [
        "FOREMAN_ADDR=\"x\"",
        "FOREMAN_MAX_ATTEMPTS=\"no\"",
        "FOREMAN_JOB_TTL=\"0s\"",
        "FOREMAN_LOG",
    ] {
        assert!(words.contains(told), "{told} is missing in:\n{words}");
    }
}

/// An address that is taken and a database that cannot be opened have codes of their own.
#[tokio::test]
async fn what_keeps_it_from_starting_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let db = folder.path().join("foreman.db").to_str().unwrap().to_owned();
    let (code, _, words) = run(&["serve", "--addr", &addr, "--db", &db]).await;
    assert_eq!(code, Some(71), "{words}");
    std::fs::write(&db, vec![b'x'; 8192]).unwrap();
    let (code, _, words) = run(&["serve", "--addr", "127.0.0.1:0", "--db", &db]).await;
    assert_eq!(code, Some(73), "{words}");
    assert!(words.contains("foreman.db"), "{words}");
}

/// By whatever name it is reached, foreman does not serve itself.
#[tokio::test]
async fn an_upstream_that_is_foreman_itself_is_refused() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db").to_str().unwrap().to_owned();
    let url = format!("http://127.0.0.1:{}", free.port());
    let (code, _, words) =
        run(&["serve", "--addr", &free.to_string(), "--ollama-url", &url, "--db", &db]).await;
    assert_eq!(code, Some(64), "{words}");
    // Through something in between, which no comparison of addresses can see.
    let between = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", between.local_addr().unwrap());
    let forwarding = tokio::spawn(async move {
        while let Ok((mut client, _)) = between.accept().await {
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(free).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let addr = free.to_string();
    let arguments = ["serve", "--addr", &addr, "--ollama-url", &url, "--db", &db];
    let refused = tokio::time::timeout(crate::harness::DEADLINE, run(&arguments)).await;
    let (code, _, words) = refused.expect("foreman went on in front of itself");
    assert_eq!(code, Some(64), "{words}");
    forwarding.abort();
}

/// Health and readiness, with the upstream and without.
#[tokio::test]
async fn health_is_the_process_and_readiness_is_its_intake() {
    let stub = Stub::start(stub_config(&["a"])).await;
    stub.set_down(true).await;
    let fm = Foreman::start_with(&stub, |raw| raw.token = Some("s3cret".to_owned())).await;
    let health = get(fm.addr, "/healthz").await;
    assert_eq!((health.status.as_u16(), &health.json()["degraded"]), (200, &json!(true)));
    assert_eq!(get(fm.addr, "/readyz").await.status, 401);
    let fm = Foreman::start(&stub).await;
    assert_eq!(get(fm.addr, "/readyz").await.json()["ready"], true);
    stub.set_down(false).await;
    let fm = fm.up().await;
    assert_eq!(get(fm.addr, "/healthz").await.json()["degraded"], false);
}

/// Finished jobs go after their time, answers with them.
#[tokio::test]
async fn finished_jobs_are_dropped_after_their_time() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let fm =
        Foreman::start_with(&stub, |raw| raw.job_ttl = Some("100ms".to_owned())).await.up().await;
    for _ in 0..3 {
        assert!(post(fm.addr, "/api/chat", &chat("a", "x")).await.is_whole);
    }
    fm.wait_for(|status| status["since_start"]["done"] == 3 && status["stored"]["done"] == 0).await;
}
