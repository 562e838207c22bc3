//! What is kept of ended jobs, and for how long.

use bytes::Bytes;

use super::*;

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

/// Where all jobs were dropped by hand, none was left to sweep, and what is remembered of them grew without end.
#[tokio::test]
async fn what_is_remembered_of_jobs_dropped_by_hand_is_forgotten_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let many = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100010)
                INSERT INTO purged(id) SELECT printf('%026d', n) FROM n";
    store.write(Durability::Process, move |tx| Ok(tx.execute(many, [])?)).await.unwrap();
    assert_eq!(store.sweep(before(0), 0).await.unwrap(), Swept::default());
    let count = "SELECT COUNT(*) FROM purged";
    let kept: i64 =
        store.read(move |tx| Ok(tx.query_row(count, [], |row| row.get(0))?)).await.unwrap();
    assert!((100_000..=100_001).contains(&kept), "{kept}");
}
