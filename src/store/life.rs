//! The statements behind a job's life. Each names the states it may start from (made from the one transition table in
//! `domain::job`) and checks the row count; after a claim each also names the lease epoch. Called by the store's own
//! commands only.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, Counters, Event, JobId, Kind, State};
use crate::domain::retry::Charge;
use crate::fail_point;

use super::answers;
use super::error::StoreError;
use super::jobs::{
    Admission, Cancellation, Claim, Ending, GiveBack, NewJob, QueueLimit, QueueLimits,
};
use super::lanes;
use super::rows::{self, HeaderList};

/// Headers that may hold a client's credentials.
const CREDENTIALS: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "x-api-key"];

/// Error texts are kept up to this many characters: enough for a sentence, too little for a prompt echoed back.
const ERROR_CHARS_MAX: usize = 1_000;

/// The states `event` may start from, as a SQL list.
fn sources(event: Event) -> String {
    let names: Vec<String> = event.sources().map(|state| format!("'{}'", state.name())).collect();
    names.join(",")
}

pub(super) fn admit(
    tx: &Connection,
    job: &NewJob,
    limits: QueueLimits,
    at_ms: i64,
) -> Result<Admission, StoreError> {
    if let Some((limit, jobs)) = limit_reached(tx, job, limits)? {
        return Ok(Admission::Full { jobs, limit });
    }
    let sql = "INSERT INTO job(id, dialect, kind, lane, model, class, client, path, is_streamed, state, request_bytes,
                               created_at_ms, ready_at_ms)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'queued', ?10, ?11, ?11)";
    let (path, _) = job.path_and_query.split_once('?').unwrap_or((&job.path_and_query, ""));
    tx.prepare_cached(sql)?.execute(params![
        job.id.to_string(),
        job.dialect.name(),
        job.kind.name(),
        job.lane,
        job.model,
        job.class.name(),
        job.client,
        path,
        job.is_streamed,
        rows::to_column(job.body.len()),
        at_ms
    ])?;
    let seq = tx.last_insert_rowid();
    tx.prepare_cached(
        "INSERT INTO request(seq, path_and_query, headers, body) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![
        seq,
        job.path_and_query,
        rows::headers_to_text(&job.headers),
        job.body.as_ref()
    ])?;
    record(tx, seq, None, State::Queued, &Note { epoch: 0, at_ms, text: None })?;
    fail_point::reach("admit.uncommitted");
    Ok(Admission::Admitted { seq })
}

/// The limit that this job would pass, and how many jobs already wait under it.
fn limit_reached(
    tx: &Connection,
    job: &NewJob,
    limits: QueueLimits,
) -> Result<Option<(QueueLimit, u64)>, StoreError> {
    let (jobs, bytes): (i64, i64) = tx
        .prepare_cached("SELECT jobs, bytes FROM tally WHERE state = 'queued'")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (jobs, bytes) = (rows::count(jobs), rows::count(bytes));
    if jobs >= limits.jobs_max {
        return Ok(Some((QueueLimit::Jobs, jobs)));
    }
    let body_bytes = u64::try_from(job.body.len()).unwrap_or(u64::MAX);
    if jobs > 0 && bytes.saturating_add(body_bytes) > limits.bytes_max {
        return Ok(Some((QueueLimit::Bytes, jobs)));
    }
    let class_max =
        Class::ALL.into_iter().zip(limits.class_max).find(|(class, _)| *class == job.class);
    if let Some((class, Some(class_max))) = class_max {
        let of_class = lanes::waiting_of_class(tx, class)?;
        if of_class >= class_max {
            return Ok(Some((QueueLimit::Class(class), of_class)));
        }
    }
    Ok(None)
}

pub(super) fn claim(
    tx: &Connection,
    lane: &str,
    class: Class,
    event: Event,
    at_ms: i64,
) -> Result<Option<Claim>, StoreError> {
    let Some(to) = State::Queued.after(event) else { return Ok(None) };
    lanes::end_delays(tx, at_ms)?;
    let Some(head) = lanes::Heads::prepare(tx)?.find(lane, class)? else { return Ok(None) };
    let sql = format!(
        "UPDATE job SET state = ?2, class = ?3, lease_epoch = lease_epoch + 1, attempts = attempts + 1,
                claimed_at_ms = ?4, working_at_ms = CASE WHEN ?2 = 'working' THEN ?4 END
         WHERE seq = ?1 AND state IN ({})
         RETURNING seq, lease_epoch",
        sources(event)
    );
    let claimed: Option<(i64, i64)> = tx
        .prepare_cached(&sql)?
        .query_row(params![head.seq, to.name(), class.name(), at_ms], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let Some((seq, epoch)) = claimed else { return Ok(None) };
    record(tx, seq, Some(State::Queued), to, &Note { epoch, at_ms, text: None })?;
    fail_point::reach("claim.uncommitted");
    match claimed_job(tx, seq) {
        Ok(claim) => Ok(Some(claim)),
        Err(StoreError::Strange(what)) => {
            // One row that cannot be read must not block all that wait behind it.
            let text = format!("the stored job cannot be read: {what}");
            let ending = Ending { event: Event::Fail, answer: None, error: Some(text) };
            finish(tx, seq, epoch, &ending, at_ms)?;
            Ok(None)
        }
        Err(fault) => Err(fault),
    }
}

/// A job that was just claimed, with its request.
fn claimed_job(tx: &Connection, seq: i64) -> Result<Claim, StoreError> {
    let (path_and_query, headers, body) = request(tx, seq)?;
    let sql = "SELECT id, lease_epoch, kind, dialect, model, is_streamed, attempts, interruptions, deferrals,
                      created_at_ms, claimed_at_ms FROM job WHERE seq = ?1";
    let row = tx.prepare_cached(sql)?.query_row([seq], |row| {
        let counters = Counters {
            attempts: rows::small(row.get(6)?),
            interruptions: rows::small(row.get(7)?),
            deferrals: rows::small(row.get(8)?),
        };
        let names: [String; 3] = [row.get(0)?, row.get(2)?, row.get(3)?];
        Ok((names, row.get(1)?, row.get(4)?, row.get(5)?, counters, row.get(9)?, row.get(10)?))
    })?;
    let ([id, kind, dialect], lease_epoch, model, is_streamed, counters, created_at_ms, at_ms) =
        row;
    let strange = |what: &str, text: &str| StoreError::Strange(format!("{what} {text:?}"));
    Ok(Claim {
        seq,
        id: id.parse().map_err(|_| strange("id", &id))?,
        lease_epoch,
        kind: Kind::from_name(&kind).ok_or_else(|| strange("kind", &kind))?,
        dialect: Dialect::from_name(&dialect).ok_or_else(|| strange("dialect", &dialect))?,
        model,
        is_streamed,
        counters,
        created_at_ms,
        claimed_at_ms: at_ms,
        path_and_query,
        headers,
        body,
    })
}

fn request(tx: &Connection, seq: i64) -> Result<(String, HeaderList, Bytes), StoreError> {
    let (path, headers, body): (String, String, Vec<u8>) = tx
        .prepare_cached("SELECT path_and_query, headers, body FROM request WHERE seq = ?1")?
        .query_row([seq], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok((path, rows::headers_from_text(&headers)?, Bytes::from(body)))
}

pub(super) fn loaded(
    tx: &Connection,
    seq: i64,
    epoch: i64,
    load_ms: i64,
    at_ms: i64,
) -> Result<bool, StoreError> {
    let sql = format!(
        "UPDATE job SET state = 'working', working_at_ms = ?3, load_ms = ?4
         WHERE seq = ?1 AND lease_epoch = ?2 AND state IN ({})",
        sources(Event::Loaded)
    );
    let changed = tx.prepare_cached(&sql)?.execute(params![seq, epoch, at_ms, load_ms])?;
    if changed == 1 {
        let note = Note { epoch, at_ms, text: None };
        record(tx, seq, Some(State::Loading), State::Working, &note)?;
        fail_point::reach("loaded.uncommitted");
    }
    Ok(changed == 1)
}

pub(super) fn give_back(
    tx: &Connection,
    seq: i64,
    epoch: i64,
    back: &GiveBack,
) -> Result<bool, StoreError> {
    let Some(from) = leased_state(tx, seq, epoch)? else { return Ok(false) };
    let charged = match back.charge {
        Charge::Attempt => "attempts = attempts",
        Charge::Interruption => "attempts = attempts - 1, interruptions = interruptions + 1",
        Charge::Deferral => "attempts = attempts - 1, deferrals = deferrals + 1",
        Charge::Nothing => "attempts = attempts - 1",
    };
    let sql = format!(
        "UPDATE job SET state = 'queued', {charged}, not_before_ms = ?3, last_error = ?4,
                ready_at_ms = MAX(created_at_ms, ?5), claimed_at_ms = NULL, working_at_ms = NULL, load_ms = NULL
         WHERE seq = ?1 AND lease_epoch = ?2 AND state IN ({})",
        sources(Event::GiveBack)
    );
    let error = shortened(&back.error);
    // 0 is how the indexes know a ready job.
    let not_before_ms = if back.not_before_ms > back.at_ms { back.not_before_ms } else { 0 };
    let changed = tx.prepare_cached(&sql)?.execute(params![
        seq,
        epoch,
        not_before_ms,
        error,
        back.not_before_ms
    ])?;
    if changed == 1 {
        let note = Note { epoch, at_ms: back.at_ms, text: Some(&error) };
        record(tx, seq, Some(from), State::Queued, &note)?;
        fail_point::reach("give_back.uncommitted");
    }
    Ok(changed == 1)
}

pub(super) fn finish(
    tx: &Connection,
    seq: i64,
    epoch: i64,
    ending: &Ending,
    at_ms: i64,
) -> Result<bool, StoreError> {
    let Some(from) = leased_state(tx, seq, epoch)? else { return Ok(false) };
    let Some(to) = from.after(ending.event).filter(|state| state.is_final()) else {
        return Ok(false);
    };
    let error = ending.error.as_deref().map(shortened);
    let sql = format!(
        "UPDATE job SET state = ?3, finished_at_ms = ?4, last_error = ?5
         WHERE seq = ?1 AND lease_epoch = ?2 AND state IN ({})",
        sources(ending.event)
    );
    let changed = tx.prepare_cached(&sql)?.execute(params![seq, epoch, to.name(), at_ms, error])?;
    if changed != 1 {
        return Ok(false);
    }
    if let Some(answer) = &ending.answer {
        answers::insert(tx, seq, answer)?;
    }
    forget_request(tx, seq, to)?;
    record(tx, seq, Some(from), to, &Note { epoch, at_ms, text: error.as_deref() })?;
    fail_point::reach("outcome.uncommitted");
    Ok(true)
}

pub(super) fn cancel_waiting(
    tx: &Connection,
    id: JobId,
    at_ms: i64,
) -> Result<Cancellation, StoreError> {
    let sql = "UPDATE job SET state = 'cancelled', finished_at_ms = ?2, last_error = 'the client left while waiting'
               WHERE id = ?1 AND state = 'queued' RETURNING seq, lease_epoch";
    let cancelled: Option<(i64, i64)> = tx
        .prepare_cached(sql)?
        .query_row(params![id.to_string(), at_ms], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((seq, epoch)) = cancelled else {
        let is_known =
            tx.prepare_cached("SELECT 1 FROM job WHERE id = ?1")?.exists([id.to_string()])?;
        return Ok(if is_known { Cancellation::NotWaiting } else { Cancellation::Unknown });
    };
    forget_request(tx, seq, State::Cancelled)?;
    let note = Note { epoch, at_ms, text: Some("the client left while waiting") };
    record(tx, seq, Some(State::Queued), State::Cancelled, &note)?;
    fail_point::reach("cancel.uncommitted");
    Ok(Cancellation::Cancelled)
}

/// Drops what an ended job no longer needs. Only a failed one keeps its request, to be looked into, without the client's
/// credentials.
pub(super) fn forget_request(tx: &Connection, seq: i64, ended: State) -> Result<(), StoreError> {
    if ended != State::Failed {
        tx.prepare_cached("DELETE FROM request WHERE seq = ?1")?.execute([seq])?;
        return Ok(());
    }
    let headers: Option<String> = tx
        .prepare_cached("SELECT headers FROM request WHERE seq = ?1")?
        .query_row([seq], |row| row.get(0))
        .optional()?;
    let Some(Ok(mut headers)) = headers.map(|text| rows::headers_from_text(&text)) else {
        return Ok(());
    };
    headers.retain(|(name, _)| !CREDENTIALS.contains(&name.as_str()));
    tx.prepare_cached("UPDATE request SET headers = ?2 WHERE seq = ?1")?
        .execute(params![seq, rows::headers_to_text(&headers)])?;
    Ok(())
}

/// The state of a job whose lease is still `epoch`.
fn leased_state(tx: &Connection, seq: i64, epoch: i64) -> Result<Option<State>, StoreError> {
    let name: Option<String> = tx
        .prepare_cached("SELECT state FROM job WHERE seq = ?1 AND lease_epoch = ?2")?
        .query_row([seq, epoch], |row| row.get(0))
        .optional()?;
    Ok(name.as_deref().and_then(State::from_name))
}

pub(super) struct Note<'a> {
    pub(super) epoch: i64,
    pub(super) at_ms: i64,
    pub(super) text: Option<&'a str>,
}

/// Writes the transition log: the proof that no job has two outcomes.
pub(super) fn record(
    tx: &Connection,
    seq: i64,
    from: Option<State>,
    to: State,
    note: &Note<'_>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO transition(seq, from_state, to_state, lease_epoch, at_ms, note)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    tx.prepare_cached(sql)?.execute(params![
        seq,
        from.map(State::name),
        to.name(),
        note.epoch,
        note.at_ms,
        note.text
    ])?;
    Ok(())
}

fn shortened(text: &str) -> String {
    text.chars().take(ERROR_CHARS_MAX).collect()
}
