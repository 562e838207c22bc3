//! The statements behind a job's life. Each names the states it may start from (made from the one transition table in
//! `domain::job`) and checks the row count; after a claim each also names the lease epoch. Called by the store's own
//! commands only.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, Counters, Event, Kind, State};
use crate::domain::retry::Charge;
use crate::fail_point;

use super::answers;
use super::deliveries;
use super::error::StoreError;
use super::jobs::{Claim, Ending, GaveBack, GiveBack};
use super::lanes;
use super::owners::{Capped, Caps};
use super::rows::{self, HeaderList};
use super::set_aside::ASIDE_MS;
use super::turns;

/// Headers that may hold a client's credentials.
const CREDENTIALS: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "x-api-key"];

/// Error texts are kept up to this many characters: enough for a sentence, too little for a prompt echoed back.
const ERROR_CHARS_MAX: usize = 1_000;

/// The states `event` may start from, as a SQL list.
pub(super) fn sources(event: Event) -> String {
    let names: Vec<String> = event.sources().map(|state| format!("'{}'", state.name())).collect();
    names.join(",")
}

pub(super) fn claim(
    tx: &Connection,
    (lane, class): (&str, Class),
    caps: &Caps,
    event: Event,
    at_ms: i64,
) -> Result<Option<Claim>, StoreError> {
    lanes::end_delays(tx, at_ms)?;
    let capped = Capped::now(tx, caps)?;
    let Some(next) = turns::next(tx, lane, class, capped.as_ref())? else { return Ok(None) };
    claim_this(tx, (next, class), event, at_ms)
}

/// Claims this waiting job, as one of this class.
pub(super) fn claim_this(
    tx: &Connection,
    (next, class): (i64, Class),
    event: Event,
    at_ms: i64,
) -> Result<Option<Claim>, StoreError> {
    let Some(to) = State::Queued.after(event) else { return Ok(None) };
    let sql = format!(
        "UPDATE job SET state = ?2, class = ?3, lease_epoch = lease_epoch + 1, attempts = attempts + 1,
                claimed_at_ms = ?4, working_at_ms = CASE WHEN ?2 = 'working' THEN ?4 END
         WHERE seq = ?1 AND state IN ({})
         RETURNING seq, lease_epoch",
        sources(event)
    );
    let claimed: Option<(i64, i64)> = tx
        .prepare_cached(&sql)?
        .query_row(params![next, to.name(), class.name(), at_ms], |row| {
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
            let ending = Ending::failed(text);
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
                      created_at_ms, claimed_at_ms, is_async, deadline_ms, is_set_aside = 1 AND not_before_ms <> 0
               FROM job WHERE seq = ?1";
    let row = tx.prepare_cached(sql)?.query_row([seq], |row| {
        let counters = Counters {
            attempts: rows::small(row.get(6)?),
            interruptions: rows::small(row.get(7)?),
            deferrals: rows::small(row.get(8)?),
        };
        let names: [String; 3] = [row.get(0)?, row.get(2)?, row.get(3)?];
        let times = (row.get(9)?, row.get(10)?, row.get(12)?);
        let marks: [bool; 3] = [row.get(5)?, row.get(11)?, row.get(13)?];
        Ok((names, row.get(1)?, row.get(4)?, marks, counters, times))
    })?;
    let ([id, kind, dialect], lease_epoch, model, marks, counters, times) = row;
    let [is_streamed, is_async, is_unattended] = marks;
    let (created_at_ms, claimed_at_ms, deadline_ms) = times;
    let strange = |what: &str, text: &str| StoreError::Strange(format!("{what} {text:?}"));
    Ok(Claim {
        seq,
        id: id.parse().map_err(|_| strange("id", &id))?,
        lease_epoch,
        kind: Kind::from_name(&kind).ok_or_else(|| strange("kind", &kind))?,
        dialect: Dialect::from_name(&dialect).ok_or_else(|| strange("dialect", &dialect))?,
        model,
        is_streamed,
        is_async,
        is_unattended,
        deadline_ms,
        counters,
        created_at_ms,
        claimed_at_ms,
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
) -> Result<GaveBack, StoreError> {
    let Some(from) = leased_state(tx, seq, epoch)? else { return Ok(GaveBack::LeaseLost) };
    if is_cancelling(tx, seq)? {
        let ending = Ending::cancelled("it was cancelled while it ran");
        return Ok(match finish(tx, seq, epoch, &ending, back.at_ms)? {
            true => GaveBack::Cancelled,
            false => GaveBack::LeaseLost,
        });
    }
    let charged = match back.charge {
        Charge::Attempt => "attempts = attempts",
        Charge::Interruption => "attempts = attempts - 1, interruptions = interruptions + 1",
        Charge::Deferral => "attempts = attempts - 1, deferrals = deferrals + 1",
        Charge::Nothing => "attempts = attempts - 1",
    };
    // One set aside goes back to where it was; its time there does not begin anew.
    let aside = "is_set_aside = 1 AND not_before_ms <> 0";
    let since = "CASE WHEN ?3 = 0 THEN ready_at_ms ELSE MAX(created_at_ms, ?5) END";
    let sql = format!(
        "UPDATE job SET state = 'queued', {charged}, last_error = ?4,
                not_before_ms = CASE WHEN {aside} THEN {since} + {ASIDE_MS} ELSE ?3 END,
                run_at_ms = CASE WHEN {aside} THEN {since} + {ASIDE_MS} ELSE run_at_ms END,
                ready_at_ms = CASE WHEN {aside} THEN {since} ELSE MAX(created_at_ms, ?5) END,
                queued_at_ms = ?6, claimed_at_ms = NULL, working_at_ms = NULL, load_ms = NULL
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
        back.not_before_ms,
        back.at_ms
    ])?;
    if changed != 1 {
        return Ok(GaveBack::LeaseLost);
    }
    let note = Note { epoch, at_ms: back.at_ms, text: Some(&error) };
    record(tx, seq, Some(from), State::Queued, &note)?;
    fail_point::reach("give_back.uncommitted");
    Ok(GaveBack::Queued)
}

fn is_cancelling(tx: &Connection, seq: i64) -> Result<bool, StoreError> {
    let sql = "SELECT is_cancelling FROM job WHERE seq = ?1";
    Ok(tx.prepare_cached(sql)?.query_row([seq], |row| row.get(0))?)
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
        "UPDATE job SET state = ?3, finished_at_ms = ?4, last_error = ?5, error_status = ?6, first_byte_at_ms = ?7,
                answered_at_ms = ?8, prompt_tokens = ?9, output_tokens = ?10, is_cancelling = 0
         WHERE seq = ?1 AND lease_epoch = ?2 AND state IN ({})",
        sources(ending.event)
    );
    let measured = &ending.measured;
    let changed = tx.prepare_cached(&sql)?.execute(params![
        seq,
        epoch,
        to.name(),
        at_ms,
        error,
        ending.error_status,
        measured.first_byte_at_ms,
        measured.answered_at_ms,
        measured.prompt_tokens.map(rows::counted),
        measured.output_tokens.map(rows::counted)
    ])?;
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

/// Drops what an ended job no longer needs. A failed one keeps its request, to be looked into and tried again, and so does
/// a cancelled one that outlives its caller; without the client's credentials.
pub(super) fn forget_request(tx: &Connection, seq: i64, ended: State) -> Result<(), StoreError> {
    let is_kept = match ended {
        State::Failed => true,
        State::Cancelled => tx
            .prepare_cached("SELECT is_async FROM job WHERE seq = ?1")?
            .query_row([seq], |row| row.get(0))?,
        State::Done | State::Queued | State::Loading | State::Working => false,
    };
    if !is_kept {
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

/// The state of a job that is in flight under this lease. One that went back to the queue keeps its number until the next
/// claim, but nobody holds the lease.
fn leased_state(tx: &Connection, seq: i64, epoch: i64) -> Result<Option<State>, StoreError> {
    let name: Option<String> = tx
        .prepare_cached("SELECT state FROM job WHERE seq = ?1 AND lease_epoch = ?2")?
        .query_row([seq, epoch], |row| row.get(0))
        .optional()?;
    let state = name.as_deref().and_then(State::from_name);
    Ok(state.filter(|state| matches!(state, State::Loading | State::Working)))
}

pub(super) struct Note<'a> {
    pub(super) epoch: i64,
    pub(super) at_ms: i64,
    pub(super) text: Option<&'a str>,
}

/// Writes the transition log, which is the proof that no job has two outcomes, and the webhook that is owed for it.
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
    deliveries::owe(tx, tx.last_insert_rowid(), seq, note.at_ms)
}

pub(super) fn shortened(text: &str) -> String {
    text.chars().take(ERROR_CHARS_MAX).collect()
}
