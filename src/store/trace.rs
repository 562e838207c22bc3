//! The jobs that ran last, as they came and were served: what a trace is written from and what the distance from the best
//! schedule is measured on. Read only, by index. Called by whoever judges the schedule.

use rusqlite::Transaction;

use crate::domain::job::Class;

use super::Store;
use super::error::StoreError;
use super::rows;

/// A job that ran and has ended. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedJob {
    /// Arrival number.
    pub seq: i64,
    /// The lane it waited in, as text.
    pub lane: String,
    /// The class it was claimed in.
    pub class: Class,
    /// Who asked: an opaque id; empty where nobody knows.
    pub client: String,
    /// Path of the request, without its query; empty for jobs of an older foreman.
    pub path: String,
    /// When it was admitted.
    pub created_at_ms: i64,
    /// Since when it might run: its admission, or the end of its last delay.
    pub ready_at_ms: i64,
    /// When it was claimed for the attempt that ended it.
    pub claimed_at_ms: i64,
    /// When that attempt began to be worked on, after the load if there was one.
    pub working_at_ms: i64,
    /// When it ended.
    pub finished_at_ms: i64,
    /// How long the load for that attempt took, in milliseconds; `None` where nothing was loaded.
    pub load_ms: Option<i64>,
}

impl Store {
    /// The `last` jobs to end of those that ran (done, or failed at work), in order of arrival. Costs one look-up for each,
    /// whatever the history.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn finished_jobs(&self, last: usize) -> Result<Vec<FinishedJob>, StoreError> {
        self.read(move |tx| finished_jobs(tx, last)).await
    }
}

/// The last to end, the latest first.
pub(super) const RAN_LAST: &str =
    "SELECT seq, lane, class, client, path, created_at_ms, ready_at_ms, claimed_at_ms,
        working_at_ms, finished_at_ms, load_ms
    FROM job INDEXED BY job_ran WHERE state IN ('done','failed') AND working_at_ms IS NOT NULL
    ORDER BY finished_at_ms DESC LIMIT ?1";

fn finished_jobs(tx: &Transaction<'_>, last: usize) -> Result<Vec<FinishedJob>, StoreError> {
    let mut statement = tx.prepare_cached(RAN_LAST)?;
    let mut found = statement.query([rows::to_column(last)])?;
    let mut jobs = Vec::new();
    while let Some(row) = found.next()? {
        let class: String = row.get(2)?;
        jobs.push(FinishedJob {
            seq: row.get(0)?,
            lane: row.get(1)?,
            class: rows::class(&class)?,
            client: row.get(3)?,
            path: row.get(4)?,
            created_at_ms: row.get(5)?,
            ready_at_ms: row.get(6)?,
            claimed_at_ms: row.get(7)?,
            working_at_ms: row.get(8)?,
            finished_at_ms: row.get(9)?,
            load_ms: row.get(10)?,
        });
    }
    jobs.sort_unstable_by_key(|job| job.seq);
    Ok(jobs)
}
