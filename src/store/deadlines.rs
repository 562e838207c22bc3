//! Deadlines of jobs that wait: found by their own index, and failed when they have passed. Called by `app`.

use rusqlite::{Connection, OptionalExtension, params};

use crate::domain::job::{Event, JobId};
use crate::fail_point;

use super::by_hand::{WaitingEnd, end_waiting};
use super::error::StoreError;
use super::rows;
use super::{Durability, Store};

/// The HTTP status of a deadline that passed.
const LATE_STATUS: u16 = 504;

/// Waiting jobs failed for their deadline in one write.
const EXPIRED_MAX: u32 = 500;

/// The first deadline of the jobs that wait.
pub(super) const NEXT_DEADLINE: &str = "SELECT deadline_ms FROM job INDEXED BY job_deadline
    WHERE state = 'queued' AND deadline_ms IS NOT NULL ORDER BY deadline_ms LIMIT 1";

/// Waiting jobs whose deadline is over.
pub(super) const EXPIRED: &str = "SELECT seq, id FROM job INDEXED BY job_deadline
    WHERE state = 'queued' AND deadline_ms IS NOT NULL AND deadline_ms <= ?1 ORDER BY deadline_ms LIMIT ?2";

impl Store {
    /// Fails waiting jobs whose deadline is over, a few at a time, and names them. Synced, since it is told.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn expire(&self, now_ms: i64) -> Result<Vec<JobId>, StoreError> {
        self.write(Durability::Synced, move |tx| expire(tx, now_ms)).await
    }

    /// The first deadline of the jobs that wait.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn next_deadline_ms(&self) -> Result<Option<i64>, StoreError> {
        self.read(|tx| {
            Ok(tx.prepare_cached(NEXT_DEADLINE)?.query_row([], |row| row.get(0)).optional()?)
        })
        .await
    }
}

fn expire(tx: &Connection, now_ms: i64) -> Result<Vec<JobId>, StoreError> {
    let found: Vec<(i64, String)> = tx
        .prepare_cached(EXPIRED)?
        .query_map(params![now_ms, EXPIRED_MAX], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut expired = Vec::new();
    for (seq, id) in found {
        let why = "the deadline passed before it was done";
        let end = WaitingEnd { event: Event::Fail, why, status: Some(LATE_STATUS) };
        end_waiting(tx, seq, &end, now_ms)?;
        fail_point::reach("expire.uncommitted");
        expired.push(rows::job_id(&id)?);
    }
    Ok(expired)
}
