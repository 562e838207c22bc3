-- The lanes by their longest ready job, so that a decision reads the few it may choose from, however many lanes there are.

-- The job that has been ready longest in a lane and class, kept by triggers. No row where none is ready.
CREATE TABLE head (
    lane        TEXT NOT NULL,
    class       TEXT NOT NULL,
    ready_at_ms INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    PRIMARY KEY (lane, class)
) STRICT, WITHOUT ROWID;
CREATE INDEX head_next ON head(class, ready_at_ms, seq, lane);
CREATE INDEX waiting_longest ON waiting(class, jobs, lane);

INSERT INTO head(lane, class, ready_at_ms, seq)
    SELECT waiting.lane, waiting.class, job.ready_at_ms, job.seq FROM waiting JOIN job ON job.seq = (
        SELECT seq FROM job
        WHERE state = 'queued' AND not_before_ms = 0 AND lane = waiting.lane AND class = waiting.class
        ORDER BY ready_at_ms, seq LIMIT 1);

CREATE TRIGGER head_inserted AFTER INSERT ON job WHEN NEW.state = 'queued' AND NEW.not_before_ms = 0 BEGIN
    INSERT INTO head(lane, class, ready_at_ms, seq) VALUES (NEW.lane, NEW.class, NEW.ready_at_ms, NEW.seq)
    ON CONFLICT(lane, class) DO UPDATE SET ready_at_ms = excluded.ready_at_ms, seq = excluded.seq
        WHERE (excluded.ready_at_ms, excluded.seq) < (ready_at_ms, seq);
END;
-- The next one is looked for only where the head itself has left or moved; then whoever came is compared with it.
CREATE TRIGGER head_moved AFTER UPDATE OF state, class, lane, not_before_ms, ready_at_ms ON job
WHEN (OLD.state = 'queued' AND OLD.not_before_ms = 0) OR (NEW.state = 'queued' AND NEW.not_before_ms = 0) BEGIN
    DELETE FROM head WHERE lane = OLD.lane AND class = OLD.class AND seq = OLD.seq;
    INSERT INTO head(lane, class, ready_at_ms, seq)
        SELECT lane, class, ready_at_ms, seq FROM job
        WHERE state = 'queued' AND not_before_ms = 0 AND lane = OLD.lane AND class = OLD.class
            AND NOT EXISTS (SELECT 1 FROM head WHERE lane = OLD.lane AND class = OLD.class)
        ORDER BY ready_at_ms, seq LIMIT 1;
    INSERT INTO head(lane, class, ready_at_ms, seq)
        SELECT NEW.lane, NEW.class, NEW.ready_at_ms, NEW.seq WHERE NEW.state = 'queued' AND NEW.not_before_ms = 0
        ON CONFLICT(lane, class) DO UPDATE SET ready_at_ms = excluded.ready_at_ms, seq = excluded.seq
            WHERE (excluded.ready_at_ms, excluded.seq) < (ready_at_ms, seq);
END;
CREATE TRIGGER head_deleted AFTER DELETE ON job WHEN OLD.state = 'queued' AND OLD.not_before_ms = 0 BEGIN
    DELETE FROM head WHERE lane = OLD.lane AND class = OLD.class AND seq = OLD.seq;
    INSERT INTO head(lane, class, ready_at_ms, seq)
        SELECT lane, class, ready_at_ms, seq FROM job
        WHERE state = 'queued' AND not_before_ms = 0 AND lane = OLD.lane AND class = OLD.class
            AND NOT EXISTS (SELECT 1 FROM head WHERE lane = OLD.lane AND class = OLD.class)
        ORDER BY ready_at_ms, seq LIMIT 1;
END;
