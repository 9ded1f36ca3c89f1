-- What a lease is of, what it was granted, and since when, so that a loopd started anew keeps to all of it.

ALTER TABLE leases ADD COLUMN kind       TEXT NOT NULL DEFAULT 'tools' CHECK (kind IN ('tools', 'browser'));
ALTER TABLE leases ADD COLUMN hosts      TEXT NOT NULL DEFAULT '[]';   -- JSON: patterns, as they were asked for
ALTER TABLE leases ADD COLUMN started_at TEXT NOT NULL DEFAULT '';     -- '': lent by an older loopd
