//! Errors of all kinds before the first byte, in the shape of each dialect.

use stub_ollama::{Action, Fault, Stage};

use super::{chat, compare, models, post};

/// Bodies that say something about reading JSON as Go does; the first `m` of each is a model.
fn odd_bodies() -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "null",
        "{}",
        "[]",
        "1",
        "\"x\"",
        "{bad",
        "{\"model\":\"m\"",
        "{\"model\":1}",
        "{\"model\":\"\"}",
        "{\"model\":\" \"}",
        "{\"model\":\"nope\"}",
        "{\"model\":\"a b\"}",
        "{\"model\":\"m:cloud:local\"}",
        "{\"model\":\"x:cloud\"}",
        "{\"model\":\"x:1b-cloud\"}",
        "{\"model\":\"../m\"}",
        "{\"model\":\"m:\"}",
        "{\"model\":\"nope\"} trailing",
        "\u{feff}{\"model\":\"m\"}",
        "{\"model\":\"nope\",}",
        "{\"model\":\"m\" // x\n}",
        "{\"model\":\"embed\"}",
        "{\"messages\":[]}",
        "{\"model\":\"nope\",\"stream\":false}",
    ]
    .map(Vec::from)
    .to_vec();
    bodies.push(b"{\"model\":\"\xff\xfe\"}".to_vec());
    bodies.push(br#"{"model":"\ud800"}"#.to_vec());
    bodies
}

#[tokio::test]
async fn every_error_answers_as_ollama_does() {
    let mut asks = Vec::new();
    for target in [
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/api/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/audio/transcriptions",
    ] {
        asks.extend(odd_bodies().into_iter().map(|body| post(target, body)));
    }
    for members in [
        r#","keep_alive":"abc""#,
        r#","keep_alive":"-1""#,
        r#","keep_alive":{}"#,
        r#","stream":"false""#,
        r#","stream":1"#,
        r#","format":"xml""#,
        r#","format":5"#,
        r#","options":{"num_ctx":"x"}"#,
        r#","options":{"temperature":"hot"}"#,
        r#","options":[]"#,
        r#","options":{"stop":1}"#,
        r#","think":true"#,
        r#","think":"huge""#,
        r#","think":1"#,
        r#","tools":[{}]"#,
        r#","tools":{}"#,
        r#","messages":5"#,
        r#","messages":[5]"#,
        r#","top_logprobs":99"#,
        r#","shift":"x""#,
        r#","messages":[{"role":5}]"#,
    ] {
        asks.push(post("/api/chat", chat(members)));
        asks.push(post("/v1/chat/completions", chat(members)));
        let generate = format!(r#"{{"model":"m","prompt":"x"{members}}}"#);
        asks.push(post("/api/generate", generate));
    }
    for (target, body) in [
        ("/api/chat", r#"{"model":"embed","messages":[{"role":"user","content":"x"}]}"#),
        ("/api/generate", r#"{"model":"embed","prompt":"x"}"#),
        ("/api/generate", r#"{"model":"m","prompt":"x","suffix":"y"}"#),
        ("/api/generate", r#"{"model":"m","prompt":5}"#),
        ("/api/embed", r#"{"model":"m","input":"x"}"#),
        ("/api/embeddings", r#"{"model":"m","prompt":"x"}"#),
        ("/api/embed", r#"{"model":"embed","input":5}"#),
        ("/v1/chat/completions", r#"{"model":"m","messages":[]}"#),
        ("/v1/chat/completions", r#"{"model":"embed","messages":[{"role":"user","content":"x"}]}"#),
        ("/v1/completions", r#"{"model":"embed","prompt":"x"}"#),
        ("/v1/messages", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#),
        ("/v1/messages", r#"{"model":"m","max_tokens":5}"#),
        ("/v1/messages", r#"{"max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#),
        ("/v1/responses", r#"{"input":"x"}"#),
        ("/v1/embeddings", r#"{"model":"embed"}"#),
    ] {
        asks.push(post(target, body));
    }
    compare(models(), None, asks).await;
}

/// Statuses that Ollama, or a proxy before it, may give. Those worth another try are tried until it gives up.
#[tokio::test]
async fn an_error_of_any_status_reaches_the_client_as_it_was() {
    let embed = r#"{"model":"embed","input":"x","prompt":"x"}"#.to_owned();
    let max = chat(r#","max_tokens":5"#);
    for status in [400, 401, 403, 404, 409, 413, 422, 429, 500, 501, 502, 503, 504] {
        let mut asks = Vec::new();
        for (target, body) in [
            ("/api/chat", chat("")),
            ("/api/chat", chat(r#","stream":false"#)),
            ("/v1/chat/completions", chat(r#","stream":true"#)),
            ("/v1/completions", r#"{"model":"m","prompt":"x"}"#.to_owned()),
            ("/v1/responses", r#"{"model":"m","input":"x"}"#.to_owned()),
            ("/v1/messages", max.clone()),
            ("/api/embed", embed.clone()),
            ("/v1/embeddings", embed.clone()),
            ("/api/embeddings", embed.clone()),
        ] {
            asks.push(post(target, body));
        }
        let fault = Action::Answer {
            status,
            text: "told <so> & \"thus\"".to_owned(),
            // Foreman waits as long as it is told to before it tries again.
            retry_after_seconds: Some(0),
            stage: Stage::AfterLoad,
        };
        let fault = Fault::new(fault).forever();
        // Not the calls foreman makes to load.
        let config = models();
        for ask in asks {
            let fault = fault.clone().path(&ask.target);
            compare(config.clone(), Some(fault), vec![ask]).await;
        }
    }
}

/// A runner that dies before the first byte, again and again: the client gets Ollama's own last word.
#[tokio::test]
async fn a_runner_that_always_dies_is_told_in_ollama_s_words() {
    for (target, body) in [
        ("/api/chat", chat("")),
        ("/v1/chat/completions", chat(r#","stream":true"#)),
        ("/v1/messages", chat(r#","max_tokens":5"#)),
        ("/api/embed", r#"{"model":"embed","input":"x"}"#.to_owned()),
        ("/api/embeddings", r#"{"model":"embed","prompt":"x"}"#.to_owned()),
    ] {
        let fault = Fault::new(Action::KillRunner(0)).path(target).forever();
        compare(models(), Some(fault), vec![post(target, body)]).await;
    }
}
