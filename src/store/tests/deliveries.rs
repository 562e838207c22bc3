//! The promises of the outbox, on a real database.

use super::plans::plan;
use super::*;
use crate::domain::job::State;
use crate::store::outbox;

async fn opened() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    (folder, store)
}

fn told(receiver: &str) -> NewJob {
    let webhook = Webhook { url: format!("{receiver}/hook"), receiver: receiver.to_owned() };
    let extras = Extras {
        is_async: true,
        webhook: Some(webhook),
        metadata: Some(r#"{"a":1}"#.to_owned()),
        ..Extras::default()
    };
    NewJob { extras, ..job("a") }
}

/// A job that is done, with three deliveries owed; its id and their numbers.
async fn done_job(store: &Store, receiver: &str) -> (JobId, Vec<i64>) {
    let job = told(receiver);
    store.admit(job.clone(), LIMITS, 1).await.unwrap();
    let taken = claim(store, "a", 2).await;
    assert!(store.finish(taken.seq, taken.lease_epoch, done(), 3).await.unwrap());
    let listed = of_job(store, job.id).await;
    (job.id, listed.into_iter().map(|delivery| delivery.event).collect())
}

async fn of_job(store: &Store, id: JobId) -> Vec<DeliveryView> {
    let which = WhichDeliveries { of: Some(id), ..Default::default() };
    store.deliveries(which, None, 100).await.unwrap().deliveries
}

async fn due(store: &Store, now_ms: i64) -> Vec<Try> {
    let owed = store.owed(now_ms, 8).await.unwrap();
    owed.into_iter().flat_map(|owed| owed.due).collect()
}

fn first(event: i64) -> Try {
    Try { event, tries: 0 }
}

fn failed(status: u16) -> Undelivered {
    Undelivered { status: Some(status), error: format!("the receiver answered {status}") }
}

#[tokio::test]
async fn the_changes_of_a_job_are_due_one_after_the_other() {
    let (_folder, store) = opened().await;
    let (id, events) = done_job(&store, "http://a:1").await;
    for (event, now_ms) in events.iter().zip(10..) {
        assert_eq!(due(&store, now_ms).await, [first(*event)]);
        assert!(store.delivered(first(*event), 204, now_ms).await.unwrap());
        assert!(!store.delivered(first(*event), 204, now_ms).await.unwrap(), "only once");
    }
    assert!(store.owed(100, 8).await.unwrap().is_empty());
    let listed = of_job(&store, id).await;
    let told: Vec<_> = listed.iter().map(|told| (told.sequence, told.to, told.state)).collect();
    let delivered = DeliveryState::Delivered;
    let wanted = [State::Queued, State::Working, State::Done];
    assert_eq!(
        told,
        [(1, wanted[0], delivered), (2, wanted[1], delivered), (3, wanted[2], delivered)]
    );
}

#[tokio::test]
async fn a_failed_try_waits_and_a_dead_delivery_makes_way() {
    let (_folder, store) = opened().await;
    let (id, events) = done_job(&store, "http://a:1").await;
    assert!(store.put_off_delivery(first(events[0]), failed(500), 1_000).await.unwrap());
    assert!(!store.put_off_delivery(first(events[0]), failed(500), 9_000).await.unwrap());
    let owed = store.owed(999, 8).await.unwrap();
    assert_eq!((owed[0].due.as_slice(), owed[0].next_at_ms), ([].as_slice(), Some(1_000)));
    let second = Try { event: events[0], tries: 1 };
    assert_eq!(due(&store, 1_000).await, [second]);
    assert!(store.give_delivery_up(second, failed(410), 1_001).await.unwrap());
    assert_eq!(due(&store, 1_001).await, [first(events[1])]);
    let listed = of_job(&store, id).await;
    assert_eq!(
        (listed[0].state, listed[0].tries, listed[0].last_status),
        (DeliveryState::Dead, 2, Some(410))
    );
    assert_eq!(listed[2].next_at_ms, None, "the last one waits for the one before it");
    let counts = store.delivery_counts().await.unwrap();
    assert_eq!(counts, DeliveryCounts { pending: 2, dead: 1 });
}

#[tokio::test]
async fn a_job_is_swept_once_it_owes_only_dead_deliveries() {
    let (_folder, store) = opened().await;
    let (_, events) = done_job(&store, "http://a:1").await;
    store.delivered(first(events[0]), 200, 10).await.unwrap();
    store.delivered(first(events[1]), 200, 10).await.unwrap();
    assert_eq!(store.sweep(before(100), 100).await.unwrap().jobs, 0);
    store.give_delivery_up(first(events[2]), failed(500), 10).await.unwrap();
    assert_eq!(store.sweep(before(100), 100).await.unwrap().jobs, 1);
    assert_eq!(store.resend(events[2], 200).await.unwrap(), Resending::Unknown);
}

#[tokio::test]
async fn one_sent_again_by_hand_goes_before_the_later_ones_of_its_job() {
    let (_folder, store) = opened().await;
    let (id, events) = done_job(&store, "http://a:1").await;
    store.give_delivery_up(first(events[0]), failed(500), 10).await.unwrap();
    let in_flight = due(&store, 11).await[0];
    assert_eq!(in_flight.event, events[1]);
    assert_eq!(store.resend(events[0], 12).await.unwrap(), Resending::Again);
    assert_eq!(store.resend(events[0], 12).await.unwrap(), Resending::Pending);
    assert_eq!(due(&store, 13).await, [first(events[0])]);
    // The try that was under way is over meanwhile, and failed: it stays behind.
    assert!(store.put_off_delivery(in_flight, failed(500), 14).await.unwrap());
    assert_eq!(due(&store, 20).await, [first(events[0])]);
    store.delivered(first(events[0]), 200, 21).await.unwrap();
    assert_eq!(due(&store, 21).await, [Try { event: events[1], tries: 1 }]);
    store.give_delivery_up(Try { event: events[1], tries: 1 }, failed(500), 22).await.unwrap();
    store.give_delivery_up(first(events[2]), failed(500), 22).await.unwrap();
    let dead = WhichDeliveries { state: Some(DeliveryState::Dead), ..Default::default() };
    let page = store.deliveries(dead.clone(), None, 1).await.unwrap();
    assert!(page.has_more && page.deliveries[0].event == events[1]);
    let page = store.deliveries(dead, Some(events[1]), 1).await.unwrap();
    assert!(!page.has_more && page.deliveries[0].event == events[2]);
    let resent = store.resend_dead(None, 30).await.unwrap();
    assert_eq!(resent, ManyResent { count: 2, has_more: false });
    assert_eq!(due(&store, 30).await, [first(events[1])]);
    assert_eq!(of_job(&store, id).await[2].next_at_ms, None);
}

#[tokio::test]
async fn a_delivery_tells_all_of_its_change() {
    let (_folder, store) = opened().await;
    let (id, events) = done_job(&store, "http://a:1").await;
    let last = store.telling(first(events[2])).await.unwrap().unwrap();
    assert_eq!((last.transition.id, last.sequence, last.transition.attempt), (id, 3, 1));
    assert_eq!((last.transition.from, last.transition.to), (Some(State::Working), State::Done));
    assert_eq!(
        (last.url.as_str(), last.metadata.as_deref()),
        ("http://a:1/hook", Some(r#"{"a":1}"#))
    );
    assert!(last.answer.is_some());
    assert!(store.telling(first(events[0])).await.unwrap().unwrap().answer.is_none());
    assert!(store.telling(Try { event: events[0], tries: 1 }).await.unwrap().is_none());
    store.delivered(first(events[0]), 200, 9).await.unwrap();
    assert!(store.telling(first(events[0])).await.unwrap().is_none());
    store.admit(told("http://a:1"), LIMITS, 10).await.unwrap();
    let taken = claim(&store, "a", 11).await;
    let ending = Ending { error_status: Some(404), ..Ending::failed("no such model".to_owned()) };
    store.finish(taken.seq, taken.lease_epoch, ending, 12).await.unwrap();
    let listed = of_job(&store, taken.id).await;
    let tellings: Vec<_> = futures_of(&store, &listed).await;
    assert_eq!(
        tellings,
        [(None, None), (None, None), (Some("no such model".to_owned()), Some(404))]
    );
}

async fn futures_of(store: &Store, listed: &[DeliveryView]) -> Vec<(Option<String>, Option<u16>)> {
    let mut told = Vec::new();
    for delivery in listed {
        let telling = store.telling(first(delivery.event)).await.unwrap().unwrap();
        told.push((telling.transition.note, telling.error_status));
    }
    told
}

/// One receiver with very many due deliveries does not hide another, and finding both takes a jump in the index for each.
#[tokio::test]
async fn a_receiver_that_is_owed_much_hides_no_other() {
    let (_folder, store) = opened().await;
    done_job(&store, "http://a:1").await;
    let many = "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 100000)";
    let sql = format!(
        "{many} INSERT INTO transition(seq, from_state, to_state, lease_epoch, at_ms) SELECT 1, NULL, 'queued', 0, n FROM number;
         INSERT INTO delivery(event, seq, sequence, url, receiver, next_at_ms)
         SELECT event, seq, event, 'http://a:1/', 'http://a:1', 1 FROM transition WHERE event > 100"
    );
    store.write(Durability::Process, move |tx| Ok(tx.execute_batch(&sql)?)).await.unwrap();
    let (_, events) = done_job(&store, "http://b:1").await;
    let owed = store.owed(50, 8).await.unwrap();
    let receivers: Vec<_> =
        owed.iter().map(|owed| (owed.receiver.as_str(), owed.due.len())).collect();
    assert_eq!(receivers, [("http://a:1", 8), ("http://b:1", 1)]);
    assert_eq!(owed[1].due, [first(events[0])]);
    for (sql, wanted) in [
        (
            outbox::DUE,
            "SEARCH delivery USING INDEX delivery_due (receiver=? AND next_at_ms>? AND next_at_ms<?)",
        ),
        (
            outbox::NEXT,
            "SEARCH delivery USING COVERING INDEX delivery_due (receiver=? AND next_at_ms>?)",
        ),
        (outbox::COUNT_PENDING, "SCAN delivery USING COVERING INDEX delivery_pending"),
        (outbox::COUNT_DEAD, "SCAN delivery USING COVERING INDEX delivery_dead"),
    ] {
        assert_eq!(plan(&store, sql).await, [wanted], "{sql}");
    }
    let receivers = plan(&store, outbox::RECEIVERS).await;
    let touching: Vec<_> = receivers.iter().filter(|step| step.contains(" delivery ")).collect();
    assert_eq!(
        touching,
        [
            "SCAN delivery USING COVERING INDEX delivery_due",
            "SEARCH delivery USING COVERING INDEX delivery_due (receiver>?)"
        ],
        "{receivers:#?}"
    );
    assert!(!receivers.iter().any(|step| step.contains("TEMP B-TREE")), "{receivers:#?}");
}

#[tokio::test]
async fn the_sender_is_told_of_changes_that_are_owed_and_of_no_others() {
    let (_folder, store) = opened().await;
    store.admit(job("b"), LIMITS, 1).await.unwrap();
    // What the writer tells, it tells before the next write.
    store.clamp_ready(1).await.unwrap();
    let told_now =
        async || tokio::time::timeout(std::time::Duration::ZERO, store.owing()).await.is_ok();
    assert!(!told_now().await);
    store.admit(told("http://a:1"), LIMITS, 1).await.unwrap();
    store.clamp_ready(1).await.unwrap();
    assert!(told_now().await);
    assert!(!told_now().await, "one look is enough");
}
