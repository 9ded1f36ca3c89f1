"""text_search: owns full-text search in a table, FTS5 on SQLite and tsvector on PostgreSQL, and how hits are ranked.

A query is cut into words here, and only words reach the databases' query languages, so no text can break them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, TextClause, bindparam, text

MOST_WORDS = 32  #: of a query; the first ones count
MOST_WORD_CHARS = 64
_WORD = re.compile(r"[^\W_]+")
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that holds one of the words or more."""

    row: int
    score: float  #: above 0, higher is better; comparable within one search only


def words_of(query: str) -> list[str]:
    """Return the words that are searched for, each once, in order."""
    found = dict.fromkeys(word[:MOST_WORD_CHARS].lower() for word in _WORD.findall(query[:10_000]))
    return [word for word in found if word.isalnum()][:MOST_WORDS]


def find_rows(connection: Connection, table: str, users: Sequence[str], query: str, limit: int) -> list[Hit]:
    """Return the best rows of these users that hold any word of a query, best first."""
    words = words_of(query)
    if not words:
        return []
    if connection.dialect.name == "sqlite":
        statement, wanted = _SQLITE[table], " OR ".join(f'"{word}"' for word in words)
    else:
        statement, wanted = _POSTGRES[table], " | ".join(f"'{word}'" for word in words)
    rows = connection.execute(statement, {"query": wanted, "users": list(users), "most": limit})
    return [Hit(row.id, float(row.score)) for row in rows]


def by_recency(hits: Sequence[tuple[Hit, float]], *, now: float, half_life_days: float) -> list[tuple[Hit, float]]:
    """Rank hits, each with its time, by score and age; return each with a rank of 0 to 1, best first.

    The score counts relative to the best one. Age takes away at most half: at one half-life a quarter.
    """
    best = max((hit.score for hit, _ in hits), default=1.0) or 1.0
    ranked = [
        (hit, hit.score / best * (0.5 + 0.5 * 0.5 ** (max(0.0, now - at) / _DAY_S / half_life_days)))
        for hit, at in hits
    ]
    return sorted(ranked, key=lambda one: one[1], reverse=True)


def _sqlite(table: str, source: str, owner: str) -> TextClause:
    # bm25 is negative, best lowest.
    return text(
        f"SELECT {table}.id AS id, -bm25({table}_words) AS score FROM {table}_words {source}"  # noqa: S608 our own names
        f" WHERE {table}_words MATCH :query AND {owner} IN :users ORDER BY score DESC, {table}.id DESC LIMIT :most"
    ).bindparams(bindparam("users", expanding=True))


def _postgres(table: str, source: str, owner: str) -> TextClause:
    return text(
        f"SELECT {table}.id AS id, ts_rank_cd({table}.words, asked, 1) AS score"  # noqa: S608 our own names
        f" FROM to_tsquery('loopbox', :query) AS asked, {source}"
        f" WHERE {table}.words @@ asked AND {owner} IN :users ORDER BY score DESC, {table}.id DESC LIMIT :most"
    ).bindparams(bindparam("users", expanding=True))


_SQLITE = {
    "memories": _sqlite("memories", "JOIN memories ON memories.id = memories_words.rowid", "memories.user_id"),
    "passages": _sqlite(
        "passages",
        "JOIN passages ON passages.id = passages_words.rowid JOIN documents ON documents.id = passages.document_id",
        "documents.user_id",
    ),
}
_POSTGRES = {
    "memories": _postgres("memories", "memories", "memories.user_id"),
    "passages": _postgres(
        "passages", "passages JOIN documents ON documents.id = passages.document_id", "documents.user_id"
    ),
}
