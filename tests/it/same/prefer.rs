//! `Prefer: respond-async` on the native routes: the job at once, or the route's own answer if it comes in time.

use serde_json::json;
use stub_ollama::{Action, Fault, Stage, Stub};

use super::{JOB, KEY, REPLAYED, ROUTES, asked, body_of, calls, ended, error_of, even};
use crate::harness::client::{chat, chat_unstreamed, post};
use crate::harness::{Foreman, get, model};

const PREFER: &str = "prefer";
const APPLIED: &str = "preference-applied";

/// 202 and the job at once, however long the model takes; the answer is there later, as the route gives it.
#[tokio::test]
async fn each_native_route_answers_with_its_job_at_once() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    for route in ROUTES {
        for is_streamed in [true, false] {
            let text = format!("{route} {is_streamed}");
            let body = body_of(route, "a", &text, is_streamed).to_string();
            stub.hold_tokens();
            let headers = [(PREFER, "respond-async"), ("x-foreman-priority", "batch")];
            let taken = asked(addr, route, body.clone(), &headers).await;
            assert_eq!(
                (taken.status.as_u16(), taken.header(APPLIED)),
                (202, Some("respond-async")),
                "{text}: {}",
                taken.text()
            );
            let id = taken.header(JOB).unwrap();
            assert_eq!(taken.header("location"), Some(format!("/jobs/{id}").as_str()));
            let job = taken.json();
            assert_eq!((&job["object"], &job["job_id"]), (&json!("job"), &json!(id)));
            assert_eq!(
                (&job["endpoint"], &job["priority"], &job["is_async"]),
                (&json!(route), &json!("batch"), &json!(true))
            );
            stub.release_tokens();
            assert_eq!(ended(addr, id).await["state"], "done", "{text}");
            let output = get(addr, &format!("/jobs/{id}/output")).await;
            let direct = asked(addr, route, body, &[]).await;
            assert_eq!(
                (output.status, output.header("content-type")),
                (direct.status, direct.header("content-type"))
            );
            assert!(output.body == direct.body, "{text}: {} and {}", output.text(), direct.text());
        }
    }
}

#[tokio::test]
async fn with_a_wait_the_route_answers_itself_if_the_job_ends_in_time() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    for route in ROUTES {
        for is_streamed in [true, false] {
            let text = format!("{route} {is_streamed}");
            let body = body_of(route, "a", &text, is_streamed).to_string();
            let in_time =
                asked(addr, route, body.clone(), &[(PREFER, "respond-async, wait=60")]).await;
            let direct = asked(addr, route, body.clone(), &[]).await;
            assert_eq!(
                (in_time.status.as_u16(), in_time.header("location")),
                (200, None),
                "{text}"
            );
            assert_eq!(in_time.header("content-type"), direct.header("content-type"), "{text}");
            assert!(in_time.is_whole && in_time.body == direct.body, "{text}");
            assert!(in_time.header(JOB).is_some());
            stub.hold_tokens();
            for prefer in ["respond-async; x=y, wait=0", "wait=1, respond-async"] {
                let late = asked(addr, route, body.clone(), &[(PREFER, prefer)]).await;
                assert_eq!(
                    (late.status.as_u16(), late.header(APPLIED)),
                    (202, Some("respond-async")),
                    "{text} {prefer}"
                );
                let job = late.json();
                assert!(
                    ["queued", "loading", "working"]
                        .map(serde_json::Value::from)
                        .contains(&job["state"]),
                    "{job}"
                );
            }
            stub.release_tokens();
        }
    }
}

/// Of preferences that foreman does not know, or cannot read, nothing changes; `wait` alone is none for a native route.
#[tokio::test]
async fn other_preferences_change_nothing() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = chat_unstreamed("a", "x").to_string();
    for prefer in [
        "return=minimal",
        "wait=1",
        "respond-async=5",
        "handling=lenient; respond-async",
        "\"respond-async\"",
        ",,=;",
    ] {
        let answer = asked(foreman.addr, "/api/chat", body.clone(), &[(PREFER, prefer)]).await;
        assert_eq!((answer.status.as_u16(), answer.header(APPLIED)), (200, None), "{prefer}");
        assert_eq!(answer.json()["done"], true);
    }
    let odd = "foo, respond-async , bar=\"a,b\"";
    let answer = asked(foreman.addr, "/api/chat", body, &[(PREFER, odd)]).await;
    assert_eq!(answer.status, 202);
}

/// What Ollama refuses without its GPU it refuses itself, in its own words.
#[tokio::test]
async fn what_ollama_refuses_is_refused_by_ollama() {
    let mut config = even(&["a"]);
    config.models.push(model("seer").remote("https://example.com"));
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for route in ["/api/chat", "/api/generate"] {
        for body in ["{", "", "[]", r#"{"model":5}"#, r#"{"model":"a b"}"#] {
            let direct = asked(stub.addr(), route, body, &[]).await;
            let through = asked(foreman.addr, route, body, &[(PREFER, "respond-async")]).await;
            assert_eq!(
                (through.status, &through.body),
                (direct.status, &direct.body),
                "{route} {body}"
            );
            assert_eq!(through.header(APPLIED), None);
        }
    }
    assert_eq!(get(foreman.addr, "/jobs").await.json()["data"], json!([]));
}

#[tokio::test]
async fn embeds_are_not_queued_whatever_is_preferred() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for (route, body) in [
        ("/api/embed", json!({ "model": "embed", "input": "x" })),
        ("/v1/embeddings", json!({ "model": "embed", "input": "x" })),
        ("/api/embeddings", json!({ "model": "embed", "prompt": "x" })),
    ] {
        let plain = post(foreman.addr, route, &body).await;
        let headers = [(PREFER, "respond-async"), (KEY, "k")];
        let preferred = asked(foreman.addr, route, body.to_string(), &headers).await;
        assert_eq!((preferred.status.as_u16(), preferred.header(APPLIED)), (200, None));
        assert_eq!(preferred.body, plain.body);
    }
    assert_eq!(get(foreman.addr, "/jobs").await.json()["data"], json!([]));
}

/// The key leads from one form of the answer to the other.
#[tokio::test]
async fn a_key_leads_to_the_job_now_and_to_its_answer_later() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let body = chat("a", "x").to_string();
    stub.hold_tokens();
    let keyed = |prefer: &'static str| [(KEY, "k"), (PREFER, prefer)];
    let taken = asked(addr, "/api/chat", body.clone(), &keyed("respond-async")).await;
    let again = asked(addr, "/api/chat", body.clone(), &keyed("respond-async")).await;
    assert_eq!((again.status.as_u16(), again.header(REPLAYED)), (202, Some("true")));
    assert_eq!(again.header(JOB), taken.header(JOB));
    let other = asked(addr, "/api/chat", chat("a", "y").to_string(), &keyed("respond-async")).await;
    assert_eq!(other.status, 422);
    assert!(
        error_of("/api/chat", &other).contains("idempotency key")
            || error_of("/api/chat", &other).contains("Idempotency-Key")
    );
    let stream = super::ask(addr, "/api/chat", body.clone(), &[(KEY, "k")]);
    stub.release_tokens();
    let stream = stream.await.unwrap().unwrap();
    assert_eq!((stream.header(REPLAYED), stream.header(JOB)), (Some("true"), taken.header(JOB)));
    ended(addr, taken.header(JOB).unwrap()).await;
    let late = asked(addr, "/api/chat", body, &keyed("respond-async, wait=5")).await;
    assert_eq!((late.status.as_u16(), late.header(REPLAYED)), (200, Some("true")));
    assert_eq!(late.body, stream.body);
    assert_eq!(calls(&stub, "\"x\""), 1);
}

/// A job that fails in time is told as the route tells it.
#[tokio::test]
async fn with_a_wait_a_failure_in_time_is_the_routes_own() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman =
        Foreman::start_with(&stub, |raw| raw.max_attempts = Some("1".to_owned())).await.up().await;
    // A load is a generate request, too, and would take the fault.
    for route in ROUTES.into_iter().filter(|route| *route != "/api/generate") {
        let refusal = Action::Answer {
            status: 400,
            text: "no such thing".to_owned(),
            retry_after_seconds: None,
            stage: Stage::AfterLoad,
        };
        for (action, status) in [(refusal, 400), (Action::EndWithoutDone(0), 502)] {
            stub.faults(Fault::new(action).path(route));
            let body = body_of(route, "a", "x", true).to_string();
            let answer =
                asked(foreman.addr, route, body, &[(PREFER, "respond-async, wait=60")]).await;
            assert_eq!(answer.status.as_u16(), status, "{route}: {}", answer.text());
            assert!(!error_of(route, &answer).is_empty() && answer.header(JOB).is_some());
        }
    }
}
