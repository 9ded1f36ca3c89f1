"""schema_version: owns which version the tables have, and the upgrades from one to the next. Forward only.

A new database is made from `tables` as they are now; an older one gets every upgrade above its version, in order, in
one transaction, so whichever fails, the database keeps the version it had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sqlalchemy import Connection, insert, inspect, select, text, update

from loopbox_agent.errors import AgentError
from loopbox_agent.tables import metadata, schema


class SchemaError(AgentError):
    """The database's tables are not this agent's, or a newer one's; nothing was changed."""

    code: ClassVar[str] = "store_schema"
    status: ClassVar[int] = 503


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One step from version `to` - 1."""

    to: int
    statements: Mapping[str, Sequence[str]]  #: SQL by dialect, "sqlite" and "postgresql"


_LEARNING = (
    (
        "CREATE TABLE interactions (id {row}, run_id VARCHAR(64) NOT NULL, user_id VARCHAR(64) NOT NULL,"
        " thread_id VARCHAR(64), outcome VARCHAR(64) NOT NULL, messages TEXT NOT NULL, tools TEXT NOT NULL,"
        " rating VARCHAR(8), comment TEXT NOT NULL, better TEXT NOT NULL, created_at {real} NOT NULL,"
        " CONSTRAINT interactions_once UNIQUE (run_id))"
    ),
    "CREATE INDEX interactions_of_user ON interactions (user_id)",
    "CREATE INDEX interactions_by_age ON interactions (created_at)",
    (
        "CREATE TABLE consents (user_id VARCHAR(64) NOT NULL PRIMARY KEY, learn BOOLEAN NOT NULL,"
        " decided_at {real} NOT NULL)"
    ),
)

VERSION = 2  #: of `tables`
UPGRADES: tuple[Upgrade, ...] = (
    Upgrade(
        2,
        {
            "sqlite": [s.format(row="INTEGER NOT NULL PRIMARY KEY", real="DOUBLE") for s in _LEARNING],
            "postgresql": [s.format(row="BIGSERIAL PRIMARY KEY", real="DOUBLE PRECISION") for s in _LEARNING],
        },
    ),
)


def ensure_schema(
    connection: Connection,
    *,
    version: int = VERSION,
    upgrades: Sequence[Upgrade] = UPGRADES,
    before_upgrade: Callable[[int], None] = lambda _: None,
) -> None:
    """Bring the tables to a version, inside the caller's transaction; before_upgrade is told the old one.

    Raises SchemaError.
    """
    found = _found(connection)
    if found is None:
        metadata.create_all(connection, checkfirst=False)
        connection.execute(insert(schema).values(version=version))
        return
    if found > version:
        raise SchemaError(
            f"The agent's database has schema {found}, this agent knows {version}: the agent is older than its "
            "state. Nothing was changed. Start the newer agent again, or restore a backup that this one made."
        )
    if found < version:
        before_upgrade(found)
        for upgrade in upgrades:
            if found < upgrade.to <= version:
                for statement in upgrade.statements[connection.dialect.name]:
                    connection.execute(text(statement))
        connection.execute(update(schema).values(version=version))


def _found(connection: Connection) -> int | None:
    """Return the database's version, None for an empty database. Raises SchemaError."""
    names = set(inspect(connection).get_table_names())
    if schema.name not in names:
        if names & set(metadata.tables):
            raise SchemaError(
                "The database has tables of these names that are not the agent's. Nothing was changed. "
                "Give the agent a database of its own."
            )
        return None
    version: int | None = connection.execute(select(schema.c.version)).scalar_one_or_none()
    if version is None:
        raise SchemaError(
            "The database does not say which schema it has, so it is damaged. Nothing was changed. "
            "Restore the newest backup."
        )
    return version
