"""Bad input to every route: schemathesis against the OpenAPI document of a loopd that runs, over real TCP.

What the document allows must be taken, what it does not allow refused with a documented status, and nothing may end in
a status of 500 or more. The cases are the same in each run.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from loopd.app import make_directories
from loopd.config import Settings
from loopd.engine import InMemoryEngine, Instance, Unit
from loopd.registry import Registry
from loopd.state import open_database
from loopd.units import SANDBOX_PREFIX, TOOL_SOCKET, layout_of
from running_loopd import running, settings_at
from samples import make_release

EXAMPLES = 60  # of each operation, beside those that schemathesis makes from the document
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "ignored_auth",
)
RESULT = {"exit_code": 0, "stdout": "", "stderr": "", "timed_out": False, "truncated": False, "duration_ms": 1}


@dataclass
class ToolEngine(InMemoryEngine):
    """One whose sandboxes have a tool runner that says yes to everything."""

    sandboxes: Path = Path()
    runners: dict[str, web.AppRunner] = field(default_factory=dict)

    async def apply(self, unit: Unit) -> Instance:
        if unit.name.startswith(SANDBOX_PREFIX) and unit.name not in self.runners:
            app = web.Application()
            app.router.add_get("/health", self._health)
            app.router.add_post("/mcp", self._call)
            runner = self.runners[unit.name] = web.AppRunner(app, access_log=None, shutdown_timeout=0)
            await runner.setup()
            path = self.sandboxes / unit.name.removeprefix(SANDBOX_PREFIX) / TOOL_SOCKET
            await web.UnixSite(runner, str(path)).start()
        return await super().apply(unit)

    async def remove(self, unit: str, *, grace_s: int = 10) -> None:
        if (runner := self.runners.pop(unit, None)) is not None:
            await runner.cleanup()
        await super().remove(unit, grace_s=grace_s)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _call(self, _: web.Request) -> web.Response:
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": {"structuredContent": RESULT}})


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lb"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def loopd(folder: Path) -> AsyncIterator[Settings]:
    settings = settings_at(
        folder, sandbox={"warm": 4, "most": 512, "lease_s": 0.5}, backup={"keep": 2}, max_body_bytes=100_000
    )
    layout = layout_of(settings)
    make_directories(layout)
    async with open_database(layout.state) as database:
        await Registry(database).add(make_release("alpha"), source="alpha.gguf")
    engine = ToolEngine(sandboxes=layout.sandboxes)
    async with running(settings, engine):
        yield settings
    for runner in engine.runners.values():
        await runner.cleanup()


@pytest.mark.parametrize(
    "known", ["", '[parameters]\n"path.reference" = "alpha"\n"path.id" = "1"\n'], ids=["anything", "what there is"]
)
async def test_every_route_keeps_to_the_document_whatever_it_is_sent(
    loopd: Settings, tmp_path: Path, known: str
) -> None:
    """The endless stream of events is left out; the next test asks it."""
    url = f"http://127.0.0.1:{loopd.control_port}"
    token = (loopd.home / "control.token").read_text().strip()
    # Its own list lacks the status for a body that is too large to be looked at.
    statuses = "[400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]"
    (tmp_path / "schemathesis.toml").write_text(
        f"{known}[checks.negative_data_rejection]\nexpected-statuses = {statuses}\n"
    )
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{url}/openapi.json",
        f"--header=Authorization: Bearer {token}",
        f"--checks={','.join(CHECKS)}",
        "--exclude-path=/v1/events/stream",
        "--phases=examples,coverage,fuzzing",
        f"--max-examples={EXAMPLES}",
        "--generation-deterministic",
        "--seed=1",
        "--request-timeout=20",
        "--continue-on-failure",
        "--no-color",
        cwd=tmp_path,  # it keeps its database where it stands
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    _, _, warned = text.partition("Missing test data")  # what was never more than 404
    assert ("{reference}" in warned) is not bool(known), text


async def test_the_stream_of_events_refuses_what_the_document_does_not_allow(loopd: Settings) -> None:
    url = f"http://127.0.0.1:{loopd.control_port}/v1/events/stream"
    token = (loopd.home / "control.token").read_text().strip()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        for bad in ("-1", "x", "1.5", "", "9" * 17, str(2**53 + 1), "%00", "0x1", "٣"):
            async with session.get(f"{url}?after={bad}") as response:
                assert response.status == 422, bad
        for good in ("0", "7", str(2**53)):
            async with session.get(f"{url}?after={good}") as response:
                assert (response.status, response.content_type) == (200, "text/event-stream"), good
        for last in ("x", "-1", "9" * 30, "²"):
            async with session.get(url, headers={"Last-Event-ID": last}) as response:
                assert response.status == 200, last
