"""gpu: owns what the host's GPUs tell: free memory before an engine starts, and whether one lost its device.

Read through NVML where there is an NVIDIA driver; no driver means no GPU, which is said once and is no fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from loopd.errors import UnavailableError

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

    @property
    def free_bytes(self) -> int:
        """Memory that nobody has."""
        return self.total_bytes - self.used_bytes


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

    _state: str = field(default="unknown")  #: unknown, absent, present

    async def read(self) -> tuple[Gpu, ...]:
        """Return every NVIDIA GPU."""
        if self._state == "absent":
            return ()
        return await asyncio.to_thread(self._read)

    def _read(self) -> tuple[Gpu, ...]:
        import pynvml  # type: ignore[import-untyped] # noqa: PLC0415 has no types; needless where there is no GPU

        try:
            if self._state == "unknown":
                pynvml.nvmlInit()
                self._state = "present"
            return tuple(_read_one(index) for index in range(pynvml.nvmlDeviceGetCount()))
        except pynvml.NVMLError as error:
            if self._state == "unknown":
                self._state = "absent"
                log.info("gpu.none", reason=str(error))
                return ()
            raise GpuError(
                f"the GPU's driver does not answer any more ({error}); `nvidia-smi` on the host says more"
            ) from error


def _read_one(index: int) -> Gpu:
    import pynvml  # noqa: PLC0415 as above

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        pids=frozenset(int(process.pid) for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
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
