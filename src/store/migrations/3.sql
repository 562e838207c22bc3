-- Jobs that outlive their caller: scheduled, given deadlines, told of by webhooks, found again by key.

-- What waits was demoted by one number, whoever it was for. Now jobs have owners that survive a restart, so the rows of
-- those that have none are written.
DROP TRIGGER waiting_inserted;
DROP TRIGGER waiting_entered;
DROP TRIGGER waiting_left;
DROP TRIGGER waiting_deleted;
UPDATE job SET class = 'batch' WHERE state = 'queued' AND seq <= (SELECT seq FROM opening);
DROP TABLE opening;

-- Whether it outlives its caller.
ALTER TABLE job ADD COLUMN is_async INTEGER NOT NULL DEFAULT 0;
-- Whether its client's connection went with a daemon and nobody has come back for it.
ALTER TABLE job ADD COLUMN is_lost INTEGER NOT NULL DEFAULT 0;
-- Whether somebody cancelled it while it ran: it must not run again.
ALTER TABLE job ADD COLUMN is_cancelling INTEGER NOT NULL DEFAULT 0;
-- 0, or the time it is scheduled for. Scheduled: not_before_ms = run_at_ms. Once put off for a retry they differ.
ALTER TABLE job ADD COLUMN run_at_ms INTEGER NOT NULL DEFAULT 0;
-- An answer after this is of no use.
ALTER TABLE job ADD COLUMN deadline_ms INTEGER;
-- By what a client that comes back is known: route, bytes, token, address.
ALTER TABLE job ADD COLUMN attach_key BLOB;
-- By what an equal request is known; NULL where nobody looks for one.
ALTER TABLE job ADD COLUMN likeness BLOB;
-- Of the attempt that ended it: when its first byte came, when its last.
ALTER TABLE job ADD COLUMN first_byte_at_ms INTEGER;
ALTER TABLE job ADD COLUMN answered_at_ms INTEGER;
ALTER TABLE job ADD COLUMN prompt_tokens INTEGER;
ALTER TABLE job ADD COLUMN output_tokens INTEGER;
-- The HTTP status that belongs to last_error.
ALTER TABLE job ADD COLUMN error_status INTEGER;
-- When it last entered the queue.
ALTER TABLE job ADD COLUMN queued_at_ms INTEGER NOT NULL DEFAULT 0;
UPDATE job SET queued_at_ms = created_at_ms;

-- Delays of retries apart from schedules: those are far away, and many.
DROP INDEX job_delayed_in_lane;
CREATE INDEX job_put_off ON job(not_before_ms)
    WHERE state = 'queued' AND not_before_ms <> 0 AND not_before_ms <> run_at_ms;
CREATE INDEX job_put_off_in_lane ON job(lane, seq)
    WHERE state = 'queued' AND not_before_ms <> 0 AND not_before_ms <> run_at_ms;
CREATE INDEX job_deadline ON job(deadline_ms) WHERE state = 'queued' AND deadline_ms IS NOT NULL;
-- Those with a client on a connection: what an opening has to write.
CREATE INDEX job_attended ON job(seq) WHERE state = 'queued' AND is_async = 0 AND is_lost = 0;
CREATE INDEX job_lost ON job(attach_key) WHERE is_lost = 1;
CREATE INDEX job_like ON job(likeness) WHERE likeness IS NOT NULL;
-- Retention by age, with its own time for each kind of end; and the few that people look for.
DROP INDEX job_final;
CREATE INDEX job_over ON job(finished_at_ms) WHERE state IN ('done','cancelled');
CREATE INDEX job_dead ON job(finished_at_ms) WHERE state = 'failed';
CREATE INDEX job_unanswered ON job(state, seq) WHERE state IN ('failed','cancelled');

-- What was said beside the request, apart from the hot row.
CREATE TABLE submission (
    seq             INTEGER PRIMARY KEY REFERENCES job(seq) ON DELETE CASCADE,
    webhook_url     TEXT,
    -- A JSON object.
    metadata        TEXT,
    -- Whose key it is: a hash of the token; empty where there is none.
    key_scope       TEXT NOT NULL DEFAULT '',
    idempotency_key TEXT,
    fingerprint     BLOB,
    -- Scheme, host and port of the URL.
    receiver        TEXT,
    CHECK ((idempotency_key IS NULL) = (fingerprint IS NULL))
) STRICT;
CREATE UNIQUE INDEX submission_key ON submission(key_scope, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- One webhook owed for one change of state, written with it. Only the first pending one of a job has a next_at_ms.
CREATE TABLE delivery (
    event           INTEGER PRIMARY KEY REFERENCES transition(event) ON DELETE CASCADE,
    seq             INTEGER NOT NULL REFERENCES job(seq) ON DELETE CASCADE,
    -- Counts the deliveries of a job from 1.
    sequence        INTEGER NOT NULL,
    url             TEXT NOT NULL,
    -- Scheme, host and port of the URL: what is paced together.
    receiver        TEXT NOT NULL,
    state           TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending','delivered','dead')),
    tries           INTEGER NOT NULL DEFAULT 0,
    next_at_ms      INTEGER,
    last_status     INTEGER,
    last_error      TEXT,
    delivered_at_ms INTEGER,
    CHECK (next_at_ms IS NULL OR state = 'pending')
) STRICT;
CREATE INDEX delivery_of_job ON delivery(seq, event);
CREATE INDEX delivery_due ON delivery(receiver, next_at_ms) WHERE state = 'pending' AND next_at_ms IS NOT NULL;
CREATE INDEX delivery_pending ON delivery(seq, event) WHERE state = 'pending';
CREATE INDEX delivery_dead ON delivery(event) WHERE state = 'dead';

-- Jobs that were and are no more, the newest of them: 410 is another answer than 404.
CREATE TABLE purged (
    id TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- Single numbers: `events_dropped`, the last event that went with a dropped job.
CREATE TABLE mark (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO mark(name, value) VALUES ('events_dropped', 0);

-- How many jobs of a class wait in a lane, and how many of them are put off for a retry; a scheduled job does not wait
-- before its time. No row where none waits.
CREATE TRIGGER waiting_inserted AFTER INSERT ON job
WHEN NEW.state = 'queued' AND (NEW.not_before_ms = 0 OR NEW.not_before_ms <> NEW.run_at_ms) BEGIN
    INSERT INTO waiting(lane, class, jobs, delayed) VALUES (NEW.lane, NEW.class, 1, NEW.not_before_ms <> 0)
    ON CONFLICT(lane, class) DO UPDATE SET jobs = jobs + 1, delayed = delayed + excluded.delayed;
END;
CREATE TRIGGER waiting_entered AFTER UPDATE OF state, class, lane, not_before_ms ON job
WHEN NEW.state = 'queued' AND (NEW.not_before_ms = 0 OR NEW.not_before_ms <> NEW.run_at_ms) BEGIN
    INSERT INTO waiting(lane, class, jobs, delayed) VALUES (NEW.lane, NEW.class, 1, NEW.not_before_ms <> 0)
    ON CONFLICT(lane, class) DO UPDATE SET jobs = jobs + 1, delayed = delayed + excluded.delayed;
END;
CREATE TRIGGER waiting_left AFTER UPDATE OF state, class, lane, not_before_ms ON job
WHEN OLD.state = 'queued' AND (OLD.not_before_ms = 0 OR OLD.not_before_ms <> OLD.run_at_ms) BEGIN
    UPDATE waiting SET jobs = jobs - 1, delayed = delayed - (OLD.not_before_ms <> 0)
    WHERE lane = OLD.lane AND class = OLD.class;
    DELETE FROM waiting WHERE lane = OLD.lane AND jobs = 0;
END;
CREATE TRIGGER waiting_deleted AFTER DELETE ON job
WHEN OLD.state = 'queued' AND (OLD.not_before_ms = 0 OR OLD.not_before_ms <> OLD.run_at_ms) BEGIN
    UPDATE waiting SET jobs = jobs - 1, delayed = delayed - (OLD.not_before_ms <> 0)
    WHERE lane = OLD.lane AND class = OLD.class;
    DELETE FROM waiting WHERE lane = OLD.lane AND jobs = 0;
END;
