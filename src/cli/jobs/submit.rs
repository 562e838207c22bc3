//! `foreman submit`: hands in a job, or many, and waits or follows if asked to.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use hyper::header::HeaderName;
use serde_json::{Map, Value, json};

use crate::cli::ask::{Call, Caller, encoded};
use crate::cli::fault::{Fault, sentence};
use crate::cli::status_text::items;
use crate::cli::{Exit, put, say};
use crate::clock::{Clock, millis, rfc3339};

use super::arguments::{Submit, duration};
use super::bars::Bars;
use super::follow::{Form, follow};
use super::outcome::{Outcome, outcome, tell};
use super::request::{Chat, chat, laid, metadata};
use super::text::{ended as with_line_end, text_of};
use super::wait::{Until, ended};

/// Stdin, as a file name or a prompt.
const STDIN: &str = "-";

/// What handing in may take: a body of 128 MiB, or 10,000 jobs, on a busy disk.
const SUBMIT_LIMIT: Duration = Duration::from_secs(120);

/// What fetching a long completion may take.
const FETCH_LIMIT: Duration = Duration::from_secs(120);

/// Hands in what was asked for.
pub(super) async fn submit(caller: &Caller, arguments: &Submit) -> Result<Exit, Fault> {
    if let Some(file) = &arguments.batch {
        return batch(caller, file, arguments.json).await;
    }
    let body = body(arguments)?;
    let mut call = Call::post("/jobs").body("application/json", body).limit(SUBMIT_LIMIT);
    if let Some(key) = &arguments.idempotency_key {
        call = call.header(HeaderName::from_static("idempotency-key"), key);
    }
    let answer = caller.call(call).await?;
    let job = answer.json()?;
    let id = job["job_id"].as_str().unwrap_or_default().to_owned();
    if answer.header("idempotent-replayed") == Some("true") {
        say(&format!("this key was used before: it is job {id}"));
    }
    if arguments.follow {
        say(&format!("job {id}"));
        return follow(caller, &id, Form::Text).await;
    }
    if !arguments.wait {
        let line = if arguments.json { format!("{job}\n") } else { format!("{id}\n") };
        return put(line.as_bytes()).map(|()| Exit::Fine);
    }
    say(&format!("job {id}"));
    let bars = Bars::new();
    let job = ended(caller, &id, &Until::of(arguments.timeout), &bars.add(&id)).await?;
    if arguments.json {
        put(format!("{job}\n").as_bytes())?;
    } else if outcome(&job) == Outcome::Done {
        put(with_line_end(completion(caller, &id, &job).await?).as_bytes())?;
    }
    Ok(tell(&id, &job))
}

/// The text of the completion; the value where there is no text in it, as in calls of tools.
async fn completion(caller: &Caller, id: &str, job: &Value) -> Result<String, Fault> {
    let fetched = match job["result"].is_null() {
        false => job["result"].clone(),
        true => {
            let path = format!("/jobs/{}/artifacts/completion", encoded(id));
            let answer = caller.call(Call::get(&path).limit(FETCH_LIMIT)).await?;
            match serde_json::from_slice(&answer.body) {
                Ok(value) => value,
                Err(_) => return Ok(answer.text()),
            }
        }
    };
    let text = text_of(&fetched);
    Ok(match (text.is_empty(), &fetched) {
        (false, _) => text,
        // A stream of another route, given as it is.
        (true, Value::String(text)) => text.clone(),
        (true, value) => value.to_string(),
    })
}

/// Hands in many: an id for each on stdout, what was refused on stderr.
async fn batch(caller: &Caller, file: &Path, is_json: bool) -> Result<Exit, Fault> {
    let body = read(file)?;
    let kind = match body.trim_start().starts_with('[') {
        true => "application/json",
        false => "application/x-ndjson",
    };
    let call = Call::post("/jobs/batch").body(kind, body).limit(SUBMIT_LIMIT);
    let answer = match caller.call(call).await {
        Ok(answer) => answer.json()?,
        // Where none was accepted the status is an error's, and the answer still tells of each.
        Err(Fault::Told(problem)) if problem.document["object"] == "batch" => problem.document,
        Err(fault) => return Err(fault),
    };
    if is_json {
        put(format!("{answer}\n").as_bytes())?;
    }
    let mut refused = 0;
    for item in items(&answer["jobs"]) {
        match item["job_id"].as_str() {
            Some(id) if !is_json => put(format!("{id}\n").as_bytes())?,
            Some(_) => {}
            None => {
                refused += 1;
                let error = &item["error"];
                let code = error["code"].as_str().unwrap_or("refused");
                say(&format!("item {}: {}", item["index"], sentence(error, code)));
            }
        }
    }
    Ok(if refused == 0 { Exit::Fine } else { Exit::BadInput })
}

/// The body of one job.
fn body(arguments: &Submit) -> Result<String, Fault> {
    let fields = fields(arguments, Clock::system().now_ms()).map_err(usage)?;
    if let Some(file) = &arguments.body {
        return laid(&read(file)?, arguments.endpoint.as_deref(), fields).map_err(usage);
    }
    let prompt = match (&arguments.prompt, &arguments.file) {
        (_, Some(file)) => read(file)?,
        (Some(prompt), None) if prompt != STDIN => prompt.clone(),
        _ => read(Path::new(STDIN))?,
    };
    let mut body = chat(&Chat {
        model: arguments.model.as_deref().unwrap_or_default(),
        prompt: &prompt,
        system: arguments.system.as_deref(),
        options: &arguments.option,
    });
    body.extend(fields);
    Ok(Value::Object(body).to_string())
}

/// Foreman's fields.
fn fields(arguments: &Submit, now_ms: i64) -> Result<Map<String, Value>, String> {
    let from_now = |span: Duration| rfc3339(now_ms.saturating_add(millis(span)));
    let run_at = arguments.run_in.map(from_now).or_else(|| arguments.run_at.clone());
    // What is no duration is a time, and the daemon's to judge.
    let deadline =
        arguments.deadline.as_ref().map(|text| duration(text).map_or(text.clone(), from_now));
    let texts = [
        ("priority", arguments.priority.clone()),
        ("run_at", run_at),
        ("deadline", deadline),
        ("state_webhook_url", arguments.webhook.clone()),
    ];
    let given =
        texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?))));
    let mut fields: Map<String, Value> = given.collect();
    if let Some(metadata) = metadata(arguments.metadata.as_deref(), &arguments.meta)? {
        fields.insert("metadata".to_owned(), metadata);
    }
    Ok(fields)
}

/// Reads a file, or stdin.
fn read(file: &Path) -> Result<String, Fault> {
    let text = match file == Path::new(STDIN) {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(file),
    };
    text.map_err(|fault| {
        Fault::Other(Exit::NotThere, format!("cannot read {}: {fault}", file.display()))
    })
}

fn usage(text: String) -> Fault {
    Fault::Other(Exit::Usage, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        submit: Submit,
    }

    fn parsed(words: &[&str]) -> Result<Submit, clap::Error> {
        Line::try_parse_from(["foreman"].iter().chain(words)).map(|line| line.submit)
    }

    #[test]
    fn spans_are_counted_from_now_and_times_are_left_alone() {
        let words = [
            "-m",
            "a",
            "x",
            "--in",
            "10m",
            "--deadline",
            "2030-01-01T00:00:00+01:00",
            "--meta",
            "k=v",
        ];
        let fields = fields(&parsed(&words).unwrap(), 0).unwrap();
        assert_eq!(
            Value::Object(fields),
            json!({ "run_at": "1970-01-01T00:10:00.000Z", "deadline": "2030-01-01T00:00:00+01:00", "metadata": { "k": "v" } })
        );
    }

    #[test]
    fn flags_that_say_two_things_are_refused() {
        for words in [
            ["--body", "f", "--batch", "g"],
            ["--batch", "f", "--priority", "batch"],
            ["-m", "a", "--wait", "--follow"],
            ["-m", "a", "--endpoint", "/v1/responses"],
        ] {
            assert!(parsed(&words).is_err(), "{words:?}");
        }
        assert!(parsed(&["hello"]).is_err(), "no model");
    }
}
