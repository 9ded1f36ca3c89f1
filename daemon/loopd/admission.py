"""admission: owns whether a candidate's engine fits beside the champion's: memory and CPU threads.

Two engines that share cores with more threads than there are cores slow each other down 160 times (measured on two
cores), so threads are admitted like memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loopd.errors import ConflictError
from loopd.release import Release

MIB = 1 << 20
RUNNER_BYTES = 160 << 20  # server and runner without weights; measured 80 MB for a tiny model
CACHE_BYTES_PER_TOKEN = 64 << 10  # key-value cache and buffers; an 8B model with grouped heads uses about as much
MEMINFO = Path("/proc/meminfo")


class NotAdmittedError(ConflictError):
    """The candidate does not fit on this host beside what serves; nothing was started."""

    code = "not_admitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the host has to give. Bytes."""

    memory_available: int
    gpu_free: int | None  #: the emptiest GPU's; None: no GPU, engines run on the CPU
    cores: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What engines want. Bytes."""

    candidate: int
    champion: int  #: what it gives back when it leaves; 0: there is none
    threads: int  #: of each engine
    reserve: int  #: host memory that no engine may take


@dataclass(frozen=True, slots=True)
class Admission:
    """How the candidate comes up."""

    strategy: Literal["beside", "in_place"]
    reason: str


def memory_expected(release: Release, *, parallel: int) -> int:
    """Return the bytes an engine of this release will really use: weights, key-value cache, runner."""
    return release.size_bytes + parallel * release.num_ctx * CACHE_BYTES_PER_TOKEN + RUNNER_BYTES


def admit(demand: Demand, capacity: Capacity, *, in_place_allowed: bool) -> Admission:
    """Decide. Raises NotAdmittedError with what is missing and which setting would help."""
    host, gpu, threads = _missing(demand, capacity)
    missing = [fault for fault in (host, gpu, threads) if fault]
    if not missing:
        return Admission("beside", f"{_mib(demand.candidate)} of memory and {demand.threads} threads are free for it")
    lacks = " and ".join(missing)
    if not demand.champion:
        # There is nothing to make room by removing: only memory can be lacking.
        raise NotAdmittedError(f"{lacks}; free memory, or drop a smaller model")
    if not in_place_allowed:
        raise NotAdmittedError(
            f"{lacks}. What serves goes on. Set rollout.swap_in_place to let the old release stop first "
            "(requests are held at the gateway meanwhile), or free memory, or lower engine_threads"
        )
    room = Capacity(
        memory_available=capacity.memory_available + demand.champion,
        gpu_free=None if capacity.gpu_free is None else capacity.gpu_free + demand.champion,
        cores=capacity.cores,
    )
    alone = Demand(candidate=demand.candidate, champion=0, threads=demand.threads, reserve=demand.reserve)
    if any(_missing(alone, room)):
        raise NotAdmittedError(f"{lacks}, not even with the old release gone; drop a smaller model")
    return Admission("in_place", f"{lacks}, so the old release stops first and requests are held")


def _missing(demand: Demand, capacity: Capacity) -> tuple[str, str, str]:
    host = gpu = threads = ""
    free = capacity.memory_available - demand.reserve
    # On a GPU the weights pass through host memory's page cache, which is given back.
    wanted = RUNNER_BYTES if capacity.gpu_free is not None else demand.candidate
    if wanted > free:
        host = f"it needs {_mib(wanted)} of memory and {_mib(max(0, free))} are free"
    if capacity.gpu_free is not None and demand.candidate > capacity.gpu_free:
        gpu = f"it needs {_mib(demand.candidate)} of GPU memory and {_mib(capacity.gpu_free)} are free"
    if demand.champion and 2 * demand.threads > max(capacity.cores, 2):
        threads = f"two engines of {demand.threads} threads are too many for {capacity.cores} cores"
    return host, gpu, threads


def parse_memory_available(text: str) -> int:
    """Return MemAvailable of /proc/meminfo (proc(5)) in bytes. Raises ValueError."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise ValueError("/proc/meminfo has no MemAvailable")


async def read_capacity(gpu_free: Callable[[], Awaitable[int | None]]) -> Capacity:
    """Look at this host now."""
    text = await asyncio.to_thread(MEMINFO.read_text)
    return Capacity(
        memory_available=parse_memory_available(text),
        gpu_free=await gpu_free(),
        cores=len(os.sched_getaffinity(0)),
    )


def _mib(count: int) -> str:
    return f"{count // MIB} MiB"
