//! Who is to be told of a job's changes is told of each, in order, at least once, whatever dies.
//!
//! `receivers` holds the ways a receiver can fail, `kills` the ways foreman can. Jobs come in by [`submit`] alone.

mod kills;
mod receivers;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use foreman::clock::Clock;
use foreman::config::Raw;
use foreman::domain::dialect::Dialect;
use foreman::domain::job::{Class, JobId, Kind};
use foreman::store::{
    Admission, DeliveryView, Extras, NewJob, QueueLimits, Resending, Store, WhichDeliveries,
};
use foreman::webhook::check_url;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use stub_ollama::{Action, Cut, Fault, Stub};
use tempfile::TempDir;

use crate::harness::client::chat_unstreamed;
use crate::harness::receiver::{Call, Receiver, Reply};
use crate::harness::{Foreman, stub_config};

/// A stub, and a place for the database.
struct Place {
    stub: Stub,
    folder: TempDir,
}

impl Place {
    async fn new() -> Place {
        Place { stub: Stub::start(stub_config(&["a"])).await, folder: tempfile::tempdir().unwrap() }
    }

    fn db(&self) -> PathBuf {
        self.folder.path().join("foreman.db")
    }

    /// Foreman on what was submitted, with fast tries.
    async fn start(&self, tweak: impl FnOnce(&mut Raw)) -> Foreman {
        let fast = |raw: &mut Raw| {
            raw.webhook_retry_delay = Some("20ms".to_owned());
            tweak(raw);
        };
        Foreman::start_on(&self.stub.url(), &self.db(), fast).await
    }
}

/// Puts jobs for a model into a queue that nobody serves, each with this receiver.
async fn submit(db: &Path, model: &str, url: &str, jobs: usize) -> Vec<JobId> {
    let (store, _) = Store::open(db, Clock::system().now_ms()).unwrap();
    let mut ids = Vec::new();
    for number in 0..jobs {
        let body = chat_unstreamed(model, &format!("job {number}"));
        let id = JobId(ulid::Ulid::generate());
        let job = NewJob {
            id,
            dialect: Dialect::Chat,
            kind: Kind::Run,
            lane: format!("{model}:latest"),
            model: model.to_owned(),
            class: Class::Normal,
            client: String::new(),
            is_streamed: false,
            path_and_query: "/api/chat".to_owned(),
            headers: vec![("content-type".to_owned(), b"application/json".to_vec())],
            body: Bytes::from(body.to_string()),
            extras: Extras {
                is_async: true,
                webhook: Some(check_url(url).unwrap()),
                metadata: Some(json!({ "number": number }).to_string()),
                ..Extras::default()
            },
        };
        let limits = QueueLimits { jobs_max: 10_000, bytes_max: u64::MAX, class_max: [None; 3] };
        let admitted = store.admit(job, limits, Clock::system().now_ms()).await.unwrap();
        assert!(matches!(admitted, Admission::Admitted { .. }));
        ids.push(id);
    }
    store.close().await;
    ids
}

/// The deliveries of a database that nobody serves.
async fn deliveries(db: &Path) -> Vec<DeliveryView> {
    let (store, _) = Store::open(db, Clock::system().now_ms()).unwrap();
    let listed = store.deliveries(WhichDeliveries::default(), None, 100_000).await.unwrap();
    store.close().await;
    listed.deliveries
}

fn states(calls: &[Call]) -> Vec<String> {
    calls.iter().map(Call::state).collect()
}

fn is_idle(status: &Value) -> bool {
    status["webhooks"]["pending"] == 0
}

#[tokio::test]
async fn a_receiver_is_told_of_each_change_in_order_with_all_that_belongs_to_it() {
    let place = Place::new().await;
    let receiver = Receiver::fine().await;
    let ids = submit(&place.db(), "a", &receiver.url(), 1).await;
    let foreman = place.start(|_| ()).await;
    let calls = receiver.wait_for(4).await;
    let status = foreman.wait_for(is_idle).await;
    assert_eq!(status["webhooks"], json!({ "pending": 0, "dead": 0, "delivered_since_start": 4 }));
    assert_eq!(states(&calls), ["queued", "loading", "working", "done"]);
    let mut previous = Value::Null;
    for (call, sequence) in calls.iter().zip(1..) {
        let told = call.json();
        assert_eq!(call.line, "POST /hook?key=secret HTTP/1.1");
        assert_eq!(call.header("content-type"), "application/json");
        assert_eq!(call.header("host"), receiver.addr.to_string());
        assert!(call.header("user-agent").starts_with("foreman/"));
        assert!(call.id().starts_with(&format!("msg_{}_", ids[0])), "{}", call.id());
        assert!(call.header("webhook-timestamp").parse::<u64>().unwrap() > 1_700_000_000);
        assert_eq!(call.header("webhook-signature"), "", "there is no key");
        assert_eq!(told["type"], format!("job.{}", told["state"].as_str().unwrap()));
        assert_eq!((&told["job_id"], &told["model"]), (&json!(ids[0].to_string()), &json!("a")));
        assert_eq!((&told["sequence"], &told["previous_state"]), (&json!(sequence), &previous));
        assert_eq!((&told["error"], &told["metadata"]), (&Value::Null, &json!({ "number": 0 })));
        let timestamp = told["timestamp"].as_str().unwrap();
        assert!(timestamp.len() == 24 && timestamp.ends_with('Z'), "{timestamp}");
        let is_done = told["state"] == "done";
        assert_eq!(told["attempt"], u32::from(sequence > 1));
        assert_eq!(
            (told["result"].is_object(), told["artifacts"] != json!([])),
            (is_done, is_done)
        );
        previous = told["state"].clone();
    }
    let last = calls[3].json();
    assert!(last["result"]["message"]["content"].is_string() && last["result"]["done"] == true);
    let artifact = &last["artifacts"][0];
    assert_eq!((&artifact["name"], &artifact["is_inline"]), (&json!("completion"), &json!(true)));
    assert_eq!(artifact["url"], format!("/jobs/{}/artifacts/completion", ids[0]));
    foreman.stop().await;
}

#[tokio::test]
async fn a_job_that_is_tried_again_and_one_that_fails_tell_why() {
    let place = Place::new().await;
    let receiver = Receiver::fine().await;
    place.stub.faults(Fault::new(Action::CutBeforeHeaders(Cut::Reset)).path("/api/chat"));
    submit(&place.db(), "a", &receiver.url(), 1).await;
    let foreman = place.start(|_| ()).await;
    let calls =
        receiver.wait_until(|calls| calls.last().is_some_and(|call| call.state() == "done"));
    let calls = calls.await;
    let again =
        calls.iter().find(|call| call.json()["previous_state"] == "working").unwrap().json();
    assert_eq!((&again["state"], &again["attempt"]), (&json!("queued"), &json!(1)));
    assert!(
        again["error"]["message"].as_str().unwrap().contains("broke before an answer"),
        "{again:#}"
    );
    foreman.stop().await;

    let receiver = Receiver::fine().await;
    submit(&place.db(), "missing", &receiver.url(), 1).await;
    let foreman = place.start(|_| ()).await;
    let calls =
        receiver.wait_until(|calls| calls.last().is_some_and(|call| call.state() == "failed"));
    let last = calls.await.pop().unwrap().json();
    assert!(last["error"]["message"].as_str().unwrap().contains("missing"), "{last:#}");
    assert_eq!((&last["error"]["status"], &last["result"]), (&json!(404), &Value::Null));
    foreman.stop().await;
}

/// The signatures, computed once more by hand from what came over the wire.
#[tokio::test]
async fn what_is_told_is_signed() {
    let place = Place::new().await;
    let receiver = Receiver::fine().await;
    submit(&place.db(), "a", &receiver.url(), 1).await;
    let secret = Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
    let foreman = place.start(|raw| raw.webhook_secret = secret).await;
    let key: Vec<u8> = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD
            .decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
            .unwrap()
    };
    for call in receiver.wait_for(4).await {
        let mut signed =
            format!("{}.{}.", call.id(), call.header("webhook-timestamp")).into_bytes();
        signed.extend_from_slice(&call.body);
        let of = |bytes: &[u8]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
            mac.update(bytes);
            mac.finalize().into_bytes().to_vec()
        };
        let signature = call.header("webhook-signature").strip_prefix("v1,").unwrap();
        let decoded = {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(signature).unwrap()
        };
        assert_eq!(decoded, of(&signed));
        let hex: String = of(&call.body).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(call.header("x-foreman-signature"), format!("sha256={hex}"));
    }
    foreman.stop().await;
}

/// A delivery that was given up is listed with what happened, and comes when somebody has it sent again.
#[tokio::test]
async fn a_dead_delivery_is_seen_and_can_be_sent_again() {
    let place = Place::new().await;
    let receiver = Receiver::start(|number, _| match number {
        0 => Reply::Status(410, ""),
        _ => Reply::FINE,
    });
    let receiver = receiver.await;
    submit(&place.db(), "a", &receiver.url(), 1).await;
    let foreman = place.start(|_| ()).await;
    let calls = receiver.wait_for(4).await;
    assert_eq!(states(&calls), ["queued", "loading", "working", "done"], "the next ones are sent");
    let status = foreman.wait_for(is_idle).await;
    assert_eq!(status["webhooks"]["dead"], 1);
    foreman.stop().await;
    let dead = deliveries(&place.db()).await.remove(0);
    assert_eq!((dead.tries, dead.last_status), (1, Some(410)));
    assert_eq!(dead.last_error.as_deref(), Some("the receiver answered 410"));
    let (store, _) = Store::open(&place.db(), Clock::system().now_ms()).unwrap();
    let resent = store.resend(dead.event, Clock::system().now_ms()).await.unwrap();
    assert_eq!(resent, Resending::Again);
    store.close().await;
    drop(store);
    let foreman = place.start(|_| ()).await;
    let calls = receiver.wait_for(5).await;
    assert_eq!((calls[4].id(), &calls[4].body), (calls[0].id(), &calls[0].body));
    assert_eq!(foreman.wait_for(is_idle).await["webhooks"]["dead"], 0);
    foreman.stop().await;
}

/// A stop waits for what is being told, and keeps the rest for the next start.
#[tokio::test]
async fn a_stop_lets_what_is_in_flight_finish() {
    let place = Place::new().await;
    let receiver =
        Receiver::start(|_, _| Reply::After(std::time::Duration::from_millis(300), 200)).await;
    submit(&place.db(), "a", &receiver.url(), 1).await;
    let foreman = place.start(|_| ()).await;
    receiver.wait_for(1).await;
    foreman.stop().await;
    assert_eq!(receiver.calls().len(), 1);
    let listed = deliveries(&place.db()).await;
    assert_eq!((listed[0].last_status, listed[0].tries), (Some(200), 1));
    let foreman = place.start(|_| ()).await;
    foreman.wait_for(|status| is_idle(status) && status["stored"]["done"] == 1).await;
    let calls = receiver.calls();
    let ids: std::collections::BTreeSet<_> = calls.iter().map(Call::id).collect();
    assert_eq!(ids.len(), calls.len(), "none came twice");
    foreman.stop().await;
}
