//! An upstream over https: everything works as in the clear, and whoever is not trusted is away, with the reason.

use serde_json::{Value, json};
use stub_ollama::Stub;

use crate::harness::client::{chat, chat_unstreamed, get, open, post, post_stream, request};
use crate::harness::daemon::Starting;
use crate::harness::front::{Authority, Face, Front, Hello};
use crate::harness::{Foreman, stub_config};

async fn foreman_with(url: &str, authority: &Authority) -> Foreman {
    let path = authority.path().to_str().unwrap().to_owned();
    Foreman::start_at(url, |raw| raw.ollama_ca = Some(path)).await
}

/// Jobs streamed and not, an embed, a relayed request, foreman's own polls and loads: by name and by address.
#[tokio::test]
async fn every_road_works_over_tls() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let authority = Authority::new("home");
    for (host, name) in [("localhost", Some("localhost")), ("127.0.0.1", None)] {
        let front = Front::start(stub.addr(), authority.certificate(&[host])).await;
        let foreman = foreman_with(&front.url(host), &authority).await.up().await;
        let streamed = post(foreman.addr, "/api/chat", &chat("a", "one")).await;
        assert!(streamed.is_whole && !streamed.streamed_text().is_empty(), "{streamed:?}");
        let whole = post(foreman.addr, "/api/chat", &chat_unstreamed("a", "two")).await;
        assert_eq!((whole.status.as_u16(), &whole.json()["done"]), (200, &Value::Bool(true)));
        let embed = json!({ "model": "embed", "input": "three" });
        let embed = post(foreman.addr, "/api/embed", &embed).await;
        assert!(embed.json()["embeddings"][0].is_array(), "{}", embed.text());
        let tags = get(foreman.addr, "/api/tags").await;
        assert_eq!(tags.json()["models"].as_array().unwrap().len(), 2);
        let status = foreman.status().await;
        assert_eq!(status["upstream"]["url"], front.url(host));
        // SNI carries names only; HTTP/2, which the front would rather speak, is not offered.
        let hello = Hello { name: name.map(str::to_owned), protocol: Some("http/1.1".to_owned()) };
        let hellos = front.hellos();
        assert!(!hellos.is_empty() && hellos.iter().all(|seen| *seen == hello), "{hellos:?}");
    }
}

/// Closing the TLS connection is how Ollama is told to stop.
#[tokio::test]
async fn a_client_that_leaves_is_told_to_ollama_through_tls() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let authority = Authority::new("home");
    let front = Front::start(stub.addr(), authority.certificate(&["localhost"])).await;
    let foreman = foreman_with(&front.url("localhost"), &authority).await.up().await;
    let addr = foreman.addr;
    stub.hold_tokens();
    let body = chat_unstreamed("a", "leaves").to_string();
    let leaving = tokio::spawn(open(addr, request(addr, "POST", "/api/chat", body)));
    stub.wait_until(|snapshot| snapshot.generating.len() == 1).await;
    leaving.abort();
    stub.wait_until(|snapshot| snapshot.counts.client_gone == 1).await;
    stub.release_tokens();
    let stream = post_stream(addr, "/api/chat", &chat("a", "stays")).await;
    assert!(stream.rest().await.is_whole);
}

/// Each kind of peer that is not trusted: the upstream is down for a reason in words, an embed is told it, a job waits and
/// is charged nothing, and everything goes on once the peer is the right one.
#[tokio::test]
async fn who_is_not_trusted_is_away_with_the_reason_and_fails_no_job() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let (authority, stranger) = (Authority::new("home"), Authority::new("elsewhere"));
    let made_anew = Authority::new("home");
    let front = Front::start(stub.addr(), Face::Closing).await;
    let foreman = foreman_with(&front.url("localhost"), &authority).await;
    let is_down_for = |part: &'static str| {
        move |status: &Value| {
            let upstream = &status["upstream"];
            upstream["state"] == "down" && upstream["reason"].as_str().unwrap().contains(part)
        }
    };
    foreman.wait_for(is_down_for("no TLS: it closed the connection")).await;
    let addr = foreman.addr;
    let waiting = tokio::spawn(async move { post(addr, "/api/chat", &chat("a", "waits")).await });
    foreman.wait_for_depth(1).await;
    let faces = [
        (stranger.certificate(&["localhost"]), "issued by nobody who is trusted here"),
        (made_anew.certificate(&["localhost"]), "was that CA made anew under the same name?"),
        (authority.expired(&["localhost"]), "its certificate expired at 2020-01-01T00:00:00Z"),
        (authority.certificate(&["elsewhere.example"]), "for another name"),
        (authority.certificate(&["elsewhere.example"]), "elsewhere.example"),
        (authority.only_http2(&["localhost"]), "it does not speak HTTP/1.1 over TLS"),
        (Face::Plain, "it does not speak TLS; is it plain http?"),
    ];
    for (face, part) in faces {
        front.show(face);
        let embed = json!({ "model": "embed", "input": "x" });
        let told = post(addr, "/api/embed", &embed).await;
        assert_eq!((told.status.as_u16(), told.header("retry-after")), (502, Some("5")));
        assert!(told.text().contains(part), "{}", told.text());
        assert!(told.text().contains(&front.url("localhost")), "{}", told.text());
        foreman.wait_for(is_down_for(part)).await;
    }
    assert!(!waiting.is_finished());
    front.show(authority.certificate(&["localhost"]));
    assert!(waiting.await.unwrap().is_whole);
    let status = foreman.wait_for(|status| status["since_start"]["done"] == 1).await;
    assert_eq!(status["since_start"]["failed"], 0);
}

/// The front alone goes down and comes back, as a proxy that is restarted.
#[tokio::test]
async fn a_front_that_restarts_costs_no_job() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let authority = Authority::new("home");
    let front = Front::start(stub.addr(), authority.certificate(&["localhost"])).await;
    let foreman = foreman_with(&front.url("localhost"), &authority).await.up().await;
    assert!(post(foreman.addr, "/api/chat", &chat("a", "before")).await.is_whole);
    front.show(Face::Closing);
    front.cut();
    foreman.wait_for(|status| status["upstream"]["state"] == "down").await;
    front.show(authority.certificate(&["localhost"]));
    assert!(post(foreman.addr, "/api/chat", &chat("a", "after")).await.is_whole);
}

/// A token that anybody on the way can read is warned of, once, at the start.
#[tokio::test]
async fn a_token_in_the_clear_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("home");
    let ca = authority.path().to_str().unwrap().to_owned();
    let token = "--ollama-token=sk-secret";
    let over_tls = ["--ollama-ca", ca.as_str(), token];
    for (url, flags, is_warned) in [
        ("http://192.0.2.1:1", &[token][..], true),
        ("http://192.0.2.1:1", &[][..], false),
        ("http://127.0.0.1:1", &[token][..], false),
        ("https://192.0.2.1:1", &over_tls[..], false),
    ] {
        let mut starting = Starting::begin(url, &folder.path().join("foreman.db"), flags);
        starting.serves().await;
        let log = starting.seen().to_owned();
        assert_eq!(log.contains("in the clear"), is_warned, "{url}: {log}");
        assert!(!log.contains("sk-secret"));
        starting.kill().await;
    }
}
