//! `foreman replay`: traces in virtual time, on the real scheduler. Needs no daemon.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config;
use crate::replay::{
    self, Chooser, Form, Replayed, Report, Setup, Trace, Workload, as_json, workload_of,
};

use super::arguments::{Replay, SUITE_DEFAULT};
use super::{Exit, print, say};

/// What loading takes in the suite of foreman's own repository, whose traces do not say.
const SUITE_LOADS_S: [(&str, f64); 3] = [("A", 8.0), ("B", 10.0), ("C", 6.0)];

/// Stdin, as a file name.
const STDIN: &str = "-";

/// Replays what was asked for. Each fault has been told where it was found.
pub(super) fn replay(arguments: &Replay) -> Exit {
    match &arguments.suite {
        Some(folder) => suite(arguments, folder),
        None => traces(arguments),
    }
    .unwrap_or_else(|exit| exit)
}

/// Some traces: a line each, and the means.
fn traces(arguments: &Replay) -> Result<Exit, Exit> {
    let setup = setup(arguments)?;
    let mut traces = Vec::new();
    for path in &arguments.traces {
        traces.push((path.display().to_string(), read(path, arguments)?));
    }
    warn_of_strange_keys(arguments, &traces);
    let named = Chooser::from_name(&arguments.policy);
    let mut replays = Vec::new();
    for (name, trace) in &traces {
        for chooser in
            Chooser::ALL.into_iter().filter(|one| named.is_none_or(|named| named == *one))
        {
            let setup = Setup { chooser, ..setup.clone() };
            let report = replay::replay(trace, &setup)
                .map_err(|fault| bad(&format!("{name}: {}", fault.what)))?;
            replays.push(Replayed { trace: name.clone(), chooser, report });
        }
    }
    if !arguments.json {
        return Ok(print(&replay::lines(&replays)));
    }
    let lines = replays.iter().map(|replayed| {
        figures("trace", &replayed.trace, replayed.chooser, std::slice::from_ref(&replayed.report))
    });
    let lines: Vec<Value> = lines.collect();
    Ok(print(&format!("{}\n", json!({ "replays": lines }))))
}

/// All traces of a folder with all policies: a row for each workload.
fn suite(arguments: &Replay, folder: &Path) -> Result<Exit, Exit> {
    let setup = setup(arguments)?;
    let mut traces = Vec::new();
    for (workload, path) in files(folder)? {
        let mut trace = read(&path, arguments)?;
        if arguments.load.is_none() {
            // The first one said counts: these are for traces that say nothing.
            trace.loads_s.extend(SUITE_LOADS_S.map(|(key, load_s)| (key.to_owned(), load_s)));
        }
        traces.push((workload, trace));
    }
    warn_of_strange_keys(arguments, &traces);
    let workloads = replay::suite(&traces, &setup)
        .map_err(|(workload, fault)| bad(&format!("{workload}: {}", fault.what)))?;
    if !arguments.json {
        let form = if arguments.markdown { Form::Markdown } else { Form::Plain };
        if form == Form::Plain {
            say(
                "loads per 100 jobs · makespan s · mean latency s · longest wait s; for foreman the fewest loads \
                possible per 100 jobs and the jobs that were late",
            );
        }
        return Ok(print(&Workload::table(&workloads, form)));
    }
    let lines = workloads.iter().flat_map(|workload| {
        let of = Chooser::ALL.into_iter().zip(&workload.reports);
        of.map(|(chooser, reports)| figures("workload", &workload.name, chooser, reports))
    });
    let lines: Vec<Value> = lines.collect();
    Ok(print(&format!("{}\n", json!({ "suite": lines }))))
}

fn figures(what: &str, name: &str, chooser: Chooser, reports: &[Report]) -> Value {
    let mut line = Map::new();
    line.insert(what.to_owned(), json!(name));
    line.insert("policy".to_owned(), json!(chooser.name()));
    line.insert("traces".to_owned(), json!(reports.len()));
    line.extend(as_json(reports));
    Value::Object(line)
}

fn setup(arguments: &Replay) -> Result<Setup, Exit> {
    let policy = config::policy(&arguments.raw()).map_err(|faults| {
        for fault in faults {
            // The flags are named like the variables.
            let flag =
                fault.key.trim_start_matches("FOREMAN_").to_ascii_lowercase().replace('_', "-");
            say(&format!("--{flag} {:?}: {}", fault.value, fault.allowed));
        }
        Exit::Usage
    })?;
    let default = Setup::default();
    Ok(Setup { policy, load_s: arguments.load.unwrap_or(default.load_s), ..default })
}

/// Reads a trace, with what was said about loads and slots laid over what it says.
fn read(path: &Path, arguments: &Replay) -> Result<Trace, Exit> {
    let name = path.display();
    let text = match path == Path::new(STDIN) {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(path),
    };
    let text = text.map_err(|fault| bad(&format!("cannot read {name}: {fault}")))?;
    let mut trace = Trace::parse(&text)
        .map_err(|fault| bad(&format!("{name}:{}: {}", fault.line, fault.what)))?;
    trace.loads_s.splice(0..0, arguments.load_of.iter().cloned());
    trace.slots = arguments.slots.map(usize::from).or(trace.slots);
    Ok(if arguments.alike { trace.alike() } else { trace })
}

/// The files of a suite with their workloads, those of one workload together.
fn files(folder: &Path) -> Result<Vec<(String, PathBuf)>, Exit> {
    let unreadable = |fault: std::io::Error| {
        let hint = match folder == Path::new(SUITE_DEFAULT) {
            true => "; name a folder of traces, or run this in foreman's own repository",
            false => "",
        };
        bad(&format!("cannot read {}: {fault}{hint}", folder.display()))
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some(workload) = name.as_deref().and_then(workload_of) {
            found.push((workload.to_owned(), path));
        }
    }
    if found.is_empty() {
        return Err(bad(&format!("no NAME.SEED.jsonl in {}", folder.display())));
    }
    found.sort();
    Ok(found)
}

/// A typing error in a key would otherwise do nothing, quietly.
fn warn_of_strange_keys(arguments: &Replay, traces: &[(String, Trace)]) {
    for (key, _) in &arguments.load_of {
        if !traces.iter().any(|(_, trace)| trace.needs(key)) {
            say(&format!("--load-of {key}: no job needs this key"));
        }
    }
}

/// Tells what is wrong with a trace or a folder.
fn bad(text: &str) -> Exit {
    say(text);
    Exit::Failed
}
