//! Whose turn it is in a lane and class: the job that a claim takes, and the order in which those that wait would follow.
//! The one place that knows this order. The table `turn` is kept by triggers (migration 4) after the rules of
//! `domain::turns`; nothing here costs more than a look-up for each job or client it names, however many wait. Called by
//! the claim, and by what shows positions.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rusqlite::{Connection, OptionalExtension, params};

use crate::domain::job::Class;

use super::error::StoreError;
use super::lanes;
use super::rows;

/// The job to be served next in a lane and class: the oldest ready one of the client whose turn it is.
pub(super) const NEXT: &str = "SELECT seq FROM job INDEXED BY job_ready
    WHERE state = 'queued' AND not_before_ms = 0 AND lane = ?1 AND class = ?2 AND client = (
        SELECT client FROM turn INDEXED BY turn_next WHERE lane = ?1 AND class = ?2 ORDER BY round, since LIMIT 1)
    ORDER BY seq LIMIT 1";

/// The clients of a lane and class in the order of their turns.
pub(super) const CLIENTS: &str = "SELECT client, round, since FROM turn INDEXED BY turn_next
    WHERE lane = ?1 AND class = ?2 ORDER BY round, since LIMIT ?3";

/// A client's first ready job after another.
pub(super) const AFTER: &str = "SELECT seq FROM job INDEXED BY job_ready
    WHERE state = 'queued' AND not_before_ms = 0 AND lane = ?1 AND class = ?2 AND client = ?3 AND seq > ?4
    ORDER BY seq LIMIT 1";

/// How many ready jobs of a client are older than one, up to a number.
pub(super) const OLDER: &str = "SELECT COUNT(*) FROM (SELECT 1 FROM job INDEXED BY job_ready
    WHERE state = 'queued' AND not_before_ms = 0 AND lane = ?1 AND class = ?2 AND client = ?3 AND seq < ?4 LIMIT ?5)";

/// How many jobs of other clients come before a round and a place in it. A client goes once in each round; one that is there
/// counts with a job at least, so no more clients need to be read than jobs are counted.
pub(super) const BEFORE: &str = "SELECT COALESCE(SUM(MIN(jobs, ?4 - round + (since < ?5))), 0) FROM (
    SELECT client, round, since, jobs FROM turn
    WHERE lane = ?1 AND class = ?2 AND (round < ?4 OR (round = ?4 AND since < ?5)) AND client <> ?3 LIMIT ?6)";

/// The job to be served next in a lane and class; `None` if none is ready.
pub(super) fn next(tx: &Connection, lane: &str, class: Class) -> Result<Option<i64>, StoreError> {
    let found = tx.prepare_cached(NEXT)?.query_row(params![lane, class.name()], |row| row.get(0));
    Ok(found.optional()?)
}

/// How many ready jobs of its lane go before a job, as things are: those of more urgent classes, and of its own those whose
/// turn is earlier. `None` if it is not ready, or there are `count_max` or more.
pub(super) fn ahead(tx: &Connection, seq: i64, count_max: u32) -> Result<Option<u64>, StoreError> {
    let sql = "SELECT lane, class, client FROM job WHERE seq = ?1 AND state = 'queued' AND not_before_ms = 0";
    let found: Option<[String; 3]> = tx
        .prepare_cached(sql)?
        .query_row([seq], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?]))
        .optional()?;
    let Some([lane, class, client]) = found else { return Ok(None) };
    let count = |column: i64| rows::count(column);
    let own: i64 = tx
        .prepare_cached(OLDER)?
        .query_row(params![lane, class, client, seq, count_max], |row| row.get(0))?;
    let (round, since): (i64, i64) = tx
        .prepare_cached(
            "SELECT round, since FROM turn WHERE lane = ?1 AND class = ?2 AND client = ?3",
        )?
        .query_row([&lane, &class, &client], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let others: i64 = tx.prepare_cached(BEFORE)?.query_row(
        params![lane, class, client, round.saturating_add(own), since, count_max],
        |row| row.get(0),
    )?;
    let urgent = lanes::ready_above(tx, &lane, rows::class(&class)?)?;
    let ahead = urgent.saturating_add(count(own)).saturating_add(count(others));
    Ok((ahead < u64::from(count_max)).then_some(ahead))
}

/// The first ready jobs of a lane and class, in the order in which they would be served; at most `jobs_max`.
pub(super) fn first_jobs(
    tx: &Connection,
    lane: &str,
    class: Class,
    jobs_max: usize,
) -> Result<Vec<i64>, StoreError> {
    let mut after = tx.prepare_cached(AFTER)?;
    let mut next_of = |client: &str, seq: i64| -> Result<Option<i64>, StoreError> {
        let found = after.query_row(params![lane, class.name(), client, seq], |row| row.get(0));
        Ok(found.optional()?)
    };
    let mut clients = tx.prepare_cached(CLIENTS)?;
    let clients = clients
        .query_map(params![lane, class.name(), rows::to_column(jobs_max)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?
        .collect::<Result<Vec<(String, i64, i64)>, _>>()?;
    // By round, then by place in it, with the client's job before.
    let mut turns: BinaryHeap<Reverse<(i64, i64, String, i64)>> = clients
        .into_iter()
        .map(|(client, round, since)| Reverse((round, since, client, i64::MIN)))
        .collect();
    let mut jobs = Vec::new();
    while jobs.len() < jobs_max
        && let Some(Reverse((round, since, client, before))) = turns.pop()
    {
        if let Some(seq) = next_of(&client, before)? {
            jobs.push(seq);
            turns.push(Reverse((round.saturating_add(1), since, client, seq)));
        }
    }
    Ok(jobs)
}
