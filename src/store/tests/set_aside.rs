//! Jobs set aside: out of the queue, but for the worker that has nothing else to do, and for who comes back.

use super::super::set_aside::ASIDE_MS;
use super::*;

const KEY: Hash = [7; 32];
const LANE: &str = "a:latest";

/// A store that was closed with a job waiting for a client, and opened again.
async fn with_one_lost(folder: &tempfile::TempDir) -> (Store, i64) {
    let path = folder.path().join("a.db");
    let (store, _) = Store::open(&path, 0).unwrap();
    let seq = admit(&store, NewJob { client: "x".to_owned(), ..returning() }, 1_000).await;
    store.close().await;
    drop(store);
    let (store, _) = Store::open(&path, 2_000).unwrap();
    assert_eq!(store.set_lost_aside(2_000).await.unwrap(), 1);
    assert_eq!(store.set_lost_aside(2_000).await.unwrap(), 0, "it is there already");
    (store, seq)
}

fn returning() -> NewJob {
    NewJob { extras: Extras { attach_key: Some(KEY), ..Extras::default() }, ..job(LANE) }
}

async fn aside(store: &Store, now_ms: i64) -> Vec<(i64, i64)> {
    let lanes = store.set_aside(now_ms).await.unwrap().lanes;
    lanes.iter().map(|waiting| (waiting.seq, waiting.ready_at_ms)).collect()
}

#[tokio::test]
async fn one_set_aside_is_no_part_of_the_queue_and_is_claimed_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (store, seq) = with_one_lost(&folder).await;
    assert_eq!(store.waiting_lanes(3_000).await.unwrap(), []);
    assert!(try_claim(&store, LANE, 3_000).await.is_none());
    assert_eq!(aside(&store, 3_000).await, [(seq, 1_000)]);
    let claim_aside = |at_ms| store.claim_set_aside(LANE.to_owned(), Event::ClaimToWork, at_ms);
    let taken = claim_aside(3_000).await.unwrap().unwrap();
    assert!(taken.seq == seq && taken.is_unattended);
    assert!(claim_aside(3_000).await.unwrap().is_none());
    // Cut for somebody: it is back at once. After an attempt: once its delay is over.
    for (charge, not_before_ms, ready_at_ms) in
        [(Charge::Nothing, 3, 1_000), (Charge::Attempt, 9_000, 9_000)]
    {
        let taken = match charge {
            Charge::Nothing => taken.clone(),
            _ => claim_aside(3_000).await.unwrap().unwrap(),
        };
        let given = store.give_back(taken.seq, taken.lease_epoch, back(charge, not_before_ms));
        assert_eq!(given.await.unwrap(), GaveBack::Queued);
        assert_eq!(store.waiting_lanes(3_000).await.unwrap(), []);
        assert_eq!(aside(&store, 9_000).await, [(seq, ready_at_ms)]);
    }
    assert_eq!(aside(&store, 8_000).await, []);
    assert_eq!(store.set_aside(8_000).await.unwrap().next_ready_at_ms, Some(9_000));
}

/// None waits for ever.
#[tokio::test]
async fn after_six_hours_it_is_a_batch_job_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let (store, seq) = with_one_lost(&folder).await;
    let end_ms = 1_000 + ASIDE_MS;
    assert_eq!(store.next_ready_at_ms().await.unwrap(), Some(end_ms));
    assert_eq!(store.waiting_lanes(end_ms - 1).await.unwrap(), []);
    let lanes = store.waiting_lanes(end_ms).await.unwrap();
    assert_eq!(lanes[0].head, Some(WaitingHead { seq, ready_at_ms: 1_000 }));
    assert_eq!(aside(&store, end_ms).await, []);
    let taken = claim(&store, LANE, end_ms).await;
    assert!(!taken.is_unattended, "it is not cut any more");
    assert_eq!(store.set_lost_aside(end_ms).await.unwrap(), 0);
}

#[tokio::test]
async fn who_comes_back_is_next_but_for_those_that_were_there_before() {
    let folder = tempfile::tempdir().unwrap();
    let (store, seq) = with_one_lost(&folder).await;
    let of = |client: &str| NewJob { client: client.to_owned(), ..job(LANE) };
    let first = admit(&store, of("y"), 3_000).await;
    assert_eq!(claim(&store, LANE, 3_000).await.seq, first);
    for client in ["y", "z"] {
        admit(&store, of(client), 3_000).await;
    }
    let found = store.admit(returning(), LIMITS, 4_000).await.unwrap();
    assert!(matches!(found, Admission::Found { by: FoundBy::Return, .. }));
    assert_eq!(aside(&store, 4_000).await, []);
    let taken = claim(&store, LANE, 4_000).await;
    assert_eq!((taken.seq, taken.is_unattended), (seq, false));
}

/// A named key at its caps waited for its own dead jobs: they filled its part of the queue, and one that ran its only place.
#[tokio::test]
async fn those_set_aside_take_no_place_of_their_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let cap = Cap { queued_max: Some(1), in_flight_max: Some(1) };
    let caps = Caps::from([("alice".to_owned(), cap)]);
    let of_alice = |attach_key: Option<Hash>, lane: &str| {
        let extras = Extras { owner: "alice".to_owned(), attach_key, ..Extras::default() };
        NewJob { client: "alice".to_owned(), extras, ..job(lane) }
    };
    let (store, _) = Store::open(&path, 0).unwrap();
    store.keep_caps(caps.clone());
    admit(&store, of_alice(Some(KEY), LANE), 1_000).await;
    store.close().await;
    drop(store);
    let (store, _) = Store::open(&path, 2_000).unwrap();
    store.keep_caps(caps);
    assert_eq!(store.set_lost_aside(2_000).await.unwrap(), 1);
    let admitted = store.admit(of_alice(None, "b:latest"), LIMITS, 3_000).await.unwrap();
    assert!(matches!(admitted, Admission::Admitted { .. }), "{admitted:?}");
    let taken = store.claim_set_aside(LANE.to_owned(), Event::ClaimToWork, 3_000).await.unwrap();
    assert!(taken.unwrap().is_unattended);
    let lanes = store.waiting_lanes(4_000).await.unwrap();
    assert!(lanes[0].head.is_some(), "{lanes:?}");
    // Its caller is back: now it is a job like any other, and the only one that may run.
    store.admit(of_alice(Some(KEY), LANE), LIMITS, 4_000).await.unwrap();
    let lanes = store.waiting_lanes(4_000).await.unwrap();
    assert!(lanes.iter().all(|lane| lane.head.is_none()), "{lanes:?}");
}
