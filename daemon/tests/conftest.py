"""Fixtures for the daemon's unit tests: a real state.db in a temporary folder, everything else in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loopd.ledger import Ledger
from loopd.registry import Registry
from loopd.release import Release
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


def make_release(name: str = "alpha") -> Release:
    return Release(
        name=name,
        engine_image="sha256:engine",
        gguf_sha256=name.encode().hex().ljust(64, "0"),
        size_bytes=1000,
        architecture="llama",
        template="{{ .Prompt }}",
        stop=("</s>",),
        num_ctx=2048,
    )
