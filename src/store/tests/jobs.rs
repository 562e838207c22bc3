//! A job's life: admitted or refused, claimed, given back, ended.

use bytes::Bytes;
use ulid::Ulid;

use super::*;
use crate::domain::job::State;

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
    assert!(try_claim(&store, "a", 6).await.is_none());
}

#[tokio::test]
async fn a_stale_lease_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    store.admit(job("a"), LIMITS, 1).await.unwrap();
    let stale = claim(&store, "a", 2).await;
    let back = store.give_back(stale.seq, stale.lease_epoch, back(Charge::Attempt, 0)).await;
    assert_eq!(back.unwrap(), GaveBack::Queued);
    let fresh = claim(&store, "a", 4).await;
    assert_eq!(fresh.counters.attempts, 2);
    assert!(!store.finish(stale.seq, stale.lease_epoch, done(), 5).await.unwrap());
    assert!(!store.loaded(stale.seq, stale.lease_epoch, 1, 5).await.unwrap());
    assert!(store.finish(fresh.seq, fresh.lease_epoch, done(), 6).await.unwrap());
}

#[tokio::test]
async fn a_retry_waits_for_its_time_and_a_younger_job_overtakes_it() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    store.admit(job("a"), LIMITS, 1).await.unwrap();
    let taken = claim(&store, "a", 2).await;
    let given = store.give_back(taken.seq, taken.lease_epoch, back(Charge::Deferral, 1_000));
    assert_eq!(given.await.unwrap(), GaveBack::Queued);
    assert_eq!(store.waiting_lanes(500).await.unwrap()[0].head, None);
    assert_eq!(store.next_ready_at_ms().await.unwrap(), Some(1_000));
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
    let limits = QueueLimits { jobs_max: 2, bytes_max: 1_000, ..LIMITS };
    for _ in 0..2 {
        assert!(matches!(
            store.admit(job("a"), limits, 1).await.unwrap(),
            Admission::Admitted { .. }
        ));
    }
    assert_eq!(
        store.admit(job("a"), limits, 1).await.unwrap(),
        Admission::Full { jobs: 2, limit: QueueLimit::Jobs }
    );
    claim(&store, "a", 2).await;
    assert!(matches!(store.admit(job("a"), limits, 3).await.unwrap(), Admission::Admitted { .. }));
}

#[tokio::test]
async fn bytes_are_limited_but_one_large_job_is_always_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let limits = QueueLimits { jobs_max: 10, bytes_max: 10, ..LIMITS };
    let large = NewJob { body: Bytes::from(vec![b' '; 100]), ..job("a") };
    assert!(matches!(
        store.admit(large.clone(), limits, 1).await.unwrap(),
        Admission::Admitted { .. }
    ));
    assert_eq!(
        store.admit(job("a"), limits, 1).await.unwrap(),
        Admission::Full { jobs: 1, limit: QueueLimit::Bytes }
    );
}

#[tokio::test]
async fn a_full_class_takes_nothing_more_and_the_others_do() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let limits = QueueLimits { jobs_max: 5, class_max: [None, Some(0), Some(2)], ..LIMITS };
    let ask = async |lane, class| store.admit(of_class(lane, class), limits, 1).await.unwrap();
    for lane in ["a", "b"] {
        assert!(matches!(ask(lane, Class::Batch).await, Admission::Admitted { .. }));
    }
    let full = |jobs, limit| Admission::Full { jobs, limit };
    assert_eq!(ask("c", Class::Batch).await, full(2, QueueLimit::Class(Class::Batch)));
    assert_eq!(ask("c", Class::Normal).await, full(0, QueueLimit::Class(Class::Normal)));
    claim(&store, "b", 2).await;
    for class in [Class::Batch, Class::Interactive, Class::Interactive, Class::Interactive] {
        assert!(matches!(ask("c", class).await, Admission::Admitted { .. }));
    }
    assert_eq!(ask("c", Class::Interactive).await, full(5, QueueLimit::Jobs));
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
    assert_eq!(cancel(gone.id).await, Cancellation::Ended(State::Cancelled));
    assert_eq!(cancel(taken.id).await, Cancellation::Cancelling);
    assert_eq!(cancel(JobId(Ulid::generate())).await, Cancellation::Unknown);
    assert_eq!(store.waiting_lanes(10).await.unwrap(), []);
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
    assert!(
        store
            .claim("a".to_owned(), Class::Interactive, Event::ClaimToWork, 2)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(claim(&store, "a", 2).await.seq, 2);
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

/// The last to end are told, in order of arrival; what never ran is not.
#[tokio::test]
async fn a_trace_tells_the_jobs_that_ran() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let asked = NewJob {
        client: "c1".to_owned(),
        path_and_query: "/api/chat?x=secret".to_owned(),
        ..of_class("a", Class::Normal)
    };
    admit(&store, asked, 10).await;
    for lane in ["b", "c", "d"] {
        admit(&store, job(lane), 20).await;
    }
    let failed = || Ending::failed("no");
    let before = claim(&store, "b", 25).await;
    let to_load =
        store.claim("a".to_owned(), Class::Normal, Event::ClaimToLoad, 30).await.unwrap().unwrap();
    assert!(store.loaded(to_load.seq, to_load.lease_epoch, 8_000, 40).await.unwrap());
    assert!(store.finish(to_load.seq, to_load.lease_epoch, done(), 50).await.unwrap());
    assert!(store.finish(before.seq, before.lease_epoch, failed(), 60).await.unwrap());
    let never_worked =
        store.claim("c".to_owned(), Class::Interactive, Event::ClaimToLoad, 61).await;
    let never_worked = never_worked.unwrap().unwrap();
    assert!(store.finish(never_worked.seq, never_worked.lease_epoch, failed(), 70).await.unwrap());
    let ran = store.finished_jobs(10).await.unwrap();
    let whole = FinishedJob {
        seq: to_load.seq,
        lane: "a".to_owned(),
        class: Class::Normal,
        client: "c1".to_owned(),
        path: "/api/chat".to_owned(),
        created_at_ms: 10,
        ready_at_ms: 10,
        claimed_at_ms: 30,
        working_at_ms: 40,
        finished_at_ms: 50,
        load_ms: Some(8_000),
    };
    assert_eq!(ran[0], whole);
    assert_eq!((ran.len(), ran[1].seq, ran[1].load_ms), (2, before.seq, None));
    assert_eq!(store.finished_jobs(1).await.unwrap()[0].seq, before.seq);
}

/// A load that was paid for an attempt which did not end the job is not told of the next.
#[tokio::test]
async fn a_job_given_back_has_loaded_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    admit(&store, job("a"), 1).await;
    let first =
        store.claim("a".to_owned(), Class::Interactive, Event::ClaimToLoad, 2).await.unwrap();
    let first = first.unwrap();
    assert!(store.loaded(first.seq, first.lease_epoch, 7, 3).await.unwrap());
    let given = store.give_back(first.seq, first.lease_epoch, back(Charge::Attempt, 0)).await;
    assert_eq!(given.unwrap(), GaveBack::Queued);
    let second = claim(&store, "a", 4).await;
    assert!(store.finish(second.seq, second.lease_epoch, done(), 5).await.unwrap());
    assert_eq!(store.finished_jobs(1).await.unwrap()[0].load_ms, None);
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
