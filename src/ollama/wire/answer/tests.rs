//! Whole, cut, malformed, or an error: answers of each kind, in any chunks.

use super::*;

fn scan(kind: AnswerKind, answer: &str) -> (Verdict, u64) {
    let mut scanner = AnswerScanner::new(kind);
    scanner.feed(answer.as_bytes());
    let records = scanner.records_before_error();
    (scanner.finish(), records)
}

fn native(answer: &str) -> Verdict {
    scan(AnswerKind::NativeStream, answer).0
}

#[test]
fn a_native_stream_is_whole_after_done_at_the_top_level() {
    let part = r#"{"message":{"content":"{\"done\":true}","done":true},"done":false}"#;
    assert_eq!(native(&format!("{part}\n")), Verdict::Cut);
    assert_eq!(native(&format!("{part}\n{{\"done\":true}}\n")), Verdict::Whole);
    assert_eq!(native(r#"{"done":true,"done_reason":"load"}"#), Verdict::Whole);
    assert_eq!(native("\r\n{\"d\\u006fne\": true }\r\n\n"), Verdict::Whole);
    for cut in ["", "\n", r#"{"done":true"#, "{\"done\":true}\n{", r#"{"done":"true"}"#] {
        assert_eq!(native(cut), Verdict::Cut, "{cut}");
    }
    for bad in ["<html>", "{\"done\":true}x", "{\"done\":\ntrue}\n", "{}\nnope\n{\"done\":true}\n"]
    {
        assert_eq!(native(bad), Verdict::Malformed, "{bad}");
    }
}

#[test]
fn an_error_line_is_an_error_whatever_follows() {
    let (verdict, records) = scan(
        AnswerKind::NativeStream,
        "{\"done\":false}\n{\"error\":\"unexpected \\u0045OF\"}\n{\"done\":true}\n",
    );
    assert_eq!((verdict, records), (Verdict::Error("unexpected EOF".into()), 1));
    let long = format!("{{\"error\":\"{}\"}}", "e".repeat(1 << 20));
    let Verdict::Error(text) = native(&long) else { panic!("no error") };
    assert_eq!(text.len(), 4 * 1024 - 1);
    assert_eq!(native("{\"error\":null,\"done\":true}"), Verdict::Whole);
}

#[test]
fn counters_come_from_the_final_record() {
    let mut scanner = AnswerScanner::new(AnswerKind::NativeStream);
    let context = "1,".repeat(1 << 20);
    scanner.feed(b"{\"done\":false,\"message\":{\"eval_count\":9}}\n");
    assert_eq!((scanner.usage(), scanner.done_member()), (Usage::default(), Some(false)));
    let end = r#""done":true,"load_duration":956264,"prompt_eval_count":17,"eval_count":5"#;
    scanner.feed(format!("{{\"context\":[{context}1],{end}}}").as_bytes());
    assert_eq!(scanner.state(), &ScanState::Whole);
    let usage = scanner.usage();
    let found = (usage.load_duration_ns, usage.prompt_eval_count, usage.eval_count);
    assert_eq!(found, (Some(956_264), Some(17), Some(5)));
}

#[test]
fn counters_of_v1_come_from_their_usage() {
    let counted = |kind, answer: &str| {
        let mut scanner = AnswerScanner::new(kind);
        scanner.feed(answer.as_bytes());
        (scanner.usage().prompt_eval_count, scanner.usage().eval_count)
    };
    let usage = r#""usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}"#;
    let body = format!("{{\"choices\":[{{\"usage\":{{\"prompt_tokens\":1}}}}],{usage}}}");
    assert_eq!(counted(AnswerKind::JsonBody, &body), (Some(7), Some(5)));
    let stream = format!("data: {{\"usage\":null}}\n\ndata: {{{usage}}}\n\ndata: [DONE]\n\n");
    assert_eq!(counted(AnswerKind::OpenAiStream, &stream), (Some(7), Some(5)));
    let delta = "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}\n\n";
    assert_eq!(counted(AnswerKind::MessagesStream, delta), (Some(3), Some(4)));
    assert_eq!(counted(AnswerKind::JsonBody, r#"{"usage":[1]}"#), (None, None));
}

#[test]
fn an_openai_stream_is_whole_after_done() {
    let openai = |answer: &str| scan(AnswerKind::OpenAiStream, answer).0;
    let part = "data: {\"choices\":[{\"delta\":{\"content\":\"data: [DONE]\\n\\n\"}}]}\n\n";
    assert_eq!(openai(part), Verdict::Cut);
    assert_eq!(openai(&format!(": wait\n\n{part}data: [DONE]\n\n")), Verdict::Whole);
    assert_eq!(openai("data:[DONE]\r\n\r\n"), Verdict::Whole);
    assert_eq!(openai("data: [DONE]x\n\n"), Verdict::Malformed);
    // A number was malformed, since nothing but the end of the answer ended it.
    assert_eq!(scan(AnswerKind::OpenAiStream, "data: 1\n\ndata: 2\n\n"), (Verdict::Cut, 2));
    assert_eq!(openai("event: x\ndata: [DON"), Verdict::Malformed);
    let error = "data: {\"error\":{\"type\":\"api_error\",\"message\":\"boom\"}}\n\n";
    let found = scan(AnswerKind::OpenAiStream, &format!("{part}{error}"));
    assert_eq!(found, (Verdict::Error("boom".into()), 1));
}

#[test]
fn event_streams_are_whole_after_their_terminal_event() {
    use AnswerKind::{MessagesStream, ResponsesStream};
    let event = |kind: &str| format!("event: {kind}\ndata: {{\"type\":\"{kind}\",\"x\":{{}}}}\n\n");
    for (kind, name, verdict) in [
        (ResponsesStream, "response.output_text.delta", Verdict::Cut),
        (ResponsesStream, "response.completed", Verdict::Whole),
        (ResponsesStream, "response.incomplete", Verdict::Whole),
        (ResponsesStream, "response.failed", Verdict::Whole),
        (ResponsesStream, "message_stop", Verdict::Cut),
        (ResponsesStream, "error", Verdict::Error("error".into())),
        (MessagesStream, "message_delta", Verdict::Cut),
        (MessagesStream, "message_stop", Verdict::Whole),
    ] {
        assert_eq!(scan(kind, &event(name)).0, verdict, "{name}");
    }
    let error = "event: error\ndata: {\"type\":\"error\",\"error\":{\"message\":\"busy\"}}\n\n";
    assert_eq!(scan(MessagesStream, error).0, Verdict::Error("busy".into()));
    let nested = "data: {\"type\":\"x\",\"message\":{\"type\":\"message_stop\"}}\n\n";
    assert_eq!(scan(MessagesStream, nested).0, Verdict::Cut);
    assert_eq!(scan(MessagesStream, "event: message_stop\ndata: {}\n\n").0, Verdict::Whole);
    assert_eq!(scan(MessagesStream, "event: message_stop\ndata: {").0, Verdict::Malformed);
}

#[test]
fn a_body_is_whole_when_it_is_one_value() {
    let body = |answer| scan(AnswerKind::JsonBody, answer).0;
    for whole in ["{\"error\":\"x\"} \n", "[1]", "12", "null"] {
        assert_eq!(body(whole), Verdict::Whole, "{whole}");
    }
    assert_eq!((body(""), body("{\"a\":1"), body("-")), (Verdict::Cut, Verdict::Cut, Verdict::Cut));
    assert_eq!((body("{} {}"), body("nope")), (Verdict::Malformed, Verdict::Malformed));
    assert_eq!(scan(AnswerKind::Opaque, "anything").0, Verdict::Whole);
}
