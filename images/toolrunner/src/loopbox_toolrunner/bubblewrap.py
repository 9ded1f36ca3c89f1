"""bubblewrap: owns the arguments that put one call into namespaces of its own, where the kernel lets us. Pure.

The container is the boundary. This parts the calls of one sandbox from each other and from the server's socket.
It needs user namespaces, which a seccomp profile that forbids new namespaces rightly refuses: then nothing is lost
but this second fence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PROGRAM = "/usr/bin/bwrap"


def wrap(argv: Sequence[str], *, workspace: Path, hidden: Path) -> tuple[str, ...]:
    """Return the command that runs ``argv`` in pid, ipc and uts namespaces of its own.

    All it sees is read-only, but the workspace and /tmp. hidden: a folder that it sees empty.
    No --die-with-parent: the keeper ends what is left, after the time of grace that a command has.
    """
    box, empty = str(workspace), str(hidden)
    return (
        *(PROGRAM, "--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
        *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
        *("--bind", "/tmp", "/tmp", "--bind", box, box, "--tmpfs", empty, "--chdir", box),  # noqa: S108 the box's own
        "--",
        *argv,
    )
