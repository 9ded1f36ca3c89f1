"""processes: owns the view of /proc: which processes descend from one, what they use, and their end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PAGE_BYTES = os.sysconf("SC_PAGESIZE")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/<pid>/stat."""

    parent: int
    threads: int
    resident_bytes: int  #: shared pages counted in full
    dead: bool  #: a zombie, waiting to be reaped


def set_process_option(option: int, value: int) -> None:
    """Call prctl. Raises OSError."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def parse_stat(text: bytes) -> Process:
    """Read a stat line; the command in parentheses may itself hold spaces and parentheses. Raises ValueError."""
    fields = text[text.rindex(b")") + 2 :].split()
    return Process(
        parent=int(fields[1]),
        threads=int(fields[17]),
        resident_bytes=int(fields[21]) * PAGE_BYTES,
        dead=fields[0] in {b"Z", b"X"},
    )


def scan() -> dict[int, Process]:
    """Return every process that can be seen."""
    found: dict[int, Process] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 names alone, many times a second
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                found[int(name)] = parse_stat(_read(f"/proc/{name}/stat", 1024))
    return found


def descendants(of: int, table: Mapping[int, Process], *, without: Iterable[int] = ()) -> set[int]:
    """Return the processes below one, leaving out the branches that start with ``without``."""
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    spared = {of, *without}
    found: set[int] = set()
    wanted = [of]
    while wanted:
        new = [pid for pid in children.get(wanted.pop(), ()) if pid not in found and pid not in spared]
        found.update(new)
        wanted += new
    return found


def private_bytes(pid: int) -> int | None:
    """Return a process's fair share of memory, files left out; None where the kernel does not tell.

    One that has ended since it was listed holds nothing: what it shared is counted where it still is.
    """
    try:
        text = _read(f"/proc/{pid}/smaps_rollup", 4096)
    except ProcessLookupError:
        return 0
    except FileNotFoundError:
        return None if os.path.exists(f"/proc/{pid}/stat") else 0  # noqa: PTH110 many times a second
    except OSError:
        return None
    told = dict(line.split(b":", 1) for line in text.splitlines()[1:] if b":" in line)
    names = (b"Pss_Anon", b"Pss_Shmem") if b"Pss_Anon" in told else (b"Pss",)
    return sum(int(told[name].split()[0]) << 10 for name in names if name in told)


def memory_of(pids: Iterable[int], table: Mapping[int, Process], enough: int) -> int:
    """Return the bytes held by processes together; exact only from ``enough`` upward, since exactness is dear."""
    rough = {pid: table[pid].resident_bytes for pid in pids}
    if sum(rough.values()) <= enough:
        return sum(rough.values())
    # Forked processes share pages, which the rough sum counts once for each.
    exact = {pid: private_bytes(pid) for pid in rough}
    return sum(rough[pid] if found is None else found for pid, found in exact.items())


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal; processes that are gone are no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _read(path: str, most: int) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, most)
    finally:
        os.close(handle)
