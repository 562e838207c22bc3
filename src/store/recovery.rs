//! What is done with the jobs that were in flight when the last daemon ended. Runs inside opening, before anything is
//! served, in one transaction; running it twice changes nothing more.

use rusqlite::{Connection, params};

use crate::domain::job::State;
use crate::domain::retry::INTERRUPTIONS_MAX;

use super::error::StoreError;
use super::life::{Note, forget_request, record};
use super::rows;

/// What the opening found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Jobs in flight, now queued again.
    pub requeued: usize,
    /// Jobs in flight once too often, now failed.
    pub given_up: usize,
    /// Jobs that waited and wait on; their clients' connections are gone.
    pub waiting: u64,
}

/// Puts jobs in flight back into the queue uncharged, as an interruption; gives up on those interrupted too often. All
/// that wait become `batch`: the connections they were for did not survive.
pub(super) fn recover(tx: &Connection, now_ms: i64) -> Result<Recovered, StoreError> {
    demote_waiting(tx)?;
    tx.execute(CLAMP_READY, [now_ms])?;
    let waiting: i64 =
        tx.query_row("SELECT jobs FROM tally WHERE state = 'queued'", [], |row| row.get(0))?;
    let in_flight: Vec<(i64, String, i64, u32)> = tx
        .prepare(
            "SELECT seq, state, lease_epoch, interruptions FROM job WHERE state IN ('loading','working') ORDER BY seq",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    let mut recovered = Recovered { waiting: rows::count(waiting), ..Recovered::default() };
    for (seq, state, epoch, interruptions) in in_flight {
        let from = State::from_name(&state);
        if interruptions + 1 < INTERRUPTIONS_MAX {
            requeue(tx, seq, now_ms)?;
            let note = Note { epoch, at_ms: now_ms, text: Some("foreman was restarted") };
            record(tx, seq, from, State::Queued, &note)?;
            recovered.requeued += 1;
        } else {
            let text =
                format!("foreman died {} times while this job was running", interruptions + 1);
            give_up(tx, seq, &text, now_ms)?;
            record(
                tx,
                seq,
                from,
                State::Failed,
                &Note { epoch, at_ms: now_ms, text: Some(&text) },
            )?;
            recovered.given_up += 1;
        }
    }
    Ok(recovered)
}

/// A clock that was set back while foreman was away would leave jobs ready in the future, where nothing is ever due.
/// Reads the index only, and writes nothing as a rule.
pub(super) const CLAMP_READY: &str = "UPDATE job SET ready_at_ms = ?1 WHERE seq IN (
    SELECT seq FROM job INDEXED BY job_ready WHERE state = 'queued' AND not_before_ms = 0 AND ready_at_ms > ?1)";

/// Makes every job admitted so far wait as `batch`, by moving the number in `opening` and merging what was counted: the
/// rows themselves are not touched, so a million of them cost nothing.
fn demote_waiting(tx: &Connection) -> Result<(), StoreError> {
    tx.execute_batch(
        "INSERT INTO waiting(lane, class, jobs, delayed)
             SELECT lane, 'batch', SUM(jobs), SUM(delayed) FROM waiting WHERE TRUE GROUP BY lane
             ON CONFLICT(lane, class) DO UPDATE SET jobs = excluded.jobs, delayed = excluded.delayed;
         DELETE FROM waiting WHERE class <> 'batch';
         UPDATE opening SET seq = (SELECT COALESCE(MAX(seq), 0) FROM job);",
    )?;
    Ok(())
}

fn requeue(tx: &Connection, seq: i64, now_ms: i64) -> Result<(), StoreError> {
    let sql = "UPDATE job SET state = 'queued', class = 'batch', attempts = attempts - 1,
                      interruptions = interruptions + 1, not_before_ms = 0, ready_at_ms = MIN(ready_at_ms, ?2),
                      claimed_at_ms = NULL, working_at_ms = NULL, load_ms = NULL
               WHERE seq = ?1 AND state IN ('loading','working')";
    tx.prepare_cached(sql)?.execute([seq, now_ms])?;
    Ok(())
}

fn give_up(tx: &Connection, seq: i64, text: &str, now_ms: i64) -> Result<(), StoreError> {
    let sql = "UPDATE job SET state = 'failed', interruptions = interruptions + 1, finished_at_ms = ?2, last_error = ?3
               WHERE seq = ?1 AND state IN ('loading','working')";
    tx.prepare_cached(sql)?.execute(params![seq, now_ms, text])?;
    forget_request(tx, seq, State::Failed)
}
