//! What a decision looks at: all lanes where they are few; of many, those that could be chosen. So a decision costs the same
//! with ten thousand lanes as with a hundred. Called by the worker, and by `http` for what it shows of the order.
//!
//! Of many lanes it takes those of the models in memory, and of each class those whose jobs have been ready longest (who is
//! late, and who is next) and those with most jobs (what is served when memory is dry).

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, params};

use crate::domain::job::Class;
use crate::domain::learning::Held;
use crate::domain::schedule::Lane;

use super::Store;
use super::error::StoreError;
use super::lanes::{self, WaitingLane};
use super::owners::{Capped, Caps};
use super::rows;

/// What a decision already knows when it looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ViewOf {
    /// The models in memory.
    pub held: Vec<Held>,
    /// Lanes whose key may not be loaded now: others are looked for behind them.
    pub barred: BTreeSet<String>,
}

/// Up to so many rows (a lane and a class) all are looked at: far more than a box has keys in use.
pub(super) const ROWS_MAX: u32 = 128;

/// Of more, so many lanes of each class by the time since when they have been ready. Two keys that are late already change
/// what is done (`domain::schedule`), and a visit serves one.
const LONGEST_READY: usize = 16;

/// And so many of each class by their jobs.
const MOST_JOBS: usize = 8;

/// And so many rows of each model in memory, beside those of the key it was loaded with.
const OF_A_MODEL: u32 = 16;

/// Lanes passed over in a class because their key may not be loaded, or all their jobs are of owners that have as many in
/// flight as they may. A lane behind so many is seen when one of those goes on.
const PASSED_OVER_MAX: usize = 1_000;

/// What waits, as a decision sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LanesInView {
    /// One entry for each lane and class in view, by lane and then by class name.
    pub lanes: Vec<WaitingLane>,
    /// What of the queue that is.
    pub extent: Extent,
}

/// How much of the queue is in view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Extent {
    /// All that waits.
    #[default]
    Whole,
    /// What could be chosen next, of more.
    Part,
}

/// What is due before a lane, of all lanes with ready jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DueBefore {
    /// By when the lane's first job is due (milliseconds since 1970), and its arrival number.
    pub due: (i64, i64),
    /// How many lanes are due before that.
    pub lanes: u64,
    /// How many jobs wait in them.
    pub jobs: u64,
}

impl Store {
    /// What a decision looks at. Jobs whose delay is over are made ready first, as by
    /// [`Store::waiting_lanes`].
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn lanes_in_view(&self, now_ms: i64, of: ViewOf) -> Result<LanesInView, StoreError> {
        self.see(now_ms, move |tx, caps, now_ms| in_view(tx, caps, &of, now_ms)).await
    }

    /// The first lanes by when their first job is due, with the longest waits of the classes by [`Class::ALL`]. Costs a step
    /// for each lane: for what is shown, not for decisions.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn lanes_by_due(
        &self,
        max_wait_ms: [i64; 3],
        lanes_max: usize,
    ) -> Result<Vec<String>, StoreError> {
        self.look(move |tx| {
            let [first, second, third] = max_wait_ms;
            let bounds = params![first, second, third, rows::to_column(lanes_max)];
            let mut statement = tx.prepare_cached(&by_due())?;
            let lanes = statement.query_map(bounds, |row| row.get(0))?;
            Ok(lanes.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// What is due before a lane; `None` if none of its jobs is ready. Costs a step for each lane.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn due_before(
        &self,
        lane: String,
        max_wait_ms: [i64; 3],
    ) -> Result<Option<DueBefore>, StoreError> {
        self.look(move |tx| {
            let [first, second, third] = max_wait_ms;
            let due: Option<(i64, i64)> = tx
                .prepare_cached(&due())?
                .query_row(params![first, second, third, lane], |row| row.try_into())
                .optional()?;
            let Some(due) = due else { return Ok(None) };
            let bounds = params![first, second, third, due.0, due.1];
            let (lanes, jobs): (i64, i64) =
                tx.prepare_cached(&before())?.query_row(bounds, |row| row.try_into())?;
            let (lanes, jobs) = (rows::count(lanes), rows::count(jobs));
            Ok(Some(DueBefore { due, lanes, jobs }))
        })
        .await
    }
}

/// Whether there are more rows than are all looked at.
pub(super) const IS_LARGE: &str = "SELECT 1 FROM waiting LIMIT 1 OFFSET ?1";

/// The lanes of a class whose jobs have been ready longest.
pub(super) const BY_HEAD: &str =
    "SELECT lane FROM head INDEXED BY head_next WHERE class = ?1 ORDER BY ready_at_ms, seq";

/// The lanes of a class with most jobs.
pub(super) const BY_JOBS: &str = "SELECT lane FROM waiting INDEXED BY waiting_longest
    WHERE class = ?1 ORDER BY jobs DESC";

/// Lanes of one model: its name, and options behind a space.
pub(super) const OF_MODEL: &str =
    "SELECT lane FROM waiting WHERE lane >= ?1 || ' ' AND lane < ?1 || '!' LIMIT ?2";

/// By when a head is due.
const DUE: &str =
    "ready_at_ms + CASE class WHEN 'interactive' THEN ?1 WHEN 'normal' THEN ?2 ELSE ?3 END";

/// Of the columns beside a minimum SQLite takes those of its row.
fn by_due() -> String {
    format!("SELECT lane FROM head GROUP BY lane ORDER BY MIN({DUE}), seq LIMIT ?4")
}

/// When the first job of a lane is due, and its number.
fn due() -> String {
    format!(
        "SELECT {DUE} AS due_at_ms, seq FROM head WHERE lane = ?4 ORDER BY due_at_ms, seq LIMIT 1"
    )
}

/// The lanes of which a job is due before that, and all that wait in them.
fn before() -> String {
    format!(
        "SELECT COUNT(*), COALESCE(SUM(jobs), 0) FROM (
             SELECT (SELECT SUM(jobs) FROM waiting WHERE waiting.lane = head.lane) AS jobs
             FROM head WHERE ({DUE}, seq) < (?4, ?5) GROUP BY lane)"
    )
}

fn in_view(
    tx: &Connection,
    caps: &Caps,
    of: &ViewOf,
    now_ms: i64,
) -> Result<LanesInView, StoreError> {
    let capped = Capped::now(tx, caps)?;
    let look = Look { tx, of, capped: capped.as_ref(), now_ms };
    let (counts, extent) = match tx.prepare_cached(IS_LARGE)?.exists([ROWS_MAX])? {
        false => (lanes::counts(tx)?, Extent::Whole),
        true => {
            let mut counts = Vec::new();
            for lane in look.candidates()? {
                counts.extend(lanes::counts_of_lane(tx, &lane)?);
            }
            (counts, Extent::Part)
        }
    };
    let waiting = |count| lanes::waiting_lane(tx, count, look.capped, now_ms);
    let lanes = counts.into_iter().map(waiting).collect::<Result<_, _>>()?;
    Ok(LanesInView { lanes, extent })
}

/// One look at a long queue.
struct Look<'a> {
    tx: &'a Connection,
    of: &'a ViewOf,
    capped: Option<&'a Capped>,
    now_ms: i64,
}

impl Look<'_> {
    /// The lanes that could be chosen.
    fn candidates(&self) -> Result<BTreeSet<String>, StoreError> {
        let mut found = BTreeSet::from([Lane::Unload.to_string(), Lane::Opaque.to_string()]);
        for held in &self.of.held {
            found.insert(held.model.to_string());
            let served = held.key.iter().flat_map(|key| key.served());
            found.extend(served.map(|key| key.to_string()));
            found.extend(self.of_model(held.model.as_str())?);
        }
        for class in Class::ALL {
            found.extend(self.first(BY_HEAD, class, LONGEST_READY)?);
            found.extend(self.first(BY_JOBS, class, MOST_JOBS)?);
        }
        Ok(found)
    }

    fn of_model(&self, model: &str) -> Result<Vec<String>, StoreError> {
        let mut statement = self.tx.prepare_cached(OF_MODEL)?;
        let lanes = statement.query_map(params![model, OF_A_MODEL], |row| row.get(0))?;
        Ok(lanes.collect::<Result<_, _>>()?)
    }

    /// The first lanes of a class in an order: as many of which a job may run, and as many of those before them of which none
    /// may, since the time at which that changes counts.
    fn first(&self, sql: &str, class: Class, lanes_max: usize) -> Result<Vec<String>, StoreError> {
        let mut statement = self.tx.prepare_cached(sql)?;
        let mut rows = statement.query([class.name()])?;
        let (mut lanes, mut passed_over) = (Vec::new(), Vec::new());
        while lanes.len() < lanes_max
            && passed_over.len() < PASSED_OVER_MAX
            && let Some(row) = rows.next()?
        {
            let lane: String = row.get(0)?;
            match self.may_run(&lane, class)? {
                true => lanes.push(lane),
                false => passed_over.push(lane),
            }
        }
        passed_over.truncate(lanes_max);
        lanes.append(&mut passed_over);
        Ok(lanes)
    }

    fn may_run(&self, lane: &str, class: Class) -> Result<bool, StoreError> {
        if self.of.barred.contains(lane) {
            return Ok(false);
        }
        let Some(capped) = self.capped else { return Ok(true) };
        let counts = lanes::counts_of_lane(self.tx, lane)?;
        let own = counts.into_iter().find(|count| count.class == class);
        let own = own.map(|count| lanes::waiting_lane(self.tx, count, Some(capped), self.now_ms));
        Ok(own.transpose()?.is_some_and(|waiting| waiting.head.is_some()))
    }
}
