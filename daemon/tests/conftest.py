"""Fixtures for the daemon's unit tests: a real state.db in a temporary folder, everything else in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loopd.ledger import Ledger
from loopd.registry import Registry
from loopd.state import Database, open_database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "state.db") as opened:
        yield opened


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database)
