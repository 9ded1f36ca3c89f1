"""host_commands: owns running and starting programs on this host, and the stand-in that runs none."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loopd.host import LINE_CHARACTERS, TAIL_LINES, HostError, Process, find_process, read_tail, rotate

_ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended."""

    code: int
    tail: str  #: the last lines it wrote

    @property
    def good(self) -> bool:
        """Whether it did what it was for."""
        return self.code == 0


class Commands(Protocol):
    """Runs and starts programs."""

    def find(self, name: str) -> Path | None:
        """Return a program's path, also where only root's PATH leads."""
        ...

    def run(
        self, argv: Sequence[str], *, timeout_s: float, say: Say | None = None, env: Mapping[str, str] | None = None
    ) -> Outcome:
        """Run a program to its end, telling ``say`` each line it writes; ``env`` comes on top of ours."""
        ...

    def start(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> Process:
        """Start a program that outlives us. Raises HostError."""
        ...


class SystemCommands:
    """The Commands of this host."""

    def find(self, name: str) -> Path | None:
        """Return a program's path."""
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_ADMIN_PATH}")
        return Path(found) if found else None

    def run(
        self, argv: Sequence[str], *, timeout_s: float, say: Say | None = None, env: Mapping[str, str] | None = None
    ) -> Outcome:
        """Run a program to its end."""
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        try:
            process = subprocess.Popen(  # noqa: S603 an argument list made here, no shell
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                text=True,
                errors="replace",
                start_new_session=True,  # so that its children can be ended with it
            )
        except OSError as error:
            return Outcome(127, f"{argv[0]} cannot be run: {error.strerror}")
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(timeout_s, end)
        timer.start()
        try:
            with process, contextlib.suppress(ValueError):
                for line in process.stdout or ():
                    tail.append(line.rstrip()[:LINE_CHARACTERS])
                    if say and tail[-1]:
                        say(tail[-1])
        except BaseException:
            end()
            raise
        finally:
            timer.cancel()
        if overdue.is_set():
            tail.append(f"it did not end within {timeout_s:g} s and was stopped")
        return Outcome(process.returncode, "\n".join(tail))

    def start(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> Process:
        """Start a program in a session of its own, with nothing of ours open but its log."""
        rotate(log)
        try:
            with log.open("ab") as output:
                child = subprocess.Popen(  # noqa: S603 an argument list made here, no shell
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {})},
                    cwd="/",
                    umask=0o022,
                    start_new_session=True,
                )
        except OSError as error:
            raise HostError(f"{argv[0]} cannot be started: {error.strerror}. Nothing else was changed") from error
        child.returncode = 0  # it outlives us: its end is looked for in /proc, and not waited for here
        found = find_process(child.pid)
        if found is None:
            raise HostError(f"{argv[0]} ended at once; its last lines:\n{read_tail(log)}")
        return found


@dataclass
class RecordingCommands:
    """Commands that run nothing: what was asked for is kept, and answered from ``outcomes`` by the first words."""

    programs: set[str] = field(default_factory=set)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    effects: dict[str, Callable[[], object]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    process: Process = field(default_factory=lambda: Process(pid=1 << 22, ticks=1, boot="none"))

    def find(self, name: str) -> Path | None:
        """Return a path for each of ``programs``."""
        return Path("/usr/bin") / name if name in self.programs else None

    def run(
        self, argv: Sequence[str], *, timeout_s: float, say: Say | None = None, env: Mapping[str, str] | None = None
    ) -> Outcome:
        """Keep the command and answer it."""
        del timeout_s, env
        line = self._ask(argv)
        outcome = next((o for start, o in self.outcomes.items() if line.startswith(start)), Outcome(0, ""))
        if say and outcome.tail:
            say(outcome.tail)
        return outcome

    def start(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> Process:
        """Keep the command; what it is answered with is ``process``."""
        del log, env
        self._ask(argv)
        return self.process

    def _ask(self, argv: Sequence[str]) -> str:
        line = " ".join((Path(argv[0]).name, *argv[1:]))
        self.asked.append(line)
        for start, effect in self.effects.items():
            if line.startswith(start):
                effect()
        return line
