"""haproxy: owns the HAProxy side of the gateway seam: the runtime socket, and the file it starts from.

The file always equals the last routes applied, so that a HAProxy that died comes up with the same servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from loopd.errors import LoopdError
from loopd.gateway import Applied, GatewayDownError, Pool, Route, Server, ServerState, really_set, route_weights
from loopd.haproxy_config import POOLS, GatewayConfig, render, server_line

ANSWER_BYTES = 4 << 20
COMMAND_S = 5.0
POLL_S = 0.05
SERVERS_ONLY = "show stat -1 4 -1"  # any proxy, type server, any id

log = structlog.get_logger("loopd.haproxy")


class GatewayConfigError(LoopdError):
    """HAProxy refuses the configuration; the one in use was not touched."""

    code = "gateway_config"


class CommandRefusedError(GatewayDownError):
    """HAProxy answered a command with an error."""

    code = "gateway_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Runtime commands that make the servers equal to the routes, in the order they are sent."""

    add: tuple[str, ...]  #: new servers and new addresses
    flip: tuple[str, ...]  #: all weights, rises first; sent as one write
    leave: tuple[str, ...]  #: into maintenance
    delete: tuple[str, ...]  #: may be refused while in use; tried again next time

    @property
    def empty(self) -> bool:
        """Tell whether there is nothing to do."""
        return not (self.add or self.flip or self.leave or self.delete)


def plan_commands(routes: Sequence[Route], observed: Sequence[Server]) -> Plan:
    """Return what turns the observed servers into the wanted ones. Pure. Raises ValueError for what is no server."""
    by_weight = route_weights(routes)
    have = {(server.pool, server.server): server for server in observed}
    add: list[str] = []
    rises: list[str] = []
    falls: list[str] = []
    for route in sorted(routes, key=lambda r: (r.pool, r.server)):
        name = f"{route.pool}/{route.server}"
        weight = by_weight[route.pool, route.server]
        server = have.pop((route.pool, route.server), None)
        line = server_line(route, weight)
        if server is None:
            add += [f"add server {route.pool}/{line}", f"enable health {name}", f"enable server {name}"]
            continue
        if server.address != route.address:
            address, port = route.address.split(":")
            add.append(f"set server {name} addr {address} port {port}")
        if server.state is ServerState.MAINT:
            add.append(f"set server {name} state ready")
        if server.weight != weight:
            # HAProxy may serve requests between two commands of one line: with falls first there is a moment with no
            # server at all, seen as 503s under load.
            (rises if weight > server.weight else falls).append(f"set server {name} weight {weight}")
    leaving = [server for _, server in sorted(have.items())]
    return Plan(
        add=tuple(add),
        flip=(*rises, *falls),
        leave=tuple(f"set server {s.pool}/{s.server} state maint" for s in leaving if s.state is not ServerState.MAINT),
        delete=tuple(f"del server {s.pool}/{s.server}" for s in leaving if s.sessions == 0),
    )


def parse_stat(text: str) -> tuple[Server, ...]:
    """Parse ``show stat`` (CSV). Rows of other proxies or of another form are passed over."""
    servers = []
    rows = csv.DictReader(io.StringIO(text.lstrip("# ")), strict=False)
    for row in _readable(rows):
        pool = next((p for p in POOLS if p == row.get("pxname")), None)
        name = row.get("svname") or ""
        if pool is None or name in ("", "BACKEND", "FRONTEND"):
            continue
        servers.append(
            Server(
                pool=pool,
                server=name,
                address=row.get("addr") or "",
                weight=_number(row.get("weight")),
                sessions=_number(row.get("scur")) + _number(row.get("qcur")),
                state=_state(row.get("status") or ""),
            )
        )
    return tuple(servers)


def _readable(rows: csv.DictReader[str]) -> Iterator[dict[str, str | None]]:
    """Yield rows up to the first that is no CSV."""
    try:
        yield from rows
    except csv.Error as error:
        log.warning("gateway.statistics_unreadable", error=str(error))


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _state(status: str) -> ServerState:
    for prefix, state in (("UP", ServerState.UP), ("DRAIN", ServerState.DRAIN), ("MAINT", ServerState.MAINT)):
        if status.startswith(prefix):
            return state
    return ServerState.UP if status == "no check" else ServerState.DOWN


Checker = Callable[[Path], Awaitable[None]]


class HaproxyGateway:
    """The Gateway over HAProxy's runtime socket."""

    def __init__(
        self, config: Callable[[], GatewayConfig], directory: Path, *, check: Checker, uid: int | None
    ) -> None:
        self._config = config
        self._directory = directory
        self._check = check
        self._uid = uid
        self._socket = directory / "admin.sock"

    async def observe(self) -> tuple[Server, ...]:
        """Return the servers."""
        return parse_stat(await self._ask(SERVERS_ONLY))

    async def apply(self, routes: Sequence[Route]) -> Applied:
        """Make the servers equal to the routes."""
        plan = plan_commands(routes, await self.observe())
        flip_s = 0.0
        if not plan.empty:
            for command in plan.add:
                await self._tell(command)
            if plan.flip:
                started = time.perf_counter()
                await self._tell("; ".join(plan.flip))
                flip_s = time.perf_counter() - started
            for command in plan.leave:
                await self._tell(command)
            for command in plan.delete:
                with contextlib.suppress(CommandRefusedError):  # in use to the end of a stream: next time
                    await self._tell(command)
        await self._write_if_changed(routes)
        return Applied(shares=really_set(routes), changed=not plan.empty, flip_s=flip_s)

    async def wait_idle(self, pool: Pool, server: str, *, deadline_s: float) -> bool:
        """Return True once nothing is in flight, False after ``deadline_s`` seconds."""
        try:
            async with asyncio.timeout(deadline_s):
                while any(  # noqa: ASYNC110 HAProxy tells nobody
                    (s.pool, s.server) == (pool, server) and s.sessions for s in await self.observe()
                ):
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return False
        return True

    async def ensure_config(self, routes: Sequence[Route]) -> bool:
        """Write the file HAProxy starts from, after HAProxy itself has checked it; True when it changed.

        Raises GatewayConfigError with HAProxy's words; the old file stays.
        """
        path = self._directory / "haproxy.cfg"
        text = render(self._config(), routes)
        if await asyncio.to_thread(_read, path) == text:
            return False
        candidate = self._directory / "candidate.cfg"
        await asyncio.to_thread(self._write, candidate, text)
        await self._check(candidate)
        await asyncio.to_thread(candidate.replace, path)
        return True

    async def _write_if_changed(self, routes: Sequence[Route]) -> None:
        """Keep the file equal to what was applied; its form was checked when HAProxy started."""
        path = self._directory / "haproxy.cfg"
        text = render(self._config(), routes)
        if await asyncio.to_thread(_read, path) != text:
            temporary = self._directory / "haproxy.cfg.new"
            await asyncio.to_thread(self._write, temporary, text)
            await asyncio.to_thread(temporary.replace, path)

    def _write(self, path: Path, text: str) -> None:
        with path.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        path.chmod(0o640)
        if self._uid is not None and os.geteuid() == 0:
            os.chown(path, self._uid, self._uid)

    async def _tell(self, command: str) -> None:
        """Send commands that answer nothing, or a sentence that says they worked."""
        answer = (await self._ask(command)).strip()
        if answer and not any(line.startswith(_GOOD) for line in answer.splitlines() if line):
            raise CommandRefusedError(f"the gateway refused `{command}`: {answer[:300]}")

    async def _ask(self, command: str) -> str:
        try:
            async with asyncio.timeout(COMMAND_S):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(f"{command}\n".encode())
                    await writer.drain()
                    answer = bytearray()
                    while chunk := await reader.read(64 << 10):  # HAProxy closes after its answer
                        answer += chunk
                        if len(answer) > ANSWER_BYTES:
                            raise CommandRefusedError(f"the gateway answered {command!r} with too much")
                    return answer.decode(errors="replace")
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError) as error:
            raise GatewayDownError(
                f"the gateway's admin socket does not answer ({error!r}); `loopctl why gateway` says more"
            ) from error


_GOOD = (
    "New server registered",
    "Server deleted",
    "IP changed",
    "port changed",
    "no need to change",
    "nothing changed",
)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
