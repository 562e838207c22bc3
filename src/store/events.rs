//! The log of what happened to jobs, for those who follow it: each committed change of state is published to the live
//! subscribers in the order of the log, and can be read again from any event on.

use std::sync::Arc;

use rusqlite::{Connection, Row, params};
use tokio::sync::{Notify, broadcast};

use crate::domain::job::{JobId, State};

use super::Store;
use super::error::StoreError;
use super::rows;

/// Events a subscriber may lag behind before it has to read them from the log.
const LAG_MAX: usize = 1_024;

/// Events read from the log at once.
pub const EVENTS_MAX: u32 = 500;

/// A change of state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Its place in the log: ascending, never given twice.
    pub event: i64,
    /// The job.
    pub id: JobId,
    /// Whose job it is: the name of a key; empty where it is nobody's.
    pub owner: String,
    /// The model as the client wrote it.
    pub model: String,
    /// The state before; `None` at the admission.
    pub from: Option<State>,
    /// The state it went to.
    pub to: State,
    /// The attempt that it belongs to; 0 before the first.
    pub attempt: i64,
    /// When (milliseconds since 1970).
    pub at_ms: i64,
    /// Why, where that is to be said.
    pub note: Option<String>,
}

/// Where to read on in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The events, in order: at most [`EVENTS_MAX`].
    pub events: Vec<Transition>,
    /// Events up to this one may have been dropped with their jobs.
    pub dropped_up_to: i64,
}

impl Store {
    /// Live changes of state from now on. A subscriber that lags too far behind is told so, and reads on with
    /// [`Store::events_after`].
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Transition>> {
        self.shared.listeners.events.subscribe()
    }

    /// Returns when a change was committed that a receiver of webhooks is to be told of, since it was last asked. For one
    /// caller. Cancel-safe.
    pub async fn owing(&self) {
        self.shared.listeners.owed.notified().await;
    }

    /// Told after each commit by which a job ended, or went back to the queue: it has left a place, or come to wait again. For
    /// the worker, which learns of admissions by themselves, with who asked, and makes the claims itself.
    pub fn moved(&self) -> Arc<Notify> {
        Arc::clone(&self.shared.listeners.moved)
    }

    /// The events behind `event`, of one job or of all.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn events_after(&self, event: i64, of: Option<JobId>) -> Result<Page, StoreError> {
        self.look(move |tx| {
            let dropped_up_to = tx
                .prepare_cached("SELECT value FROM mark WHERE name = 'events_dropped'")?
                .query_row([], |row| row.get(0))?;
            let events = match of {
                Some(id) => {
                    let sql = format!(
                        "{SELECT} WHERE transition.seq = (SELECT seq FROM job WHERE id = ?1) AND event > ?2
                         ORDER BY event LIMIT ?3"
                    );
                    read(tx, &sql, params![id.to_string(), event, EVENTS_MAX])?
                }
                None => after(tx, event, EVENTS_MAX)?,
            };
            Ok(Page { events, dropped_up_to })
        })
        .await
    }

    /// The last event of the log.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn last_event(&self) -> Result<i64, StoreError> {
        self.look(|tx| last_event(tx)).await
    }
}

const SELECT: &str =
    "SELECT event, job.id, job.model, from_state, to_state, transition.lease_epoch, at_ms, note, owner
    FROM transition JOIN job USING (seq)";

fn after(tx: &Connection, event: i64, events_max: u32) -> Result<Vec<Transition>, StoreError> {
    let sql = format!("{SELECT} WHERE event > ?1 ORDER BY event LIMIT ?2");
    read(tx, &sql, params![event, events_max])
}

/// One event of the log.
pub(super) fn find(tx: &Connection, event: i64) -> Result<Option<Transition>, StoreError> {
    let found = read(tx, &format!("{SELECT} WHERE event = ?1"), params![event])?;
    Ok(found.into_iter().next())
}

fn read(
    tx: &Connection,
    sql: &str,
    bounds: &[&dyn rusqlite::ToSql],
) -> Result<Vec<Transition>, StoreError> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut found = statement.query(bounds)?;
    let mut events = Vec::new();
    while let Some(row) = found.next()? {
        events.push(transition(row)?);
    }
    Ok(events)
}

fn transition(row: &Row<'_>) -> Result<Transition, StoreError> {
    let (id, from, to): (String, Option<String>, String) = (row.get(1)?, row.get(3)?, row.get(4)?);
    Ok(Transition {
        event: row.get(0)?,
        id: rows::job_id(&id)?,
        owner: row.get(8)?,
        model: row.get(2)?,
        from: from.as_deref().map(rows::state).transpose()?,
        to: rows::state(&to)?,
        attempt: row.get(5)?,
        at_ms: row.get(6)?,
        note: row.get(7)?,
    })
}

fn last_event(tx: &Connection) -> Result<i64, StoreError> {
    // Of the sequence, not of the table: the last events may have gone with their jobs.
    let sql = "SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'transition'), 0)";
    Ok(tx.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// Leaves out some numbers of the log: events that a power cut took back after somebody had seen them (claims are not
/// synced) must not give their numbers to others.
pub(super) fn skip_some(tx: &Connection) -> Result<(), StoreError> {
    const SKIPPED: i64 = 1_000;
    tx.prepare_cached("UPDATE sqlite_sequence SET seq = seq + ?1 WHERE name = 'transition'")?
        .execute([SKIPPED])?;
    Ok(())
}

/// Publishes what was committed. Owned by the writer thread.
pub(super) struct Publisher {
    listeners: Listeners,
    published: i64,
    /// The last event that was found to owe a webhook.
    owed: i64,
}

/// Who is told what was committed.
#[derive(Clone)]
pub(super) struct Listeners {
    /// Those who follow the log live.
    pub(super) events: broadcast::Sender<Arc<Transition>>,
    /// Who sends the webhooks: it listens always, so it is told no more than that there is something to look at.
    pub(super) owed: Arc<Notify>,
    /// The worker. See [`Store::moved`].
    pub(super) moved: Arc<Notify>,
}

impl Listeners {
    pub(super) fn new() -> Listeners {
        let events = broadcast::Sender::new(LAG_MAX);
        Listeners { events, owed: Arc::default(), moved: Arc::default() }
    }
}

impl Publisher {
    /// A publisher that has published everything up to now.
    pub(super) fn new(
        connection: &Connection,
        listeners: Listeners,
    ) -> Result<Publisher, StoreError> {
        let (published, owed) = (last_event(connection)?, last_owed(connection)?);
        Ok(Publisher { listeners, published, owed })
    }

    /// Publishes the events of the last commit, if anybody listens. A fault is left to the subscribers' own reading.
    pub(super) fn publish(&mut self, connection: &Connection) {
        let Ok(last) = last_event(connection) else {
            // Whatever was committed: a look too many costs less than one too few.
            self.listeners.moved.notify_one();
            return;
        };
        if last == self.published {
            return;
        }
        let beginnings = beginnings(connection, self.published);
        if beginnings.is_none_or(|beginnings| beginnings < last - self.published) {
            self.listeners.moved.notify_one();
        }
        if let Ok(owed) = last_owed(connection)
            && owed > self.owed
        {
            self.owed = owed;
            self.listeners.owed.notify_one();
        }
        if self.listeners.events.receiver_count() > 0 {
            while self.published < last {
                let Ok(events) = after(connection, self.published, EVENTS_MAX) else { return };
                let Some(event) = events.last().map(|event| event.event) else { break };
                self.published = event;
                for event in events {
                    // Nobody may be listening any more.
                    drop(self.listeners.events.send(Arc::new(event)));
                }
            }
        }
        self.published = last;
    }
}

/// How many of the events behind `event` are admissions and claims. Any other, also one that is gone again with its job, may
/// let a job run that could not before.
fn beginnings(tx: &Connection, event: i64) -> Option<i64> {
    let sql = "SELECT COUNT(*) FROM transition
               WHERE event > ?1 AND (from_state IS NULL OR to_state IN ('loading','working'))";
    tx.prepare_cached(sql).ok()?.query_row([event], |row| row.get(0)).ok()
}

fn last_owed(tx: &Connection) -> Result<i64, StoreError> {
    let sql = "SELECT COALESCE(MAX(event), 0) FROM delivery";
    Ok(tx.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}
