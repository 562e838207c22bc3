//! Webhooks owed: the outbox. A row is written in the transaction of the change of state that it tells of. Only the first
//! pending delivery of a job is due, so that a job's changes arrive in order. Called by `webhook` and `http`.
//!
//! Each command names the state it may start from, and the try it belongs to: a try that was overtaken by somebody's hand
//! changes nothing. What they leave behind is read by `outbox`.

use rusqlite::{Connection, OptionalExtension, ToSql, params};

use super::by_hand::MANY_MAX;
use super::error::StoreError;
use super::life::shortened;
use super::{Durability, Store};

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is to be sent, now or later.
    Pending,
    /// The receiver took it.
    Delivered,
    /// It was given up; somebody may send it again by hand.
    Dead,
}

/// A try to deliver, as it is known from before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// The delivery: the event it tells of.
    pub event: i64,
    /// The tries before this one.
    pub tries: u32,
}

/// Why a try failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undelivered {
    /// The receiver's status, if it answered.
    pub status: Option<u16>,
    /// A sentence, without the URL and what was sent.
    pub error: String,
}

/// What sending again by hand came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resending {
    /// It is to be sent again, its tries counted anew.
    Again,
    /// It is to be sent anyhow.
    Pending,
    /// There is no such delivery: it never was, or its job is gone.
    Unknown,
}

/// What sending all dead ones again came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ManyResent {
    /// How many are to be sent again.
    pub count: usize,
    /// Whether there are more dead ones.
    pub has_more: bool,
}

impl DeliveryState {
    /// All states.
    pub const ALL: [DeliveryState; 3] =
        [DeliveryState::Pending, DeliveryState::Delivered, DeliveryState::Dead];

    /// The stable name, in SQL and JSON.
    pub fn name(self) -> &'static str {
        match self {
            DeliveryState::Pending => "pending",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Dead => "dead",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<DeliveryState> {
        DeliveryState::ALL.into_iter().find(|state| state.name() == name)
    }
}

impl Store {
    /// Notes that the receiver took it, and makes the job's next delivery due. `false` if this try is no longer the
    /// delivery's. Survives kill -9; after a power cut it may be sent again.
    ///
    /// # Errors
    /// Any of the store's; nothing was noted, and it will be sent again unless the caller tries again to note it.
    pub async fn delivered(&self, tried: Try, status: u16, at_ms: i64) -> Result<bool, StoreError> {
        self.write(Durability::Process, move |tx| {
            let sql = "UPDATE delivery SET state = 'delivered', tries = tries + 1, next_at_ms = NULL, last_status = ?3,
                              last_error = NULL, delivered_at_ms = ?4
                       WHERE event = ?1 AND state = 'pending' AND tries = ?2 RETURNING seq";
            settle(tx, sql, params![tried.event, tried.tries, status, at_ms], at_ms)
        })
        .await
    }

    /// Notes that a try failed, and when the next one is. `false` if this try is no longer the delivery's.
    ///
    /// # Errors
    /// As [`Store::delivered`].
    pub async fn put_off_delivery(
        &self,
        tried: Try,
        why: Undelivered,
        next_at_ms: i64,
    ) -> Result<bool, StoreError> {
        self.write(Durability::Process, move |tx| {
            // One that somebody's hand put behind an earlier one of its job keeps waiting for that.
            let sql = "UPDATE delivery SET tries = tries + 1, last_status = ?3, last_error = ?4,
                              next_at_ms = CASE WHEN next_at_ms IS NOT NULL THEN ?5 END
                       WHERE event = ?1 AND state = 'pending' AND tries = ?2";
            let error = shortened(&why.error);
            let values = params![tried.event, tried.tries, why.status, error, next_at_ms];
            Ok(tx.prepare_cached(sql)?.execute(values)? == 1)
        })
        .await
    }

    /// Gives a delivery up after a try, and makes the job's next one due. `false` if this try is no longer the delivery's.
    ///
    /// # Errors
    /// As [`Store::delivered`].
    pub async fn give_delivery_up(
        &self,
        tried: Try,
        why: Undelivered,
        at_ms: i64,
    ) -> Result<bool, StoreError> {
        self.write(Durability::Process, move |tx| {
            let sql = "UPDATE delivery SET state = 'dead', tries = tries + 1, next_at_ms = NULL, last_status = ?3,
                              last_error = ?4
                       WHERE event = ?1 AND state = 'pending' AND tries = ?2 RETURNING seq";
            let error = shortened(&why.error);
            settle(tx, sql, params![tried.event, tried.tries, why.status, error], at_ms)
        })
        .await
    }

    /// Has a delivery sent again, a dead or a delivered one, its tries counted anew. Wake the sender afterwards.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn resend(&self, event: i64, at_ms: i64) -> Result<Resending, StoreError> {
        self.write(Durability::Synced, move |tx| resend(tx, event, at_ms)).await
    }

    /// Has up to [`MANY_MAX`] dead deliveries sent again, the oldest first; those of one owner's jobs, or all. Wake the sender afterwards.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn resend_dead(
        &self,
        owner: Option<String>,
        at_ms: i64,
    ) -> Result<ManyResent, StoreError> {
        self.write(Durability::Synced, move |tx| {
            let limit = i64::from(MANY_MAX) + 1;
            let (sql, bounds): (&str, &[&dyn ToSql]) = match &owner {
                Some(owner) => (DEAD_OF_OWNER, &[&limit, owner]),
                None => (DEAD, &[&limit]),
            };
            let dead: Vec<i64> = tx
                .prepare_cached(sql)?
                .query_map(bounds, |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let many = usize::try_from(MANY_MAX).unwrap_or(usize::MAX);
            let resent = ManyResent { count: dead.len().min(many), has_more: dead.len() > many };
            for event in dead.into_iter().take(many) {
                resend(tx, event, at_ms)?;
            }
            Ok(resent)
        })
        .await
    }
}

/// Deliveries that were given up, the oldest first.
const DEAD: &str = "SELECT event FROM delivery INDEXED BY delivery_dead WHERE state = 'dead' ORDER BY event LIMIT ?1";

const DEAD_OF_OWNER: &str =
    "SELECT event FROM delivery INDEXED BY delivery_dead JOIN job USING (seq)
    WHERE delivery.state = 'dead' AND owner = ?2 AND owner <> '' ORDER BY event LIMIT ?1";

/// Owes a delivery for a change of state, if the job has a receiver.
pub(super) fn owe(tx: &Connection, event: i64, seq: i64, at_ms: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO delivery(event, seq, sequence, url, receiver, next_at_ms)
               SELECT ?1, seq, (SELECT COUNT(*) + 1 FROM delivery WHERE delivery.seq = ?2), webhook_url, receiver,
                      CASE WHEN EXISTS (SELECT 1 FROM delivery WHERE delivery.seq = ?2 AND state = 'pending')
                           THEN NULL ELSE ?3 END
               FROM submission WHERE seq = ?2 AND webhook_url IS NOT NULL";
    tx.prepare_cached(sql)?.execute(params![event, seq, at_ms])?;
    Ok(())
}

/// Runs an update that takes a delivery out of `pending`, and makes the job's next one due. Whether it changed a row.
fn settle(
    tx: &Connection,
    sql: &str,
    values: &[&dyn ToSql],
    at_ms: i64,
) -> Result<bool, StoreError> {
    let seq: Option<i64> =
        tx.prepare_cached(sql)?.query_row(values, |row| row.get(0)).optional()?;
    if let Some(seq) = seq {
        make_head_due(tx, seq, at_ms)?;
    }
    Ok(seq.is_some())
}

/// Makes the first pending delivery of a job due, if it is not paced already.
fn make_head_due(tx: &Connection, seq: i64, at_ms: i64) -> Result<(), StoreError> {
    let sql = "UPDATE delivery SET next_at_ms = ?2
               WHERE event = (SELECT event FROM delivery INDEXED BY delivery_pending
                              WHERE seq = ?1 AND state = 'pending' ORDER BY event LIMIT 1)
                 AND next_at_ms IS NULL";
    tx.prepare_cached(sql)?.execute(params![seq, at_ms])?;
    Ok(())
}

fn resend(tx: &Connection, event: i64, at_ms: i64) -> Result<Resending, StoreError> {
    let sql = "UPDATE delivery SET state = 'pending', tries = 0, delivered_at_ms = NULL
               WHERE event = ?1 AND state IN ('delivered','dead') RETURNING seq";
    let seq: Option<i64> =
        tx.prepare_cached(sql)?.query_row([event], |row| row.get(0)).optional()?;
    let Some(seq) = seq else {
        let is_there =
            tx.prepare_cached("SELECT 1 FROM delivery WHERE event = ?1")?.exists([event])?;
        return Ok(if is_there { Resending::Pending } else { Resending::Unknown });
    };
    // Later ones of its job wait for it again.
    let sql =
        "UPDATE delivery SET next_at_ms = NULL WHERE seq = ?1 AND state = 'pending' AND event > ?2";
    tx.prepare_cached(sql)?.execute(params![seq, event])?;
    make_head_due(tx, seq, at_ms)?;
    Ok(Resending::Again)
}
