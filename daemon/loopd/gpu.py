"""gpu: owns what the host's GPUs tell: free memory before an engine starts, and whether one lost its device.

Read through NVML where there is an NVIDIA driver; no driver means no GPU, which is said once and is no fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from loopd.errors import UnavailableError

RETRY_S = 60.0  # a driver that is absent is asked for again so often: it may be loaded after loopd's start
RELEASE_S = 10.0  # from an engine's end until its memory must be free again
SLACK_BYTES = 64 << 20  # what the driver itself takes and gives back

log = structlog.get_logger("loopd.gpu")


class GpuError(UnavailableError):
    """The GPU's driver does not answer any more; engines that run may go on."""

    code = "gpu_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU at one moment."""

    index: int
    name: str
    uuid: str
    total_bytes: int
    used_bytes: int
    pids: frozenset[int]  #: of processes that compute on it, as the host numbers them
    owned_bytes: int | None = None  #: of the used ones, what living processes have; None: the driver does not say

    @property
    def free_bytes(self) -> int:
        """Memory that nobody has."""
        return self.total_bytes - self.used_bytes

    @property
    def unowned_bytes(self) -> int | None:
        """Memory in use that no living process has; None: unknown."""
        return None if self.owned_bytes is None else max(0, self.used_bytes - self.owned_bytes)


class Gpus(Protocol):
    """What loopd asks of GPUs."""

    async def read(self) -> tuple[Gpu, ...]:
        """Return every GPU; none where there is no driver. Raises GpuError when there was one and it is gone."""
        ...


@dataclass(slots=True)
class InMemoryGpus:
    """What a test says there is."""

    gpus: tuple[Gpu, ...] = ()
    gone: bool = False

    async def read(self) -> tuple[Gpu, ...]:
        """Return them."""
        if self.gone:
            raise GpuError("the GPU's driver does not answer any more")
        return self.gpus


@dataclass(slots=True)
class NvmlGpus:
    """GPUs through NVIDIA's management library."""

    clock: Callable[[], float] = time.monotonic
    _state: str = field(default="unknown")  #: unknown, absent, present
    _again_at: float = 0.0  #: when an absent driver is asked for again

    async def read(self) -> tuple[Gpu, ...]:
        """Return every NVIDIA GPU."""
        if self._state == "absent" and self.clock() < self._again_at:
            return ()
        return await asyncio.to_thread(self._read)

    def _read(self) -> tuple[Gpu, ...]:
        import pynvml  # type: ignore[import-untyped] # noqa: PLC0415 has no types; needless where there is no GPU

        try:
            if self._state != "present":
                pynvml.nvmlInit()
                self._state = "present"
            return tuple(_read_one(index) for index in range(pynvml.nvmlDeviceGetCount()))
        except pynvml.NVMLError as error:
            if self._state != "present":
                if self._state == "unknown":
                    log.info("gpu.none", reason=str(error))
                self._state, self._again_at = "absent", self.clock() + RETRY_S
                return ()
            raise GpuError(
                f"the GPU's driver does not answer any more ({error}); `nvidia-smi` on the host says more"
            ) from error


def _read_one(index: int) -> Gpu:
    import pynvml  # noqa: PLC0415 as above

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    sizes = [process.usedGpuMemory for process in found]
    return Gpu(
        index=index,
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        pids=frozenset(int(process.pid) for process in found),
        owned_bytes=None if None in sizes else sum(map(int, sizes)),
    )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


async def free_memory(gpus: Gpus) -> int | None:
    """Return the free bytes of the emptiest GPU; None where there is none, or its driver does not answer."""
    try:
        found = await gpus.read()
    except GpuError:
        return None
    return max((gpu.free_bytes for gpu in found), default=None)


def lost_device(engine_pids: Collection[int], gpus: Sequence[Gpu]) -> bool:
    """Tell whether an engine that was loaded computes on no GPU although there are some.

    A container loses its device when the host's units are reloaded: it runs on, a hundred times slower, on the CPU.
    """
    return bool(gpus) and bool(engine_pids) and not any(gpu.pids & set(engine_pids) for gpu in gpus)


def unowned(gpus: Collection[Gpu]) -> dict[str, int]:
    """Return uuid -> bytes in use that no living process has, of the GPUs that tell."""
    return {gpu.uuid: gpu.unowned_bytes for gpu in gpus if gpu.unowned_bytes is not None}


def not_released(before: Mapping[str, int], gpus: Collection[Gpu]) -> int:
    """Return the bytes that an engine which ended has left behind, 0 within the slack.

    before: unowned() while it ran. What was started since owns its memory, so it is not taken for a leak.
    """
    left = sum(max(0, size - before.get(uuid, size)) for uuid, size in unowned(gpus).items())
    return left if left > SLACK_BYTES else 0


@dataclass(slots=True)
class Leftovers:
    """Follows one engine after the other, and finds what one that ended has not given back."""

    _run: str = ""
    _before: dict[str, int] = field(default_factory=dict)
    _ended: list[tuple[dict[str, int], float]] = field(default_factory=list)

    def see(self, run: str, gpus: Collection[Gpu], now: float) -> int:
        """Take one look into account; return the bytes left by engines whose time to give back is over.

        run: the run of an engine that computes now, '' for none. Each end is judged once.
        """
        if run != self._run:
            if self._run:
                self._ended.append((self._before, now))
            self._run, self._before = run, unowned(gpus)
        due = [before for before, since in self._ended if now - since >= RELEASE_S]
        self._ended = [(before, since) for before, since in self._ended if now - since < RELEASE_S]
        return max((not_released(before, gpus) for before in due), default=0)
