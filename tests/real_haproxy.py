"""real_haproxy: a HAProxy process of the distribution on this host, driven as loopd drives the container's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from loopd.gateway import GatewayDownError, Route, Server, ServerState
from loopd.haproxy import GatewayConfigError, HaproxyGateway
from loopd.haproxy_config import GatewayConfig


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def binary() -> str:
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert found, "haproxy is not installed: `make test` installs it"
    return found


def route(server: str, share: int, address: str = "127.0.0.1:9") -> Route:
    return Route(pool="engine", server=server, address=address, share=share)


def agent(address: str = "127.0.0.1:7") -> Route:
    return Route(pool="agent", server="agent", address=address, share=100)


async def check_here(path: Path) -> None:
    """Have the binary of this host check a file."""
    process = await asyncio.create_subprocess_exec(binary(), "-c", "-f", str(path), stderr=asyncio.subprocess.PIPE)
    _, words = await process.communicate()
    if process.returncode:
        raise GatewayConfigError(words.decode())


@dataclass
class RealHaproxy:
    """The process, its directory and its driver."""

    directory: Path
    config: GatewayConfig
    gateway: HaproxyGateway
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config.public_port}"

    @property
    def internal_url(self) -> str:
        return f"http://127.0.0.1:{self.config.internal_port}"

    def configure(self, **changes: int) -> None:
        """Change settings, as a new loopd.toml does; in force at the next ensure_config() or apply()."""
        self.config = replace(self.config, **changes)  # type: ignore[arg-type]  # all fields used here are whole numbers

    async def start(self, *routes: Route) -> None:
        await self.gateway.ensure_config(routes)
        await self.resume()

    async def resume(self) -> None:
        """Start on whatever file is there."""
        with (self.directory / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(binary(), "-W", "-db", "-S", f"{self.directory}/master.sock,mode,600"),
                *("-f", str(self.directory / "haproxy.cfg")),
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(GatewayDownError):
                    await self.gateway.observe()
                    return
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """End master and workers at once, as a crash of the container does."""
        if self.process and self.process.returncode is None:
            for pid in (self.process.pid, *children(self.process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await self.process.wait()

    async def seen(self) -> dict[str, Server]:
        return {f"{s.pool}/{s.server}": s for s in await self.gateway.observe()}

    async def until(self, server: str, state: ServerState) -> None:
        """Wait until the probe has found a server so."""
        async with asyncio.timeout(30):
            while (await self.seen())[server].state is not state:
                await asyncio.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.asynccontextmanager
async def open_haproxy() -> AsyncIterator[RealHaproxy]:
    """Make everything ready for start()."""
    directory = Path(tempfile.mkdtemp(prefix="gw"))  # short, since a unix socket's path is
    config = GatewayConfig(
        public_port=free_port(),
        internal_address="127.0.0.1",
        internal_port=free_port(),
        max_body_bytes=100_000,
        run_dir=str(directory),
        request_s=2,
        hold_s=1,
    )
    gateway = HaproxyGateway(lambda: real.config, directory, check=check_here, uid=None)
    real = RealHaproxy(directory, config, gateway)
    try:
        yield real
    finally:
        await real.kill()
        shutil.rmtree(directory)
