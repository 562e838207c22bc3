//! `foreman jobs list`: a line for each job, the newest first.

use serde_json::{Value, json};

use crate::cli::ask::{Call, Caller, encoded};
use crate::cli::fault::Fault;
use crate::cli::status_text::{age, items, millis, text};
use crate::cli::{Exit, put};
use crate::clock::Clock;

use super::arguments::List;
use super::outcome::reason;

/// Columns of the model; a longer name is cut.
const MODEL_WIDTH: usize = 24;

/// Columns of a line, as far as the error goes.
const WIDTH: usize = 120;

/// Jobs of a page, where all are asked for: as many as the daemon gives.
const PAGE_MAX: u8 = 100;

/// Prints a page, or all.
pub(super) async fn list(caller: &Caller, arguments: &List) -> Result<Exit, Fault> {
    let mut after = arguments.after.clone();
    let mut whole = Vec::new();
    let mut is_first = true;
    loop {
        let call = Call::get(&path(arguments, after.as_deref()));
        let mut page = caller.call(call).await?.json()?;
        after = page["last_id"].as_str().map(str::to_owned);
        let goes_on = arguments.all && page["has_more"] == true && after.is_some();
        match (arguments.json, arguments.all) {
            (true, false) => put(format!("{page}\n").as_bytes())?,
            (true, true) => match page["data"].take() {
                Value::Array(jobs) => whole.extend(jobs),
                _ => break,
            },
            (false, _) => {
                let lines = lines(items(&page["data"]), Clock::system().now_ms());
                if is_first && !lines.is_empty() {
                    put(head().as_bytes())?;
                }
                put(lines.as_bytes())?;
            }
        }
        is_first = false;
        if !goes_on {
            break;
        }
    }
    if arguments.json && arguments.all {
        let id = |job: Option<&Value>| job.map_or(Value::Null, |job| job["job_id"].clone());
        let (first, last) = (id(whole.first()), id(whole.last()));
        let list = json!({ "object": "list", "data": whole, "first_id": first, "last_id": last, "has_more": false });
        put(format!("{list}\n").as_bytes())?;
    }
    Ok(Exit::Fine)
}

fn path(arguments: &List, after: Option<&str>) -> String {
    let is_async = arguments.is_async.map(|is_async| is_async.to_string());
    let limit =
        arguments.limit.or(arguments.all.then_some(PAGE_MAX)).map(|limit| limit.to_string());
    query(
        "/jobs",
        &[
            ("state", arguments.state.as_deref()),
            ("model", arguments.model.as_deref()),
            ("priority", arguments.priority.as_deref()),
            ("is_async", is_async.as_deref()),
            ("created_after", arguments.created_after.as_deref()),
            ("created_before", arguments.created_before.as_deref()),
            ("limit", limit.as_deref()),
            ("after", after),
        ],
    )
}

/// A path with the parameters that are given.
pub(super) fn query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| Some((name, (*value)?)));
    let given: Vec<String> =
        given.map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    match given.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", given.join("&")),
    }
}

fn head() -> String {
    let columns = ["job", "state", "priority", "age", "tries", "model"];
    format!("{} error\n", row(columns).trim_end())
}

fn row([id, state, priority, age, tries, model]: [&str; 6]) -> String {
    format!("{id:<26} {state:<9} {priority:<11} {age:>6} {tries:>5} {model:<MODEL_WIDTH$}")
}

fn lines(jobs: &[Value], now_ms: i64) -> String {
    let line = |job: &Value| {
        let error = if job["error"].is_null() { String::new() } else { reason(job) };
        let cells = row([
            &text(&job["job_id"]),
            &text(&job["state"]),
            &text(&job["priority"]),
            &age(now_ms - millis(&job["created_at"])),
            &job["attempt"].to_string(),
            &cut(&text(&job["model"]), MODEL_WIDTH),
        ]);
        let line = format!("{cells} {}", error.split_whitespace().collect::<Vec<_>>().join(" "));
        format!("{}\n", cut(line.trim_end(), WIDTH))
    };
    jobs.iter().map(line).collect()
}

/// `text` in at most `width` columns.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_a_line_whatever_its_error_says() {
        let job = json!({ "job_id": "01M81C42P8N9FJDFDNSYQGRF72", "state": "failed", "priority": "interactive",
            "created_at": "1970-01-01T00:00:01.000Z", "attempt": 3, "model": "registry.example/some/very-long-model:70b",
            "error": { "message": format!("line\nbreak {}", "x".repeat(200)), "status": 500 } });
        let lines = lines(&[job], 62_000);
        assert_eq!(lines.lines().count(), 1);
        assert!(lines.trim_end().chars().count() <= WIDTH, "{lines}");
        assert!(lines.starts_with(
            "01M81C42P8N9FJDFDNSYQGRF72 failed    interactive  1m01s     3 registry.example/some/v… line break"
        ), "{lines}");
        assert_eq!(head().find("model"), lines.find("registry"));
    }

    #[test]
    fn only_what_is_given_is_asked_for_and_it_is_encoded() {
        let parameters =
            [("state", Some("done,failed")), ("model", None), ("after", Some("a b&c"))];
        assert_eq!(query("/jobs", &parameters), "/jobs?state=done%2Cfailed&after=a%20b%26c");
        assert_eq!(query("/jobs", &[("state", None)]), "/jobs");
    }
}
