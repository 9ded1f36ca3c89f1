"""runner: owns `make fuzz`: so many mutants through the parser, each in bounds; the last line is one JSON object.

Workers are forked, each with the bounds of the real inspection process, and note what they are about to read in
memory that they share with their parent. So the parent knows the offending bytes whatever became of the worker: it
died (crash), said nothing for HANG_S (hang), or ran out of memory. Offenders are kept in --save for a test to be
made of them. Any number ends with status 1 if one was found.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import resource
import select
import signal
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT / "daemon")]

from fuzz.corpus import Seed, corpus  # noqa: E402 - its folder was just put on the path
from fuzz.mutate import mutant  # noqa: E402
from loopd.gguf import GgufError, examine  # noqa: E402

MEMORY: Final = 256 << 20
HANG_S: Final = 2.0
BATCH: Final = 20_000  # files a worker; a leak would show in the next figure, not here
MOST_OFFENDERS: Final = 50
#: Notes of a worker: file number, accepted, refused, microseconds of the slowest file, peak memory in KiB.
NOTES: Final = struct.Struct("<5Q")
EXIT_MEMORY: Final = 70
EXIT_CRASH: Final = 71


@dataclass
class Tally:
    """What was found."""

    executions: int = 0
    accepted: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0
    over_memory: int = 0
    worst_ms: float = 0.0
    peak_kib: int = 0
    offenders: list[str] = field(default_factory=list)


def work(seeds: list[Seed], first: int, count: int, salt: int, notes: mmap.mmap, done: int) -> int:
    """Read ``count`` mutants; return an exit status. Runs in the worker."""
    for limit, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (most, most))
    fd = os.memfd_create("mutant", os.MFD_CLOEXEC)
    path = Path(f"/proc/self/fd/{fd}")
    accepted = refused = worst = 0
    for number in range(first, first + count):
        data = mutant(seeds, number, salt)
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)
        NOTES.pack_into(notes, 0, number, accepted, refused, worst, _peak())
        begun = time.perf_counter_ns()
        try:
            examine(path)
            accepted += 1
        except GgufError as error:
            if not error.code or len(str(error)) > 600:
                return EXIT_CRASH
            refused += 1
        except MemoryError:
            return EXIT_MEMORY
        except BaseException as error:  # noqa: BLE001 - whatever else it is, it is what is looked for
            sys.stderr.write(f"mutant {number}: {error!r}\n")
            return EXIT_CRASH
        took = (time.perf_counter_ns() - begun) // 1000
        worst = max(worst, took)
        if number % 256 == 0:
            os.write(done, b".")
    NOTES.pack_into(notes, 0, first + count, accepted, refused, worst, _peak())
    return 0


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def batch(seeds: list[Seed], first: int, count: int, salt: int, tally: Tally, save: Path) -> int:
    """Run one worker; return the number of the next file."""
    notes = mmap.mmap(-1, mmap.PAGESIZE)
    heard, done = os.pipe()
    # What the parent holds is not the worker's to visit: fewer copied pages.
    gc.freeze()
    worker = os.fork()
    if worker == 0:
        status = EXIT_CRASH
        try:
            os.close(heard)
            status = work(seeds, first, count, salt, notes, done)
        finally:
            os._exit(status)
    os.close(done)
    hung = _wait(heard, notes)
    if hung:
        os.kill(worker, signal.SIGKILL)
    os.close(heard)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    number, accepted, refused, worst, peak = NOTES.unpack_from(notes, 0)
    tally.accepted += accepted
    tally.refused += refused
    tally.peak_kib = max(tally.peak_kib, peak)
    tally.worst_ms = max(tally.worst_ms, worst / 1000)
    if status == 0:
        tally.executions += count
        return first + count
    tally.executions += number - first + 1
    kind = "hang" if hung else "over_memory" if status == EXIT_MEMORY else "crash"
    tally.hangs += kind == "hang"
    tally.over_memory += kind == "over_memory"
    tally.crashes += kind == "crash"
    save.mkdir(parents=True, exist_ok=True)
    name = f"{kind}-{salt}-{number}.gguf"
    (save / name).write_bytes(mutant(seeds, number, salt))
    tally.offenders.append(name)
    return int(number) + 1


def _wait(heard: int, notes: mmap.mmap) -> bool:
    """Wait until the worker ends; True when it stands still on one file for longer than HANG_S."""
    last, since = -1, time.monotonic()
    while True:
        if select.select([heard], [], [], 0.25)[0] and not os.read(heard, 4096):
            return False
        number = NOTES.unpack_from(notes, 0)[0]
        if number != last:
            last, since = number, time.monotonic()
        elif time.monotonic() - since > HANG_S:
            return True


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--salt", type=int, default=1, help="another number gives other mutants")
    parser.add_argument("--save", type=Path, default=ROOT / ".tools" / "fuzz")
    asked = parser.parse_args()
    seeds = corpus()
    tally = Tally()
    begun = time.monotonic()
    number = 0
    while number < asked.runs and len(tally.offenders) < MOST_OFFENDERS:
        number = batch(seeds, number, min(BATCH, asked.runs - number), asked.salt, tally, asked.save)
    figures = {
        "executions": tally.executions,
        "accepted": tally.accepted,
        "refused": tally.refused,
        "crashes": tally.crashes,
        "hangs": tally.hangs,
        "over_memory": tally.over_memory,
        "worst_ms": round(tally.worst_ms, 2),
        "peak_mib": round(tally.peak_kib / 1024, 1),
        "seconds": round(time.monotonic() - begun, 1),
    }
    if tally.offenders:
        sys.stderr.write(f"kept in {asked.save}: {', '.join(tally.offenders)}\n")
    sys.stdout.write(json.dumps(figures) + "\n")
    return 1 if tally.offenders else 0


if __name__ == "__main__":
    sys.exit(main())
