//! Streams of odd but legal bytes, written by an upstream in pieces of any size, reach the client byte for byte.

use crate::harness::raw::{self, Raw};
use crate::harness::upstream::{SCRIPTED, Upstream};
use crate::harness::{DEADLINE, Foreman};

const NDJSON: &str = "application/x-ndjson";
const EVENTS: &str = "text/event-stream";

/// A streamed answer of each dialect, with everything a stream may have: empty deltas, blank lines, comments, both line ends,
/// characters of several bytes, escapes, white space inside a record, and an end mark in the text.
const STREAMS: [(&str, &str, &str, &str); 8] = [
    (
        "/api/chat",
        r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#,
        NDJSON,
        "{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":false}\n\n  \n{ \"message\" : {\"content\":\"\u{1f6a2}\\ud83d\\n{\\\"done\\\":true}\"} }\r\n{\"done\":true,\"done_reason\":\"stop\"}\r\n",
    ),
    (
        "/api/generate",
        r#"{"model":"m","prompt":"x"}"#,
        NDJSON,
        "{\"response\":\"\",\"done\":false}\n{\"response\":\"\u{e9}\u{301}\u{fffd}\",\"done\":false}\n{\"response\":\"\",\"done\":true,\"context\":[1,2,3]}",
    ),
    (
        "/v1/chat/completions",
        r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#,
        EVENTS,
        ": keep-alive\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"\u{1f6a2} data: [DONE]\"}}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
    ),
    (
        "/v1/chat/completions",
        r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#,
        "text/event-stream; charset=utf-8",
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\ndata:{\"choices\":[{\"delta\":{}}]}\r\n\r\ndata: [DONE]\r\n\r\n",
    ),
    (
        "/v1/completions",
        r#"{"model":"m","stream":true,"prompt":"x"}"#,
        EVENTS,
        "data: {\"choices\":[{\"text\":\"\"}]}\n\ndata: {\"choices\":[{\"text\":\"\\u003cb\\u003e\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
    ),
    (
        "/v1/responses",
        r#"{"model":"m","stream":true,"input":"x"}"#,
        EVENTS,
        "event: response.created\ndata: {\"type\":\"response.created\"}\n\nevent: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"\"}\n\nevent: response.reasoning_summary_text.delta\nid: 7\ndata: {\"type\":\"response.reasoning_summary_text.delta\",\ndata: \"delta\":\"\u{1f6a2}\"}\n\nevent: response.incomplete\ndata: {\"type\":\"response.incomplete\",\"response\":{}}\n\n",
    ),
    (
        "/v1/messages",
        r#"{"model":"m","stream":true,"max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#,
        EVENTS,
        "event: message_start\ndata: {\"type\":\"message_start\"}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"\"}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"message_stop \u{e9}\"}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    ),
    // A route that foreman does not know: neither lines nor marks mean anything.
    (
        "/api/later",
        r#"{"model":"m","prompt":"x"}"#,
        "text/event-stream",
        "data: {\"error\":\"no end\"}\r\n\r\nevent: half\ndata: {\"x\":\u{1f6a2}",
    ),
];

#[tokio::test]
async fn streams_of_each_dialect_come_as_they_were_sent() {
    let mut upstream = Upstream::with_models(&["m"]).await;
    upstream.has_route("/api/later");
    let foreman = Foreman::start_at(&upstream.url(), |_| ()).await.up().await;
    for (target, body, kind, stream) in STREAMS {
        for size in [1, 7, 64, 100_000] {
            let request = raw::request(foreman.addr, "POST", target, &[SCRIPTED], body.as_bytes());
            let mut client = Raw::send(foreman.addr, &request).await;
            let mut asked = upstream.next().await;
            assert_eq!(asked.body, body.as_bytes());
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nX-Odd: \u{e9}\r\nTransfer-Encoding: chunked\r\n\r\n"
            );
            asked.write(head).await;
            for piece in stream.as_bytes().chunks(size) {
                asked.write(format!("{:x}\r\n", piece.len())).await;
                asked.write(piece).await;
                asked.write("\r\n").await;
            }
            asked.write("0\r\n\r\n").await;
            let answer = tokio::time::timeout(DEADLINE, client.answer("POST")).await.unwrap();
            assert!(answer.is_whole, "{target} {size}: {}", answer.text());
            assert_eq!(answer.text(), stream, "{target} in pieces of {size}");
            assert_eq!(answer.head.header("content-type"), Some(kind));
        }
    }
}
