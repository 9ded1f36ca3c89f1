"""The audit trail: chained, written once, pruned without losing its proof, and fed by the gateway and the agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.audit import MOST_WAITING, AuditError, Record, Trail, open_trail
from loopd.ledger import Ledger
from loopd.state import open_database
from loopd.tap import parse_request
from running_loopd import running, settings_at


def record(number: int, **more: object) -> Record:
    return Record(event="tool.called", user="anna", subject=f"t{number}", detail={"n": number}, **more)  # type: ignore[arg-type]


@pytest.fixture
async def trail(tmp_path: Path) -> AsyncIterator[Trail]:
    async with open_trail(tmp_path / "audit.db", keep_days=30, most=1_000_000) as opened:
        yield opened


def tamper(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)
        connection.commit()


async def test_entries_are_chained_and_read_in_order(trail: Trail) -> None:
    await trail.write([record(n) for n in range(5)])
    trail.add(record(5))
    assert (await trail.verify()).ok
    assert [e.subject for e in await trail.read(event="tool.")] == [f"t{n}" for n in range(6)]
    assert [e.subject for e in await trail.last(2)] == ["t4", "t5"]
    assert await trail.read(user="bert") == []


async def test_one_key_is_written_once(trail: Trail) -> None:
    first = await trail.write([record(1, source="agent", key="a"), record(2, source="agent", key="a")])
    again = await trail.write([record(1, source="agent", key="a"), record(3, source="agent", key="b")])
    assert [[r.subject for r in wrote] for wrote in (first, again)] == [["t1"], ["t3"]]
    assert (await trail.verify()).ok


@pytest.mark.parametrize(
    ("harm", "where"),
    [
        ("UPDATE entries SET user = 'bert' WHERE seq = 3", 3),
        ("UPDATE entries SET detail = '{\"n\": 7}' WHERE seq = 4", 4),
        ("UPDATE entries SET at = '2020-01-01' WHERE seq = 2", 2),
        ("DELETE FROM entries WHERE seq = 3", 3),
        ("DELETE FROM entries WHERE seq = 1", 1),
        ("UPDATE entries SET seq = 99 WHERE seq = 5", 5),
        ("INSERT INTO entries SELECT 77, at, 'x', key, event, user, subject, '', detail, hash FROM entries LIMIT 1", 7),
    ],
)  # fmt: skip
async def test_tampering_is_found_where_it_is(trail: Trail, tmp_path: Path, harm: str, where: int) -> None:
    await trail.flush()
    await trail.write([record(n) for n in range(5)])
    tamper(tmp_path / "audit.db", harm)
    found = await trail.verify()
    assert (found.ok, found.first_bad) == (False, where)
    assert found.why


async def test_a_trail_that_was_written_anew_does_not_fit_the_ledger(tmp_path: Path) -> None:
    """Guards against somebody who recomputes every hash, or cuts the end off."""
    async with open_database(tmp_path / "state.db") as database:
        ledger = Ledger(database)
        async with open_trail(tmp_path / "a.db", keep_days=30, most=1000) as real:
            await real.write([record(n) for n in range(5)])
            assert await real.anchor(ledger) == 6
            assert await real.anchor(ledger, after=6) == 6
            anchors = [(int(str(e.detail["seq"])), str(e.detail["hash"])) for e in await ledger.read()]
            assert len(anchors) == 1
            assert (await real.verify(anchors)).ok
            tamper(tmp_path / "a.db", "DELETE FROM entries WHERE seq > 3")
            assert (await real.verify(anchors)).first_bad == 4
            assert (await real.verify()).ok  # the trail alone cannot tell
        async with open_trail(tmp_path / "b.db", keep_days=30, most=1000) as forged:
            await forged.write([record(n) for n in range(10, 15)])
            assert (await forged.verify(anchors)).first_bad == 6


async def test_what_is_old_goes_and_the_rest_still_proves_itself(tmp_path: Path) -> None:
    old = (datetime.now(UTC) - timedelta(days=40)).isoformat()
    async with open_trail(tmp_path / "audit.db", keep_days=30, most=1000) as trail:
        await trail.write([record(n, at=old) for n in range(5)])
        await trail.write([record(n) for n in range(5, 8)])
        await trail._threaded(trail._prune)
        assert [e.subject for e in await trail.read(event="tool.")] == ["t5", "t6", "t7"]
        assert (await trail.verify()).ok
        tamper(tmp_path / "audit.db", "DELETE FROM entries WHERE seq = (SELECT min(seq) FROM entries)")
        assert not (await trail.verify()).ok


async def test_more_than_may_be_kept_goes_oldest_first(tmp_path: Path) -> None:
    async with open_trail(tmp_path / "audit.db", keep_days=30, most=10) as trail:
        await trail.write([record(n) for n in range(30)])
        await trail._threaded(trail._prune)
        assert [e.subject for e in await trail.read()] == [f"t{n}" for n in range(20, 30)]
        await trail.write([record(30)])
        assert (await trail.verify()).ok


async def test_a_flood_is_counted_and_costs_no_memory(trail: Trail) -> None:
    for n in range(MOST_WAITING + 7):
        trail.add(record(n))
    await trail.flush()
    [told] = await trail.read(event="audit.dropped")
    assert told.detail == {"entries": 7}


async def test_the_trail_says_since_when_it_was_blind(tmp_path: Path) -> None:
    async with open_trail(tmp_path / "audit.db", keep_days=30, most=1000) as trail:
        await trail.write([record(1)])
        [last] = await trail.last(1)
    async with open_trail(tmp_path / "audit.db", keep_days=30, most=1000) as trail:
        await trail.flush()
        [_, began] = await trail.read(event="audit.began")
        assert began.detail == {"blind_since": last.at}
        assert (await trail.verify()).ok


async def test_a_file_that_is_no_trail_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 20)
    with pytest.raises(AuditError, match="left as it is"):
        async with open_trail(path, keep_days=30, most=1000):
            pass
    assert path.read_bytes().startswith(b"no database")


LINE = {
    "timestamp": "2026-11-21T11:00:00Z", "correlation_id": "0123456789abcdef", "frontend": "public",
    "client": "127.0.0.1", "method": "POST", "path": "/agents/run-agent", "status": 200, "pool": "agent",
    "server": "agent", "total_ms": "12", "bytes": "345", "end": "--", "user": "anna",
}  # fmt: skip


def test_a_request_is_told_of() -> None:
    told = parse_request(json.dumps(LINE).encode())
    assert told is not None
    assert (told.user, told.subject, told.detail["status"], told.detail["ms"]) == (
        "anna",
        "POST /agents/run-agent",
        200,
        12,
    )


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_line_breaks_the_reader(raw: bytes) -> None:
    parse_request(raw)


async def test_requests_and_what_the_agent_did_are_in_the_trail_of_a_running_loopd() -> None:
    base = Path(tempfile.mkdtemp(prefix="lb"))  # a unix socket's path is short
    settings = settings_at(base)
    entry = {
        "id": "run_1:3", "at": "2026-11-21T11:00:00.5Z", "event": "tool.called", "user": "anna",
        "subject": "bash", "correlation_id": "0123456789abcdef", "detail": {"ok": True},
    }  # fmt: skip
    async with running(settings), contextlib.AsyncExitStack() as stack:
        broker, control = [
            await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))))
            for path in (settings.run_dir / "broker" / "broker.sock", settings.run_dir / "control.sock")
        ]
        for _ in range(2):
            async with broker.post("http://loopd/v1/audit", json={"entries": [entry]}) as response:
                assert response.status == 204, await response.text()
        async with broker.get("http://loopd/v1/audit") as response:
            assert response.status == 405  # the agent adds, and reads nothing
        for wrong in ({"event": "Bad Event"}, {"user": "a b"}, {"detail": {"X": 1}}, {"id": ""}):
            async with broker.post("http://loopd/v1/audit", json={"entries": [entry | wrong]}) as response:
                assert response.status == 422
        await asyncio.to_thread(_send, settings.run_dir / "gateway" / "answers.sock", json.dumps(LINE).encode())
        async with asyncio.timeout(10):
            while True:
                async with control.get("http://loopd/v1/audit?limit=100") as response:
                    events = [e["event"] for e in (await response.json())["entries"]]
                if "request.answered" in events:
                    break
                await asyncio.sleep(0.02)
        assert events.count("tool.called") == 1
        async with control.get("http://loopd/v1/audit/users/anna") as response:
            assert {e["event"] for e in (await response.json())["entries"]} == {"tool.called", "request.answered"}
        async with control.post("http://loopd/v1/audit/verify") as response:
            assert (await response.json())["ok"] is True
        tamper(settings.home / "audit.db", "UPDATE entries SET user = 'x' WHERE event = 'tool.called'")
        async with control.post("http://loopd/v1/audit/verify") as response:
            verdict = await response.json()
        assert (verdict["ok"], verdict["why"]) == (False, "it was changed after it was written")
    shutil.rmtree(base)


def _send(path: Path, data: bytes) -> None:
    import socket  # noqa: PLC0415 used here alone

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(data, str(path))
