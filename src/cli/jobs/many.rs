//! `foreman jobs cancel`, `retry` and `purge`: of jobs by id, or of all in a state.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::ask::{Call, Caller, encoded};
use crate::cli::fault::Fault;
use crate::cli::{Exit, put, say};
use crate::clock::{Clock, millis, rfc3339};

use super::arguments::{Many, Purge, Retry};
use super::outcome::worst;

/// What a call may take that is done to 10,000 jobs.
const BULK_LIMIT: Duration = Duration::from_secs(60);

/// Cancels jobs.
pub(super) async fn cancel(caller: &Caller, arguments: &Many) -> Result<Exit, Fault> {
    each(caller, &arguments.ids, "cancel", arguments.json).await
}

/// Queues jobs again.
pub(super) async fn retry(caller: &Caller, arguments: &Retry) -> Result<Exit, Fault> {
    if !arguments.failed {
        return each(caller, &arguments.ids, "retry", arguments.json).await;
    }
    let mut filter = json!({ "state": "failed" });
    if let Some(model) = &arguments.model {
        filter["model"] = json!(model);
    }
    let count = bulk(caller, "/jobs/retry", &filter).await?;
    let line = match arguments.json {
        true => format!("{}\n", json!({ "count": count })),
        false => format!("{count}\n"),
    };
    put(line.as_bytes()).map(|()| Exit::Fine)
}

/// Drops ended jobs.
pub(super) async fn purge(caller: &Caller, arguments: &Purge) -> Result<Exit, Fault> {
    let Some(state) = &arguments.state else {
        let mut exits = Vec::new();
        for id in &arguments.ids {
            let dropped = caller.call(Call::delete(&format!("/jobs/{}", encoded(id)))).await;
            exits.push(match dropped {
                Ok(_) => put(format!("{id} purged\n").as_bytes()).map(|()| Exit::Fine)?,
                Err(fault) => about(id, fault),
            });
        }
        return Ok(worst(exits));
    };
    let mut filter = json!({ "state": state });
    let mut what = format!("all {state} jobs");
    if let Some(model) = &arguments.model {
        filter["model"] = json!(model);
        what.push_str(&format!(" of {model}"));
    }
    if let Some(age) = arguments.older_than {
        let before_ms = Clock::system().now_ms().saturating_sub(millis(age));
        filter["created_before"] = json!(rfc3339(before_ms));
        what.push_str(&format!(" older than {}", humantime::format_duration(age)));
    }
    if !arguments.yes && !is_sure(&what)? {
        return Ok(Exit::Failed);
    }
    let count = bulk(caller, "/jobs/purge", &filter).await?;
    put(format!("{count}\n").as_bytes()).map(|()| Exit::Fine)
}

/// Does it to each job; those that follow a fault are done too.
async fn each(caller: &Caller, ids: &[String], verb: &str, is_json: bool) -> Result<Exit, Fault> {
    let mut exits = Vec::new();
    for id in ids {
        let done = caller.call(Call::post(&format!("/jobs/{}/{verb}", encoded(id)))).await;
        exits.push(match done.and_then(|answer| answer.json()) {
            Ok(job) => {
                let line = if is_json { format!("{job}\n") } else { line(id, &job) };
                put(line.as_bytes()).map(|()| Exit::Fine)?
            }
            Err(fault) => about(id, fault),
        });
    }
    Ok(worst(exits))
}

fn line(id: &str, job: &Value) -> String {
    match job["is_cancelling"] == true {
        true => format!("{id} cancelling\n"),
        false => format!("{id} {}\n", job["state"].as_str().unwrap_or("-")),
    }
}

fn about(id: &str, fault: Fault) -> Exit {
    say(&format!("job {id}: {}", fault.text()));
    fault.exit()
}

/// Does it to all that the filter names, call by call; to how many.
async fn bulk(caller: &Caller, path: &str, filter: &Value) -> Result<u64, Fault> {
    let mut total = 0;
    loop {
        let call = Call::post(path).body("application/json", filter.to_string()).limit(BULK_LIMIT);
        let answer = caller.call(call).await?.json()?;
        let count = answer["count"].as_u64().unwrap_or(0);
        total += count;
        // A call that did nothing would be repeated for ever.
        if answer["has_more"] != true || count == 0 {
            return Ok(total);
        }
    }
}

/// Asks on a terminal. Elsewhere nobody can answer, and what is purged is gone.
fn is_sure(what: &str) -> Result<bool, Fault> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let text = format!("this would purge {what}; say --yes");
        return Err(Fault::Other(Exit::Usage, text));
    }
    let unasked =
        |fault: std::io::Error| Fault::Other(Exit::Failed, format!("cannot ask: {fault}"));
    let mut err = std::io::stderr();
    write!(err, "foreman: purge {what}? [y/N] ").and_then(|()| err.flush()).map_err(unasked)?;
    let mut said = String::new();
    stdin.lock().read_line(&mut said).map_err(unasked)?;
    Ok(matches!(said.trim(), "y" | "Y" | "yes"))
}
