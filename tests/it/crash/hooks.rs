//! Compares the journal of a receiver of webhooks with the database: each change of each job was taken at least once, those
//! of a job in order, and a repeated one was the same as before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::harness::receiver::Call;

/// Flags of a daemon whose webhooks are tried again at once, and never given up.
pub(super) const FLAGS: [&str; 4] = ["--webhook-retry-delay", "5ms", "--webhook-tries", "100"];

/// What a journal came to.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// Changes that were told.
    pub(super) told: usize,
    /// Calls that had been made before.
    pub(super) repeated: usize,
    /// Changes that were never taken.
    pub(super) lost: Vec<String>,
    /// Everything else that is wrong.
    pub(super) wrong: Vec<String>,
}

/// Judges a journal after foreman has stopped with nothing left to tell. Calls of jobs that were dropped count as told.
pub(super) fn judge(db: &Path, calls: &[Call]) -> Judged {
    let mut judged = Judged::default();
    let mut first_by_id: BTreeMap<&str, &Call> = BTreeMap::new();
    let mut taken: BTreeSet<&str> = BTreeSet::new();
    let mut last_by_job: BTreeMap<String, u64> = BTreeMap::new();
    for call in calls {
        let last = last_by_job.entry(call.job()).or_default();
        let sequence = call.sequence();
        if sequence != *last && sequence != *last + 1 {
            judged.wrong.push(format!("number {sequence} came after {last}: {call:?}"));
        }
        *last = sequence;
        match first_by_id.get(call.id()) {
            Some(first) if said(first) != said(call) => {
                judged.wrong.push(format!("told anew, and differently: {first:?} {call:?}"));
            }
            Some(_) => judged.repeated += 1,
            None => drop(first_by_id.insert(call.id(), call)),
        }
        if call.status == Some(200) {
            taken.insert(call.id());
        }
    }
    judged.told = taken.len();
    for (id, change) in owed(db) {
        if !taken.contains(id.as_str()) {
            judged.lost.push(format!("{id} was never taken: {change}"));
        }
    }
    judged
}

/// What a call says, but for the status of an error: a job that was put back by hand no longer knows it.
fn said(call: &Call) -> Value {
    let mut said = call.json();
    if let Some(error) = said["error"].as_object_mut() {
        error.remove("status");
    }
    said
}

/// The deliveries owed, by their id in a call.
fn owed(db: &Path) -> Vec<(String, String)> {
    let connection = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let sql = "SELECT job.id, event, sequence, to_state, delivery.state
               FROM delivery JOIN transition USING (event) JOIN job ON job.seq = delivery.seq ORDER BY event";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| {
        let (job, event): (String, i64) = (row.get(0)?, row.get(1)?);
        let (sequence, to): (i64, String) = (row.get(2)?, row.get(3)?);
        let state: String = row.get(4)?;
        Ok((format!("msg_{job}_{event}"), format!("{sequence}, to {to}, {state}")))
    });
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}
