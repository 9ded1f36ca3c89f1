"""command: owns the last steps in a new process before it becomes the command: its limits and a clean slate."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path
from typing import NoReturn

from loopbox_toolrunner.job import Job, Limits
from loopbox_toolrunner.processes import PR_SET_DUMPABLE, set_process_option

EXIT_NOT_STARTED = 126
NICENESS = 5  # below the server and the keepers, so that they answer under any load
MAX_FD = 1 << 16


def become(job: Job, stdout: int, stderr: int, stdin: int | None = None) -> NoReturn:
    """Turn this just forked process into the command. Never returns; a failure is told on ``stderr``."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin, 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.closerange(3, MAX_FD)
        _restore_signals()
        _limit(job.limits)
        os.chdir(job.directory)
        os.execvpe(job.argv[0], job.argv, dict(job.environment))  # noqa: S606 running commands is what this is for
    except BaseException as error:  # noqa: BLE001 whatever it is, a forked copy of the keeper must not go on
        with contextlib.suppress(OSError):
            os.write(2, f"[toolrunner] {job.argv[0]} could not be started: {error}\n".encode(errors="replace"))
    os._exit(EXIT_NOT_STARTED)


def _restore_signals() -> None:
    """Undo what Python, or whoever started us, set.

    What is ignored stays ignored in a new program, and `yes | head` would then complain for ever.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _limit(limits: Limits) -> None:
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        # Node reserves address space by the gigabyte, so RLIMIT_AS would break it; RLIMIT_DATA counts what may be
        # written. Twice the limit: thread stacks count in full here, and the keeper watches what is really used.
        (resource.RLIMIT_DATA, 2 * limits.memory_bytes),
    ):
        _lower(kind, value, value)
    _lower(resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + 1)
    os.umask(0o022)
    os.nice(NICENESS)
    set_process_option(PR_SET_DUMPABLE, 1)  # or the next file belongs to root
    with contextlib.suppress(OSError):  # the kernel's choice, when the container's own memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _lower(kind: int, soft: int, hard: int) -> None:
    """Set a limit, or keep a tighter one of the container's."""
    outer = resource.getrlimit(kind)[1]
    if outer != resource.RLIM_INFINITY:
        soft, hard = min(soft, outer), min(hard, outer)
    resource.setrlimit(kind, (soft, hard))
