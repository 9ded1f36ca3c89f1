"""machine: owns how much of the host a job takes: threads, memory, and what of it can be measured."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch

_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_SHARE: Final = 0.95  # of the limit: the rest is for what is not allocated as data


def bound_threads(threads: int) -> None:
    """Compute with so many threads: the libraries' own defaults make one for each of the host's cores."""
    torch.set_num_threads(threads)
    with suppress(RuntimeError):  # it can be set once in a process
        torch.set_num_interop_threads(1)


def bound_memory(most: int) -> int:
    """Have allocations beyond a bound fail, which can be told and acted on; the kernel would end the process.

    most: bytes; 0: a bit less than the container may have. Returns the bound, 0 for none.
    """
    limit = most or _container_limit()
    if not limit or torch.cuda.is_available():  # a GPU's driver maps far more than it uses
        return 0
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit * _SHARE), resource.RLIM_INFINITY))
    return limit


def peak_memory() -> int:
    """Return the most bytes that this process had at a time: of the GPU where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def temperature() -> float | None:
    """Return the GPU's in degrees Celsius, where it can be told."""
    if not torch.cuda.is_available():
        return None
    try:
        return float(torch.cuda.temperature())
    except (RuntimeError, ModuleNotFoundError):
        return None


def _container_limit() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < physical:
            return int(text)
    return 0
