//! `foreman jobs deliveries`: what is owed to webhooks, and sending it again.

use serde_json::Value;

use crate::cli::ask::{Call, Caller, encoded};
use crate::cli::fault::Fault;
use crate::cli::status_text::{items, text};
use crate::cli::{Exit, put};

use super::arguments::Deliveries;
use super::list::{cut, query};

/// The word for all dead deliveries, instead of an id.
const ALL_DEAD: &str = "all-dead";

/// Columns of a line.
const WIDTH: usize = 140;

/// Lists all pages, or sends again.
pub(super) async fn deliveries(caller: &Caller, arguments: &Deliveries) -> Result<Exit, Fault> {
    if let Some(which) = &arguments.resend {
        return resend(caller, which, arguments.json).await;
    }
    let path = match &arguments.id {
        Some(id) => format!("/jobs/{}/deliveries", encoded(id)),
        None => "/deliveries".to_owned(),
    };
    let mut after: Option<String> = None;
    loop {
        let parameters = [("state", arguments.state.as_deref()), ("after", after.as_deref())];
        let page = caller.call(Call::get(&query(&path, &parameters))).await?.json()?;
        let rows = items(&page["data"]);
        if arguments.json {
            rows.iter().try_for_each(|row| put(format!("{row}\n").as_bytes()))?;
        } else {
            if after.is_none() && !rows.is_empty() {
                put(head().as_bytes())?;
            }
            rows.iter().try_for_each(|row| put(line(row).as_bytes()))?;
        }
        let last = rows.last().map(|row| row["delivery_id"].to_string());
        if page["has_more"] != true || last.is_none() || last == after {
            return Ok(Exit::Fine);
        }
        after = last;
    }
}

async fn resend(caller: &Caller, which: &str, is_json: bool) -> Result<Exit, Fault> {
    let path = match which {
        ALL_DEAD => "/deliveries/resend".to_owned(),
        id => format!("/deliveries/{}/resend", encoded(id)),
    };
    let answer = caller.call(Call::post(&path)).await?;
    let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let line = match (is_json, document["count"].as_u64()) {
        (true, _) => format!("{}\n", answer.text().trim_end()),
        (false, Some(count)) => format!("{count}\n"),
        (false, None) => format!("{which} pending\n"),
    };
    put(line.as_bytes()).map(|()| Exit::Fine)
}

fn head() -> String {
    row(["delivery", "job", "type", "state", "tries", "next try", "status"], "url, last error")
}

fn row([id, job, kind, state, tries, next, status]: [&str; 7], rest: &str) -> String {
    let line =
        format!("{id:>8} {job:<26} {kind:<13} {state:<9} {tries:>5} {next:<24} {status:>6} {rest}");
    format!("{}\n", cut(line.trim_end(), WIDTH))
}

fn line(delivery: &Value) -> String {
    let number = |name: &str| delivery[name].as_u64().map_or("-".to_owned(), |n| n.to_string());
    let error = delivery["last_error"].as_str().map_or(String::new(), |error| format!(", {error}"));
    row(
        [
            &number("delivery_id"),
            &text(&delivery["job_id"]),
            &text(&delivery["type"]),
            &text(&delivery["state"]),
            &number("tries"),
            &text(&delivery["next_try_at"]),
            &number("last_status"),
        ],
        &format!("{}{error}", text(&delivery["url"])),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_delivery_is_a_line() {
        let line = line(
            &json!({ "delivery_id": 4711, "job_id": "01M81C42P8N9FJDFDNSYQGRF72", "type": "job.done",
            "url": "http://127.0.0.1:9/hook", "state": "dead", "tries": 10, "next_try_at": null, "last_status": 500,
            "last_error": "it answered 500" }),
        );
        assert!(
            line.starts_with("    4711 01M81C42P8N9FJDFDNSYQGRF72 job.done      dead         10 -"),
            "{line}"
        );
        assert_eq!(head().find("url"), line.find("http:"));
    }
}
