"""runner: owns the running of commands: waiting for a free place, gathering output, cancelling, cleaning up."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field

from loopbox_toolrunner import bubblewrap
from loopbox_toolrunner.capture import Capture
from loopbox_toolrunner.egress import Egress
from loopbox_toolrunner.job import EXIT_KILLED, Job, Limits, Report, pack, parse_report
from loopbox_toolrunner.launcher import Launcher, LaunchError
from loopbox_toolrunner.outputs import Outputs, Spool
from loopbox_toolrunner.settings import Settings

PROBE_S = 5.0

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
    stdout_bytes: int | None = Field(default=None, description="of the whole stdout, where the middle was left out")
    stderr_bytes: int | None = Field(default=None, description="of the whole stderr, where the middle was left out")
    output_file: str | None = Field(default=None, description="file in the workspace that holds the whole stdout")
    error_file: str | None = Field(default=None, description="file in the workspace that holds the whole stderr")


@dataclass(frozen=True, slots=True)
class Pipe:
    """One output of a command: what is shown of it, and where the rest goes."""

    capture: Capture
    spool: Spool | None

    def feed(self, data: bytes) -> None:
        """Take a chunk."""
        self.capture.feed(data)
        if self.spool is not None:
            self.spool.feed(data)

    @property
    def file(self) -> str | None:
        """The file that holds it."""
        return (self.spool.name or None) if self.spool is not None else None

    def text(self) -> str:
        """Return what is shown."""
        if self.spool is None or not self.spool.name:
            return self.capture.text()
        whole = self.spool.saved == self.capture.total
        return self.capture.text(f"; {self.spool.name} holds {'all' if whole else f'the first {self.spool.saved}'}")


class Runner:
    """Runs commands, some at once, each alone with its limits."""

    def __init__(
        self,
        settings: Settings,
        launcher: Launcher,
        on_spoilt: Callable[[str], None],
        egress: Egress | None = None,
    ) -> None:
        self._settings = settings
        self._egress = egress
        self._outputs = Outputs(
            settings.workspace, most_files=settings.kept_outputs, most_bytes=settings.kept_output_bytes
        )
        self.wrapped = False  #: each call runs in namespaces of its own
        self._launcher = launcher
        self._on_spoilt = on_spoilt  #: told when the sandbox cannot be trusted to be clean any more
        self._places = asyncio.Semaphore(settings.concurrent_calls)
        self._waiting = 0
        self._calls: set[asyncio.Task[Outcome]] = set()
        self._closing = False
        asyncio.get_running_loop().add_reader(launcher.fileno(), self._zygote_died)

    async def probe(self) -> None:
        """Find out whether bubblewrap works here, by what every call would do."""
        if not Path(bubblewrap.PROGRAM).exists():
            return
        self.wrapped = True
        tried = await self.run(["true"], PROBE_S)
        self.wrapped = tried.exit_code == 0
        log.info("bubblewrap.probed", works=self.wrapped, said=tried.stderr[:200])

    async def run(
        self, argv: Sequence[str], timeout_s: float, *, stdin: int | None = None, shown: int = 0, keep: bool = False
    ) -> Outcome:
        """Run a command in the workspace. Cancelled, it kills the command and keeps its place until that is done.

        stdin: a handle, closed here once the command has it. shown: bytes of each output, 0 for the setting's.
        keep: a longer output becomes a file. Raises RefusedError.
        """
        limits = self.limits(min(timeout_s, self._settings.max_timeout_s))
        shown = shown or self._settings.output_bytes
        pipes = [Pipe(Capture(shown), self._outputs.spool(kind, shown) if keep else None) for kind in ("out", "err")]
        try:
            await self._take_place()
        except BaseException:
            _close(stdin)
            raise
        call = self._run(argv, limits, cancel := asyncio.Event(), stdin, pipes)
        return await self._shielded(asyncio.create_task(call, name="call"), cancel, self._places.release)

    async def run_beside(self, argv: Sequence[str], limits: Limits, *, stdin: int, stop: asyncio.Event) -> Outcome:
        """Run a command that outlives calls, and so takes no place of theirs, until it ends or ``stop`` is set.

        stdin: a handle, closed here once the command has it. Returns when nothing of it is left. Raises RefusedError.
        """
        pipes = [Pipe(Capture(self._settings.output_bytes), None) for _ in range(2)]
        call = self._run(argv, limits, stop, stdin, pipes)
        return await self._shielded(asyncio.create_task(call, name="beside"), stop, lambda: None)

    def limits(self, wall_s: float) -> Limits:
        """Return the limits of one call."""
        box = self._settings
        return Limits(
            wall_s=wall_s,
            grace_s=box.grace_s,
            cpu_s=box.cpu_s,
            memory_bytes=box.memory_bytes,
            tasks=box.tasks,
            file_bytes=box.file_bytes,
            open_files=box.open_files,
        )

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

    async def _shielded(
        self, task: asyncio.Task[Outcome], cancel: asyncio.Event, at_end: Callable[[], None]
    ) -> Outcome:
        """Wait for a call; when nobody waits any more it is cancelled, and cleans up by itself."""

        def over(task: asyncio.Task[Outcome]) -> None:
            at_end()
            self._calls.discard(task)
            if not task.cancelled():
                task.exception()  # seen here, when nobody waits any more

        self._calls.add(task)
        task.add_done_callback(over)
        try:
            return await asyncio.shield(task)
        finally:
            cancel.set()

    async def _run(
        self, argv: Sequence[str], limits: Limits, cancel: asyncio.Event, stdin: int | None, pipes: Sequence[Pipe]
    ) -> Outcome:
        try:
            job = self._job(argv, limits, await self._egress.environment() if self._egress else {})
            call = self._launcher.order(stdin)
        except LaunchError as error:
            raise RefusedError(str(error)) from error
        finally:
            _close(stdin)
        reader, writer = await asyncio.open_connection(sock=call.control)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(writer.close)
            for pipe in pipes:
                if pipe.spool is not None:
                    stack.callback(pipe.spool.close)
            ended = [await _pour(end, pipe, stack) for end, pipe in zip((call.stdout, call.stderr), pipes, strict=True)]
            with contextlib.suppress(OSError):
                writer.write(pack(job))
                await writer.drain()
            report = await self._report(reader, writer, cancel, job)
            # Nothing of the call is left, so nobody holds the other ends of these pipes.
            await self._within(asyncio.gather(*ended))
        return _outcome(report, *pipes)

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

    def _job(self, argv: Sequence[str], limits: Limits, environment: Mapping[str, str]) -> Job:
        box = self._settings
        if self.wrapped:
            argv = bubblewrap.wrap(argv, workspace=box.workspace, hidden=box.socket.parent)
        return Job(
            argv=tuple(argv),
            directory=str(box.workspace),
            environment=(
                ("HOME", str(box.workspace)),
                ("LANG", "C.UTF-8"),
                ("PATH", box.search_path),
                ("PYTHONUNBUFFERED", "1"),  # what was printed before a kill is then not lost
                *environment.items(),
            ),
            limits=limits,
        )

    def _zygote_died(self) -> None:
        asyncio.get_running_loop().remove_reader(self._launcher.fileno())
        self._spoil("the process that starts commands was killed")

    def _spoil(self, why: str) -> None:
        if not self._closing:
            log.error("sandbox.spoilt", cause=why)
            self._on_spoilt(why)


class _Sink(asyncio.Protocol):
    """Feeds what a pipe brings."""

    def __init__(self, pipe: Pipe, ended: asyncio.Future[None]) -> None:
        self._pipe = pipe
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        """Take a chunk."""
        self._pipe.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 asyncio passes it
        """Take the end."""
        if not self._ended.done():
            self._ended.set_result(None)


async def _pour(handle: int, pipe: Pipe, stack: contextlib.AsyncExitStack) -> asyncio.Future[None]:
    """Start reading a pipe; return what is done at its end."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    transport, _ = await loop.connect_read_pipe(lambda: _Sink(pipe, ended), os.fdopen(handle, "rb", buffering=0))
    stack.callback(transport.close)
    return ended


def _close(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _outcome(report: Report | None, out: Pipe, err: Pipe) -> Outcome:
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
        truncated=out.capture.truncated or err.capture.truncated,
        duration_ms=report.duration_ms,
        stdout_bytes=out.capture.total if out.capture.truncated else None,
        stderr_bytes=err.capture.total if err.capture.truncated else None,
        output_file=out.file,
        error_file=err.file,
    )
