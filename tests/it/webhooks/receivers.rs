//! Receivers that fail, are slow, or are none.

use std::time::Duration;

use foreman::store::DeliveryState;

use crate::harness::receiver::{Call, Receiver, Reply};

use super::{Place, deliveries, is_idle, states, submit};

#[tokio::test]
async fn what_failed_comes_again_under_its_id_and_nothing_overtakes_it() {
    let place = Place::new().await;
    let receiver = Receiver::start(|number, _| match number % 3 {
        2 => Reply::Status(204, ""),
        _ => Reply::Status(500, ""),
    });
    let receiver = receiver.await;
    submit(&place.db(), "a", &receiver.url(), 1).await;
    let foreman = place.start(|_| ()).await;
    let calls = receiver.wait_for(12).await;
    foreman.wait_for(is_idle).await;
    for (three, state) in calls.chunks(3).zip(["queued", "loading", "working", "done"]) {
        assert_eq!(states(three), [state; 3]);
        assert!(three.iter().all(|call| call.id() == three[0].id() && call.body == three[0].body));
    }
    foreman.stop().await;
    assert!(deliveries(&place.db()).await.iter().all(|delivery| delivery.tries == 3));
}

/// Each fault once, then success: all are survived, none is followed, and each is written down.
#[tokio::test]
async fn any_fault_is_tried_again() {
    const FAULTS: [(Reply, &str); 6] = [
        (Reply::Reset, "no answer"),
        (Reply::Garbage, "no answer"),
        (Reply::Huge(500), "the receiver answered 500"),
        (Reply::Status(302, "location: /elsewhere\r\n"), "redirects are not followed"),
        (Reply::Status(404, ""), "the receiver answered 404"),
        (Reply::Status(429, "retry-after: 1\r\n"), "the receiver answered 429"),
    ];
    for (fault, said) in FAULTS {
        let place = Place::new().await;
        let first = fault.clone();
        let receiver = Receiver::start(move |number, _| match number {
            0 => first.clone(),
            // A large reply to a success is no fault.
            _ => Reply::Huge(200),
        });
        let receiver = receiver.await;
        submit(&place.db(), "a", &receiver.url(), 1).await;
        let flags = |raw: &mut foreman::config::Raw| raw.webhook_tries = Some("1".to_owned());
        let foreman = place.start(flags).await;
        foreman.wait_for(|status| is_idle(status) && status["stored"]["done"] == 1).await;
        foreman.stop().await;
        let listed = deliveries(&place.db()).await;
        let error = listed[0].last_error.as_deref().unwrap();
        assert!(
            listed[0].state == DeliveryState::Dead && error.contains(said),
            "{fault:?}: {error}"
        );
        assert!(!error.contains("secret"), "{error}");
        let rest: Vec<_> = listed[1..].iter().map(|delivery| delivery.state).collect();
        assert_eq!(rest, [DeliveryState::Delivered; 3], "{fault:?}");
        let calls = receiver.calls();
        assert!(calls.iter().all(|call| call.line.starts_with("POST /hook?")), "{fault:?}");
    }
}

#[tokio::test]
async fn a_receiver_that_asks_for_time_gets_it() {
    let place = Place::new().await;
    let asked = std::sync::Mutex::new(None);
    let receiver = Receiver::start(move |number, _| {
        let mut asked = asked.lock().unwrap();
        match number {
            0 => {
                *asked = Some(std::time::Instant::now());
                Reply::Status(503, "retry-after: 1\r\n")
            }
            _ => {
                let since = asked.get_or_insert_with(std::time::Instant::now);
                let is_early = number == 1 && since.elapsed() < Duration::from_secs(1);
                Reply::Status(if is_early { 418 } else { 200 }, "")
            }
        }
    });
    let receiver = receiver.await;
    submit(&place.db(), "a", &receiver.url(), 1).await;
    let foreman = place.start(|_| ()).await;
    let calls = receiver.wait_for(2).await;
    assert_eq!(calls[1].status, Some(200), "it came before its time");
    assert_eq!(calls[0].id(), calls[1].id());
    foreman.stop().await;
}

/// One receiver accepts nothing, one takes connections and never answers, one is not there, and one is well: that one is told
/// everything, and every job is done, while none of the others has taken a single call. Then the limit of a try ends the
/// silent ones.
#[tokio::test]
async fn a_dead_receiver_delays_neither_another_nor_a_job() {
    const JOBS: usize = 6;
    let place = Place::new().await;
    // The system completes connections to it; nobody ever takes them.
    let unserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unserved_url = format!("http://{}/", unserved.local_addr().unwrap());
    let silent = Receiver::start(|_, _| Reply::Hang).await;
    let absent = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    };
    let well = Receiver::fine().await;
    for url in [&unserved_url, &silent.url(), &absent, &well.url()] {
        submit(&place.db(), "a", url, JOBS).await;
    }
    let foreman = place.start(|raw| raw.webhook_tries = Some("1".to_owned())).await;
    let all = u64::try_from(4 * JOBS).unwrap();
    let status = foreman.wait_for(|status| status["stored"]["done"] == all).await;
    let done = |calls: &[Call]| calls.iter().filter(|call| call.state() == "done").count();
    well.wait_until(|calls| done(calls) == JOBS).await;
    let pending = status["webhooks"]["pending"].as_u64().unwrap();
    assert!(pending >= u64::try_from(2 * JOBS).unwrap(), "those of the silent ones: {status:#}");
    assert!(silent.most_at_once() <= 4);
    // The first four of each silent one end by the limit, the fifth is tried alone.
    foreman.wait_for(|status| status["webhooks"]["dead"].as_u64() > Some(7 + all / 4 * 3)).await;
    foreman.signal().await;
    foreman.signal().await;
    foreman.ended().await;
    let late = |delivery: &foreman::store::DeliveryView| {
        delivery.last_error.as_deref() == Some("no answer within 10 s")
    };
    let listed = deliveries(&place.db()).await;
    assert!(listed.iter().filter(|delivery| late(delivery)).count() >= 7);
}

#[tokio::test]
async fn no_more_than_four_are_told_at_once() {
    let place = Place::new().await;
    let receiver = Receiver::start(|_, _| Reply::After(Duration::from_millis(30), 200)).await;
    submit(&place.db(), "a", &receiver.url(), 12).await;
    let foreman = place.start(|_| ()).await;
    foreman.wait_for(|status| is_idle(status) && status["stored"]["done"] == 12).await;
    assert!((2..=4).contains(&receiver.most_at_once()), "{}", receiver.most_at_once());
    foreman.stop().await;
}

/// Link-local and metadata addresses cannot be submitted; one that stands in the database all the same is not connected to.
#[tokio::test]
async fn an_address_that_is_not_told_is_refused_at_the_try_too() {
    for url in ["http://169.254.169.254/latest/", "http://[fe80::1]/", "http://[fd00:ec2::254]/"] {
        assert!(foreman::webhook::check_url(url).is_err(), "{url}");
    }
    let place = Place::new().await;
    submit(&place.db(), "a", "http://localhost:1/", 1).await;
    let sql = "UPDATE submission SET webhook_url = 'http://169.254.169.254/'; UPDATE delivery SET url = 'http://0.0.0.0:1/';";
    rusqlite::Connection::open(place.db()).unwrap().execute_batch(sql).unwrap();
    let foreman = place.start(|raw| raw.webhook_tries = Some("1".to_owned())).await;
    foreman.wait_for(|status| is_idle(status) && status["webhooks"]["dead"] == 4).await;
    foreman.stop().await;
    let errors: Vec<_> = deliveries(&place.db())
        .await
        .into_iter()
        .map(|delivery| delivery.last_error.unwrap())
        .collect();
    assert_eq!(errors[0], "its address is unspecified, which is not told");
    assert_eq!(errors[1], "its address is a metadata service, which is not told");
}
