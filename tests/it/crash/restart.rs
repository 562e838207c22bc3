//! The real binary dies or is stopped at a chosen moment: what a second daemon, SIGTERM, a restart in mid-queue and a
//! job that kills foreman each time come to.

use std::net::SocketAddr;
use std::time::Duration;

use foreman::domain::retry::INTERRUPTIONS_MAX;
use hyper::StatusCode;
use serde_json::{Value, json};
use stub_ollama::{Action, Fault, LogEntry, Stub, expected_text};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::harness::client::{chat, chat_unstreamed, post_stream, request, try_open};
use crate::harness::daemon::{Daemon, command};
use crate::harness::{Answer, DEADLINE, get, post, stub_config};

use super::oracle::{Job, jobs, prepare};

/// Tokens of a stream that is held in its middle.
const LONG: u32 = 40;

/// A stub, and a place for the database.
struct Place {
    stub: Stub,
    folder: TempDir,
}

impl Place {
    async fn new(models: &[&str]) -> Place {
        let mut config = stub_config(models);
        config.wait_max = DEADLINE;
        let place = Place { stub: Stub::start(config).await, folder: tempfile::tempdir().unwrap() };
        prepare(&place.db()).await;
        place
    }

    fn db(&self) -> std::path::PathBuf {
        self.folder.path().join("foreman.db")
    }

    async fn daemon(&self) -> Daemon {
        Daemon::start(&self.stub.url(), &self.db(), &["--shutdown-grace", "20s"]).await
    }

    /// Leaves a job behind whose client and daemon are gone: foreman is killed while it loads for it. Loads stay held.
    async fn cut_off_while_loading(&self, body: Value) {
        self.stub.hold_loads();
        let daemon = self.daemon().await;
        let client = ask(daemon.addr, "/api/chat", body);
        self.stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
        daemon.kill().await;
        assert!(client.await.unwrap().is_none());
        self.stub.wait_until(|snapshot| snapshot.counts.aborted_loads == 1).await;
    }

    /// The job whose request says this.
    fn job(&self, text: &str) -> Job {
        let mut jobs = jobs(&self.db());
        jobs.retain(|job| String::from_utf8_lossy(&job.request).contains(text));
        assert_eq!(jobs.len(), 1, "jobs with {text:?}");
        jobs.remove(0)
    }
}

/// Waits until the status document is as wanted. Each look is a request.
async fn wait_for(addr: SocketAddr, wanted: impl Fn(&Value) -> bool) {
    let mut last = Value::Null;
    let seen = tokio::time::timeout(DEADLINE, async {
        while !wanted(&last) {
            last = get(addr, "/status").await.json();
        }
    });
    assert!(seen.await.is_ok(), "the awaited status never came: {last:#}");
}

/// Waits until that many jobs wait.
async fn wait_for_depth(addr: SocketAddr, depth: usize) {
    wait_for(addr, |status| status["queue"]["depth"] == depth).await;
}

/// Waits until that many jobs are done.
async fn wait_for_done(addr: SocketAddr, done: usize) {
    wait_for(addr, |status| status["stored"]["done"] == done).await;
}

/// A client that may lose foreman.
fn ask(addr: SocketAddr, path: &'static str, body: Value) -> JoinHandle<Option<Answer>> {
    tokio::spawn(async move {
        let stream = try_open(addr, request(addr, "POST", path, body.to_string())).await?;
        Some(stream.rest().await)
    })
}

fn long_chat(text: &str) -> Value {
    let mut body = chat("a", text);
    body["options"] = json!({ "num_predict": LONG, "seed": 1 });
    body
}

/// Requests of jobs that came to Ollama with this text.
fn runs(log: &[LogEntry], text: &str) -> usize {
    log.iter().filter(|entry| String::from_utf8_lossy(&entry.body).contains(text)).count()
}

#[tokio::test]
async fn a_second_daemon_on_the_same_database_refuses_to_start() {
    let place = Place::new(&["a"]).await;
    let first = place.daemon().await;
    let second = command(&place.stub.url(), &place.db(), &[]).output();
    let second = tokio::time::timeout(DEADLINE, second).await.unwrap().unwrap();
    assert_eq!(second.status.code(), Some(75));
    let words = String::from_utf8(second.stderr).unwrap();
    assert!(words.contains(place.db().to_str().unwrap()), "{words}");
    assert!(words.contains(&format!("process {}", first.pid())), "{words}");
    let answer = post(first.addr, "/api/chat", &chat_unstreamed("a", "x")).await;
    assert_eq!(answer.status, 200, "the first serves on");
}

/// One SIGTERM: what streams ends whole, who waits is sent away in the shape of its route, and its job runs after the
/// next start.
#[tokio::test]
async fn sigterm_drains_the_running_stream_and_keeps_the_waiting_jobs() {
    let place = Place::new(&["a"]).await;
    let daemon = place.daemon().await;
    let addr = daemon.addr;
    let mut stream = post_stream(addr, "/api/chat", &long_chat("running")).await;
    let first = stream.next().await.unwrap().unwrap();
    place.stub.hold_tokens();
    let message = json!([{ "role": "user", "content": "waits on messages" }]);
    let waiting = [
        ask(addr, "/api/chat", chat("a", "waits on chat")),
        ask(addr, "/api/generate", json!({ "model": "a", "prompt": "waits on generate" })),
        ask(addr, "/v1/chat/completions", chat_unstreamed("a", "waits on completions")),
        ask(addr, "/v1/messages", json!({ "model": "a", "max_tokens": 4, "messages": message })),
    ];
    wait_for_depth(addr, waiting.len()).await;
    daemon.terminate();
    let mut shapes = Vec::new();
    for client in waiting {
        let answer = client.await.unwrap().expect("an answer before the end");
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
        assert!(answer.is_whole);
        answer.header("retry-after").unwrap().parse::<u32>().unwrap();
        shapes.push(answer.json());
    }
    assert!(shapes[0]["error"].as_str().unwrap().contains("stays queued"), "{}", shapes[0]);
    assert!(shapes[1]["error"].is_string(), "{}", shapes[1]);
    assert!(shapes[2]["error"]["message"].is_string(), "{}", shapes[2]);
    assert_eq!(shapes[3]["type"], "error");
    place.stub.release_tokens();
    let rest = stream.rest().await;
    assert!(rest.is_whole);
    let whole = Answer { body: [first, rest.body].concat().into(), ..rest };
    assert_eq!(whole.streamed_text(), expected_text("a:latest", "running", Some(1), LONG));
    assert_eq!(daemon.ended().await, Some(0));

    assert_eq!(place.job("running").state, "done");
    for road in ["chat", "generate", "completions", "messages"] {
        let job = place.job(&format!("waits on {road}"));
        assert_eq!((job.state.as_str(), job.attempts, job.interruptions), ("queued", 0, 0));
    }
    let next = place.daemon().await;
    wait_for_done(next.addr, 5).await;
    next.terminate();
    assert_eq!(next.ended().await, Some(0));
    assert_eq!(runs(&place.stub.log(), "waits on"), 4, "each ran once");
}

/// A second SIGTERM cuts the stream, with a word on why, in a way no client can take for its end.
#[tokio::test]
async fn sigterm_drains_and_a_second_one_cuts_the_stream_in_band() {
    let place = Place::new(&["a"]).await;
    let daemon = place.daemon().await;
    let mut stream = post_stream(daemon.addr, "/api/chat", &long_chat("running")).await;
    drop(stream.next().await.unwrap().unwrap());
    place.stub.hold_tokens();
    daemon.terminate();
    daemon.refuses().await;
    daemon.terminate();
    let rest = stream.rest().await;
    assert!(!rest.is_whole, "a cut connection, not an end");
    let text = rest.text();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(last["error"].as_str().unwrap().contains("foreman was stopped"), "{text}");
    assert!(text.ends_with('\n') && !text.contains("\"done\":true"), "{text}");
    assert_eq!(daemon.ended().await, Some(0));
    assert_eq!(place.job("running").state, "failed");
}

/// A second SIGTERM gives an answer that nobody has seen a byte of back to the queue, and charges nothing for it.
#[tokio::test]
async fn sigterm_drains_and_a_second_one_gives_an_unseen_job_back_uncharged() {
    let place = Place::new(&["a"]).await;
    let daemon = place.daemon().await;
    place.stub.hold_tokens();
    let client = ask(daemon.addr, "/api/chat", chat_unstreamed("a", "running"));
    place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    daemon.terminate();
    daemon.refuses().await;
    assert!(!client.is_finished(), "a running job is waited for");
    daemon.terminate();
    let answer = client.await.unwrap().expect("a last word");
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    assert_eq!(daemon.ended().await, Some(0));
    let job = place.job("running");
    assert_eq!(
        (job.state.as_str(), job.attempts, job.interruptions, job.deferrals),
        ("queued", 0, 0, 0)
    );
    place.stub.release_tokens();
    let next = place.daemon().await;
    wait_for_done(next.addr, 1).await;
}

/// kill -9 while the first load is under way: the queue is there again, in its order, and still drained with one load a
/// model.
#[tokio::test]
async fn a_restart_in_mid_queue_resumes() {
    const JOBS: usize = 20;
    let place = Place::new(&["a", "b"]).await;
    place.stub.hold_loads();
    let daemon = place.daemon().await;
    let addr = daemon.addr;
    let mut clients = Vec::new();
    for number in 0..JOBS {
        let model = if number % 2 == 0 { "a" } else { "b" };
        clients.push(ask(addr, "/api/chat", chat_unstreamed(model, &format!("job {number:02}"))));
        wait_for(addr, |status| {
            let running = status["running"].as_array().map_or(0, Vec::len);
            let waiting = status["queue"]["depth"].as_u64().unwrap_or(0);
            usize::try_from(waiting).unwrap() + running == number + 1
        })
        .await;
    }
    place.stub.wait_until(|snapshot| snapshot.loading.is_some()).await;
    daemon.kill().await;
    for client in clients {
        assert!(client.await.unwrap().is_none(), "its connection died with foreman");
    }
    // The load belonged to the dead daemon's connection.
    place.stub.wait_until(|snapshot| snapshot.counts.aborted_loads == 1).await;
    let next = place.daemon().await;
    place.stub.release_loads();
    wait_for_done(next.addr, JOBS).await;
    next.terminate();
    assert_eq!(next.ended().await, Some(0));

    let counts = place.stub.counts();
    assert_eq!((counts.loads, counts.evictions, counts.models_generating_max), (2, 0, 1));
    let served: Vec<String> = place
        .stub
        .log()
        .iter()
        .filter(|entry| entry.path == "/api/chat")
        .map(|entry| {
            let body: Value = serde_json::from_slice(&entry.body).unwrap();
            body["messages"][0]["content"].as_str().unwrap().to_owned()
        })
        .collect();
    let even = (0..JOBS).step_by(2);
    let odd = (1..JOBS).step_by(2);
    let in_order: Vec<String> = even.chain(odd).map(|number| format!("job {number:02}")).collect();
    assert_eq!(served, in_order);
    let charged: u32 = jobs(&place.db()).iter().map(|job| job.interruptions).sum();
    assert_eq!(charged, 1, "only the job that was loading was interrupted");
}

/// Foreman dies each time one certain job is with Ollama, as if the job killed it: after so many times it is given up,
/// and the jobs behind it get their turn.
#[tokio::test]
async fn a_job_that_kills_the_daemon_cannot_loop() {
    let place = Place::new(&["a"]).await;
    place.stub.hold_tokens();
    let mut daemon = place.daemon().await;
    drop(ask(daemon.addr, "/api/chat", chat_unstreamed("a", "the poison")));
    place.stub.wait_for_log(|log| runs(log, "the poison") == 1).await;
    drop(ask(daemon.addr, "/api/chat", chat_unstreamed("a", "the innocent")));
    wait_for_depth(daemon.addr, 1).await;
    for death in 1..=usize::try_from(INTERRUPTIONS_MAX).unwrap() {
        place.stub.wait_for_log(|log| runs(log, "the poison") == death).await;
        daemon.kill().await;
        daemon = place.daemon().await;
    }
    place.stub.release_tokens();
    wait_for_done(daemon.addr, 1).await;
    let fresh = chat_unstreamed("a", "a newcomer");
    let fresh =
        tokio::time::timeout(Duration::from_secs(10), post(daemon.addr, "/api/chat", &fresh));
    assert_eq!(fresh.await.unwrap().status, 200);
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));

    let poison = place.job("the poison");
    assert_eq!((poison.state.as_str(), poison.interruptions), ("failed", INTERRUPTIONS_MAX));
    assert!(poison.last_error.contains("foreman died 16 times"), "{}", poison.last_error);
    let runs = runs(&place.stub.log(), "the poison");
    assert_eq!(runs, usize::try_from(INTERRUPTIONS_MAX).unwrap());
    let innocent = place.job("the innocent");
    assert_eq!(
        (innocent.state.as_str(), innocent.attempts, innocent.interruptions),
        ("done", 1, 0)
    );
}

/// A job that a restart brought back has no client: its stream was seen by nobody, so it is tried again like any other.
/// (It was failed at its first cut.)
#[tokio::test]
async fn a_resumed_stream_that_nobody_follows_is_tried_again() {
    let place = Place::new(&["a"]).await;
    place.cut_off_while_loading(chat("a", "resumed")).await;
    place.stub.faults(Fault::new(Action::EndWithoutDone(2)).path("/api/chat"));
    let next = place.daemon().await;
    place.stub.release_loads();
    wait_for_done(next.addr, 1).await;
    assert_eq!(runs(&place.stub.log(), "resumed"), 2);
    next.terminate();
    assert_eq!(next.ended().await, Some(0));
}

/// An unstreamed job that a restart brought back, and that hangs: nobody waits for it who could leave, so it is ended.
/// (It held the queue for ever.)
#[tokio::test]
async fn a_resumed_job_that_hangs_is_ended() {
    let place = Place::new(&["a"]).await;
    place.cut_off_while_loading(chat_unstreamed("a", "resumed")).await;
    place.stub.faults(Fault::new(Action::HangBeforeHeaders).path("/api/chat"));
    place.stub.release_loads();
    let flags = ["--idle-limit", "100ms", "--max-attempts", "1"];
    let next = Daemon::start(&place.stub.url(), &place.db(), &flags).await;
    // It would make room for one that comes while it runs.
    wait_for(next.addr, |status| status["stored"]["failed"] == 1).await;
    assert_eq!(post(next.addr, "/api/chat", &chat_unstreamed("a", "next")).await.status, 200);
    assert_eq!(place.job("resumed").state, "failed");
    next.terminate();
    assert_eq!(next.ended().await, Some(0));
}
