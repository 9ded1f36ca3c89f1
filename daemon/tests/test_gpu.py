"""GPUs: readings by a stand-in for the driver, and what is concluded from them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from loopd.gpu import (
    RELEASE_S,
    RETRY_S,
    SLACK_BYTES,
    Gpu,
    GpuError,
    InMemoryGpus,
    Leftovers,
    NvmlGpus,
    free_memory,
    lost_device,
    not_released,
)

GIB = 1 << 30


def gpu(index: int = 0, *, used: int = 0, owned: int | None = 0, pids: tuple[int, ...] = ()) -> Gpu:
    return Gpu(
        index=index,
        name="card",
        uuid=f"GPU-{index}",
        total_bytes=80 * GIB,
        used_bytes=used,
        pids=frozenset(pids),
        owned_bytes=owned,
    )


class DriverError(Exception):
    """What the driver's binding raises."""


@dataclass
class Driver:
    """Answers as NVML does; the names are NVML's."""

    absent: bool = False
    lost: bool = False
    processes: list[int] = field(default_factory=list)
    each: int | None = GIB // 4  #: memory of a process; None: not told
    asked: int = 0
    NVMLError: type[Exception] = DriverError

    def nvmlInit(self) -> None:  # noqa: N802 see above
        self.asked += 1
        if self.absent:
            raise DriverError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 see above
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 see above
        if self.lost:
            raise DriverError("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802 see above
        return SimpleNamespace(total=80 * GIB, used=(handle + 1) * GIB, free=(79 - handle) * GIB)

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:  # noqa: N802 see above
        return "card" if handle else b"card"

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802 see above
        return f"GPU-{handle}"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802 see above
        found = self.processes if handle == 0 else []
        return [SimpleNamespace(pid=pid, usedGpuMemory=self.each) for pid in found]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Stand in for the binding."""
    made = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


async def test_a_reading_tells_memory_and_processes(driver: Driver) -> None:
    driver.processes = [7, 8]
    first, second = await NvmlGpus().read()
    assert (first.name, first.uuid, first.used_bytes, first.free_bytes) == ("card", "GPU-0", GIB, 79 * GIB)
    assert (first.pids, second.pids) == (frozenset({7, 8}), frozenset())
    assert (first.unowned_bytes, second.unowned_bytes) == (GIB // 2, 2 * GIB)
    driver.each = None
    assert (await NvmlGpus().read())[0].unowned_bytes is None


async def test_a_host_without_a_driver_has_no_gpu_and_is_asked_seldom(driver: Driver) -> None:
    now = [0.0]
    driver.absent = True
    gpus = NvmlGpus(clock=lambda: now[0])
    assert await gpus.read() == await gpus.read() == ()
    assert driver.asked == 1
    assert await free_memory(gpus) is None
    now[0], driver.absent = RETRY_S, False
    assert len(await gpus.read()) == 2, "the driver was loaded later"


async def test_a_driver_that_fails_is_told_of_and_read_again_when_it_is_back(driver: Driver) -> None:
    gpus = NvmlGpus()
    assert len(await gpus.read()) == 2
    driver.lost = True
    with pytest.raises(GpuError, match="GPU is lost"):
        await gpus.read()
    assert await free_memory(gpus) is None
    driver.lost = False
    assert len(await gpus.read()) == 2


async def test_the_real_binding_is_fine_on_a_host_without_gpus() -> None:
    """With GPUs there, each has its share of memory."""
    for found in await NvmlGpus().read():
        assert 0 < found.free_bytes <= found.total_bytes


async def test_the_emptiest_gpu_counts() -> None:
    assert await free_memory(InMemoryGpus((gpu(0, used=70 * GIB), gpu(1, used=10 * GIB)))) == 70 * GIB
    assert await free_memory(InMemoryGpus()) is None
    assert await free_memory(InMemoryGpus(gone=True)) is None


@pytest.mark.parametrize(
    ("pids", "gpus", "lost"),
    [
        ({7, 8}, [gpu(pids=(7,))], False),
        ({7}, [gpu(pids=(8,))], True),
        ({7}, [gpu(), gpu(1, pids=(7,))], False),
        ({7}, [], False),
        (set(), [gpu(pids=(8,))], False),
    ],
    ids=["on one", "another's", "on the second", "no card", "no process"],
)
def test_an_engine_on_none_of_the_gpus_has_lost_them(pids: set[int], gpus: list[Gpu], lost: bool) -> None:
    assert lost_device(pids, gpus) is lost


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (gpu(used=GIB), 0),
        (gpu(used=GIB + SLACK_BYTES), 0),
        (gpu(used=9 * GIB), 8 * GIB),
        (gpu(used=9 * GIB, owned=8 * GIB, pids=(9,)), 0),
        (gpu(used=9 * GIB, owned=None), 0),
        (gpu(1, used=9 * GIB), 0),
    ],
    ids=["given back", "all but a little", "kept", "a new engine has it", "nobody knows", "another card"],
)
def test_memory_that_nobody_has_after_the_end_is_a_leak(after: Gpu, left: int) -> None:
    assert not_released({"GPU-0": GIB}, [after]) == left


def test_each_end_is_judged_once_and_only_after_its_time() -> None:
    leftovers = Leftovers()
    runs, leaks = [gpu(used=8 * GIB, owned=8 * GIB)], [gpu(used=8 * GIB)]
    assert leftovers.see("one", runs, 0) == 0
    assert leftovers.see("", leaks, 1) == 0
    assert leftovers.see("", leaks, 1 + RELEASE_S / 2) == 0
    assert leftovers.see("", leaks, 1 + RELEASE_S) == 8 * GIB
    assert leftovers.see("", leaks, 60) == 0
    assert leftovers.see("two", [gpu(used=16 * GIB, owned=8 * GIB)], 70) == 0
    assert leftovers.see("", [gpu(used=8 * GIB)], 80) == 0
    assert leftovers.see("", [gpu(used=8 * GIB)], 80 + RELEASE_S) == 0, "what the first left is not the second's"
