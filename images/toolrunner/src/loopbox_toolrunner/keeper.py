"""keeper: owns one call: it starts the command, watches its limits, and leaves when no process of it is left.

A keeper is its command's subreaper: whatever forks twice or calls setsid becomes the keeper's child when its parent
ends. So "no child left" means "no descendant left", which no look into /proc could prove.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from types import FrameType

from loopbox_toolrunner.command import become
from loopbox_toolrunner.job import EXIT_KILLED, EXIT_TIMED_OUT, Job, Limits, Report, pack, parse_job
from loopbox_toolrunner.processes import (
    PR_SET_CHILD_SUBREAPER,
    descendants,
    memory_of,
    scan,
    set_process_option,
    signal_all,
)

SWEEP_S = 0.004
JOB_BYTES = 4 << 20
JOB_WAIT_S = 10.0
FORK_TRIES = 100
FORK_WAIT_S = 0.01


def keep(control: socket.socket, stdout: int, stderr: int, stdin: int | None = None) -> None:
    """Read a job from ``control``, run it, report on ``control``. A closed control is a cancel."""
    set_process_option(PR_SET_CHILD_SUBREAPER, 1)
    job = _receive(control)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, _noted)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    child = _fork()
    if child == 0:
        become(job, stdout, stderr, stdin)
    for handle in (stdout, stderr) if stdin is None else (stdout, stderr, stdin):
        os.close(handle)
    report = Keeper(child, job.limits, control, wake_read).watch()
    with contextlib.suppress(OSError):  # a client that is gone reads no report
        control.sendall(pack(report))


class Keeper:
    """Watches one running command to its end."""

    def __init__(self, child: int, limits: Limits, control: socket.socket, wake: int) -> None:
        self._child = child
        self._limits = limits
        self._control = control
        self._wake = wake
        self._status: int | None = None  #: of the first process
        self._alone = False  #: no child is left
        self._poller = select.poll()
        self._poller.register(wake, select.POLLIN)
        self._poller.register(control, select.POLLIN)

    def watch(self) -> Report:
        """Wait for the end, or bring it about, and clean up."""
        started = time.monotonic()
        timed_out, note = False, ""
        while not self._ended():
            left = started + self._limits.wall_s - time.monotonic()
            cancelled = self._wait(max(0.0, min(self._limits.watch_s, left)))
            if self._ended():
                break
            timed_out = time.monotonic() >= started + self._limits.wall_s
            note = f"stopped: not done after {self._limits.wall_s:g} s" if timed_out else ""
            if cancelled:
                note = "stopped: the client went away"
            if note:
                self._ask_to_end()
                break
            note = self._overrun()
            if note:
                break
        duration_ms = round((time.monotonic() - started) * 1000)
        self._sweep()
        exit_code, cause = explain(self._status or 0, self._limits)
        if note:
            exit_code = EXIT_TIMED_OUT if timed_out else EXIT_KILLED
        return Report(exit_code=exit_code, timed_out=timed_out, note=note or cause, duration_ms=duration_ms)

    def _wait(self, seconds: float) -> bool:
        """Sleep until a child ends; tell whether the client went away."""
        events = dict(self._poller.poll(seconds * 1000))
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake, 512):
                pass
        return self._control.fileno() in events

    def _ended(self) -> bool:
        """Reap what has ended; tell whether the first process has."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._alone = True
                break
            if pid == 0:
                break
            if pid == self._child:
                self._status = status
        return self._status is not None

    def _overrun(self) -> str:
        table = scan()
        pids = [pid for pid in descendants(os.getpid(), table) if not table[pid].dead]
        tasks = sum(table[pid].threads for pid in pids)
        if tasks > self._limits.tasks:
            return f"killed: {tasks} processes and threads, the limit is {self._limits.tasks}"
        memory = memory_of(pids, table, self._limits.memory_bytes)
        if memory > self._limits.memory_bytes:
            return f"killed: used {memory >> 20} MiB of memory, the limit is {self._limits.memory_bytes >> 20} MiB"
        return ""

    def _ask_to_end(self) -> None:
        """Send SIGTERM to all, and give them the grace time."""
        signal_all(descendants(os.getpid(), scan()), signal.SIGTERM)
        self._poller.unregister(self._control)  # a client that goes away now changes nothing
        until = time.monotonic() + self._limits.grace_s
        while not self._alone and (left := until - time.monotonic()) > 0:
            self._wait(left)
            self._ended()

    def _sweep(self) -> None:
        """Kill until no child is left. A process with SIGKILL pending cannot fork, so this comes to an end."""
        self._ended()
        while not self._alone:
            if self._status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child, signal.SIGKILL)  # at one stroke, before any look at /proc
            signal_all(descendants(os.getpid(), scan()), signal.SIGKILL)
            with contextlib.suppress(KeyError):
                self._poller.unregister(self._control)
            self._wait(SWEEP_S)
            self._ended()


def explain(status: int, limits: Limits) -> tuple[int, str]:
    """Return a shell's exit code for a wait status, and the likely cause of a signal, "" for none."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code, ""
    causes = {
        signal.SIGXCPU: f"killed: one process used {limits.cpu_s} s of processor time, the limit",
        signal.SIGXFSZ: f"killed: wrote a file beyond {limits.file_bytes >> 20} MiB, the limit",
        signal.SIGKILL: "killed: by the kernel for want of memory, or by itself",
    }
    return 128 - code, next((cause for number, cause in causes.items() if number == -code), "")


def _fork() -> int:
    """Fork as soon as there is room: another call's fork bomb is about to be ended. Raises OSError."""
    for _ in range(FORK_TRIES):
        with contextlib.suppress(BlockingIOError):
            return os.fork()
        time.sleep(FORK_WAIT_S)
    return os.fork()


def _receive(control: socket.socket) -> Job:
    control.settimeout(JOB_WAIT_S)
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = control.recv(1 << 16)
        if not chunk or len(line) > JOB_BYTES:
            raise ValueError("no whole job was sent")
        line += chunk
    control.settimeout(None)
    return parse_job(bytes(line))


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: only a handled signal reaches the wake-up pipe."""
