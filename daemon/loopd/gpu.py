"""gpu: owns what this host's GPUs show: their memory, whose processes are on them; and the fake that ships with it.

The numbers are the driver's own (NVML). Processes are known by the host's process ids, in containers too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from loopd.errors import UnavailableError

RETRY_S = 60.0  # a driver that is not there is asked for again so often: it may be loaded after loopd's start
MOST_GPUS = 64
MOST_PROCESSES = 4096  # of one GPU
SLACK_BYTES = 64 << 20  # the driver's own use changes by a few MiB

log = structlog.get_logger("loopd.gpu")


class GpuError(UnavailableError):
    """The driver is there and does not tell about its GPUs; what runs on them was not touched."""

    code = "gpu_unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU at one moment. Bytes."""

    index: int
    name: str
    uuid: str
    total_bytes: int
    used_bytes: int
    free_bytes: int
    pids: frozenset[int] = frozenset()  #: of the host
    owned_bytes: int | None = None  #: of the used ones, those of living processes; None: the driver does not say

    @property
    def unowned_bytes(self) -> int | None:
        """Return what is in use and belongs to no process that lives; None: unknown."""
        return None if self.owned_bytes is None else max(0, self.used_bytes - self.owned_bytes)


class Gpus(Protocol):
    """What loopd needs of GPUs."""

    async def read(self) -> tuple[Gpu, ...]:
        """Return one reading of all, () where there is none. Raises GpuError."""
        ...


@dataclass
class InMemoryGpus:
    """GPUs in memory; for tests to set."""

    gpus: tuple[Gpu, ...] = ()
    broken: str = ""  #: why the driver does not tell, '' when it does

    async def read(self) -> tuple[Gpu, ...]:
        """Return what was set."""
        if self.broken:
            raise GpuError(self.broken)
        return self.gpus


# Any: the driver's binding has no types.
@dataclass
class NvmlGpus:
    """The GPUs of this host, by NVML. Its calls block, so they run in a thread, one at a time."""

    nvml: Any = None  #: the binding; None: pynvml
    clock: Callable[[], float] = time.monotonic
    _ready: bool = False
    _asked_at: float | None = None  #: when the driver was found to be absent
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def read(self) -> tuple[Gpu, ...]:
        """Return one reading; a host without the driver has no GPU."""
        return await asyncio.to_thread(self._read)

    def close(self) -> None:
        """Let go of the driver."""
        with self._lock:
            if self._ready:
                self._ready = False
                self.nvml.nvmlShutdown()

    def _read(self) -> tuple[Gpu, ...]:
        with self._lock:
            if not self._open():
                return ()
            try:
                count = min(self.nvml.nvmlDeviceGetCount(), MOST_GPUS)
                return tuple(self._gpu(index) for index in range(count))
            except self.nvml.NVMLError as error:
                self._ready = False  # after the loss of a device the driver answers only to who asks it anew
                raise GpuError(
                    f"the GPU driver does not tell about its GPUs ({error}). What runs was not touched; `nvidia-smi` "
                    "and `dmesg` (NVRM, Xid) say more"
                ) from error

    def _open(self) -> bool:
        if self._ready:
            return True
        if self._asked_at is not None and self.clock() - self._asked_at < RETRY_S:
            return False
        if self.nvml is None:
            import pynvml  # type: ignore[import-untyped]  # noqa: PLC0415 it has no types; looks for its library

            self.nvml = pynvml
        try:
            self.nvml.nvmlInit()
        except self.nvml.NVMLError as error:
            if self._asked_at is None:
                log.info("gpu.none", reason=str(error))
            self._asked_at = self.clock()
            return False
        self._ready = True
        return True

    def _gpu(self, index: int) -> Gpu:
        handle = self.nvml.nvmlDeviceGetHandleByIndex(index)
        memory = self.nvml.nvmlDeviceGetMemoryInfo(handle)
        used = dict(self._processes(handle))
        return Gpu(
            index=index,
            name=_text(self.nvml.nvmlDeviceGetName(handle)),
            uuid=_text(self.nvml.nvmlDeviceGetUUID(handle)),
            total_bytes=int(memory.total),
            used_bytes=int(memory.used),
            free_bytes=int(memory.free),
            pids=frozenset(used),
            owned_bytes=None if None in used.values() else sum(size or 0 for size in used.values()),
        )

    def _processes(self, handle: Any) -> Iterator[tuple[int, int | None]]:
        """Yield (process id, bytes); None where the driver does not say how many."""
        for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(handle)[:MOST_PROCESSES]:
            yield int(process.pid), None if process.usedGpuMemory is None else int(process.usedGpuMemory)


def uses(pids: Collection[int], gpus: Collection[Gpu]) -> frozenset[str]:
    """Return the uuids of the GPUs that one of these processes is on."""
    wanted = frozenset(pids)
    return frozenset(gpu.uuid for gpu in gpus if gpu.pids & wanted)


def has_lost(was_on: Collection[str], pids: Collection[int], gpus: Collection[Gpu]) -> bool:
    """Tell whether an engine that was on GPUs is on none any more: it would go on, on the CPU, far slower.

    Who never was on one has lost nothing: engines may run on the CPU beside GPUs. ``gpus`` is a reading that worked.
    """
    return bool(was_on) and not uses(pids, gpus)


def unowned(gpus: Collection[Gpu]) -> dict[str, int]:
    """Return uuid -> bytes in use that no living process has, of the GPUs that tell."""
    return {gpu.uuid: gpu.unowned_bytes for gpu in gpus if gpu.unowned_bytes is not None}


def not_released(before: Mapping[str, int], gpus: Collection[Gpu]) -> dict[str, int]:
    """Return uuid -> bytes that an engine which is gone has left behind.

    before: what no process owned before the engine was started, as unowned() gave it. An engine that was started
    since has a process of its own, so it is not taken for a leak.
    """
    left = {uuid: size - before[uuid] for uuid, size in unowned(gpus).items() if uuid in before}
    return {uuid: size for uuid, size in left.items() if size > SLACK_BYTES}


def _text(given: str | bytes) -> str:
    """Return a name; older bindings give bytes."""
    return given.decode(errors="replace") if isinstance(given, bytes) else given
