//! Jobs as people and programs look at them: one with its history, or a list by filters, newest first. Read only.

use rusqlite::{Connection, OptionalExtension, Row, ToSql};

use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, Counters, JobId, State};

use super::Store;
use super::error::StoreError;
use super::rows;
use super::turns;

/// A job, for people. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// Arrival number.
    pub seq: i64,
    /// Public name.
    pub id: JobId,
    /// Where it stands.
    pub state: State,
    /// Whether it was cancelled while it runs.
    pub is_cancelling: bool,
    /// Path of its request.
    pub path: String,
    /// The wire shape.
    pub dialect: Dialect,
    /// The model as its client wrote it.
    pub model: String,
    /// The lane, as text.
    pub lane: String,
    /// How urgent it is.
    pub class: Class,
    /// Whose it is: the name of a key; empty where it is nobody's.
    pub owner: String,
    /// Whether it outlives its caller.
    pub is_async: bool,
    /// Whether its answer is a stream.
    pub is_streamed: bool,
    /// The number of its last attempt: 0 before the first.
    pub attempt: i64,
    /// How often it was tried and disturbed.
    pub counters: Counters,
    /// When it was admitted.
    pub created_at_ms: i64,
    /// When it last entered the queue.
    pub queued_at_ms: i64,
    /// When it is scheduled for.
    pub run_at_ms: Option<i64>,
    /// After when its answer is of no use.
    pub deadline_ms: Option<i64>,
    /// Not to be tried before; `None` where it is ready or does not wait.
    pub not_before_ms: Option<i64>,
    /// When its last attempt was claimed.
    pub claimed_at_ms: Option<i64>,
    /// When that began to be worked on.
    pub working_at_ms: Option<i64>,
    /// When the first byte of the answer came.
    pub first_byte_at_ms: Option<i64>,
    /// When the last one did.
    pub answered_at_ms: Option<i64>,
    /// When the outcome was recorded.
    pub finished_at_ms: Option<i64>,
    /// What making its key resident took.
    pub load_ms: Option<i64>,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Tokens generated.
    pub output_tokens: Option<u64>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// The HTTP status that belongs to it.
    pub error_status: Option<u16>,
    /// Its metadata, a JSON object as text.
    pub metadata: Option<String>,
    /// Who is told of its changes.
    pub webhook_url: Option<String>,
    /// Its idempotency key.
    pub idempotency_key: Option<String>,
    /// Status, content type and bytes of its kept answer.
    pub answer: Option<AnswerSummary>,
}

/// A kept answer, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerSummary {
    /// HTTP status.
    pub status: u16,
    /// Its content type; empty if it has none.
    pub content_type: String,
    /// Its bytes.
    pub bytes: u64,
}

/// One try of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Its number, from 1.
    pub number: i64,
    /// When it was claimed.
    pub claimed_at_ms: i64,
    /// When it began to be worked on.
    pub working_at_ms: Option<i64>,
    /// When it ended.
    pub ended_at_ms: Option<i64>,
    /// Where the job went with it; `None` while it runs.
    pub ended_in: Option<State>,
    /// What went wrong.
    pub error: Option<String>,
}

/// What was found under an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sought<T> {
    /// It is there.
    There(T),
    /// It was there once.
    Purged,
    /// There is none.
    Unknown,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// In one of these states; empty is any.
    pub states: Vec<State>,
    /// Of this model, as its client wrote it.
    pub model: Option<String>,
    /// Of this class.
    pub class: Option<Class>,
    /// Outliving their callers, or not.
    pub is_async: Option<bool>,
    /// Admitted at or after.
    pub created_after_ms: Option<i64>,
    /// Admitted before.
    pub created_before_ms: Option<i64>,
    /// Of this owner; `None` is of any and of nobody.
    pub owner: Option<String>,
}

/// A page of jobs, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The jobs.
    pub jobs: Vec<JobView>,
    /// Whether there are more behind them.
    pub has_more: bool,
}

impl Store {
    /// A job and its attempts, oldest first.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn job(&self, id: JobId) -> Result<Sought<(JobView, Vec<Attempt>)>, StoreError> {
        self.look(move |tx| match find(tx, id)? {
            Some(job) => {
                let attempts = attempts(tx, job.seq)?;
                Ok(Sought::There((job, attempts)))
            }
            None if is_purged(tx, id)? => Ok(Sought::Purged),
            None => Ok(Sought::Unknown),
        })
        .await
    }

    /// Jobs, newest first, behind `after` if that is given; at most `jobs_max`. `Unknown` or `Purged` tells of `after`.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn list(
        &self,
        filter: Filter,
        after: Option<JobId>,
        jobs_max: usize,
    ) -> Result<Listed, StoreError> {
        self.look(move |tx| list(tx, &filter, after, jobs_max)).await
    }

    /// How many ready jobs of its lane would be served before this one: those of more urgent classes, and those of its own
    /// whose turn is earlier. `None` if it is not ready, or beyond `count_max`.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn ahead_in_lane(&self, seq: i64, count_max: u32) -> Result<Option<u64>, StoreError> {
        self.look(move |tx| turns::ahead(tx, seq, count_max)).await
    }

    /// The request of a job, if it is kept: path, query and body.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn request(&self, id: JobId) -> Result<Option<(String, Vec<u8>)>, StoreError> {
        self.look(move |tx| {
            let sql = "SELECT path_and_query, request.body FROM request JOIN job USING (seq) WHERE id = ?1";
            let found = tx
                .prepare_cached(sql)?
                .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)));
            Ok(found.optional()?)
        })
        .await
    }
}

pub(super) const SELECT: &str = "SELECT job.seq, id, state, is_cancelling, path, dialect, model, lane, class, is_async,
        is_streamed, lease_epoch, attempts, interruptions, deferrals, created_at_ms, queued_at_ms,
        CASE WHEN is_set_aside THEN 0 ELSE run_at_ms END, deadline_ms,
        CASE WHEN is_set_aside THEN 0 ELSE not_before_ms END, claimed_at_ms, working_at_ms, first_byte_at_ms, answered_at_ms, finished_at_ms, load_ms,
        prompt_tokens, output_tokens, last_error, error_status, metadata, webhook_url, idempotency_key, answer.status,
        answer.headers, answer.bytes, job.owner
    FROM job LEFT JOIN submission USING (seq) LEFT JOIN answer USING (seq)";

fn find(tx: &Connection, id: JobId) -> Result<Option<JobView>, StoreError> {
    let mut statement = tx.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?;
    let mut found = statement.query([id.to_string()])?;
    found.next()?.map(view).transpose()
}

fn is_purged(tx: &Connection, id: JobId) -> Result<bool, StoreError> {
    Ok(tx.prepare_cached("SELECT 1 FROM purged WHERE id = ?1")?.exists([id.to_string()])?)
}

fn view(row: &Row<'_>) -> Result<JobView, StoreError> {
    let id: String = row.get(1)?;
    let (state, dialect, class): (String, String, String) = (row.get(2)?, row.get(5)?, row.get(8)?);
    let not_zero = |at_ms: i64| (at_ms != 0).then_some(at_ms);
    let tokens = |column: Option<i64>| column.map(rows::count);
    Ok(JobView {
        seq: row.get(0)?,
        id: rows::job_id(&id)?,
        state: rows::state(&state)?,
        is_cancelling: row.get(3)?,
        path: row.get(4)?,
        dialect: Dialect::from_name(&dialect)
            .ok_or_else(|| StoreError::Strange(format!("dialect {dialect:?}")))?,
        model: row.get(6)?,
        lane: row.get(7)?,
        class: rows::class(&class)?,
        owner: row.get(36)?,
        is_async: row.get(9)?,
        is_streamed: row.get(10)?,
        attempt: row.get(11)?,
        counters: Counters {
            attempts: rows::small(row.get(12)?),
            interruptions: rows::small(row.get(13)?),
            deferrals: rows::small(row.get(14)?),
        },
        created_at_ms: row.get(15)?,
        queued_at_ms: row.get(16)?,
        run_at_ms: not_zero(row.get(17)?),
        deadline_ms: row.get(18)?,
        not_before_ms: not_zero(row.get(19)?).filter(|_| state == State::Queued.name()),
        claimed_at_ms: row.get(20)?,
        working_at_ms: row.get(21)?,
        first_byte_at_ms: row.get(22)?,
        answered_at_ms: row.get(23)?,
        finished_at_ms: row.get(24)?,
        load_ms: row.get(25)?,
        prompt_tokens: tokens(row.get(26)?),
        output_tokens: tokens(row.get(27)?),
        last_error: row.get(28)?,
        error_status: row.get(29)?,
        metadata: row.get(30)?,
        webhook_url: row.get(31)?,
        idempotency_key: row.get(32)?,
        answer: answer_summary(row)?,
    })
}

fn answer_summary(row: &Row<'_>) -> Result<Option<AnswerSummary>, StoreError> {
    let Some(status) = row.get(33)? else { return Ok(None) };
    let (headers, bytes): (String, i64) = (row.get(34)?, row.get(35)?);
    let headers = rows::headers_from_text(&headers)?;
    let content_type = headers.into_iter().find(|(name, _)| name == "content-type");
    let content_type = content_type.map(|(_, value)| String::from_utf8_lossy(&value).into_owned());
    Ok(Some(AnswerSummary {
        status,
        content_type: content_type.unwrap_or_default(),
        bytes: rows::count(bytes),
    }))
}

/// The tries of a job, from the log: what happened under each lease.
fn attempts(tx: &Connection, seq: i64) -> Result<Vec<Attempt>, StoreError> {
    let sql = "SELECT lease_epoch, from_state, to_state, at_ms, note FROM transition
               WHERE seq = ?1 AND lease_epoch > 0 ORDER BY event";
    let mut statement = tx.prepare_cached(sql)?;
    let mut found = statement.query([seq])?;
    let mut attempts: Vec<Attempt> = Vec::new();
    while let Some(row) = found.next()? {
        let (number, to, at_ms): (i64, String, i64) = (row.get(0)?, row.get(2)?, row.get(3)?);
        let (from, to): (Option<String>, State) = (row.get(1)?, rows::state(&to)?);
        let is_in_flight = |state: State| matches!(state, State::Loading | State::Working);
        let was_in_flight = from.as_deref().and_then(State::from_name).is_some_and(is_in_flight);
        if is_in_flight(to) && !was_in_flight {
            attempts.push(Attempt {
                number,
                claimed_at_ms: at_ms,
                working_at_ms: (to == State::Working).then_some(at_ms),
                ended_at_ms: None,
                ended_in: None,
                error: None,
            });
            continue;
        }
        let Some(attempt) = attempts.last_mut().filter(|attempt| attempt.number == number) else {
            continue;
        };
        if to == State::Working {
            attempt.working_at_ms = Some(at_ms);
        } else if was_in_flight {
            // What happens to a job that waits (a cancel, a reopening) carries the last lease, and is none of its attempt's.
            attempt.ended_at_ms = Some(at_ms);
            attempt.ended_in = Some(to);
            attempt.error = row.get(4)?;
        }
    }
    Ok(attempts)
}

fn list(
    tx: &Connection,
    filter: &Filter,
    after: Option<JobId>,
    jobs_max: usize,
) -> Result<Listed, StoreError> {
    let mut conditions = vec!["TRUE".to_owned()];
    let mut bounds: Vec<Box<dyn ToSql>> = Vec::new();
    let mut bind = |condition: &str, value: Box<dyn ToSql>| {
        bounds.push(value);
        conditions.push(condition.replace('?', &format!("?{}", bounds.len())));
    };
    if let Some(after) = after {
        // Ids sort by time of admission, but not within a millisecond: the number is what the list is sorted by.
        bind("job.seq < (SELECT seq FROM job WHERE id = ?)", Box::new(after.to_string()));
    }
    if let Some(model) = &filter.model {
        bind("model = ?", Box::new(model.clone()));
    }
    if let Some(class) = filter.class {
        bind("class = ?", Box::new(class.name()));
    }
    if let Some(owner) = &filter.owner {
        // Said twice, so that the index of those that have an owner is seen to fit.
        bind("owner = ? AND owner <> ''", Box::new(owner.clone()));
    }
    if let Some(is_async) = filter.is_async {
        bind("is_async = ?", Box::new(is_async));
    }
    if let Some(at_ms) = filter.created_after_ms {
        bind("created_at_ms >= ?", Box::new(at_ms));
    }
    if let Some(at_ms) = filter.created_before_ms {
        bind("created_at_ms < ?", Box::new(at_ms));
    }
    if !filter.states.is_empty() {
        conditions.push(rows::in_states(&filter.states));
    }
    bounds.push(Box::new(rows::to_column(jobs_max.saturating_add(1))));
    let sql = format!(
        "{SELECT} WHERE {} ORDER BY job.seq DESC LIMIT ?{}",
        conditions.join(" AND "),
        bounds.len()
    );
    let mut statement = tx.prepare_cached(&sql)?;
    let mut found = statement.query(rusqlite::params_from_iter(bounds))?;
    let mut jobs = Vec::new();
    while let Some(row) = found.next()? {
        jobs.push(view(row)?);
    }
    let has_more = jobs.len() > jobs_max;
    jobs.truncate(jobs_max);
    Ok(Listed { jobs, has_more })
}
