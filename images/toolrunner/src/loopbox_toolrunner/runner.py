"""runner: owns the running of commands: waiting for a free place, gathering output, cancelling, cleaning up."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence

import structlog
from pydantic import BaseModel, ConfigDict, Field

from loopbox_toolrunner.capture import Capture
from loopbox_toolrunner.job import EXIT_KILLED, Job, Limits, Report, pack, parse_report
from loopbox_toolrunner.launcher import Launcher, LaunchError
from loopbox_toolrunner.settings import Settings

log = structlog.get_logger("toolrunner.runner")


class RefusedError(Exception):
    """The call was not started; the text says why and what to do."""


class Outcome(BaseModel):
    """What a command did."""

    model_config = ConfigDict(frozen=True)

    exit_code: int = Field(description="0 is success, 124 out of time, 128 + n killed by signal n")
    stdout: str
    stderr: str
    timed_out: bool
    truncated: bool = Field(description="the middle of stdout or stderr was left out")
    duration_ms: int


class Runner:
    """Runs commands, some at once, each alone with its limits."""

    def __init__(self, settings: Settings, launcher: Launcher, on_spoilt: Callable[[str], None]) -> None:
        self._settings = settings
        self._launcher = launcher
        self._on_spoilt = on_spoilt  #: told when the sandbox cannot be trusted to be clean any more
        self._places = asyncio.Semaphore(settings.concurrent_calls)
        self._waiting = 0
        self._calls: set[asyncio.Task[Outcome]] = set()
        self._closing = False
        asyncio.get_running_loop().add_reader(launcher.fileno(), self._zygote_died)

    async def run(self, argv: Sequence[str], timeout_s: float) -> Outcome:
        """Run a command in the workspace. Cancelled, it kills the command and keeps its place until that is done.

        Raises RefusedError.
        """
        await self._take_place()
        task = asyncio.create_task(self._run(self._job(argv, timeout_s), cancel := asyncio.Event()), name="call")
        self._calls.add(task)
        task.add_done_callback(self._over)
        try:
            return await asyncio.shield(task)
        finally:
            cancel.set()

    async def close(self) -> None:
        """End every call, then the zygote."""
        self._closing = True
        asyncio.get_running_loop().remove_reader(self._launcher.fileno())
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=self._settings.stuck_s)
        await asyncio.to_thread(self._launcher.close)

    async def _take_place(self) -> None:
        if self._places.locked() and self._waiting >= self._settings.waiting_calls:
            raise RefusedError(
                f"{self._settings.concurrent_calls} calls run and {self._waiting} wait already; "
                "nothing was started, try again when one has ended"
            )
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1

    def _over(self, task: asyncio.Task[Outcome]) -> None:
        self._places.release()
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # seen here, when nobody waits any more

    async def _run(self, job: Job, cancel: asyncio.Event) -> Outcome:
        try:
            call = self._launcher.order()
        except LaunchError as error:
            raise RefusedError(str(error)) from error
        out, err = Capture(self._settings.output_bytes), Capture(self._settings.output_bytes)
        reader, writer = await asyncio.open_connection(sock=call.control)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(writer.close)
            ended = [
                await _pour(handle, capture, stack) for handle, capture in ((call.stdout, out), (call.stderr, err))
            ]
            with contextlib.suppress(OSError):
                writer.write(pack(job))
                await writer.drain()
            report = await self._report(reader, writer, cancel, job)
            # Nothing of the call is left, so nobody holds the other ends of these pipes.
            await self._within(asyncio.gather(*ended))
        return _outcome(report, out, err)

    async def _report(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cancel: asyncio.Event, job: Job
    ) -> Report | None:
        """Wait for the report, None when the keeper was killed; pass a cancel on."""
        report = asyncio.create_task(reader.readline(), name="report")
        cancelled = asyncio.create_task(cancel.wait(), name="cancel")
        patience = job.limits.wall_s + job.limits.grace_s + self._settings.stuck_s
        try:
            await asyncio.wait({report, cancelled}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not report.done():
                with contextlib.suppress(OSError):
                    writer.write_eof()  # the keeper takes this as a cancel, and still reports
                await asyncio.wait({report}, timeout=job.limits.grace_s + self._settings.stuck_s)
            if not report.done():
                self._spoil("a call could not be cleaned up")
                return None
            with contextlib.suppress(OSError, ValueError, TypeError):
                return parse_report(report.result())
            return None
        finally:
            report.cancel()
            cancelled.cancel()

    async def _within(self, ended: asyncio.Future[list[None]]) -> None:
        try:
            await asyncio.wait_for(ended, self._settings.stuck_s)
        except TimeoutError:
            self._spoil("the output of a call that has ended is still open")

    def _job(self, argv: Sequence[str], timeout_s: float) -> Job:
        box = self._settings
        return Job(
            argv=tuple(argv),
            directory=str(box.workspace),
            environment=(
                ("HOME", str(box.workspace)),
                ("LANG", "C.UTF-8"),
                ("PATH", box.search_path),
                ("PYTHONUNBUFFERED", "1"),  # what was printed before a kill is then not lost
            ),
            limits=Limits(
                wall_s=min(timeout_s, box.max_timeout_s),
                grace_s=box.grace_s,
                cpu_s=box.cpu_s,
                memory_bytes=box.memory_bytes,
                tasks=box.tasks,
                file_bytes=box.file_bytes,
                open_files=box.open_files,
            ),
        )

    def _zygote_died(self) -> None:
        asyncio.get_running_loop().remove_reader(self._launcher.fileno())
        self._spoil("the process that starts commands was killed")

    def _spoil(self, why: str) -> None:
        if not self._closing:
            log.error("sandbox.spoilt", cause=why)
            self._on_spoilt(why)


class _Sink(asyncio.Protocol):
    """Feeds what a pipe brings to a capture."""

    def __init__(self, capture: Capture, ended: asyncio.Future[None]) -> None:
        self._capture = capture
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        """Take a chunk."""
        self._capture.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 asyncio passes it
        """Take the end."""
        if not self._ended.done():
            self._ended.set_result(None)


async def _pour(handle: int, capture: Capture, stack: contextlib.AsyncExitStack) -> asyncio.Future[None]:
    """Start reading a pipe into a capture; return what is done at its end."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    transport, _ = await loop.connect_read_pipe(lambda: _Sink(capture, ended), os.fdopen(handle, "rb", buffering=0))
    stack.callback(transport.close)
    return ended


def _outcome(report: Report | None, out: Capture, err: Capture) -> Outcome:
    if report is None:
        note = (
            "killed: what watched over the call was killed, or could not be started for want of processes; "
            "nothing of the call is left running"
        )
        report = Report(exit_code=EXIT_KILLED, timed_out=False, note=note, duration_ms=0)
    stderr = err.text()
    if report.note:
        stderr += ("" if not stderr or stderr.endswith("\n") else "\n") + f"[toolrunner] {report.note}\n"
    return Outcome(
        exit_code=report.exit_code,
        stdout=out.text(),
        stderr=stderr,
        timed_out=report.timed_out,
        truncated=out.truncated or err.truncated,
        duration_ms=report.duration_ms,
    )
