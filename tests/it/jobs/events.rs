//! Being told: each change of state once, in order, without a gap, over lost connections, purges and restarts.

use std::net::SocketAddr;

use serde_json::json;
use stub_ollama::{Action, Fault, Stub};

use crate::harness::client::{self, chat, open};
use crate::harness::daemon::Daemon;
use crate::harness::jobs::{
    Event, Events, act, cancel, done, ended, generate, ids, problem, states, submit,
    wait_until_state, with_header,
};
use crate::harness::random::Random;
use crate::harness::{DEADLINE, Foreman, get, send, stub_config};

#[tokio::test]
async fn the_events_of_a_job_are_its_life_and_end_with_it() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    stub.faults(Fault::new(Action::EndWithoutDone(1)).path("/api/chat"));
    stub.hold_loads();
    let id = submit(addr, &chat("a", "x")).await;
    let live = Events::open(addr, &format!("/jobs/{id}/events"), None).await;
    stub.release_loads();
    let live = live.rest().await;
    let told = states(&live);
    assert!(told.starts_with(&["queued", "loading", "working", "queued"]), "{told:?}");
    assert!(told.ends_with(&["working", "done"]), "{told:?}");
    for (index, event) in live.iter().enumerate() {
        assert_eq!(event.kind, format!("job.{}", told[index]));
        let previous = if index == 0 { json!(null) } else { json!(told[index - 1]) };
        assert_eq!(event.data["previous_state"], previous);
        assert_eq!((&event.data["job_id"], &event.data["model"]), (&json!(id), &json!("a")));
        assert_eq!(event.data["type"], event.kind);
        assert!(event.data["timestamp"].is_string());
    }
    assert!(live[3].data["error"]["message"].is_string(), "why it was put back");
    assert_eq!(
        (&live[0].data["attempt"], &live.last().unwrap().data["attempt"]),
        (&json!(0), &json!(2))
    );
    assert!(ids(&live).is_sorted_by(|a, b| a < b));
    let replayed = Events::open(addr, &format!("/jobs/{id}/events"), None).await.rest().await;
    assert_eq!(replayed, live);
    let last = live.last().unwrap().id.unwrap().to_string();
    let again = client::request(addr, "GET", &format!("/jobs/{id}/events"), "");
    let again = open(addr, with_header(again, ("last-event-id", &last))).await.unwrap();
    assert_eq!(again.status, 204);
    let by_query = get(addr, &format!("/jobs/{id}/events?last_event_id={last}")).await;
    assert_eq!((by_query.status.as_u16(), by_query.body.len()), (204, 0));
    for bad in ["x", "-1", "1.5"] {
        let bad = get(addr, &format!("/events?last_event_id={bad}")).await;
        problem(&bad, 400, "malformed-parameter");
    }
}

/// A job that is tried again by hand goes on after its first end.
#[tokio::test]
async fn a_retry_by_hand_goes_on_in_the_events() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let path = |id: &str| format!("/jobs/{id}/events");
    let id = submit(addr, &chat("late", "x")).await;
    let first = Events::open(addr, &path(&id), None).await.rest().await;
    assert_eq!(states(&first).last(), Some(&"failed"));
    stub.install(crate::harness::model("late"));
    assert_eq!(act(addr, &id, "retry").await.status, 202);
    let second = Events::open(addr, &path(&id), first.last().unwrap().id).await.rest().await;
    assert_eq!((states(&second)[0], states(&second).last()), ("queued", Some(&"done")));
    let all = Events::open(addr, &path(&id), None).await.rest().await;
    assert_eq!(all, [first, second].concat());
}

const DAY_JOBS: usize = 12;

/// Some jobs, ended in several ways.
async fn some_day(foreman: &Foreman) -> usize {
    let addr = foreman.addr;
    let mut jobs = Vec::new();
    for number in 0..DAY_JOBS {
        let model = if number % 4 == 3 { "nobody" } else { "a" };
        jobs.push(submit(addr, &chat(model, "x")).await);
    }
    drop(act(addr, &jobs[DAY_JOBS - 1], "cancel").await);
    for id in &jobs {
        ended(addr, id).await;
    }
    jobs.len()
}

/// Reads until that many jobs have ended.
async fn read(events: &mut Events, ends: usize) -> Vec<Event> {
    let (mut read, mut ended) = (Vec::new(), 0);
    while ended < ends {
        let event = events.next_change().await.expect("the stream of events ended");
        ended += usize::from(is_end(&event));
        read.push(event);
    }
    read
}

#[tokio::test]
async fn all_subscribers_hear_the_same() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let mut subscribers = Vec::new();
    for _ in 0..200 {
        subscribers.push(Events::open(foreman.addr, "/events", None).await);
    }
    let jobs = some_day(&foreman).await;
    let mut told = Vec::new();
    for subscriber in &mut subscribers {
        told.push(read(subscriber, jobs).await);
    }
    assert!(ids(&told[0]).is_sorted_by(|a, b| a < b));
    assert!(told.iter().all(|one| *one == told[0]));
    let mut replay = Events::open(foreman.addr, "/events?last_event_id=0", None).await;
    assert_eq!(read(&mut replay, jobs).await, told[0], "a replay tells the same");
}

/// Whether an event is the end of a job.
fn is_end(event: &Event) -> bool {
    matches!(event.kind.as_str(), "job.done" | "job.failed" | "job.cancelled")
}

/// Reads from the first event on, on a new connection every few events, until all jobs of a day have ended.
async fn come_back(addr: SocketAddr, mut random: Random) -> Vec<Event> {
    let mut heard: Vec<Event> = Vec::new();
    while heard.iter().filter(|event| is_end(event)).count() < DAY_JOBS {
        let after = heard.last().map_or(Some(0), |event| event.id);
        let mut events = Events::open(addr, "/events", after).await;
        let left = DAY_JOBS - heard.iter().filter(|event| is_end(event)).count();
        let more = usize::try_from(random.below(6)).unwrap() + 1;
        // As many events as are sure to come.
        heard.extend(events.changes(more.min(left)).await);
    }
    heard
}

/// Property: whoever drops at any event and comes back hears the rest, without a gap or a double, while things go on.
#[tokio::test]
async fn who_comes_back_has_neither_a_gap_nor_a_double() {
    let seed = 99;
    println!("seed {seed}");
    let random = Random::new(seed, 0);
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let mut steady = Events::open(foreman.addr, "/events", None).await;
    let addr = foreman.addr;
    let coming_back = tokio::spawn(come_back(addr, random));
    let jobs = some_day(&foreman).await;
    let all = read(&mut steady, jobs).await;
    let broken = tokio::time::timeout(DEADLINE, coming_back).await.unwrap().unwrap();
    assert_eq!(ids(&broken), ids(&all));
    assert_eq!(broken, all);
    for cut in &all {
        let mut rest = Events::open(addr, "/events", cut.id).await;
        let wanted: Vec<Event> = all.iter().filter(|event| event.id > cut.id).cloned().collect();
        assert_eq!(rest.changes(wanted.len()).await, wanted);
    }
}

/// After kill -9 what was told is told again with the same ids, and no id is given twice.
#[tokio::test]
async fn a_restart_replays_the_log_and_gives_no_id_twice() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("foreman.db");
    let daemon = Daemon::start(&stub.url(), &db, &[]).await;
    let mut events = Events::open(daemon.addr, "/events", None).await;
    done(daemon.addr, &submit(daemon.addr, &chat("a", "x")).await).await;
    stub.hold_tokens();
    let id = submit(daemon.addr, &chat("a", "x")).await;
    wait_until_state(daemon.addr, &id, "working").await;
    let mut before = read(&mut events, 1).await;
    before.extend(events.changes(2).await);
    daemon.kill().await;
    stub.release_tokens();
    let daemon = Daemon::start(&stub.url(), &db, &[]).await;
    done(daemon.addr, &id).await;
    let mut all = Events::open(daemon.addr, "/events", Some(0)).await;
    let all = read(&mut all, 2).await;
    assert_eq!(all[..before.len()], before);
    assert!(ids(&all).is_sorted_by(|a, b| a < b));
    let back = &all[before.len()];
    assert_eq!(
        (back.kind.as_str(), &back.data["previous_state"]),
        ("job.queued", &json!("working"))
    );
    let mut rest = Events::open(daemon.addr, "/events", before.last().unwrap().id).await;
    assert_eq!(rest.changes(all.len() - before.len()).await, all[before.len()..]);
    daemon.kill().await;
}

/// Who comes back after a purge is told up to where events are gone; who heard them is not.
#[tokio::test]
async fn events_that_went_with_their_jobs_are_told_as_lost() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let mut events = Events::open(addr, "/events", None).await;
    done(addr, &submit(addr, &chat("a", "x")).await).await;
    let first = read(&mut events, 1).await;
    assert_eq!(send(addr, "POST", "/jobs/purge?state=done", "").await.json()["count"], 1);
    let id = submit(addr, &chat("a", "y")).await;
    done(addr, &id).await;
    let after = first[1].id;
    let mut back = Events::open(addr, "/events", after).await;
    let lost = back.next().await.unwrap();
    assert_eq!((lost.kind.as_str(), lost.id), ("events.lost", None));
    assert_eq!(lost.data, json!({ "from": after.unwrap() + 1, "to": first.last().unwrap().id }));
    let second = read(&mut back, 1).await;
    assert!(second.iter().all(|event| event.data["job_id"] == id.as_str()));
    let mut heard = Events::open(addr, "/events", first.last().unwrap().id).await;
    assert_eq!(read(&mut heard, 1).await, second);
    assert_eq!(read(&mut events, 1).await, second);
}

async fn next_progress(events: &mut Events) -> Event {
    loop {
        let event = events.next().await.unwrap();
        if event.kind == "job.progress" {
            return event;
        }
    }
}

#[tokio::test]
async fn a_job_that_runs_tells_of_its_progress() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let id = submit(foreman.addr, &generate("a", 100_000)).await;
    for path in ["/events".to_owned(), format!("/jobs/{id}/events")] {
        let mut events = Events::open(foreman.addr, &path, None).await;
        let mut seen = 0;
        for _ in 0..2 {
            let progress = next_progress(&mut events).await;
            assert_eq!((progress.id, &progress.data["job_id"]), (None, &json!(id)));
            assert_eq!(progress.data["attempt"], 1);
            let bytes = progress.data["bytes"].as_u64().unwrap();
            assert!(bytes > seen && progress.data["tokens"].as_u64() > Some(0));
            assert!(progress.data["tokens_per_second"].is_number());
            seen = bytes;
        }
    }
    cancel(foreman.addr, &id).await;
    ended(foreman.addr, &id).await;
}

/// One that reads nothing holds nobody up; when it reads at last, it has missed nothing.
#[tokio::test]
async fn a_slow_subscriber_misses_nothing_and_holds_nobody_up() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let addr = foreman.addr;
    let mut slow = Events::open(addr, "/events", None).await;
    stub.hold_tokens();
    foreman.occupy(&stub, "a").await;
    let bodies = vec![chat("a", "x"); 4_000];
    let batch = send(addr, "POST", "/jobs/batch", json!(bodies).to_string()).await;
    assert_eq!(batch.json()["accepted"], 4_000);
    for job in batch.json()["jobs"].as_array().unwrap().iter().step_by(8) {
        cancel(addr, job["job_id"].as_str().unwrap()).await;
    }
    let told = slow.changes(3 + 4_000 + 500).await;
    assert!(ids(&told).is_sorted_by(|a, b| a < b));
    assert!(ids(&told).windows(2).all(|pair| pair[1] == pair[0] + 1), "an event was left out");
    stub.release_tokens();
}

#[tokio::test]
async fn a_drain_ends_the_streams_of_events() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let foreman = Foreman::start(&stub).await.up().await;
    let mut all = Events::open(foreman.addr, "/events", None).await;
    stub.hold_tokens();
    let id = foreman.occupy(&stub, "a").await;
    let of_job = Events::open(foreman.addr, &format!("/jobs/{id}/events"), None).await;
    foreman.signal().await;
    while all.next().await.is_some() {}
    of_job.rest().await;
    stub.release_tokens();
    foreman.ended().await;
}
