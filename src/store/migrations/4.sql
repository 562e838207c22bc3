-- The order inside a lane and class: clients take turns, and each client's jobs go by arrival.

-- The round under way: the highest of which a job was claimed. Begins anew with the row, where none waits.
ALTER TABLE waiting ADD COLUMN round INTEGER NOT NULL DEFAULT 0;

-- One row for each client with ready jobs in a lane and class, kept by triggers. Next is the client of the lowest round, and
-- of those in one round the one that came first. A client's jobs go by arrival, so a job has no number that could grow old.
CREATE TABLE turn (
    lane   TEXT NOT NULL,
    class  TEXT NOT NULL,
    client TEXT NOT NULL,
    -- In which round its next job goes. Who comes gets the round after the one under way: to have been away earns nothing.
    round  INTEGER NOT NULL,
    -- The arrival number of the oldest job with which it came: the order inside a round.
    since  INTEGER NOT NULL,
    -- How many of its jobs are ready.
    jobs   INTEGER NOT NULL CHECK (jobs >= 0),
    PRIMARY KEY (lane, class, client)
) STRICT, WITHOUT ROWID;
CREATE INDEX turn_next ON turn(lane, class, round, since);

-- By client, to claim; by the time since when they are ready, to see who has waited longest.
DROP INDEX job_ready;
CREATE INDEX job_ready ON job(lane, class, client, seq) WHERE state = 'queued' AND not_before_ms = 0;
CREATE INDEX job_oldest ON job(lane, class, ready_at_ms, seq) WHERE state = 'queued' AND not_before_ms = 0;

INSERT INTO turn(lane, class, client, round, since, jobs)
    SELECT lane, class, client, 1, MIN(seq), COUNT(*) FROM job
    WHERE state = 'queued' AND not_before_ms = 0 GROUP BY lane, class, client;

CREATE TRIGGER turn_inserted AFTER INSERT ON job WHEN NEW.state = 'queued' AND NEW.not_before_ms = 0 BEGIN
    INSERT INTO turn(lane, class, client, round, since, jobs) VALUES (
        NEW.lane, NEW.class, NEW.client,
        1 + COALESCE((SELECT round FROM waiting WHERE lane = NEW.lane AND class = NEW.class), 0),
        NEW.seq, 1
    ) ON CONFLICT(lane, class, client) DO UPDATE SET jobs = jobs + 1;
END;
-- Of a write that changes neither whether it is ready nor where, nothing follows: its client would lose its turn.
CREATE TRIGGER turn_entered AFTER UPDATE OF state, class, lane, not_before_ms ON job
WHEN NEW.state = 'queued' AND NEW.not_before_ms = 0
    AND (OLD.state <> 'queued' OR OLD.not_before_ms <> 0 OR OLD.class <> NEW.class OR OLD.lane <> NEW.lane) BEGIN
    INSERT INTO turn(lane, class, client, round, since, jobs) VALUES (
        NEW.lane, NEW.class, NEW.client,
        1 + COALESCE((SELECT round FROM waiting WHERE lane = NEW.lane AND class = NEW.class), 0),
        NEW.seq, 1
    ) ON CONFLICT(lane, class, client) DO UPDATE SET jobs = jobs + 1;
    UPDATE turn SET since = NEW.seq
    WHERE lane = NEW.lane AND class = NEW.class AND client = NEW.client AND since > NEW.seq;
END;
-- A claim takes the turn: the round under way is its round, and the client's next job goes in the one after that.
CREATE TRIGGER turn_left AFTER UPDATE OF state, class, lane, not_before_ms ON job
WHEN OLD.state = 'queued' AND OLD.not_before_ms = 0
    AND (NEW.state <> 'queued' OR NEW.not_before_ms <> 0 OR OLD.class <> NEW.class OR OLD.lane <> NEW.lane) BEGIN
    UPDATE waiting SET round = MAX(round, (
        SELECT round FROM turn WHERE lane = OLD.lane AND class = OLD.class AND client = OLD.client
    )) WHERE lane = OLD.lane AND class = OLD.class AND NEW.state IN ('loading','working');
    UPDATE turn SET round = 1 + MAX(round, COALESCE(
        (SELECT round FROM waiting WHERE lane = OLD.lane AND class = OLD.class), 0
    )) WHERE lane = OLD.lane AND class = OLD.class AND client = OLD.client AND NEW.state IN ('loading','working');
    UPDATE turn SET jobs = jobs - 1 WHERE lane = OLD.lane AND class = OLD.class AND client = OLD.client;
    DELETE FROM turn WHERE lane = OLD.lane AND class = OLD.class AND client = OLD.client AND jobs = 0;
END;
CREATE TRIGGER turn_deleted AFTER DELETE ON job WHEN OLD.state = 'queued' AND OLD.not_before_ms = 0 BEGIN
    UPDATE turn SET jobs = jobs - 1 WHERE lane = OLD.lane AND class = OLD.class AND client = OLD.client;
    DELETE FROM turn WHERE lane = OLD.lane AND class = OLD.class AND client = OLD.client AND jobs = 0;
END;
