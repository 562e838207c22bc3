//! Fails waiting jobs whose load key does not load, where a client waits for them on its connection. Called by the worker.

use rusqlite::{Connection, OptionalExtension, params};

use crate::domain::job::{Event, JobId};

use super::by_hand::{WaitingEnd, end_waiting};
use super::error::StoreError;
use super::{Durability, Store};

/// Which jobs are refused, and with what.
#[derive(Debug, Clone)]
pub struct Refusing {
    /// The lane whose key does not load, as text.
    pub lane: String,
    /// The jobs for which somebody waits. Those that do not wait in the lane are left alone.
    pub ids: Vec<JobId>,
    /// The error, for people.
    pub text: String,
    /// Its HTTP status.
    pub status: u16,
    /// Now.
    pub at_ms: i64,
}

/// What became of jobs that were to be refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refused {
    /// They have failed.
    pub failed: Vec<JobId>,
    /// They outlive their callers, and wait on.
    pub kept: Vec<JobId>,
}

/// A waiting job by its public name.
pub(super) const WAITING_IN_LANE: &str =
    "SELECT seq, is_async FROM job WHERE id = ?1 AND state = 'queued' AND lane = ?2";

impl Store {
    /// Fails the jobs that wait in the lane, but for those that outlive their callers. Synced, since clients are told.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn refuse_waiting(&self, refusing: Refusing) -> Result<Refused, StoreError> {
        self.write(Durability::Synced, move |tx| refuse_waiting(tx, &refusing)).await
    }
}

fn refuse_waiting(tx: &Connection, refusing: &Refusing) -> Result<Refused, StoreError> {
    let mut refused = Refused::default();
    for id in &refusing.ids {
        let found: Option<(i64, bool)> = tx
            .prepare_cached(WAITING_IN_LANE)?
            .query_row(params![id.to_string(), refusing.lane], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match found {
            None => (),
            Some((_, true)) => refused.kept.push(*id),
            Some((seq, false)) => {
                let status = Some(refusing.status);
                let end = WaitingEnd { event: Event::Fail, why: &refusing.text, status };
                end_waiting(tx, seq, &end, refusing.at_ms)?;
                refused.failed.push(*id);
            }
        }
    }
    Ok(refused)
}
