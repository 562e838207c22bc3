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
