"""haproxy: owns the HAProxy side of the gateway seam: the runtime sockets, and the file HAProxy starts from.

The file is written before the runtime is changed, so a HAProxy that dies comes up with the routes last asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loopd.errors import LoopdError
from loopd.gateway import Applied, Doors, GatewayDownError, Pool, Route, Server, poll_idle, really_set
from loopd.haproxy_auth import REVOKED_FILE
from loopd.haproxy_config import HOLD_FILE, GatewayConfig, description_of, frame_of, hold_script, render
from loopd.haproxy_limits import FILE as LIMITS_FILE
from loopd.haproxy_limits import limits_script
from loopd.haproxy_runtime import (
    RELOAD,
    SHOW_INFO,
    SHOW_PROCESSES,
    SHOW_SERVERS,
    Processes,
    parse_description,
    parse_processes,
    parse_stat,
    plan_commands,
    plan_map,
    refusals,
    with_old_workers,
)

ANSWER_BYTES = 4 << 20  # thousands of servers
COMMAND_S = 5.0
RELOAD_S = 10.0
RELOAD_POLL_S = 0.02  # the master tells nobody when its new worker is ready
DELETE_TRIES = 5  # HAProxy closes the idle connections of a retired server a moment later
DELETE_PAUSE_S = 0.01

FILE = "haproxy.cfg"
FILE_BYTES = 4 << 20

Checker = Callable[[Path], Awaitable[None]]
"""Has HAProxy check a file in the gateway's directory. Raises GatewayConfigError with HAProxy's own words."""


class GatewayConfigError(LoopdError):
    """The configuration cannot be used; the one in use was not touched."""

    code = "gateway_config"


class CommandRefusedError(GatewayDownError):
    """HAProxy refused a command; streams in flight were not touched, and the next apply() starts afresh."""

    code = "gateway_refused"


@dataclass(slots=True)
class HaproxyGateway:
    """The Gateway over HAProxy's runtime sockets."""

    config: Callable[[], GatewayConfig]
    directory: Path  #: as loopd sees it
    check: Checker = field(kw_only=True)
    uid: int | None = field(kw_only=True)  #: who reads the file; None: this process
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _doors: Doors = field(default_factory=lambda: Doors(keys=(), revoked={}), init=False)
    _told: bool = field(default=False, init=False)  #: what runs knows of every revocation
    _routes: Sequence[Route] | None = field(default=None, init=False)  #: last asked for

    async def observe(self) -> tuple[Server, ...]:
        """Return the servers, with the streams that a reload left to an old process."""
        now = parse_stat(await self._ask(SHOW_SERVERS))
        return with_old_workers(now, [await self._left_to(pid) for pid in (await self._processes()).old])

    async def apply(self, routes: Sequence[Route]) -> Applied:
        """Make the servers equal to the routes, and what runs equal to the file.

        Also raises GatewayConfigError, with nothing changed.
        """
        async with self._lock:
            await self._ensure_file(routes)
            await self._ensure_runs()
            plan = plan_commands(routes, parse_stat(await self._ask(SHOW_SERVERS)))
            for command in plan.prepare:
                await self._tell(str(command))
            started = time.perf_counter()
            if plan.flip:
                await self._tell("; ".join(str(command) for command in plan.flip))
            flip_s = time.perf_counter() - started if plan.flip else 0.0
            for retire in plan.retire:
                await self._tell(str(retire))
            for delete in plan.delete:
                await self._delete(str(delete))
            return Applied(shares=really_set(routes), changed=not plan.empty, flip_s=flip_s)

    async def wait_idle(self, pool: Pool, server: str, *, deadline_s: float) -> bool:
        """Return True once nothing is in flight, False after ``deadline_s`` seconds."""
        return await poll_idle(self, pool, server, deadline_s)

    async def ensure_config(self, routes: Sequence[Route]) -> bool:
        """Write the file that HAProxy starts from; True when more than its servers changed.

        HAProxy checks what it has not checked before. One that runs takes the new file at the next apply().
        Raises GatewayConfigError; the old file stays.
        """
        async with self._lock:
            return await self._ensure_file(routes)

    async def admit(self, doors: Doors) -> None:
        """Let in whom the doors say; other keys take a reload, a revocation does not. Also raises GatewayConfigError.

        The files come first, so that a gateway that is down comes up with them.
        """
        async with self._lock:
            self._doors, self._told = doors, False
            try:
                await asyncio.to_thread(self._write_doors)
            except OSError as error:
                raise GatewayDownError(f"the gateway cannot be told whom to let in: {error}") from error
            if self._routes is None:
                raise GatewayDownError("the gateway is told whom to let in together with its first servers")
            await self._ensure_file(self._routes)
            await self._ensure_runs()

    async def _ensure_runs(self) -> None:
        """Make what runs equal to the files, but for the servers."""
        if parse_description(await self._ask(SHOW_INFO)) != description_of(self._config()):
            await self._reload()
        if not self._told and self._config().auth:  # without it nothing reads the map
            path = f"{self._config().run_dir}/{REVOKED_FILE}"
            for line in plan_map(path, self._doors.revoked, await self._ask(f"show map {path}")):
                await self._tell(line)
            self._told = True

    def _config(self) -> GatewayConfig:
        return replace(self.config(), keys=self._doors.keys)

    async def reload(self) -> None:
        """Put the file in use; no request is lost.

        After it only streams that began before are left to the old process. Raises GatewayConfigError.
        """
        async with self._lock:
            await self._reload()

    async def _reload(self) -> None:
        before = await self._processes()
        with contextlib.suppress(GatewayDownError):  # the master leaves before it answers
            await self._ask_master(RELOAD)
        deadline = time.monotonic() + RELOAD_S
        while (now := await self._processes()).attempts == before.attempts:
            if time.monotonic() >= deadline:
                raise GatewayDownError(f"the gateway has not reloaded after {RELOAD_S:g} s; traffic may go on")
            await asyncio.sleep(RELOAD_POLL_S)
        if now.failed > before.failed:
            raise GatewayConfigError("the gateway refused to reload and goes on as it was; its log says why")

    async def _left_to(self, pid: int) -> tuple[Server, ...]:
        """Return the servers as a process sees them that only finishes its streams; none when it just ended."""
        try:
            return parse_stat(await self._ask_master(f"@!{pid} {SHOW_SERVERS}"))
        except GatewayDownError:
            if pid in (await self._processes()).old:
                raise
            return ()

    async def _ensure_file(self, routes: Sequence[Route]) -> bool:
        """Make the file equal to the routes; True when more than its servers changed."""
        self._routes = routes
        config = self._config()
        text = render(config, routes)
        path = self.directory / FILE
        old = await asyncio.to_thread(_read, path)
        if old == text:
            return False
        changed = old is None or frame_of(old) != frame_of(text)
        draft = self.directory / f"{FILE}.new"
        script = self.directory / HOLD_FILE
        try:
            await asyncio.to_thread(self._write, script, hold_script(config))
            await asyncio.to_thread(self._write, self.directory / LIMITS_FILE, limits_script(config.limits))
            await asyncio.to_thread(self._write_doors)
            await asyncio.to_thread(self._write, draft, text)
            if changed:
                await self.check(draft)
            await asyncio.to_thread(self._replace, draft, path)
            await asyncio.to_thread(self._drop_keys)
        except OSError as error:
            raise GatewayConfigError(f"{path} cannot be written ({error}); the gateway goes on as it was") from error
        return changed

    def _write_doors(self) -> None:
        """Write what the configuration reads beside itself: each key, and the revoked tokens."""
        for key in self._doors.keys:
            if _read(self.directory / key.file) != key.pem:
                self._put(key.file, key.pem)
        text = "".join(f"{jti} {until}\n" for jti, until in sorted(self._doors.revoked.items()))
        if _read(self.directory / REVOKED_FILE) != text:
            self._put(REVOKED_FILE, text)

    def _drop_keys(self) -> None:
        """Remove keys that the configuration no longer names."""
        named = {key.file for key in self._doors.keys}
        for path in self.directory.glob("jwt-*.pem"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def _put(self, name: str, text: str) -> None:
        draft = self.directory / f"{name}.new"
        self._write(draft, text)
        self._replace(draft, self.directory / name)

    def _write(self, path: Path, text: str) -> None:
        with path.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        path.chmod(0o640)
        if self.uid is not None and os.geteuid() == 0:
            os.chown(path, self.uid, self.uid)

    def _replace(self, draft: Path, path: Path) -> None:
        draft.replace(path)
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    async def _delete(self, command: str) -> None:
        """Delete a server; one that is still in use leaves at a later apply()."""
        for _ in range(DELETE_TRIES):
            with contextlib.suppress(CommandRefusedError):
                return await self._tell(command)
            await asyncio.sleep(DELETE_PAUSE_S)
        return None

    async def _processes(self) -> Processes:
        """Return the processes. While a master starts or reloads it is deaf, which must not look like "no streams"."""
        deadline = time.monotonic() + RELOAD_S
        while True:
            try:
                return parse_processes(await self._ask_master(SHOW_PROCESSES))
            except GatewayDownError:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(RELOAD_POLL_S)

    async def _tell(self, command: str) -> None:
        """Send commands of one line that change something. Raises CommandRefusedError."""
        if refused := refusals(await self._ask(command)):
            raise CommandRefusedError(f"the gateway refused `{command}`: {' '.join(refused)[:300]}")

    async def _ask(self, command: str) -> str:
        return await _converse(self.directory / "admin.sock", command)

    async def _ask_master(self, command: str) -> str:
        return await _converse(self.directory / "master.sock", command)


async def _converse(path: Path, command: str) -> str:
    """Send one line and return all that comes back until HAProxy closes. Raises GatewayDownError."""
    try:
        async with asyncio.timeout(COMMAND_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(f"{command}\n".encode())
                writer.write_eof()
                answer = bytearray()
                while chunk := await reader.read(64 << 10):
                    answer += chunk
                    if len(answer) > ANSWER_BYTES:
                        raise CommandRefusedError(f"the gateway answered `{command}` with more than {ANSWER_BYTES} B")
                return answer.decode(errors="replace")
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        raise GatewayDownError(
            f"the gateway does not answer at {path.name} ({error!r}); traffic may go on, "
            "`loopctl why gateway` says more"
        ) from error


def _read(path: Path) -> str | None:
    try:
        with path.open() as file:
            return file.read(FILE_BYTES)
    except (FileNotFoundError, UnicodeDecodeError):
        return None
