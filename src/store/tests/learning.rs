//! What was learned, over restarts and within bounds.

use super::*;

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
