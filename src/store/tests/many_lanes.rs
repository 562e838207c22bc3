//! A decision looks at few lanes of many: those it could choose, and as few of thousands as of hundreds.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::domain::learning::Held;
use crate::domain::model::LoadKey;

const LIMITS: QueueLimits =
    QueueLimits { jobs_max: 100_000, bytes_max: 100_000_000, class_max: [None; 3] };

/// Jobs handed in with one write.
const AT_ONCE: usize = 250;

/// By [`Class::ALL`].
const MAX_WAIT_MS: [i64; 3] = [120_000, 600_000, 21_600_000];

fn lane(number: usize) -> String {
    format!("m:latest num_ctx={}", 1_000 + number)
}

fn of(number: usize, class: Class, owner: &str) -> NewJob {
    let extras = Extras { is_async: true, owner: owner.to_owned(), ..Extras::default() };
    NewJob { client: owner.to_owned(), extras, ..of_class(&lane(number), class) }
}

/// A store in which a batch job waits for each of so many keys, the later the number the later.
async fn with_lanes(count: usize) -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let numbers: Vec<usize> = (0..count).collect();
    for numbers in numbers.chunks(AT_ONCE) {
        let jobs = numbers.iter().map(|number| of(*number, Class::Batch, "")).collect();
        let at_ms = i64::try_from(numbers[0]).unwrap();
        let admitted = store.admit_all(jobs, LIMITS, at_ms).await.unwrap();
        assert!(admitted.iter().all(|one| matches!(one, Admission::Admitted { .. })));
    }
    (folder, store)
}

async fn view(store: &Store, of: ViewOf) -> BTreeMap<String, Vec<WaitingLane>> {
    let view = store.lanes_in_view(9_000, of).await.unwrap();
    assert_eq!(view.extent, Extent::Part);
    let mut by_lane: BTreeMap<String, Vec<WaitingLane>> = BTreeMap::new();
    for waiting in view.lanes {
        by_lane.entry(waiting.lane.clone()).or_default().push(waiting);
    }
    by_lane
}

fn holding(number: usize) -> ViewOf {
    let key: LoadKey = lane(number).parse().unwrap();
    let held = Held { model: key.model.clone(), key: Some(key), is_embedder: false };
    ViewOf { held: vec![held], ..ViewOf::default() }
}

/// Counts, not times: the rows that a decision reads are as many with eight times the lanes.
#[tokio::test]
async fn a_decision_looks_at_as_few_of_many_lanes_as_of_some() {
    let mut seen = Vec::new();
    for count in [250, 2_000] {
        let (_folder, store) = with_lanes(count).await;
        // Three of one key that came last, an urgent one, and more that wait for the first.
        for number in [count - 2, count - 2, 0] {
            store.admit(of(number, Class::Batch, ""), LIMITS, 5_000).await.unwrap();
        }
        store.admit(of(count - 3, Class::Interactive, ""), LIMITS, 6_000).await.unwrap();
        let view = view(&store, holding(count - 1)).await;
        for (number, why) in [(0, "first"), (15, "first"), (count - 1, "resident")]
            .into_iter()
            .chain([(count - 2, "most jobs"), (count - 3, "urgent")])
        {
            assert!(view.contains_key(&lane(number)), "{why} of {count}");
        }
        assert_eq!(view[&lane(count - 3)].len(), 2, "a lane is seen as a whole");
        assert_eq!(view[&lane(count - 2)][0].jobs, 3);
        seen.push(view.len());
    }
    assert!(seen[1] <= seen[0] && seen[0] <= 64, "{seen:?}");
}

/// Sixteen keys that cannot be loaded would hide all others; but until when they are barred counts too.
#[tokio::test]
async fn others_are_seen_behind_lanes_that_may_not_be_loaded() {
    let (_folder, store) = with_lanes(250).await;
    let barred: BTreeSet<String> = (0..60).map(lane).collect();
    let view = view(&store, ViewOf { barred, ..ViewOf::default() }).await;
    assert!(view.contains_key(&lane(60)) && view.contains_key(&lane(75)), "{:?}", view.keys());
    assert!(view.contains_key(&lane(0)));
}

#[tokio::test]
async fn others_are_seen_behind_lanes_of_an_owner_at_its_cap() {
    let (_folder, store) = with_lanes(200).await;
    for number in 0..100 {
        assert!(try_claim(&store, &lane(number), 500).await.is_some());
        store.admit(of(number, Class::Batch, "alice"), LIMITS, 0).await.unwrap();
    }
    assert!(try_claim(&store, &lane(7), 500).await.is_some_and(|claim| claim.seq > 200));
    let cap = Cap { queued_max: None, in_flight_max: Some(1) };
    store.keep_caps(Caps::from([("alice".to_owned(), cap)]));
    let view = view(&store, ViewOf::default()).await;
    let ready = view.values().flatten().filter(|waiting| waiting.head.is_some());
    let ready: Vec<&str> = ready.map(|waiting| waiting.lane.as_str()).collect();
    assert!(ready.contains(&lane(100).as_str()) && ready.len() >= 16, "{ready:?}");
}

/// What is shown of the order agrees with what a look at all lanes tells.
#[tokio::test]
async fn what_is_due_before_a_lane_is_all_that_is_due_before_it() {
    let (_folder, store) = with_lanes(250).await;
    for (number, class) in [(200, Class::Interactive), (120, Class::Normal), (30, Class::Batch)] {
        store.admit(of(number, class, ""), LIMITS, 700).await.unwrap();
    }
    let mut due: BTreeMap<String, (i64, i64, u64)> = BTreeMap::new();
    for waiting in store.waiting_lanes(9_000).await.unwrap() {
        let head = waiting.head.unwrap();
        let class = Class::ALL.iter().position(|class| *class == waiting.class).unwrap();
        let due_at_ms = head.ready_at_ms + MAX_WAIT_MS[class];
        let first = due.entry(waiting.lane).or_insert((i64::MAX, 0, 0));
        let jobs = first.2 + waiting.jobs;
        let (due_at_ms, seq) = (due_at_ms, head.seq).min((first.0, first.1));
        *first = (due_at_ms, seq, jobs);
    }
    let mut order: Vec<(&String, &(i64, i64, u64))> = due.iter().collect();
    order.sort_by_key(|(_, due)| **due);
    let shown = store.lanes_by_due(MAX_WAIT_MS, 240).await.unwrap();
    let expected: Vec<&String> = order.iter().take(240).map(|(lane, _)| *lane).collect();
    assert_eq!(shown.iter().collect::<Vec<_>>(), expected);
    let mut jobs = 0;
    for (lanes, (lane, (due_at_ms, seq, own))) in (0..).zip(order) {
        if lanes % 25 == 0 {
            let before = store.due_before(lane.clone(), MAX_WAIT_MS).await.unwrap();
            let due = (*due_at_ms, *seq);
            assert_eq!(before, Some(DueBefore { due, lanes, jobs }), "{lane}");
        }
        jobs += own;
    }
    assert_eq!(store.due_before("m:latest".to_owned(), MAX_WAIT_MS).await.unwrap(), None);
}

/// The overview stays of one size, and says how much it leaves out.
#[tokio::test]
async fn an_overview_of_many_lanes_is_bounded_and_counts_them_all() {
    let (_folder, store) = with_lanes(250).await;
    let order = store.lanes_by_due(MAX_WAIT_MS, 100).await.unwrap();
    let shown = store.overview(order, 100).await.unwrap();
    assert_eq!((shown.lanes.len(), shown.lanes_more, shown.depth), (100, 150, 250));
    let lanes: Vec<&str> = shown.waiting.iter().map(|job| job.lane.as_str()).collect();
    let first: Vec<String> = (0..100).map(lane).collect();
    assert_eq!(lanes, first.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(shown.lanes.iter().all(|lane| lanes.contains(&lane.lane.as_str())));
}
