//! Follows an answer over cut connections, restarts and new attempts, without losing or doubling a byte.
//!
//! What was handed on is counted in whole records of one attempt. After a cut the job is looked at: one that failed or was
//! cancelled ends the following, any other is asked for what comes behind the count. Another attempt begins at its first
//! byte, and that is said.

use std::time::Duration;

use serde_json::Value;

use crate::cli::ask::{Call, Caller, Stream, encoded};
use crate::cli::fault::Fault;
use crate::cli::{Exit, put, say};

use super::outcome::{Outcome, outcome};
use super::patience::Patience;
use super::records::{Record, Records};

/// A job may wait for hours before its first byte, and the head comes with it.
const HEAD_LIMIT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What of an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The text in it.
    Text,
    /// The bytes.
    Raw,
}

/// What has been handed on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    attempt: Option<u64>,
    offset: u64,
    /// Whether the text handed on ends in the middle of a line.
    is_inside_line: bool,
}

/// How a connection ended.
#[derive(Debug)]
enum End {
    /// With the whole answer; Ollama's status of it.
    Whole(u16),
    /// With an error record of foreman's.
    Told,
    /// In the middle.
    Cut(Fault),
}

/// Prints the answer of a job as it comes, until the job has ended.
pub(super) async fn follow(caller: &Caller, id: &str, form: Form) -> Result<Exit, Fault> {
    let mut place = Place::default();
    let mut patience = Patience::new();
    loop {
        let before = place.offset;
        let fault = match caller.open(Call::get(&place.path(id)).limit(HEAD_LIMIT)).await {
            Ok(mut stream) => {
                patience.seen();
                place.enter(attempt_of(&stream), form)?;
                let end = read(&mut stream, &mut place, form).await?;
                match end {
                    End::Whole(status) if status < 400 => return finish(&place, form),
                    End::Whole(status) => {
                        finish(&place, form)?;
                        return refused(caller, id, status).await;
                    }
                    End::Told => None,
                    End::Cut(fault) => Some(fault),
                }
            }
            Err(Fault::Told(problem)) if problem.code.as_deref() == Some("attempt-replaced") => {
                // The job may wait for an attempt that has no number yet.
                let current = problem.attempt.filter(|current| Some(*current) != place.attempt);
                place.enter(current, form)?;
                None
            }
            Err(fault) => Some(fault),
        };
        match look(caller, id).await {
            Ok(job) => match (outcome(&job), fault) {
                (Outcome::Failed | Outcome::Cancelled, _) => {
                    finish(&place, form)?;
                    return Ok(super::outcome::tell(id, &job));
                }
                // The daemon stands by what it said.
                (_, Some(fault)) if !fault.is_passing() => return Err(fault),
                (Outcome::Done | Outcome::Open, _) => {}
            },
            Err(unseen) => {
                // Where the job cannot be seen either, what was said first is nearer to the cause.
                let told = fault.filter(|fault| !fault.is_passing() || unseen.is_passing());
                patience.bear(told.unwrap_or(unseen), caller.was_reached()).await?;
                continue;
            }
        }
        match place.offset > before {
            true => patience.renew(),
            false => patience.rest().await,
        }
    }
}

impl Place {
    /// Where to go on.
    fn path(&self, id: &str) -> String {
        let id = encoded(id);
        match (self.attempt, self.offset) {
            (Some(attempt), 1..) => {
                format!("/jobs/{id}/output?stream=true&offset={}&attempt={attempt}", self.offset)
            }
            _ => format!("/jobs/{id}/output?stream=true"),
        }
    }

    /// An attempt begins, or goes on.
    fn enter(&mut self, attempt: Option<u64>, form: Form) -> Result<(), Fault> {
        if attempt == self.attempt && attempt.is_some() {
            return Ok(());
        }
        if self.offset > 0 {
            finish(self, form)?;
            let now = attempt.map_or("the next one".to_owned(), |attempt| attempt.to_string());
            say(&format!(
                "attempt {} was replaced by {now}: what follows is a new answer, from its beginning",
                self.attempt.unwrap_or(0)
            ));
        }
        *self = Place { attempt, offset: 0, is_inside_line: false };
        Ok(())
    }
}

/// Hands on what comes, and counts it.
async fn read(stream: &mut Stream, place: &mut Place, form: Form) -> Result<End, Fault> {
    let mut records = Records::of(stream.header("content-type").unwrap_or_default());
    let status = number(stream.header("x-foreman-status")).unwrap_or(200);
    let status = u16::try_from(status).unwrap_or(u16::MAX);
    loop {
        match stream.next().await {
            Ok(Some(bytes)) => {
                for record in records.take(&bytes) {
                    if !hand_on(record, place, form)? {
                        return Ok(End::Told);
                    }
                }
            }
            Ok(None) => {
                if let Some(record) = records.rest()
                    && (status < 400 || form == Form::Raw)
                {
                    hand_on(record, place, form)?;
                }
                return Ok(End::Whole(status));
            }
            Err(fault) => return Ok(End::Cut(fault)),
        }
    }
}

/// Prints a record; whether it was one of the answer's.
fn hand_on(record: Record, place: &mut Place, form: Form) -> Result<bool, Fault> {
    let Record::Part { bytes, text } = record else { return Ok(false) };
    match form {
        Form::Raw => put(&bytes)?,
        Form::Text => {
            put(text.as_bytes())?;
            place.is_inside_line = match text.is_empty() {
                true => place.is_inside_line,
                false => !text.ends_with('\n'),
            };
        }
    }
    place.offset += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    Ok(true)
}

/// Ends the line that text was left in.
fn finish(place: &Place, form: Form) -> Result<Exit, Fault> {
    if form == Form::Text && place.is_inside_line {
        put(b"\n")?;
    }
    Ok(Exit::Fine)
}

/// The answer was an error of Ollama's own.
async fn refused(caller: &Caller, id: &str, status: u16) -> Result<Exit, Fault> {
    let job = look(caller, id).await?;
    if outcome(&job) == Outcome::Failed {
        return Ok(super::outcome::tell(id, &job));
    }
    say(&format!("job {id}: Ollama answered {status}"));
    Ok(Exit::JobFailed)
}

async fn look(caller: &Caller, id: &str) -> Result<Value, Fault> {
    caller.call(Call::get(&format!("/jobs/{}", encoded(id)))).await?.json()
}

fn attempt_of(stream: &Stream) -> Option<u64> {
    number(stream.header("x-foreman-attempt"))
}

fn number(text: Option<&str>) -> Option<u64> {
    text.and_then(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str) -> Record {
        Record::Part { bytes: b"{}\n".to_vec(), text: text.to_owned() }
    }

    #[test]
    fn it_goes_on_behind_what_was_handed_on_and_anew_with_another_attempt() {
        let mut place = Place::default();
        assert_eq!(place.path("01"), "/jobs/01/output?stream=true");
        place.enter(Some(2), Form::Raw).unwrap();
        assert!(hand_on(part(""), &mut place, Form::Text).unwrap());
        assert!(!hand_on(Record::Broken, &mut place, Form::Text).unwrap());
        assert!(!hand_on(Record::Error("no".to_owned()), &mut place, Form::Text).unwrap());
        assert_eq!(place.path("01"), "/jobs/01/output?stream=true&offset=3&attempt=2");
        place.enter(Some(2), Form::Raw).unwrap();
        assert_eq!(place.offset, 3);
        place.enter(Some(3), Form::Raw).unwrap();
        assert_eq!(place.path("01"), "/jobs/01/output?stream=true");
    }
}
