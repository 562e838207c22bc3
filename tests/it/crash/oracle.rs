//! Compares what the clients know with what the database says, once foreman has stopped for good. Reads the database
//! itself, so that foreman cannot be wrong about its own rows.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use foreman::domain::job::{Event, State};
use foreman::domain::retry::INTERRUPTIONS_MAX;
use rusqlite::{Connection, OpenFlags};
use stub_ollama::LogEntry;

use crate::harness::daemon::Starting;

use super::ask::{Ask, Read, tag_of};
use super::load::{Fate, Followed, Known, Told};

/// `FOREMAN_MAX_ATTEMPTS`, as it is without a setting.
const ATTEMPTS_MAX: u32 = 3;

/// Findings of a kind that are printed.
const FINDINGS_SHOWN: usize = 8;

/// A job's row with all that belongs to it.
#[derive(Debug, Default)]
pub(crate) struct Job {
    seq: i64,
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) attempts: u32,
    pub(crate) interruptions: u32,
    pub(crate) deferrals: u32,
    pub(crate) last_error: String,
    lease_epoch: i64,
    finished_at_ms: i64,
    pub(crate) request: Bytes,
    answer: Option<(u16, Bytes)>,
    steps: Vec<Step>,
}

/// A row of the transition log.
#[derive(Debug)]
struct Step {
    from: Option<String>,
    to: String,
    lease_epoch: i64,
    at_ms: i64,
}

impl Step {
    /// It had ended, and was put back by hand.
    fn is_reopening(&self) -> bool {
        let from = self.from.as_deref().and_then(State::from_name);
        from.is_some_and(State::is_final) && self.to == "queued"
    }

    fn is_claim(&self) -> bool {
        self.from.as_deref() == Some("queued") && matches!(self.to.as_str(), "loading" | "working")
    }
}

/// What is wrong, by kind.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Acknowledged, but not in the database or without an outcome.
    pub(super) lost: Vec<String>,
    /// Two outcomes, two jobs for one request, or two generations in one answer.
    pub(super) duplicated: Vec<String>,
    /// Everything else.
    pub(super) wrong: Vec<String>,
    /// Jobs that ended `failed`.
    pub(super) failed: u64,
}

/// Makes a database that keeps every request it was ever given beside foreman's own tables: foreman drops a request when
/// its job has ended, and whose job it was is what is to be judged.
///
/// Foreman's tables are made by the binary: a child that another test forks would hold the lock of a store that is opened
/// here until it executes, and the next daemon would find its database in use.
pub(super) async fn prepare(db: &Path) {
    let mut starting = Starting::begin("http://127.0.0.1:9", db, &[]);
    starting.serves().await;
    starting.kill().await;
    let sql = "CREATE TABLE evidence (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);
               CREATE TRIGGER keep_evidence AFTER INSERT ON request BEGIN
                   INSERT INTO evidence VALUES (NEW.seq, NEW.body);
               END;";
    Connection::open(db).unwrap().execute_batch(sql).unwrap();
}

/// All jobs of a database that nobody writes to.
pub(crate) fn jobs(db: &Path) -> Vec<Job> {
    let connection = open(db);
    let sql = "SELECT job.seq, id, state, attempts, interruptions, deferrals, coalesce(last_error, ''), lease_epoch,
                      coalesce(finished_at_ms, 0), evidence.body, answer.status, answer.body
               FROM job JOIN evidence USING (seq) LEFT JOIN answer USING (seq) ORDER BY seq";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| {
        let status: Option<u16> = row.get(10)?;
        let body: Option<Vec<u8>> = row.get(11)?;
        Ok(Job {
            seq: row.get(0)?,
            id: row.get(1)?,
            state: row.get(2)?,
            attempts: row.get(3)?,
            interruptions: row.get(4)?,
            deferrals: row.get(5)?,
            last_error: row.get(6)?,
            lease_epoch: row.get(7)?,
            finished_at_ms: row.get(8)?,
            request: row.get::<_, Vec<u8>>(9)?.into(),
            answer: status.zip(body.map(Bytes::from)),
            steps: Vec::new(),
        })
    });
    let mut jobs: Vec<Job> = rows.unwrap().collect::<Result<_, _>>().unwrap();
    let mut steps = steps(&connection);
    for job in &mut jobs {
        job.steps = steps.remove(&job.seq).unwrap_or_default();
    }
    jobs
}

fn steps(connection: &Connection) -> BTreeMap<i64, Vec<Step>> {
    let sql = "SELECT seq, from_state, to_state, lease_epoch, at_ms FROM transition ORDER BY event";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| {
        let (lease_epoch, at_ms) = (row.get(3)?, row.get(4)?);
        let step = Step { from: row.get(1)?, to: row.get(2)?, lease_epoch, at_ms };
        Ok((row.get(0)?, step))
    });
    let mut steps = BTreeMap::<i64, Vec<Step>>::new();
    for row in rows.unwrap() {
        let (seq, step) = row.unwrap();
        steps.entry(seq).or_default().push(step);
    }
    steps
}

fn open(db: &Path) -> Connection {
    Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// What is wrong with an outcome of a whole run. `log` is what Ollama saw.
pub(super) fn judge(db: &Path, known: &Known, log: &[LogEntry]) -> Findings {
    let mut findings = Findings { wrong: known.wrong.clone(), ..Findings::default() };
    let sound: String = open(db).query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    if sound != "ok" {
        findings.wrong.push(format!("integrity_check: {sound}"));
    }
    let jobs = jobs(db);
    let runs = runs(log);
    let mut by_id = BTreeMap::new();
    let mut by_tag = BTreeMap::new();
    for job in &jobs {
        findings.failed += u64::from(job.state == "failed");
        let tag = tag_of(&job.request).unwrap();
        findings.life(job);
        findings.by_hand(job, known);
        let may_cancel =
            matches!(known.fates.get(&tag), Some(Fate::Left)) || known.cancels.contains(&job.id);
        findings.outcome(job, &known.asks[&tag], may_cancel);
        if runs.get(&tag).copied().unwrap_or(0) > job.lease_epoch {
            findings.wrong.push(format!("ran more often than it was claimed: {job:?}"));
        }
        by_id.insert(job.id.as_str(), job);
        if let Some(other) = by_tag.insert(tag, job) {
            findings.duplicated.push(format!("one request, two jobs: {other:?} {job:?}"));
        }
    }
    for (id, tag) in &known.acknowledged {
        match by_id.get(id.as_str()) {
            None => findings.lost.push(format!("job {id} of {tag:?} is not in the database")),
            Some(job) if tag.is_some() && tag_of(&job.request) != *tag => {
                findings.wrong.push(format!("job {id} was told to {tag:?} but is {job:?}"));
            }
            Some(_) => (),
        }
    }
    for batch in &known.batches {
        let stored = batch.iter().filter(|tag| by_tag.contains_key(*tag)).count();
        if stored != 0 && stored != batch.len() {
            findings.lost.push(format!("half a batch is stored: {stored} of {batch:?}"));
        }
    }
    for followed in &known.followed {
        // One that is not stored was found above.
        if let Some(job) = by_id.get(followed.id.as_str()) {
            findings.followed(followed, job);
        }
    }
    for (tag, fate) in &known.fates {
        if let Fate::Told(told) = fate {
            findings.told(&known.asks[tag], told, by_tag.get(tag).copied());
        }
    }
    findings
}

/// How often Ollama was given each request.
fn runs(log: &[LogEntry]) -> BTreeMap<String, i64> {
    let mut runs = BTreeMap::new();
    for tag in log.iter().filter(|entry| entry.method == "POST").filter_map(|e| tag_of(&e.body)) {
        *runs.entry(tag).or_insert(0) += 1;
    }
    runs
}

impl Findings {
    /// Leaves the first few of each kind: enough to see what it is.
    pub(super) fn shorten(&mut self) {
        for findings in [&mut self.lost, &mut self.duplicated, &mut self.wrong] {
            findings.truncate(FINDINGS_SHOWN);
        }
    }

    /// Legal lives with exactly one end each (a retry by hand begins another), and counters within their limits.
    fn life(&mut self, job: &Job) {
        let state = State::from_name(&job.state).unwrap();
        let ends = job
            .steps
            .iter()
            .filter(|step| State::from_name(&step.to).is_some_and(State::is_final))
            .count();
        let reopened = job.steps.iter().filter(|step| step.is_reopening()).count();
        if !state.is_final() || ends <= reopened {
            self.lost.push(format!("no outcome: {job:?}"));
        }
        if ends > reopened + 1 {
            self.duplicated.push(format!("{ends} outcomes in {} lives: {job:?}", reopened + 1));
        }
        if !is_legal(job) {
            self.wrong.push(format!("an illegal life: {job:?}"));
        }
        if job.attempts > ATTEMPTS_MAX || job.interruptions > INTERRUPTIONS_MAX {
            self.wrong.push(format!("too many tries: {job:?}"));
        }
        // Each claim of the last life is paid for by exactly one counter, and the last one of a job that was given up by two.
        let paid = i64::from(job.attempts + job.interruptions + job.deferrals);
        let is_given_up = job.interruptions == INTERRUPTIONS_MAX;
        let last_life = job.steps.iter().rfind(|step| step.is_reopening());
        let claims = job.lease_epoch - last_life.map_or(0, |step| step.lease_epoch);
        if paid - i64::from(is_given_up) != claims {
            self.wrong.push(format!("claims and counters differ: {job:?}"));
        }
    }

    /// What was acknowledged to somebody's hand holds: a cancelled job is not claimed again, a retried one was put back.
    fn by_hand(&mut self, job: &Job, known: &Known) {
        let retries = known.retries.get(&job.id).copied().unwrap_or_default();
        let reopened = job.steps.iter().filter(|step| step.is_reopening()).count();
        let reopened = u32::try_from(reopened).unwrap();
        if reopened < retries.acknowledged {
            self.lost.push(format!("{retries:?}, put back {reopened} times: {job:?}"));
        }
        if reopened > retries.asked {
            self.wrong.push(format!("{retries:?}, put back {reopened} times: {job:?}"));
        }
        let Some(cancelled_ms) = known.cancelled.get(&job.id) else { return };
        let is_retried = |step: &&Step| step.is_reopening() && step.at_ms >= *cancelled_ms;
        let mut until_retried = job.steps.iter().take_while(|step| !is_retried(step));
        if until_retried.any(|step| step.is_claim() && step.at_ms > *cancelled_ms) {
            self.lost.push(format!("claimed after its cancel was acknowledged: {job:?}"));
        }
    }

    /// What is stored is the one right answer, and nobody's job was cancelled but theirs who left or asked for it.
    fn outcome(&mut self, job: &Job, ask: &Ask, may_be_cancelled: bool) {
        match (job.state.as_str(), &job.answer) {
            ("done", Some((200, body))) => {
                let read = ask.read(body);
                if read.ends > 1 {
                    self.duplicated
                        .push(format!("{} generations in one answer: {job:?}", read.ends));
                } else if read != (Read { text: ask.expected(), ends: 1 }) {
                    self.wrong.push(format!("done with a wrong answer {read:?}: {ask:?} {job:?}"));
                }
            }
            ("done", _) => self.wrong.push(format!("done without an answer: {job:?}")),
            ("cancelled", _) if !may_be_cancelled => {
                self.wrong.push(format!("cancelled, though nobody left or asked for it: {job:?}"));
            }
            ("failed", _) if job.last_error.is_empty() => {
                self.wrong.push(format!("failed without a reason: {job:?}"));
            }
            _ => (),
        }
    }

    /// What was put together is the answer that is kept, or was that of an attempt whose daemon died before it was.
    fn followed(&mut self, followed: &Followed, job: &Job) {
        let is_kept = followed.attempt == job.lease_epoch
            && job.answer.as_ref().is_some_and(|(_, body)| *body == followed.bytes);
        let is_void = followed.attempt < job.lease_epoch && job.interruptions > 0;
        if !is_kept && !is_void {
            let text = String::from_utf8_lossy(&followed.bytes).into_owned();
            self.wrong.push(format!("followed {followed:?} {text}, but it is {job:?}"));
        }
    }

    /// What a client was told is true, and was so when it was told.
    fn told(&mut self, ask: &Ask, told: &Told, job: Option<&Job>) {
        let read = ask.read(&told.body);
        let expected = ask.expected();
        let text = String::from_utf8_lossy(&told.body).into_owned();
        if read.ends > 1 {
            self.duplicated.push(format!("{} ends in one stream: {ask:?} {text}", read.ends));
        }
        // The end mark may have come before the kill, and the end of HTTP not: then it is a whole answer all the same.
        let looks_whole = read.ends > 0 || (told.is_whole && told.status == 200);
        if looks_whole && (read.ends == 0 || read.text != expected) {
            self.wrong.push(format!("looks whole and is not: {ask:?} {told:?}"));
        }
        if told.status == 200 && !expected.starts_with(&read.text) {
            self.wrong.push(format!("not the beginning of its answer: {ask:?} {told:?}"));
        }
        let job = job.filter(|job| told.id.as_ref() == Some(&job.id));
        let Some(job) = job else {
            self.lost.push(format!("an answer without its job: {ask:?} {told:?}"));
            return;
        };
        if told.is_whole && !is_true(ask, told, job) {
            self.wrong.push(format!("told {told:?}, but it is {job:?}"));
        }
    }
}

/// Whether a whole answer is what is recorded. Each generation differs in its times and ids, so equal bytes are the
/// same generation.
fn is_true(ask: &Ask, told: &Told, job: &Job) -> bool {
    let was_recorded = job.finished_at_ms <= told.at_ms;
    let is_stored = job.answer.as_ref().is_some_and(|(_, body)| *body == told.body);
    match (told.status, ask.is_streamed) {
        // Synced before it was announced.
        (200, false) => job.state == "done" && was_recorded && is_stored,
        // Streamed bytes do not wait for the commit: a kill between the two makes the job run once more, to its end.
        (200, true) => (job.state == "done" && is_stored) || job.interruptions > 0,
        // Sent away by a daemon whose disk had failed: the outcome was not recorded, and the next daemon ran it again.
        (503, _) if job.interruptions > 0 => true,
        _ => job.state == "failed" && was_recorded,
    }
}

/// Whether each step is in the table of transitions and begins where the last ended, and no claim goes back in time.
fn is_legal(job: &Job) -> bool {
    let Some((first, rest)) = job.steps.split_first() else { return false };
    let mut at = State::Queued;
    let mut epoch = first.lease_epoch;
    for step in rest {
        let from = step.from.as_deref().and_then(State::from_name);
        let Some(to) = State::from_name(&step.to) else { return false };
        let is_claim = at == State::Queued && matches!(to, State::Loading | State::Working);
        let is_in_order = step.lease_epoch == epoch + i64::from(is_claim);
        let is_known = Event::ALL.into_iter().any(|event| at.after(event) == Some(to));
        if from != Some(at) || !is_known || !is_in_order {
            return false;
        }
        (at, epoch) = (to, step.lease_epoch);
    }
    let begins = first.from.is_none() && first.to == "queued" && first.lease_epoch == 0;
    begins && at.name() == job.state && epoch == job.lease_epoch
}
