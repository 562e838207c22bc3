//! Handing in: a 202 means that the job is on disk, whatever Ollama does; what it gets is what was handed in; and every fault of
//! a submission is told at its place.

use serde_json::{Value, json};
use stub_ollama::Stub;

use crate::harness::client::{self, chat, open};
use crate::harness::jobs::{
    done, ended, generate, id_of, object, output, problem, submit, submit_scripted, try_submit,
    wait_until_state, with_header,
};
use crate::harness::raw::{self, Raw};
use crate::harness::upstream::Upstream;
use crate::harness::{Foreman, get, send, stub_config};

/// 202, where it is, under its id, and the object as it would be read.
#[tokio::test]
async fn a_submission_is_answered_with_the_job_that_it_became() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    foreman.occupy(&stub, "a").await;
    let metadata = json!({ "z": 1, "a": { "deep": [1.5, null, "ä"] } });
    let body = json!({ "model": "a", "messages": [], "priority": "batch", "metadata": metadata });
    let answer = try_submit(foreman.addr, &body).await;
    assert_eq!(answer.status, 202);
    let told = answer.json();
    let id = id_of(&told);
    assert_eq!(answer.header("location"), Some(format!("/jobs/{id}").as_str()));
    assert_eq!(answer.header("x-foreman-job-id"), Some(id.as_str()));
    let mut read = object(foreman.addr, &id).await;
    assert_eq!((&read["state"], &read["priority"]), (&json!("queued"), &json!("batch")));
    assert_eq!(read["metadata"].to_string(), metadata.to_string(), "metadata keep their order");
    // A place in the queue is looked up only by who looks.
    for of_the_queue in ["position", "estimated_start"] {
        read[of_the_queue] = Value::Null;
    }
    assert_eq!(told, read);
    stub.release_tokens();
    done(foreman.addr, &id).await;
}

/// Ollama gets the bytes that were handed in, without foreman's fields, and its own bytes are the answer: in every dialect.
#[tokio::test]
async fn bytes_pass_unchanged_in_both_directions_of_every_endpoint() {
    let mut upstream = Upstream::with_models(&["a"]).await;
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    let request = r#"{ "model":"a" ,"messages" : [ ], "stream":false,  "x\u00e4":1.50e0 }"#;
    for path in [
        "/api/chat",
        "/api/generate",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
    ] {
        let envelope = format!(r#"{{"priority":"normal","endpoint":"{path}","body": {request} }}"#);
        let sent = client::request(foreman.addr, "POST", "/jobs", envelope);
        let sent = with_header(sent, ("x-script", "body"));
        let id = id_of(&open(foreman.addr, sent).await.unwrap().rest().await.json());
        let mut asked = upstream.next().await;
        assert!(asked.head.starts_with(&format!("POST {path} HTTP/1.1\r\n")), "{}", asked.head);
        assert_eq!(String::from_utf8_lossy(&asked.body), request, "{path}");
        let rest = r#""done":true , "stop_reason":"end_turn","model" : "a" "#;
        let answer = format!(" {{ \"of\":\"{path}\",{rest}}} \n");
        let length = answer.len();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json; x=y\r\nContent-Length";
        asked.write(format!("{head}: {length}\r\n\r\n{answer}")).await;
        let object = done(foreman.addr, &id).await;
        assert_eq!(object["endpoint"], path);
        assert_eq!(object["result"]["of"], path);
        let output = output(foreman.addr, &id, "").await;
        assert_eq!(output.text(), answer);
        assert_eq!(output.header("content-type"), Some("application/json; x=y"));
        assert_eq!(output.header("x-foreman-status"), Some("200"));
    }
}

/// Foreman's fields are cut out of a native body, byte for byte, wherever they stand.
#[tokio::test]
async fn ollama_gets_a_native_body_without_foremans_fields() {
    let mut upstream = Upstream::with_models(&["a"]).await;
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    for (submitted, wanted) in [
        (
            r#"{"priority":"batch", "model":"a",  "metadata":{"a":1}, "messages":[]}"#,
            r#"{"model":"a",   "messages":[]}"#,
        ),
        (r#"{"model":"a","messages":[] ,"run_at":null}"#, r#"{"model":"a","messages":[] }"#),
    ] {
        let sent = client::request(foreman.addr, "POST", "/jobs", submitted);
        let sent = with_header(sent, ("x-script", "body"));
        let id = id_of(&open(foreman.addr, sent).await.unwrap().rest().await.json());
        let kept = get(foreman.addr, &format!("/jobs/{id}/request")).await.text();
        let mut asked = upstream.next().await;
        assert_eq!(String::from_utf8_lossy(&asked.body), kept);
        let squeezed = |text: &str| text.replace(' ', "");
        assert_eq!(squeezed(&kept), squeezed(wanted));
        asked.begin_lines().await;
        asked.chunk("{\"done\":true}\n").await;
        asked.end().await;
        done(foreman.addr, &id).await;
    }
}

#[tokio::test]
async fn the_more_urgent_runs_first() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    foreman.occupy(&stub, "a").await;
    let mut last = Vec::new();
    for (text, priority) in [("3", "batch"), ("2", "normal"), ("1", "interactive")] {
        let mut body = chat("a", text);
        body["priority"] = json!(priority);
        last.push(submit(foreman.addr, &body).await);
    }
    stub.release_tokens();
    for id in &last {
        done(foreman.addr, id).await;
    }
    let texts: Vec<String> = stub
        .log()
        .iter()
        .filter_map(|entry| serde_json::from_slice::<Value>(&entry.body).ok())
        .filter_map(|body| Some(body["messages"][0]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(texts, ["occupies", "1", "2", "3"]);
}

/// The job is taken, and fails with what Ollama says of it.
#[tokio::test]
async fn an_unknown_model_is_taken_and_fails_with_ollamas_own_error() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let ollama = client::post(stub.addr(), "/api/chat", &chat("nobody", "x")).await;
    let id = submit(foreman.addr, &chat("nobody", "x")).await;
    let object = ended(foreman.addr, &id).await;
    assert_eq!(object["state"], "failed", "{object:#}");
    assert_eq!(object["error"]["status"], ollama.status.as_u16(), "{object:#}");
    assert_eq!(object["error"]["message"], ollama.json()["error"]);
    let answer = output(foreman.addr, &id, "").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-foreman-status")), (200, Some("404")));
    assert_eq!(answer.body, ollama.body);
}

/// A cloud model takes no GPU: no load, and no model is unloaded for it.
#[tokio::test]
async fn a_cloud_model_runs_by_itself() {
    let mut config = stub_config(&["a"]);
    config.cloud = stub_ollama::Cloud::Answers;
    config.models.push(crate::harness::model("far").remote("https://ollama.com"));
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    done(foreman.addr, &submit(foreman.addr, &chat("a", "x")).await).await;
    for name in ["far", "x:cloud", "gpt-oss:20b-cloud"] {
        let object = done(foreman.addr, &submit(foreman.addr, &chat(name, "x")).await).await;
        assert!(object["result"]["message"]["content"].is_string(), "{object:#}");
    }
    assert_eq!(stub.counts().loads, 1);
    assert!(stub.snapshot().is_resident("a:latest"));
}

/// A submission does not wait for Ollama: neither for one that is down nor for one that says nothing.
#[tokio::test]
async fn a_job_is_taken_while_ollama_is_down_and_runs_when_it_is_back() {
    let stub = Stub::start(stub_config(&["a"])).await;
    stub.set_down(true).await;
    let foreman = Foreman::start(&stub).await;
    let id = submit(foreman.addr, &chat("a", "x")).await;
    assert_eq!(object(foreman.addr, &id).await["state"], "queued");
    stub.set_down(false).await;
    done(foreman.addr, &id).await;
}

#[tokio::test]
async fn a_job_is_taken_while_ollama_hangs() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let foreman = Foreman::start_at(&url, |_| ()).await;
    let id = submit(foreman.addr, &chat("a", "x")).await;
    assert_eq!(object(foreman.addr, &id).await["state"], "queued");
    let batch = send(foreman.addr, "POST", "/jobs/batch", json!([chat("b", "x")]).to_string());
    assert_eq!(batch.await.status, 202);
}

/// Each fault of a body, all at once, by its pointer.
#[tokio::test]
async fn each_fault_of_a_submission_is_told_at_its_place() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let good = json!({ "model": "a", "messages": [] });
    for (body, pointers) in [
        (json!([]), vec![""]),
        (json!({ "messages": [] }), vec!["/model"]),
        (
            json!({ "model": 1, "messages": 2, "options": [] }),
            vec!["/messages", "/model", "/options"],
        ),
        (
            json!({ "model": "a", "priority": "soon", "run_at": "x", "deadline": 3 }),
            vec!["/deadline", "/priority", "/run_at"],
        ),
        (
            json!({ "model": "a", "metadata": [], "idempotency_key": "" }),
            vec!["/idempotency_key", "/metadata"],
        ),
        (json!({ "model": "a", "metadata": { "x": "y".repeat(16 * 1024) } }), vec!["/metadata"]),
        (json!({ "model": "a", "deadline": "2001-01-01T00:00:00Z" }), vec!["/deadline"]),
        (
            json!({ "model": "a", "run_at": "2990-01-01T00:00:00Z", "deadline": "2980-01-01T00:00:00Z" }),
            vec!["/deadline"],
        ),
        (json!({ "model": "a", "state_webhook_url": "ftp://x" }), vec!["/state_webhook_url"]),
        (json!({ "model": "a", "body": good }), vec!["/body"]),
        (json!({ "endpoint": "/api/chat" }), vec!["/body"]),
        (json!({ "endpoint": "/api/chat", "body": [] }), vec!["/body"]),
        (json!({ "endpoint": "/api/pull", "body": good }), vec!["/endpoint"]),
        (json!({ "endpoint": "/api/chat", "body": good, "a/b~c": 1 }), vec!["/a~1b~0c"]),
        (
            json!({ "endpoint": "/api/chat", "body": { "model": "a", "messages": 1 } }),
            vec!["/body/messages"],
        ),
    ] {
        let answer = try_submit(foreman.addr, &body).await;
        let problem = problem(&answer, 422, "invalid-job");
        let mut told: Vec<&str> = problem["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| error["pointer"].as_str().unwrap())
            .collect();
        told.sort_unstable();
        assert_eq!(told, pointers, "{body}: {problem:#}");
    }
    for malformed in ["", "{", "{} {}", "{\"model\":\"a\",}", "\u{feff}{}", "{\"a\":\"\u{1}\"}"] {
        problem(&send(foreman.addr, "POST", "/jobs", malformed).await, 400, "malformed-body");
    }
    assert_eq!(get(foreman.addr, "/jobs").await.json()["data"], json!([]));
}

#[tokio::test]
async fn a_submission_above_the_limit_is_refused() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let limit = |raw: &mut foreman::config::Raw| raw.body_max = Some("2KiB".to_owned());
    let foreman = Foreman::start_with(&stub, limit).await.up().await;
    let large = chat("a", &"x".repeat(3 * 1024));
    problem(&try_submit(foreman.addr, &large).await, 413, "body-too-large");
    let batch = send(foreman.addr, "POST", "/jobs/batch", json!([large]).to_string()).await;
    problem(&batch, 413, "body-too-large");
}

#[tokio::test]
async fn a_full_queue_takes_no_submission_and_says_when_to_come_back() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let limit = |raw: &mut foreman::config::Raw| raw.max_queue = Some("1".to_owned());
    let foreman = Foreman::start_with(&stub, limit).await.up().await;
    stub.hold_tokens();
    foreman.occupy(&stub, "a").await;
    let waiting = submit(foreman.addr, &chat("a", "waits")).await;
    let answer = try_submit(foreman.addr, &chat("a", "too many")).await;
    let told = problem(&answer, 503, "queue-full");
    assert_eq!(answer.header("retry-after"), Some(told["retry_after"].to_string().as_str()));
    stub.release_tokens();
    done(foreman.addr, &waiting).await;
    submit(foreman.addr, &chat("a", "room again")).await;
}

/// On a connection that was open before the drain.
#[tokio::test]
async fn a_submission_during_the_drain_is_refused() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let running = submit_stream(&foreman).await;
    let body = chat("a", "late").to_string();
    let bytes = raw::request(foreman.addr, "POST", "/jobs", &[], body.as_bytes());
    let mut early = Raw::send(foreman.addr, &bytes[..bytes.len() - 1]).await;
    foreman.status().await;
    foreman.signal().await;
    foreman_refuses(&foreman).await;
    early.write(&bytes[bytes.len() - 1..]).await;
    // It was being read when the drain began: it may be taken or refused, but not lost.
    let answer = early.answer("POST").await;
    assert!(matches!(answer.status(), 202 | 503), "{}", answer.text());
    stub.release_tokens();
    drop(running);
    foreman.ended().await;
}

async fn submit_stream(foreman: &Foreman) -> String {
    submit(foreman.addr, &generate("a", 5)).await
}

async fn foreman_refuses(foreman: &Foreman) {
    let refused = async { while tokio::net::TcpStream::connect(foreman.addr).await.is_ok() {} };
    tokio::time::timeout(crate::harness::DEADLINE, refused).await.unwrap();
}

#[tokio::test]
async fn without_the_token_nothing_is_taken_or_told() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let token =
        |raw: &mut foreman::config::Raw| raw.token = Some("sesame-sesame-sesame".to_owned());
    let foreman = Foreman::start_with(&stub, token).await;
    problem(&try_submit(foreman.addr, &chat("a", "x")).await, 401, "unauthorised");
    let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for path in ["/jobs", "/events", &format!("/jobs/{id}"), &format!("/jobs/{id}/output")] {
        problem(&get(foreman.addr, path).await, 401, "unauthorised");
    }
    let request = client::request(foreman.addr, "POST", "/jobs", chat("a", "x").to_string());
    let request = with_header(request, ("authorization", "Bearer sesame-sesame-sesame"));
    assert_eq!(open(foreman.addr, request).await.unwrap().status, 202);
}

/// Credentials of the submission go to Ollama where foreman is open, and are not kept with an ended job.
#[tokio::test]
async fn headers_of_the_submission_that_are_not_about_its_body_go_upstream() {
    let mut upstream = Upstream::with_models(&["a"]).await;
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    let id = submit_scripted(foreman.addr, &chat("a", "x")).await;
    let asked = upstream.next().await;
    let names: Vec<String> =
        asked.headers().iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    assert!(names.contains(&"content-type".to_owned()));
    assert!(!names.contains(&"idempotency-key".to_owned()));
    wait_until_state(foreman.addr, &id, "working").await;
}
