//! No lost wake-up: in random lives the worker never rests while something could run. A debug build checks each of its rests
//! by itself (`worker::rest_check`) and logs an error; a daemon that has logged one fails its test.
//!
//! More lives: `FOREMAN_TEST_RESTS=100`. The seed is printed; `FOREMAN_TEST_SEED` tries it again.

use std::net::SocketAddr;
use std::time::Duration;

use foreman::clock::{Clock, rfc3339};
use serde_json::{Value, json};
use stub_ollama::{Action, Cut, Fault, Stage, StubConfig};
use tokio::task::JoinHandle;

use super::reload::Home;
use super::{ADMIN, ALICE, BOB, ask, three, wait_for, with_alice, write};
use crate::harness::client::{chat, chat_unstreamed, open, request};
use crate::harness::jobs::with_header;
use crate::harness::random::Random;
use crate::harness::stub_config;

const MODELS: [&str; 3] = ["a", "b", "c"];
/// Half of all is asked for by the one who has a cap.
const KEYS: [&str; 4] = [ALICE, ALICE, BOB, ADMIN];
const CLASSES: [&str; 3] = ["interactive", "normal", "batch"];

/// Lives where `FOREMAN_TEST_RESTS` says nothing: some seconds.
const LIVES: u64 = 6;
const BURSTS: u64 = 3;
const ACTS: u64 = 30;

/// With default settings nothing else wakes the worker for half a minute.
#[tokio::test]
async fn the_jobs_of_a_capped_key_follow_each_other_at_once() {
    let lines = with_alice(&json!({ "in_flight_max": 1 }));
    let home = Home::start_with(&lines, stub_config(&["a"]), &[]).await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(super::submit(home.addr(), ALICE, &chat("a", "x")).await);
    }
    for id in ids {
        let path = format!("/jobs/{id}?wait=25s");
        assert_eq!(ask(home.addr(), ALICE, "GET", &path, "").await.json()["state"], "done");
    }
    home.end_well().await;
}

#[tokio::test]
async fn the_worker_never_rests_while_something_could_run() {
    let setting = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let clock_seed = || u64::try_from(Clock::system().now_ms()).unwrap();
    let seed = setting("FOREMAN_TEST_SEED").unwrap_or_else(clock_seed);
    println!("FOREMAN_TEST_SEED={seed}");
    for life in 0..setting("FOREMAN_TEST_RESTS").unwrap_or(LIVES) {
        let begun = Life::begin(Random::new(seed, life)).await;
        println!("life {life}: {}", begun.flags);
        begun.live().await;
    }
}

struct Life {
    home: Home,
    random: Random,
    /// Ids of jobs that outlive their callers.
    jobs: Vec<String>,
    clients: Vec<JoinHandle<()>>,
    can_fail_a_load: bool,
    /// The flags of its daemon.
    flags: String,
}

impl Life {
    async fn begin(mut random: Random) -> Life {
        let flags = [
            ["--parallel", random.one_of(&["1", "2", "3"])],
            ["--hold", random.one_of(&["off", "auto", "50ms"])],
            ["--max-wait", random.one_of(&["2m", "interactive=50ms,normal=200ms,batch=1s"])],
        ];
        let stub = StubConfig { num_parallel: 3, max_loaded: 2, ..stub_config(&MODELS) };
        let home =
            Home::start_with(&with_alice(&json!({ "in_flight_max": 1 })), stub, &flags.concat())
                .await;
        let (jobs, clients, flags) = (Vec::new(), Vec::new(), flags.concat().join(" "));
        Life { home, random, jobs, clients, can_fail_a_load: true, flags }
    }

    async fn live(mut self) {
        for _ in 0..BURSTS {
            // What piles up is worked off while nothing else happens: a wake-up that is lost then is not made up for.
            if self.random.below(2) == 0 {
                self.home.stub.hold_tokens();
            }
            for _ in 0..ACTS {
                self.act().await;
            }
            self.home.stub.release_tokens();
            for client in self.clients.drain(..) {
                client.await.unwrap_or_default();
            }
            wait_for(self.home.addr(), ADMIN, is_quiet).await;
        }
        self.home.end_well().await;
    }

    async fn act(&mut self) {
        let addr = self.home.addr();
        match self.random.below(16) {
            0..5 => self.ask_and_wait(addr),
            5 => {
                if let Some(client) = pick(&mut self.random, &self.clients) {
                    client.abort();
                }
            }
            6..9 => self.submit(addr).await,
            9 => self.change_a_job(addr, "cancel").await,
            10 => self.change_a_job(addr, "retry").await,
            11 => self.set_caps(),
            12 => self.break_something(),
            13 => {
                let body = json!({ "model": self.random.one_of(&MODELS), "keep_alive": 0 });
                self.send(addr, "/api/generate", &body, "interactive");
            }
            14 => {
                self.send(addr, "/api/embed", &json!({ "model": "embed", "input": "x" }), "normal");
            }
            _ => tokio::time::sleep(Duration::from_millis(self.random.below(30))).await,
        }
    }

    fn ask_and_wait(&mut self, addr: SocketAddr) {
        let model = self.random.one_of(&MODELS);
        let body = match self.random.below(2) {
            0 => chat(model, "x"),
            _ => chat_unstreamed(model, "x"),
        };
        let class = self.random.one_of(&CLASSES);
        self.send(addr, "/api/chat", &body, class);
    }

    /// Sends a request from a client of its own, which may be made to leave.
    fn send(&mut self, addr: SocketAddr, path: &str, body: &Value, class: &str) {
        let bearer = format!("Bearer {}", self.random.one_of(&KEYS));
        let asked = request(addr, "POST", path, body.to_string());
        let asked = with_header(asked, ("authorization", &bearer));
        let asked = with_header(asked, ("x-foreman-priority", class));
        self.clients.push(tokio::spawn(async move {
            if let Ok(stream) = open(addr, asked).await {
                stream.rest().await;
            }
        }));
    }

    async fn submit(&mut self, addr: SocketAddr) {
        let mut body = chat(self.random.one_of(&MODELS), "x");
        body["priority"] = self.random.one_of(&CLASSES).into();
        let soon_ms = i64::try_from(self.random.below(400)).unwrap();
        let soon = rfc3339(Clock::system().now_ms() + soon_ms);
        match self.random.below(4) {
            0 => body["run_at"] = soon.into(),
            1 => body["deadline"] = soon.into(),
            _ => (),
        }
        let key = self.random.one_of(&KEYS);
        let answer = ask(addr, key, "POST", "/jobs", body.to_string()).await;
        // A deadline may be over by the time it is read.
        if answer.status == 202 {
            self.jobs.push(answer.json()["job_id"].as_str().unwrap().to_owned());
        }
    }

    async fn change_a_job(&mut self, addr: SocketAddr, what: &str) {
        if let Some(id) = pick(&mut self.random, &self.jobs) {
            ask(addr, ADMIN, "POST", &format!("/jobs/{id}/{what}"), "").await;
        }
    }

    fn set_caps(&mut self) {
        let in_flight_max = self.random.one_of(&[Value::Null, json!(1), json!(1), json!(2)]);
        let lines = match in_flight_max {
            Value::Null => three(),
            max => with_alice(&json!({ "in_flight_max": max })),
        };
        write(&self.home.keys(), &lines);
        self.home.hang_up();
    }

    fn break_something(&mut self) {
        let answer = |status| Action::Answer {
            status,
            text: "on purpose".to_owned(),
            retry_after_seconds: None,
            stage: Stage::AfterLoad,
        };
        let action = match self.random.below(6) {
            0 => answer(400),
            1 => answer(503),
            2 => Action::CutBeforeHeaders(Cut::Reset),
            3 => Action::KillRunner(2),
            4 => Action::EndWithoutDone(2),
            _ if std::mem::take(&mut self.can_fail_a_load) => {
                let model = self.random.one_of(&MODELS);
                let fault = Fault::new(Action::FailLoad("on purpose".to_owned()));
                return self.home.stub.faults(fault.model(model));
            }
            _ => return,
        };
        self.home.stub.faults(Fault::new(action).path("/api/chat"));
    }
}

fn pick<'a, T>(random: &mut Random, list: &'a [T]) -> Option<&'a T> {
    let length = u64::try_from(list.len()).unwrap();
    list.get(usize::try_from(random.below(length.max(1))).unwrap())
}

fn is_quiet(status: &Value) -> bool {
    status["queue"]["depth"] == 0 && status["running"].as_array().is_some_and(Vec::is_empty)
}
