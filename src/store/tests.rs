//! The promises of the store, on a real database in a temporary folder.

use bytes::Bytes;
use ulid::Ulid;

use super::*;
use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, Event, JobId, Kind};
use crate::domain::retry::{Charge, INTERRUPTIONS_MAX};

const LIMITS: QueueLimits = QueueLimits { jobs_max: 100, bytes_max: 1_000_000 };

fn job(lane: &str) -> NewJob {
    NewJob {
        id: JobId(Ulid::generate()),
        dialect: Dialect::Chat,
        kind: Kind::Run,
        lane: lane.to_owned(),
        model: lane.to_owned(),
        class: Class::Interactive,
        is_streamed: true,
        path_and_query: "/api/chat".to_owned(),
        headers: vec![("content-type".to_owned(), b"application/json".to_vec())],
        body: Bytes::from_static(b"{}"),
    }
}

fn back(charge: Charge, not_before_ms: i64) -> GiveBack {
    GiveBack { charge, not_before_ms, error: "cut".to_owned(), at_ms: 3 }
}

fn done() -> Ending {
    let answer = Answer {
        status: 200,
        headers: Vec::new(),
        body: AnswerBody::Inline(Bytes::from_static(b"whole")),
    };
    Ending { event: Event::Complete, answer: Some(answer), error: None }
}

async fn claim(store: &Store, lane: &str, now_ms: i64) -> Claim {
    store.claim(lane.to_owned(), Event::ClaimToWork, now_ms).await.unwrap().unwrap()
}

#[tokio::test]
async fn an_admitted_job_is_claimed_once_in_order_of_arrival_and_finished_once() {
    let folder = tempfile::tempdir().unwrap();
    let (store, recovered) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    assert_eq!(recovered, Recovered::default());
    let (first, second) = (job("a"), job("a"));
    for job in [&first, &second] {
        store.admit(job.clone(), LIMITS, 1).await.unwrap();
    }
    let taken = claim(&store, "a", 2).await;
    assert_eq!(taken.id, first.id);
    assert_eq!((taken.counters.attempts, taken.body.as_ref()), (1, b"{}".as_ref()));
    assert!(store.finish(taken.seq, taken.lease_epoch, done(), 3).await.unwrap());
    assert!(!store.finish(taken.seq, taken.lease_epoch, done(), 4).await.unwrap());
    let answer = store.answer(first.id).await.unwrap().unwrap();
    assert_eq!(answer.body, AnswerBody::Inline(Bytes::from_static(b"whole")));
    assert_eq!(claim(&store, "a", 5).await.id, second.id);
    assert!(store.claim("a".to_owned(), Event::ClaimToWork, 6).await.unwrap().is_none());
}

#[tokio::test]
async fn a_stale_lease_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    store.admit(job("a"), LIMITS, 1).await.unwrap();
    let stale = claim(&store, "a", 2).await;
    let back = store.give_back(stale.seq, stale.lease_epoch, back(Charge::Attempt, 0)).await;
    assert!(back.unwrap());
    let fresh = claim(&store, "a", 4).await;
    assert_eq!(fresh.counters.attempts, 2);
    assert!(!store.finish(stale.seq, stale.lease_epoch, done(), 5).await.unwrap());
    assert!(!store.loaded(stale.seq, stale.lease_epoch, 5).await.unwrap());
    assert!(store.finish(fresh.seq, fresh.lease_epoch, done(), 6).await.unwrap());
}

#[tokio::test]
async fn a_retry_waits_for_its_time_and_a_younger_job_overtakes_it() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    store.admit(job("a"), LIMITS, 1).await.unwrap();
    let taken = claim(&store, "a", 2).await;
    let given = store.give_back(taken.seq, taken.lease_epoch, back(Charge::Deferral, 1_000));
    assert!(given.await.unwrap());
    assert_eq!(store.waiting_lanes(500).await.unwrap()[0].oldest_ready_seq, None);
    assert_eq!(store.next_ready_at_ms(500).await.unwrap(), Some(1_000));
    store.admit(job("a"), LIMITS, 4).await.unwrap();
    let younger = claim(&store, "a", 500).await;
    assert_ne!(younger.seq, taken.seq);
    let again = claim(&store, "a", 1_000).await;
    assert_eq!((again.seq, again.counters.attempts, again.counters.deferrals), (taken.seq, 1, 1));
}

#[tokio::test]
async fn a_full_queue_takes_nothing_more_and_a_claim_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let limits = QueueLimits { jobs_max: 2, bytes_max: 1_000 };
    for _ in 0..2 {
        assert!(matches!(
            store.admit(job("a"), limits, 1).await.unwrap(),
            Admission::Admitted { .. }
        ));
    }
    assert_eq!(store.admit(job("a"), limits, 1).await.unwrap(), Admission::Full { jobs: 2 });
    claim(&store, "a", 2).await;
    assert!(matches!(store.admit(job("a"), limits, 3).await.unwrap(), Admission::Admitted { .. }));
}

#[tokio::test]
async fn bytes_are_limited_but_one_large_job_is_always_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let limits = QueueLimits { jobs_max: 10, bytes_max: 10 };
    let large = NewJob { body: Bytes::from(vec![b' '; 100]), ..job("a") };
    assert!(matches!(
        store.admit(large.clone(), limits, 1).await.unwrap(),
        Admission::Admitted { .. }
    ));
    assert_eq!(store.admit(job("a"), limits, 1).await.unwrap(), Admission::Full { jobs: 1 });
}

#[tokio::test]
async fn reopening_puts_jobs_in_flight_back_uncharged_and_gives_up_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let waiting = job("b");
    {
        let (store, _) = Store::open(&path, 0).unwrap();
        store.admit(job("a"), LIMITS, 1).await.unwrap();
        store.admit(waiting.clone(), LIMITS, 1).await.unwrap();
        claim(&store, "a", 2).await;
        store.close().await;
    }
    for crash in 1..=INTERRUPTIONS_MAX {
        let (store, recovered) = Store::open(&path, 3).unwrap();
        assert_eq!(recovered.waiting, 1);
        if crash < INTERRUPTIONS_MAX {
            assert_eq!((recovered.requeued, recovered.given_up), (1, 0));
            let again = claim(&store, "a", 4).await;
            assert_eq!((again.counters.attempts, again.counters.interruptions), (1, crash));
        } else {
            assert_eq!((recovered.requeued, recovered.given_up), (0, 1));
        }
        store.close().await;
    }
}

#[tokio::test]
async fn a_second_daemon_on_the_database_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (_store, _) = Store::open(&path, 0).unwrap();
    let fault = Store::open(&path, 0).err().unwrap();
    assert!(fault.to_string().contains(&format!("(process {})", std::process::id())), "{fault}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_second_daemon_by_another_name_of_the_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (_store, _) = Store::open(&path, 0).unwrap();
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(Store::open(&link, 0).err(), Some(StoreError::InUse { .. })));
    // A link that was there before its database.
    let (early, late) = (folder.path().join("early.db"), folder.path().join("late.db"));
    std::os::unix::fs::symlink(&late, &early).unwrap();
    let (_by_link, _) = Store::open(&early, 0).unwrap();
    assert!(matches!(Store::open(&late, 0).err(), Some(StoreError::InUse { .. })));
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    drop(Store::open(&path, 0).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Store::open(&path, 0).err(), Some(StoreError::Newer { found: 99, .. })));
}

#[tokio::test]
async fn only_a_waiting_job_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let (gone, taken) = (job("a"), job("b"));
    store.admit(gone.clone(), LIMITS, 1).await.unwrap();
    store.admit(taken.clone(), LIMITS, 1).await.unwrap();
    claim(&store, "b", 2).await;
    let cancel = async |id| store.cancel_waiting(id, 3).await.unwrap();
    assert_eq!(cancel(gone.id).await, Cancellation::Cancelled);
    assert_eq!(cancel(gone.id).await, Cancellation::NotWaiting);
    assert_eq!(cancel(taken.id).await, Cancellation::NotWaiting);
    assert_eq!(cancel(JobId(Ulid::generate())).await, Cancellation::Unknown);
    assert_eq!(store.waiting_lanes(10).await.unwrap(), []);
}

#[tokio::test]
async fn old_jobs_are_swept_and_young_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let (old, young) = (job("a"), job("a"));
    for (job, at_ms) in [(&old, 100), (&young, 200)] {
        store.admit(job.clone(), LIMITS, 1).await.unwrap();
        let taken = claim(&store, "a", 2).await;
        assert!(store.finish(taken.seq, taken.lease_epoch, done(), at_ms).await.unwrap());
    }
    assert_eq!(store.sweep(150).await.unwrap(), Swept { jobs: 1, files: Vec::new() });
    assert!(store.answer(old.id).await.unwrap().is_none());
    assert!(store.answer(young.id).await.unwrap().is_some());
}

#[tokio::test]
async fn the_tally_agrees_with_a_count_after_any_life() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    for number in 0..20 {
        store.admit(job("a"), LIMITS, number).await.unwrap();
    }
    for number in 0..12_i64 {
        let taken = claim(&store, "a", 50).await;
        match number % 3 {
            0 => drop(store.finish(taken.seq, taken.lease_epoch, done(), 60).await.unwrap()),
            1 => drop(
                store
                    .give_back(taken.seq, taken.lease_epoch, back(Charge::Attempt, 900))
                    .await
                    .unwrap(),
            ),
            _ => (),
        }
    }
    let counted: Vec<(String, i64)> = store
        .read(|tx| {
            let sql = "SELECT tally.state, tally.jobs - (SELECT COUNT(*) FROM job WHERE job.state = tally.state)
                       FROM tally";
            let mut statement = tx.prepare(sql)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
        .unwrap();
    assert!(counted.iter().all(|(_, difference)| *difference == 0), "{counted:?}");
}

/// The decision's query must not read the whole queue: every step of its plan names an index.
#[tokio::test]
async fn the_lanes_are_found_by_index_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let plan: Vec<String> = store
        .read(|tx| {
            let sql = format!("EXPLAIN QUERY PLAN {}", lanes::WAITING_LANES);
            let mut statement = tx.prepare(&sql)?;
            let rows = statement.query_map([0, 0], |row| row.get(3))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
        .unwrap();
    let touching: Vec<_> = plan.iter().filter(|step| step.contains("job")).collect();
    assert!(!touching.is_empty());
    assert!(touching.iter().all(|step| step.contains("COVERING INDEX job_ready")), "{plan:#?}");
}

#[tokio::test]
async fn one_failed_write_of_a_batch_harms_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let twin = job("a");
    store.admit(twin.clone(), LIMITS, 1).await.unwrap();
    let (failed, fine) =
        tokio::join!(store.admit(twin, LIMITS, 2), store.admit(job("b"), LIMITS, 2));
    assert!(matches!(failed, Err(StoreError::Sql(_))), "{failed:?}");
    assert!(matches!(fine, Ok(Admission::Admitted { .. })));
    assert_eq!(store.waiting_lanes(5).await.unwrap().len(), 2);
}

/// Whoever asks may leave before the answer; the next questions wait for a reader and are answered. (The place was given back
/// before the connection: the next reader found none, and the daemon took its store for dead.)
#[tokio::test]
async fn questions_whose_askers_leave_take_no_reader_away() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    for _ in 0..3 {
        let mut held = Vec::new();
        for _ in 0..READERS {
            let (hold, release) = std::sync::mpsc::channel::<()>();
            held.push(hold);
            let question = store.read(move |_| {
                assert!(release.recv().is_err(), "nothing is ever sent");
                Ok(())
            });
            let left = tokio::time::timeout(std::time::Duration::from_millis(1), question).await;
            assert!(left.is_err(), "the question is still being answered");
        }
        assert_eq!(store.shared.free_readers.available_permits(), 0);
        let next = store.waiting_lanes(0);
        drop(held);
        assert_eq!(next.await.unwrap(), []);
    }
}

/// Space comes back: the file is smaller after its jobs were dropped.
#[tokio::test]
async fn swept_jobs_give_their_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    for _ in 0..20 {
        let large = NewJob { body: Bytes::from(vec![b'x'; 100_000]), ..job("a") };
        let limits = QueueLimits { jobs_max: 100, bytes_max: 100_000_000 };
        store.admit(large, limits, 1).await.unwrap();
        let taken = claim(&store, "a", 2).await;
        let failed = Ending { event: Event::Fail, answer: None, error: Some("no".to_owned()) };
        assert!(store.finish(taken.seq, taken.lease_epoch, failed, 3).await.unwrap());
    }
    let pages = async || {
        store
            .read(|tx| Ok(tx.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0))?))
            .await
            .unwrap()
    };
    let before = pages().await;
    assert_eq!(store.sweep(100).await.unwrap().jobs, 20);
    let after = pages().await;
    assert!(after * 4 < before, "{after} pages of {before} are left");
}

/// What is kept of an ended job: its answer, and of a failed one its request, but no credentials.
#[tokio::test]
async fn an_ended_job_keeps_no_more_than_it_must() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    for _ in 0..2 {
        let mut secret = job("a");
        secret.headers.push(("authorization".to_owned(), b"Bearer s3cret".to_vec()));
        store.admit(secret, LIMITS, 1).await.unwrap();
    }
    let whole = claim(&store, "a", 2).await;
    assert!(store.finish(whole.seq, whole.lease_epoch, done(), 3).await.unwrap());
    let broken = claim(&store, "a", 2).await;
    let failed = Ending { event: Event::Fail, answer: None, error: Some("no".to_owned()) };
    assert!(store.finish(broken.seq, broken.lease_epoch, failed, 3).await.unwrap());
    let kept: Vec<(i64, String)> = store
        .read(|tx| {
            let mut statement = tx.prepare("SELECT seq, headers FROM request")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
        .unwrap();
    assert_eq!(kept, [(broken.seq, r#"[["content-type","application/json"]]"#.to_owned())]);
}

/// A retry that seems to wait for hours was put back while the clock was ahead: it is ready.
#[tokio::test]
async fn a_clock_that_was_ahead_leaves_no_job_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    store.admit(job("a"), LIMITS, 1).await.unwrap();
    let taken = claim(&store, "a", 9_000_000).await;
    let given = store.give_back(taken.seq, taken.lease_epoch, back(Charge::Attempt, 9_060_000));
    assert!(given.await.unwrap());
    assert!(store.waiting_lanes(1_000).await.unwrap()[0].oldest_ready_seq.is_some());
    assert_eq!(claim(&store, "a", 1_000).await.seq, taken.seq);
}

/// A row that cannot be read fails; what waits behind it is served.
#[tokio::test]
async fn a_row_that_cannot_be_read_blocks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    for _ in 0..2 {
        store.admit(job("a"), LIMITS, 1).await.unwrap();
    }
    store
        .write(Durability::Synced, |tx| {
            Ok(tx.execute("UPDATE job SET dialect = 'klingon' WHERE seq = 1", [])?)
        })
        .await
        .unwrap();
    assert!(store.claim("a".to_owned(), Event::ClaimToWork, 2).await.unwrap().is_none());
    assert_eq!(claim(&store, "a", 2).await.seq, 2);
}
