//! What waits, for the worker's decision: for each lane and class how many, and which of them has been ready longest.
//! Which is served next is told by [`super::turns`]. Never reads more than a few index entries for each lane, however many
//! jobs wait. Called by the other queries of this room; which of many lanes are looked at is told by [`super::board`].

use rusqlite::{Connection, OptionalExtension, Params, Row, Statement, Transaction, params};

use crate::domain::job::Class;
use crate::domain::learning::Waiting;
use crate::domain::schedule::Lane;

use super::error::StoreError;
use super::owners::{Capped, Caps};
use super::rows;
use super::{Durability, Store};

/// The waiting jobs of one class in a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingLane {
    /// The lane, as text.
    pub lane: String,
    /// The class.
    pub class: Class,
    /// How many wait, those that wait for a retry included, without those of owners that have as many in flight as they may.
    pub jobs: u64,
    /// The one that has been ready longest of those that may run; `None` if all wait for a retry, or for their owners.
    pub head: Option<WaitingHead>,
}

/// The job that has been ready longest in its lane and class: what is late is judged by it. The next to be served is another
/// where it is another client's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingHead {
    /// Arrival number.
    pub seq: i64,
    /// Since when it may run (milliseconds since 1970): its admission, or the end of its last delay. Never in the future.
    pub ready_at_ms: i64,
}

impl WaitingLane {
    /// What the scheduler sees of it; `None` if none of its jobs may run, or this version cannot read the lane.
    pub fn ready(&self) -> Option<Waiting> {
        let head = self.head.as_ref()?;
        let Some(lane) = Lane::from_text(&self.lane) else {
            tracing::debug!(job.lane = %self.lane, "jobs wait in a lane that this version cannot read");
            return None;
        };
        let (class, jobs) = (self.class, self.jobs);
        Some(Waiting { lane, class, jobs, seq: head.seq, ready_at_ms: head.ready_at_ms })
    }
}

impl Store {
    /// What waits, one entry for each lane and class in which jobs wait, by lane and then by class name: all of it, so it costs
    /// a step for each. Jobs whose delay is over are made ready first, by one write that survives kill -9; it costs one index
    /// entry for each of them, once.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn waiting_lanes(&self, now_ms: i64) -> Result<Vec<WaitingLane>, StoreError> {
        self.see(now_ms, waiting_lanes).await
    }

    /// Looks at what waits, with no delay left that is over.
    pub(super) async fn see<T, F>(&self, now_ms: i64, look: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Connection, &Caps, i64) -> Result<T, StoreError> + Clone + Send + 'static,
    {
        let (caps, first) = (self.caps(), look.clone());
        let seen = self.read(move |tx| match are_delays_over(tx, now_ms)? {
            true => Ok(None),
            false => first(tx, &caps, now_ms).map(Some),
        });
        if let Some(seen) = seen.await? {
            return Ok(seen);
        }
        let caps = self.caps();
        self.write(Durability::Process, move |tx| end_delays(tx, now_ms)).await?;
        self.read(move |tx| look(tx, &caps, now_ms)).await
    }

    /// Makes no waiting job ready later than now: for a clock that was set back, by which nothing would be due for as long as
    /// it was set back. Survives kill -9.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn clamp_ready(&self, now_ms: i64) -> Result<(), StoreError> {
        let clamp = move |tx: &Connection| Ok(tx.execute(super::recovery::CLAMP_READY, [now_ms])?);
        self.write(Durability::Process, clamp).await.map(|_| ())
    }

    /// The last arrival number given out.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn last_seq(&self) -> Result<i64, StoreError> {
        let sql = "SELECT COALESCE(MAX(seq), 0) FROM job";
        self.read(move |tx| Ok(tx.prepare_cached(sql)?.query_row([], |row| row.get(0))?)).await
    }

    /// When the first job becomes ready that waits for a retry, or for the time it is scheduled for. In the past where that
    /// time has come since the queue was looked at, or where a look did not get to it: then it is time for another look.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn next_ready_at_ms(&self) -> Result<Option<i64>, StoreError> {
        self.read(|tx| {
            Ok(tx.prepare_cached(NEXT_READY)?.query_row([], |row| row.get(0)).optional()?)
        })
        .await
    }
}

/// No retry waits longer than this. A job that seems to was put back while the clock was ahead: it is ready.
pub(super) const DELAY_MS_MAX: i64 = 120_000;

/// Delays ended in one write, so that a hundred thousand jobs scheduled for one time do not hold admissions up. The rest
/// follows with the next look.
const ENDED_MAX: u32 = 2_000;

/// Delays and schedules that are over, and delays that cannot be: given while the clock was ahead.
pub(super) const DELAYS_OVER: [&str; 2] = [
    "job INDEXED BY job_delayed WHERE state = 'queued' AND not_before_ms <> 0 AND not_before_ms <= ?1",
    "job INDEXED BY job_put_off
     WHERE state = 'queued' AND not_before_ms <> 0 AND not_before_ms <> run_at_ms AND not_before_ms > ?1",
];

/// The first delay that no look has ended yet.
pub(super) const NEXT_READY: &str = "SELECT not_before_ms FROM job INDEXED BY job_delayed
    WHERE state = 'queued' AND not_before_ms <> 0 ORDER BY not_before_ms LIMIT 1";

/// One row for each lane and class.
pub(super) const WAITING: &str =
    "SELECT waiting.lane, waiting.class, jobs, delayed, seq, ready_at_ms
    FROM waiting LEFT JOIN head USING (lane, class) ORDER BY waiting.lane, waiting.class";

/// Those of one lane.
pub(super) const OF_LANE: &str =
    "SELECT waiting.lane, waiting.class, jobs, delayed, seq, ready_at_ms
    FROM waiting LEFT JOIN head USING (lane, class) WHERE waiting.lane = ?1 ORDER BY waiting.class";

fn are_delays_over(tx: &Transaction<'_>, now_ms: i64) -> Result<bool, StoreError> {
    for (over, bound_ms) in DELAYS_OVER.into_iter().zip(delay_bounds(now_ms)) {
        if tx.prepare_cached(&delays_over(over))?.exists([bound_ms])? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn delay_bounds(now_ms: i64) -> [i64; 2] {
    [now_ms, now_ms.saturating_add(DELAY_MS_MAX)]
}

pub(super) fn delays_over(over: &str) -> String {
    format!("SELECT 1 FROM {over}")
}

/// Makes the jobs ready whose delay is over at `now_ms`.
pub(super) fn end_delays(tx: &Connection, now_ms: i64) -> Result<(), StoreError> {
    for (over, bound_ms) in DELAYS_OVER.into_iter().zip(delay_bounds(now_ms)) {
        let sql = format!(
            "UPDATE job SET not_before_ms = 0, ready_at_ms = MIN(ready_at_ms, ?2)
             WHERE seq IN (SELECT seq FROM {over} LIMIT {ENDED_MAX})"
        );
        tx.prepare_cached(&sql)?.execute(params![bound_ms, now_ms])?;
    }
    Ok(())
}

fn waiting_lanes(
    tx: &Connection,
    caps: &Caps,
    now_ms: i64,
) -> Result<Vec<WaitingLane>, StoreError> {
    let capped = Capped::now(tx, caps)?;
    let waiting = |count| waiting_lane(tx, count, capped.as_ref(), now_ms);
    counts(tx)?.into_iter().map(waiting).collect()
}

/// What may run of what is counted.
pub(super) fn waiting_lane(
    tx: &Connection,
    mut count: Count,
    capped: Option<&Capped>,
    now_ms: i64,
) -> Result<WaitingLane, StoreError> {
    let passed_over = capped.map_or(Ok(0), |capped| passed_over(tx, &count, capped))?;
    count.jobs = count.jobs.saturating_sub(passed_over);
    let head = match capped {
        _ if count.jobs <= count.delayed => None,
        Some(capped) if passed_over > 0 => head_beside(tx, &count, capped)?,
        Some(_) | None => count.head,
    };
    // A clock that was set back must not leave it in the future.
    let head = head.map(|head| WaitingHead { ready_at_ms: head.ready_at_ms.min(now_ms), ..head });
    Ok(WaitingLane { lane: count.lane, class: count.class, jobs: count.jobs, head })
}

/// Clients among which the longest ready job is looked for where some are passed over. Those come first whose turn is next;
/// a job of one further behind is found late once they have been served.
const CLIENTS_MAX: u32 = 64;

/// How many ready jobs of a lane and a class are of some clients (a JSON list).
pub(super) const PASSED_OVER: &str = "SELECT COALESCE(SUM(jobs), 0) FROM turn
    WHERE lane = ?1 AND class = ?2 AND client IN (SELECT value FROM json_each(?3))";

/// The longest ready one of the first jobs of the clients that are not among those.
pub(super) const HEAD_BESIDE: &str = "SELECT job.seq, job.ready_at_ms FROM (
        SELECT client FROM turn INDEXED BY turn_next WHERE lane = ?1 AND class = ?2
        AND client NOT IN (SELECT value FROM json_each(?3)) ORDER BY round, since LIMIT ?4) AS next
    JOIN job ON job.seq = (
        SELECT seq FROM job INDEXED BY job_ready
        WHERE state = 'queued' AND not_before_ms = 0 AND lane = ?1 AND class = ?2 AND client = next.client
        ORDER BY seq LIMIT 1)
    ORDER BY job.ready_at_ms, job.seq LIMIT 1";

fn passed_over(tx: &Connection, count: &Count, capped: &Capped) -> Result<u64, StoreError> {
    let bounds = [&count.lane, count.class.name(), capped.clients()];
    Ok(rows::count(tx.prepare_cached(PASSED_OVER)?.query_row(bounds, |row| row.get(0))?))
}

fn head_beside(
    tx: &Connection,
    count: &Count,
    capped: &Capped,
) -> Result<Option<WaitingHead>, StoreError> {
    let bounds = params![count.lane, count.class.name(), capped.clients(), CLIENTS_MAX];
    Ok(tx.prepare_cached(HEAD_BESIDE)?.query_row(bounds, waiting_head).optional()?)
}

/// A row of `waiting`.
pub(super) struct Count {
    pub(super) lane: String,
    pub(super) class: Class,
    pub(super) jobs: u64,
    pub(super) delayed: u64,
    /// The one that has been ready longest, if any is ready.
    pub(super) head: Option<WaitingHead>,
}

/// How many wait, by lane and then by the name of the class.
pub(super) fn counts(tx: &Connection) -> Result<Vec<Count>, StoreError> {
    let mut statement = tx.prepare_cached(WAITING)?;
    read_counts(&mut statement, [])
}

/// The same of one lane.
pub(super) fn counts_of_lane(tx: &Connection, lane: &str) -> Result<Vec<Count>, StoreError> {
    let mut statement = tx.prepare_cached(OF_LANE)?;
    read_counts(&mut statement, [lane])
}

fn read_counts(
    statement: &mut Statement<'_>,
    bounds: impl Params,
) -> Result<Vec<Count>, StoreError> {
    let mut found = statement.query(bounds)?;
    let mut counts = Vec::new();
    while let Some(row) = found.next()? {
        let class: String = row.get(1)?;
        let head: Option<(i64, i64)> = row.get::<_, Option<i64>>(4)?.zip(row.get(5)?);
        counts.push(Count {
            lane: row.get(0)?,
            class: rows::class(&class)?,
            jobs: rows::count(row.get(2)?),
            delayed: rows::count(row.get(3)?),
            head: head.map(|(seq, ready_at_ms)| WaitingHead { seq, ready_at_ms }),
        });
    }
    Ok(counts)
}

/// How many jobs of a class wait, in all lanes.
pub(super) fn waiting_of_class(tx: &Connection, class: Class) -> Result<u64, StoreError> {
    let sql = "SELECT COALESCE(SUM(jobs), 0) FROM waiting WHERE class = ?1";
    Ok(rows::count(tx.prepare_cached(sql)?.query_row([class.name()], |row| row.get(0))?))
}

/// How many ready jobs of more urgent classes there are in a lane.
pub(super) fn ready_above(tx: &Connection, lane: &str, class: Class) -> Result<u64, StoreError> {
    let mut ready =
        tx.prepare_cached("SELECT jobs - delayed FROM waiting WHERE lane = ?1 AND class = ?2")?;
    let mut above: u64 = 0;
    for other in Class::ALL.into_iter().filter(|other| *other < class) {
        let jobs: Option<i64> =
            ready.query_row(params![lane, other.name()], |row| row.get(0)).optional()?;
        above = above.saturating_add(jobs.map_or(0, rows::count));
    }
    Ok(above)
}

fn waiting_head(row: &Row<'_>) -> rusqlite::Result<WaitingHead> {
    Ok(WaitingHead { seq: row.get(0)?, ready_at_ms: row.get(1)? })
}
