//! Traces: what arrived, for which key, and how long it took. JSON lines, read whole; docs/scheduling.md has the format.

use serde_json::{Value, json};

use crate::domain::job::Class;
use crate::domain::model::{LoadKey, ModelName, RunnerOptions};

/// A trace of more lines is refused: a replay holds all of it in memory.
const LINES_MAX: usize = 5_000_000;

/// A recorded or made-up day.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// Jobs that come when they come.
    pub arrivals: Vec<Arrival>,
    /// Clients that ask, read the answer, think, and ask again.
    pub loops: Vec<Loop>,
    /// What loading takes, in seconds, by key as the trace spells it.
    pub loads_s: Vec<(String, f64)>,
    /// How many keys fit in memory at once, where the trace says so.
    pub slots: Option<usize>,
}

/// A job that comes when it comes.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Seconds from the beginning.
    pub at_s: f64,
    /// Who asks, if the trace says so. One client's jobs may overlap.
    pub client: Option<String>,
    /// The job.
    pub job: Job,
}

/// A client that asks again after each answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Loop {
    /// Who asks.
    pub client: String,
    /// When it begins, in seconds from the beginning.
    pub start_s: f64,
    /// Its jobs, each with the seconds it thinks after the answer.
    pub steps: Vec<(Job, f64)>,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What must be resident, as the trace spells it.
    pub key: String,
    /// Seconds of work once it is.
    pub service_s: f64,
    /// How urgent it is.
    pub class: Class,
}

/// A line that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct TraceFault {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// The first line that cannot be read.
    pub fn parse(text: &str) -> Result<Trace, TraceFault> {
        let mut trace = Trace::default();
        for (line, text) in (1..).zip(text.lines()) {
            let fault = |what: String| TraceFault { line, what };
            if line > LINES_MAX {
                return Err(fault(format!("a trace has at most {LINES_MAX} lines")));
            }
            if text.trim().is_empty() {
                continue;
            }
            let value: Value =
                serde_json::from_str(text).map_err(|found| fault(found.to_string()))?;
            trace.take(&value).map_err(fault)?;
        }
        trace.arrivals.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        Ok(trace)
    }

    /// The same day with all clients of one identity, as programs are that share an address and a `User-Agent`.
    #[must_use]
    pub fn alike(mut self) -> Trace {
        let one = || "alike".to_owned();
        self.arrivals.iter_mut().for_each(|arrival| arrival.client = Some(one()));
        self.loops.iter_mut().for_each(|looping| looping.client = one());
        self
    }

    fn take(&mut self, value: &Value) -> Result<(), String> {
        if !value.is_object() {
            return Err("not an object".to_owned());
        }
        if let Some(steps) = value["steps"].as_array() {
            let read = |step: &Value| Ok((job(step)?, seconds(step, "think_s")?));
            let steps = steps.iter().map(read).collect::<Result<_, String>>()?;
            let client = name(&value["client"]).ok_or("a loop needs a client")?;
            self.loops.push(Loop { client, start_s: seconds(value, "start_s")?, steps });
        } else if let Some(loads) = value["load_s"].as_object() {
            for (key, load_s) in loads {
                let load_s = load_s.as_f64().filter(|load_s| *load_s >= 0.0);
                let load_s = load_s.ok_or_else(|| format!("load_s of {key} is no time"))?;
                self.loads_s.push((key.clone(), load_s));
            }
            self.slots = value["slots"].as_u64().and_then(|slots| usize::try_from(slots).ok());
        } else {
            let client = name(&value["client"]);
            self.arrivals.push(Arrival {
                at_s: seconds(value, "arrival_s")?,
                client,
                job: job(value)?,
            });
        }
        Ok(())
    }

    /// Whether any of its jobs needs this key.
    pub fn needs(&self, key: &str) -> bool {
        let Ok(key) = load_key(key) else { return false };
        let steps = self.loops.iter().flat_map(|client| client.steps.iter().map(|(job, _)| job));
        let mut jobs = self.arrivals.iter().map(|arrival| &arrival.job).chain(steps);
        jobs.any(|job| load_key(&job.key).is_ok_and(|needed| needed == key))
    }

    /// The trace as text, readable by [`Trace::parse`].
    pub fn to_text(&self) -> String {
        let mut lines = Vec::new();
        if !self.loads_s.is_empty() || self.slots.is_some() {
            let loads: serde_json::Map<String, Value> =
                self.loads_s.iter().map(|(key, load_s)| (key.clone(), json!(load_s))).collect();
            let mut line = json!({ "load_s": loads });
            if let Some(slots) = self.slots {
                line["slots"] = json!(slots);
            }
            lines.push(line);
        }
        for arrival in &self.arrivals {
            let mut line = job_line(&arrival.job);
            line["arrival_s"] = json!(arrival.at_s);
            if let Some(client) = &arrival.client {
                line["client"] = json!(client);
            }
            lines.push(line);
        }
        for client in &self.loops {
            let steps = client.steps.iter().map(|(job, think_s)| {
                let mut step = job_line(job);
                step["think_s"] = json!(think_s);
                step
            });
            let steps: Vec<Value> = steps.collect();
            lines.push(
                json!({ "client": client.client, "start_s": client.start_s, "steps": steps }),
            );
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

fn job_line(job: &Job) -> Value {
    let mut line = json!({ "key": job.key, "service_s": job.service_s });
    if job.class != Class::Interactive {
        line["class"] = json!(job.class.name());
    }
    line
}

fn job(value: &Value) -> Result<Job, String> {
    let key = value["key"].as_str().ok_or("no key")?.to_owned();
    load_key(&key)?;
    let class = match value["class"].as_str() {
        None => Class::Interactive,
        Some(name) => Class::from_name(name).ok_or_else(|| format!("no class {name:?}"))?,
    };
    Ok(Job { key, service_s: seconds(value, "service_s")?, class })
}

/// The load key a trace names: the text of one, or a model's name.
pub(super) fn load_key(text: &str) -> Result<LoadKey, String> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let model = ModelName::parse(text).map_err(|_| format!("no load key: {text:?}"))?;
    Ok(LoadKey::new(model.name, RunnerOptions::default()))
}

fn seconds(value: &Value, member: &str) -> Result<f64, String> {
    let seconds = value[member].as_f64().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
    seconds.ok_or_else(|| format!("{member} is not a number of seconds"))
}

/// A hundred years: beyond any trace, and far from what a microsecond count can hold.
const SECONDS_MAX: f64 = 3.2e9;

fn name(value: &Value) -> Option<String> {
    match value {
        Value::String(name) => Some(name.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_survives_being_written_and_read() {
        let text = r#"{"load_s": {"A": 8, "B": 10.5}, "slots": 1}
{"arrival_s": 1.5, "key": "A", "service_s": 2.25, "class": "batch", "client": "x"}
{"client": 0, "start_s": 1.0, "steps": [{"key": "B", "service_s": 1, "think_s": 0.5}]}
"#;
        let trace = Trace::parse(text).unwrap();
        assert_eq!(trace.loads_s.len(), 2);
        assert_eq!(trace.arrivals[0].job.class, Class::Batch);
        assert_eq!(trace.loops[0].client, "0");
        assert_eq!(Trace::parse(&trace.to_text()).unwrap(), trace);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, what) in [
            ("{}", "arrival_s is not a number of seconds"),
            ("[]", "not an object"),
            (r#"{"arrival_s": 1, "service_s": 1}"#, "no key"),
            (r#"{"arrival_s": -1, "key": "a", "service_s": 1}"#, "arrival_s is not"),
            (r#"{"arrival_s": 1, "key": "a", "service_s": 1, "class": "vip"}"#, "no class"),
            (r#"{"load_s": {"A": "x"}}"#, "load_s of A"),
        ] {
            let fault = Trace::parse(&format!("\n{text}")).unwrap_err();
            assert_eq!(fault.line, 2);
            assert!(fault.what.contains(what), "{fault}");
        }
    }
}
