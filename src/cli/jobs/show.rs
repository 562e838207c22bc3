//! `foreman jobs show`: one job on a page.

use serde_json::Value;

use crate::cli::ask::{Call, Caller, encoded};
use crate::cli::fault::Fault;
use crate::cli::status_text::{items, text};
use crate::cli::{Exit, put};

use super::arguments::One;
use super::list::cut;
use super::outcome::reason;
use super::text::text_of;

/// Lines of the result that are shown; `jobs follow` prints it all.
const RESULT_LINES_MAX: usize = 10;

/// Columns of such a line.
const RESULT_WIDTH: usize = 100;

/// Prints the page.
pub(super) async fn show(caller: &Caller, arguments: &One) -> Result<Exit, Fault> {
    let answer = caller.call(Call::get(&format!("/jobs/{}", encoded(&arguments.id)))).await?;
    let page = match arguments.json {
        true => format!("{}\n", answer.text().trim_end()),
        false => render(&answer.json()?),
    };
    put(page.as_bytes()).map(|()| Exit::Fine)
}

/// The page of a job object.
fn render(job: &Value) -> String {
    let mut page = String::new();
    let mut line = |name: &str, value: &str| {
        page.push_str(&format!("{name:<12} {value}\n"));
    };
    let cancelling = if job["is_cancelling"] == true { ", being cancelled" } else { "" };
    line("job", &text(&job["job_id"]));
    line("state", &format!("{}{cancelling}", text(&job["state"])));
    line("model", &format!("{} (load key {})", text(&job["model"]), text(&job["load_key"])));
    line("route", &format!("{}, {}", text(&job["endpoint"]), text(&job["priority"])));
    for (name, member) in [
        ("created", "created_at"),
        ("not before", "run_at"),
        ("deadline", "deadline"),
        ("queued", "queued_at"),
        ("next try", "not_before"),
        ("loading", "loading_at"),
        ("working", "working_at"),
        ("done", "done_at"),
        ("failed", "failed_at"),
        ("cancelled", "cancelled_at"),
        ("webhook", "state_webhook_url"),
        ("key", "idempotency_key"),
    ] {
        if let Some(value) = job[member].as_str() {
            line(name, value);
        }
    }
    if let Some(position) = job["position"].as_u64() {
        let start = job["estimated_start"].as_str();
        let start = start.map_or(String::new(), |start| format!(", perhaps at {start}"));
        line("position", &format!("{position} in the order of service{start}"));
    }
    for attempt in items(&job["attempts"]) {
        line(&format!("attempt {}", attempt["attempt"]), &attempt_text(attempt));
    }
    line("timings", &timings(&job["timings"]));
    line("usage", &usage(&job["usage"]));
    if !job["error"].is_null() {
        line("error", &reason(job));
    }
    if job["metadata"].is_object() {
        line("metadata", &job["metadata"].to_string());
    }
    for artifact in items(&job["artifacts"]) {
        line("artifact", &format!("{}, {} bytes", text(&artifact["url"]), artifact["size"]));
    }
    result(&mut page, &job["result"]);
    page
}

fn attempt_text(attempt: &Value) -> String {
    let ended = attempt["ended_at"].as_str();
    let ended = ended.map_or(String::new(), |ended| format!(" to {ended}"));
    let outcome = text(&attempt["outcome"]).replace('_', " ");
    let mut line = format!("{outcome}, {}{ended}", text(&attempt["claimed_at"]));
    if !attempt["error"].is_null() {
        line.push_str(&format!(": {}", reason(attempt)));
    }
    line
}

fn timings(timings: &Value) -> String {
    let parts = [
        ("queue_ms", "waited"),
        ("load_ms", "loaded"),
        ("first_token_ms", "first token after"),
        ("generate_ms", "generated"),
        ("store_ms", "stored in"),
    ];
    let given = parts
        .iter()
        .filter_map(|(member, name)| timings[*member].as_u64().map(|ms| format!("{name} {ms} ms")));
    listed(given.collect())
}

fn usage(usage: &Value) -> String {
    let parts = [("prompt_tokens", "of the prompt"), ("output_tokens", "generated")];
    let given = parts.iter().filter_map(|(member, name)| {
        usage[*member].as_u64().map(|tokens| format!("{tokens} tokens {name}"))
    });
    listed(given.collect())
}

fn listed(parts: Vec<String>) -> String {
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

fn result(page: &mut String, result: &Value) {
    if result.is_null() {
        return;
    }
    let said = text_of(result);
    let said = if said.is_empty() { result.to_string() } else { said };
    page.push_str("result\n");
    for line in said.lines().take(RESULT_LINES_MAX) {
        page.push_str(&format!("  {}\n", cut(line, RESULT_WIDTH)));
    }
    let more = said.lines().count().saturating_sub(RESULT_LINES_MAX);
    if more > 0 {
        page.push_str(&format!("  and {more} more lines\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_tells_states_attempts_timings_and_the_beginning_of_the_result() {
        let job = json!({
            "job_id": "01M9", "state": "done", "is_cancelling": false, "endpoint": "/api/chat", "model": "llama3",
            "load_key": "llama3:latest", "priority": "batch", "created_at": "2026-11-24T12:00:00.000Z",
            "done_at": "2026-11-24T12:00:09.000Z", "position": null,
            "attempts": [
                { "attempt": 1, "claimed_at": "T1", "ended_at": "T2", "outcome": "put_back", "error": "no memory" },
                { "attempt": 2, "claimed_at": "T3", "ended_at": "T4", "outcome": "done", "error": null },
            ],
            "timings": { "queue_ms": 12, "load_ms": null, "generate_ms": 900 },
            "usage": { "prompt_tokens": 17, "output_tokens": 5 }, "error": null,
            "result": { "message": { "content": "line\n".repeat(12) } },
        });
        let page = render(&job);
        for line in [
            "state        done\n",
            "attempt 1    put back, T1 to T2: no memory\n",
            "attempt 2    done, T3 to T4\n",
            "timings      waited 12 ms, generated 900 ms\n",
            "usage        17 tokens of the prompt, 5 tokens generated\n",
            "  and 2 more lines\n",
        ] {
            assert!(page.contains(line), "{line:?} is missing:\n{page}");
        }
    }

    #[test]
    fn a_job_that_never_ran_has_a_page_too() {
        let page = render(
            &json!({ "job_id": "01M9", "state": "queued", "position": 3, "timings": {}, "result": null }),
        );
        assert!(page.contains("position     3 in the order of service\n"), "{page}");
        assert!(!page.contains("result"), "{page}");
    }
}
