//! The promises of the store, on a real database in a temporary folder.

use bytes::Bytes;
use proptest::prelude::*;
use ulid::Ulid;

use super::*;
use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, Event, JobId, Kind, State};
use crate::domain::retry::{Charge, INTERRUPTIONS_MAX};

#[path = "deliveries_tests.rs"]
mod deliveries;

const LIMITS: QueueLimits =
    QueueLimits { jobs_max: 100, bytes_max: 1_000_000, class_max: [None; 3] };

fn job(lane: &str) -> NewJob {
    NewJob {
        id: JobId(Ulid::generate()),
        dialect: Dialect::Chat,
        kind: Kind::Run,
        lane: lane.to_owned(),
        model: lane.to_owned(),
        class: Class::Interactive,
        client: String::new(),
        is_streamed: true,
        path_and_query: "/api/chat".to_owned(),
        headers: vec![("content-type".to_owned(), b"application/json".to_vec())],
        body: Bytes::from_static(b"{}"),
        extras: Extras::default(),
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
    Ending {
        event: Event::Complete,
        answer: Some(answer),
        error: None,
        error_status: None,
        measured: Measured::default(),
    }
}

/// Jobs that ended before this are old, however they ended.
fn before(at_ms: i64) -> EndedBefore {
    EndedBefore { over_ms: at_ms, failed_ms: at_ms }
}

/// Claims the next job of a lane as the worker does: the most urgent class first.
async fn try_claim(store: &Store, lane: &str, now_ms: i64) -> Option<Claim> {
    for class in Class::ALL {
        let claimed = store.claim(lane.to_owned(), class, Event::ClaimToWork, now_ms).await;
        if let Some(claim) = claimed.unwrap() {
            return Some(claim);
        }
    }
    None
}

async fn claim(store: &Store, lane: &str, now_ms: i64) -> Claim {
    try_claim(store, lane, now_ms).await.unwrap()
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
    assert_eq!(cancel(gone.id).await, Cancellation::Ended(State::Cancelled));
    assert_eq!(cancel(taken.id).await, Cancellation::Cancelling);
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
    assert_eq!(store.sweep(before(150), 150).await.unwrap(), Swept { jobs: 1, files: Vec::new() });
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

/// What is asked at each decision, and what is shown, must not read the whole queue or the whole history: each step of
/// these plans seeks in an index or walks one that it leaves at once, and nothing is sorted.
#[tokio::test]
async fn the_queue_is_read_by_index_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let delays_over = lanes::DELAYS_OVER.map(lanes::delays_over);
    let waiting = overview::open_jobs_sql(overview::WAITING);
    let live = overview::open_jobs_sql(overview::LIVE);
    let expected: [(&str, &[&str]); 9] = [
        (lanes::HEAD, &["SEARCH job USING COVERING INDEX job_ready (lane=? AND class=?)"]),
        (lanes::WAITING, &[]),
        (&delays_over[0], &["SEARCH job USING COVERING INDEX job_delayed (not_before_ms<?)"]),
        (&delays_over[1], &["SEARCH job USING INDEX job_put_off (not_before_ms>?)"]),
        (lanes::NEXT_READY, &["SEARCH job USING COVERING INDEX job_delayed (not_before_ms>?)"]),
        (overview::OLDEST_DELAYED, &["SEARCH job USING INDEX job_put_off_in_lane (lane=?)"]),
        (&waiting, &["SCAN job USING INDEX job_waiting"]),
        (trace::RAN_LAST, &["SCAN job USING INDEX job_ran"]),
        // At an opening, of the index alone.
        (
            recovery::CLAMP_READY,
            &[
                "SEARCH job USING INTEGER PRIMARY KEY (rowid=?)",
                "SCAN job USING COVERING INDEX job_ready",
            ],
        ),
    ];
    for (sql, steps) in expected {
        let plan = plan(&store, sql).await;
        let touching: Vec<&String> = plan.iter().filter(|step| step.contains(" job ")).collect();
        let is_sorted = plan.iter().any(|step| step.contains("TEMP B-TREE"));
        assert!(touching == steps && !is_sorted, "{sql}: {plan:#?}");
    }
    // Few are in flight: those may be sorted.
    assert_eq!(plan(&store, &live).await[0], "SEARCH job USING INDEX job_live (state=?)");
}

async fn plan(store: &Store, sql: &str) -> Vec<String> {
    let sql = format!("EXPLAIN QUERY PLAN {sql}");
    store
        .read(move |tx| {
            let mut statement = tx.prepare(&sql)?;
            let rows = statement.raw_query().mapped(|row| row.get(3)).collect::<Result<_, _>>();
            Ok(rows?)
        })
        .await
        .unwrap()
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
        let limits = QueueLimits { bytes_max: 100_000_000, ..LIMITS };
        store.admit(large, limits, 1).await.unwrap();
        let taken = claim(&store, "a", 2).await;
        let failed = Ending::failed("no");
        assert!(store.finish(taken.seq, taken.lease_epoch, failed, 3).await.unwrap());
    }
    let pages = async || {
        store
            .read(|tx| Ok(tx.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0))?))
            .await
            .unwrap()
    };
    let pages_before = pages().await;
    assert_eq!(store.sweep(before(100), 100).await.unwrap().jobs, 20);
    let after = pages().await;
    assert!(after * 4 < pages_before, "{after} pages of {pages_before} are left");
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
    let failed = Ending::failed("no");
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
    assert_eq!(given.await.unwrap(), GaveBack::Queued);
    assert!(store.waiting_lanes(1_000).await.unwrap()[0].head.is_some());
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
    assert!(
        store
            .claim("a".to_owned(), Class::Interactive, Event::ClaimToWork, 2)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(claim(&store, "a", 2).await.seq, 2);
}

fn of_class(lane: &str, class: Class) -> NewJob {
    NewJob { class, ..job(lane) }
}

async fn admit(store: &Store, job: NewJob, at_ms: i64) -> i64 {
    match store.admit(job, LIMITS, at_ms).await.unwrap() {
        Admission::Admitted { seq } => seq,
        full => panic!("{full:?}"),
    }
}

/// What waits as (lane, class, jobs, first ready).
async fn waiting(store: &Store, now_ms: i64) -> Vec<(String, Class, u64, Option<i64>)> {
    let lanes = store.waiting_lanes(now_ms).await.unwrap();
    lanes
        .into_iter()
        .map(|lane| (lane.lane, lane.class, lane.jobs, lane.head.map(|head| head.seq)))
        .collect()
}

fn entry(
    lane: &str,
    class: Class,
    jobs: u64,
    head: Option<i64>,
) -> (String, Class, u64, Option<i64>) {
    (lane.to_owned(), class, jobs, head)
}

#[tokio::test]
async fn a_lane_is_served_by_class_and_then_by_arrival() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let classes =
        [Class::Batch, Class::Normal, Class::Interactive, Class::Batch, Class::Interactive];
    let mut seqs = Vec::new();
    for (class, at_ms) in classes.into_iter().zip(1..) {
        seqs.push(admit(&store, of_class("a", class), at_ms).await);
    }
    let other = admit(&store, of_class("b", Class::Batch), 9).await;
    let expected = [
        entry("a", Class::Batch, 2, Some(seqs[0])),
        entry("a", Class::Interactive, 2, Some(seqs[2])),
        entry("a", Class::Normal, 1, Some(seqs[1])),
        entry("b", Class::Batch, 1, Some(other)),
    ];
    assert_eq!(waiting(&store, 20).await, expected);
    assert_eq!(
        store.waiting_lanes(20).await.unwrap()[1].head,
        Some(WaitingHead { seq: seqs[2], ready_at_ms: 3 })
    );
    for index in [2, 4, 1, 0, 3] {
        assert_eq!(claim(&store, "a", 20).await.seq, seqs[index]);
    }
    assert_eq!(waiting(&store, 20).await, [entry("b", Class::Batch, 1, Some(other))]);
}

/// The connections they were for did not survive: all that somebody waited for is batch, in order of arrival; what comes is
/// not, nor what outlives its caller.
#[tokio::test]
async fn an_opening_makes_all_that_clients_waited_for_batch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (store, _) = Store::open(&path, 0).unwrap();
    let mut seqs = Vec::new();
    for class in [Class::Normal, Class::Interactive, Class::Batch, Class::Interactive] {
        seqs.push(admit(&store, of_class("a", class), 1).await);
    }
    let taken = claim(&store, "a", 2).await;
    assert_eq!(taken.seq, seqs[1]);
    store.close().await;
    drop(store);
    for _ in 0..2 {
        let (store, recovered) = Store::open(&path, 3).unwrap();
        assert_eq!(recovered.waiting + u64::try_from(recovered.requeued).unwrap(), 4);
        assert_eq!(waiting(&store, 5).await, [entry("a", Class::Batch, 4, Some(seqs[0]))]);
        store.close().await;
    }
    let (store, _) = Store::open(&path, 3).unwrap();
    let young = admit(&store, of_class("a", Class::Interactive), 4).await;
    let shown = store.overview(10).await.unwrap();
    let classes: Vec<&str> = shown.waiting.iter().map(|job| job.class.as_str()).collect();
    assert_eq!(classes, ["batch", "batch", "batch", "batch", "interactive"]);
    for seq in [young, seqs[0], seqs[1], seqs[2], seqs[3]] {
        assert_eq!(claim(&store, "a", 5).await.seq, seq);
    }
    // One of them that comes back is batch, too.
    let given = store.give_back(seqs[0], 1, back(Charge::Nothing, 0)).await;
    assert_eq!(given.unwrap(), GaveBack::Queued);
    assert_eq!(waiting(&store, 5).await, [entry("a", Class::Batch, 1, Some(seqs[0]))]);
}

#[tokio::test]
async fn a_clock_set_back_leaves_no_job_ready_in_the_future() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (store, _) = Store::open(&path, 0).unwrap();
    admit(&store, job("a"), 9_000_000).await;
    admit(&store, job("b"), 9_000_000).await;
    claim(&store, "b", 9_000_000).await;
    let ready_at_ms = async |store: &Store, now_ms| -> Vec<i64> {
        let lanes = store.waiting_lanes(now_ms).await.unwrap();
        lanes.into_iter().map(|lane| lane.head.unwrap().ready_at_ms).collect()
    };
    assert_eq!(ready_at_ms(&store, 1_000).await, [1_000]);
    store.close().await;
    drop(store);
    let (store, _) = Store::open(&path, 2_000).unwrap();
    assert_eq!(ready_at_ms(&store, 5_000).await, [2_000, 2_000]);
}

#[tokio::test]
async fn a_job_is_ready_since_its_delay_was_over() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    for _ in 0..2 {
        admit(&store, job("a"), 1).await;
    }
    let delayed = claim(&store, "a", 2).await;
    let at_once = claim(&store, "a", 2).await;
    for (taken, not_before_ms) in [(&delayed, 1_000), (&at_once, 3)] {
        let back = back(Charge::Attempt, not_before_ms);
        let given = store.give_back(taken.seq, taken.lease_epoch, back).await;
        assert_eq!(given.unwrap(), GaveBack::Queued);
    }
    let lanes = store.waiting_lanes(500).await.unwrap();
    assert_eq!(lanes[0].jobs, 2);
    assert_eq!(lanes[0].head, Some(WaitingHead { seq: at_once.seq, ready_at_ms: 3 }));
    let lane = &store.overview(10).await.unwrap().lanes[0];
    assert_eq!((lane.depth, lane.delayed, lane.oldest_seq), (2, 1, delayed.seq));
    let lanes = store.waiting_lanes(1_500).await.unwrap();
    assert_eq!(lanes[0].head, Some(WaitingHead { seq: delayed.seq, ready_at_ms: 1_000 }));
    assert_eq!(store.next_ready_at_ms(1_500).await.unwrap(), None);
    assert_eq!(store.overview(10).await.unwrap().lanes[0].delayed, 0);
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
async fn the_overview_tells_each_lane_by_class() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let ended = admit(&store, job("b"), 1).await;
    let taken = claim(&store, "b", 2).await;
    assert_eq!(taken.seq, ended);
    assert!(store.finish(taken.seq, taken.lease_epoch, done(), 3).await.unwrap());
    let oldest = admit(&store, of_class("a", Class::Batch), 4).await;
    for class in [Class::Normal, Class::Batch] {
        admit(&store, of_class("a", class), 5).await;
    }
    let running = admit(&store, of_class("c", Class::Normal), 6).await;
    claim(&store, "c", 7).await;
    let shown = store.overview(2).await.unwrap();
    let lane = LaneSummary {
        lane: "a".to_owned(),
        depth: 3,
        delayed: 0,
        oldest_seq: oldest,
        oldest_at_ms: 4,
        by_class: vec![(Class::Normal, 1), (Class::Batch, 2)],
    };
    assert_eq!(shown.lanes, [lane]);
    let listed: Vec<(i64, &str)> =
        shown.waiting.iter().map(|job| (job.seq, job.class.as_str())).collect();
    assert_eq!(listed, [(oldest, "batch"), (oldest + 1, "normal")]);
    let live: Vec<(i64, &str)> =
        shown.live.iter().map(|job| (job.seq, job.class.as_str())).collect();
    assert_eq!(live, [(running, "normal")]);
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

#[tokio::test]
async fn what_was_learned_survives_and_only_the_last_of_each_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (store, _) = Store::open(&path, 0).unwrap();
    for number in 0..7 {
        store.keep_load_time("b".to_owned(), number, 10 + number).await.unwrap();
    }
    store.keep_load_time("a".to_owned(), 5, 30).await.unwrap();
    for number in 0..40 {
        let gap_ms = (number % 2 == 0).then_some(number);
        store.keep_gap("g".to_owned(), gap_ms, number).await.unwrap();
    }
    for (models, fits) in [("a b", true), ("a c", true), ("a b", false)] {
        store.keep_fit(models.to_owned(), fits, 1).await.unwrap();
    }
    store.close().await;
    drop(store);
    let (store, _) = Store::open(&path, 0).unwrap();
    let learned = store.learned(0).await.unwrap();
    let load_times = [("b".to_owned(), vec![2, 3, 4, 5, 6]), ("a".to_owned(), vec![5])];
    assert_eq!(learned.load_times, load_times);
    let gaps: Vec<Option<i64>> =
        (8..40).map(|number| (number % 2 == 0).then_some(number)).collect();
    assert_eq!(learned.gaps, [("g".to_owned(), gaps)]);
    assert_eq!(learned.fits, [("a b".to_owned(), false), ("a c".to_owned(), true)]);
    let a_week_later = store.learned(8 * 24 * 60 * 60 * 1_000).await.unwrap();
    assert_eq!(a_week_later.fits, [("a c".to_owned(), true)], "a misfit is tried again");
    store.forget_fits().await.unwrap();
    assert_eq!(store.learned(0).await.unwrap().fits, []);
}

/// Names that a client can make up (addresses, options) must not fill the disk; the newest is kept even when the clock was
/// set back, or nothing new could be learned.
#[tokio::test]
async fn what_is_learned_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let tables = [("load_time", 1_000), ("gap", 10_000)];
    for (table, rows) in tables {
        let sql = format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})
             INSERT INTO {table}(name, recent, at_ms) SELECT 'name ' || n, '[1]', 100 + n FROM n"
        );
        store.write(Durability::Process, move |tx| Ok(tx.execute(&sql, [])?)).await.unwrap();
    }
    for number in 1..=1_000 {
        store.keep_fit(format!("name {number}"), true, 100 + number).await.unwrap();
    }
    store.keep_load_time("new".to_owned(), 2, 1).await.unwrap();
    store.keep_gap("new".to_owned(), None, 1).await.unwrap();
    store.keep_fit("new".to_owned(), false, 1).await.unwrap();
    let learned = store.learned(0).await.unwrap();
    assert_eq!(
        (learned.load_times.len(), learned.gaps.len(), learned.fits.len()),
        (1_000, 10_000, 1_000)
    );
    assert_eq!(
        learned.load_times[..2],
        [("new".to_owned(), vec![2]), ("name 2".to_owned(), vec![1])]
    );
    assert_eq!(learned.gaps[1].0, "name 2");
    assert_eq!(learned.fits[..2], [("new".to_owned(), false), ("name 2".to_owned(), true)]);
}

#[tokio::test]
async fn gaps_of_clients_not_seen_for_a_month_are_swept() {
    const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    store.keep_gap("gone".to_owned(), Some(1), DAY_MS).await.unwrap();
    store.keep_gap("here".to_owned(), Some(2), 3 * DAY_MS).await.unwrap();
    store.sweep(before(0), 32 * DAY_MS).await.unwrap();
    let learned = store.learned(0).await.unwrap();
    assert_eq!(learned.gaps, [("here".to_owned(), vec![Some(2)])]);
}

/// A text that somebody else wrote is begun anew.
#[tokio::test]
async fn learned_values_that_cannot_be_read_are_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let sql = "INSERT INTO gap(name, recent, at_ms) VALUES ('g', 'klingon', 1)";
    store.write(Durability::Process, |tx| Ok(tx.execute(sql, [])?)).await.unwrap();
    assert_eq!(store.learned(0).await.unwrap().gaps, [("g".to_owned(), vec![])]);
    store.keep_gap("g".to_owned(), Some(5), 2).await.unwrap();
    assert_eq!(store.learned(0).await.unwrap().gaps, [("g".to_owned(), vec![Some(5)])]);
}

/// A database of the first version, with a job in each kind of state, is brought to the newest with nothing lost.
#[tokio::test]
async fn a_database_of_the_first_version_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    {
        let connection = Connection::open(&path).unwrap();
        schema::prepare(&connection).unwrap();
        connection.execute_batch(schema::MIGRATIONS[0]).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        let insert = |id: &str, class: &str, state: &str, times: (i64, Option<i64>)| {
            let sql = "INSERT INTO job(id, dialect, kind, lane, model, class, is_streamed, state, request_bytes,
                           created_at_ms, not_before_ms, claimed_at_ms, working_at_ms, finished_at_ms, lease_epoch)
                       VALUES (?1, 'chat', 'run', 'a', 'a', ?2, 1, ?3, 2, 100, ?4, 150, 160, ?5, 1)";
            connection.execute(sql, rusqlite::params![id, class, state, times.0, times.1]).unwrap();
            let seq = connection.last_insert_rowid();
            let sql = "INSERT INTO request(seq, path_and_query, headers, body) VALUES (?1, '/api/chat?a', '[]', X'7B7D')";
            connection.execute(sql, [seq]).unwrap();
        };
        let id = |number: u128| Ulid::from(number).to_string();
        insert(&id(1), "interactive", "done", (0, Some(200)));
        insert(&id(2), "interactive", "queued", (0, None));
        insert(&id(3), "batch", "queued", (400, None));
        insert(&id(4), "interactive", "queued", (9_000, None));
        insert(&id(5), "normal", "working", (0, None));
        insert(&id(6), "normal", "cancelled", (0, Some(210)));
    }
    let (store, recovered) = Store::open(&path, 500).unwrap();
    assert_eq!(recovered, Recovered { requeued: 1, waiting: 3, ..Recovered::default() });
    let lanes = store.waiting_lanes(500).await.unwrap();
    let head = Some(WaitingHead { seq: 2, ready_at_ms: 100 });
    let expected = WaitingLane { lane: "a".to_owned(), class: Class::Batch, jobs: 4, head };
    assert_eq!(lanes, [expected]);
    assert_eq!(store.next_ready_at_ms(500).await.unwrap(), Some(9_000));
    let ran = store.finished_jobs(10).await.unwrap();
    assert_eq!(ran.len(), 1);
    assert_eq!((ran[0].seq, ran[0].ready_at_ms, ran[0].path.as_str()), (1, 100, "/api/chat"));
    for seq in [2, 3, 5] {
        assert_eq!(claim(&store, "a", 600).await.seq, seq);
    }
    assert!(try_claim(&store, "a", 600).await.is_none());
    assert_eq!(claim(&store, "a", 9_000).await.seq, 4);
    store.close().await;
    drop(store);
    let version = Connection::open(&path)
        .unwrap()
        .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        .unwrap();
    assert_eq!(version, 3);
}

/// A step of a random life.
#[derive(Debug, Clone)]
enum Step {
    Admit { lane: &'static str, class: Class },
    Claim { lane: &'static str },
    Finish,
    GiveBack { delay_ms: i64 },
    CancelWaiting { index: usize },
    Sweep,
    Wait { ms: i64 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let lane = prop::sample::select(vec!["a", "b", "c"]);
    let class = prop::sample::select(Class::ALL.to_vec());
    prop_oneof![
        8 => (lane.clone(), class).prop_map(|(lane, class)| Step::Admit { lane, class }),
        4 => lane.prop_map(|lane| Step::Claim { lane }),
        2 => Just(Step::Finish),
        3 => (0_i64..3).prop_map(|some| Step::GiveBack { delay_ms: some * 1_000 }),
        2 => (0_usize..20).prop_map(|index| Step::CancelWaiting { index }),
        1 => Just(Step::Sweep),
        2 => (0_i64..1_500).prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::Reopen),
    ]
}

/// A store with what its user knows of it.
struct Life {
    store: Store,
    path: PathBuf,
    ids: Vec<JobId>,
    claims: Vec<Claim>,
    now_ms: i64,
}

impl Life {
    async fn take(&mut self, step: Step) {
        self.now_ms += 1;
        let now_ms = self.now_ms;
        match step {
            Step::Admit { lane, class } => {
                let job = of_class(lane, class);
                self.ids.push(job.id);
                admit(&self.store, job, now_ms).await;
            }
            Step::Claim { lane } => {
                self.claims.extend(try_claim(&self.store, lane, now_ms).await);
            }
            Step::Finish => {
                let Some(taken) = self.claims.pop() else { return };
                let finished = self.store.finish(taken.seq, taken.lease_epoch, done(), now_ms);
                assert!(finished.await.unwrap());
            }
            Step::GiveBack { delay_ms } => {
                let Some(taken) = self.claims.pop() else { return };
                let back = GiveBack {
                    charge: Charge::Attempt,
                    not_before_ms: now_ms + delay_ms,
                    error: String::new(),
                    at_ms: now_ms,
                };
                let given = self.store.give_back(taken.seq, taken.lease_epoch, back);
                assert_eq!(given.await.unwrap(), GaveBack::Queued);
            }
            Step::CancelWaiting { index } => {
                let Some(id) = self.ids.get(index) else { return };
                self.store.cancel_waiting(*id, now_ms).await.unwrap();
            }
            Step::Sweep => drop(self.store.sweep(before(now_ms), now_ms).await.unwrap()),
            Step::Wait { ms } => self.now_ms += ms,
            Step::Reopen => {
                self.store.close().await;
                self.claims.clear();
                // The old one first: it holds the lock.
                let elsewhere = self.path.with_extension("other");
                self.store = Store::open(&elsewhere, now_ms).unwrap().0;
                self.store = Store::open(&self.path, now_ms).unwrap().0;
            }
        }
    }

    /// What waits, by reading every job.
    async fn recount(&self) -> Vec<WaitingLane> {
        type Row = (String, String, i64, i64, i64, i64);
        let now_ms = self.now_ms;
        let rows: Vec<Row> = self
            .store
            .read(|tx| {
                let sql = "SELECT lane, class, seq, not_before_ms, ready_at_ms, created_at_ms FROM job NOT INDEXED
                           WHERE state = 'queued' ORDER BY seq";
                let mut statement = tx.prepare(sql)?;
                let rows = statement.query_map([], |row| row.try_into())?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
            .unwrap();
        let mut found: Vec<WaitingLane> = Vec::new();
        for (lane, class, seq, not_before_ms, ready_at_ms, created_at_ms) in rows {
            assert!(ready_at_ms >= created_at_ms && ready_at_ms >= not_before_ms);
            let class = Class::from_name(&class).unwrap();
            let head = (not_before_ms <= now_ms).then_some(WaitingHead { seq, ready_at_ms });
            match found.iter_mut().find(|known| known.lane == lane && known.class == class) {
                Some(known) => {
                    known.jobs += 1;
                    known.head = known.head.or(head);
                }
                None => found.push(WaitingLane { lane, class, jobs: 1, head }),
            }
        }
        found.sort_by_key(|entry| (entry.lane.clone(), entry.class.name()));
        found
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// After any life what is counted and led by is what a full recount finds, before and after delays are ended.
    #[test]
    fn what_waits_agrees_with_a_recount_after_any_life(steps in prop::collection::vec(step(), 1..50)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let store = Store::open(&path, 0).unwrap().0;
        let mut life = Life { store, path, ids: Vec::new(), claims: Vec::new(), now_ms: 0 };
        for step in steps {
            runtime.block_on(life.take(step));
        }
        let recounted = runtime.block_on(life.recount());
        let shown = runtime.block_on(life.store.overview(100)).unwrap();
        prop_assert_eq!(&runtime.block_on(life.store.waiting_lanes(life.now_ms)).unwrap(), &recounted);
        prop_assert_eq!(runtime.block_on(life.recount()), recounted.clone());
        let depth: u64 = recounted.iter().map(|lane| lane.jobs).sum();
        prop_assert_eq!(shown.lanes.iter().map(|lane| lane.depth).sum::<u64>(), depth);
        for lane in &shown.lanes {
            let first = shown.waiting.iter().find(|job| job.lane == lane.lane).unwrap();
            prop_assert_eq!(lane.oldest_seq, first.seq);
            prop_assert_eq!(lane.oldest_at_ms, first.created_at_ms);
        }
    }
}
