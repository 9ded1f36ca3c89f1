"""tables: owns the one description of the agent's tables, for SQLite and PostgreSQL.

Times are seconds since 1970, UTC. JSON is text, which both databases store as it is given. A table with a user's data
has a column user_id, or a foreign key towards a table that has: export and erasure follow these (personal_data).
Whoever changes a table adds an upgrade (schema_version) and raises the version there.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

metadata = MetaData()

_ROW = BigInteger().with_variant(Integer(), "sqlite")  # only INTEGER numbers its rows by itself on SQLite
_USER = String(64)
_ID = String(64)


def _thread() -> ForeignKey:
    return ForeignKey("threads.id", ondelete="CASCADE")


def _run() -> ForeignKey:
    return ForeignKey("runs.id", ondelete="CASCADE")


schema = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

threads = Table(
    "threads",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("user_id", _USER, nullable=False),
    Column("title", Text),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("next_seq", Integer, nullable=False),
    Column("next_position", Integer, nullable=False),
    Column("leased_by", _ID),
    Column("leased_until", Double),
    Index("threads_of_user", "user_id", "updated_at", "id"),
)

messages = Table(
    "messages",
    metadata,
    Column("thread_id", _ID, _thread(), primary_key=True),
    Column("seq", Integer, primary_key=True),  #: order of writing
    Column("position", Integer, nullable=False),  #: order of reading, among the active ones
    Column("run_id", _ID, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("messages_to_read", "thread_id", "active", "position"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("user_id", _USER, nullable=False),
    Column("thread_id", _ID, _thread()),
    Column("status", String(16), nullable=False),
    Column("request", Text, nullable=False),
    Column("result", Text),
    Column("error", Text),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    Index("runs_of_user", "user_id", "created_at", "id"),
    Index("runs_of_thread", "thread_id", "created_at"),
    Index("runs_by_status", "status", "finished_at"),
)

run_events = Table(
    "run_events",
    metadata,
    Column("run_id", _ID, _run(), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("body", Text, nullable=False),
)

tool_calls = Table(
    "tool_calls",
    metadata,
    Column("run_id", _ID, _run(), primary_key=True),
    Column("call_id", _ID, primary_key=True),
    Column("tool", String(128), nullable=False),
    Column("effect", String(8), nullable=False),
    Column("arguments", Text, nullable=False),
    Column("result", Text),
    Column("is_error", Boolean, nullable=False),
    Column("begun_at", Double, nullable=False),
    Column("finished_at", Double),
)

working_notes = Table(
    "working_notes",
    metadata,
    Column("run_id", _ID, _run(), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("body", Text, nullable=False),
)

session_notes = Table(
    "session_notes",
    metadata,
    Column("thread_id", _ID, _thread(), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("body", Text, nullable=False),
    Column("updated_at", Double, nullable=False),
)

memories = Table(
    "memories",
    metadata,
    Column("id", _ROW, primary_key=True),
    Column("user_id", _USER, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("size", Integer, nullable=False),  #: bytes
    Column("created_at", Double, nullable=False),
    Column("used_at", Double, nullable=False),
    UniqueConstraint("user_id", "digest", name="memories_once"),
    Index("memories_by_use", "user_id", "used_at"),
)

documents = Table(
    "documents",
    metadata,
    Column("id", _ROW, primary_key=True),
    Column("user_id", _USER, nullable=False),  #: "" for those shared by all
    Column("name", String(200), nullable=False),
    Column("size", Integer, nullable=False),  #: bytes
    Column("digest", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("user_id", "name", name="documents_once"),
)

passages = Table(
    "passages",
    metadata,
    Column("id", _ROW, primary_key=True),
    Column("document_id", _ROW, ForeignKey("documents.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),  #: of the passage in its document, from 0
    Column("start", Integer, nullable=False),  #: first character in the document
    Column("text", Text, nullable=False),
    Index("passages_of_document", "document_id", "position"),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("user_id", _USER, nullable=False),
    Column("run_id", _ID, nullable=False),  #: no key: what is held outlives the run's record
    Column("kind", String(16), nullable=False),
    Column("score", Integer, nullable=False),
    Column("findings", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("decided_at", Double),
    Column("decided_by", _USER),
    Column("reason", Text),
    Index("quarantine_by_state", "state", "created_at"),
    Index("quarantine_of_user", "user_id"),
)

interactions = Table(
    "interactions",
    metadata,
    Column("id", _ROW, primary_key=True),  #: in the order of writing
    Column("run_id", _ID, nullable=False),  #: no key: what is learnt from outlives the run's record
    Column("user_id", _USER, nullable=False),
    Column("thread_id", _ID),
    Column("outcome", String(64), nullable=False),
    Column("messages", Text, nullable=False),
    Column("tools", Text, nullable=False),
    Column("rating", String(8)),
    Column("comment", Text, nullable=False),
    Column("better", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("run_id", name="interactions_once"),
    Index("interactions_of_user", "user_id"),
    Index("interactions_by_age", "created_at"),
)

consents = Table(
    "consents",
    metadata,
    Column("user_id", _USER, primary_key=True),
    Column("learn", Boolean, nullable=False),
    Column("decided_at", Double, nullable=False),
)

mcp_servers = Table(
    "mcp_servers",
    metadata,
    Column("id", _ROW, primary_key=True),
    Column("user_id", _USER, nullable=False),
    Column("name", String(32), nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("user_id", "name"),
)

#: What text search reads: table by name; its column is "text".
SEARCHED = ("memories", "passages")

# Both sides split at everything that is no letter or digit, stem as English, and drop no stop words, so that they find
# the same rows (but for the few words that Porter's first and second stemmer cut differently). SQLite: an FTS5 index
# beside the table, kept by triggers (they fire for cascades, too).
_SQLITE = (
    (
        "CREATE VIRTUAL TABLE {t}_words USING fts5("
        "text, content='{t}', content_rowid='id', tokenize='porter unicode61 remove_diacritics 0')"
    ),
    (
        "CREATE TRIGGER {t}_insert AFTER INSERT ON {t} BEGIN"
        " INSERT INTO {t}_words (rowid, text) VALUES (new.id, new.text); END"
    ),
    (
        "CREATE TRIGGER {t}_delete AFTER DELETE ON {t} BEGIN"
        " INSERT INTO {t}_words ({t}_words, rowid, text) VALUES ('delete', old.id, old.text); END"
    ),
    (
        "CREATE TRIGGER {t}_update AFTER UPDATE OF text ON {t} BEGIN"
        " INSERT INTO {t}_words ({t}_words, rowid, text) VALUES ('delete', old.id, old.text);"
        " INSERT INTO {t}_words (rowid, text) VALUES (new.id, new.text); END"
    ),
)
_POSTGRES_ONCE = (
    "CREATE TEXT SEARCH DICTIONARY loopbox_stem (TEMPLATE = snowball, LANGUAGE = english)",
    "CREATE TEXT SEARCH CONFIGURATION loopbox (COPY = pg_catalog.simple)",
    "ALTER TEXT SEARCH CONFIGURATION loopbox ALTER MAPPING FOR asciiword, word, numword WITH loopbox_stem",
)
_POSTGRES = (
    (
        "ALTER TABLE {t} ADD COLUMN words tsvector GENERATED ALWAYS AS"
        " (to_tsvector('loopbox', regexp_replace(text, '[^[:alnum:]]+', ' ', 'g'))) STORED"
    ),
    "CREATE INDEX {t}_words ON {t} USING gin (words)",
)


def _ddl(statement: str, dialect: str) -> None:
    made = DDL(statement.replace("%", "%%"))  # type: ignore[no-untyped-call]  # SQLAlchemy's own gap
    event.listen(metadata, "after_create", made.execute_if(dialect=dialect))


for _statement in _POSTGRES_ONCE:
    _ddl(_statement, "postgresql")
for _table in SEARCHED:
    for _statement in _SQLITE:
        _ddl(_statement.format(t=_table), "sqlite")
    for _statement in _POSTGRES:
        _ddl(_statement.format(t=_table), "postgresql")
