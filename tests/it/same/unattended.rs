//! Jobs whose clients went with a daemon: people who are there go first, and who comes back has its old place.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use stub_ollama::Stub;
use tokio::task::JoinHandle;

use super::{ATTACHED, Place, ask, asked, calls, ended, wait_for, wait_for_depth};
use crate::harness::client::{chat, chat_unstreamed};
use crate::harness::daemon::Daemon;
use crate::harness::{Answer, DEADLINE, get};

/// Between two looks at Ollama's log.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// A daemon after a kill, with this job of the last one's that nobody waits for: its text is `gone`.
async fn with_a_job_of_nobodys(place: &Place, flags: &[&str]) -> (Daemon, String) {
    let daemon = place.daemon().await;
    place.stub.hold_tokens();
    let client = ask(daemon.addr, "/api/chat", gone(), &[]);
    place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let id = newest(daemon.addr).await;
    daemon.kill().await;
    assert!(client.await.unwrap().is_none());
    place.stub.wait_until(|snapshot| snapshot.generating.is_empty()).await;
    (place.daemon_with(flags).await, id)
}

fn gone() -> String {
    chat("a", "gone").to_string()
}

async fn newest(addr: SocketAddr) -> String {
    get(addr, "/jobs").await.json()["data"][0]["job_id"].as_str().unwrap().to_owned()
}

/// Waits until Ollama has been asked this so often.
async fn wait_for_calls(stub: &Stub, text: &str, count: usize) {
    let asked = async {
        while calls(stub, text) < count {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    };
    tokio::time::timeout(DEADLINE, asked).await.expect("it was never asked");
}

async fn whole(client: JoinHandle<Option<Answer>>) -> Answer {
    let answer = client.await.unwrap().expect("foreman is there");
    assert!(answer.status == 200 && answer.is_whole, "{}", answer.text());
    answer
}

/// A job of 45 s blocked people for 45 s. It is put back for them, charged nothing, and runs when they are gone.
#[tokio::test]
async fn who_is_there_does_not_wait_for_a_running_job_of_nobodys() {
    for (model, parallel) in [("a", "1"), ("b", "1"), ("b", "3")] {
        let place = Place::new(&["a", "b"]).await;
        let flags = ["--parallel", parallel, "--hold", "off"];
        let (daemon, id) = with_a_job_of_nobodys(&place, &flags).await;
        wait_for_calls(&place.stub, "gone", 2).await;
        let person = ask(daemon.addr, "/api/chat", chat(model, "person").to_string(), &[]);
        wait_for_calls(&place.stub, "person", 1).await;
        let job = get(daemon.addr, &format!("/jobs/{id}")).await.json();
        assert_eq!((&job["state"], &job["run_at"]), (&json!("queued"), &Value::Null), "{job:#}");
        assert_eq!(job["counters"]["attempts"], 0, "{job:#}");
        place.stub.release_tokens();
        whole(person).await;
        let job = ended(daemon.addr, &id).await;
        assert_eq!((&job["state"], &job["counters"]["attempts"]), (&json!("done"), &json!(1)));
        daemon.kill().await;
    }
}

/// Side by side there is room for both.
#[tokio::test]
async fn a_job_of_nobodys_runs_on_beside_people_where_there_is_room() {
    let place = Place::new(&["a"]).await;
    let (daemon, id) = with_a_job_of_nobodys(&place, &["--parallel", "2"]).await;
    wait_for_calls(&place.stub, "gone", 2).await;
    let person = ask(daemon.addr, "/api/chat", chat("a", "person").to_string(), &[]);
    wait_for(daemon.addr, |status| status["running"].as_array().is_some_and(|all| all.len() == 2))
        .await;
    place.stub.release_tokens();
    whole(person).await;
    assert_eq!(ended(daemon.addr, &id).await["state"], "done");
    assert_eq!(calls(&place.stub, "gone"), 2, "it was not put back");
    daemon.kill().await;
}

/// Whatever else waits: nothing of nobody's runs between the requests of somebody who is there, and no model of theirs goes.
#[tokio::test]
async fn nothing_of_nobodys_runs_while_somebody_is_there() {
    let place = Place::new(&["a", "b"]).await;
    let (daemon, id) = with_a_job_of_nobodys(&place, &[]).await;
    place.stub.release_tokens();
    for _ in 0..30 {
        asked(daemon.addr, "/api/chat", chat_unstreamed("b", "person").to_string(), &[]).await;
    }
    assert_eq!(calls(&place.stub, "gone"), 1, "only before the kill");
    assert_eq!(ended(daemon.addr, &id).await["state"], "done", "it runs in the end");
    daemon.kill().await;
}

#[tokio::test]
async fn who_comes_back_has_the_old_place() {
    let place = Place::new(&["a"]).await;
    let (daemon, _) = with_a_job_of_nobodys(&place, &[]).await;
    let by = |token: &'static str| [("authorization", token)];
    let send =
        |token, text: &str| ask(daemon.addr, "/api/chat", chat("a", text).to_string(), &by(token));
    let runs = send("Bearer runs", "runs");
    wait_for_calls(&place.stub, "runs", 1).await;
    let mut later = Vec::new();
    for (depth, token) in (2..).zip(["Bearer one", "Bearer two", "Bearer three"]) {
        later.push(send(token, "later"));
        wait_for_depth(daemon.addr, depth).await;
    }
    let back = ask(daemon.addr, "/api/chat", gone(), &[]);
    let attached = async {
        loop {
            let jobs = get(daemon.addr, "/jobs?limit=100").await.json();
            let jobs = jobs["data"].as_array().unwrap().clone();
            if jobs.iter().all(|job| job["priority"] == "interactive") {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, attached).await.expect("nobody was attached");
    place.stub.release_tokens();
    whole(runs).await;
    assert_eq!(whole(back).await.header(ATTACHED), Some("true"));
    for client in later {
        whole(client).await;
    }
    let log = place.stub.log();
    let at = |text: &str, nth: usize| {
        let says = |body: &[u8]| String::from_utf8_lossy(body).contains(text);
        log.iter().filter(|entry| says(&entry.body)).nth(nth).unwrap().sequence
    };
    assert!(at("runs", 0) < at("gone", 1) && at("gone", 1) < at("later", 0));
    daemon.kill().await;
}

/// It is somebody's again, and runs to its end.
#[tokio::test]
async fn a_running_job_whose_client_is_back_is_not_put_back() {
    let place = Place::new(&["a"]).await;
    let (daemon, id) = with_a_job_of_nobodys(&place, &[]).await;
    wait_for_calls(&place.stub, "gone", 2).await;
    let back = ask(daemon.addr, "/api/chat", gone(), &[]);
    let path = format!("/jobs/{id}");
    let attached =
        async { while get(daemon.addr, &path).await.json()["priority"] != "interactive" {} };
    tokio::time::timeout(DEADLINE, attached).await.expect("nobody was attached");
    let person = ask(daemon.addr, "/api/chat", chat("a", "person").to_string(), &[]);
    wait_for_depth(daemon.addr, 1).await;
    place.stub.release_tokens();
    assert_eq!(whole(back).await.header(ATTACHED), Some("true"));
    whole(person).await;
    assert_eq!(calls(&place.stub, "gone"), 2);
    daemon.kill().await;
}
