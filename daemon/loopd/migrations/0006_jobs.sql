-- Jobs of the trainer: what was asked for, how it stands, and what came of it. One runs at a time.

CREATE TABLE jobs (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL CHECK (kind IN ('curate', 'train', 'score')),
    status     TEXT NOT NULL CHECK (status IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    cause      TEXT NOT NULL,               -- who or what asked for it
    name       TEXT NOT NULL,               -- what comes of it is called so
    spec       TEXT NOT NULL,               -- JSON, as the trainer reads it
    starts     INTEGER NOT NULL DEFAULT 0,  -- of its container
    stopping   TEXT NOT NULL DEFAULT '',    -- why it is to end; '': it is not
    code       TEXT NOT NULL DEFAULT '',    -- of a failure, a stable word
    reason     TEXT NOT NULL DEFAULT '',    -- of a failure, for people
    figures    TEXT NOT NULL DEFAULT '{}',  -- JSON: what it measured
    created_at TEXT NOT NULL,
    started_at TEXT,
    ended_at   TEXT
);
CREATE UNIQUE INDEX one_job_runs ON jobs (status) WHERE status = 'running';
CREATE INDEX jobs_newest ON jobs (created_at);
