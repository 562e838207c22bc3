//! Keys of jobs that end in another way than done, of clients that leave, and the end of keys.

use serde_json::json;
use stub_ollama::{Action, Cut, Fault, Stage, Stub, StubConfig};

use super::{
    JOB, KEY, REPLAYED, ROUTES, ask, asked, body_of, calls, ended, error_of, even, wait_for,
};
use crate::harness::client::{chat, chat_unstreamed, open, send};
use crate::harness::{Foreman, get};

/// What Ollama refused is its answer, and stays it: a client that wants another try takes another key, or retries the job.
#[tokio::test]
async fn a_key_of_a_failed_job_gives_its_error_again() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman =
        Foreman::start_with(&stub, |raw| raw.max_attempts = Some("1".to_owned())).await.up().await;
    let refusal = || Action::Answer {
        status: 400,
        text: "no such thing".to_owned(),
        retry_after_seconds: None,
        stage: Stage::AfterLoad,
    };
    // A load is a generate request, too, and would take the fault.
    for route in ROUTES.into_iter().filter(|route| *route != "/api/generate") {
        for (number, action) in
            [refusal(), Action::CutBeforeHeaders(Cut::Fin)].into_iter().enumerate()
        {
            let text = format!("{route} {number}");
            let body = body_of(route, "a", &text, true).to_string();
            stub.faults(Fault::new(action).path(route));
            let first = asked(foreman.addr, route, body.clone(), &[(KEY, &text)]).await;
            assert!(!first.status.is_success(), "{text}: {} {}", first.status, first.text());
            let again = asked(foreman.addr, route, body, &[(KEY, &text)]).await;
            assert_eq!(again.status, first.status, "{text}: {}", again.text());
            assert_eq!(again.header(REPLAYED), Some("true"), "{text}");
            let (told, told_again) = (error_of(route, &first), error_of(route, &again));
            assert!(told_again.contains(&told), "{text}: {told_again:?}, first {told:?}");
            assert_eq!(calls(&stub, &text), 1);
        }
    }
}

/// One that was cancelled stays it for its key, and says so; nothing hangs, and nothing is run again.
#[tokio::test]
async fn a_key_of_a_cancelled_job_tells_that_it_was() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_tokens();
    let body = chat("a", "cancelled").to_string();
    let client = ask(addr, "/api/chat", body.clone(), &[(KEY, "n")]);
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let submission = chat("a", "behind it").to_string();
    let waits = asked(addr, "/jobs", submission.clone(), &[(KEY, "w")]).await;
    for job in [
        waits.json()["job_id"].clone(),
        get(addr, "/jobs?state=working").await.json()["data"][0]["job_id"].clone(),
    ] {
        let path = format!("/jobs/{}/cancel", job.as_str().unwrap());
        let answer = send(addr, "POST", &path, "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let told = client.await.unwrap().unwrap();
    assert_eq!(told.status.as_u16(), 499, "{}", told.text());
    ended(addr, told.header(JOB).unwrap()).await;
    let again = asked(addr, "/api/chat", body, &[(KEY, "n")]).await;
    assert_eq!(
        (again.status.as_u16(), again.header(JOB).is_some()),
        (499, true),
        "{}",
        again.text()
    );
    assert_eq!(again.header(REPLAYED), Some("true"));
    assert!(error_of("/api/chat", &again).contains("cancelled"), "{}", again.text());
    let again = asked(addr, "/jobs", submission, &[(KEY, "w")]).await;
    assert_eq!((again.status.as_u16(), again.header(REPLAYED)), (202, Some("true")));
    assert_eq!(again.json()["state"], "cancelled");
    stub.release_tokens();
    assert_eq!((calls(&stub, "cancelled"), calls(&stub, "behind it")), (1, 0));
}

/// Whoever asks by the key of a job that is just being cancelled is told of that as soon as it has been.
#[tokio::test]
async fn a_key_of_a_job_that_is_being_cancelled_waits_for_its_end() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    // A load is not given up for one job: it is being cancelled as long as that takes.
    stub.hold_loads();
    let body = chat("a", "cancelled").to_string();
    let first = ask(addr, "/api/chat", body.clone(), &[(KEY, "k")]);
    stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
    let job = get(addr, "/jobs").await.json()["data"][0]["job_id"].as_str().unwrap().to_owned();
    let cancelled = send(addr, "POST", &format!("/jobs/{job}/cancel"), "").await.json();
    assert_eq!(
        (&cancelled["state"], &cancelled["is_cancelling"]),
        (&json!("loading"), &json!(true))
    );
    let second = ask(addr, "/api/chat", body, &[(KEY, "k")]);
    let third = asked(addr, "/jobs", chat("a", "other").to_string(), &[]).await;
    stub.release_loads();
    for client in [first, second] {
        let answer = client.await.unwrap().unwrap();
        assert_eq!(answer.status.as_u16(), 499, "{}", answer.text());
        assert!(error_of("/api/chat", &answer).contains("cancelled"), "{}", answer.text());
    }
    ended(addr, third.header(JOB).unwrap()).await;
    assert_eq!(calls(&stub, "cancelled"), 0);
}

/// In the queue, during its load, in mid-stream, and where nothing streams.
#[tokio::test]
async fn a_keyed_client_that_leaves_finds_its_answer_on_return() {
    let stub = Stub::start(StubConfig { default_tokens: 30, ..even(&["a", "b"]) }).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    for route in ROUTES {
        let body = |moment: &str, is_streamed| {
            let model = if moment == "waits" { "b" } else { "a" };
            body_of(route, model, &format!("{route} {moment}"), is_streamed).to_string()
        };
        let begin = |moment: &'static str, is_streamed| {
            let key = format!("{route} {moment}");
            let request = super::with(addr, route, body(moment, is_streamed), &[(KEY, &key)]);
            tokio::spawn(open(addr, request))
        };
        stub.unload_all();
        stub.wait_until(|snapshot| snapshot.resident.is_empty()).await;
        stub.hold_loads();
        let loads = begin("loads", true);
        stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
        let waits = begin("waits", true);
        wait_for(addr, |status| status["queue"]["depth"] == 1).await;
        loads.abort();
        waits.abort();
        assert!(loads.await.is_err() && waits.await.is_err());
        stub.hold_tokens();
        stub.release_loads();
        stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        stub.release_tokens();
        let mut streams = begin("streams", true).await.unwrap().unwrap();
        drop(streams.next().await.unwrap().unwrap());
        drop(streams);
        let whole = begin("whole", false);
        stub.wait_for_log(|log| {
            log.iter().any(|entry| {
                String::from_utf8_lossy(&entry.body).contains(&format!("{route} whole"))
            })
        })
        .await;
        whole.abort();
        for (moment, is_streamed) in
            [("loads", true), ("waits", true), ("streams", true), ("whole", false)]
        {
            let key = format!("{route} {moment}");
            let back = asked(addr, route, body(moment, is_streamed), &[(KEY, &key)]).await;
            assert_eq!(
                (back.status.as_u16(), back.is_whole),
                (200, true),
                "{key}: {}",
                back.text()
            );
            assert_eq!(back.header(REPLAYED), Some("true"), "{key}");
            assert_eq!(calls(&stub, &key), 1, "{key}");
        }
    }
    assert_eq!(foreman.status().await["since_start"]["cancelled"], 0);
}

#[tokio::test]
async fn a_key_lives_as_long_as_the_record_of_its_job() {
    let stub = Stub::start(even(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = chat_unstreamed("a", "x").to_string();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = asked(foreman.addr, "/api/chat", body.clone(), &[(KEY, "k")]).await;
        assert_eq!(answer.header(REPLAYED), None);
        let id = answer.header(JOB).unwrap().to_owned();
        ended(foreman.addr, &id).await;
        let dropped = send(foreman.addr, "DELETE", &format!("/jobs/{id}"), "").await;
        assert_eq!(dropped.status, 204, "{}", dropped.text());
        assert!(!ids.contains(&id));
        ids.push(id);
    }
    assert_eq!(calls(&stub, "\"x\""), 3);
}
