"""store_dump: owns the portable copy of a database: compressed JSON lines of every table, from one snapshot.

The first line says what it is, the last one how many rows there are and what they hash to, so a copy that was cut off
or changed is refused before anything is touched. It moves a state between SQLite and PostgreSQL, too.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Connection, Table, delete, func, insert, select, text

from loopbox_agent.database import Database
from loopbox_agent.errors import AgentError
from loopbox_agent.schema_version import VERSION
from loopbox_agent.table_pages import PAGE, Record, pages, tables_in_order
from loopbox_agent.tables import metadata, schema

FORMAT = "loopbox-agent-dump-1"
MOST_LINE_BYTES = 64 << 20  #: longer than any row can be


class DumpError(AgentError):
    """A dump cannot be used; the database was left as it is."""

    code: ClassVar[str] = "backup_unusable"
    status: ClassVar[int] = 422


@dataclass(slots=True)
class _Writing:
    file: gzip.GzipFile
    digest: Any = field(default_factory=hashlib.sha256)  # Any: hashlib's object has no public type
    rows: int = 0

    def write(self, lines: list[str]) -> None:
        raw = "".join(f"{line}\n" for line in lines).encode()
        self.digest.update(raw)
        self.file.write(raw)


async def dump(database: Database, path: Path) -> int:
    """Write a dump, whole or not at all; return its rows. Other work goes on beside it. Raises AgentError, OSError."""
    draft = path.with_name(f".{path.name}.new")
    try:
        rows = await _dump(database, draft)
        await asyncio.to_thread(publish, draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return rows


async def _dump(database: Database, draft: Path) -> int:
    file = await asyncio.to_thread(_open_new, draft)
    writing = _Writing(file)
    try:
        await asyncio.to_thread(writing.write, [json.dumps({"format": FORMAT, "schema": VERSION})])
        async with database.snapshot() as reading:
            for table in tables_in_order():
                if table is schema:
                    continue
                async for page in pages(reading, table):
                    await asyncio.to_thread(writing.write, _lines(table, page))
                    writing.rows += len(page)
        end = json.dumps({"rows": writing.rows, "sha256": writing.digest.hexdigest()})
        await asyncio.to_thread(writing.write, [end])
    finally:
        await asyncio.to_thread(file.close)
    return writing.rows


def publish(draft: Path, path: Path) -> None:
    """Put a finished file under its name so that both survive a power cut. Blocks."""
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.replace(path)
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_dump(path: Path) -> int:
    """Read a dump through; return its rows. Blocks. Raises DumpError."""
    rows = 0
    for _ in _read(path):
        rows += 1
    return rows


async def load(database: Database, path: Path) -> int:
    """Replace everything in the database by a dump, in one transaction; return its rows. Raises DumpError.

    The dump is read twice: first whether it is whole, then for good.
    """
    await asyncio.to_thread(check_dump, path)

    def unit(connection: Connection) -> int:
        for table in reversed(tables_in_order()):
            if table is not schema:
                connection.execute(delete(table))
        rows, waiting, name = 0, list[Record](), ""
        for row_table, row in _read(path):
            if waiting and (row_table != name or len(waiting) >= PAGE):
                connection.execute(insert(metadata.tables[name]), waiting)
                waiting = []
            name = row_table
            waiting.append(row)
            rows += 1
        if waiting:
            connection.execute(insert(metadata.tables[name]), waiting)
        _renumber(connection)
        return rows

    return await database.write(unit)


def _renumber(connection: Connection) -> None:
    """Let PostgreSQL number new rows above those that came with their numbers; SQLite does so by itself."""
    if connection.dialect.name != "postgresql":
        return
    for table in tables_in_order():
        key = table.c.get("id")
        if key is not None and isinstance(key.type, BigInteger):
            highest = connection.execute(select(func.coalesce(func.max(key), 0))).scalar_one()
            connection.execute(
                text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :next, false)"),
                {"name": table.name, "next": highest + 1},
            )


def _open_new(draft: Path) -> gzip.GzipFile:
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.touch(mode=0o600)
    return gzip.open(draft, "wb", compresslevel=3)


def _lines(table: Table, page: list[Record]) -> list[str]:
    return [json.dumps({"table": table.name, "row": dict(row)}, ensure_ascii=False) for row in page]


def _read(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield (table, row) and check the frame as it goes. Raises DumpError."""
    try:
        with gzip.open(path, "rb") as file:
            yield from _rows(file, path)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise DumpError(
            f"{path} is no whole dump ({type(error).__name__}); the database was left as it is. Take another backup."
        ) from error


def _rows(file: gzip.GzipFile, path: Path) -> Iterator[tuple[str, Record]]:
    digest = hashlib.sha256()
    first = file.readline(MOST_LINE_BYTES)
    digest.update(first)
    head = json.loads(first)
    if head["format"] != FORMAT or head["schema"] != VERSION:
        raise DumpError(
            f"{path} is {head['format']!r} with schema {head['schema']!r}; this agent reads {FORMAT!r} with schema "
            f"{VERSION}. The database was left as it is. Restore it with the agent that made it, then upgrade."
        )
    rows = 0
    while line := file.readline(MOST_LINE_BYTES):
        value = json.loads(line)
        if "table" not in value:
            if (value["rows"], value["sha256"]) != (rows, digest.hexdigest()) or file.read(1):
                raise ValueError
            return
        digest.update(line)
        if value["table"] not in metadata.tables:
            raise ValueError
        rows += 1
        yield value["table"], value["row"]
    raise EOFError
