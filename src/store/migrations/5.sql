-- Jobs that belong to a named key, and how many of each key's wait.

-- The name of its key; empty where it is nobody's: those from before there were keys, and those of whoever has none.
ALTER TABLE job ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE purged ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE INDEX job_of_owner ON job(owner, seq) WHERE owner <> '';
CREATE INDEX job_waiting_of_owner ON job(owner, seq) WHERE state = 'queued' AND owner <> '';

-- How many jobs of an owner wait, those scheduled for later included, kept by triggers. No row where none waits.
CREATE TABLE owned (
    owner TEXT PRIMARY KEY,
    jobs  INTEGER NOT NULL CHECK (jobs >= 0)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER owned_inserted AFTER INSERT ON job WHEN NEW.owner <> '' AND NEW.state = 'queued' BEGIN
    INSERT INTO owned(owner, jobs) VALUES (NEW.owner, 1) ON CONFLICT(owner) DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER owned_entered AFTER UPDATE OF state ON job
WHEN NEW.owner <> '' AND NEW.state = 'queued' AND OLD.state <> 'queued' BEGIN
    INSERT INTO owned(owner, jobs) VALUES (NEW.owner, 1) ON CONFLICT(owner) DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER owned_left AFTER UPDATE OF state ON job
WHEN OLD.owner <> '' AND OLD.state = 'queued' AND NEW.state <> 'queued' BEGIN
    UPDATE owned SET jobs = jobs - 1 WHERE owner = OLD.owner;
    DELETE FROM owned WHERE owner = OLD.owner AND jobs = 0;
END;
CREATE TRIGGER owned_deleted AFTER DELETE ON job WHEN OLD.owner <> '' AND OLD.state = 'queued' BEGIN
    UPDATE owned SET jobs = jobs - 1 WHERE owner = OLD.owner;
    DELETE FROM owned WHERE owner = OLD.owner AND jobs = 0;
END;
