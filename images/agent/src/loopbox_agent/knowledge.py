"""knowledge: owns the documents that users give the agent to look things up in: stored in passages, found by words."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select

from loopbox_agent.chunks import cut
from loopbox_agent.database import Database
from loopbox_agent.records import (
    CLOCK,
    Clock,
    InvalidRecordError,
    NotFoundError,
    StoreLimitError,
    checked_user,
    moment,
    plain,
    storable,
)
from loopbox_agent.tables import documents, passages
from loopbox_agent.text_search import find_rows

SHARED = ""  #: the owner of documents that everybody may search; who may add them is the caller's rule

MOST_DOCUMENTS = 1000  #: of one owner
MOST_DOCUMENT_BYTES = 2 << 20
MOST_BYTES = 64 << 20  #: of one owner's documents together
MOST_NAME_CHARS = 200
MOST_FOUND = 50
_STEP = 256  #: passages in one insert


@dataclass(frozen=True, slots=True)
class Document:
    """A text that was added."""

    name: str
    owner: str
    size: int  #: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document that fits a query."""

    document: str  #: its name
    owner: str
    position: int  #: of the passage in the document, from 0
    start: int  #: first character in the document
    text: str
    score: float  #: 0 to 1, relative to the best


class Knowledge:
    """All documents."""

    def __init__(self, database: Database, *, clock: Clock = CLOCK) -> None:
        self._database = database
        self._clock = clock

    async def add(self, owner: str, name: str, text: str) -> Document:
        """Add a document, in the place of the owner's one of that name.

        owner: a user, or SHARED. Raises InvalidRecordError, TooLargeError, StoreLimitError.
        """
        _owner(owner)
        title = storable(name, most_bytes=4 * MOST_NAME_CHARS, what="document's name").strip()
        if not 0 < len(title) <= MOST_NAME_CHARS:
            raise InvalidRecordError(f"A document's name has 1 to {MOST_NAME_CHARS} characters; nothing was added.")
        clean = storable(text, most_bytes=MOST_DOCUMENT_BYTES, what="document")
        pieces = await asyncio.to_thread(cut, clean)
        row = {
            "user_id": owner,
            "name": title,
            "size": len(clean.encode()),
            "digest": hashlib.sha256(clean.encode()).hexdigest(),
            "created_at": self._clock(),
        }

        def unit(connection: Connection) -> Document:
            known = connection.execute(_NAMED, {"owner": owner, "title": title}).one_or_none()
            if known is not None and known.digest == row["digest"]:
                return _document(known)
            if known is not None:
                connection.execute(delete(documents).where(documents.c.id == known.id))
            count, size = connection.execute(_KEPT, {"owner": owner}).one()
            if count >= MOST_DOCUMENTS or size + row["size"] > MOST_BYTES:
                raise StoreLimitError(
                    f"{count:,} documents of {size:,} bytes are kept; {MOST_DOCUMENTS:,} of {MOST_BYTES:,} are "
                    "allowed. Nothing was added; delete some first."
                )
            (key,) = connection.execute(insert(documents), row).inserted_primary_key or (0,)
            parts = [
                {"document_id": key, "position": position, "start": piece.start, "text": piece.text}
                for position, piece in enumerate(pieces)
            ]
            for first in range(0, len(parts), _STEP):
                connection.execute(insert(passages), parts[first : first + _STEP])
            return Document(title, owner, len(clean.encode()), moment(self._clock()))

        return await self._database.write(unit)

    async def search(self, user: str, query: str, limit: int = 5) -> list[Passage]:
        """Return the passages of the user's and the shared documents that fit best; [] for a query without words."""
        most = max(1, min(limit, MOST_FOUND))

        def unit(connection: Connection) -> list[Passage]:
            hits = find_rows(connection, "passages", [user, SHARED], plain(query), most)
            rows = {row.id: row for row in connection.execute(_FOUND, {"ids": [hit.row for hit in hits]})}
            best = hits[0].score if hits else 1.0
            return [_passage(rows[hit.row], hit.score / best if best else 0.0) for hit in hits]

        return await self._database.read(unit)

    async def all(self, owner: str) -> list[Document]:
        """Return an owner's documents, by name."""
        wanted = select(documents).where(documents.c.user_id == owner).order_by(documents.c.name)
        rows = await self._database.read(lambda connection: connection.execute(wanted).all())
        return [_document(row) for row in rows]

    async def delete(self, owner: str, name: str) -> None:
        """Delete a document. Raises NotFoundError."""
        gone = delete(documents).where(documents.c.user_id == owner, documents.c.name == plain(name).strip())
        if not await self._database.write(lambda connection: connection.execute(gone).rowcount):
            raise NotFoundError(f"There is no document {plain(name)[:MOST_NAME_CHARS]!r}.")


_NAMED = select(documents).where(documents.c.user_id == bindparam("owner"), documents.c.name == bindparam("title"))
_KEPT = select(func.count(), func.coalesce(func.sum(documents.c.size), 0)).where(
    documents.c.user_id == bindparam("owner")
)
_FOUND = (
    select(passages, documents.c.name, documents.c.user_id)
    .join(documents)
    .where(passages.c.id.in_(bindparam("ids", expanding=True)))
)


def _owner(owner: str) -> str:
    return owner if owner == SHARED else checked_user(owner)


def _document(row: Row[Any]) -> Document:  # Any: SQLAlchemy types rows only in its ORM
    return Document(row.name, row.user_id, row.size, moment(row.created_at))


def _passage(row: Row[Any], score: float) -> Passage:  # Any: as above
    return Passage(row.name, row.user_id, row.position, row.start, row.text, score)
