//! What waits: the heads of the lanes for the worker's decision, and the overview for `foreman status`.

use rusqlite::{OptionalExtension, Transaction, params};

use super::Store;
use super::error::StoreError;
use super::rows;

/// A lane in which jobs wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingLane {
    /// The lane, as text.
    pub lane: String,
    /// Arrival number of its oldest ready job; `None` if all of them wait for a retry.
    pub oldest_ready_seq: Option<i64>,
}

/// A lane of the queue, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSummary {
    /// The lane, as text.
    pub lane: String,
    /// Jobs that wait in it.
    pub depth: u64,
    /// Those of them that wait for a retry.
    pub delayed: u64,
    /// Arrival number of the oldest.
    pub oldest_seq: i64,
    /// When the oldest was admitted.
    pub oldest_at_ms: i64,
}

/// A job that has not ended, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenJob {
    /// Arrival number.
    pub seq: i64,
    /// Public name.
    pub id: String,
    /// State.
    pub state: String,
    /// Lane, as text.
    pub lane: String,
    /// The model as the client wrote it.
    pub model: String,
    /// Wire shape.
    pub dialect: String,
    /// Tries so far.
    pub attempts: u32,
    /// When it was admitted.
    pub created_at_ms: i64,
    /// When it was claimed.
    pub claimed_at_ms: Option<i64>,
    /// Not to be tried before.
    pub not_before_ms: i64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// The whole picture in one read transaction.
#[derive(Debug, Clone, Default)]
pub struct Overview {
    /// Lanes of the queue.
    pub lanes: Vec<LaneSummary>,
    /// Jobs in flight.
    pub live: Vec<OpenJob>,
    /// The first waiting jobs, oldest first.
    pub waiting: Vec<OpenJob>,
    /// Jobs by state.
    pub jobs_by_state: Vec<(String, u64)>,
}

impl Store {
    /// The lanes in which jobs wait, each with its oldest ready job. Uses the index only, whatever the depth.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn waiting_lanes(&self, now_ms: i64) -> Result<Vec<WaitingLane>, StoreError> {
        self.read(move |tx| waiting_lanes(tx, now_ms)).await
    }

    /// When the next job that waits for a retry becomes ready.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn next_ready_at_ms(&self, now_ms: i64) -> Result<Option<i64>, StoreError> {
        self.read(move |tx| next_ready_at(tx, now_ms)).await
    }

    /// The overview, with at most `jobs_max` waiting jobs listed.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn overview(&self, jobs_max: usize) -> Result<Overview, StoreError> {
        self.read(move |tx| overview(tx, jobs_max)).await
    }
}

/// No retry waits longer than this. A job that seems to was put back while the clock was ahead: it is ready.
pub(super) const DELAY_MS_MAX: i64 = 120_000;

/// Steps from lane to lane through the index, so that a million waiting jobs in fifty lanes cost fifty look-ups.
pub(super) const WAITING_LANES: &str = "
WITH RECURSIVE lanes(lane) AS (
    SELECT MIN(lane) FROM job WHERE state = 'queued'
    UNION ALL
    SELECT (SELECT MIN(lane) FROM job WHERE state = 'queued' AND lane > lanes.lane)
    FROM lanes WHERE lanes.lane IS NOT NULL
)
SELECT lane, (SELECT seq FROM job WHERE state = 'queued' AND job.lane = lanes.lane
              AND (not_before_ms <= ?1 OR not_before_ms > ?2) ORDER BY seq LIMIT 1) AS oldest
FROM lanes WHERE lane IS NOT NULL";

fn waiting_lanes(tx: &Transaction<'_>, now_ms: i64) -> Result<Vec<WaitingLane>, StoreError> {
    let mut statement = tx.prepare_cached(WAITING_LANES)?;
    let lanes = statement
        .query_map(params![now_ms, now_ms.saturating_add(DELAY_MS_MAX)], |row| {
            Ok(WaitingLane { lane: row.get(0)?, oldest_ready_seq: row.get(1)? })
        })?;
    Ok(lanes.collect::<Result<_, _>>()?)
}

fn next_ready_at(tx: &Transaction<'_>, now_ms: i64) -> Result<Option<i64>, StoreError> {
    let sql = "SELECT not_before_ms FROM job WHERE state = 'queued' AND not_before_ms > 0 AND not_before_ms > ?1
               ORDER BY not_before_ms LIMIT 1";
    Ok(tx.prepare_cached(sql)?.query_row([now_ms], |row| row.get(0)).optional()?)
}

fn overview(tx: &Transaction<'_>, jobs_max: usize) -> Result<Overview, StoreError> {
    let lanes = tx
        .prepare_cached(
            "SELECT lane, COUNT(*), SUM(not_before_ms > 0 AND attempts + interruptions + deferrals > 0), MIN(seq)
             FROM job WHERE state = 'queued' GROUP BY lane",
        )?
        .query_map([], |row| {
            Ok(LaneSummary {
                lane: row.get(0)?,
                depth: rows::count(row.get(1)?),
                delayed: rows::count(row.get(2)?),
                oldest_seq: row.get(3)?,
                oldest_at_ms: 0,
            })
        })?
        .collect::<Result<Vec<_>, _>>()?;
    let lanes = lanes.into_iter().map(|lane| with_age(tx, lane)).collect::<Result<Vec<_>, _>>()?;
    let jobs_by_state = tx
        .prepare_cached("SELECT state, jobs FROM tally")?
        .query_map([], |row| Ok((row.get(0)?, rows::count(row.get(1)?))))?
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Overview {
        lanes,
        live: open_jobs(tx, "state IN ('loading','working')", jobs_max)?,
        waiting: open_jobs(tx, "state = 'queued'", jobs_max)?,
        jobs_by_state,
    })
}

fn with_age(tx: &Transaction<'_>, lane: LaneSummary) -> Result<LaneSummary, StoreError> {
    let oldest_at_ms = tx
        .prepare_cached("SELECT created_at_ms FROM job WHERE seq = ?1")?
        .query_row([lane.oldest_seq], |row| row.get(0))?;
    Ok(LaneSummary { oldest_at_ms, ..lane })
}

fn open_jobs(
    tx: &Transaction<'_>,
    condition: &str,
    jobs_max: usize,
) -> Result<Vec<OpenJob>, StoreError> {
    let sql = format!(
        "SELECT seq, id, state, lane, model, dialect, attempts, created_at_ms, claimed_at_ms, not_before_ms, last_error
         FROM job WHERE {condition} ORDER BY seq LIMIT ?1"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    let jobs = statement.query_map(params![rows::to_column(jobs_max)], |row| {
        Ok(OpenJob {
            seq: row.get(0)?,
            id: row.get(1)?,
            state: row.get(2)?,
            lane: row.get(3)?,
            model: row.get(4)?,
            dialect: row.get(5)?,
            attempts: rows::small(row.get(6)?),
            created_at_ms: row.get(7)?,
            claimed_at_ms: row.get(8)?,
            not_before_ms: row.get(9)?,
            last_error: row.get(10)?,
        })
    })?;
    Ok(jobs.collect::<Result<Vec<_>, _>>()?)
}
