-- How a rollout takes over is fixed when it is asked for, so that a restart with other settings finishes it the same way.

ALTER TABLE rollouts ADD COLUMN policy   TEXT NOT NULL DEFAULT '{"kind": "instant", "stages": []}';
ALTER TABLE rollouts ADD COLUMN strategy TEXT NOT NULL DEFAULT ''
    CHECK (strategy IN ('', 'beside', 'in_place'));   -- '': not admitted yet

ALTER TABLE releases ADD COLUMN lineage    TEXT NOT NULL DEFAULT '{}';  -- JSON: base, data, job, scores
ALTER TABLE releases ADD COLUMN signer     TEXT NOT NULL DEFAULT '';    -- public key that signed the file, '' for none
ALTER TABLE releases ADD COLUMN pinned     INTEGER NOT NULL DEFAULT 0;  -- 1: never collected
ALTER TABLE releases ADD COLUMN removed_at TEXT;                        -- its weights were collected then
