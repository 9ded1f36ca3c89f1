-- Who may what. Passwords as Argon2id hashes, refresh tokens as SHA-256; no signing key and no token is kept here.

CREATE TABLE users (
    name       TEXT PRIMARY KEY,
    role       TEXT NOT NULL CHECK (role IN ('viewer', 'user', 'operator', 'admin')),
    password   TEXT NOT NULL,                   -- Argon2id, '' for one that cannot log in
    disabled   INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    created_at TEXT NOT NULL,
    changed_at TEXT NOT NULL
) STRICT;

CREATE TABLE tokens (
    jti        TEXT PRIMARY KEY,
    kind       TEXT NOT NULL CHECK (kind IN ('access', 'service', 'refresh')),
    family     TEXT NOT NULL,                   -- of one login; revoked together
    user       TEXT NOT NULL,
    role       TEXT NOT NULL,
    name       TEXT NOT NULL,                   -- what it is for, in its maker's words
    kid        TEXT NOT NULL,                   -- the key that signed it, '' for a refresh token
    digest     TEXT UNIQUE,                     -- of a refresh token
    issued_at  INTEGER NOT NULL,                -- seconds since 1970, as in the token
    expires_at INTEGER NOT NULL,
    family_at  INTEGER NOT NULL,                -- when its login was
    used_at    INTEGER,                         -- a refresh token: when it was exchanged for the next
    revoked_at INTEGER
) STRICT;
CREATE INDEX tokens_by_family ON tokens (family);
CREATE INDEX tokens_by_user ON tokens (user);
CREATE INDEX tokens_by_end ON tokens (expires_at);
