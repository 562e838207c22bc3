//! The queue drains model by model with foreman's own swaps, and Ollama is never left to choose a victim.

use serde_json::{Value, json};
use stub_ollama::Stub;

use crate::harness::client::{Answer, chat, chat_unstreamed, post, post_stream};
use crate::harness::{Foreman, stub_config};

/// Starts requests one after the other while loads are held, so that their order of arrival is certain.
async fn queue_up(
    foreman: &Foreman,
    requests: &[(&'static str, Value)],
) -> Vec<tokio::task::JoinHandle<Answer>> {
    let mut clients = Vec::new();
    for (number, (path, body)) in requests.iter().cloned().enumerate() {
        let addr = foreman.addr;
        clients.push(tokio::spawn(async move { post(addr, path, &body).await }));
        foreman
            .wait_for(|status| {
                let waiting = status["queue"]["depth"].as_u64().unwrap();
                let running = status["running"].as_array().unwrap().len();
                waiting + u64::try_from(running).unwrap() == u64::try_from(number).unwrap() + 1
            })
            .await;
    }
    clients
}

/// The paths and models of the GPU work the stub was given, in order, foreman's own loads and unloads left out.
fn served(stub: &Stub) -> Vec<String> {
    let is_work = |body: &Value| {
        body["messages"].as_array().is_some_and(|list| !list.is_empty())
            || body["prompt"].is_string()
    };
    stub.log()
        .iter()
        .filter_map(|entry| {
            let body: Value = serde_json::from_slice(&entry.body).ok()?;
            is_work(&body).then(|| entry.model.clone().unwrap_or_default())
        })
        .collect()
}

/// Arrivals a b a b …, held back until all are queued: one load each, not one per job.
#[tokio::test]
async fn jobs_over_two_models_drain_with_one_swap() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_loads();
    let requests: Vec<_> = (0..10)
        .map(|number| {
            let name = if number % 2 == 0 { "a" } else { "b" };
            ("/api/chat", chat_unstreamed(name, &format!("job {number}")))
        })
        .collect();
    let clients = queue_up(&foreman, &requests).await;
    stub.release_loads();
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["done"], true);
    }
    let counts = stub.counts();
    assert_eq!((counts.loads, counts.evictions, counts.models_generating_max), (2, 0, 1));
    let since = &foreman.status().await["since_start"];
    assert_eq!(
        (&since["loads"], &since["swaps"], &since["done"]),
        (&json!(2), &json!(1), &json!(10))
    );
    assert_eq!(served(&stub), ["a", "a", "a", "a", "a", "b", "b", "b", "b", "b"]);
}

/// Spellings of one model are one load key; another `num_ctx` is another.
#[tokio::test]
async fn the_drain_is_by_load_key_not_by_the_name_as_written() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for name in ["a", "A:latest", "library/a", "registry.ollama.ai/library/a"] {
        assert_eq!(post(foreman.addr, "/api/chat", &chat_unstreamed(name, "x")).await.status, 200);
    }
    assert_eq!((stub.counts().loads, stub.counts().reloads), (1, 0));
    let mut wide = chat_unstreamed("a", "x");
    wide["options"] = json!({ "num_ctx": 8192, "temperature": 0.1 });
    stub.hold_loads();
    let requests = [
        ("/api/chat", wide.clone()),
        ("/api/chat", chat_unstreamed("a", "x")),
        ("/api/chat", wide),
    ];
    let clients = queue_up(&foreman, &requests).await;
    stub.release_loads();
    for client in clients {
        assert_eq!(client.await.unwrap().status, 200);
    }
    let counts = stub.counts();
    assert!(counts.loads <= 3, "wide, wide, plain (or plain, wide, wide): {counts:?}");
    assert_eq!((counts.reloads, counts.evictions), (0, 0), "every reload is foreman's own swap");
}

/// Every route that takes the GPU goes through the one worker, so that nothing thrashes it from the side.
#[tokio::test]
async fn all_gpu_routes_are_jobs_and_never_overlap() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let message = json!([{ "role": "user", "content": "x" }]);
    let mut clients = Vec::new();
    for name in ["a", "b", "a", "b"] {
        for (path, body) in [
            ("/api/chat", json!({ "model": name, "messages": message })),
            ("/api/generate", json!({ "model": name, "prompt": "x" })),
            ("/v1/chat/completions", json!({ "model": name, "messages": message })),
            ("/v1/completions", json!({ "model": name, "prompt": "x" })),
            ("/v1/responses", json!({ "model": name, "input": "x" })),
            ("/v1/messages", json!({ "model": name, "max_tokens": 4, "messages": message })),
        ] {
            let addr = foreman.addr;
            clients.push(tokio::spawn(async move { post(addr, path, &body).await }));
        }
    }
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.header("x-foreman-job-id").is_some());
    }
    let counts = stub.counts();
    assert_eq!((counts.generations_max, counts.models_generating_max, counts.evictions), (1, 1, 0));
}

/// A transcription is a job keyed by the model in its multipart form.
#[tokio::test]
async fn a_transcription_is_keyed_by_its_form() {
    let mut config = stub_config(&["b"]);
    let hears = [stub_ollama::Capability::Completion, stub_ollama::Capability::Audio];
    config.models.push(crate::harness::model("a").with(&hears));
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let form = "--X\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\na\r\n--X\r\n\
        content-disposition: form-data; name=\"file\"; filename=\"s.wav\"\r\n\r\nRIFF\r\n--X--\r\n";
    let mut request =
        crate::harness::client::request(foreman.addr, "POST", "/v1/audio/transcriptions", form);
    request
        .headers_mut()
        .insert("content-type", "multipart/form-data; boundary=X".parse().unwrap());
    let answer = crate::harness::client::open(foreman.addr, request).await.unwrap().rest().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(stub.snapshot().is_resident("a:latest"));
    assert_eq!(stub.counts().evictions, 0);
    assert_eq!(foreman.status().await["resident"][0]["key"], "a:latest");
}

/// `keep_alive` is foreman's: it pins once with a number, and cuts the member out of every job.
#[tokio::test]
async fn keep_alive_is_cut_out_and_the_pin_is_foremans() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = r#"{"model":"a","keep_alive":"5m","messages":[{"role":"user","content":"\u003cb\u003e  é"}],"Keep_Alive" : 3}"#;
    let answer = crate::harness::send(foreman.addr, "POST", "/api/chat", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let log = stub.log();
    let job = log.iter().find(|entry| entry.path == "/api/chat").unwrap();
    assert_eq!(
        job.body.as_ref(),
        r#"{"model":"a","messages":[{"role":"user","content":"\u003cb\u003e  é"}]}"#.as_bytes()
    );
    let load = log.iter().find(|entry| entry.path == "/api/generate").unwrap();
    let load: Value = serde_json::from_slice(&load.body).unwrap();
    assert_eq!(load["keep_alive"], json!(-1));
    assert_eq!(stub.snapshot().resident[0].keep_alive_ns, i64::MAX);
}

/// `keep_alive: 0` on a job means: release when nobody else waits for the key.
#[tokio::test]
async fn a_job_with_keep_alive_zero_releases_its_key_once_dry() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let mut body = chat_unstreamed("a", "x");
    body["keep_alive"] = json!(0);
    let answer = post(foreman.addr, "/api/chat", &body).await;
    assert_eq!(answer.status, 200);
    stub.wait_until(|snapshot| snapshot.resident.is_empty() && snapshot.counts.unloads == 1).await;
}

/// `FOREMAN_KEEP_ALIVE`: the release of an idle model is foreman's own unload.
#[tokio::test]
async fn an_idle_model_is_released_after_the_configured_time() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman =
        Foreman::start_with(&stub, |raw| raw.keep_alive = Some("50ms".to_owned())).await.up().await;
    assert_eq!(post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await.status, 200);
    stub.wait_until(|snapshot| snapshot.resident.is_empty() && snapshot.counts.unloads == 1).await;
    assert_eq!(post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await.status, 200);
    assert_eq!(stub.counts().loads, 2);
}

/// A client's load request makes the key resident by foreman's own load and is then answered by Ollama itself.
#[tokio::test]
async fn a_clients_load_and_unload_are_jobs_of_their_own_kind() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    assert_eq!(post(foreman.addr, "/api/chat", &chat_unstreamed("b", "x")).await.status, 200);
    let load =
        post(foreman.addr, "/api/generate", &json!({ "model": "a", "keep_alive": "1h" })).await;
    assert_eq!(load.json()["done_reason"], "load");
    assert!(stub.snapshot().is_resident("a:latest"));
    assert_eq!(stub.snapshot().resident[0].keep_alive_ns, i64::MAX, "the pin stays foreman's");
    let unload = json!({ "model": "a", "messages": [], "keep_alive": 0 });
    let unload = post(foreman.addr, "/api/chat", &unload).await;
    assert_eq!(unload.json()["done_reason"], "unload");
    stub.wait_until(|snapshot| snapshot.resident.is_empty()).await;
    assert_eq!(stub.counts().evictions, 0);
    assert_eq!(post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await.status, 200);
    assert_eq!(
        foreman.status().await["since_start"]["external_unloads"],
        0,
        "it was foreman's doing"
    );
}

/// A client that wants a model kept is heeded over an earlier one that wanted it gone.
#[tokio::test]
async fn a_clients_load_outlives_an_earlier_release() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let addr = foreman.addr;
    let mut passing = chat_unstreamed("a", "x");
    passing["keep_alive"] = json!(0);
    let passing = tokio::spawn(async move { post(addr, "/api/chat", &passing).await });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let load = json!({ "model": "a", "keep_alive": -1 });
    let load = tokio::spawn(async move { post(addr, "/api/generate", &load).await });
    foreman.wait_for_depth(1).await;
    stub.release_tokens();
    assert_eq!(passing.await.unwrap().status, 200);
    assert_eq!(load.await.unwrap().json()["done_reason"], "load");
    assert_eq!(post(addr, "/api/chat", &chat_unstreamed("a", "again")).await.status, 200);
    assert_eq!((stub.counts().loads, stub.counts().unloads), (1, 0));
}

/// A client's unload waits for the running job and leaves what is queued waiting.
#[tokio::test]
async fn an_unload_runs_at_the_next_border_and_queued_jobs_of_the_key_stay() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.hold_tokens();
    let addr = foreman.addr;
    let running = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "one")).await });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let unload = tokio::spawn(async move {
        post(addr, "/api/generate", &json!({ "model": "a", "keep_alive": 0 })).await
    });
    foreman.wait_for_depth(1).await;
    let queued = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "two")).await });
    foreman.wait_for_depth(2).await;
    stub.release_tokens();
    for client in [running, unload, queued] {
        assert_eq!(client.await.unwrap().status, 200);
    }
    assert_eq!((stub.counts().loads, stub.counts().unloads), (2, 1));
}

/// What foreman finds resident after a restart is loaded again with the key's options (cheap if equal), not swapped out.
#[tokio::test]
async fn a_model_found_resident_is_confirmed_without_a_swap() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    post(stub.addr(), "/api/chat", &chat_unstreamed("a", "direct")).await;
    let foreman = Foreman::start(&stub).await.up().await;
    assert_eq!(post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await.status, 200);
    assert_eq!((stub.counts().loads, stub.counts().unloads), (1, 0));
    assert_eq!(stub.snapshot().resident[0].keep_alive_ns, i64::MAX, "confirmed with the pin");
}

/// A body that cannot be peeked at is a job all the same: alone, as it is, never retried.
#[tokio::test]
async fn what_cannot_be_placed_runs_alone_with_its_own_bytes() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let body = "no JSON, and who knows what a later Ollama makes of it";
    let mut request =
        crate::harness::client::request(foreman.addr, "POST", "/v1/chat/completions", body);
    request.headers_mut().insert("content-encoding", "br".parse().unwrap());
    let answer = crate::harness::client::open(foreman.addr, request).await.unwrap().rest().await;
    assert!(answer.header("x-foreman-job-id").is_some());
    let sent = stub.log().iter().filter(|entry| entry.path == "/v1/chat/completions").count();
    assert_eq!(sent, 1);
}

/// A cloud model never touches the GPU: it is not queued, even while a job runs.
#[tokio::test]
async fn cloud_models_skip_the_queue() {
    let mut config = stub_config(&["a"]);
    config.cloud = stub_ollama::Cloud::Answers;
    config.models.push(crate::harness::model("far").remote("https://ollama.com"));
    let stub = Stub::start(config).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let long = json!({ "model": "a", "prompt": "x", "options": { "num_predict": 1_000_000 } });
    let mut running = post_stream(foreman.addr, "/api/generate", &long).await;
    running.next().await.unwrap().unwrap();
    for name in ["gpt-oss:20b-cloud", "x:cloud", "far"] {
        let answer = post(foreman.addr, "/api/chat", &chat_unstreamed(name, "x")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.header("x-foreman-job-id").is_none(), "{name} was queued");
    }
    assert_eq!(stub.snapshot().generating, ["a:latest"]);
}

fn post_stream_in_background(
    foreman: &Foreman,
    model: &'static str,
) -> tokio::task::JoinHandle<Answer> {
    let addr = foreman.addr;
    tokio::spawn(
        async move { post_stream(addr, "/api/chat", &chat(model, "x")).await.rest().await },
    )
}

/// A full queue refuses in the route's own shape, with a time to come back, and stores nothing.
#[tokio::test]
async fn a_full_queue_refuses_in_each_shape() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman =
        Foreman::start_with(&stub, |raw| raw.max_queue = Some("1".to_owned())).await.up().await;
    stub.hold_tokens();
    let running = post_stream_in_background(&foreman, "a");
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let waiting = post_stream_in_background(&foreman, "a");
    foreman.wait_for_depth(1).await;
    let native = post(foreman.addr, "/api/chat", &chat("a", "x")).await;
    assert_eq!((native.status.as_u16(), native.header("retry-after")), (503, Some("10")));
    assert!(native.json()["error"].as_str().unwrap().contains("queue is full (1 jobs wait)"));
    let openai = post(foreman.addr, "/v1/chat/completions", &chat("a", "x")).await;
    assert_eq!(openai.json()["error"]["type"], "api_error");
    let anthropic =
        json!({ "model": "a", "max_tokens": 1, "messages": [{ "role": "user", "content": "x" }] });
    let anthropic = post(foreman.addr, "/v1/messages", &anthropic).await;
    assert_eq!(anthropic.json()["error"]["type"], "overloaded_error");
    stub.release_tokens();
    assert!(running.await.unwrap().is_whole && waiting.await.unwrap().is_whole);
}

/// An idle model that will not go is asked again after a pause, not as fast as the worker can turn.
#[tokio::test]
async fn a_model_that_will_not_go_is_not_asked_without_end() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman =
        Foreman::start_with(&stub, |raw| raw.keep_alive = Some("1ms".to_owned())).await.up().await;
    let refusal = stub_ollama::Action::Answer {
        status: 503,
        text: "not now".to_owned(),
        retry_after_seconds: None,
        stage: stub_ollama::Stage::BeforeLoad,
    };
    stub.faults(
        stub_ollama::Fault::new(refusal).path("/api/generate").model("a").skip(1).forever(),
    );
    assert_eq!(post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await.status, 200);
    let unloads = |stub: &Stub| {
        let log = stub.log();
        log.iter()
            .filter(|entry| String::from_utf8_lossy(&entry.body).contains("\"keep_alive\":0"))
            .count()
    };
    stub.wait_for_log(|log| {
        log.iter().any(|entry| String::from_utf8_lossy(&entry.body).contains("\"keep_alive\":0"))
    })
    .await;
    // Turns of the worker, each of which would ask again.
    for _ in 0..20 {
        assert_eq!(
            post(foreman.addr, "/api/embed", &json!({ "model": "nope", "input": "x" }))
                .await
                .status,
            404
        );
        foreman.status().await;
    }
    assert_eq!(unloads(&stub), 1);
}

/// A model that is deleted while foreman loads it is unloaded before the delete, not left resident without a name.
#[tokio::test]
async fn a_delete_of_a_model_that_is_loading_unloads_it_first() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.hold_loads();
    let job = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "x")).await });
    stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
    let body = json!({ "model": "a" }).to_string();
    let delete =
        tokio::spawn(
            async move { crate::harness::send(addr, "DELETE", "/api/delete", body).await },
        );
    for _ in 0..20 {
        foreman.status().await;
    }
    assert!(!stub.log().iter().any(|entry| entry.method == "DELETE"), "it waits for the border");
    stub.release_loads();
    assert!(job.await.unwrap().is_whole);
    assert_eq!(delete.await.unwrap().status, 200);
    assert!(stub.snapshot().resident.is_empty());
}
