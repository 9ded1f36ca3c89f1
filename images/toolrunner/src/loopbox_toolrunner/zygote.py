"""zygote: owns the small process that forks a keeper for each call.

The server is big and has threads, so forking it is slow and unsafe; this one has loaded only what a keeper needs.
It is a subreaper too: when a command kills its own keeper, what it started falls to the zygote, which ends it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import NoReturn

from loopbox_toolrunner.keeper import keep
from loopbox_toolrunner.processes import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    descendants,
    scan,
    set_process_option,
    signal_all,
)

DESCRIPTORS = 3  # control, stdout, stderr
MOST_DESCRIPTORS = 4  # and stdin, for calls that are fed
SWEEP_MS = 10
FORK_TRIES = 20
EXIT_BROKEN = 70


def main(orders_fd: int) -> None:
    """Fork keepers until ``orders_fd`` closes, then wait for the last of them."""
    set_process_option(PR_SET_CHILD_SUBREAPER, 1)
    set_process_option(PR_SET_DUMPABLE, 0)  # no command looks into this process or the keepers
    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides about the end, by closing
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()
    Zygote(socket.socket(fileno=orders_fd)).serve()


class Zygote:
    """Takes orders, forks, reaps."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._wake, wake_write = os.pipe()
        self._wake_write = wake_write
        for end in (self._wake, wake_write):
            os.set_blocking(end, False)
        self._keepers: set[int] = set()
        self._strays = False  #: a keeper was killed, so its command's processes may be ours now

    def serve(self) -> None:
        """Run until the server is gone and every child too."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poller = select.poll()
        poller.register(self._orders, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        serving = True
        while serving or self._keepers or self._strays:
            events = dict(poller.poll(SWEEP_MS if self._strays else None))
            with contextlib.suppress(BlockingIOError):
                while os.read(self._wake, 512):
                    pass
            self._reap()
            if serving and self._orders.fileno() in events and not self._take():
                poller.unregister(self._orders)
                serving = False

    def _take(self) -> bool:
        """Take one order and fork its keeper; False when the server is gone."""
        said, handles, _, _ = socket.recv_fds(self._orders, 1, MOST_DESCRIPTORS)
        if not said:
            return False
        if len(handles) >= DESCRIPTORS:
            pid = _fork()
            if pid == 0:
                self._be_keeper(handles)
            if pid > 0:
                self._keepers.add(pid)
        for handle in handles:
            os.close(handle)
        return True

    def _be_keeper(self, handles: list[int]) -> NoReturn:
        code = EXIT_BROKEN
        try:
            signal.set_wakeup_fd(-1)
            self._orders.close()
            os.close(self._wake)
            os.close(self._wake_write)
            keep(socket.socket(fileno=handles[0]), *handles[1:])
            code = 0
        except (ValueError, OSError):
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._keepers.clear()
                self._strays = False
                return
            if pid == 0:
                break
            if pid in self._keepers:
                self._keepers.discard(pid)
                self._strays |= status != 0
        if self._strays:
            strays = descendants(os.getpid(), scan(), without=self._keepers)
            signal_all(strays, signal.SIGKILL)
            self._strays = bool(strays)


def _fork() -> int:
    """Fork; -1 when there is no room for one more process, and the closed control then tells the server."""
    for _ in range(FORK_TRIES):
        try:
            return os.fork()
        except OSError:  # another call's fork bomb, most likely, which is about to be ended
            time.sleep(SWEEP_MS / 1000)
    return -1
