"""Causes told apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from loopd.cause import CRASHES, Code, Evidence, explain_end
from loopd.engine import Event, Instance, InstanceState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ended(exit_code: int | None = 1, **changes: object) -> Instance:
    values: dict[str, object] = {
        "unit": "agent",
        "id": "c1",
        "image_id": "i",
        "fingerprint": "f",
        "state": InstanceState.STOPPED,
        "address": None,
        "started_at": NOW - timedelta(minutes=5),
        "finished_at": NOW,
        "exit_code": exit_code,
    }
    return Instance(**{**values, **changes})  # type: ignore[arg-type]  # test data by name


def touch(signal: int = 15, *, at: datetime = NOW - timedelta(seconds=2), container: str = "c1") -> Evidence:
    return Evidence(touched=Event(unit="agent", action="killed", at=at, container=container, signal=signal))


@pytest.mark.parametrize(
    ("instance", "evidence", "code", "words"),
    [
        (None, Evidence(), Code.REMOVED, "removed"),
        (ended(0), Evidence(), Code.EXITED, "code 0"),
        (ended(3), Evidence(), Code.EXITED, "code 3"),
        (ended(137), Evidence(), Code.SIGNALLED, "SIGKILL"),
        (ended(139), Evidence(), Code.SIGNALLED, "SIGSEGV"),
        (ended(137, oom_killed=True), touch(9), Code.OUT_OF_MEMORY, "memory"),
        (ended(None), Evidence(), Code.UNKNOWN, "not running"),
        (
            ended(state=InstanceState.CREATED, error="no such mount"),
            Evidence(),
            Code.NEVER_STARTED,
            "never started: no such mount",
        ),
        (ended(143), touch(15), Code.OPERATOR, "SIGTERM"),
        (ended(137), touch(9), Code.OPERATOR, "SIGKILL"),
        (ended(137), touch(9, container="c0"), Code.SIGNALLED, "SIGKILL"),
        (ended(139), touch(12), Code.SIGNALLED, "SIGSEGV"),
        (ended(1), touch(15, at=NOW - timedelta(minutes=2)), Code.EXITED, "code 1"),
        (ended(1), touch(15, at=NOW - timedelta(hours=2)), Code.EXITED, "code 1"),
        (ended(255), Evidence(booted_at=NOW + timedelta(minutes=1)), Code.HOST_REBOOT, "host"),
        (ended(1), Evidence(booted_at=NOW - timedelta(days=1)), Code.EXITED, "code 1"),
        (ended(0), Evidence(engine_back_at=NOW + timedelta(seconds=9)), Code.ENGINE_RESTART, "engine was restarted"),
        (ended(0), Evidence(engine_back_at=NOW + timedelta(hours=9)), Code.EXITED, "code 0"),
        (ended(0), Evidence(engine_back_at=NOW - timedelta(hours=9)), Code.EXITED, "code 0"),
    ],
)
def test_why_a_container_ended(instance: Instance | None, evidence: Evidence, code: Code, words: str) -> None:
    cause = explain_end(instance, evidence)
    assert cause.code is code
    assert words in cause.words


def test_what_others_did_is_no_crash() -> None:
    others = {Code.IMAGE_GONE, Code.OPERATOR, Code.REMOVED, Code.CONFIGURATION, Code.HOST_REBOOT, Code.ENGINE_RESTART}
    assert not others & CRASHES
    assert others | CRASHES == set(Code)
