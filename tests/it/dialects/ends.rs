//! How the streams of each dialect end: whole only with their end mark, and where they break off, told in their own shape and
//! cut.

use crate::harness::Foreman;
use crate::harness::raw::{self, Raw, RawAnswer};
use crate::harness::upstream::{SCRIPTED, Upstream};

/// Route, request, first record, end mark, and how an error record begins.
const DIALECTS: [(&str, &str, &str, &str, &str); 6] = [
    (
        "/api/chat",
        r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#,
        "{\"message\":{\"content\":\"a\"},\"done\":false}\n",
        "{\"done\":true}\n",
        "{\"error\":\"",
    ),
    (
        "/api/generate",
        r#"{"model":"m","prompt":"x"}"#,
        "{\"response\":\"a\",\"done\":false}\n",
        "{\"response\":\"\",\"done\":true}\n",
        "{\"error\":\"",
    ),
    (
        "/v1/chat/completions",
        r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#,
        "data: {\"choices\":[]}\n\n",
        "data: [DONE]\n\n",
        "data: {\"error\":{\"message\":\"",
    ),
    (
        "/v1/completions",
        r#"{"model":"m","stream":true,"prompt":"x"}"#,
        "data: {\"choices\":[]}\n\n",
        "data: [DONE]\n\n",
        "data: {\"error\":{\"message\":\"",
    ),
    (
        "/v1/responses",
        r#"{"model":"m","stream":true,"input":"x"}"#,
        "event: response.created\ndata: {\"type\":\"response.created\"}\n\n",
        "event: response.completed\ndata: {\"type\":\"response.completed\"}\n\n",
        "data: {\"error\":{\"message\":\"",
    ),
    (
        "/v1/messages",
        r#"{"model":"m","stream":true,"max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#,
        "event: message_start\ndata: {\"type\":\"message_start\"}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"",
    ),
];

/// How the upstream's message ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Cleanly,
    Cut,
}

async fn answered(
    (upstream, foreman): (&mut Upstream, &Foreman),
    (target, body): (&str, &str),
    stream: &str,
    end: End,
) -> RawAnswer {
    let request = raw::request(foreman.addr, "POST", target, &[SCRIPTED], body.as_bytes());
    let mut client = Raw::send(foreman.addr, &request).await;
    let mut asked = upstream.next().await;
    let kind = match target {
        "/api/chat" | "/api/generate" => "application/x-ndjson",
        "/api/later" => "image/x-strip",
        _ => "text/event-stream",
    };
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n");
    asked.write(format!("{head}{:x}\r\n{stream}\r\n", stream.len())).await;
    if end == End::Cleanly {
        asked.write("0\r\n\r\n").await;
    }
    drop(asked);
    client.answer("POST").await
}

#[tokio::test]
async fn each_dialect_is_whole_with_its_end_mark_only() {
    let mut upstream = Upstream::with_models(&["m"]).await;
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    for (target, body, record, mark, error) in DIALECTS {
        for end in [End::Cleanly, End::Cut] {
            let stream = format!("{record}{mark}");
            let world = (&mut upstream, &foreman);
            let answer = answered(world, (target, body), &stream, end).await;
            assert!(answer.is_whole && answer.text() == stream, "{target} {end:?}");
            // The same without its mark, and with half a record in its place.
            for half in ["", &mark[..mark.len() / 2]] {
                let stream = format!("{record}{half}");
                let world = (&mut upstream, &foreman);
                let answer = answered(world, (target, body), &stream, end).await;
                let text = answer.text();
                assert!(!answer.is_whole, "{target} {end:?} {half:?}: {text}");
                let told = text.strip_prefix(record).unwrap_or_else(|| panic!("{target}: {text}"));
                assert!(told.trim_start().starts_with(error), "{target} {end:?}: {told}");
                assert!(told.ends_with('\n') && !text.contains(mark), "{target} {end:?}: {told}");
            }
        }
    }
    foreman.wait_for(|status| status["since_start"]["failed"] == 24).await;
}

/// What a route that foreman does not know says is whole with its framing, and where it breaks off nothing is added to it.
#[tokio::test]
async fn an_answer_of_no_known_dialect_is_whole_with_its_framing() {
    let mut upstream = Upstream::with_models(&["m"]).await;
    upstream.has_route("/api/later");
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    let request = ("/api/later", r#"{"model":"m"}"#);
    let bytes = "\u{1}\u{2}some\r\n\r\nbytes";
    let whole = answered((&mut upstream, &foreman), request, bytes, End::Cleanly).await;
    assert!(whole.is_whole && whole.text() == bytes);
    assert!(whole.head.header("x-foreman-job-id").is_some());
    let cut = answered((&mut upstream, &foreman), request, bytes, End::Cut).await;
    assert!(!cut.is_whole);
    assert_eq!(cut.text(), bytes);
    let status = foreman.wait_for(|status| status["since_start"]["failed"] == 1).await;
    assert_eq!(status["since_start"]["retries"], 0);
}
