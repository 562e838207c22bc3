//! What people and clients do to jobs, and what their deadlines do: cancel, reopen, drop. Each names the states it may
//! start from, and is synced before it is answered: an acknowledged cancel is not forgotten by a crash.

use rusqlite::{Connection, OptionalExtension, ToSql, params};

use crate::domain::job::{Event, JobId, State};
use crate::fail_point;

use super::admission::QueueLimits;
use super::error::StoreError;
use super::life::{Note, forget_request, record, sources};
use super::owners::{self, Caps};
use super::rows;
use super::{Durability, Store};

/// Jobs reopened or dropped in one write: short enough not to hold up an admission.
pub const MANY_MAX: u32 = 200;

/// How a job that waits ends.
pub(super) struct WaitingEnd<'a> {
    pub(super) event: Event,
    /// Why, for people.
    pub(super) why: &'a str,
    /// The HTTP status of the error, where it is one.
    pub(super) status: Option<u16>,
}

impl WaitingEnd<'_> {
    fn cancelled(why: &str) -> WaitingEnd<'_> {
        WaitingEnd { event: Event::Cancel, why, status: None }
    }
}

/// What cancelling a job came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancellation {
    /// It waited, and is cancelled.
    Cancelled,
    /// It runs; it is noted that it must not run again. The worker ends it.
    Cancelling,
    /// It has ended, so.
    Ended(State),
    /// There is no such job: it was never admitted, or is no more.
    Unknown,
}

/// What reopening a job came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reopening {
    /// It waits again. The file of the error answer it had is to be removed.
    Reopened(Option<String>),
    /// It is in this state.
    WrongState(State),
    /// Its request is not kept.
    NoRequest,
    /// So many jobs wait already.
    Full(u64),
    /// So many jobs of its owner wait already.
    OwnerFull(u64),
    /// There is no such job.
    Unknown,
}

/// What dropping a job came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dropping {
    /// It is gone. The file of its answer is to be removed.
    Dropped(Option<String>),
    /// It is in this state, which is not final.
    WrongState(State),
    /// There is no such job.
    Unknown,
}

/// What a call for many jobs came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Many {
    /// How many it was done to.
    pub count: usize,
    /// Files of answers, to be removed.
    pub files: Vec<String>,
    /// Whether there are more.
    pub has_more: bool,
}

/// Which ended jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Which {
    /// In one of these states, all of them final.
    pub states: Vec<State>,
    /// Of this model, as its client wrote it.
    pub model: Option<String>,
    /// Admitted before (milliseconds since 1970).
    pub created_before_ms: Option<i64>,
    /// Of this owner; `None` is of any and of nobody.
    pub owner: Option<String>,
}

impl Store {
    /// Cancels a job: one that waits at once, one that runs by noting it.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn cancel(
        &self,
        id: JobId,
        why: &'static str,
        at_ms: i64,
    ) -> Result<Cancellation, StoreError> {
        self.write(Durability::Synced, move |tx| cancel(tx, id, why, at_ms)).await
    }

    /// Cancels a job that waits, for a client that left. Survives kill -9.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn cancel_waiting(&self, id: JobId, at_ms: i64) -> Result<Cancellation, StoreError> {
        let why = "the client left while waiting";
        self.write(Durability::Process, move |tx| {
            let Some((seq, state)) = find(tx, id)? else { return Ok(Cancellation::Unknown) };
            match state {
                State::Queued => end_waiting(tx, seq, &WaitingEnd::cancelled(why), at_ms),
                State::Loading | State::Working => Ok(Cancellation::Cancelling),
                State::Done | State::Failed | State::Cancelled => Ok(Cancellation::Ended(state)),
            }
        })
        .await
    }

    /// Puts a failed or cancelled job back into the queue, with its history and fresh counters.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn reopen(
        &self,
        id: JobId,
        limits: QueueLimits,
        at_ms: i64,
    ) -> Result<Reopening, StoreError> {
        let caps = self.caps();
        self.write(Durability::Synced, move |tx| match find(tx, id)? {
            Some((seq, state)) => reopen(tx, seq, state, (limits, &caps), at_ms),
            None => Ok(Reopening::Unknown),
        })
        .await
    }

    /// Reopens up to [`MANY_MAX`] jobs, the oldest first, as far as there is room; those without a request are left.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn reopen_many(
        &self,
        which: Which,
        limits: QueueLimits,
        at_ms: i64,
    ) -> Result<Many, StoreError> {
        // One that fails again meanwhile is not tried for ever by one call.
        let condition = format!(
            "finished_at_ms <= {at_ms} AND EXISTS (SELECT 1 FROM request WHERE request.seq = job.seq)"
        );
        let Found { seqs, has_more } = self.find_ended(&which, condition).await?;
        if seqs.is_empty() {
            return Ok(Many::default());
        }
        let caps = self.caps();
        self.write(Durability::Synced, move |tx| {
            let mut many = Many { has_more, ..Many::default() };
            let mut is_left = false;
            for seq in seqs {
                let Some(state) = state_among(tx, seq, &which)? else { continue };
                match reopen(tx, seq, state, (limits, &caps), at_ms)? {
                    Reopening::Reopened(file) => {
                        many.count += 1;
                        many.files.extend(file);
                    }
                    Reopening::Full(_) => {
                        many.has_more = true;
                        break;
                    }
                    // Jobs of others may follow, for which there is room.
                    Reopening::OwnerFull(_) => is_left = true,
                    Reopening::WrongState(_) | Reopening::NoRequest | Reopening::Unknown => (),
                }
            }
            many.has_more |= is_left;
            Ok(many)
        })
        .await
    }

    /// Drops an ended job with all that belongs to it. It is remembered that it was there.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn drop_job(&self, id: JobId) -> Result<Dropping, StoreError> {
        self.write(Durability::Synced, move |tx| match find(tx, id)? {
            Some((seq, state)) if state.is_final() => {
                let file = drop_ended(tx, seq)?;
                fail_point::reach("drop.uncommitted");
                Ok(Dropping::Dropped(file))
            }
            Some((_, state)) => Ok(Dropping::WrongState(state)),
            None => Ok(Dropping::Unknown),
        })
        .await
    }

    /// Drops up to [`MANY_MAX`] ended jobs, the oldest first.
    ///
    /// # Errors
    /// Any of the store's; nothing happened.
    pub async fn drop_many(&self, which: Which) -> Result<Many, StoreError> {
        let Found { seqs, has_more } = self.find_ended(&which, "TRUE".to_owned()).await?;
        if seqs.is_empty() {
            return Ok(Many::default());
        }
        self.write(Durability::Synced, move |tx| {
            let mut many = Many { has_more, ..Many::default() };
            for seq in seqs {
                if state_among(tx, seq, &which)?.is_some() {
                    many.files.extend(drop_ended(tx, seq)?);
                    many.count += 1;
                }
            }
            Ok(many)
        })
        .await
    }

    /// Up to [`MANY_MAX`] of the ended jobs asked for, the oldest first. Read beside the writer: to find a few among a million
    /// takes a tenth of a second, in which nobody could be admitted. What was found may have changed when it is acted on.
    async fn find_ended(&self, which: &Which, condition: String) -> Result<Found, StoreError> {
        let which = which.clone();
        self.look(move |tx| select(tx, &which, &condition)).await
    }
}

fn find(tx: &Connection, id: JobId) -> Result<Option<(i64, State)>, StoreError> {
    let found: Option<(i64, String)> = tx
        .prepare_cached("SELECT seq, state FROM job WHERE id = ?1")?
        .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    found.map(|(seq, state)| Ok((seq, rows::state(&state)?))).transpose()
}

pub(super) fn cancel(
    tx: &Connection,
    id: JobId,
    why: &str,
    at_ms: i64,
) -> Result<Cancellation, StoreError> {
    let Some((seq, state)) = find(tx, id)? else { return Ok(Cancellation::Unknown) };
    match state {
        State::Queued => end_waiting(tx, seq, &WaitingEnd::cancelled(why), at_ms),
        State::Loading | State::Working => {
            tx.prepare_cached("UPDATE job SET is_cancelling = 1 WHERE seq = ?1")?.execute([seq])?;
            fail_point::reach("cancel_running.uncommitted");
            Ok(Cancellation::Cancelling)
        }
        State::Done | State::Failed | State::Cancelled => Ok(Cancellation::Ended(state)),
    }
}

/// Ends a job that waits.
pub(super) fn end_waiting(
    tx: &Connection,
    seq: i64,
    end: &WaitingEnd<'_>,
    at_ms: i64,
) -> Result<Cancellation, StoreError> {
    let WaitingEnd { event, why, status } = *end;
    let Some(to) = State::Queued.after(event).filter(|state| state.is_final()) else {
        return Ok(Cancellation::Ended(State::Queued));
    };
    let sql = "UPDATE job SET state = ?2, finished_at_ms = ?3, last_error = ?4, error_status = ?5
               WHERE seq = ?1 AND state = 'queued' RETURNING lease_epoch";
    let epoch = tx
        .prepare_cached(sql)?
        .query_row(params![seq, to.name(), at_ms, why, status], |row| row.get(0))?;
    forget_request(tx, seq, to)?;
    record(tx, seq, Some(State::Queued), to, &Note { epoch, at_ms, text: Some(why) })?;
    if event == Event::Cancel {
        fail_point::reach("cancel.uncommitted");
    }
    Ok(Cancellation::Cancelled)
}

fn reopen(
    tx: &Connection,
    seq: i64,
    from: State,
    (limits, caps): (QueueLimits, &Caps),
    at_ms: i64,
) -> Result<Reopening, StoreError> {
    let Some(to) = from.after(Event::Reopen) else { return Ok(Reopening::WrongState(from)) };
    if !tx.prepare_cached("SELECT 1 FROM request WHERE seq = ?1")?.exists([seq])? {
        return Ok(Reopening::NoRequest);
    }
    let waiting: i64 = tx
        .prepare_cached("SELECT jobs FROM tally WHERE state = 'queued'")?
        .query_row([], |row| row.get(0))?;
    if rows::count(waiting) >= limits.jobs_max {
        return Ok(Reopening::Full(rows::count(waiting)));
    }
    if let Some(jobs) = owners::full(tx, &owners::of_job(tx, seq)?, caps)? {
        return Ok(Reopening::OwnerFull(jobs));
    }
    // Its client, if it had one, is gone: from here on it is for whoever reopened it. A deadline that is over has been met
    // with the end it had.
    let sql = format!(
        "UPDATE job SET state = ?2, is_async = 1, is_lost = 0, is_set_aside = 0, is_cancelling = 0, attempts = 0, interruptions = 0,
                deferrals = 0, not_before_ms = 0, run_at_ms = 0, ready_at_ms = ?3, queued_at_ms = ?3,
                deadline_ms = CASE WHEN deadline_ms > ?3 THEN deadline_ms END, claimed_at_ms = NULL,
                working_at_ms = NULL, finished_at_ms = NULL, load_ms = NULL, first_byte_at_ms = NULL,
                answered_at_ms = NULL, prompt_tokens = NULL, output_tokens = NULL, last_error = NULL,
                error_status = NULL
         WHERE seq = ?1 AND state IN ({}) RETURNING lease_epoch",
        sources(Event::Reopen)
    );
    let epoch: i64 =
        tx.prepare_cached(&sql)?.query_row(params![seq, to.name(), at_ms], |row| row.get(0))?;
    let file: Option<Option<String>> = tx
        .prepare_cached("DELETE FROM answer WHERE seq = ?1 RETURNING file")?
        .query_row([seq], |row| row.get(0))
        .optional()?;
    let note = Note { epoch, at_ms, text: Some("reopened by hand") };
    record(tx, seq, Some(from), to, &note)?;
    fail_point::reach("reopen.uncommitted");
    Ok(Reopening::Reopened(file.flatten()))
}

/// Drops an ended job, remembers that it was there and up to where events are gone; the name of its file.
pub(super) fn drop_ended(tx: &Connection, seq: i64) -> Result<Option<String>, StoreError> {
    let file: Option<Option<String>> = tx
        .prepare_cached("SELECT file FROM answer WHERE seq = ?1")?
        .query_row([seq], |row| row.get(0))
        .optional()?;
    tx.prepare_cached(
        "UPDATE mark SET value = MAX(value, (SELECT COALESCE(MAX(event), 0) FROM transition WHERE seq = ?1))
         WHERE name = 'events_dropped'",
    )?
    .execute([seq])?;
    tx.prepare_cached(
        "INSERT OR IGNORE INTO purged(id, owner) SELECT id, owner FROM job WHERE seq = ?1",
    )?
    .execute([seq])?;
    tx.prepare_cached("DELETE FROM job WHERE seq = ?1")?.execute([seq])?;
    Ok(file.flatten())
}

/// Jobs that were asked for, by arrival number.
struct Found {
    seqs: Vec<i64>,
    /// Whether there are more.
    has_more: bool,
}

fn select(tx: &Connection, which: &Which, condition: &str) -> Result<Found, StoreError> {
    let states: Vec<State> =
        which.states.iter().copied().filter(|state| state.is_final()).collect();
    // In the text only where it is asked for, so that the index of the owner is seen to fit.
    let of_owner = if which.owner.is_some() { " AND owner = ?4 AND owner <> ''" } else { "" };
    let sql = format!(
        "SELECT seq FROM job WHERE {} AND (?1 IS NULL OR model = ?1)
         AND (?2 IS NULL OR created_at_ms < ?2) AND {condition}{of_owner} ORDER BY seq LIMIT ?3",
        rows::in_states(&states)
    );
    let mut statement = tx.prepare(&sql)?;
    let limit = i64::from(MANY_MAX) + 1;
    let mut bounds: Vec<&dyn ToSql> = vec![&which.model, &which.created_before_ms, &limit];
    bounds.extend(which.owner.as_ref().map(|owner| -> &dyn ToSql { owner }));
    let mut seqs: Vec<i64> =
        statement.query_map(bounds.as_slice(), |row| row.get(0))?.collect::<Result<_, _>>()?;
    let many_max = usize::try_from(MANY_MAX).unwrap_or(usize::MAX);
    let has_more = seqs.len() > many_max;
    seqs.truncate(many_max);
    Ok(Found { seqs, has_more })
}

/// The state of a job if it is still one of those asked for, all of them final.
fn state_among(tx: &Connection, seq: i64, which: &Which) -> Result<Option<State>, StoreError> {
    let name: Option<String> = tx
        .prepare_cached("SELECT state FROM job WHERE seq = ?1")?
        .query_row([seq], |row| row.get(0))
        .optional()?;
    let state = name.as_deref().map(rows::state).transpose()?;
    Ok(state.filter(|state| state.is_final() && which.states.contains(state)))
}
