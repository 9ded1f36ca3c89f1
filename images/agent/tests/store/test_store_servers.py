"""The seam of users' MCP servers: in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest
from pydantic import AnyHttpUrl

from loopbox_agent.database import Database
from loopbox_agent.server_store import McpServer, MemoryServerStore, ServerStore
from loopbox_agent.server_store_sql import SqlServerStore


@pytest.fixture(params=["memory", "database"])
def store(request: pytest.FixtureRequest, database: Database) -> ServerStore:
    return MemoryServerStore() if request.param == "memory" else SqlServerStore(database)


def server(name: str, port: int = 80) -> McpServer:
    return McpServer(name=name, url=AnyHttpUrl(f"http://host:{port}/mcp"), headers={"X-Key": "key-file"})


async def test_servers_keep_the_order_they_were_added_in_and_change_in_place(store: ServerStore) -> None:
    for name in ("b", "a", "c"):
        await store.put("anna", server(name))
    await store.put("anna", server("b", 81))
    await store.put("bert", server("z"))
    assert await store.list("anna") == (server("b", 81), server("a"), server("c"))
    assert await store.list("bert") == (server("z"),)
    assert await store.list("nobody") == ()


async def test_only_ones_own_server_is_removed_and_it_is_told_whether_it_was_there(store: ServerStore) -> None:
    await store.put("anna", server("a"))
    assert await store.delete("bert", "a") is False
    assert await store.delete("anna", "a") is True
    assert await store.delete("anna", "a") is False
    assert await store.list("anna") == ()
