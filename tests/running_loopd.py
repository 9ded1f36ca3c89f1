"""running_loopd: a whole loopd on real sockets and real files, over the in-memory engine and gateway."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from loopd.app import Host, run
from loopd.config import Settings
from loopd.engine import InMemoryEngine
from loopd.gateway import InMemoryGateway, Route
from loopd.images import ImageSet
from loopd.notify import Notifier

IMAGES = ImageSet(
    base="loopbox/base:1",
    gateway="loopbox/gateway:1",
    ollama="loopbox/ollama:1",
    agent="loopbox/agent:1",
    toolrunner="loopbox/toolrunner:1",
    egress="loopbox/egress:1",
    trainer="loopbox/trainer:1",
)


class Gateway(InMemoryGateway):
    """One whose configuration needs no file."""

    async def ensure_config(self, routes: Sequence[Route]) -> bool:
        return False


def free_ports(number: int) -> list[int]:
    """Return ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(number)]
        for sock in found:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in found]


def settings_at(folder: Path, **more: object) -> Settings:
    """Return settings for a loopd below a folder with a short path."""
    public, internal, control = free_ports(3)
    given = {
        "home": folder / "home",
        "run_dir": folder / "run",
        "public_port": public,
        "internal_port": internal,
        "control_port": control,
        "relist_s": 0.2,
        "sandbox": {"warm": 0},
    }
    return Settings.model_validate({**given, **more})


@contextlib.asynccontextmanager
async def running(settings: Settings, engine: InMemoryEngine | None = None) -> AsyncIterator[InMemoryEngine]:
    """Run loopd until the context ends. Raises what its start raises."""
    engine = engine or InMemoryEngine()
    engine.images.update({tag: f"sha256:{tag}" for tag in IMAGES.tags()})
    (settings.run_dir / "broker" / "broker.sock").unlink(missing_ok=True)  # of a life before: the last to be opened
    stop = asyncio.Event()
    ended = asyncio.create_task(run(settings, IMAGES, Host(engine, Gateway(), Notifier("")), stop))
    async with asyncio.timeout(20):
        while not ended.done() and not (settings.run_dir / "broker" / "broker.sock").exists():
            await asyncio.sleep(0.01)
    if ended.done():
        await ended
    try:
        yield engine
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await ended
