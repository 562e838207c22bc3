//! `foreman jobs events`: changes of state as they happen, over cut connections and restarts.

use serde_json::Value;

use crate::cli::ask::{ANSWER_LIMIT, Call, Caller, encoded};
use crate::cli::fault::Fault;
use crate::cli::{Exit, put, say};

use super::arguments::Events;
use super::outcome::reason;
use super::patience::Patience;
use super::sse::{Event, Reader};

/// Prints events: of a job until its end, of all jobs until it is stopped.
pub(super) async fn events(caller: &Caller, arguments: &Events) -> Result<Exit, Fault> {
    let path = path_of(arguments.id.as_deref());
    let mut reader = Reader::behind(arguments.after.map(|id| id.to_string()));
    let mut patience = Patience::new();
    let mut last = String::new();
    loop {
        let fault = match caller.open(call(&path, &reader)).await {
            // There is nothing behind the last event.
            Ok(stream) if stream.status == 204 => return Ok(Exit::Fine),
            Ok(mut stream) => loop {
                match stream.next().await {
                    Ok(Some(bytes)) => {
                        for event in reader.take(&bytes) {
                            patience.renew();
                            show(&event, arguments)?;
                            last = event.kind;
                        }
                    }
                    // A daemon that stops ends its streams too.
                    Ok(None) if arguments.id.is_some() && is_end(&last) => return Ok(Exit::Fine),
                    Ok(None) => break Fault::Lost(format!("{} ended the events", caller.addr())),
                    Err(fault) => break fault,
                }
            },
            Err(fault) => {
                patience.bear(fault, caller.was_reached()).await?;
                continue;
            }
        };
        // It was there; where it is again, it is asked for what came behind the last event.
        patience.seen();
        patience.bear(fault, caller.was_reached()).await?;
        reader.reconnect();
    }
}

/// Where the events of a job, or of all, are.
pub(super) fn path_of(id: Option<&str>) -> String {
    id.map_or("/events".to_owned(), |id| format!("/jobs/{}/events", encoded(id)))
}

/// Whether a job has ended with this event.
fn is_end(kind: &str) -> bool {
    matches!(kind, "job.done" | "job.failed" | "job.cancelled")
}

/// The question for what comes behind the last event read.
fn call(path: &str, reader: &Reader) -> Call {
    let path = match &reader.last_id {
        // Beside the header, which not every proxy hands on.
        Some(id) => format!("{path}?last_event_id={}", encoded(id)),
        None => path.to_owned(),
    };
    Call::get(&path).limit(ANSWER_LIMIT)
}

fn show(event: &Event, arguments: &Events) -> Result<(), Fault> {
    let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
    if event.kind == "events.lost" {
        let id = |name: &str| data[name].to_string();
        say(&format!(
            "some of the events {} to {} were dropped with their jobs",
            id("from"),
            id("to")
        ));
    }
    if arguments.json {
        return put(format!("{}\n", event.data).as_bytes());
    }
    match line(&event.kind, &data) {
        Some(line) => put(format!("{line}\n").as_bytes()),
        None => Ok(()),
    }
}

/// An event as a line; none for those that tell no change.
fn line(kind: &str, data: &Value) -> Option<String> {
    if kind == "events.lost" || kind == "job.progress" {
        return None;
    }
    let text = |name: &str| data[name].as_str().unwrap_or("-");
    let mut line = format!("{} {kind:<13} {} {}", text("timestamp"), text("job_id"), text("model"));
    if let Some(attempt) = data["attempt"].as_u64().filter(|attempt| *attempt > 0) {
        line.push_str(&format!(" attempt {attempt}"));
    }
    if !data["error"].is_null() {
        line.push_str(&format!(": {}", reason(data)));
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_change_is_a_line() {
        let data = json!({ "job_id": "01M9", "timestamp": "2026-11-24T12:00:00.000Z", "model": "llama3", "attempt": 2,
                           "error": { "message": "no memory", "status": 500 } });
        assert_eq!(
            line("job.failed", &data).unwrap(),
            "2026-11-24T12:00:00.000Z job.failed    01M9 llama3 attempt 2: no memory (500)"
        );
        assert_eq!(line("job.progress", &json!({ "tokens": 3 })), None);
    }
}
