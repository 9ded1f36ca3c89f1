"""personal_data: owns what a user may ask of everything kept about them: a copy of it, and its erasure.

Both follow the tables' own keys, so a new table needs no change here. Backups made before an erasure still hold
what was erased, until they are rotated out.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import Connection, Table, delete, func, select, update

from loopbox_agent.database import Database
from loopbox_agent.records import checked_user
from loopbox_agent.table_pages import Record, belonging_to, pages, tables_in_order
from loopbox_agent.tables import metadata

#: Tables without anything about a person.
IMPERSONAL = frozenset({"schema_version"})
#: Columns, beside user_id, that name a person in a row about another: erased by this word, with the row kept.
NAMED_BESIDE = {"quarantine": "decided_by"}
ERASED = "erased"


async def export(database: Database, user: str) -> AsyncIterator[str]:
    """Yield everything about a user as JSON lines, {"table": …, "row": {…}}, from one snapshot.

    Of records about others in which the user is only named, the id and the naming column. Raises InvalidRecordError.
    """
    checked_user(user)
    async with database.snapshot() as reading:
        for table in tables_in_order():
            mine = belonging_to(table, user)
            if mine is not None:
                async for page in pages(reading, table, mine):
                    for row in page:
                        yield _line(table.name, row)
        for name, column in NAMED_BESIDE.items():
            table = metadata.tables[name]
            named = (table.c[column] == user) & (table.c.user_id != user)
            async for page in pages(reading, table, named):
                for row in page:
                    yield _line(name, {"id": row["id"], column: row[column]})


async def erase(database: Database, user: str) -> dict[str, int]:
    """Delete everything about a user, also from the search index; return how many rows went, by table.

    Raises InvalidRecordError. What the user decided about others' held texts stays, without the name.
    """
    checked_user(user)

    def unit(connection: Connection) -> dict[str, int]:
        counts = {table.name: _count(connection, table, user) for table in tables_in_order()}
        for table in tables_in_order():
            if "user_id" in table.c:
                connection.execute(delete(table).where(table.c.user_id == user))
        for name, column in NAMED_BESIDE.items():
            table = metadata.tables[name]
            connection.execute(update(table).where(table.c[column] == user).values({column: ERASED}))
        return {name: count for name, count in counts.items() if count}

    counts = await database.write(unit)
    await database.side.scrub()
    return counts


def _count(connection: Connection, table: Table, user: str) -> int:
    mine = belonging_to(table, user)
    if mine is None:
        return 0
    count: int = connection.execute(select(func.count()).select_from(table).where(mine)).scalar_one()
    return count


def _line(table: str, row: Record | dict[str, Any]) -> str:  # Any: a column's value
    return json.dumps({"table": table, "row": dict(row)}, ensure_ascii=False)
