//! The overview for `foreman status`: lanes, jobs in flight, the next waiting jobs, in one read transaction. Costs a
//! few index look-ups for each lane and each job listed, however many wait. Called by `http`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::{OptionalExtension, Params, Row, Statement, Transaction, params};

use crate::domain::job::Class;

use super::Store;
use super::error::StoreError;
use super::lanes::{self, Count};
use super::{rows, set_aside, turns};

/// A lane of the queue, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSummary {
    /// The lane, as text.
    pub lane: String,
    /// Jobs that wait in it.
    pub depth: u64,
    /// Those of them that wait for a retry.
    pub delayed: u64,
    /// Arrival number of the oldest: of those that have been ready longest in their class, and those that wait for a retry.
    pub oldest_seq: i64,
    /// When that was admitted.
    pub oldest_at_ms: i64,
    /// Jobs that wait in it by class, the most urgent first, without those of which there are none.
    pub by_class: Vec<(Class, u64)>,
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
    /// The class in which it waits, or was claimed.
    pub class: String,
    /// The model as the client wrote it.
    pub model: String,
    /// Whose it is: the name of a key; empty where it is nobody's.
    pub owner: String,
    /// Wire shape.
    pub dialect: String,
    /// The number of its last attempt; 0 before the first.
    pub attempt: i64,
    /// Tries that count against it.
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

/// Lanes summed up one by one. Beyond that it is their number that says something.
const LANES_MAX: usize = 100;

/// The whole picture in one read transaction.
#[derive(Debug, Clone, Default)]
pub struct Overview {
    /// The first lanes of the queue in the order of service, by name; at most [`LANES_MAX`].
    pub lanes: Vec<LaneSummary>,
    /// How many lanes there are besides.
    pub lanes_more: u64,
    /// How many jobs wait, in all lanes.
    pub depth: u64,
    /// Jobs in flight.
    pub live: Vec<OpenJob>,
    /// The next waiting jobs: those that are ready in the order of service, then the others by when they will be.
    pub waiting: Vec<OpenJob>,
    /// Jobs by state.
    pub jobs_by_state: Vec<(String, u64)>,
    /// Jobs set aside, since nobody waits for them: in no lane.
    pub unattended: u64,
}

impl Store {
    /// The overview, with at most `jobs_max` waiting jobs listed: those of the lanes in `order` first, then those of others.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn overview(
        &self,
        order: Vec<String>,
        jobs_max: usize,
    ) -> Result<Overview, StoreError> {
        self.read(move |tx| overview(tx, &order, jobs_max)).await
    }

    /// The same with the jobs of one owner only, as they came; lanes and counts are those of all.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn overview_of(
        &self,
        owner: String,
        jobs_max: usize,
    ) -> Result<Overview, StoreError> {
        self.read(move |tx| {
            let mut overview = overview(tx, &[], 0)?;
            let mut live = tx.prepare_cached(&open_jobs_sql(LIVE, "seq"))?;
            overview.live = open_jobs(&mut live, [LIVE_MAX])?;
            overview.live.retain(|job| job.owner == owner && !owner.is_empty());
            let mut waiting = tx.prepare_cached(&open_jobs_sql(WAITING_OF_OWNER, "seq"))?;
            let bounds = params![rows::to_column(jobs_max), owner];
            overview.waiting = open_jobs(&mut waiting, bounds)?;
            Ok(overview)
        })
        .await
    }
}

/// The oldest job of a lane that waits for a retry.
pub(super) const OLDEST_DELAYED: &str = "SELECT seq FROM job INDEXED BY job_put_off_in_lane
    WHERE state = 'queued' AND not_before_ms <> 0 AND not_before_ms <> run_at_ms AND lane = ?1
    ORDER BY seq LIMIT 1";

/// Jobs in flight: as many as are served at once.
pub(super) const LIVE: &str = "job INDEXED BY job_live WHERE state IN ('loading','working')";

/// Jobs that wait for a retry, or for the time they are scheduled for.
pub(super) const DELAYED: &str =
    "job INDEXED BY job_delayed WHERE state = 'queued' AND not_before_ms <> 0";

/// Waiting jobs of one owner.
pub(super) const WAITING_OF_OWNER: &str =
    "job INDEXED BY job_waiting_of_owner WHERE state = 'queued' AND owner <> '' AND owner = ?2";

/// More are not in flight at once.
const LIVE_MAX: i64 = 1_000;

fn overview(
    tx: &Transaction<'_>,
    order: &[String],
    jobs_max: usize,
) -> Result<Overview, StoreError> {
    let jobs_by_state = tx
        .prepare_cached("SELECT state, jobs FROM tally")?
        .query_map([], |row| Ok((row.get(0)?, rows::count(row.get(1)?))))?
        .collect::<Result<Vec<_>, _>>()?;
    let mut live = tx.prepare_cached(&open_jobs_sql(LIVE, "seq"))?;
    let (lanes, depth): (i64, i64) =
        tx.prepare_cached(IN_ALL)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let summed_up = summaries(tx, order)?;
    let shown = u64::try_from(summed_up.len()).unwrap_or(u64::MAX);
    Ok(Overview {
        lanes: summed_up,
        lanes_more: rows::count(lanes).saturating_sub(shown),
        depth: rows::count(depth),
        live: open_jobs(&mut live, [rows::to_column(jobs_max)])?,
        waiting: waiting(tx, order, jobs_max)?,
        jobs_by_state,
        unattended: set_aside::count(tx)?,
    })
}

/// How many lanes there are, and how many jobs wait in them.
const IN_ALL: &str = "SELECT COUNT(DISTINCT lane), COALESCE(SUM(jobs), 0) FROM waiting";

/// The first lanes by name.
const BY_NAME: &str = "SELECT DISTINCT lane FROM waiting ORDER BY lane LIMIT ?1";

/// Those of the lanes in `order`, then others by name, as far as there is room.
fn summaries(tx: &Transaction<'_>, order: &[String]) -> Result<Vec<LaneSummary>, StoreError> {
    let mut by_name = tx.prepare_cached(BY_NAME)?;
    let by_name = by_name.query_map([rows::to_column(LANES_MAX)], |row| row.get(0))?;
    let by_name = by_name.collect::<Result<Vec<String>, _>>()?;
    let mut summed_up: BTreeMap<&str, LaneSummary> = BTreeMap::new();
    for lane in order.iter().take(LANES_MAX).chain(&by_name) {
        if summed_up.len() >= LANES_MAX || summed_up.contains_key(lane.as_str()) {
            continue;
        }
        let counts = lanes::counts_of_lane(tx, lane)?;
        if !counts.is_empty() {
            summed_up.insert(lane, summary(tx, lane, &counts)?);
        }
    }
    Ok(summed_up.into_values().collect())
}

/// The summary of one lane from its counts by class.
fn summary(tx: &Transaction<'_>, lane: &str, counts: &[Count]) -> Result<LaneSummary, StoreError> {
    let delayed: Option<i64> =
        tx.prepare_cached(OLDEST_DELAYED)?.query_row([lane], |row| row.get(0)).optional()?;
    let heads = counts.iter().filter_map(|count| Some(count.head?.seq));
    let oldest_seq = heads.chain(delayed).min().ok_or_else(|| {
        StoreError::Strange(format!("lane {lane:?} counts jobs that are not there"))
    })?;
    let oldest_at_ms = tx
        .prepare_cached("SELECT created_at_ms FROM job WHERE seq = ?1")?
        .query_row([oldest_seq], |row| row.get(0))?;
    let mut by_class: Vec<(Class, u64)> =
        counts.iter().map(|count| (count.class, count.jobs)).collect();
    by_class.sort_unstable();
    Ok(LaneSummary {
        lane: lane.to_owned(),
        depth: counts.iter().map(|count| count.jobs).sum(),
        delayed: counts.iter().map(|count| count.delayed).sum(),
        oldest_seq,
        oldest_at_ms,
        by_class,
    })
}

/// The lanes with ready jobs, by name.
const READY_BY_NAME: &str = "SELECT DISTINCT lane FROM head ORDER BY lane";

/// The next waiting jobs, class by class in each lane: in those of `order` first, then in the others by name.
fn waiting(
    tx: &Transaction<'_>,
    order: &[String],
    jobs_max: usize,
) -> Result<Vec<OpenJob>, StoreError> {
    let mut seqs = Vec::new();
    let mut take = |lane: &str| -> Result<bool, StoreError> {
        for class in Class::ALL {
            let room = jobs_max.saturating_sub(seqs.len());
            if room == 0 {
                break;
            }
            seqs.extend(turns::first_jobs(tx, lane, class, room)?);
        }
        Ok(seqs.len() < jobs_max)
    };
    let mut has_room = jobs_max > 0;
    for lane in order {
        has_room = has_room && take(lane)?;
    }
    let mut others = tx.prepare_cached(READY_BY_NAME)?;
    let mut others = others.query([])?;
    let known: BTreeSet<&String> = order.iter().collect();
    while has_room && let Some(row) = others.next()? {
        let lane: String = row.get(0)?;
        has_room = known.contains(&lane) || take(&lane)?;
    }
    let numbers: Vec<String> = seqs.iter().map(ToString::to_string).collect();
    let ready = open_jobs_sql(&format!("job WHERE seq IN ({})", numbers.join(",")), "seq");
    let mut jobs = open_jobs(&mut tx.prepare(&ready)?, [rows::to_column(jobs_max)])?;
    let places: HashMap<i64, usize> = seqs.iter().copied().zip(0..).collect();
    jobs.sort_by_key(|job| places.get(&job.seq).copied());
    let room = jobs_max.saturating_sub(jobs.len());
    let mut delayed = tx.prepare_cached(&open_jobs_sql(DELAYED, "not_before_ms, seq"))?;
    jobs.extend(open_jobs(&mut delayed, [rows::to_column(room)])?);
    Ok(jobs)
}

/// The statement that lists the jobs of `source` in an order.
pub(super) fn open_jobs_sql(source: &str, order: &str) -> String {
    format!(
        "SELECT seq, id, state, lane, model, dialect, attempts, created_at_ms, claimed_at_ms, not_before_ms, last_error,
                class, lease_epoch, owner
         FROM {source} ORDER BY {order} LIMIT ?1"
    )
}

fn open_jobs(
    statement: &mut Statement<'_>,
    bounds: impl Params,
) -> Result<Vec<OpenJob>, StoreError> {
    let jobs = statement.query_map(bounds, open_job)?;
    Ok(jobs.collect::<Result<Vec<_>, _>>()?)
}

fn open_job(row: &Row<'_>) -> rusqlite::Result<OpenJob> {
    Ok(OpenJob {
        seq: row.get(0)?,
        id: row.get(1)?,
        state: row.get(2)?,
        lane: row.get(3)?,
        class: row.get(11)?,
        model: row.get(4)?,
        owner: row.get(13)?,
        dialect: row.get(5)?,
        attempt: row.get(12)?,
        attempts: rows::small(row.get(6)?),
        created_at_ms: row.get(7)?,
        claimed_at_ms: row.get(8)?,
        not_before_ms: row.get(9)?,
        last_error: row.get(10)?,
    })
}
