"""notify: owns the talk with the service supervisor (sd_notify(3)): READY, WATCHDOG, STOPPING, STATUS.

Where no NOTIFY_SOCKET is set (started by hand) every call does nothing.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

USEC = 1_000_000


@dataclass(frozen=True, slots=True)
class Notifier:
    """Sends states to the socket the supervisor named, '' for none."""

    address: str
    watchdog_s: float | None = None  #: the supervisor expects a sign of life at least this often

    @classmethod
    def from_environment(cls) -> Notifier:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        watchdog = os.environ.get("WATCHDOG_USEC", "")
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(
            address=os.environ.get("NOTIFY_SOCKET", ""),
            watchdog_s=int(watchdog) / USEC if watchdog.isdigit() and for_us else None,
        )

    def ready(self, status: str) -> None:
        """Say that the service answers."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """Feed the watchdog; called only after a reconcile that worked."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the service is going down on purpose."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self.address:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(name)
            sock.sendall(state.encode())
