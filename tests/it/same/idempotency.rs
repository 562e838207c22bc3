//! One key, one job: however often and however far apart it is sent, over restarts, and for its sender alone.

use serde_json::{Value, json};
use stub_ollama::Stub;

use super::{
    JOB, KEY, Place, REPLAYED, ROUTES, ask, asked, body_of, calls, ended, error_of, even,
    wait_for_depth,
};
use crate::harness::client::{chat, chat_unstreamed};
use crate::harness::{Answer, Foreman};

/// Requests at once.
const MANY: usize = 100;

/// Half of them come while the job runs, the others whenever they do.
async fn many(stub: &Stub, foreman: &Foreman, route: &str, body: &Value, key: &str) -> Vec<Answer> {
    let ask = || ask(foreman.addr, route, body.to_string(), &[(KEY, key)]);
    stub.hold_tokens();
    let mut clients: Vec<_> = (0..MANY / 2).map(|_| ask()).collect();
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    clients.extend((0..MANY - MANY / 2).map(|_| ask()));
    stub.release_tokens();
    let mut answers = Vec::new();
    for client in clients {
        answers.push(client.await.unwrap().unwrap());
    }
    answers
}

#[tokio::test]
async fn a_hundred_requests_with_one_key_are_one_job_and_one_call() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for route in ROUTES {
        for is_streamed in [true, false] {
            let text = format!("{route} {is_streamed}");
            let body = body_of(route, "a", &text, is_streamed);
            let answers = many(&stub, &foreman, route, &body, &text).await;
            let first = &answers[0];
            assert_eq!((first.status.as_u16(), first.is_whole), (200, true), "{}", first.text());
            for answer in &answers {
                assert_eq!(answer.status, 200, "{text}: {}", answer.text());
                assert!(answer.is_whole && answer.body == first.body, "{text}: {}", answer.text());
                assert_eq!(answer.header(JOB), first.header(JOB), "{text}");
                assert_eq!(answer.header("content-type"), first.header("content-type"), "{text}");
            }
            let replayed = answers.iter().filter(|answer| answer.header(REPLAYED) == Some("true"));
            assert_eq!(replayed.count(), MANY - 1, "{text}");
            assert_eq!(calls(&stub, &text), 1, "{text}");
            let later = asked(foreman.addr, route, body.to_string(), &[(KEY, &text)]).await;
            assert_eq!((later.header(REPLAYED), &later.body), (Some("true"), &first.body));
            assert_eq!(calls(&stub, &text), 1, "{text}");
        }
    }
}

#[tokio::test]
async fn a_hundred_submissions_with_one_key_are_one_job_and_one_call() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let mut by_field = chat("a", "by field");
    by_field["idempotency_key"] = json!("f");
    for (body, headers, text) in
        [(chat("a", "by header"), vec![(KEY, "h")], "by header"), (by_field, vec![], "by field")]
    {
        let clients: Vec<_> =
            (0..MANY).map(|_| ask(foreman.addr, "/jobs", body.to_string(), &headers)).collect();
        let mut answers = Vec::new();
        for client in clients {
            answers.push(client.await.unwrap().unwrap());
        }
        let id = answers[0].header(JOB).unwrap().to_owned();
        for answer in &answers {
            assert_eq!((answer.status.as_u16(), answer.header(JOB)), (202, Some(id.as_str())));
            assert_eq!(answer.header("location"), Some(format!("/jobs/{id}").as_str()));
            assert_eq!(answer.json()["job_id"], id);
        }
        let replayed = answers.iter().filter(|answer| answer.header(REPLAYED) == Some("true"));
        assert_eq!(replayed.count(), MANY - 1);
        assert_eq!(ended(foreman.addr, &id).await["state"], "done");
        assert_eq!(calls(&stub, text), 1);
    }
}

/// A key with another body, another query, another route, or once as a native request and once as a submission.
#[tokio::test]
async fn a_key_with_another_request_is_refused_in_the_shape_of_the_route() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    for route in ROUTES {
        let body = |text| body_of(route, "a", text, false).to_string();
        assert_eq!(asked(addr, route, body("one"), &[(KEY, route)]).await.status, 200);
        let spaced = body("one").replace(':', ": ");
        let query = format!("{route}?x");
        for (path, body) in [(route, body("other")), (route, spaced), (&query, body("one"))] {
            let answer = asked(addr, path, body, &[(KEY, route)]).await;
            assert_eq!(answer.status, 422, "{path}: {}", answer.text());
            let told = error_of(route, &answer);
            assert!(told.contains("Idempotency-Key") && told.contains("nothing was stored"));
        }
        let answer = asked(addr, "/jobs", chat("a", "one").to_string(), &[(KEY, route)]).await;
        let problem = answer.json();
        assert_eq!((answer.status.as_u16(), &problem["status"]), (422, &json!(422)));
        assert_eq!(problem["code"], "idempotency-mismatch");
        assert!(problem["job_id"].is_string(), "{problem}");
    }
    assert_eq!(calls(&stub, "other"), 0);
}

#[tokio::test]
async fn a_key_in_header_and_field_must_agree() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let mut body = chat("a", "x");
    body["idempotency_key"] = json!("k");
    let both = asked(addr, "/jobs", body.to_string(), &[(KEY, "k")]).await;
    assert_eq!((both.status.as_u16(), both.header(REPLAYED)), (202, None), "{}", both.text());
    let field = asked(addr, "/jobs", body.to_string(), &[]).await;
    assert_eq!((field.header(JOB), field.header(REPLAYED)), (both.header(JOB), Some("true")));
    let unlike = asked(addr, "/jobs", body.to_string(), &[(KEY, "other")]).await;
    assert_eq!(unlike.status, 422, "{}", unlike.text());
    assert_eq!(unlike.json()["code"], "invalid-job");
    let unreadable = asked(addr, "/jobs", body.to_string(), &[(KEY, "\"k")]).await;
    assert_eq!(unreadable.json()["code"], "malformed-header");
    let native = asked(addr, "/api/chat", body.to_string(), &[(KEY, "\"k")]).await;
    assert_eq!(native.status, 400);
    assert!(error_of("/api/chat", &native).contains("Idempotency-Key"));
}

#[tokio::test]
async fn keys_of_two_tokens_do_not_meet() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = chat_unstreamed("a", "secret").to_string();
    for path in ["/api/chat", "/jobs"] {
        let ask = async |token: &str, body: &str| {
            let headers = [(KEY, path), ("authorization", token)];
            asked(foreman.addr, path, body.to_owned(), &headers).await
        };
        let one = ask("Bearer one", &body).await;
        let two = ask("Bearer two", &body).await;
        assert!(one.status.is_success() && two.status.is_success());
        assert_eq!((one.header(REPLAYED), two.header(REPLAYED)), (None, None));
        assert_ne!(one.header(JOB), two.header(JOB));
        let again = ask("Bearer one", &body).await;
        assert_eq!((again.header(REPLAYED), again.header(JOB)), (Some("true"), one.header(JOB)));
        let other = ask("Bearer two", &chat("a", "other").to_string()).await;
        assert_eq!(other.status, 422);
        let nobody = asked(foreman.addr, path, body.clone(), &[(KEY, path)]).await;
        assert_eq!(nobody.header(REPLAYED), None, "nobody's key is another one");
    }
}

/// What foreman asks for is its own token: keys are everybody's.
#[tokio::test]
async fn a_key_is_everybodys_where_foreman_has_one_token() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.token = Some("sesame".to_owned())).await;
    let body = chat_unstreamed("a", "x").to_string();
    let ask = async |body: &str| {
        let headers = [(KEY, "k"), ("authorization", "Bearer sesame")];
        asked(foreman.addr, "/api/chat", body.to_owned(), &headers).await
    };
    let one = ask(&body).await;
    assert_eq!((one.status.as_u16(), one.header(REPLAYED)), (200, None));
    assert_eq!(ask(&body).await.header(JOB), one.header(JOB));
}

/// Killed while the keyed jobs run and wait: their keys lead to them, and each is done once more at most.
#[tokio::test]
async fn keys_survive_kill_9_and_a_stop() {
    let place = Place::new(&["a"]).await;
    let daemon = place.daemon().await;
    let native = chat_unstreamed("a", "native").to_string();
    let waits = chat("a", "waits").to_string();
    let ended_one = asked(
        daemon.addr,
        "/api/generate",
        body_of("/api/generate", "a", "ended", true).to_string(),
        &[(KEY, "e")],
    )
    .await;
    place.stub.hold_tokens();
    let client = ask(daemon.addr, "/api/chat", native.clone(), &[(KEY, "n")]);
    place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let submitted = asked(daemon.addr, "/jobs", waits.clone(), &[(KEY, "w")]).await;
    wait_for_depth(daemon.addr, 1).await;
    daemon.kill().await;
    assert!(client.await.unwrap().is_none());

    let daemon = place.daemon().await;
    let again = asked(daemon.addr, "/jobs", waits.clone(), &[(KEY, "w")]).await;
    assert_eq!((again.header(REPLAYED), again.header(JOB)), (Some("true"), submitted.header(JOB)));
    let other = asked(daemon.addr, "/jobs", native.clone(), &[(KEY, "w")]).await;
    assert_eq!(other.status, 422);
    place.stub.release_tokens();
    let answer = asked(daemon.addr, "/api/chat", native.clone(), &[(KEY, "n")]).await;
    assert_eq!((answer.status.as_u16(), answer.header(REPLAYED)), (200, Some("true")));
    ended(daemon.addr, submitted.header(JOB).unwrap()).await;
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));

    let daemon = place.daemon().await;
    let later = asked(daemon.addr, "/api/chat", native, &[(KEY, "n")]).await;
    assert_eq!((later.header(JOB), &later.body), (answer.header(JOB), &answer.body));
    let later = asked(
        daemon.addr,
        "/api/generate",
        body_of("/api/generate", "a", "ended", true).to_string(),
        &[(KEY, "e")],
    )
    .await;
    assert_eq!((later.header(JOB), &later.body), (ended_one.header(JOB), &ended_one.body));
    assert_eq!((calls(&place.stub, "native"), calls(&place.stub, "waits")), (2, 1));
    assert_eq!(calls(&place.stub, "ended"), 1);
    daemon.kill().await;
}
