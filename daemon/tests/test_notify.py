from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopd.notify import Notifier


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield sock


def test_the_supervisor_hears_ready_alive_and_stopping(supervisor: socket.socket) -> None:
    notifier = Notifier.from_environment()
    notifier.ready("all is well")
    notifier.alive()
    notifier.stopping()
    assert [supervisor.recv(200) for _ in range(3)] == [b"READY=1\nSTATUS=all is well", b"WATCHDOG=1", b"STOPPING=1"]


def test_started_by_hand_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier.from_environment().ready("nobody listens")


@pytest.mark.parametrize(("pid", "seconds"), [(str(os.getpid()), 30.0), ("1", None)])
def test_the_watchdog_of_another_process_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, pid: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Notifier.from_environment().watchdog_s == seconds
