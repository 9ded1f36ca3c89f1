"""seen: owns what one agent last saw of each file of a sandbox, so that it never writes over what it has not seen.

The tool runner compares ``expected_sha256`` with the file and refuses when it differs: the backstop where paths alias
or another agent wrote meanwhile. One Seen for each agent and sandbox; forget it with the sandbox.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

from pydantic import JsonValue

from loopbox_agent.tool_access import normal
from loopbox_agent.tool_spec import ToolSpec

MAX_FILES = 4096  # remembered; the ones longest unused go first
_FILE_TOOLS = frozenset({"read_file", "write_file", "edit_file"})
_WRITES = frozenset({"write_file", "edit_file"})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EXPECTED = "expected_sha256"


class Seen:
    """The files that one agent knows."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, str] = OrderedDict()

    def expect(self, tool: ToolSpec, arguments: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Return the arguments with the hash of the file as last seen, where the tool takes one and none is given."""
        made = dict(arguments)
        properties = tool.schema.get("properties")
        if tool.kind != "sandbox" or tool.source_name not in _WRITES or made.get(_EXPECTED):
            return made
        if not isinstance(properties, dict) or _EXPECTED not in properties:
            return made
        path = normal(made.get("path"))
        if path is not None and (known := self._files.get(path)):
            self._files.move_to_end(path)
            made[_EXPECTED] = known
        return made

    def note(
        self, tool: ToolSpec, arguments: Mapping[str, JsonValue], result: Mapping[str, JsonValue], *, is_error: bool
    ) -> None:
        """Remember what a call showed of a file."""
        if tool.kind != "sandbox" or tool.source_name not in _FILE_TOOLS or is_error:
            return
        path = normal(arguments.get("path"))
        if path is None:
            return
        told = result.get("sha256")
        if isinstance(told, str) and _SHA256.fullmatch(told):
            self._files[path] = told
            self._files.move_to_end(path)
            if len(self._files) > MAX_FILES:
                self._files.popitem(last=False)
        else:
            self._files.pop(path, None)  # changed, and not known how


def conflict_text(tool: ToolSpec, arguments: Mapping[str, JsonValue], result: Mapping[str, JsonValue]) -> str | None:
    """Return what to tell the model when a write was refused because the file is not the one it saw; None when not."""
    if tool.source_name not in _WRITES or not arguments.get(_EXPECTED):
        return None
    if not _is_conflict(result):
        return None
    return (
        f"{arguments.get('path')} was not changed: somebody else changed it since you read it. "
        "Read it again with read_file, then make your change to what is there now."
    )


def _is_conflict(result: Mapping[str, JsonValue]) -> bool:
    """Tell a refusal for the hash from other errors: by its code, or by its text naming the argument."""
    code = result.get("code") or result.get("error")
    if isinstance(code, str) and code in {"conflict", "changed", "sha256_mismatch"}:
        return True
    text = result.get("text")
    return isinstance(text, str) and (_EXPECTED in text or "changed since" in text)
