//! What Ollama tells of itself, and changes of its library: all that takes no model.

use super::{Ask, ask, chat, compare, get, models, post};

#[tokio::test]
async fn every_metadata_route_answers_as_ollama_does() {
    let digest = format!("sha256:{}", "0f".repeat(32));
    let mut asks: Vec<Ask> = [
        "/",
        "/api/version",
        "/api/status",
        "/api/tags",
        "/api/ps",
        "/v1/models",
        "/v1/models/m",
        "/v1/models/nope",
        "/v1/models/a/b",
        "/api/experimental/model-recommendations",
        "/api/version?a=b&c=%20d",
        "/api/tags?",
        "/nope",
        "/favicon.ico",
        "/api",
        "/v1/nope",
        "/api/version/",
        "/api/tags/?x=1",
        "//api/tags",
        "//api//tags?x=1",
        "/api/./tags",
        "/api/x/../tags",
        "/api/%74ags",
        "/api/%zz",
        "/API/TAGS",
        "/api/chat",
        "/api/pull",
        "/api/delete",
        "/v1/chat/completions",
        "/v1/messages",
        "/api/blobs/x",
        "/jobsx",
        "/eventsx/1",
    ]
    .map(get)
    .to_vec();
    for target in ["/", "/api/version", "/api/tags", "/api/chat", "/api/ps", "/nope", "/api/tags/"]
    {
        asks.push(ask("HEAD", target, ""));
    }
    for method in ["PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "get"] {
        asks.extend([ask(method, "/api/chat", ""), ask(method, "/api/tags", "")]);
        asks.push(ask(method, "/nope", ""));
    }
    for target in ["/api/chat/", "//api/chat", "/v1//chat/completions", "/api/nope", "/api/embed/"]
    {
        asks.push(post(target, chat("")));
    }
    for target in ["/api/me", "/api/signout", "/api/experimental/web_search", "/api/version"] {
        asks.push(post(target, "{}"));
    }
    for body in
        ["{\"model\":\"m\"}", "{\"name\":\"fim\"}", "{\"model\":\"nope\"}", "{}", "", "{bad"]
    {
        asks.extend([post("/api/show", body), post("/api/show", format!(" {body} "))]);
    }
    asks.push(ask("DELETE", "/api/user/keys/abc", ""));
    asks.push(ask("HEAD", &format!("/api/blobs/{digest}"), ""));
    asks.push(ask("HEAD", "/api/blobs/sha256:zz", ""));
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn every_preflight_and_origin_answers_as_ollama_does() {
    let mut asks = Vec::new();
    for target in
        ["/api/chat", "/api/tags", "/v1/messages", "/nope", "/", "/api/embed", "/api/pull"]
    {
        let preflight = ask("OPTIONS", target, "").line("Access-Control-Request-Method: POST");
        asks.push(preflight.clone().line("Origin: http://localhost:3000"));
        asks.push(preflight.clone().line("Origin: http://evil.example"));
        asks.push(preflight);
    }
    for origin in ["http://localhost:3000", "app://x", "http://evil.example", "null"] {
        let line = format!("Origin: {origin}");
        asks.extend([get("/api/version").line(&line), get("/nope").line(&line)]);
        asks.extend([get("/api/chat").line(&line), post("/api/chat", chat("")).line(&line)]);
        asks.push(post("/v1/embeddings", r#"{"model":"embed","input":"x"}"#).line(&line));
        asks.push(post("/api/chat", "{bad").line(&line));
    }
    compare(models(), None, asks).await;
}

#[tokio::test]
async fn every_change_of_the_library_answers_as_ollama_does() {
    let blob = |hex: &str| format!("/api/blobs/sha256:{}", hex.repeat(32));
    let encoded = blob("0e").replace(':', "%3A");
    let mut asks = Vec::new();
    for body in [
        "{\"model\":\"new\"}",
        "{\"name\":\"new\",\"stream\":false}",
        "{\"model\":\"nope\"}",
        "{\"model\":\"nope\",\"stream\":false}",
        "{\"model\":\"a b\"}",
        "{}",
        "",
        "{bad",
        "[1]",
        "{\"model\":\"m\",\"stream\":\"x\"}",
    ] {
        asks.extend([post("/api/pull", body), post("/api/push", body)]);
    }
    asks.extend([
        post(&blob("0e"), vec![7; 300_000]),
        ask("HEAD", &blob("0e"), ""),
        ask("HEAD", &encoded, ""),
        post(&blob("0e"), "known already"),
        post("/api/blobs/sha256:short", "x"),
        post(&blob("0d"), "5\r\nhello\r\n0\r\n\r\n").line("Transfer-Encoding: chunked"),
        post("/api/create", r#"{"model":"mine","from":"m","parameters":{"num_ctx":512}}"#),
        post("/api/create", r#"{"model":"own","from":"m","stream":false}"#),
        post("/api/create", r#"{"model":"mine"}"#),
        post("/api/create", r#"{"model":"mine","from":"nope"}"#),
        post("/api/show", r#"{"model":"mine"}"#),
        post("/api/copy", r#"{"source":"m","destination":"m2"}"#),
        post("/api/copy", r#"{"source":"nope","destination":"m3"}"#),
        post("/api/copy", r#"{"source":"m","destination":"a b"}"#),
        post("/api/chat", r#"{"model":"m2","messages":[{"role":"user","content":"x"}]}"#),
        ask("DELETE", "/api/delete", r#"{"model":"m2"}"#),
        ask("DELETE", "/api/delete", r#"{"name":"mine"}"#),
        ask("DELETE", "/api/delete", r#"{"model":"nope"}"#),
        ask("DELETE", "/api/delete", "{bad"),
        ask("DELETE", "/api/delete", ""),
        post("/api/chat", r#"{"model":"m2","messages":[{"role":"user","content":"x"}]}"#),
        get("/api/tags"),
    ]);
    compare(models(), None, asks).await;
}
