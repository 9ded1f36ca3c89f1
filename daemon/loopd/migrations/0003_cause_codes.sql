-- A stable word beside each restart's sentence, for what counts as a crash and what does not.

ALTER TABLE restarts ADD COLUMN code TEXT NOT NULL DEFAULT 'unknown';
