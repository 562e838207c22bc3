//! Jobs set aside: the connections of their clients went with an earlier daemon, and nobody has come back for them. They are no
//! part of the queue: the worker runs them where nothing else is to be done, one at a time. Who comes back for one puts it
//! back into its old place. After [`ASIDE_MS`] it is a batch job like any other, so that none waits for ever.
//! ADR 30. Called by `app` at the start, and by the worker.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::domain::job::{Class, Event};
use crate::domain::learning::Waiting;
use crate::domain::schedule::Lane;

use super::error::StoreError;
use super::jobs::Claim;
use super::lanes::DELAY_MS_MAX;
use super::owners::{Capped, Caps};
use super::rows;
use super::{Durability, Store, life};

/// How long after it became ready a job stays aside: the longest wait of a batch job in the default.
pub(super) const ASIDE_MS: i64 = 6 * 60 * 60 * 1_000;

/// Sets the waiting jobs aside that nobody waits for, as far as their time is not over.
const SET_ASIDE: &str =
    "UPDATE job SET is_set_aside = 1, class = 'batch', ready_at_ms = MIN(ready_at_ms, ?1),
        not_before_ms = MIN(ready_at_ms, ?1) + ?2, run_at_ms = MIN(ready_at_ms, ?1) + ?2
    WHERE state = 'queued' AND is_lost = 1 AND is_set_aside = 0 AND MIN(ready_at_ms, ?1) + ?2 > ?1";

/// Those that may run, with a delay after an attempt that is over, or cannot be, and without those of some clients (a JSON list).
const MAY_RUN: &str = "job INDEXED BY job_set_aside
    WHERE state = 'queued' AND is_set_aside = 1 AND not_before_ms <> 0
    AND (ready_at_ms <= ?1 OR ready_at_ms > ?2) AND client NOT IN (SELECT value FROM json_each(?3))";

/// The first end of a delay after an attempt.
const NEXT_READY: &str = "SELECT MIN(ready_at_ms) FROM job INDEXED BY job_set_aside
    WHERE state = 'queued' AND is_set_aside = 1 AND not_before_ms <> 0 AND ready_at_ms > ?1";

/// The jobs set aside, as the worker sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Those that may run, one entry for each lane with the oldest of them.
    pub lanes: Vec<Waiting>,
    /// When the next one may, that has to wait for a delay after an attempt (milliseconds since 1970).
    pub next_ready_at_ms: Option<i64>,
}

impl Store {
    /// Sets the waiting jobs aside whose clients' connections went with an earlier daemon; how many. Survives kill -9, and
    /// done again changes nothing.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn set_lost_aside(&self, now_ms: i64) -> Result<usize, StoreError> {
        let set_aside = move |tx: &Connection| Ok(tx.execute(SET_ASIDE, [now_ms, ASIDE_MS])?);
        self.write(Durability::Process, set_aside).await
    }

    /// The jobs set aside.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn set_aside(&self, now_ms: i64) -> Result<SetAside, StoreError> {
        let caps = self.caps();
        self.read(move |tx| {
            let next_ready_at_ms =
                tx.prepare_cached(NEXT_READY)?.query_row([now_ms], |row| row.get(0))?;
            Ok(SetAside { lanes: lanes(tx, &caps, now_ms)?, next_ready_at_ms })
        })
        .await
    }

    /// Claims the oldest job set aside in a lane; `None` if there is none any more. Survives kill -9.
    ///
    /// # Errors
    /// Any of the store's; then nothing was claimed.
    pub async fn claim_set_aside(
        &self,
        lane: String,
        event: Event,
        at_ms: i64,
    ) -> Result<Option<Claim>, StoreError> {
        let caps = self.caps();
        self.write(Durability::Process, move |tx| {
            let capped = Capped::now(tx, &caps)?;
            let sql = format!("SELECT seq FROM {MAY_RUN} AND lane = ?4 ORDER BY seq LIMIT 1");
            let bounds = params![at_ms, at_ms.saturating_add(DELAY_MS_MAX), clients(&capped), lane];
            let next: Option<i64> =
                tx.prepare_cached(&sql)?.query_row(bounds, |row| row.get(0)).optional()?;
            let Some(seq) = next else { return Ok(None) };
            life::claim_this(tx, (seq, Class::Batch), event, at_ms)
        })
        .await
    }
}

/// How many there are, whether they may run or not.
pub(super) fn count(tx: &Connection) -> Result<u64, StoreError> {
    const COUNT: &str = "SELECT COUNT(*) FROM job INDEXED BY job_set_aside
        WHERE state = 'queued' AND is_set_aside = 1 AND not_before_ms <> 0";
    Ok(rows::count(tx.prepare_cached(COUNT)?.query_row([], |row| row.get(0))?))
}

/// How many of them are of one owner.
pub(super) fn count_of(tx: &Connection, owner: &str) -> Result<u64, StoreError> {
    const COUNT: &str = "SELECT COUNT(*) FROM job INDEXED BY job_set_aside
        WHERE state = 'queued' AND is_set_aside = 1 AND not_before_ms <> 0 AND owner = ?1";
    Ok(rows::count(tx.prepare_cached(COUNT)?.query_row([owner], |row| row.get(0))?))
}

fn clients(capped: &Option<Capped>) -> &str {
    capped.as_ref().map_or("[]", Capped::clients)
}

fn lanes(tx: &Transaction<'_>, caps: &Caps, now_ms: i64) -> Result<Vec<Waiting>, StoreError> {
    let capped = Capped::now(tx, caps)?;
    let sql =
        format!("SELECT lane, COUNT(*), MIN(seq), MIN(ready_at_ms) FROM {MAY_RUN} GROUP BY lane");
    let mut statement = tx.prepare_cached(&sql)?;
    let latest_ms = now_ms.saturating_add(DELAY_MS_MAX);
    let mut found = statement.query(params![now_ms, latest_ms, clients(&capped)])?;
    let mut lanes = Vec::new();
    while let Some(row) = found.next()? {
        let text: String = row.get(0)?;
        let Some(lane) = Lane::from_text(&text) else { continue };
        let ready_at_ms: i64 = row.get(3)?;
        lanes.push(Waiting {
            lane,
            class: Class::Batch,
            jobs: rows::count(row.get(1)?),
            seq: row.get(2)?,
            ready_at_ms: ready_at_ms.min(now_ms),
        });
    }
    Ok(lanes)
}

/// Puts a job back into the queue, if it was set aside: a client waits for it that asked for the same.
pub(super) fn attend(tx: &Connection, id: &str, class: Class) -> Result<(), StoreError> {
    const ATTEND: &str = "UPDATE job SET class = ?2, not_before_ms = 0, run_at_ms = 0
        WHERE id = ?1 AND is_set_aside = 1";
    if tx.prepare_cached(ATTEND)?.execute(params![id, class.name()])? == 1 {
        put_in_old_place(tx, id)?;
    }
    Ok(())
}

/// Gives a job that was set aside its old place: whose client comes back for it is next in its lane and class, but for those that
/// arrived before.
pub(super) fn put_in_old_place(tx: &Connection, id: &str) -> Result<(), StoreError> {
    const TURN: &str = "UPDATE turn SET round = (
            SELECT MIN(round) FROM turn AS other WHERE other.lane = turn.lane AND other.class = turn.class)
        WHERE (lane, class, client) = (SELECT lane, class, client FROM job WHERE id = ?1 AND state = 'queued')";
    tx.prepare_cached(TURN)?.execute([id])?;
    tx.prepare_cached("UPDATE job SET is_set_aside = 0 WHERE id = ?1")?.execute([id])?;
    Ok(())
}
