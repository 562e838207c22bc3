//! Admission: a job goes into the queue, or is found to be there already (by its idempotency key, by a client that comes
//! back, by an equal request), or there is no room. One transaction decides, so that a hundred equal posts make one job.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, JobId, Kind, State};
use crate::fail_point;

use super::error::StoreError;
use super::lanes;
use super::life::{Note, record};
use super::owners::{self, Caps};
use super::rows::{self, HeaderList};
use super::{Durability, Store, set_aside};

/// A hash of 32 bytes.
pub type Hash = [u8; 32];

/// A job about to be admitted.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its public name.
    pub id: JobId,
    /// The wire shape of its request.
    pub dialect: Dialect,
    /// What the worker has to do.
    pub kind: Kind,
    /// The lane it waits in, as text.
    pub lane: String,
    /// The model as the client wrote it; empty if it could not be read.
    pub model: String,
    /// How urgent it is.
    pub class: Class,
    /// Who asked: an opaque id; empty where nobody knows.
    pub client: String,
    /// Whether its answer is a stream.
    pub is_streamed: bool,
    /// Path and query as the client sent them.
    pub path_and_query: String,
    /// End-to-end request headers.
    pub headers: HeaderList,
    /// The original body.
    pub body: Bytes,
    /// What was said beside the request.
    pub extras: Extras,
}

/// What is known of a job beside its request.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Whose it is: the name of a key; empty where it is nobody's.
    pub owner: String,
    /// Whether the job outlives its caller.
    pub is_async: bool,
    /// When to run it (milliseconds since 1970); 0 is now.
    pub run_at_ms: i64,
    /// An answer after this is of no use.
    pub deadline_ms: Option<i64>,
    /// Who is told of each change of state.
    pub webhook: Option<Webhook>,
    /// A JSON object, given back with the job.
    pub metadata: Option<String>,
    /// By what a repeated submission is known.
    pub idempotency: Option<Idempotency>,
    /// By what a client that comes back after a crash is known.
    pub attach_key: Option<Hash>,
    /// By what an equal request is known.
    pub likeness: Option<Likeness>,
}

/// A receiver of webhooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The URL.
    pub url: String,
    /// Its scheme, host and port: what is paced together.
    pub receiver: String,
}

/// An idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// Whose key it is: a hash of the token; empty where there is none.
    pub scope: String,
    /// The key.
    pub key: String,
    /// A hash of the request: another one under the same key is a mistake.
    pub fingerprint: Hash,
}

/// By what an equal request is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Likeness {
    /// The canonical hash.
    pub hash: Hash,
    /// Whether the kept answer of a job that is done will do.
    pub takes_done: bool,
}

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Jobs in state `queued`.
    pub jobs_max: u64,
    /// Sum of their request bodies.
    pub bytes_max: u64,
    /// Jobs of each class in state `queued`, in the order of [`Class::ALL`]; `None` where only `jobs_max` holds.
    pub class_max: [Option<u64>; 3],
}

/// The limit that an admission would have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLimit {
    /// [`QueueLimits::jobs_max`].
    Jobs,
    /// [`QueueLimits::bytes_max`].
    Bytes,
    /// [`QueueLimits::class_max`] of this class.
    Class(Class),
    /// [`super::Cap::queued_max`] of its owner.
    Owner,
}

/// The answer to an admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is in the queue, on disk.
    Admitted {
        /// Its arrival number.
        seq: i64,
    },
    /// There is one already that will do; nothing was stored.
    Found {
        /// Its public name.
        id: JobId,
        /// By what it was found.
        by: FoundBy,
    },
    /// The idempotency key was used with another request; nothing was stored.
    KeyTaken {
        /// The job of that request.
        id: JobId,
    },
    /// The queue is full; nothing was stored.
    Full {
        /// Jobs that wait; of the class or of the owner, where its own limit was reached.
        jobs: u64,
        /// What there was no more room for.
        limit: QueueLimit,
    },
}

/// By what a job was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// The idempotency key.
    Key,
    /// A client that came back for a job whose connection a daemon had lost. It is the client's again; nobody else can.
    Return,
    /// An equal request that waits or runs.
    Inflight,
    /// An equal request that is done.
    Completed,
}

impl Store {
    /// Admits a job. When this returns `Admitted`, the job is on disk and will be served, whatever dies.
    ///
    /// # Errors
    /// [`StoreError::Full`] and [`StoreError::RolledBack`]: nothing was stored, the client may try again.
    pub async fn admit(
        &self,
        job: NewJob,
        limits: QueueLimits,
        at_ms: i64,
    ) -> Result<Admission, StoreError> {
        let caps = self.caps();
        self.write(Durability::Synced, move |tx| admit(tx, &job, (limits, &caps), at_ms)).await
    }

    /// Admits many jobs in their order, in one transaction. The queue may fill up on the way: the rest is then `Full`.
    ///
    /// # Errors
    /// As [`Store::admit`]; none was stored.
    pub async fn admit_all(
        &self,
        jobs: Vec<NewJob>,
        limits: QueueLimits,
        at_ms: i64,
    ) -> Result<Vec<Admission>, StoreError> {
        let caps = self.caps();
        self.write(Durability::Synced, move |tx| {
            jobs.iter().map(|job| admit(tx, job, (limits, &caps), at_ms)).collect()
        })
        .await
    }
}

pub(super) fn admit(
    tx: &Connection,
    job: &NewJob,
    limits: (QueueLimits, &Caps),
    at_ms: i64,
) -> Result<Admission, StoreError> {
    if let Some(found) = find_same(tx, job)? {
        return Ok(found);
    }
    if let Some((limit, jobs)) = limit_reached(tx, job, limits)? {
        return Ok(Admission::Full { jobs, limit });
    }
    let seq = insert(tx, job, at_ms)?;
    record(tx, seq, None, State::Queued, &Note { epoch: 0, at_ms, text: None })?;
    fail_point::reach("admit.uncommitted");
    Ok(Admission::Admitted { seq })
}

fn insert(tx: &Connection, job: &NewJob, at_ms: i64) -> Result<i64, StoreError> {
    let extras = &job.extras;
    // One that is due already is not scheduled: 0 is how the indexes know a ready job.
    let run_at_ms = if extras.run_at_ms > at_ms { extras.run_at_ms } else { 0 };
    let sql = "INSERT INTO job(id, dialect, kind, lane, model, class, client, path, is_streamed, state, request_bytes,
                               created_at_ms, queued_at_ms, ready_at_ms, not_before_ms, run_at_ms, is_async, deadline_ms,
                               attach_key, likeness, owner)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'queued', ?10, ?11, ?11, MAX(?11, ?12), ?12, ?12, ?13, ?14,
                       ?15, ?16, ?17)";
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
        at_ms,
        run_at_ms,
        extras.is_async,
        extras.deadline_ms,
        extras.attach_key,
        extras.likeness.map(|likeness| likeness.hash),
        extras.owner
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
    insert_submission(tx, seq, extras)?;
    Ok(seq)
}

/// Only for jobs of which something was said.
fn insert_submission(tx: &Connection, seq: i64, extras: &Extras) -> Result<(), StoreError> {
    let (webhook, idempotency) = (extras.webhook.as_ref(), extras.idempotency.as_ref());
    if webhook.is_none() && extras.metadata.is_none() && idempotency.is_none() {
        return Ok(());
    }
    let sql = "INSERT INTO submission(seq, webhook_url, receiver, metadata, key_scope, idempotency_key, fingerprint)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    tx.prepare_cached(sql)?.execute(params![
        seq,
        webhook.map(|webhook| &webhook.url),
        webhook.map(|webhook| &webhook.receiver),
        extras.metadata,
        idempotency.map_or("", |idempotency| &idempotency.scope),
        idempotency.map(|idempotency| &idempotency.key),
        idempotency.map(|idempotency| idempotency.fingerprint)
    ])?;
    Ok(())
}

/// A job that is there already and will do.
fn find_same(tx: &Connection, job: &NewJob) -> Result<Option<Admission>, StoreError> {
    let extras = &job.extras;
    if let Some(idempotency) = &extras.idempotency {
        let found = find_by_key(tx, idempotency)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    if let Some(key) = &extras.attach_key
        && let Some(id) = take_lost(tx, key, job.class, &extras.owner)?
    {
        return Ok(Some(Admission::Found { id, by: FoundBy::Return }));
    }
    match &extras.likeness {
        Some(likeness) => find_like(tx, likeness, (job.class, extras)),
        None => Ok(None),
    }
}

fn find_by_key(
    tx: &Connection,
    idempotency: &Idempotency,
) -> Result<Option<Admission>, StoreError> {
    let sql = "SELECT id, fingerprint FROM submission JOIN job USING (seq) WHERE key_scope = ?1 AND idempotency_key = ?2";
    let found: Option<(String, Vec<u8>)> = tx
        .prepare_cached(sql)?
        .query_row([&idempotency.scope, &idempotency.key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((id, fingerprint)) = found else { return Ok(None) };
    let id = rows::job_id(&id)?;
    Ok(Some(match fingerprint == idempotency.fingerprint {
        true => Admission::Found { id, by: FoundBy::Key },
        false => Admission::KeyTaken { id },
    }))
}

/// The oldest of the jobs that this client may come back for.
pub(super) const TAKE_LOST: &str = "UPDATE job SET is_lost = 0, class = CASE WHEN state = 'done' THEN class ELSE ?2 END,
                   not_before_ms = CASE WHEN is_set_aside THEN 0 ELSE not_before_ms END,
                   run_at_ms = CASE WHEN is_set_aside THEN 0 ELSE run_at_ms END
               WHERE seq = (SELECT seq FROM job INDEXED BY job_lost WHERE is_lost = 1 AND attach_key = ?1 AND owner = ?3
                            AND state IN ('queued','loading','working','done') AND is_cancelling = 0
                            ORDER BY seq LIMIT 1)
               RETURNING id, is_set_aside";

/// Gives a job whose connection a daemon had lost to the client that comes back for it, once.
fn take_lost(
    tx: &Connection,
    key: &Hash,
    class: Class,
    owner: &str,
) -> Result<Option<JobId>, StoreError> {
    let taken: Option<(String, bool)> = tx
        .prepare_cached(TAKE_LOST)?
        .query_row(params![key, class.name(), owner], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((id, was_set_aside)) = taken else { return Ok(None) };
    if was_set_aside {
        set_aside::put_in_old_place(tx, &id)?;
    }
    Ok(Some(rows::job_id(&id)?))
}

/// The newest equal request that will do.
pub(super) const LIKE: &str = "SELECT id, state FROM job INDEXED BY job_like WHERE likeness = ?1 AND owner = ?4 AND is_cancelling = 0
               AND ((state IN ('queued','loading','working') AND is_async = ?2) OR (?3 AND state = 'done'))
               ORDER BY seq DESC LIMIT 1";

fn find_like(
    tx: &Connection,
    likeness: &Likeness,
    (class, extras): (Class, &Extras),
) -> Result<Option<Admission>, StoreError> {
    let found: Option<(String, String)> = tx
        .prepare_cached(LIKE)?
        .query_row(
            params![likeness.hash, extras.is_async, likeness.takes_done, extras.owner],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let Some((id, state)) = found else { return Ok(None) };
    let by = match state == State::Done.name() {
        true => FoundBy::Completed,
        false => FoundBy::Inflight,
    };
    if by == FoundBy::Inflight {
        set_aside::attend(tx, &id, class)?;
    }
    Ok(Some(Admission::Found { id: rows::job_id(&id)?, by }))
}

/// The limit that this job would pass, and how many jobs already wait under it.
fn limit_reached(
    tx: &Connection,
    job: &NewJob,
    (limits, caps): (QueueLimits, &Caps),
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
    Ok(owners::full(tx, &job.extras.owner, caps)?.map(|jobs| (QueueLimit::Owner, jobs)))
}
