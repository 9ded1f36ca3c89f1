"""browser: owns the sandbox's one browser: started at its first use, asked in order, ended when it does not answer.

It is a worker process under the tool runner's keeper, which lets nothing of it outlive it. A line on a socket asks, a
line answers; the end of the socket is the end of the browser.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog

from loopbox_browser.protocol import LINE_BYTES, READY, pack, parse
from loopbox_toolrunner.runner import Outcome, RefusedError
from loopbox_toolrunner.tool import Seat, ToolError

MIB = 1 << 20
START_S = 30.0
END_S = 1.0  # for a worker to see that it was hung up on
LIFE_S = 24 * 3600.0
MEMORY_BYTES = 768 * MIB  # of a container with 1 GiB
TASKS = 208  # threads mostly; of a container with 256
OPEN_FILES = 2048
CPU_S = 3600  # of each process
WATCH_S = 0.25  # a look at 150 threads takes 2 ms
OPENS = "browser_navigate opens one"

log = structlog.get_logger("browser")


class Browser:
    """The browser, running or not."""

    def __init__(self, seat: Seat, worker: Sequence[str]) -> None:
        self._seat = seat
        self._worker = tuple(worker)
        self._turn = asyncio.Lock()
        self._run: asyncio.Task[Outcome] | None = None
        self._stop = asyncio.Event()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._granted = False

    @property
    def running(self) -> bool:
        """Whether there is one that can be asked."""
        return self._writer is not None and self._run is not None and not self._run.done()

    async def ask(self, what: str, arguments: dict[str, Any], seconds: float, *, opens: bool = False) -> dict[str, Any]:
        """Have the browser do one thing. Any: JSON.

        opens: starts a browser where there is none. Cancelled, it ends the browser. Raises ToolError, RefusedError.
        """
        async with self._turn:
            if self.running and self._granted != self._seat.egress.granted:
                await self._end()  # how it reaches the network is told to a browser at its start
            if not self.running:
                if not opens:
                    raise ToolError(f"no page is open; {OPENS}")
                await self._start()
            try:
                async with asyncio.timeout(seconds):
                    answer = await self._exchange({"do": what, **arguments})
                    if answer.get("stuck"):
                        raise TimeoutError  # noqa: TRY301 as if it had not answered at all
            except TimeoutError as error:
                await self._end()
                raise ToolError(
                    f"the page did not answer in time; the browser was ended and its pages are gone, "
                    f"the workspace is as it was. {OPENS}"
                ) from error
            except (OSError, ValueError, EOFError) as error:
                await self._end()
                raise ToolError(f"the browser ended while it did this, for want of memory perhaps; {OPENS}") from error
            except asyncio.CancelledError:
                self._hang_up()
                raise
        if "error" in answer:
            raise ToolError(str(answer["error"]))
        return answer

    async def close(self) -> bool:
        """End the browser; tell whether there was one."""
        async with self._turn:
            was = self.running
            await self._end()
        return was

    async def _exchange(self, said: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        if self._reader is None or self._writer is None:
            raise EOFError
        self._writer.write(pack(said))
        await self._writer.drain()
        return await self._line(self._reader)

    async def _line(self, reader: asyncio.StreamReader) -> dict[str, Any]:  # Any: JSON
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return parse(line)

    async def _start(self) -> None:
        await self._end()  # of one that crashed or was hung up on: its memory first
        ours, theirs = socket.socketpair()
        limits = replace(
            self._seat.runner.limits(LIFE_S),
            memory_bytes=MEMORY_BYTES,
            tasks=TASKS,
            open_files=OPEN_FILES,
            cpu_s=CPU_S,
            watch_s=WATCH_S,
        )
        self._granted = self._seat.egress.granted
        self._stop = asyncio.Event()
        run = self._seat.runner.run_beside(self._worker, limits, stdin=theirs.detach(), stop=self._stop)
        self._run = asyncio.create_task(run, name="browser")
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES)
        try:
            async with asyncio.timeout(START_S):
                await self._expect_ready(self._reader)
        except (TimeoutError, OSError, ValueError, EOFError) as error:
            why = await self._end()
            log.warning("browser.start_failed", cause=why[-500:])
            raise ToolError(f"the browser could not be started: {why[-300:] or 'it did not answer'}") from error
        except asyncio.CancelledError:
            self._hang_up()
            raise
        log.info("browser.started", network=self._granted)

    async def _expect_ready(self, reader: asyncio.StreamReader) -> None:
        if await self._line(reader) != READY:
            raise EOFError

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _end(self) -> str:
        """Have nothing of it left; return what it last complained of."""
        self._hang_up()
        run, self._run = self._run, None
        if run is None:
            return ""
        try:
            await asyncio.wait({run}, timeout=END_S)
            self._stop.set()  # the hard way, when it did not end by itself
            return (await run).stderr
        except RefusedError as error:
            return str(error)
