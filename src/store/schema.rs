//! The tables, their migrations, and the settings of a connection.
//!
//! The hot row is small (`job`); bodies live apart (`request`, `answer`), so that a claim rewrites one small page. The
//! partial indexes grow with what waits, not with history. Migrations are append-only; the version is `user_version`.

use std::time::Duration;

use rusqlite::Connection;

use crate::fail_point;

use super::error::StoreError;

/// How long a statement waits for a human with the sqlite3 shell or a backup tool; foreman itself has one writer.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// SQLite before 3.51.3 can corrupt a database in WAL mode when two connections meet at a log reset.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// `application_id` of a foreman database ("fman"), so that `file` and people can tell.
const APPLICATION_ID: i32 = 0x666d_616e;

/// Pages in the write-ahead log (16 MB) at which SQLite folds it in by itself.
const LOG_PAGES_MAX: i64 = 4_000;

/// The log is cut back to this after it has grown beyond it.
const JOURNAL_BYTES_MAX: i64 = 64 * 1024 * 1024;

/// Prepared statements kept by a connection: more than there are, so that none is parsed twice.
pub(super) const STATEMENTS_CACHED: usize = 64;

pub(super) const MIGRATIONS: [&str; 2] = [V1, V2];

const V1: &str = "
CREATE TABLE job (
    -- Arrival order. AUTOINCREMENT, so that a swept tail never gives its numbers away again.
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT NOT NULL UNIQUE,
    dialect        TEXT NOT NULL,
    kind           TEXT NOT NULL CHECK (kind IN ('run','load','unload','opaque')),
    lane           TEXT NOT NULL,
    model          TEXT NOT NULL,
    class          TEXT NOT NULL CHECK (class IN ('interactive','normal','batch')),
    is_streamed    INTEGER NOT NULL,
    state          TEXT NOT NULL
        CHECK (state IN ('queued','loading','working','done','failed','cancelled')),
    attempts       INTEGER NOT NULL DEFAULT 0,
    interruptions  INTEGER NOT NULL DEFAULT 0,
    deferrals      INTEGER NOT NULL DEFAULT 0,
    -- Raised by every claim; each later write of that claim names it.
    lease_epoch    INTEGER NOT NULL DEFAULT 0,
    not_before_ms  INTEGER NOT NULL DEFAULT 0,
    request_bytes  INTEGER NOT NULL,
    created_at_ms  INTEGER NOT NULL,
    claimed_at_ms  INTEGER,
    working_at_ms  INTEGER,
    finished_at_ms INTEGER,
    last_error     TEXT,
    CHECK ((finished_at_ms IS NOT NULL) = (state IN ('done','failed','cancelled')))
) STRICT;
CREATE INDEX job_ready   ON job(lane, seq, not_before_ms) WHERE state = 'queued';
CREATE INDEX job_delayed ON job(not_before_ms) WHERE state = 'queued' AND not_before_ms > 0;
CREATE INDEX job_live    ON job(state) WHERE state IN ('loading','working');
CREATE INDEX job_final   ON job(finished_at_ms) WHERE finished_at_ms IS NOT NULL;

CREATE TABLE request (
    seq            INTEGER PRIMARY KEY REFERENCES job(seq) ON DELETE CASCADE,
    path_and_query TEXT NOT NULL,
    headers        TEXT NOT NULL,
    body           BLOB NOT NULL
) STRICT;

CREATE TABLE answer (
    seq     INTEGER PRIMARY KEY REFERENCES job(seq) ON DELETE CASCADE,
    status  INTEGER NOT NULL,
    headers TEXT NOT NULL,
    bytes   INTEGER NOT NULL,
    -- One of the two: the bytes, or the name of the file in the answers folder that holds them.
    body    BLOB,
    file    TEXT,
    CHECK ((body IS NULL) <> (file IS NULL))
) STRICT;

-- Every change of state, written in the same transaction as the change.
CREATE TABLE transition (
    event       INTEGER PRIMARY KEY AUTOINCREMENT,
    seq         INTEGER NOT NULL REFERENCES job(seq) ON DELETE CASCADE,
    from_state  TEXT,
    to_state    TEXT NOT NULL,
    lease_epoch INTEGER NOT NULL,
    at_ms       INTEGER NOT NULL,
    note        TEXT
) STRICT;
CREATE INDEX transition_of_job ON transition(seq);

-- How many jobs are in each state and how many bytes their requests hold, kept by triggers: counting a million rows at
-- each admission would be too slow.
CREATE TABLE tally (
    state TEXT PRIMARY KEY,
    jobs  INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
INSERT INTO tally(state) VALUES ('queued'),('loading'),('working'),('done'),('failed'),('cancelled');
CREATE TRIGGER job_inserted AFTER INSERT ON job BEGIN
    UPDATE tally SET jobs = jobs + 1, bytes = bytes + NEW.request_bytes WHERE state = NEW.state;
END;
CREATE TRIGGER job_moved AFTER UPDATE OF state ON job WHEN OLD.state <> NEW.state BEGIN
    UPDATE tally SET jobs = jobs - 1, bytes = bytes - OLD.request_bytes WHERE state = OLD.state;
    UPDATE tally SET jobs = jobs + 1, bytes = bytes + NEW.request_bytes WHERE state = NEW.state;
END;
CREATE TRIGGER job_deleted AFTER DELETE ON job BEGIN
    UPDATE tally SET jobs = jobs - 1, bytes = bytes - OLD.request_bytes WHERE state = OLD.state;
END;
";

/// The order inside a lane by class, what is counted for it, and what is learned.
const V2: &str = "
-- Since when it may run: max(created_at_ms, not_before_ms).
ALTER TABLE job ADD COLUMN ready_at_ms INTEGER NOT NULL DEFAULT 0;
-- Who asked: an opaque id; empty where nobody knows.
ALTER TABLE job ADD COLUMN client TEXT NOT NULL DEFAULT '';
-- Path of the request, without its query: kept when the request is not.
ALTER TABLE job ADD COLUMN path TEXT NOT NULL DEFAULT '';
-- What making its key resident took, the last time it ran; NULL where nothing was loaded for it.
ALTER TABLE job ADD COLUMN load_ms INTEGER;
UPDATE job SET ready_at_ms = MAX(created_at_ms, not_before_ms),
    path = COALESCE((SELECT substr(path_and_query, 1, instr(path_and_query || '?', '?') - 1)
                     FROM request WHERE request.seq = job.seq), '');

-- A waiting job is ready (not_before_ms = 0) or delayed. One whose delay is over is made ready by a write, once, so that
-- no look at the queue has to step over delayed jobs. (Written `<> 0`, because of two lower bounds, as in
-- `not_before_ms > 0 AND not_before_ms > ?`, SQLite may seek by the useless one.)
DROP INDEX job_ready;
CREATE INDEX job_ready ON job(lane, class, seq, ready_at_ms) WHERE state = 'queued' AND not_before_ms = 0;
DROP INDEX job_delayed;
CREATE INDEX job_delayed ON job(not_before_ms) WHERE state = 'queued' AND not_before_ms <> 0;
CREATE INDEX job_delayed_in_lane ON job(lane, seq) WHERE state = 'queued' AND not_before_ms <> 0;
CREATE INDEX job_waiting ON job(seq) WHERE state = 'queued';
CREATE INDEX job_ran ON job(finished_at_ms) WHERE state IN ('done','failed') AND working_at_ms IS NOT NULL;

-- One row: the last arrival number at the last opening. Waiting jobs up to it are of class batch, whatever their row says:
-- an opening demotes a million of them by writing one number. A claim writes the class it had into the row.
CREATE TABLE opening (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    seq  INTEGER NOT NULL
) STRICT;
INSERT INTO opening(only, seq) VALUES (1, 0);

-- How many jobs of a class wait in a lane, and how many of them are delayed, kept by triggers. No row where none waits.
CREATE TABLE waiting (
    lane    TEXT NOT NULL,
    class   TEXT NOT NULL,
    jobs    INTEGER NOT NULL CHECK (jobs >= 0),
    delayed INTEGER NOT NULL CHECK (delayed BETWEEN 0 AND jobs),
    PRIMARY KEY (lane, class)
) STRICT, WITHOUT ROWID;
INSERT INTO waiting(lane, class, jobs, delayed)
    SELECT lane, class, COUNT(*), SUM(not_before_ms <> 0) FROM job WHERE state = 'queued' GROUP BY lane, class;
CREATE TRIGGER waiting_inserted AFTER INSERT ON job WHEN NEW.state = 'queued' BEGIN
    INSERT INTO waiting(lane, class, jobs, delayed) VALUES (
        NEW.lane,
        CASE WHEN NEW.seq <= (SELECT seq FROM opening) THEN 'batch' ELSE NEW.class END,
        1, NEW.not_before_ms <> 0
    ) ON CONFLICT(lane, class) DO UPDATE SET jobs = jobs + 1, delayed = delayed + excluded.delayed;
END;
CREATE TRIGGER waiting_entered AFTER UPDATE OF state, class, lane, not_before_ms ON job WHEN NEW.state = 'queued' BEGIN
    INSERT INTO waiting(lane, class, jobs, delayed) VALUES (
        NEW.lane,
        CASE WHEN NEW.seq <= (SELECT seq FROM opening) THEN 'batch' ELSE NEW.class END,
        1, NEW.not_before_ms <> 0
    ) ON CONFLICT(lane, class) DO UPDATE SET jobs = jobs + 1, delayed = delayed + excluded.delayed;
END;
CREATE TRIGGER waiting_left AFTER UPDATE OF state, class, lane, not_before_ms ON job WHEN OLD.state = 'queued' BEGIN
    UPDATE waiting SET jobs = jobs - 1, delayed = delayed - (OLD.not_before_ms <> 0)
    WHERE lane = OLD.lane
      AND class = CASE WHEN OLD.seq <= (SELECT seq FROM opening) THEN 'batch' ELSE OLD.class END;
    DELETE FROM waiting WHERE lane = OLD.lane AND jobs = 0;
END;
CREATE TRIGGER waiting_deleted AFTER DELETE ON job WHEN OLD.state = 'queued' BEGIN
    UPDATE waiting SET jobs = jobs - 1, delayed = delayed - (OLD.not_before_ms <> 0)
    WHERE lane = OLD.lane
      AND class = CASE WHEN OLD.seq <= (SELECT seq FROM opening) THEN 'batch' ELSE OLD.class END;
    DELETE FROM waiting WHERE lane = OLD.lane AND jobs = 0;
END;

-- What was learned, as hints for later decisions. `recent` is a JSON array, oldest first: it is read and written whole.
CREATE TABLE load_time (
    name   TEXT PRIMARY KEY,
    recent TEXT NOT NULL,
    at_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE gap (
    name   TEXT PRIMARY KEY,
    recent TEXT NOT NULL,
    at_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX gap_by_use ON gap(at_ms);
CREATE TABLE fit (
    models TEXT PRIMARY KEY,
    fits   INTEGER NOT NULL,
    at_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Refuses a SQLite with the known corruption bug; only a foreman built against the system's SQLite can have one.
pub(super) fn require_sound_sqlite() -> Result<(), StoreError> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        return Err(StoreError::Strange(format!(
            "SQLite {} has a corruption bug in WAL mode; 3.51.3 or newer is needed",
            rusqlite::version()
        )));
    }
    Ok(())
}

/// Sets a read-write connection up. `auto_vacuum` must come before the first table.
pub(super) fn prepare(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // On macOS a plain fsync does not reach the platter.
    connection.pragma_update(None, "fullfsync", "ON")?;
    connection.pragma_update(None, "checkpoint_fullfsync", "ON")?;
    // The writer checkpoints by itself, after the answers are out; this bounds the log between two of those when bodies
    // are large.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", LOG_PAGES_MAX, |_| Ok(()))?;
    connection.pragma_update_and_check(
        None,
        "journal_size_limit",
        JOURNAL_BYTES_MAX,
        |_| Ok(()),
    )?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    connection.pragma_update(None, "cell_size_check", "ON")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    Ok(())
}

/// Brings the schema to the newest version, one transaction a step.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for (version, sql) in (1_i64..).zip(MIGRATIONS) {
        if version <= found {
            continue;
        }
        let tx = connection.transaction()?;
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "user_version", version)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        fail_point::reach("migration.uncommitted");
        tx.commit()?;
        fail_point::reach("migration.committed");
    }
    Ok(())
}
