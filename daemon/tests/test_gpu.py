"""GPUs: readings by a stand-in for the driver, and what is concluded from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from loopd.gpu import RETRY_S, SLACK_BYTES, Gpu, GpuError, InMemoryGpus, NvmlGpus, has_lost, not_released, unowned, uses

GIB = 1 << 30


def gpu(index: int = 0, *, used: int = 0, owned: int | None = 0, pids: tuple[int, ...] = ()) -> Gpu:
    return Gpu(
        index=index,
        name="card",
        uuid=f"GPU-{index}",
        total_bytes=80 * GIB,
        used_bytes=used,
        free_bytes=80 * GIB - used,
        pids=frozenset(pids),
        owned_bytes=owned,
    )


class DriverError(Exception):
    """What the driver's binding raises."""


@dataclass
class Driver:
    """Answers as NVML does."""

    absent: bool = False
    lost: bool = False
    processes: list[tuple[int, int | None]] = field(default_factory=list)
    asked: int = 0
    NVMLError: type[Exception] = DriverError

    def nvmlInit(self) -> None:  # noqa: N802 the driver's name
        self.asked += 1
        if self.absent:
            raise DriverError("NVML Shared Library Not Found")

    def nvmlShutdown(self) -> None:  # noqa: N802 the driver's name
        self.asked = -1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 the driver's name
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 the driver's name
        if self.lost:
            raise DriverError("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802 the driver's name
        return SimpleNamespace(total=80 * GIB, used=(handle + 1) * GIB, free=(79 - handle) * GIB)

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:  # noqa: N802 the driver's name
        return "card" if handle else b"card"

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802 the driver's name
        return f"GPU-{handle}"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802 the driver's name
        found = self.processes if handle == 0 else []
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in found]


async def test_a_reading_tells_memory_and_processes() -> None:
    first, second = await NvmlGpus(Driver(processes=[(7, GIB // 2), (8, GIB // 4)])).read()
    assert (first.name, first.uuid, first.used_bytes, first.free_bytes) == ("card", "GPU-0", GIB, 79 * GIB)
    assert (first.pids, first.unowned_bytes) == (frozenset({7, 8}), GIB // 4)
    assert (second.pids, second.unowned_bytes) == (frozenset(), 2 * GIB)


async def test_memory_that_the_driver_does_not_assign_is_unknown() -> None:
    first, _ = await NvmlGpus(Driver(processes=[(7, None)])).read()
    assert (first.pids, first.unowned_bytes) == (frozenset({7}), None)
    assert unowned([first]) == {}


async def test_a_host_without_a_driver_has_no_gpu_and_is_asked_seldom() -> None:
    driver, now = Driver(absent=True), [0.0]
    gpus = NvmlGpus(driver, clock=lambda: now[0])
    assert await gpus.read() == await gpus.read() == ()
    assert driver.asked == 1
    now[0], driver.absent = RETRY_S + 1, False
    assert len(await gpus.read()) == 2


async def test_a_driver_that_fails_is_told_and_asked_anew() -> None:
    driver = Driver(lost=True)
    gpus = NvmlGpus(driver)
    with pytest.raises(GpuError, match="GPU is lost"):
        await gpus.read()
    driver.lost = False
    assert len(await gpus.read()) == 2
    assert driver.asked == 2
    gpus.close()
    assert driver.asked == -1


async def test_the_real_binding_is_fine_on_a_host_without_gpus() -> None:
    """With GPUs there, each has its share of memory."""
    gpus = NvmlGpus()
    for found in await gpus.read():
        assert 0 < found.free_bytes <= found.total_bytes
    gpus.close()


async def test_the_fake_gives_what_was_set() -> None:
    assert await InMemoryGpus((gpu(),)).read() == (gpu(),)
    with pytest.raises(GpuError, match="no card"):
        await InMemoryGpus(broken="no card").read()


@pytest.mark.parametrize(
    ("was_on", "pids", "gpus", "lost"),
    [
        ({"GPU-0"}, {7}, [gpu(pids=(7,))], False),
        ({"GPU-0"}, {7}, [gpu(pids=(8,))], True),
        ({"GPU-0"}, {7}, [], True),
        ({"GPU-0"}, {7}, [gpu(), gpu(1, pids=(7,))], False),
        (set(), {7}, [gpu(pids=(8,))], False),
        (set(), {7}, [], False),
    ],
    ids=["still on it", "another's", "card is gone", "on another card", "never on one", "no card"],
)
def test_an_engine_that_left_its_gpus_has_lost_them(
    was_on: set[str], pids: set[int], gpus: list[Gpu], lost: bool
) -> None:
    assert has_lost(was_on, pids, gpus) is lost


def test_which_gpus_a_container_is_on() -> None:
    assert uses({1, 2}, [gpu(0, pids=(2, 9)), gpu(1, pids=(9,)), gpu(2, pids=(1,))]) == {"GPU-0", "GPU-2"}


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (gpu(used=GIB), {}),
        (gpu(used=GIB + SLACK_BYTES), {}),
        (gpu(used=9 * GIB), {"GPU-0": 8 * GIB}),
        (gpu(used=9 * GIB, owned=8 * GIB, pids=(9,)), {}),
        (gpu(used=9 * GIB, owned=None), {}),
        (gpu(1, used=9 * GIB), {}),
    ],
    ids=["given back", "all but a little", "kept", "a new engine has it", "nobody knows", "another card"],
)
def test_memory_that_stays_after_the_end_is_seen(after: Gpu, left: dict[str, int]) -> None:
    assert not_released({"GPU-0": GIB}, [after]) == left
