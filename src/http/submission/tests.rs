//! Tests of submissions: what is taken, what is told, and that the bytes for Ollama are the client's.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

/// 2026-11-24T12:00:00Z.
const NOW_MS: i64 = 1_795_521_600_000;

fn read(body: impl AsRef<[u8]>) -> Result<Submission, Rejection> {
    parse(&Bytes::copy_from_slice(body.as_ref()), NOW_MS)
}

fn good(body: &str) -> Submission {
    read(body).unwrap_or_else(|rejection| panic!("{body}: {rejection:?}"))
}

fn faults(body: &str) -> Vec<(String, String)> {
    match read(body) {
        Err(Rejection::Invalid(faults)) => {
            faults.into_iter().map(|fault| (fault.pointer, fault.detail)).collect()
        }
        other => panic!("{body}: {other:?}"),
    }
}

fn pointers(body: &str) -> Vec<String> {
    faults(body).into_iter().map(|(pointer, _)| pointer).collect()
}

#[test]
fn a_native_request_keeps_its_bytes() {
    let body = " {\"model\" : \"LLaMA3\", \"x\":1.0,\"messages\":[{}]}\n";
    let found = good(body);
    assert_eq!((found.dialect, found.path), (Dialect::Chat, "/api/chat"));
    assert_eq!(found.body, body);
    assert_eq!(found.model.name.to_string(), "llama3:latest");
    assert_eq!((found.class, found.run_at_ms, found.deadline_ms), (None, None, None));
    assert_eq!((found.webhook, found.metadata, found.idempotency_key), (None, None, None));
    assert!(found.request.stream);
}

#[test]
fn fields_are_cut_out_of_a_native_request() {
    let found = good(concat!(
        r#"{"priority":"batch","model":"m","state_webhook_url":"http://h/a?b=\u0063","messages":[],"#,
        r#""run_at":"2026-11-24T14:30:00+02:00","dead\u006cine":"2026-11-24T13:00:00.5Z","#,
        r#""metadata": {"b" : [1, 2.0], "a":"x \" y"} ,"options":{"priority":1},"#,
        r#""Priority":"mine","idempotency_key":"k 1"}"#,
    ));
    let left = r#"{"model":"m","messages":[],"options":{"priority":1},"Priority":"mine"}"#;
    assert_eq!(found.body, left);
    assert_eq!(found.class, Some(Class::Batch));
    assert_eq!(found.webhook.map(|webhook| webhook.url).as_deref(), Some("http://h/a?b=c"));
    assert_eq!(found.run_at_ms, Some(NOW_MS + 30 * 60 * 1_000));
    assert_eq!(found.deadline_ms, Some(NOW_MS + 60 * 60 * 1_000 + 500));
    assert_eq!(found.metadata.as_deref(), Some(r#"{"b":[1,2.0],"a":"x \" y"}"#));
    assert_eq!(found.idempotency_key.as_deref(), Some("k 1"));
}

#[test]
fn an_envelope_carries_the_request_of_any_queued_route() {
    let inner = "{ \"model\":\"m\" ,\"priority\":1, \"messages\":[ ]}";
    for (path, dialect) in [
        ("/api/chat", Dialect::Chat),
        ("/api/generate", Dialect::Generate),
        ("/v1/chat/completions", Dialect::OpenAiChat),
        ("/v1/completions", Dialect::OpenAiCompletions),
        ("/v1/responses", Dialect::Responses),
        ("/v1/messages", Dialect::Messages),
    ] {
        let found =
            good(&format!(r#"{{"priority":"interactive","body": {inner} ,"endpoint":"{path}"}}"#));
        assert_eq!(
            (found.dialect, found.path, found.class),
            (dialect, path, Some(Class::Interactive))
        );
        assert_eq!(found.body, inner);
    }
    // A null is as good as not given, and the default is a chat.
    let found =
        good(&format!(r#"{{"endpoint":null,"deadline":null,"metadata":null,"body":{inner}}}"#));
    assert_eq!((found.path, found.body.as_ref()), ("/api/chat", inner.as_bytes()));
}

#[test]
fn all_faults_are_told_at_once() {
    let body = r#"{"priority":"urgent","model":7,"messages":{},"run_at":"tomorrow","metadata":[],
        "state_webhook_url":"ftp://h","idempotency_key":"","deadline":1,"options":{"num_ctx":"x"},"keep_alive":"-1"}"#;
    let mut found = pointers(body);
    found.sort();
    assert_eq!(
        found,
        [
            "/deadline",
            "/idempotency_key",
            "/keep_alive",
            "/messages",
            "/metadata",
            "/model",
            "/options/num_ctx",
            "/priority",
            "/run_at",
            "/state_webhook_url",
        ]
    );
    let enveloped =
        r#"{"endpoint":"/api/embed","body":{"model":" "},"a/b~c":1,"Priority":2,"priority":3}"#;
    assert_eq!(
        pointers(enveloped),
        ["/a~1b~0c", "/Priority", "/endpoint", "/priority", "/body/model"]
    );
}

#[test]
fn each_fault_has_the_pointer_of_what_the_client_wrote() {
    for (body, pointer, detail) in [
        ("[]", "", "must be an object"),
        ("null", "", "must be an object"),
        ("{}", "/model", "is required"),
        (r#"{"MODEL":""}"#, "/MODEL", "is required"),
        (r#"{"model":"a b"}"#, "/model", "malformed"),
        (r#"{"model":"m","Messages":1}"#, "/Messages", "must be a list"),
        (r#"{"model":"m","options":{"x":1e999}}"#, "/options", "out of range"),
        (r#"{"model":"m","think":1}"#, "/think", "level"),
        (r#"{"model":"m","priority":"batch","priority":"batch"}"#, "/priority", "twice"),
        (r#"{"model":"m","run_at":null,"run_at":null}"#, "/run_at", "twice"),
        (r#"{"model":"m","priority":"Batch"}"#, "/priority", "interactive, normal, batch"),
        (r#"{"model":"m","run_at":5}"#, "/run_at", "must be a text"),
        (r#"{"model":"m","deadline":"2026-11-24T12:00:00Z"}"#, "/deadline", "in the past"),
        (
            r#"{"model":"m","run_at":"2027-01-01T00:00:00Z","deadline":"2027-01-01T00:00:00Z"}"#,
            "/deadline",
            "after run_at",
        ),
        (r#"{"model":"m","metadata":{"a":1e999}}"#, "/metadata", "no value"),
        (r#"{"model":"m","metadata":{"a":"\ud800"}}"#, "/metadata", "no value"),
        (r#"{"model":"m","idempotency_key":"é"}"#, "/idempotency_key", "ASCII"),
        (r#"{"body":{"model":"m"}}"#, "/body", "needs an endpoint"),
        (r#"{"endpoint":"/api/chat"}"#, "/body", "is required"),
        (r#"{"endpoint":"/api/chat","body":[]}"#, "/body", "must be an object"),
        (r#"{"endpoint":"/api/chat","body":{"model":"m","tools":1}}"#, "/body/tools", "a list"),
        (r#"{"endpoint":"/api/chat/","body":{"model":"m"}}"#, "/endpoint", "/v1/messages"),
        (r#"{"endpoint":"/api/chat","body":{"model":"m"},"stream":false}"#, "/stream", "unknown"),
    ] {
        let found = faults(body);
        assert!(
            found.iter().any(|(at, why)| at == pointer && why.contains(detail)),
            "{body}: {found:?}"
        );
    }
    assert!(good(r#"{"model":"m","run_at":"2020-01-01T00:00:00Z"}"#).run_at_ms.is_some());
}

#[test]
fn what_is_no_json_is_told_with_its_place() {
    for (body, line, column) in
        [("", 1, 1), ("{\"model\":\"m\"", 1, 13), ("{\n\"model\":\"m\",}", 2, 13), ("{}x", 1, 3)]
    {
        let Err(Rejection::NotJson(wrong)) = read(body) else { panic!("{body}") };
        assert_eq!((wrong.line, wrong.column), (line, column), "{body}");
    }
    let problem = Problem::from(read("{").unwrap_err());
    assert_eq!(problem.code, Code::MalformedBody);
    assert!(problem.detail.contains("line 1, column 2"));
}

#[test]
fn metadata_has_a_limit_and_white_space_does_not_count() {
    let space = " ".repeat(20_000);
    let body =
        |value: &str| format!("{{\"model\":\"m\",\"metadata\":{{\"a\":\"{value}\"{space}}}}}");
    let limit = 16 * 1024 - r#"{"a":""}"#.len();
    assert_eq!(good(&body(&"x".repeat(limit))).metadata.unwrap().len(), 16 * 1024);
    assert_eq!(faults(&body(&"x".repeat(limit + 1)))[0].0, "/metadata");
    let deep =
        format!(r#"{{"model":"m","metadata":{{"a":{}{}}}}}"#, "[".repeat(500), "]".repeat(500));
    assert_eq!(pointers(&deep), ["/metadata"]);
}

#[test]
fn large_and_deep_bodies_are_taken() {
    let image = "A".repeat(10 << 20);
    let body =
        format!(r#"{{"priority":"batch","model":"m","messages":[{{"images":["{image}"]}}]}}"#);
    assert_eq!(good(&body).body.len(), body.len() - r#""priority":"batch","#.len());
    let nested =
        |depth: usize| format!(r#"{{"model":"m","x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    assert!(read(nested(9_999)).is_ok());
    assert!(matches!(read(nested(10_000)), Err(Rejection::NotJson(_))));
    let many = format!(r#"{{"endpoint":"/api/chat"{}}}"#, r#","x":1"#.repeat(1_000_000));
    assert!(faults(&many).len() < 100);
    let wide = format!(r#"{{"endpoint":"/api/chat","{}":1}}"#, "k".repeat(1 << 20));
    assert!(pointers(&wide)[0].len() < 200);
}

#[test]
fn the_header_and_the_field_must_agree_on_the_key() {
    let mut found = good(r#"{"model":"m","idempotency_key":"a"}"#);
    assert_eq!((found.agree_on_key(None), found.agree_on_key(Some("a".into()))), (Ok(()), Ok(())));
    assert!(found.agree_on_key(Some("b".into())).is_err());
    let mut found = good(r#"{"model":"m"}"#);
    assert_eq!(found.agree_on_key(Some("b".into())), Ok(()));
    assert_eq!(found.idempotency_key.as_deref(), Some("b"));
}

#[test]
fn fields_make_a_difference_to_a_duplicate() {
    let of = |rest: &str| good(&format!(r#"{{"model":"m"{rest}}}"#)).fields_fingerprint();
    assert_eq!(of(""), of(r#","priority":"normal","metadata":null"#));
    for other in [r#","priority":"batch""#, r#","metadata":{}"#, r#","idempotency_key":"-""#] {
        assert_ne!(of(""), of(other), "{other}");
    }
}

#[test]
fn a_batch_is_an_array_or_lines() {
    let items = |body: &str| split(&Bytes::copy_from_slice(body.as_bytes())).unwrap();
    let array = " [ {\"a\":[1,{}]} ,7, \"],[\" ,{} ]\n";
    assert_eq!(items(array), ["{\"a\":[1,{}]}", "7", "\"],[\"", "{}"]);
    assert_eq!(items("\n{\"a\":1}\r\n \n nope\n{}"), ["{\"a\":1}", "nope", "{}"]);
    assert!(items("[]").is_empty());
    let fault = |body: &str| split(&Bytes::copy_from_slice(body.as_bytes())).unwrap_err();
    for body in ["", " \n", "[{}", "[{}]]", "[{},]", "7", "\"x\"", "nope\n{}"] {
        assert!(matches!(fault(body), BatchFault::NotJson(_)), "{body}");
    }
    let lines = |count| "{}\n".repeat(count);
    assert_eq!(items(&lines(ITEMS_MAX)).len(), ITEMS_MAX);
    assert_eq!(fault(&lines(ITEMS_MAX + 1)), BatchFault::TooMany);
    assert_eq!(fault(&format!("[{}0]", "0,".repeat(ITEMS_MAX))), BatchFault::TooMany);
    assert_eq!(Problem::from(BatchFault::TooMany).code, Code::BodyTooLarge);
    assert_eq!(Problem::from(fault("7")).code, Code::MalformedBody);
}

#[test]
fn a_batch_is_checked_in_order_and_one_bad_item_harms_no_other() {
    let items: Vec<Bytes> = (0..2_000)
        .map(|n| if n % 7 == 3 { "{".into() } else { format!(r#"{{"model":"m{n}"}}"#).into() })
        .collect();
    let results = parse_all(&items, NOW_MS, |submission, item| {
        (submission.model.name.to_string(), item.len())
    });
    assert_eq!(results.len(), items.len());
    for (n, result) in results.into_iter().enumerate() {
        match result {
            Ok((_, (name, length))) => {
                assert_eq!((name, length), (format!("m{n}:latest"), items[n].len()))
            }
            Err(rejection) => assert!(n % 7 == 3 && matches!(rejection, Rejection::NotJson(_))),
        }
    }
    assert!(parse_all(&[], NOW_MS, |_, _| ()).is_empty());
}

/// Foreman's fields in any spelling, between members of Ollama's and of nobody's.
fn spelled() -> impl Strategy<Value = Vec<(String, bool)>> {
    let fields = prop::sample::select(vec![
        (r#""priority""#, r#""batch""#),
        (r#""pr\u0069ority""#, "null"),
        (r#""run_at""#, r#""2026-11-24T12:00:00Z""#),
        (r#""metadata""#, r#"{"a": [1, "}, \"run_at\":"]}"#),
        (r#""idempotency_\u006bey""#, r#""k""#),
        (r#""state_webhook_url""#, r#""http://h/""#),
    ]);
    let fields = fields.prop_map(|(key, value)| (key.to_owned(), value.to_owned(), true));
    let others = ("[a-z]{1,2}", any::<f64>()).prop_map(|(key, number)| {
        (
            json!(key).to_string(),
            json!({"priority": [number, "}, \"priority\":"]}).to_string(),
            false,
        )
    });
    let space = "[ \t\r\n]{0,2}";
    let member = (prop_oneof![fields, others], space, space, space, space).prop_map(
        |((key, value, is_cut), a, b, c, d)| (format!("{a}{key}{b}:{c}{value}{d}"), is_cut),
    );
    prop::collection::vec(member, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn cutting_the_fields_changes_nothing_else(members in spelled(), turn in 0_usize..8) {
        let mut members = members;
        members.push(("\"model\":\"m\"".into(), false));
        let turn = turn % members.len();
        members.rotate_right(turn);
        let texts = |kept: bool| {
            let texts = members.iter().filter(|member| !kept || !member.1).map(|member| member.0.as_str());
            format!("{{{}}}", texts.collect::<Vec<_>>().join(","))
        };
        match read(texts(false)) {
            Ok(found) => {
                let left: Value = serde_json::from_slice(&found.body).unwrap();
                prop_assert_eq!(left, serde_json::from_str::<Value>(&texts(true)).unwrap());
                for (text, _) in members.iter().filter(|member| !member.1) {
                    prop_assert!(memchr::memmem::find(&found.body, text.trim().as_bytes()).is_some());
                }
                // What was cut stays cut: the same bytes again are a submission without fields.
                prop_assert_eq!(read(&found.body).unwrap().body, found.body);
            }
            Err(Rejection::Invalid(faults)) => {
                prop_assert!(faults.iter().all(|fault| fault.detail == "is given twice"), "{:?}", faults);
            }
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn any_bytes_are_judged_without_a_panic(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..12),
        noise in any::<Vec<u8>>(),
    ) {
        for body in [pieces.concat().into_bytes(), noise.clone(), [pieces.concat().as_bytes(), &noise].concat()] {
            let body = Bytes::from(body);
            match parse(&body, NOW_MS) {
                Ok(found) => prop_assert!(serde_json::from_slice::<Value>(&found.body).is_ok()),
                Err(Rejection::Invalid(faults)) => prop_assert!(!faults.is_empty()),
                Err(Rejection::NotJson(_)) => {}
            }
            if let Ok(items) = split(&body) {
                prop_assert_eq!(parse_all(&items, NOW_MS, |_, _| ()).len(), items.len());
            }
        }
    }

    #[test]
    fn an_array_and_its_lines_are_the_same_items(numbers in prop::collection::vec(any::<i32>(), 1..20)) {
        let items: Vec<String> = numbers.iter().map(|n| json!({"n": n, "t": "],\n["}).to_string()).collect();
        let array = split(&Bytes::from(format!("[{}]", items.join(" ,\n")))).unwrap();
        prop_assert_eq!(&array, &items);
        prop_assert_eq!(split(&Bytes::from(items.join("\n\n"))).unwrap(), items);
    }
}

const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\n",
    "{\"model\":\"m\"",
    "\"model\":\"m\"",
    "\"endpoint\":\"/api/chat\"",
    "\"body\":{\"model\":\"m\"}",
    "\"priority\":\"batch\"",
    "\"options\":{\"seed\":\"x\"}",
    "\"messages\":1",
    "null",
    "\"metadata\":{\"a\":1}",
    "\"\\u00",
];
