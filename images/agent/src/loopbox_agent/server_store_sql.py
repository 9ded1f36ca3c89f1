"""server_store_sql: owns users' MCP servers in the database: the side of the seam that outlives the agent."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from loopbox_agent.database import Database
from loopbox_agent.server_store import McpServer
from loopbox_agent.tables import mcp_servers

_MINE = mcp_servers.c.user_id == bindparam("user")
_NAMED = mcp_servers.c.name == bindparam("server")
_LIST = select(mcp_servers.c.body).where(_MINE).order_by(mcp_servers.c.id)
_CHANGE = update(mcp_servers).where(_MINE, _NAMED).values(body=bindparam("text"))
_ADD = insert(mcp_servers)
_DELETE = delete(mcp_servers).where(_MINE, _NAMED)


class SqlServerStore:
    """Keeps users' servers, in the order they were added."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, user: str) -> tuple[McpServer, ...]:
        """Return a user's servers."""
        bodies = await self._database.read(lambda connection: connection.execute(_LIST, {"user": user}).scalars().all())
        return tuple(McpServer.model_validate_json(body) for body in bodies)

    async def put(self, user: str, server: McpServer) -> None:
        """Add a server, or change the one by that name, which keeps its place."""
        body = server.model_dump_json()

        def unit(connection: Connection) -> None:
            changed = connection.execute(_CHANGE, {"user": user, "server": server.name, "text": body})
            if not changed.rowcount:
                connection.execute(_ADD, {"user_id": user, "name": server.name, "body": body})

        await self._database.write(unit)

    async def delete(self, user: str, name: str) -> bool:
        """Remove a server; tell whether it was there."""
        asked = {"user": user, "server": name}
        return bool(await self._database.write(lambda connection: connection.execute(_DELETE, asked).rowcount))
