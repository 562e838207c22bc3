-- The order inside a lane by class, what is counted for it, and what is learned.

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
