//! The real binary dies between a change and its delivery: it arrives after the restart.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use foreman::clock::Clock;
use foreman::store::DeliveryState;

use crate::harness::daemon::{Daemon, Starting};
use crate::harness::random::Random;
use crate::harness::receiver::{Call, Receiver, Reply};
use crate::harness::{DEADLINE, get};

use super::{Place, deliveries, is_idle, submit};

/// Kills where `FOREMAN_TEST_HOOK_KILLS` says nothing: some seconds.
const KILLS_DEFAULT: u64 = 40;

/// Jobs that come between two kills.
const JOBS: usize = 2;

const FLAGS: [&str; 4] = ["--webhook-retry-delay", "5ms", "--webhook-tries", "100"];

async fn idle(daemon: &Daemon, jobs: usize) {
    let waiting = async {
        loop {
            let status = get(daemon.addr, "/status").await.json();
            if is_idle(&status) && status["stored"]["done"] == jobs {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.expect("it never told everything");
}

/// The receiver holds its replies until foreman was killed: what it saw and never acknowledged comes again, the same.
#[tokio::test]
async fn what_was_committed_and_not_acknowledged_arrives_after_kill_9() {
    let place = Place::new().await;
    let receiver = Receiver::start(|number, call| match call.state().as_str() {
        "done" if number == 3 => Reply::Hang,
        _ => Reply::FINE,
    });
    let receiver = receiver.await;
    submit(&place.db(), "a", &receiver.url(), 1).await;
    let daemon = Daemon::start(&place.stub.url(), &place.db(), &FLAGS).await;
    receiver.wait_for(4).await;
    daemon.kill().await;
    let daemon = Daemon::start(&place.stub.url(), &place.db(), &FLAGS).await;
    let calls = receiver.wait_for(5).await;
    assert_eq!((calls[4].id(), &calls[4].body), (calls[3].id(), &calls[3].body));
    idle(&daemon, 1).await;
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));
    let last = deliveries(&place.db()).await.pop().unwrap();
    assert_eq!((last.state, last.tries), (DeliveryState::Delivered, 1));
}

/// Random deaths under a receiver that fails at random. Its journal is the oracle: each change was acknowledged at least once,
/// those of a job came in order, and a repeated one is the same as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_every_change_is_told_in_order() {
    let clock_seed = u64::try_from(Clock::system().now_ms()).unwrap();
    let seed = setting("FOREMAN_TEST_SEED").unwrap_or(clock_seed);
    let kills = setting("FOREMAN_TEST_HOOK_KILLS").unwrap_or(KILLS_DEFAULT);
    println!("FOREMAN_TEST_SEED={seed} FOREMAN_TEST_HOOK_KILLS={kills}");
    let place = Place::new().await;
    let moods = Mutex::new(Random::new(seed, 1));
    let receiver = Receiver::start(move |_, _| match moods.lock().unwrap().below(10) {
        0 => Reply::Status(500, ""),
        1 => Reply::Reset,
        2 => Reply::After(Duration::from_millis(40), 200),
        _ => Reply::FINE,
    });
    let receiver = receiver.await;
    let mut random = Random::new(seed, 0);
    let mut jobs = 0;
    for _ in 0..kills {
        jobs += submit(&place.db(), "a", &receiver.url(), JOBS).await.len();
        let mut starting = Starting::begin(&place.stub.url(), &place.db(), &FLAGS);
        // The moment of death is the random input, nothing is waited for by it.
        let death = tokio::time::sleep(Duration::from_millis(20 + random.below(300)));
        tokio::pin!(death);
        tokio::select! {
            addr = starting.serves() => {
                let daemon = starting.into_daemon(addr);
                death.await;
                daemon.kill().await;
            }
            () = &mut death => starting.kill().await,
        }
    }
    let daemon = Daemon::start(&place.stub.url(), &place.db(), &FLAGS).await;
    idle(&daemon, jobs).await;
    daemon.terminate();
    assert_eq!(daemon.ended().await, Some(0));
    let calls = receiver.calls();
    let owed = deliveries(&place.db()).await;
    let mut first_by_id: BTreeMap<String, Call> = BTreeMap::new();
    let mut last_by_job: BTreeMap<String, u64> = BTreeMap::new();
    let mut repeated = 0;
    for call in &calls {
        let last = last_by_job.entry(call.job()).or_default();
        let sequence = call.sequence();
        assert!(sequence == *last || sequence == *last + 1, "{sequence} after {last}: {call:#?}");
        *last = sequence;
        match first_by_id.get(call.id()) {
            Some(first) => {
                assert_eq!(first.body, call.body, "a repeated one is the same");
                repeated += 1;
            }
            None => drop(first_by_id.insert(call.id().to_owned(), call.clone())),
        }
    }
    for delivery in &owed {
        let id = format!("msg_{}_{}", delivery.id, delivery.event);
        let is_taken = |call: &&Call| call.id() == id && call.status == Some(200);
        assert!(calls.iter().any(|call| is_taken(&call)), "{delivery:?} was never taken");
        assert_eq!(delivery.state, DeliveryState::Delivered);
    }
    let finals = owed.iter().filter(|delivery| delivery.to.is_final()).count();
    assert_eq!(finals, jobs, "each job ends once");
    assert_eq!(first_by_id.len(), owed.len(), "nothing was told that is not owed");
    println!(
        "kills {kills}, jobs {jobs}, changes {}, lost 0, calls {}, repeated {repeated}, seed {seed}",
        owed.len(),
        calls.len()
    );
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}
