-- What looking at the engine and the gateway cannot tell. Ids and digests only, no host paths.

CREATE TABLE ledger (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    at             TEXT NOT NULL,               -- ISO 8601, UTC
    event          TEXT NOT NULL,               -- noun.verb
    subject        TEXT NOT NULL,               -- unit, release, rollout or file it is about
    cause          TEXT NOT NULL,               -- one sentence for a person
    correlation_id TEXT NOT NULL,
    detail         TEXT NOT NULL,               -- JSON object
    hash           TEXT NOT NULL                -- over this row and the hash before it
) STRICT;

CREATE TABLE releases (
    id         TEXT PRIMARY KEY,                -- digest over everything that makes an answer
    manifest   TEXT NOT NULL,                   -- JSON: the Release
    source     TEXT NOT NULL,                   -- file name it came as
    created_at TEXT NOT NULL
) STRICT;

CREATE TABLE rollouts (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    candidate   TEXT NOT NULL REFERENCES releases (id),
    champion    TEXT REFERENCES releases (id),  -- what served when it began
    kind        TEXT NOT NULL CHECK (kind IN ('rollout', 'rollback')),
    phase       TEXT NOT NULL,
    reason      TEXT NOT NULL DEFAULT '',
    created_at  TEXT NOT NULL,
    finished_at TEXT
) STRICT;
-- Two rollouts never interleave: at most one row is neither waiting nor finished.
CREATE UNIQUE INDEX one_rollout_active ON rollouts ((1))
    WHERE finished_at IS NULL AND phase <> 'waiting';

CREATE TABLE journal (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    rollout     INTEGER NOT NULL REFERENCES rollouts (id),
    epoch       INTEGER NOT NULL,
    step        TEXT NOT NULL,                  -- kind of the step
    key         TEXT NOT NULL,                  -- the same step on the same instance has the same key
    host        TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('begun', 'done', 'failed')),
    begun_at    TEXT NOT NULL,
    finished_at TEXT,
    error       TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX journal_by_rollout ON journal (rollout, seq);

CREATE TABLE serving (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    champion TEXT REFERENCES releases (id),     -- what traffic goes to
    previous TEXT REFERENCES releases (id),     -- what a rollback returns to
    shares   TEXT NOT NULL DEFAULT '{}',        -- JSON: release id -> whole percent of traffic
    epoch    INTEGER NOT NULL DEFAULT 0         -- raised by each start of loopd
) STRICT;
INSERT INTO serving (one) VALUES (1);

CREATE TABLE restarts (
    seq   INTEGER PRIMARY KEY AUTOINCREMENT,
    unit  TEXT NOT NULL,
    at    TEXT NOT NULL,
    cause TEXT NOT NULL
) STRICT;
CREATE INDEX restarts_by_unit ON restarts (unit, seq);

CREATE TABLE leases (
    id         TEXT PRIMARY KEY,
    sandbox    TEXT NOT NULL UNIQUE,
    session    TEXT NOT NULL,
    expires_at TEXT NOT NULL
) STRICT;
