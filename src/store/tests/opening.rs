//! What an opening finds: jobs in flight, another daemon, another version.

use ulid::Ulid;

use super::*;
use crate::domain::retry::INTERRUPTIONS_MAX;

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

/// One that is started while the last one ends, or while a child of it still has its files, is not turned away.
#[tokio::test]
async fn a_lock_that_is_about_to_go_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (store, _) = Store::open(&path, 0).unwrap();
    store.close().await;
    let held = lock::Lock::take(&path);
    assert!(held.is_err(), "the store still has it");
    let (waits, waiting) = std::sync::mpsc::channel();
    let taker = std::thread::spawn({
        let path = path.clone();
        move || {
            waits.send(()).unwrap();
            lock::Lock::take(&path).is_ok()
        }
    });
    waiting.recv().unwrap();
    drop(store);
    assert!(taker.join().unwrap());
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
    assert_eq!(store.next_ready_at_ms().await.unwrap(), Some(9_000));
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
    assert_eq!(usize::try_from(version).unwrap(), schema::MIGRATIONS.len());
}

/// A database of the second version: jobs in each state, some of them demoted by the number of an opening alone, one put off
/// for a retry, one in flight. Nothing is lost, and what nobody waits for any more is batch.
#[tokio::test]
async fn a_database_of_the_second_version_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let id = |number: u128| JobId(Ulid::from(number));
    make_second_version(&path, &|number| id(number).to_string());
    let (store, recovered) = Store::open(&path, 500).unwrap();
    assert_eq!(recovered, Recovered { requeued: 2, waiting: 4, ..Recovered::default() });
    let lanes = store.waiting_lanes(500).await.unwrap();
    let head = Some(WaitingHead { seq: 1, ready_at_ms: 100 });
    assert_eq!(lanes, [WaitingLane { lane: "a".to_owned(), class: Class::Batch, jobs: 6, head }]);
    assert_eq!(store.next_ready_at_ms().await.unwrap(), Some(9_000));
    for (number, state) in (1..).zip(SECOND.map(|(_, state, _)| state)) {
        let Sought::There((job, _)) = store.job(id(number)).await.unwrap() else {
            panic!("job {number} is lost")
        };
        let is_open = matches!(state, "queued" | "loading" | "working");
        assert_eq!(job.state.name(), if is_open { "queued" } else { state }, "job {number}");
        assert_eq!(
            (job.is_async, job.path.as_str(), job.queued_at_ms > 0),
            (false, "/api/chat", true)
        );
        let class = if is_open { Class::Batch } else { Class::Interactive };
        assert_eq!(job.class, class, "job {number}");
    }
    let (path_and_query, body) = store.request(id(1)).await.unwrap().unwrap();
    assert_eq!((path_and_query.as_str(), body.as_slice()), ("/api/chat?a", b"{}".as_slice()));
    assert_eq!(
        store.answer(id(7)).await.unwrap().unwrap().body,
        AnswerBody::Inline(Bytes::from_static(b"whole"))
    );
    let learned = store.learned(500).await.unwrap();
    assert_eq!(learned.load_times, [("a".to_owned(), vec![7])]);
    for seq in [1, 2, 3, 5, 6] {
        assert_eq!(claim(&store, "a", 600).await.seq, seq);
    }
    assert!(try_claim(&store, "a", 600).await.is_none());
    assert_eq!(claim(&store, "a", 9_000).await.seq, 4);
    assert_eq!(store.waiting_lanes(9_000).await.unwrap(), []);
    let before = EndedBefore { over_ms: 1_000, failed_ms: 0 };
    assert_eq!(store.sweep(before, 1_000).await.unwrap().jobs, 2);
    assert_eq!(store.job(id(7)).await.unwrap(), Sought::Purged);
    assert!(
        matches!(store.job(id(8)).await.unwrap(), Sought::There(_)),
        "a failed one stays longer"
    );
}

/// Class, state, not before. The first two were there at the last opening.
const SECOND: [(&str, &str, i64); 9] = [
    ("interactive", "queued", 0),
    ("normal", "queued", 0),
    ("interactive", "queued", 0),
    ("normal", "queued", 9_000),
    ("normal", "loading", 0),
    ("interactive", "working", 0),
    ("interactive", "done", 0),
    ("interactive", "failed", 0),
    ("interactive", "cancelled", 0),
];

fn make_second_version(path: &Path, id: &dyn Fn(u128) -> String) {
    let connection = Connection::open(path).unwrap();
    schema::prepare(&connection).unwrap();
    for sql in &schema::MIGRATIONS[..2] {
        connection.execute_batch(sql).unwrap();
    }
    connection.pragma_update(None, "user_version", 2).unwrap();
    for (number, (class, state, not_before_ms)) in (1_u128..).zip(SECOND) {
        let sql = "INSERT INTO job(id, dialect, kind, lane, model, class, path, is_streamed, state, request_bytes,
                       created_at_ms, ready_at_ms, not_before_ms, claimed_at_ms, working_at_ms, finished_at_ms, lease_epoch)
                   VALUES (?1, 'chat', 'run', 'a', 'a', ?2, '/api/chat', 1, ?3, 2, 100, MAX(100, ?4), ?4, 150, 160, ?5, 1)";
        let ended_at_ms = matches!(state, "done" | "failed" | "cancelled").then_some(200);
        let values = rusqlite::params![id(number), class, state, not_before_ms, ended_at_ms];
        connection.execute(sql, values).unwrap();
        let seq = connection.last_insert_rowid();
        let sql = "INSERT INTO transition(seq, from_state, to_state, lease_epoch, at_ms) VALUES (?1, NULL, ?2, 1, 100)";
        connection.execute(sql, rusqlite::params![seq, state]).unwrap();
        let sql = "INSERT INTO request(seq, path_and_query, headers, body) VALUES (?1, '/api/chat?a', '[]', X'7B7D')";
        connection.execute(sql, [seq]).unwrap();
        if number == 2 {
            // As an opening of the second version demotes: by one number, and by what was counted.
            let sql = "UPDATE opening SET seq = 2;
                       DELETE FROM waiting; INSERT INTO waiting(lane, class, jobs, delayed) VALUES ('a', 'batch', 2, 0)";
            connection.execute_batch(sql).unwrap();
        }
    }
    let sql = "INSERT INTO answer(seq, status, headers, bytes, body) VALUES (7, 200, '[]', 5, CAST('whole' AS BLOB));
               INSERT INTO load_time(name, recent, at_ms) VALUES ('a', '[7]', 100)";
    connection.execute_batch(sql).unwrap();
}
