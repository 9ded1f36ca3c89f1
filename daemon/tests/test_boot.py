"""When the host was started, told by the kernel's id of each boot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loopd.boot import STARTED, HostTimes, read_host_times
from loopd.ledger import Ledger

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def boot_id(tmp_path: Path) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("one\n")
    return path


async def start(ledger: Ledger, boot_id: Path, now: datetime) -> HostTimes:
    """Start loopd, as far as the ledger is concerned."""
    times = read_host_times(await ledger.last("loopd", STARTED), now, engine_is_local=False, boot_id=boot_id)
    await ledger.append(STARTED, "loopd", times.told, **times.record)
    return times


async def test_a_start_of_loopd_alone_is_no_reboot(ledger: Ledger, boot_id: Path) -> None:
    for hour in range(3):
        times = await start(ledger, boot_id, NOW + timedelta(hours=hour))
        assert (times.booted_at, times.rebooted, times.told) == (None, False, "it was started")


async def test_another_boot_than_the_last_is_a_reboot_also_for_later_starts(ledger: Ledger, boot_id: Path) -> None:
    """A loopd that dies before it has mended all must not take what the reboot ended for crashes."""
    await start(ledger, boot_id, NOW)
    boot_id.write_text("two\n")
    first = await start(ledger, boot_id, NOW + timedelta(hours=1))
    again = await start(ledger, boot_id, NOW + timedelta(hours=2))
    assert (first.booted_at, first.rebooted, first.told) == (
        NOW + timedelta(hours=1),
        True,
        "it was started, as the host was",
    )
    assert (again.booted_at, again.rebooted) == (NOW + timedelta(hours=1), False)


async def test_what_was_not_written_down_proves_nothing(ledger: Ledger, boot_id: Path) -> None:
    await ledger.append(STARTED, "loopd", "it was started")  # by a loopd that wrote no boot
    assert (await start(ledger, boot_id, NOW)).booted_at is None
    boot_id.unlink()
    assert await start(ledger, boot_id, NOW) == HostTimes()


def test_the_engine_tells_when_it_was_started_by_its_pid_file(tmp_path: Path) -> None:
    pid = tmp_path / "docker.pid"
    assert HostTimes(engine_pid=pid).engine_started_at() is None
    pid.write_text("1")
    started = HostTimes(engine_pid=pid).engine_started_at()
    assert started is not None
    assert abs(started - datetime.now(UTC)) < timedelta(minutes=1)
    assert HostTimes().engine_started_at() is None


def test_this_host_has_a_boot() -> None:
    assert read_host_times(None, NOW, engine_is_local=True).boot_id
