//! What waits: in which order, by which class, and what a clock that is set does to it.

use super::*;

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
    let shown = store.overview(Vec::new(), 10).await.unwrap();
    let classes: Vec<&str> = shown.waiting.iter().map(|job| job.class.as_str()).collect();
    assert_eq!(classes, ["interactive", "batch", "batch", "batch", "batch"]);
    for seq in [young, seqs[0], seqs[1], seqs[2], seqs[3]] {
        assert_eq!(claim(&store, "a", 5).await.seq, seq);
    }
    // One of them that comes back is batch, too.
    let given = store.give_back(seqs[0], 1, back(Charge::Nothing, 0)).await;
    assert_eq!(given.unwrap(), GaveBack::Queued);
    assert_eq!(waiting(&store, 5).await, [entry("a", Class::Batch, 1, Some(seqs[0]))]);
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
    let lane = &store.overview(Vec::new(), 10).await.unwrap().lanes[0];
    assert_eq!((lane.depth, lane.delayed, lane.oldest_seq), (2, 1, delayed.seq));
    let lanes = store.waiting_lanes(1_500).await.unwrap();
    assert_eq!(lanes[0].head, Some(WaitingHead { seq: at_once.seq, ready_at_ms: 3 }));
    assert_eq!(store.next_ready_at_ms().await.unwrap(), None);
    assert_eq!(store.overview(Vec::new(), 10).await.unwrap().lanes[0].delayed, 0);
    assert_eq!(claim(&store, "a", 1_500).await.seq, delayed.seq, "by arrival");
    let head = store.waiting_lanes(1_500).await.unwrap()[0].head;
    assert_eq!(head, Some(WaitingHead { seq: at_once.seq, ready_at_ms: 3 }));
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
    let shown = store.overview(Vec::new(), 2).await.unwrap();
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
    assert_eq!(listed, [(oldest + 1, "normal"), (oldest, "batch")]);
    let live: Vec<(i64, &str)> =
        shown.live.iter().map(|job| (job.seq, job.class.as_str())).collect();
    assert_eq!(live, [(running, "normal")]);
}
