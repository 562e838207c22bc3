//! What is done with the jobs that were in flight when the last daemon ended. Runs inside opening, before anything is
//! served, in one transaction; running it twice changes nothing more.

use rusqlite::{Connection, params};

use crate::domain::job::State;
use crate::domain::retry::INTERRUPTIONS_MAX;

use super::error::StoreError;
use super::events;
use super::jobs::Ending;
use super::life::{Note, finish, record};
use super::rows;

/// What the opening found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Jobs in flight, now queued again.
    pub requeued: usize,
    /// Jobs in flight once too often, now failed.
    pub given_up: usize,
    /// Jobs in flight that were being cancelled, now cancelled.
    pub cancelled: usize,
    /// Jobs that waited and wait on; their clients' connections are gone.
    pub waiting: u64,
}

/// Puts jobs in flight back into the queue uncharged, as an interruption; gives up on those interrupted too often, and ends
/// those that were being cancelled. Those that somebody waited for become `batch`: the connections they were for did not
/// survive. Their clients may come back for them; until then they are set aside ([`super::set_aside`]).
pub(super) fn recover(tx: &Connection, now_ms: i64) -> Result<Recovered, StoreError> {
    events::skip_some(tx)?;
    lose_waiting(tx)?;
    tx.execute(CLAMP_READY, [now_ms])?;
    let waiting: i64 =
        tx.query_row("SELECT jobs FROM tally WHERE state = 'queued'", [], |row| row.get(0))?;
    let in_flight: Vec<InFlight> = tx
        .prepare(
            "SELECT seq, state, lease_epoch, interruptions, is_cancelling FROM job
             WHERE state IN ('loading','working') ORDER BY seq",
        )?
        .query_map([], |row| {
            Ok(InFlight {
                seq: row.get(0)?,
                state: row.get(1)?,
                epoch: row.get(2)?,
                interruptions: row.get(3)?,
                is_cancelling: row.get(4)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    let mut recovered = Recovered { waiting: rows::count(waiting), ..Recovered::default() };
    for job in in_flight {
        recover_one(tx, &job, now_ms, &mut recovered)?;
    }
    Ok(recovered)
}

struct InFlight {
    seq: i64,
    state: String,
    epoch: i64,
    interruptions: u32,
    is_cancelling: bool,
}

fn recover_one(
    tx: &Connection,
    job: &InFlight,
    now_ms: i64,
    recovered: &mut Recovered,
) -> Result<(), StoreError> {
    let interruptions = job.interruptions + 1;
    if job.is_cancelling {
        let ending = Ending::cancelled("it was cancelled while it ran");
        finish(tx, job.seq, job.epoch, &ending, now_ms)?;
        recovered.cancelled += 1;
    } else if interruptions < INTERRUPTIONS_MAX {
        requeue(tx, job.seq, now_ms)?;
        let from = State::from_name(&job.state);
        let note = Note { epoch: job.epoch, at_ms: now_ms, text: Some("foreman was restarted") };
        record(tx, job.seq, from, State::Queued, &note)?;
        recovered.requeued += 1;
    } else {
        let text = format!("foreman died {interruptions} times while this job was running");
        let sql = "UPDATE job SET interruptions = ?2 WHERE seq = ?1";
        tx.prepare_cached(sql)?.execute(params![job.seq, interruptions])?;
        finish(tx, job.seq, job.epoch, &Ending::failed(text), now_ms)?;
        recovered.given_up += 1;
    }
    Ok(())
}

/// A clock that was set back while foreman was away would leave jobs ready in the future, where nothing is ever due.
/// Reads the index only, and writes nothing as a rule.
pub(super) const CLAMP_READY: &str = "UPDATE job SET ready_at_ms = ?1 WHERE seq IN (
    SELECT seq FROM job INDEXED BY job_oldest WHERE state = 'queued' AND not_before_ms = 0 AND ready_at_ms > ?1)";

/// Makes the jobs that clients waited for `batch`, and their connections lost. Of those that outlive their callers, however
/// many, nothing is read or written.
fn lose_waiting(tx: &Connection) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE job SET class = 'batch', is_lost = 1 WHERE seq IN (
             SELECT seq FROM job INDEXED BY job_attended WHERE state = 'queued' AND is_async = 0 AND is_lost = 0)",
        [],
    )?;
    Ok(())
}

fn requeue(tx: &Connection, seq: i64, now_ms: i64) -> Result<(), StoreError> {
    let sql = "UPDATE job SET state = 'queued', class = CASE WHEN is_async THEN class ELSE 'batch' END,
                      is_lost = NOT is_async, attempts = attempts - 1, interruptions = interruptions + 1,
                      not_before_ms = 0, is_set_aside = 0, ready_at_ms = MIN(ready_at_ms, ?2), queued_at_ms = ?2, claimed_at_ms = NULL,
                      working_at_ms = NULL, load_ms = NULL
               WHERE seq = ?1 AND state IN ('loading','working')";
    tx.prepare_cached(sql)?.execute([seq, now_ms])?;
    Ok(())
}
