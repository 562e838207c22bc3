-- Jobs that nobody waits for, of clients whose connections went with an earlier daemon. They are kept out of the queue until a
-- time, like scheduled ones (not_before_ms = run_at_ms), and run before it only where there is nothing else to do. The mark
-- stays while such a job is in flight.
ALTER TABLE job ADD COLUMN is_set_aside INTEGER NOT NULL DEFAULT 0;
CREATE INDEX job_set_aside ON job(lane, seq, client, ready_at_ms)
    WHERE state = 'queued' AND is_set_aside = 1 AND not_before_ms <> 0;
