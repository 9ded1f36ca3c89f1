"""harm: owns what is done to a process inside a container from outside: told to exit with a code, starved of memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from docker.models.containers import Container

PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_ATTACH, PTRACE_DETACH = 12, 13, 16, 17
EXIT_GROUP = 231  # x86-64
WALL = 0x40000000
REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
SYSCALL = b"\x0f\x05"
END_S = 10.0


class Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in REGISTERS]


def main_process(container: Container) -> int:
    """Return the process id, as this host sees it, of what the container's init started."""
    container.reload()
    first = int(container.attrs["State"]["Pid"])
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return int(children[0])


def exit_with(pid: int, code: int) -> None:
    """Have a process call exit_group(code), as if it had come to that by itself."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    ptrace.restype = ctypes.c_long

    def call(request: int, data: int = 0) -> None:
        if ptrace(request, pid, None, data) < 0:
            raise OSError(ctypes.get_errno(), f"ptrace request {request} on {pid}")

    call(PTRACE_ATTACH)
    os.waitpid(pid, WALL)
    registers = Registers()
    call(PTRACE_GETREGS, ctypes.addressof(registers))
    registers.orig_rax = 2**64 - 1  # whatever call it was in is not begun anew
    registers.rax, registers.rdi, registers.rip = EXIT_GROUP, code, find_syscall(pid)
    call(PTRACE_SETREGS, ctypes.addressof(registers))
    call(PTRACE_DETACH)


def find_syscall(pid: int) -> int:
    """Return where a process has an instruction that enters the kernel: every vDSO has one."""
    line = re.search(r"^([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)
    assert line is not None, f"process {pid} has no vDSO"
    start, end = int(line[1], 16), int(line[2], 16)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(start)
        code = memory.read(end - start)
    return start + code.index(SYSCALL)


EATER = """
import os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
open("/proc/self/oom_score_adj", "w").write("-1000")
eaten = []
while True:
    eaten.append(bytearray(os.urandom(1) * (4 << 20)))
"""


def starve(container: Container) -> None:
    """Use up the container's memory limit until the kernel kills its main process for it."""
    pid = main_process(container)
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
    eater = subprocess.Popen([sys.executable, "-c", EATER, str(memory_group(pid) / "cgroup.procs")])
    try:
        deadline = time.monotonic() + END_S
        while alive(pid):
            assert time.monotonic() < deadline, "the kernel killed nobody for memory"
            assert eater.poll() is None, "the kernel killed the one that eats"
            time.sleep(0.005)
    finally:
        eater.kill()  # before Docker wants its control group away
        eater.wait()


def memory_group(pid: int) -> Path:
    """Return the directory of a process's memory control group, of version 1 or 2."""
    root = Path("/sys/fs/cgroup")
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if "memory" in kinds.split(","):
            return root / "memory" / path.lstrip("/")
        if not kinds and not (root / "memory").exists():
            return root / path.lstrip("/")
    raise AssertionError(f"process {pid} is in no memory control group")


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """SIGSTOP a process; let it go on at the end, if it is still there."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
