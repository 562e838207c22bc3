//! Equal requests are one job where that is asked for: they join one that waits or runs, or are answered from one that is
//! done.

use serde_json::{Value, json};
use stub_ollama::{Model, Stub};

use super::{DUPLICATE, JOB, ROUTES, ask, asked, body_of, calls, ended, even, wait_for_depth};
use crate::harness::client::{chat, chat_unstreamed};
use crate::harness::{Answer, Foreman, get};

async fn foreman(stub: &Stub, duplicates: &str) -> Foreman {
    let given = Some(duplicates.to_owned());
    Foreman::start_with(stub, |raw| raw.duplicates = given).await.up().await
}

/// Asks for these while one request is held in its middle, and lets them all go on.
async fn beside_a_running_one(
    stub: &Stub,
    foreman: &Foreman,
    path: &str,
    bodies: &[String],
) -> Vec<Answer> {
    stub.hold_tokens();
    let mut clients = vec![ask(foreman.addr, path, bodies[0].clone(), &[])];
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    for body in &bodies[1..] {
        clients.push(ask(foreman.addr, path, body.clone(), &[]));
    }
    stub.release_tokens();
    let mut answers = Vec::new();
    for client in clients {
        answers.push(client.await.unwrap().unwrap());
    }
    answers
}

#[tokio::test]
async fn ten_equal_requests_are_ten_calls_unless_asked_otherwise() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let mut body = chat("a", "equal");
    body["options"] = json!({ "seed": 1, "temperature": 0 });
    let bodies = vec![body.to_string(); 10];
    for path in ["/api/chat", "/jobs"] {
        for answer in beside_a_running_one(&stub, &foreman, path, &bodies).await {
            assert!(answer.status.is_success());
            assert_eq!(answer.header(DUPLICATE), None);
            ended(foreman.addr, answer.header(JOB).unwrap()).await;
        }
    }
    assert_eq!(calls(&stub, "equal"), 20);
}

/// Streamed or not, on each route: one call, and all read the same bytes.
#[tokio::test]
async fn equal_requests_join_the_one_that_runs() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = foreman(&stub, "inflight").await;
    for route in ROUTES {
        for is_streamed in [true, false] {
            let text = format!("{route} {is_streamed}");
            stub.hold_tokens();
            let body = body_of(route, "a", &text, is_streamed).to_string();
            let first = ask(foreman.addr, route, body.clone(), &[]);
            stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
            let others: Vec<_> =
                (0..20).map(|_| ask(foreman.addr, route, body.clone(), &[])).collect();
            // All are in once one that is not equal waits behind them.
            let behind = ask(
                foreman.addr,
                route,
                body_of(route, "a", "behind", is_streamed).to_string(),
                &[],
            );
            wait_for_depth(foreman.addr, 1).await;
            stub.release_tokens();
            let first = first.await.unwrap().unwrap();
            assert_eq!((first.status.as_u16(), first.header(DUPLICATE)), (200, None));
            let mut joined = 0;
            for other in others {
                let other = other.await.unwrap().unwrap();
                assert!(other.is_whole && other.status == 200, "{text}");
                let is_joined = other.header(DUPLICATE) == Some("inflight");
                // One that came when all was over is a job of its own, and may be joined in turn.
                let is_same = other.header(JOB) == first.header(JOB);
                assert!(is_joined || !is_same, "{text}");
                assert!(!is_same || other.body == first.body, "{text}");
                joined += usize::from(is_same);
            }
            assert!(joined > 0 && behind.await.unwrap().unwrap().is_whole);
        }
    }
}

/// What waits is joined, too, and 202s name the one job.
#[tokio::test]
async fn equal_submissions_join_the_one_that_waits_and_the_one_that_runs() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = foreman(&stub, "inflight").await;
    let addr = foreman.addr;
    stub.hold_tokens();
    let runs = asked(addr, "/jobs", chat("a", "runs").to_string(), &[]).await;
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let waits = asked(addr, "/jobs", chat("a", "waits").to_string(), &[]).await;
    for (first, text) in [(&runs, "runs"), (&waits, "waits")] {
        assert_eq!((first.status.as_u16(), first.header(DUPLICATE)), (202, None));
        let again = asked(addr, "/jobs", chat("a", text).to_string(), &[]).await;
        assert_eq!((again.status.as_u16(), again.header(DUPLICATE)), (202, Some("inflight")));
        assert_eq!(again.header(JOB), first.header(JOB));
        let mut with_field = chat("a", text);
        with_field["metadata"] = json!({ "for": "me" });
        let mine = asked(addr, "/jobs", with_field.to_string(), &[]).await;
        assert_eq!(mine.header(DUPLICATE), None, "other fields of foreman's are another job");
        let native = ask(addr, "/api/chat", chat("a", text).to_string(), &[]);
        stub.release_tokens();
        assert_eq!(native.await.unwrap().unwrap().header(DUPLICATE), None, "another route");
        stub.hold_tokens();
    }
    stub.release_tokens();
    for id in [runs, waits] {
        assert_eq!(ended(addr, id.header(JOB).unwrap()).await["state"], "done");
    }
}

#[tokio::test]
async fn the_order_of_keys_white_space_and_keep_alive_make_no_other_request() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = foreman(&stub, "inflight").await;
    let like = [
        r#"{"model":"a","prompt":"x","stream":true,"options":{"seed":1,"top_k":2}}"#,
        r#"{ "options" : {"top_k":2, "seed":1}, "stream":true,
             "prompt":"x", "model":"a" }"#,
        r#"{"model":"a","prompt":"x","stream":true,"options":{"seed":1,"top_k":2},"keep_alive":"5m"}"#,
        r#"{"model":"a","prompt":"\u0078","stream":true,"options":{"seed":1,"top_k":2}}"#,
    ];
    let answers =
        beside_a_running_one(&stub, &foreman, "/api/generate", &like.map(str::to_owned)).await;
    for answer in &answers {
        assert_eq!(answer.header(JOB), answers[0].header(JOB), "{answer:?}");
    }
    let unlike = [
        like[0],
        r#"{"model":"a","prompt":"x","stream":true,"options":{"seed":2,"top_k":2}}"#,
        r#"{"model":"a","prompt":"x ","stream":true,"options":{"seed":1,"top_k":2}}"#,
        r#"{"model":"a","prompt":"x","stream":false,"options":{"seed":1,"top_k":2}}"#,
        r#"{"model":"b","prompt":"x","stream":true,"options":{"seed":1,"top_k":2}}"#,
    ];
    let answers =
        beside_a_running_one(&stub, &foreman, "/api/generate", &unlike.map(str::to_owned)).await;
    for answer in &answers {
        assert_eq!(answer.header(DUPLICATE), None, "{answer:?}");
    }
}

#[tokio::test]
async fn requests_of_another_token_or_query_are_not_joined() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = foreman(&stub, "inflight").await;
    let body = chat("a", "x").to_string();
    for path in ["/api/chat", "/jobs"] {
        stub.hold_tokens();
        let mut clients =
            vec![ask(foreman.addr, path, body.clone(), &[("authorization", "Bearer one")])];
        stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        clients.push(ask(foreman.addr, path, body.clone(), &[("authorization", "Bearer two")]));
        clients.push(ask(foreman.addr, path, body.clone(), &[]));
        wait_for_depth(foreman.addr, 2).await;
        stub.release_tokens();
        for client in clients {
            let answer = client.await.unwrap().unwrap();
            assert!(answer.status.is_success());
            assert_eq!(answer.header(DUPLICATE), None);
            ended(foreman.addr, answer.header(JOB).unwrap()).await;
        }
    }
    assert_eq!(calls(&stub, "\"x\""), 6);
}

/// They live by their effect: each is done.
#[tokio::test]
async fn loads_and_unloads_are_never_joined() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = foreman(&stub, "completed").await;
    for keep_alive in [json!(-1), json!(0)] {
        for path in ["/api/generate", "/jobs"] {
            let mut body =
                json!({ "model": "a", "keep_alive": keep_alive, "options": { "temperature": 0 } });
            if path == "/jobs" {
                body["messages"] = json!([]);
            }
            let clients: Vec<_> =
                (0..5).map(|_| ask(foreman.addr, path, body.to_string(), &[])).collect();
            for client in clients {
                let answer = client.await.unwrap().unwrap();
                assert!(answer.status.is_success(), "{}", answer.text());
                assert_eq!(answer.header(DUPLICATE), None);
                ended(foreman.addr, answer.header(JOB).unwrap()).await;
            }
        }
    }
    let jobs = get(foreman.addr, "/jobs?limit=100").await.json();
    assert_eq!(jobs["data"].as_array().unwrap().len(), 20);
}

fn sure(mut body: Value, route: &str) -> Value {
    match route {
        "/api/chat" | "/api/generate" => body["options"] = json!({ "temperature": 0 }),
        _ => body["temperature"] = json!(0),
    }
    body
}

/// The kept answer, byte for byte, with Ollama away; what has more than one answer is not given from what is done.
#[tokio::test]
async fn what_has_one_answer_only_is_answered_from_what_is_done() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = foreman(&stub, "completed").await;
    let mut kept = Vec::new();
    for route in ROUTES {
        for is_streamed in [true, false] {
            let body = sure(body_of(route, "a", "sure", is_streamed), route).to_string();
            let first = asked(foreman.addr, route, body.clone(), &[]).await;
            assert_eq!(
                (first.status.as_u16(), first.header(DUPLICATE)),
                (200, None),
                "{}",
                first.text()
            );
            ended(foreman.addr, first.header(JOB).unwrap()).await;
            kept.push((route, body, first));
            let open = body_of(route, "a", "open", is_streamed).to_string();
            for _ in 0..2 {
                let answer = asked(foreman.addr, route, open.clone(), &[]).await;
                assert_eq!(answer.header(DUPLICATE), None);
                ended(foreman.addr, answer.header(JOB).unwrap()).await;
            }
        }
    }
    let submission = sure(chat("a", "submitted"), "/api/chat").to_string();
    let submitted = asked(foreman.addr, "/jobs", submission.clone(), &[]).await;
    ended(foreman.addr, submitted.header(JOB).unwrap()).await;
    stub.set_down(true).await;
    foreman.wait_for(|status| status["upstream"]["state"] != "up").await;
    for (route, body, first) in kept {
        let again = asked(foreman.addr, route, body, &[]).await;
        assert_eq!(
            (again.status, again.header(DUPLICATE)),
            (first.status, Some("completed")),
            "{route}"
        );
        assert!(
            again.is_whole && again.body == first.body,
            "{route}: {} for {}",
            again.text(),
            first.text()
        );
        assert_eq!(again.header("content-type"), first.header("content-type"));
    }
    let again = asked(foreman.addr, "/jobs", submission, &[]).await;
    assert_eq!((again.status.as_u16(), again.header(DUPLICATE)), (202, Some("completed")));
    assert_eq!(again.header(JOB), submitted.header(JOB));
    assert_eq!(again.json()["state"], "done");
}

/// A model that was pulled anew under its name is another one.
#[tokio::test]
async fn an_answer_of_another_model_file_is_not_given() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = foreman(&stub, "completed").await;
    let body = sure(chat_unstreamed("a", "x"), "/api/chat").to_string();
    let first = asked(foreman.addr, "/api/chat", body.clone(), &[]).await;
    ended(foreman.addr, first.header(JOB).unwrap()).await;
    let again = asked(foreman.addr, "/api/chat", body.clone(), &[]).await;
    assert_eq!(again.header(DUPLICATE), Some("completed"));
    let mut pulled = Model::new("a");
    pulled.digest = "0123456789abcdef".repeat(4);
    stub.install(pulled);
    // It is known from the next poll on.
    let polls = |stub: &Stub| {
        stub.log().iter().filter(|entry| entry.path == "/api/tags" && entry.end.is_some()).count()
    };
    let before = polls(&stub);
    stub.wait_for_log(|_| polls(&stub) >= before + 2).await;
    let fresh = asked(foreman.addr, "/api/chat", body, &[]).await;
    assert_eq!(fresh.header(DUPLICATE), None);
    assert_eq!(calls(&stub, "\"x\""), 2);
}
