//! Looking: the object of a job in each of its states, waiting for its end, and lists.

use std::collections::HashSet;

use serde_json::{Value, json};
use stub_ollama::{Action, Fault, Stub};

use crate::harness::client::{self, chat, chat_unstreamed, open};
use crate::harness::jobs::{
    act, cancel, done, ended, generate, id_of, object, problem, submit, submit_scripted,
    wait_until_state, with_header,
};
use crate::harness::random::Random;
use crate::harness::upstream::Upstream;
use crate::harness::{Foreman, get, send, stub_config};

/// Which moments an object tells.
fn moments(object: &Value) -> Vec<&str> {
    ["queued_at", "loading_at", "working_at", "done_at", "failed_at", "cancelled_at"]
        .into_iter()
        .filter(|name| object[name].is_string())
        .collect()
}

#[tokio::test]
async fn each_state_has_its_moment() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_loads();
    stub.hold_tokens();
    let id = submit(addr, &generate("a", 3)).await;
    let next = submit(addr, &generate("a", 3)).await;
    let loading = wait_until_state(addr, &id, "loading").await;
    assert_eq!(moments(&loading), ["queued_at", "loading_at"]);
    assert_eq!((&loading["attempt"], &loading["position"]), (&json!(1), &Value::Null));
    assert_eq!(loading["attempts"][0]["outcome"], "running");
    let queued = object(addr, &next).await;
    assert_eq!((moments(&queued), &queued["attempt"]), (vec!["queued_at"], &json!(0)));
    assert_eq!(queued["attempts"], json!([]));
    stub.release_loads();
    let working = wait_until_state(addr, &id, "working").await;
    assert_eq!(moments(&working), ["queued_at", "loading_at", "working_at"]);
    let cancelled = cancel(addr, &next).await;
    assert_eq!(moments(&cancelled), ["queued_at", "cancelled_at"]);
    stub.release_tokens();
    let object = done(addr, &id).await;
    assert_eq!(moments(&object), ["queued_at", "loading_at", "working_at", "done_at"]);
    assert_eq!(object["error"], Value::Null);
    assert_eq!(object["usage"]["output_tokens"], 3);
    assert!(object["usage"]["prompt_tokens"].as_u64() > Some(0));
    assert_eq!(object["attempts"][0]["outcome"], "done");
    let warm = done(addr, &submit(addr, &generate("a", 1)).await).await;
    assert_eq!(moments(&warm), ["queued_at", "working_at", "done_at"], "it was loaded already");
    let failed = ended(addr, &submit(addr, &chat("nobody", "x")).await).await;
    assert!(moments(&failed).ends_with(&["failed_at"]), "{failed:#}");
    assert_eq!(failed["result"], Value::Null);
    assert_eq!(failed["artifacts"], json!([]));
}

/// From the last entry into the queue to the record of the outcome, the parts make the whole.
#[tokio::test]
async fn the_times_of_a_job_add_up() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.faults(Fault::new(Action::KillRunner(0)).path("/api/chat").skip(2));
    for (model, end) in
        [("a", "done_at"), ("a", "done_at"), ("a", "done_at"), ("nobody", "failed_at")]
    {
        let id = submit(foreman.addr, &chat(model, "x")).await;
        let object = ended(foreman.addr, &id).await;
        let parts = ["queue_ms", "load_ms", "first_token_ms", "generate_ms", "store_ms"];
        let sum: i64 = parts.iter().map(|part| object["timings"][part].as_i64().unwrap()).sum();
        let at = |name: &str| foreman::clock::from_rfc3339(object[name].as_str().unwrap()).unwrap();
        assert_eq!(sum, at(end) - at("queued_at"), "{object:#}");
    }
}

#[tokio::test]
async fn each_attempt_is_told_with_its_error() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.faults(Fault::new(Action::EndWithoutDone(1)).path("/api/chat").times(2));
    let id = submit(foreman.addr, &chat_unstreamed("a", "x")).await;
    let object = done(foreman.addr, &id).await;
    let attempts = object["attempts"].as_array().unwrap();
    let told: Vec<_> = attempts
        .iter()
        .map(|attempt| (attempt["attempt"].as_i64().unwrap(), attempt["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [(1, "put_back"), (2, "put_back"), (3, "done")]);
    assert!(attempts[0]["error"].is_string() && attempts[2]["error"].is_null(), "{object:#}");
    assert!(attempts.iter().all(|attempt| attempt["ended_at"].is_string()));
    assert_eq!((&object["attempt"], &object["counters"]["attempts"]), (&json!(3), &json!(3)));
}

/// The boundary of what stands in the object, through all of foreman.
#[tokio::test]
async fn a_result_is_inline_up_to_its_limit() {
    let mut upstream = Upstream::with_models(&["a"]).await;
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    const LIMIT: usize = 256 * 1024;
    for (bytes, is_inline) in [(LIMIT - 1, true), (LIMIT, true), (LIMIT + 1, false)] {
        let id = submit_scripted(foreman.addr, &chat_unstreamed("a", "x")).await;
        let mut asked = upstream.next().await;
        let shell = "{\"done\":true,\"x\":\"\"}".len();
        let answer = format!("{{\"done\":true,\"x\":\"{}\"}}", "y".repeat(bytes - shell));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length";
        asked.write(format!("{head}: {bytes}\r\n\r\n{answer}")).await;
        let object = done(foreman.addr, &id).await;
        assert_eq!(object["result"].is_object(), is_inline, "{bytes}");
        let artifact = &object["artifacts"][0];
        assert_eq!((&artifact["size"], &artifact["is_inline"]), (&json!(bytes), &json!(is_inline)));
        let fetched = get(foreman.addr, artifact["url"].as_str().unwrap()).await;
        assert_eq!(fetched.text(), answer);
        assert_eq!(artifact["content_type"], fetched.header("content-type").unwrap());
    }
}

/// A streamed answer is one value: what an unstreamed one would have been.
#[tokio::test]
async fn the_completion_of_a_stream_is_one_value() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let object = done(foreman.addr, &submit(foreman.addr, &chat("a", "x")).await).await;
    let whole = client::post(stub.addr(), "/api/chat", &chat_unstreamed("a", "x")).await.json();
    assert_eq!(object["result"]["message"], whole["message"]);
    assert_eq!(object["result"]["done_reason"], whole["done_reason"]);
    let artifact = &object["artifacts"][0];
    let fetched = get(foreman.addr, artifact["url"].as_str().unwrap()).await;
    assert_eq!(fetched.json(), object["result"]);
    assert_eq!(artifact["size"], fetched.body.len());
    let unknown = get(foreman.addr, &format!("/jobs/{}/artifacts/x", id_of(&object))).await;
    problem(&unknown, 404, "unknown-artifact");
}

#[tokio::test]
async fn a_dropped_job_is_gone_and_an_unknown_one_was_never_there() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let ways = ["delete", "purge"];
    for way in ways {
        let id = id_of(&done(addr, &submit(addr, &chat("a", "x")).await).await);
        match way {
            "delete" => {
                assert_eq!(send(addr, "DELETE", &format!("/jobs/{id}"), "").await.status, 204);
            }
            _ => assert_eq!(
                send(addr, "POST", "/jobs/purge?state=done", "").await.json()["count"],
                1
            ),
        }
        for path in
            ["", "/output", "/output?stream=true", "/request", "/artifacts/completion", "/events"]
        {
            problem(&get(addr, &format!("/jobs/{id}{path}")).await, 410, "purged");
        }
        for what in ["cancel", "retry"] {
            problem(&act(addr, &id, what).await, 410, "purged");
        }
        problem(&send(addr, "DELETE", &format!("/jobs/{id}"), "").await, 410, "purged");
    }
    for id in ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "nobody"] {
        for path in ["", "/output", "/request", "/artifacts/completion", "/events"] {
            problem(&get(addr, &format!("/jobs/{id}{path}")).await, 404, "unknown-job");
        }
        problem(&act(addr, id, "cancel").await, 404, "unknown-job");
    }
}

/// By its age.
#[tokio::test]
async fn an_old_job_is_dropped() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let short = |raw: &mut foreman::config::Raw| raw.job_ttl = Some("1s".to_owned());
    let foreman = Foreman::start_with(&stub, short).await.up().await;
    let id = submit(foreman.addr, &chat("a", "x")).await;
    let gone = async { while get(foreman.addr, &format!("/jobs/{id}")).await.status == 200 {} };
    tokio::time::timeout(crate::harness::DEADLINE, gone).await.unwrap();
    problem(&get(foreman.addr, &format!("/jobs/{id}")).await, 410, "purged");
}

#[tokio::test]
async fn an_object_that_is_known_is_not_sent_again() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let id = submit(foreman.addr, &chat("a", "x")).await;
    wait_until_state(foreman.addr, &id, "working").await;
    let path = format!("/jobs/{id}");
    let tag = get(foreman.addr, &path).await.header("etag").unwrap().to_owned();
    let ask = |tag: String| {
        let request = client::request(foreman.addr, "GET", &path, "");
        open(foreman.addr, with_header(request, ("if-none-match", &tag)))
    };
    let known = ask(format!("\"x\", {tag}")).await.unwrap().rest().await;
    assert_eq!((known.status.as_u16(), known.body.len()), (304, 0));
    stub.release_tokens();
    done(foreman.addr, &id).await;
    let changed = ask(tag.clone()).await.unwrap().rest().await;
    assert_eq!(changed.status, 200);
    assert_ne!(changed.header("etag"), Some(tag.as_str()));
}

/// All who wait are answered by the end, and whose time is over by the object as it is.
#[tokio::test]
async fn a_long_poll_is_answered_by_the_end_or_in_time() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_tokens();
    let id = submit(addr, &chat("a", "x")).await;
    let early = get(addr, &format!("/jobs/{id}?wait=50ms")).await.json();
    assert_ne!(early["state"], "done");
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let path = format!("/jobs/{id}?wait=25s");
            tokio::spawn(async move { get(addr, &path).await.json() })
        })
        .collect();
    wait_until_state(addr, &id, "working").await;
    stub.release_tokens();
    for answer in waiting {
        assert_eq!(answer.await.unwrap()["state"], "done");
    }
    let preferred = client::request(addr, "GET", &format!("/jobs/{id}"), "");
    let preferred = open(addr, with_header(preferred, ("prefer", "wait=20"))).await.unwrap();
    assert_eq!(preferred.rest().await.json()["state"], "done");
    problem(&get(addr, &format!("/jobs/{id}?wait=6m")).await, 400, "malformed-parameter");
}

#[tokio::test]
async fn a_list_has_what_its_filters_ask_for() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let first = id_of(&done(addr, &submit(addr, &chat("a", "x")).await).await);
    let sync = client::post(addr, "/api/chat", &chat("b", "x")).await;
    let sync = sync.header("x-foreman-job-id").unwrap().to_owned();
    ended(addr, &sync).await;
    let failed = id_of(&ended(addr, &submit(addr, &chat("nobody", "x")).await).await);
    stub.hold_tokens();
    let running = foreman.occupy(&stub, "b").await;
    let mut batch = chat("a", "x");
    batch["priority"] = json!("batch");
    let waiting = submit(addr, &batch).await;
    let created = object(addr, &failed).await["created_at"].as_str().unwrap().to_owned();
    let (after_it, before_it) =
        (format!("created_after={created}"), format!("created_before={created}"));
    let behind = format!("after={failed}");
    for (query, wanted) in [
        ("", vec![&waiting, &running, &failed, &sync, &first]),
        ("state=done", vec![&sync, &first]),
        ("state=failed,queued", vec![&waiting, &failed]),
        ("model=b", vec![&running, &sync]),
        ("priority=batch", vec![&waiting]),
        ("is_async=false", vec![&sync]),
        ("is_async=true&state=done&model=a", vec![&first]),
        (after_it.as_str(), vec![&waiting, &running, &failed]),
        (before_it.as_str(), vec![&sync, &first]),
        (behind.as_str(), vec![&sync, &first]),
    ] {
        let page = get(addr, &format!("/jobs?{query}")).await.json();
        let data = page["data"].as_array().unwrap();
        assert_eq!(
            data.iter().map(id_of).collect::<Vec<_>>(),
            wanted.into_iter().cloned().collect::<Vec<_>>(),
            "{query}"
        );
        assert!(
            data.iter().all(|job| job.get("result").is_none() && job.get("attempts").is_none())
        );
        assert_eq!(page["first_id"], data[0]["job_id"]);
        assert_eq!(
            (&page["last_id"], &page["has_more"]),
            (&data.last().unwrap()["job_id"], &json!(false))
        );
    }
    for bad in ["limit=0", "limit=101", "state=gone", "stat=done", "after=x", "created_after=1"] {
        problem(&get(addr, &format!("/jobs?{bad}")).await, 400, "malformed-parameter");
    }
    assert_eq!(send(addr, "DELETE", &format!("/jobs/{first}"), "").await.status, 204);
    problem(&get(addr, &format!("/jobs?after={first}")).await, 410, "purged");
    stub.release_tokens();
}

/// While others come in, each job that was there is given exactly once.
#[tokio::test]
async fn pages_give_each_job_once_while_more_come_in() {
    let seed = 4711;
    println!("seed {seed}");
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_tokens();
    let batch = |count: usize| json!(vec![chat("a", "x"); count]).to_string();
    let there = send(addr, "POST", "/jobs/batch", batch(60)).await.json();
    let there: Vec<String> = there["jobs"].as_array().unwrap().iter().map(id_of).collect();
    let mut random = Random::new(seed, 0);
    let mut path = "/jobs?is_async=true&limit=7".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = get(addr, &path).await;
        seen.extend(page.json()["data"].as_array().unwrap().iter().map(id_of));
        let Some(link) = page.header("link") else {
            assert_eq!(page.json()["has_more"], false);
            break;
        };
        assert!(link.ends_with("; rel=\"next\""), "{link}");
        path = link[1..link.find('>').unwrap()].to_owned();
        let more = usize::try_from(random.below(5)).unwrap();
        send(addr, "POST", "/jobs/batch", batch(more)).await;
    }
    let once: HashSet<&String> = seen.iter().collect();
    assert_eq!(once.len(), seen.len(), "a job came twice");
    assert!(there.iter().all(|id| once.contains(id)), "a job is missing");
    stub.release_tokens();
}

#[tokio::test]
async fn a_waiting_job_moves_up_as_others_end() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_tokens();
    foreman.occupy(&stub, "a").await;
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(submit(addr, &chat("a", "x")).await);
    }
    for (place, id) in (1_u64..).zip(&waiting) {
        let object = object(addr, id).await;
        assert_eq!(object["position"], place, "{object:#}");
        assert!(object["estimated_start"].is_string());
    }
    cancel(addr, &waiting[0]).await;
    assert_eq!(object(addr, &waiting[3]).await["position"], 3);
    stub.release_tokens();
    assert_eq!(done(addr, &waiting[3]).await["position"], Value::Null);
}
