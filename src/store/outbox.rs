//! What is owed to receivers, read: what is due now and next, what a delivery has to tell, lists for people. Read only;
//! `deliveries` writes. Called by `webhook` and `http`.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use crate::domain::job::{JobId, State};

use super::Store;
use super::answers::{self, Answer};
use super::deliveries::{DeliveryState, Try};
use super::error::StoreError;
use super::events::{self, Transition};
use super::rows;

/// What one receiver is owed that is paced: the heads of its jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedTo {
    /// Scheme, host and port.
    pub receiver: String,
    /// Some that are due, the longest due first.
    pub due: Vec<Try>,
    /// When the first of the others is (milliseconds since 1970).
    pub next_at_ms: Option<i64>,
}

/// A delivery that is to be sent, with all it has to tell.
#[derive(Debug, Clone)]
pub struct Telling {
    /// The change of state.
    pub transition: Transition,
    /// Counts the deliveries of a job from 1.
    pub sequence: u32,
    /// Where to.
    pub url: String,
    /// The HTTP status that belongs to the error of this change, where it is known.
    pub error_status: Option<u16>,
    /// The job's metadata, a JSON object as text.
    pub metadata: Option<String>,
    /// The answer; only with the change to `done`.
    pub answer: Option<Answer>,
}

/// A delivery, for people. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryView {
    /// Its name: the event it tells of.
    pub event: i64,
    /// The job.
    pub id: JobId,
    /// Counts the deliveries of a job from 1.
    pub sequence: u32,
    /// The state it tells of.
    pub to: State,
    /// Where to.
    pub url: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// Tries so far; from the last time it was sent again by hand.
    pub tries: u32,
    /// When it is tried next; `None` where it is not to be sent, or an earlier one of its job is.
    pub next_at_ms: Option<i64>,
    /// When the receiver took it.
    pub delivered_at_ms: Option<i64>,
    /// The receiver's status at the last try.
    pub last_status: Option<u16>,
    /// Why that failed.
    pub last_error: Option<String>,
}

/// Which deliveries to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WhichDeliveries {
    /// Of this job.
    pub of: Option<JobId>,
    /// In this state.
    pub state: Option<DeliveryState>,
    /// Of jobs of this owner; `None` is of any and of nobody.
    pub owner: Option<String>,
}

/// A page of deliveries, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedDeliveries {
    /// The deliveries.
    pub deliveries: Vec<DeliveryView>,
    /// Whether there are more behind them.
    pub has_more: bool,
}

/// How many deliveries there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveryCounts {
    /// To be sent.
    pub pending: u64,
    /// Given up.
    pub dead: u64,
}

impl Store {
    /// What is owed, by receiver: of each at most `due_max` of those that are due. However much one is owed, the others are
    /// found.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn owed(&self, now_ms: i64, due_max: usize) -> Result<Vec<OwedTo>, StoreError> {
        self.read(move |tx| owed(tx, now_ms, due_max)).await
    }

    /// A delivery with all it has to tell; `None` if it is not to be sent any more, or this is not its next try.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn telling(&self, next: Try) -> Result<Option<Telling>, StoreError> {
        self.read(move |tx| telling(tx, next)).await
    }

    /// Deliveries, oldest first, behind `after` if that is given; at most `deliveries_max`.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn deliveries(
        &self,
        which: WhichDeliveries,
        after: Option<i64>,
        deliveries_max: usize,
    ) -> Result<ListedDeliveries, StoreError> {
        self.read(move |tx| list(tx, &which, after.unwrap_or(0), deliveries_max)).await
    }

    /// How many deliveries are to be sent, and how many were given up.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn delivery_counts(&self) -> Result<DeliveryCounts, StoreError> {
        self.read(|tx| {
            let count = |sql: &str| -> Result<u64, StoreError> {
                Ok(rows::count(tx.prepare_cached(sql)?.query_row([], |row| row.get(0))?))
            };
            Ok(DeliveryCounts { pending: count(COUNT_PENDING)?, dead: count(COUNT_DEAD)? })
        })
        .await
    }
}

/// The receivers that are owed something, one jump in the index for each: not a step for each delivery.
pub(super) const RECEIVERS: &str = "WITH RECURSIVE found(receiver) AS (
        SELECT (SELECT receiver FROM delivery INDEXED BY delivery_due
                WHERE state = 'pending' AND next_at_ms IS NOT NULL ORDER BY receiver LIMIT 1)
        UNION ALL
        SELECT (SELECT delivery.receiver FROM delivery INDEXED BY delivery_due
                WHERE state = 'pending' AND next_at_ms IS NOT NULL AND delivery.receiver > found.receiver
                ORDER BY delivery.receiver LIMIT 1)
        FROM found WHERE found.receiver IS NOT NULL)
    SELECT receiver FROM found WHERE receiver IS NOT NULL";

pub(super) const DUE: &str = "SELECT event, tries FROM delivery INDEXED BY delivery_due
    WHERE state = 'pending' AND next_at_ms IS NOT NULL AND receiver = ?1 AND next_at_ms <= ?2
    ORDER BY next_at_ms LIMIT ?3";

pub(super) const NEXT: &str = "SELECT next_at_ms FROM delivery INDEXED BY delivery_due
    WHERE state = 'pending' AND next_at_ms IS NOT NULL AND receiver = ?1 AND next_at_ms > ?2
    ORDER BY next_at_ms LIMIT 1";

pub(super) const COUNT_PENDING: &str =
    "SELECT COUNT(*) FROM delivery INDEXED BY delivery_pending WHERE state = 'pending'";

pub(super) const COUNT_DEAD: &str =
    "SELECT COUNT(*) FROM delivery INDEXED BY delivery_dead WHERE state = 'dead'";

fn owed(tx: &Connection, now_ms: i64, due_max: usize) -> Result<Vec<OwedTo>, StoreError> {
    let receivers: Vec<String> =
        tx.prepare_cached(RECEIVERS)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let (mut due, mut next) = (tx.prepare_cached(DUE)?, tx.prepare_cached(NEXT)?);
    let mut owed = Vec::with_capacity(receivers.len());
    for receiver in receivers {
        let found = due.query_map(params![receiver, now_ms, rows::to_column(due_max)], |row| {
            Ok(Try { event: row.get(0)?, tries: rows::small(row.get(1)?) })
        })?;
        let found = found.collect::<Result<_, _>>()?;
        let next_at_ms = next.query_row(params![receiver, now_ms], |row| row.get(0)).optional()?;
        owed.push(OwedTo { receiver, due: found, next_at_ms });
    }
    Ok(owed)
}

fn telling(tx: &Connection, next: Try) -> Result<Option<Telling>, StoreError> {
    let Some(transition) = events::find(tx, next.event)? else { return Ok(None) };
    let is_failure = transition.to == State::Failed;
    // The status stands with the job, not in the log: it is this change's if the job still is where that brought it.
    let sql = "SELECT sequence, url, metadata,
                      CASE WHEN job.state = 'failed' AND job.finished_at_ms = ?3 AND ?4 THEN error_status END
               FROM delivery JOIN job USING (seq) LEFT JOIN submission USING (seq)
               WHERE event = ?1 AND delivery.state = 'pending' AND tries = ?2";
    let found = tx
        .prepare_cached(sql)?
        .query_row(params![next.event, next.tries, transition.at_ms, is_failure], |row| {
            Ok((rows::small(row.get(0)?), row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let Some((sequence, url, metadata, error_status)) = found else { return Ok(None) };
    let answer = match transition.to {
        State::Done => answers::find(tx, transition.id)?,
        State::Queued | State::Loading | State::Working | State::Failed | State::Cancelled => None,
    };
    Ok(Some(Telling { transition, sequence, url, error_status, metadata, answer }))
}

fn list(
    tx: &Connection,
    which: &WhichDeliveries,
    after: i64,
    deliveries_max: usize,
) -> Result<ListedDeliveries, StoreError> {
    let of = which.of.map(|id| id.to_string());
    let mut sql =
        "SELECT delivery.event, job.id, sequence, to_state, url, delivery.state, tries, next_at_ms,
                          delivered_at_ms, last_status, delivery.last_error
                   FROM delivery JOIN job ON job.seq = delivery.seq
                        JOIN transition ON transition.event = delivery.event
                   WHERE delivery.event > ?1"
            .to_owned();
    let mut values: Vec<&dyn ToSql> = vec![&after];
    if let Some(of) = &of {
        sql.push_str(" AND delivery.seq = (SELECT seq FROM job WHERE id = ?2)");
        values.push(of);
    }
    if let Some(state) = which.state {
        // By its name in the text, so that the index of the dead is seen to fit.
        sql.push_str(&format!(" AND delivery.state = '{}'", state.name()));
    }
    if let Some(owner) = &which.owner {
        sql.push_str(&format!(" AND job.owner = ?{} AND job.owner <> ''", values.len() + 1));
        values.push(owner);
    }
    let limit = rows::to_column(deliveries_max.saturating_add(1));
    sql.push_str(&format!(" ORDER BY delivery.event LIMIT ?{}", values.len() + 1));
    values.push(&limit);
    let mut statement = tx.prepare_cached(&sql)?;
    let mut found = statement.query(values.as_slice())?;
    let mut deliveries = Vec::new();
    while let Some(row) = found.next()? {
        deliveries.push(view(row)?);
    }
    let has_more = deliveries.len() > deliveries_max;
    deliveries.truncate(deliveries_max);
    Ok(ListedDeliveries { deliveries, has_more })
}

fn view(row: &Row<'_>) -> Result<DeliveryView, StoreError> {
    let (id, to, state): (String, String, String) = (row.get(1)?, row.get(3)?, row.get(5)?);
    Ok(DeliveryView {
        event: row.get(0)?,
        id: rows::job_id(&id)?,
        sequence: rows::small(row.get(2)?),
        to: rows::state(&to)?,
        url: row.get(4)?,
        state: DeliveryState::from_name(&state)
            .ok_or_else(|| StoreError::Strange(format!("delivery state {state:?}")))?,
        tries: rows::small(row.get(6)?),
        next_at_ms: row.get(7)?,
        delivered_at_ms: row.get(8)?,
        last_status: row.get(9)?,
        last_error: row.get(10)?,
    })
}
