"""seccomp: owns the list of system calls that a sandbox may make: a data file, read once.

An allow-list, narrower than the container engine's own: nothing of namespaces, mounts, tracing, keys, bpf, io_uring,
perf, userfaultfd, modules or other processes' memory; sockets of four kinds. What is not listed is refused with EPERM.
Other architectures' calls (i386 on amd64) kill the caller.
"""

from __future__ import annotations

import functools
import json
from importlib import resources


@functools.cache
def sandbox_profile() -> str:
    """Return the profile as the engine takes it: JSON, without its comments and spaces."""
    told = json.loads(resources.files("loopd").joinpath("profiles/sandbox-seccomp.json").read_text())
    for rule in told["syscalls"]:
        rule.pop("comment", None)
    return json.dumps(told, separators=(",", ":"))
