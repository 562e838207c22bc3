//! Whose jobs are whose, and how many an owner may have. An owner is the name of a key; a job without one is nobody's, and
//! found for no owner. Called by `http`, and by the admissions of this room.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

use crate::domain::job::JobId;

use super::Store;
use super::error::StoreError;
use super::{rows, set_aside};

/// How many jobs an owner may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cap {
    /// In state `queued`, those scheduled for later included.
    pub queued_max: Option<u64>,
    /// In flight.
    pub in_flight_max: Option<u64>,
}

/// The caps of those owners that have any.
pub type Caps = BTreeMap<String, Cap>;

impl Store {
    /// Holds owners to these caps from now on, and to no others. Wake the worker afterwards.
    pub fn keep_caps(&self, caps: Caps) {
        *self.shared.caps.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(caps);
    }

    pub(super) fn caps(&self) -> Arc<Caps> {
        Arc::clone(&self.shared.caps.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is, or was, a job of this id that belongs to `owner`.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn belongs(&self, id: JobId, owner: String) -> Result<bool, StoreError> {
        const JOB: &str = "SELECT 1 FROM job WHERE id = ?1 AND owner = ?2 AND owner <> ''";
        const PURGED: &str = "SELECT 1 FROM purged WHERE id = ?1 AND owner = ?2 AND owner <> ''";
        self.look(move |tx| {
            let wanted = params![id.to_string(), owner];
            Ok(tx.prepare_cached(JOB)?.exists(wanted)?
                || tx.prepare_cached(PURGED)?.exists(wanted)?)
        })
        .await
    }

    /// Whether there is a delivery of this name that tells of a job of `owner`.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn delivery_belongs(&self, event: i64, owner: String) -> Result<bool, StoreError> {
        const SQL: &str = "SELECT 1 FROM delivery JOIN job USING (seq)
                           WHERE event = ?1 AND owner = ?2 AND owner <> ''";
        self.look(move |tx| Ok(tx.prepare_cached(SQL)?.exists(params![event, owner])?)).await
    }
}

/// The clients of owners that have as many jobs in flight as they may: their jobs are passed over. All jobs of an owner are of
/// one client, by which the order of service is kept.
#[derive(Debug)]
pub(super) struct Capped(String);

impl Capped {
    /// Those of now; `None` if there are none. Few jobs are in flight, so counting them is cheap; without a cap nothing is read.
    pub(super) fn now(tx: &Connection, caps: &Caps) -> Result<Option<Capped>, StoreError> {
        if caps.values().all(|cap| cap.in_flight_max.is_none()) {
            return Ok(None);
        }
        let mut in_flight: BTreeMap<(String, String), u64> = BTreeMap::new();
        let mut statement = tx.prepare_cached(IN_FLIGHT)?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            *in_flight.entry((row.get(0)?, row.get(1)?)).or_default() += 1;
        }
        let is_full = |owner: &str, jobs: u64| {
            let max = caps.get(owner).and_then(|cap| cap.in_flight_max);
            max.is_some_and(|max| jobs >= max)
        };
        let full = in_flight.into_iter().filter(|((owner, _), jobs)| is_full(owner, *jobs));
        let clients: Vec<Value> = full.map(|((_, client), _)| Value::String(client)).collect();
        Ok((!clients.is_empty()).then(|| Capped(Value::Array(clients).to_string())))
    }

    /// They as a JSON list, to be bound to a statement.
    pub(super) fn clients(&self) -> &str {
        &self.0
    }
}

/// Owner and client of each job in flight. One that nobody waits for makes room, and takes no place of its owner's.
pub(super) const IN_FLIGHT: &str = "SELECT owner, client FROM job INDEXED BY job_live
    WHERE state IN ('loading','working') AND owner <> '' AND NOT (is_set_aside = 1 AND not_before_ms <> 0)";

/// How many jobs of `owner` wait, if that is as many as may. Those set aside keep no new ones out.
pub(super) fn full(tx: &Connection, owner: &str, caps: &Caps) -> Result<Option<u64>, StoreError> {
    let Some(queued_max) = caps.get(owner).and_then(|cap| cap.queued_max) else { return Ok(None) };
    let jobs: Option<i64> = tx
        .prepare_cached("SELECT jobs FROM owned WHERE owner = ?1")?
        .query_row([owner], |row| row.get(0))
        .optional()?;
    let Some(jobs) = jobs.map(rows::count).filter(|jobs| *jobs >= queued_max) else {
        return Ok(None);
    };
    let jobs = jobs.saturating_sub(set_aside::count_of(tx, owner)?);
    Ok((jobs >= queued_max).then_some(jobs))
}

/// The owner of a job; empty where it is nobody's.
pub(super) fn of_job(tx: &Connection, seq: i64) -> Result<String, StoreError> {
    let sql = "SELECT owner FROM job WHERE seq = ?1";
    Ok(tx.prepare_cached(sql)?.query_row([seq], |row| row.get(0))?)
}
