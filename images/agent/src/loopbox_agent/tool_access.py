"""tool_access: owns what a tool call touches, derived from the tool and its arguments alone, and which two conflict.

A domain is something with files or state of its own: one sandbox, one browser, one server. Calls in different domains
never conflict. Paths are compared by name; a name can lead elsewhere through a symbolic link, so a path is ``certain``
only where nothing has run yet that could have made one (the schedule knows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from loopbox_agent.tool_spec import ToolSpec

ROOT = "/workspace"
EVERYTHING = ""  #: the workspace itself: an ancestor of each path

_READS = frozenset({"read_file", "list_files"})
_WRITES = frozenset({"write_file", "edit_file"})


@dataclass(frozen=True, slots=True)
class Access:
    """What a call touches."""

    domain: str = ""  #: "" touches nothing that another call could
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    exclusive: bool = False  #: alone in its domain
    certain: bool = True  #: the paths lead where they say

    @property
    def writing(self) -> bool:
        """Whether it may change something."""
        return self.exclusive or bool(self.writes)


FREE = Access()


def access_of(tool: ToolSpec, arguments: Mapping[str, JsonValue], *, session: str, certain: bool = True) -> Access:
    """Return what a call touches. Whatever is not known to be harmless has its domain to itself.

    session: of the sandbox; the same for all agents that share it. certain: no link can be in it.
    """
    if tool.kind == "server":
        return FREE if tool.effect == "read" else Access(f"server:{tool.source}", exclusive=True)
    if tool.kind == "builtin":
        return FREE if tool.effect in {"read", "network"} else Access(f"builtin:{tool.name}", exclusive=True)
    domain = f"sandbox:{session}"
    name = tool.source_name
    if name not in _READS | _WRITES:
        # What only reads may go beside reads; the rest runs programs, which touch any file.
        return (
            Access(domain, reads=frozenset({EVERYTHING})) if tool.effect == "read" else Access(domain, exclusive=True)
        )
    path = normal(arguments.get("path", "." if name == "list_files" else None))
    touched = frozenset({EVERYTHING if path is None else path})
    certain = certain and path is not None
    if name in _READS:
        return Access(domain, reads=touched, certain=certain)
    return Access(domain, writes=touched, certain=certain)


def normal(path: JsonValue) -> str | None:
    """Return a path below the workspace without "." and doubled slashes, "" for the workspace itself.

    None when it can't be told by name: it is no text, leaves the workspace, or steps back over a name, which leads
    elsewhere when that name is a link.
    """
    if not isinstance(path, str) or "\0" in path:
        return None
    absolute = path.startswith("/")
    steps = [step for step in path.split("/") if step not in {"", "."}]
    if ".." in steps:
        return None
    if not absolute:
        return "/".join(steps)
    if steps[:1] != [ROOT[1:]]:
        return None
    return "/".join(steps[1:])


def conflict(one: Access, other: Access) -> bool:
    """Tell whether two calls must not run at the same time."""
    if one.domain != other.domain or not one.domain or not (one.writing or other.writing):
        return False
    if one.exclusive or other.exclusive or not (one.certain and other.certain):
        return True
    return _overlap(one.writes, other.writes) or _overlap(one.writes, other.reads) or _overlap(one.reads, other.writes)


def _overlap(some: frozenset[str], others: frozenset[str]) -> bool:
    return any(_holds(a, b) or _holds(b, a) for a in some for b in others)


def _holds(directory: str, path: str) -> bool:
    return directory in {EVERYTHING, path} or path.startswith(directory + "/")
