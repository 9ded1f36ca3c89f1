"""The gateway is reloaded and killed under load: a reload fails nobody, a kill only those of its moment."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from faults.harm import main_process
from faults.load import Load, all_answer, ask
from faults.rig import Rig, wait_for

pytestmark = [pytest.mark.docker]

RELOADS = 10
LONG_ANSWER = 1500  # tokens
OUTAGE_S = 3.0


def tell_master(rig: Rig, command: str) -> str:
    """Say one line to HAProxy's master; it may leave before it answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as master:
        master.settimeout(5)
        master.connect(str(rig.run_dir / "gateway" / "master.sock"))
        master.sendall(f"{command}\n".encode())
        master.shutdown(socket.SHUT_WR)  # or it waits for the next command
        return b"".join(iter(lambda: master.recv(65536), b"")).decode()


def reloads(rig: Rig) -> int:
    """Return how often the master has reloaded."""
    try:
        lines = tell_master(rig, "show proc").splitlines()
    except OSError:
        return -1
    return next((int(words[2]) for line in lines if (words := line.split()) and words[1:2] == ["master"]), -1)


def test_a_gateway_reloaded_under_load_fails_no_request(rig: Rig) -> None:
    ended: list[str] = []
    stream = threading.Thread(target=lambda: ended.append(ask(rig.public_port, stream=True, tokens=LONG_ANSWER)))
    with Load(rig.public_port) as load:
        load.wait_answers(2)
        stream.start()
        for _ in range(RELOADS):
            before = reloads(rig)
            tell_master(rig, "reload")
            wait_for("the master has reloaded", lambda before=before: reloads(rig) > before)  # type: ignore[misc]  # its default
            load.wait_answers(2)
        stream.join(60)
    assert load.faults() == []
    assert ended == [rig.champion()[:12]], "the stream that began before the reloads was to end whole"
    wait_for("the gateway has one server each", lambda: rig.servers() == rig.wanted_servers(), 10)


def test_a_gateway_killed_under_load_is_missing_for_moments_only(rig: Rig, took: dict[str, float]) -> None:
    seq, before = rig.newest_event(), rig.containers()
    with Load(rig.public_port) as load:
        load.wait_answers(2)
        os.kill(main_process(rig.container("gateway")), signal.SIGKILL)
        wait_for("the gateway was restarted", lambda: rig.restarted("gateway", seq))
        rig.wait_serving()
        wait_for("engine and agent answer", lambda: all_answer(rig.public_port))
        back = time.monotonic()
        load.wait_answers(5)
    took["gateway: SIGKILL, from the first request that failed to the next answer"] = load.outage()
    assert load.faults(back) == []
    assert load.outage() < OUTAGE_S
    assert rig.containers() == before
