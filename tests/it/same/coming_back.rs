//! A client whose connection went with a daemon sends the same bytes again: it is attached to its job, once, and the work
//! is not done twice.

use std::net::{IpAddr, SocketAddr};

use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use stub_ollama::{Stub, StubConfig, expected_text};
use tokio::task::JoinHandle;

use super::{
    ATTACHED, JOB, Place, ROUTES, ask, asked, body_of, calls, ended, even, wait_for, with,
};
use crate::harness::Answer;
use crate::harness::client::{chat, chat_unstreamed, open, open_from, post_stream};
use crate::harness::{DEADLINE, get};

/// Tokens of a stream that is held in its middle.
const LONG: u32 = 40;

/// Where a job stands when foreman dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Waiting,
    Loading,
    Streaming,
    Unstreamed,
}

const MOMENTS: [Moment; 4] =
    [Moment::Waiting, Moment::Loading, Moment::Streaming, Moment::Unstreamed];

/// A request that stands at this moment.
async fn bring(
    place: &Place,
    addr: SocketAddr,
    route: &str,
    moment: Moment,
) -> (Value, JoinHandle<Option<Answer>>) {
    let text = format!("{route} {moment:?}");
    let is_streamed = moment != Moment::Unstreamed;
    let body = match moment {
        Moment::Streaming if route == "/api/chat" => long(&text),
        _ => body_of(route, "a", &text, is_streamed),
    };
    let stub = &place.stub;
    match moment {
        Moment::Waiting => {
            stub.hold_tokens();
            drop(ask(addr, "/api/chat", chat("a", "before").to_string(), &[]));
            stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        }
        Moment::Loading => stub.hold_loads(),
        Moment::Unstreamed => stub.hold_tokens(),
        Moment::Streaming => (),
    }
    if moment == Moment::Streaming {
        let mut stream = open(addr, with(addr, route, body.to_string(), &[])).await.unwrap();
        drop(stream.next().await.unwrap().unwrap());
        stub.hold_tokens();
        return (
            body,
            tokio::spawn(async move { Some(stream.rest().await).filter(|rest| rest.is_whole) }),
        );
    }
    let client = ask(addr, route, body.to_string(), &[]);
    match moment {
        Moment::Waiting => super::wait_for_depth(addr, 1).await,
        Moment::Loading => drop(stub.wait_until(|snapshot| snapshot.loading.is_some()).await),
        Moment::Streaming | Moment::Unstreamed => {
            stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
        }
    }
    (body, client)
}

fn long(text: &str) -> Value {
    let mut body = chat("a", text);
    body["options"] = json!({ "num_predict": LONG, "seed": 1 });
    body
}

/// At each moment, on each route: attached once, whole, and done once, or once more where an attempt was cut. The next
/// equal request is another.
#[tokio::test]
async fn after_kill_9_the_same_bytes_find_their_job() {
    for moment in MOMENTS {
        for route in ROUTES {
            if moment == Moment::Streaming && route != "/api/chat" {
                continue;
            }
            let place = Place::new(&["a"]).await;
            let daemon = place.daemon().await;
            let (body, client) = bring(&place, daemon.addr, route, moment).await;
            let id = job_id(daemon.addr, 0).await;
            daemon.kill().await;
            assert!(client.await.unwrap().is_none());
            let was_cut = matches!(moment, Moment::Streaming | Moment::Unstreamed);

            let daemon = place.daemon().await;
            let back = ask(daemon.addr, route, body.to_string(), &[]);
            wait_for_attached(daemon.addr, &id, "interactive").await;
            let equal = ask(daemon.addr, route, body.to_string(), &[]);
            place.stub.release_loads();
            place.stub.release_tokens();
            let (back, equal) = (back.await.unwrap().unwrap(), equal.await.unwrap().unwrap());
            let what = format!("{route} {moment:?}");
            assert_eq!(
                (back.status.as_u16(), back.is_whole),
                (200, true),
                "{what}: {}",
                back.text()
            );
            assert_eq!(
                (back.header(ATTACHED), back.header(JOB)),
                (Some("true"), Some(id.as_str())),
                "{what}"
            );
            assert_eq!((equal.status.as_u16(), equal.header(ATTACHED)), (200, None), "{what}");
            assert_ne!(equal.header(JOB), Some(id.as_str()), "{what}");
            assert!(back.body.len() > 20 && equal.is_whole, "{what}: {}", back.text());
            assert_eq!(calls(&place.stub, &what), 2 + usize::from(was_cut), "{what}");
            daemon.kill().await;
        }
    }
}

/// The id of a job, counted from the newest.
async fn job_id(addr: SocketAddr, place: usize) -> String {
    get(addr, "/jobs").await.json()["data"][place]["job_id"].as_str().unwrap().to_owned()
}

/// Waits until a client was given the job: it is of the class that it asks for.
async fn wait_for_attached(addr: SocketAddr, id: &str, class: &str) {
    let found =
        async { while get(addr, &format!("/jobs/{id}")).await.json()["priority"] != class {} };
    tokio::time::timeout(DEADLINE, found).await.expect("nobody was attached");
}

/// The job runs already, and its first records have gone by: whoever comes back gets it from its first byte.
#[tokio::test]
async fn who_comes_back_to_a_running_stream_gets_all_of_it() {
    let place = Place::new(&["a"]).await;
    let daemon = place.daemon().await;
    let (body, client) = bring(&place, daemon.addr, "/api/chat", Moment::Streaming).await;
    daemon.kill().await;
    assert!(client.await.unwrap().is_none());
    place.stub.reset();
    let daemon = place.daemon().await;
    place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    place.stub.release_tokens();
    place
        .stub
        .wait_for_log(|log| {
            log.iter().any(|entry| entry.path == "/api/chat" && entry.sent_chunks >= 5)
        })
        .await;
    place.stub.hold_tokens();
    let back = ask(daemon.addr, "/api/chat", body.to_string(), &[]);
    wait_for_attached(daemon.addr, &job_id(daemon.addr, 0).await, "interactive").await;
    place.stub.release_tokens();
    let back = back.await.unwrap().unwrap();
    assert!(back.is_whole);
    assert_eq!(back.header(ATTACHED), Some("true"));
    assert_eq!(
        back.streamed_text(),
        expected_text("a:latest", "/api/chat Streaming", Some(1), LONG)
    );
    assert_eq!(calls(&place.stub, "Streaming"), 1);
    daemon.kill().await;
}

/// It ended while its client was away: the kept answer is the client's, without Ollama.
#[tokio::test]
async fn an_answer_that_came_meanwhile_is_kept_for_its_client() {
    for route in ROUTES {
        let place = Place::new(&["a"]).await;
        let daemon = place.daemon().await;
        let (body, _client) = bring(&place, daemon.addr, route, Moment::Unstreamed).await;
        let id = job_id(daemon.addr, 0).await;
        daemon.kill().await;
        place.stub.release_tokens();
        let daemon = place.daemon().await;
        assert_eq!(ended(daemon.addr, &id).await["state"], "done");
        place.stub.set_down(true).await;
        let back = asked(daemon.addr, route, body.to_string(), &[]).await;
        assert_eq!(
            (back.status.as_u16(), back.header(ATTACHED)),
            (200, Some("true")),
            "{route} {}",
            back.text()
        );
        assert_eq!(back.header(JOB), Some(id.as_str()));
        let kept = get(daemon.addr, &format!("/jobs/{id}/output")).await;
        assert_eq!(kept.body, back.body);
        assert_eq!(calls(&place.stub, route), 2);
        daemon.kill().await;
    }
}

/// Another address, token, body, query or route is somebody else, or something else.
#[tokio::test]
async fn nobody_else_is_attached() {
    let place = Place::new(&["a"]).await;
    let daemon = place.daemon().await;
    let body = chat_unstreamed("a", "mine").to_string();
    let auth = ("authorization", "Bearer mine");
    place.stub.hold_tokens();
    let client = ask(daemon.addr, "/api/chat", body.clone(), &[auth]);
    place.stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    daemon.kill().await;
    assert!(client.await.unwrap().is_none());
    let daemon = place.daemon().await;
    let addr = daemon.addr;
    place.stub.release_tokens();
    let elsewhere: IpAddr = "127.0.0.2".parse().unwrap();
    let other = |path: &str, body: &str, auth: &[(&'static str, &str)]| -> Request<Full<_>> {
        with(addr, path, body.to_owned(), auth)
    };
    let from_elsewhere =
        open_from(elsewhere, addr, other("/api/chat", &body, &[auth])).await.rest().await;
    let mut answers = vec![from_elsewhere];
    for (path, body, headers) in [
        ("/api/chat", body.as_str(), vec![]),
        ("/api/chat", &body, vec![("authorization", "Bearer other")]),
        ("/api/chat", &body.replace(':', ": "), vec![auth]),
        ("/api/chat?x", &body, vec![auth]),
        ("/v1/chat/completions", &body, vec![auth]),
    ] {
        answers.push(open(addr, other(path, body, &headers)).await.unwrap().rest().await);
    }
    for answer in answers {
        assert_eq!(
            (answer.status.as_u16(), answer.header(ATTACHED)),
            (200, None),
            "{}",
            answer.text()
        );
    }
    let mine = asked(addr, "/api/chat", body, &[auth]).await;
    assert_eq!(mine.header(ATTACHED), Some("true"));
    daemon.kill().await;
}

/// Without a crash equal requests are as many jobs, whoever sends them.
#[tokio::test]
async fn equal_requests_are_not_attached_without_a_crash() {
    let stub = Stub::start(StubConfig { num_parallel: 1, ..even(&["a"]) }).await;
    let foreman = crate::harness::Foreman::start(&stub).await.up().await;
    let body = chat("a", "x");
    let stream = post_stream(foreman.addr, "/api/chat", &body).await;
    let second = asked(foreman.addr, "/api/chat", body.to_string(), &[]).await;
    assert_eq!((second.header(ATTACHED), stream.rest().await.is_whole), (None, true));
    wait_for(foreman.addr, |status| status["since_start"]["done"] == 2).await;
}
