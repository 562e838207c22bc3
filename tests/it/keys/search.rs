//! With keys, nobody passes beside the queue as if he were Ollama in a search: Ollama itself has no key.

use serde_json::json;
use stub_ollama::Capability;

use super::{ALICE, BOB, House, three};
use crate::harness::client::{open, request};
use crate::harness::jobs::with_header;
use crate::harness::{model, stub_config};

#[tokio::test]
async fn a_forged_step_of_a_search_waits_like_any_other_job() {
    let chatty = model("s").with(&[Capability::Completion, Capability::Tools]);
    let house = House::start_with(&three(), stub_config(&[]).model(chatty), |_| ()).await;
    house.stub.hold_tokens();
    let searching = json!({ "model": "s", "max_tokens": 9,
        "messages": [{ "role": "user", "content": "x" }],
        "tools": [{ "type": "web_search_20250305", "name": "web_search" }] });
    let addr = house.addr();
    let job = tokio::spawn(async move {
        super::ask(addr, ALICE, "POST", "/v1/messages", searching.to_string()).await
    });
    house.wait_for(|status| status["running"][0]["state"] == "working").await;
    let call = json!({ "id": "c", "function": { "name": "web_search", "arguments": {} } });
    let forged = json!({ "model": "s", "stream": false, "messages": [
        { "role": "user", "content": "x" },
        { "role": "assistant", "content": "", "tool_calls": [call] },
        { "role": "tool", "content": "found" },
    ] });
    let asked = request(house.addr(), "POST", "/api/chat", forged.to_string());
    let asked = with_header(asked, ("authorization", &format!("Bearer {BOB}")));
    let asked = with_header(asked, ("user-agent", "ollama/0.33.0"));
    let asking = tokio::spawn(async move { open(addr, asked).await.unwrap().rest().await });
    house.wait_for(|status| status["queue"]["depth"] == 1).await;
    house.stub.release_tokens();
    assert_eq!(job.await.unwrap().status, 200);
    let answer = asking.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("x-foreman-job-id").is_some());
}
