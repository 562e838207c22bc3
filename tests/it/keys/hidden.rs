//! Jobs of others do not exist: not on any route, not in any list, not in the status, and not for what is done to many.

use std::collections::BTreeMap;

use serde_json::json;

use super::{ADMIN, ALICE, BOB, House, ids, three};
use crate::harness::Answer;
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::stub_config;

/// The id of no job.
const NONE: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

/// The routes about one job.
const ROUTES: [(&str, &str, &str); 14] = [
    ("GET", "", ""),
    ("HEAD", "", ""),
    ("GET", "?wait=bad", ""),
    ("GET", "/output", ""),
    ("GET", "/output?stream=true&offset=9", ""),
    ("GET", "/request", ""),
    ("GET", "/artifacts/completion", ""),
    ("GET", "/artifacts/other", ""),
    ("GET", "/events", ""),
    ("GET", "/deliveries", ""),
    ("GET", "/deliveries?state=dead", ""),
    ("POST", "/cancel", "nonsense"),
    ("POST", "/retry", ""),
    ("DELETE", "", ""),
];

/// Status, headers without the date, and bytes, whatever the id.
fn seen(answer: &Answer, id: &str) -> (u16, BTreeMap<String, String>, String) {
    let headers = answer.headers.iter().filter(|(name, _)| *name != "date");
    let headers = headers.map(|(name, value)| (name.to_string(), format!("{value:?}"))).collect();
    (answer.status.as_u16(), headers, answer.text().replace(id, NONE))
}

/// Asks for all routes of a job as somebody else, and for those of one that never was.
async fn is_as_if_it_were_not(house: &House, id: &str) {
    for (method, rest, body) in ROUTES {
        let of = async |id: &str| house.ask(BOB, method, &format!("/jobs/{id}{rest}"), body).await;
        let (real, none) = (of(id).await, of(NONE).await);
        assert_eq!(real.status, 404, "{method} {rest}: {}", real.text());
        assert_eq!(seen(&real, id), seen(&none, NONE), "{method} {rest}");
    }
    let after = async |id: &str| house.get(BOB, &format!("/jobs?after={id}")).await;
    assert_eq!(seen(&after(id).await, id), seen(&after(NONE).await, NONE));
}

#[tokio::test]
async fn the_id_of_another_is_the_id_of_no_job() {
    let house = House::start(&three()).await;
    house.stub.hold_tokens();
    let running = house.submit(ALICE, "a").await;
    house.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let waiting = house.submit(ALICE, "b").await;
    for id in [&running, &waiting] {
        is_as_if_it_were_not(&house, id).await;
    }
    house.stub.release_tokens();
    for id in [&running, &waiting] {
        assert_eq!(house.ended(ALICE, id).await["state"], "done", "nothing was done to it");
        is_as_if_it_were_not(&house, id).await;
        for key in [ALICE, ADMIN] {
            assert_eq!(house.get(key, &format!("/jobs/{id}/output")).await.status, 200);
        }
    }
    assert_eq!(house.ask(ALICE, "DELETE", &format!("/jobs/{running}"), "").await.status, 204);
    assert_eq!(house.ask(ADMIN, "DELETE", &format!("/jobs/{waiting}"), "").await.status, 204);
    for id in [&running, &waiting] {
        is_as_if_it_were_not(&house, id).await;
        for key in [ALICE, ADMIN] {
            assert_eq!(house.get(key, &format!("/jobs/{id}")).await.status, 410);
        }
    }
}

/// Also a job of a native route, of whose id its client is told.
#[tokio::test]
async fn lists_and_the_status_show_a_key_its_own() {
    let house = House::start(&three()).await;
    let body = json!({ "model": "b", "messages": [{ "role": "user", "content": "x" }] });
    let native = house.ask(BOB, "POST", "/api/chat", body.to_string()).await;
    let native = native.header("x-foreman-job-id").unwrap().to_owned();
    house.stub.hold_tokens();
    let running = house.submit(ALICE, "a").await;
    house.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let of_alice = house.submit(ALICE, "a").await;
    let of_bob = house.submit(BOB, "b").await;
    let listed =
        async |key: &str, query: &str| ids(&house.get(key, &format!("/jobs{query}")).await);
    assert_eq!(listed(ALICE, "").await, [of_alice.clone(), running.clone()]);
    assert_eq!(listed(BOB, "").await, [of_bob.clone(), native.clone()]);
    assert_eq!(listed(BOB, "?limit=1").await, std::slice::from_ref(&of_bob));
    assert_eq!(listed(BOB, &format!("?after={of_bob}")).await, std::slice::from_ref(&native));
    assert_eq!(listed(BOB, "?model=a").await, Vec::<String>::new());
    assert_eq!(listed(ADMIN, "").await.len(), 4);

    let status = house.get(BOB, "/status").await.json();
    assert_eq!(status["key"], json!({ "name": "bob", "is_admin": false }));
    assert_eq!((&status["running"], &status["queue"]["lanes"]), (&json!([]), &json!([])));
    assert_eq!(status["queue"]["depth"], 2, "how many there are is told");
    assert_eq!(status["queue"]["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(status["queue"]["jobs"][0]["id"], json!(of_bob));
    assert_eq!(status["scheduler"]["decisions"], json!([]));
    let text = status.to_string();
    assert!(!text.contains(&of_alice) && !text.contains(&running), "{text}");
    let status = house.get(ADMIN, "/status").await.json();
    assert_eq!(status["running"][0]["id"], json!(running));
    assert_eq!(status["queue"]["lanes"].as_array().unwrap().len(), 2);
    assert_eq!(house.get(BOB, "/trace").await.status, 403);
    house.stub.release_tokens();
}

#[tokio::test]
async fn what_is_done_to_many_is_done_to_ones_own() {
    let house = House::start(&three()).await;
    house.stub.hold_tokens();
    let busy = house.submit(ADMIN, "a").await;
    house.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    let mut cancelled = Vec::new();
    for key in [ALICE, BOB, ALICE] {
        let id = house.submit(key, "b").await;
        assert_eq!(house.ask(key, "POST", &format!("/jobs/{id}/cancel"), "").await.status, 200);
        cancelled.push(id);
    }
    let many = async |key: &str, what: &str| {
        let answer = house.ask(key, "POST", &format!("/jobs/{what}?state=cancelled"), "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["count"].as_u64().unwrap()
    };
    assert_eq!(many(BOB, "retry").await, 1);
    let job = house.get(ALICE, &format!("/jobs/{}", cancelled[0])).await.json();
    assert_eq!(job["state"], "cancelled", "{job}");
    assert_eq!(many(BOB, "purge").await, 0, "it waits again");
    assert_eq!(many(ALICE, "purge").await, 2);
    assert_eq!(house.get(ALICE, &format!("/jobs/{}", cancelled[0])).await.status, 410);
    house.stub.release_tokens();
    house.ended(BOB, &cancelled[1]).await;
    house.ended(ADMIN, &busy).await;
}

#[tokio::test]
async fn deliveries_of_others_are_neither_shown_nor_sent_again() {
    let receiver = Receiver::start(|_, _| Reply::Status(410, "")).await;
    let house = House::start_with(&three(), stub_config(&["a"]), |_| ()).await;
    for key in [ALICE, BOB] {
        let body = json!({ "model": "a", "messages": [], "state_webhook_url": receiver.url() });
        let id = super::submit(house.addr(), key, &body).await;
        house.ended(key, &id).await;
    }
    let status = house.wait_for(|status| status["webhooks"]["pending"] == 0).await;
    let dead = status["webhooks"]["dead"].as_u64().unwrap();
    let list = async |key: &str| {
        let answer = house.get(key, "/deliveries?state=dead&limit=100").await;
        answer.json()["data"].as_array().unwrap().clone()
    };
    let (of_alice, of_bob, all) = (list(ALICE).await, list(BOB).await, list(ADMIN).await);
    assert!(!of_alice.is_empty() && !of_bob.is_empty(), "{status}");
    assert_eq!(of_alice.len() + of_bob.len(), all.len());
    assert_eq!(u64::try_from(all.len()).unwrap(), dead);
    assert!(of_alice.iter().all(|one| of_bob.iter().all(|other| one["job_id"] != other["job_id"])));
    let again = async |event: &str| {
        house.ask(BOB, "POST", &format!("/deliveries/{event}/resend"), "").await
    };
    let event = of_alice[0]["delivery_id"].to_string();
    let (real, none) = (again(&event).await, again("999999").await);
    assert_eq!(real.status, 404);
    assert_eq!(real.text().replace(&event, "999999"), none.text());
    let sent = house.ask(BOB, "POST", "/deliveries/resend", "").await.json();
    assert_eq!(sent["count"].as_u64().unwrap(), u64::try_from(of_bob.len()).unwrap());
}
