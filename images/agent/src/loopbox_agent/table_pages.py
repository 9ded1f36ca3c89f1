"""table_pages: owns reading a whole table, or a user's share of it, page by page in the order of its key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, select, tuple_

from loopbox_agent.group_commit import Unit
from loopbox_agent.tables import metadata

PAGE = 500  #: rows

Record = Mapping[str, Any]  # Any: a column's value: text, number, truth or None
Reading = Callable[[Unit[list[Record]]], Awaitable[list[Record]]]


async def pages(
    reading: Reading, table: Table, where: ColumnElement[bool] | None = None
) -> AsyncIterator[list[Record]]:
    """Yield the rows of a table as records, a page at a time. reading: of a snapshot, so that pages fit together."""
    keys = list(table.primary_key.columns)
    last: tuple[object, ...] | None = None
    while True:
        wanted = select(table).order_by(*keys).limit(PAGE)
        if where is not None:
            wanted = wanted.where(where)
        if last is not None:
            wanted = wanted.where(tuple_(*keys) > tuple_(*last))
        page = await reading(_all(wanted))
        if page:
            yield page
            last = tuple(page[-1][key.name] for key in keys)
        if len(page) < PAGE:
            return


def _all(wanted: Any) -> Unit[list[Record]]:  # Any: a Select of some columns
    def unit(connection: Connection) -> list[Record]:
        return [dict(row) for row in connection.execute(wanted).mappings()]

    return unit


def belonging_to(table: Table, user: str) -> ColumnElement[bool] | None:
    """Return which rows of a table are a user's: by its own user_id, or by a foreign key towards one; None for none."""
    if "user_id" in table.c:
        return table.c.user_id == user
    found: ColumnElement[bool] | None = None
    for key in table.foreign_keys:
        if (theirs := belonging_to(key.column.table, user)) is not None:
            mine = key.parent.in_(select(key.column).where(theirs))
            found = mine if found is None else found | mine
    return found


def tables_in_order() -> list[Table]:
    """Return the tables, those that others point to first."""
    return list(metadata.sorted_tables)
