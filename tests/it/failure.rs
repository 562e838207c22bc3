//! What foreman does when the upstream fails: tried again while nobody has seen a byte, told in-band after that, and an
//! upstream that is away costs no job anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stub_ollama::{Action, Cut, Fault, Stage, Stub, StubConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::client::{Answer, chat, chat_unstreamed, open, post, post_stream, request};
use crate::harness::upstream::Upstream;
use crate::harness::{Foreman, jobs, stub_config};
use crate::same::{ROUTES, body_of};

fn answer_fault(status: u16, text: &str) -> Fault {
    let action = Action::Answer {
        status,
        text: text.to_owned(),
        retry_after_seconds: None,
        stage: Stage::AfterLoad,
    };
    Fault::new(action).path("/api/chat")
}

/// How often the stub was given the chat.
fn tries(stub: &Stub) -> usize {
    stub.log().iter().filter(|entry| entry.path == "/api/chat").count()
}

/// Every passing failure before the first byte: one retry, then a whole answer, on both kinds of answer.
#[tokio::test]
async fn passing_failures_are_tried_again_and_the_client_sees_one_whole_answer() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let at_chat = |action| Fault::new(action).path("/api/chat");
    let faults = [
        answer_fault(408, "x"),
        answer_fault(425, "x"),
        answer_fault(429, "x"),
        answer_fault(502, "x"),
        answer_fault(503, "x"),
        answer_fault(504, "x"),
        answer_fault(503, "server busy, please try again.  maximum pending requests exceeded"),
        at_chat(Action::CutBeforeHeaders(Cut::Fin)),
        at_chat(Action::CutBeforeHeaders(Cut::Reset)),
        at_chat(Action::CutAfterBytes { bytes: 0, cut: Cut::Reset }),
        at_chat(Action::EndWithoutDone(0)),
        at_chat(Action::KillRunner(0)),
        at_chat(Action::ErrorAfterChunks { chunks: 0, text: None }),
    ];
    for fault in faults {
        for body in [chat("a", "x"), chat_unstreamed("a", "x")] {
            stub.reset();
            stub.faults(fault.clone());
            let answer = post(foreman.addr, "/api/chat", &body).await;
            assert_eq!(answer.status, 200, "{fault:?}: {}", answer.text());
            assert!(answer.is_whole, "{fault:?}");
            assert_eq!(answer.text().matches("\"done\":true").count(), 1, "{fault:?}");
            assert_eq!(tries(&stub), 2, "{fault:?} {body}");
            stub.clear_faults();
        }
    }
}

/// An unstreamed answer that breaks off anywhere is hidden from its client, so it is tried again.
#[tokio::test]
async fn an_unstreamed_answer_cut_anywhere_is_tried_again() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for bytes in [1, 40, 200, 300] {
        stub.faults(Fault::new(Action::CutAfterBytes { bytes, cut: Cut::Fin }).path("/api/chat"));
        let answer = post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await;
        assert_eq!(answer.status, 200, "cut after {bytes}: {}", answer.text());
        assert_eq!(answer.json()["done"], true);
    }
}

/// Once a byte was shown: an error line, then the cut; never a second generation, never a clean end.
#[tokio::test]
async fn a_shown_stream_that_breaks_ends_in_an_error_line_and_a_cut() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let faults = [
        Action::CutAfterBytes { bytes: 300, cut: Cut::Reset },
        Action::CutAfterBytes { bytes: 300, cut: Cut::Fin },
        Action::EndWithoutDone(3),
        Action::ErrorAfterChunks { chunks: 3, text: None },
        Action::KillRunner(3),
    ];
    for action in faults {
        stub.reset();
        stub.faults(Fault::new(action.clone()).path("/api/chat"));
        let answer = post_stream(foreman.addr, "/api/chat", &chat("a", "x")).await.rest().await;
        assert_eq!(answer.status, 200);
        assert!(!answer.is_whole, "{action:?} must not look whole: {}", answer.text());
        let errors: Vec<String> = answer
            .text()
            .lines()
            .filter(|line| line.starts_with("{\"error\""))
            .map(str::to_owned)
            .collect();
        assert_eq!(errors.len(), 1, "{action:?}: {}", answer.text());
        assert_eq!(answer.text().lines().last().unwrap(), errors[0]);
        assert!(!answer.text().contains("\"done\":true"));
        assert_eq!(tries(&stub), 1, "{action:?}");
        stub.clear_faults();
    }
    foreman.wait_for(|status| status["since_start"]["failed"] == 5).await;
}

/// After the last try the client gets Ollama's own last answer, and the job is failed.
#[tokio::test]
async fn attempts_end_with_the_upstreams_own_error() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.faults(answer_fault(503, "not today").forever());
    let answer = post(foreman.addr, "/api/chat", &chat("a", "x")).await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (503, r#"{"error":"not today"}"#));
    assert!(answer.header("x-foreman-job-id").is_some());
    assert_eq!(tries(&stub), 3, "FOREMAN_MAX_ATTEMPTS");
    let status = foreman.wait_for(|status| status["since_start"]["failed"] == 1).await;
    assert_eq!(status["stored"]["failed"], 1);
}

/// 4xx and a 500 that is no dead runner are final: one try, relayed as they are.
#[tokio::test]
async fn final_errors_are_not_tried_again() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    for (status, text) in [(400, "bad"), (404, "gone"), (500, "invalid format"), (501, "no")] {
        stub.reset();
        stub.faults(answer_fault(status, text));
        let answer = post(foreman.addr, "/api/chat", &chat_unstreamed("a", "x")).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (status, json!({ "error": text })));
        assert_eq!(tries(&stub), 1);
    }
}

/// A load that fails is Ollama's answer to whoever waits for it, and is not tried again by their jobs.
#[tokio::test]
async fn a_failed_load_is_told_as_ollama_tells_it() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    stub.faults(Fault::new(Action::FailLoad("out of memory".to_owned())).model("a").forever());
    for body in [chat("a", "x"), chat_unstreamed("a", "x")] {
        let answer = post(foreman.addr, "/api/chat", &body).await;
        let text = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(answer.status == 500 && text.starts_with("out of memory"), "{text}");
    }
    assert_eq!(stub.counts().failed_loads, 1);
}

/// A sleeping laptop: jobs wait through it with their attempts, and all finish when it returns.
#[tokio::test]
async fn an_upstream_that_is_away_costs_no_job_anything() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman =
        Foreman::start_with(&stub, |raw| raw.max_attempts = Some("1".to_owned())).await.up().await;
    stub.set_down(true).await;
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let (addr, name) = (foreman.addr, if number % 2 == 0 { "a" } else { "b" });
            tokio::spawn(async move { post(addr, "/api/chat", &chat(name, "x")).await })
        })
        .collect();
    foreman
        .wait_for(|status| status["queue"]["depth"] == 8 && status["upstream"]["state"] == "down")
        .await;
    stub.set_down(false).await;
    for client in clients {
        let answer = client.await.unwrap();
        assert!(answer.status == 200 && answer.is_whole, "{}", answer.text());
    }
    assert_eq!(stub.counts().evictions, 0);
}

/// The daemon starts before its upstream: jobs are taken and wait.
#[tokio::test]
async fn an_upstream_that_is_not_there_yet_is_waited_for() {
    let stub = Stub::start(stub_config(&["a"])).await;
    stub.set_down(true).await;
    let foreman = Foreman::start(&stub).await;
    let addr = foreman.addr;
    let client = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "x")).await });
    foreman.wait_for_depth(1).await;
    let tags = crate::harness::get(foreman.addr, "/api/tags").await;
    assert_eq!(tags.status, 502);
    assert!(tags.json()["error"].as_str().unwrap().contains("not reachable"));
    stub.set_down(false).await;
    assert!(client.await.unwrap().is_whole);
}

/// An upstream that goes up and down under load: everything ends well, nothing is lost.
#[tokio::test]
async fn a_flapping_upstream_ends_in_success_without_loss() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let clients: Vec<_> = (0..40)
        .map(|number| {
            let (addr, name) = (foreman.addr, if number % 3 == 0 { "a" } else { "b" });
            tokio::spawn(async move { post(addr, "/api/chat", &chat_unstreamed(name, "x")).await })
        })
        .collect();
    for flap in 1..=6_u64 {
        let enough = flap * 4;
        foreman.wait_for(|status| status["since_start"]["done"].as_u64().unwrap() >= enough).await;
        stub.set_down(true).await;
        foreman.wait_for(|status| status["upstream"]["state"] == "down").await;
        stub.unload_all();
        stub.set_down(false).await;
    }
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["done"], true);
    }
    let status = foreman.status().await;
    assert_eq!(
        (&status["since_start"]["done"], &status["since_start"]["failed"]),
        (&json!(40), &json!(0))
    );
    assert_eq!(stub.counts().evictions, 0);
}

/// A hang is ended by the idle limit inside a stream; before its first byte only where Ollama no longer holds the model.
#[tokio::test]
async fn a_silent_upstream_is_given_up_after_the_idle_limit() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.idle_limit = Some("150ms".to_owned()))
        .await
        .up()
        .await;
    stub.faults(Fault::new(Action::HangBeforeHeaders).path("/api/chat"));
    let addr = foreman.addr;
    let hanging = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "x")).await });
    foreman.wait_for(|status| status["running"][0]["state"] == "working").await;
    stub.unload_all();
    let answer = hanging.await.unwrap();
    assert!(answer.status == 200 && answer.is_whole, "{}", answer.text());
    stub.faults(Fault::new(Action::HangAfterChunks(2)).path("/api/chat"));
    let answer = post_stream(foreman.addr, "/api/chat", &chat("a", "x")).await.rest().await;
    assert!(!answer.is_whole);
    assert!(
        answer.text().lines().last().unwrap().contains("sent nothing for"),
        "{}",
        answer.text()
    );
}

/// A long prompt is read for longer than the idle limit: it is no silence, on any route, streamed or not, whoever waits. (A
/// streamed one was run three times and failed.)
#[tokio::test]
async fn a_long_prompt_is_read_once() {
    let config = StubConfig { prompt_time: Duration::from_millis(700), ..stub_config(&["a"]) };
    let stub = Stub::start(config).await;
    let foreman = Foreman::start_with(&stub, |raw| raw.idle_limit = Some("250ms".to_owned()))
        .await
        .up()
        .await;
    for route in ROUTES {
        for is_streamed in [true, false] {
            stub.reset();
            let body = body_of(route, "a", "long", is_streamed);
            let answer = post(foreman.addr, route, &body).await;
            assert!(answer.status == 200 && answer.is_whole, "{route}: {}", answer.text());
            let runs = stub
                .log()
                .iter()
                .filter(|entry| entry.body.as_ref() == body.to_string().as_bytes())
                .count();
            assert_eq!(runs, 1, "{route}, streamed {is_streamed}");
        }
    }
    let message = json!([{ "role": "user", "content": "long" }]);
    for is_streamed in [true, false] {
        let job = json!({ "model": "a", "stream": is_streamed, "messages": message });
        let id = jobs::submit(foreman.addr, &job).await;
        let done = jobs::wait_for(foreman.addr, &id, |job| job["done_at"].is_string()).await;
        assert_eq!(done["attempt"], 1, "{done:#}");
    }
}

/// Something between foreman and Ollama sends headers at once, and the first byte comes much later: no silence either.
#[tokio::test]
async fn silence_counts_from_the_first_byte() {
    let mut upstream = Upstream::with_models(&["a"]).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.idle_limit = Some("200ms".to_owned());
    let foreman = Foreman::start_at(&upstream.url(), tweak).await.up().await;
    let (addr, body) = (foreman.addr, chat("a", "x").to_string());
    let asked = jobs::with_header(request(addr, "POST", "/api/chat", body), ("x-script", "body"));
    let client = tokio::spawn(async move { open(addr, asked).await.unwrap().rest().await });
    let mut at_work = upstream.next().await;
    at_work
        .write("HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    foreman.wait_for(|status| status["running"][0]["running_for_ms"].as_i64() > Some(900)).await;
    let line =
        "{\"model\":\"a\",\"message\":{\"role\":\"assistant\",\"content\":\"y\"},\"done\":true}\n";
    at_work.write(format!("{:x}\r\n{line}\r\n0\r\n\r\n", line.len())).await;
    let answer = client.await.unwrap();
    assert!(answer.is_whole && answer.streamed_text() == "y", "{}", answer.text());
    assert!(!upstream.has_next(), "it was sent once");
}

/// In-band failures in the shapes of the other dialects.
#[tokio::test]
async fn a_broken_stream_is_told_in_its_dialect() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let message = json!([{ "role": "user", "content": "x" }]);
    let broken = async |path: &str, body: Value| -> Answer {
        stub.faults(Fault::new(Action::EndWithoutDone(2)).path(path));
        post_stream(foreman.addr, path, &body).await.rest().await
    };
    let chat = broken(
        "/v1/chat/completions",
        json!({ "model": "a", "stream": true, "messages": message }),
    )
    .await;
    assert!(!chat.is_whole && !chat.text().contains("[DONE]"));
    assert!(chat.text().contains("\n\ndata: {\"error\":{"), "{}", chat.text());
    let body = json!({ "model": "a", "stream": true, "max_tokens": 9, "messages": message });
    let messages = broken("/v1/messages", body).await;
    assert!(!messages.is_whole && !messages.text().contains("message_stop"));
    assert!(messages.text().contains("event: error\ndata: {"), "{}", messages.text());
    let responses =
        broken("/v1/responses", json!({ "model": "a", "stream": true, "input": "x" })).await;
    assert!(!responses.is_whole && !responses.text().contains("response.completed"));
}

/// An unstreamed answer whose runner stopped early is complete JSON around half a text: it is tried again in every dialect.
#[tokio::test]
async fn half_an_unstreamed_answer_is_never_called_whole() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let message = json!([{ "role": "user", "content": "x" }]);
    for (path, body) in [
        ("/api/chat", json!({ "model": "a", "stream": false, "messages": message })),
        ("/api/generate", json!({ "model": "a", "stream": false, "prompt": "x" })),
        ("/v1/chat/completions", json!({ "model": "a", "messages": message })),
        ("/v1/completions", json!({ "model": "a", "prompt": "x" })),
        ("/v1/messages", json!({ "model": "a", "max_tokens": 9, "messages": message })),
    ] {
        stub.reset();
        stub.faults(Fault::new(Action::EndWithoutDone(2)).path(path));
        let answer = post(foreman.addr, path, &body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let tries = stub
            .log()
            .iter()
            .filter(|entry| entry.body.as_ref() == body.to_string().as_bytes())
            .count();
        assert_eq!(tries, 2, "{path}: {}", answer.text());
    }
}

/// An unload that Ollama refuses for the moment stops the swap: loading on would leave the choice of a victim to Ollama.
#[tokio::test]
async fn a_victim_that_stays_stops_the_swap() {
    let stub = Stub::start(stub_config(&["a", "b"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    assert!(post(foreman.addr, "/api/chat", &chat("a", "x")).await.is_whole);
    let action = Action::Answer {
        status: 503,
        text: "not now".to_owned(),
        retry_after_seconds: None,
        stage: Stage::BeforeLoad,
    };
    stub.faults(Fault::new(action).path("/api/generate").model("a"));
    let answer = post(foreman.addr, "/api/chat", &chat("b", "x")).await;
    assert!(answer.status == 200 && answer.is_whole, "{}", answer.text());
    assert_eq!((stub.counts().evictions, stub.counts().loads), (0, 2));
}

/// A network between foreman and the stub that can break: open connections then stay open and carry nothing ever again,
/// and new ones are closed at once.
struct Network {
    addr: SocketAddr,
    /// Counts breaks; odd while it is broken.
    breaks: Arc<watch::Sender<u32>>,
}

impl Network {
    async fn to(server: SocketAddr) -> Network {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let breaks = Arc::new(watch::Sender::new(0));
        let seen = Arc::clone(&breaks);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let breaks: u32 = *seen.borrow();
                if breaks.is_multiple_of(2) {
                    tokio::spawn(carry(client, server, seen.subscribe()));
                }
            }
        });
        Network { addr, breaks }
    }

    fn toggle(&self) {
        self.breaks.send_modify(|breaks| *breaks += 1);
    }
}

async fn carry(mut client: TcpStream, server: SocketAddr, mut breaks: watch::Receiver<u32>) {
    breaks.mark_unchanged();
    let mut server = TcpStream::connect(server).await.unwrap();
    let (mut up, mut down) = ([0; 4096], [0; 4096]);
    loop {
        tokio::select! {
            biased;
            _ = breaks.changed() => std::future::pending::<()>().await,
            read = client.read(&mut up) => match read {
                Ok(bytes) if bytes > 0 => server.write_all(&up[..bytes]).await.unwrap(),
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(bytes) if bytes > 0 && client.write_all(&down[..bytes]).await.is_ok() => (),
                _ => return,
            },
        }
    }
}

/// A host that went to sleep under an unstreamed job: its connection looks open and never says anything again. Once the
/// upstream is back the job is run anew, and the next one too. (It held the worker for ever.)
#[tokio::test]
async fn a_job_left_behind_by_its_upstream_is_run_anew() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let network = Network::to(stub.addr()).await;
    let url = format!("http://{}", network.addr);
    let folder = tempfile::tempdir().unwrap();
    let tweak = |raw: &mut foreman::config::Raw| {
        raw.idle_limit = Some("200ms".to_owned());
        raw.poll_interval = Some("50ms".to_owned());
        raw.max_attempts = Some("1".to_owned());
    };
    let foreman =
        Foreman::start_on(&url, &folder.path().join("foreman.db"), tweak).await.up().await;
    stub.hold_tokens();
    let addr = foreman.addr;
    let first =
        tokio::spawn(async move { post(addr, "/api/chat", &chat_unstreamed("a", "one")).await });
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let second =
        tokio::spawn(async move { post(addr, "/api/chat", &chat_unstreamed("a", "two")).await });
    foreman.wait_for_depth(1).await;
    network.toggle();
    foreman.wait_for(|status| status["upstream"]["state"] == "down").await;
    network.toggle();
    stub.release_tokens();
    for client in [first, second] {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// An Ollama that is restarted between two polls has lost its runners and their pins: the next job is preceded by foreman's
/// own load, not carried by one of Ollama's.
#[tokio::test]
async fn a_quick_restart_of_the_upstream_is_noticed() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let tweak = |raw: &mut foreman::config::Raw| raw.poll_interval = Some("1h".to_owned());
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    assert!(post(foreman.addr, "/api/chat", &chat("a", "x")).await.is_whole);
    stub.set_down(true).await;
    stub.unload_all();
    stub.wait_until(|snapshot| snapshot.resident.is_empty()).await;
    stub.set_down(false).await;
    foreman.wait_for(|status| status["resident"].as_array().is_some_and(Vec::is_empty)).await;
    assert!(post(foreman.addr, "/api/chat", &chat("a", "x")).await.is_whole);
    let own_loads = stub
        .log()
        .iter()
        .filter(|entry| String::from_utf8_lossy(&entry.body).contains("\"keep_alive\":-1"))
        .count();
    assert_eq!((own_loads, stub.snapshot().resident[0].keep_alive_ns), (2, i64::MAX));
}
