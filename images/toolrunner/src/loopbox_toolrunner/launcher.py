"""launcher: owns the server's end of the zygote: starting it, ordering calls, noticing its death."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

END_S = 10.0
_START = "import sys; sys.path.insert(0, {path!r}); from loopbox_toolrunner.zygote import main; main({fd})"


class LaunchError(Exception):
    """The zygote took no order; nothing was started."""


@dataclass(frozen=True, slots=True)
class Call:
    """The server's ends of one call; whoever holds them closes them."""

    control: socket.socket  #: closing it cancels the call
    stdout: int
    stderr: int


class Launcher:
    """A running zygote. Blocks nowhere but in ``close``."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = str(Path(__file__).resolve().parent.parent)
        with theirs:
            # A fixed program with fixed arguments: isolated, so that no variable and no site package reaches it.
            self._process = subprocess.Popen(  # noqa: S603 see above
                [sys.executable, "-I", "-S", "-c", _START.format(path=package, fd=theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8"},
            )
        ours.setblocking(False)
        self._orders = ours

    @property
    def pid(self) -> int:
        """The zygote's process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the zygote dies."""
        return self._orders.fileno()

    def order(self, stdin: int | None = None) -> Call:
        """Have a keeper forked. stdin: of its command, still the caller's to close. Raises LaunchError."""
        ours, theirs = socket.socketpair()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        try:
            handles = [theirs.fileno(), out_write, err_write]
            socket.send_fds(self._orders, [b"1"], handles if stdin is None else [*handles, stdin])
        except OSError as error:
            ours.close()
            os.close(out_read)
            os.close(err_read)
            raise LaunchError(f"the sandbox cannot start processes any more ({error}); take a new one") from error
        finally:
            theirs.close()
            os.close(out_write)
            os.close(err_write)
        return Call(ours, out_read, err_read)

    def close(self) -> None:
        """Let the zygote end all calls and itself; kill it if it does not."""
        self._orders.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
            return
        self._process.kill()
        self._process.wait()
