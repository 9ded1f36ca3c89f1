"""tools: owns the table of tools: what each is called and says of itself, and what a call of it returns."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import Any

import structlog
from mcp_types import CallToolResult, ImageContent, TextContent, Tool
from pydantic import ValidationError

from loopbox_toolrunner import arguments as given
from loopbox_toolrunner.files import ConflictError, FileText, Listing, Written
from loopbox_toolrunner.jail import FileError
from loopbox_toolrunner.runner import Outcome, RefusedError
from loopbox_toolrunner.search import Matches, Paths, Search
from loopbox_toolrunner.tool import Answer, Row, Seat, ToolError, Traits, describe

MIB = 1 << 20
WHERE = "Runs in /workspace, without network unless hosts were granted; files stay between calls, processes do not."
TOO_LONG = "the time was over; make the pattern simpler or the place smaller"

log = structlog.get_logger("toolrunner.tools")


class Toolbox:
    """The tools, by name. A row's name must be new."""

    def __init__(self, seat: Seat, extra: Sequence[Row] = ()) -> None:
        self._seat = seat
        self._search = Search(seat.jail, seat.runner, seat.settings.search_s)
        rows = [*self._running(), *self._filing(), *extra]
        self._rows = {row.name: row for row in rows}
        if len(self._rows) != len(rows):
            raise ValueError(f"two tools have one name: {', '.join(row.name for row in rows)}")
        self._told = {
            granted: [describe(row, seat.settings, granted=granted) for row in rows] for granted in (False, True)
        }

    def tools(self) -> list[Tool]:
        """Return what the tools say of themselves."""
        return self._told[self._seat.egress.granted]

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call a tool. Whatever goes wrong with it is a result marked as error. Any: JSON."""
        started = time.monotonic()
        row = self._rows.get(name)
        if row is None:
            return _failure(f"there is no tool {name[:100]!r}; there are {', '.join(self._rows)}")
        try:
            answer = await row.call(row.accepts.model_validate(arguments))
        except ValidationError as error:
            return _failure(f"{name} was not run. {given.explain(error)}")
        except ConflictError as error:
            return _failure(str(error), error.found.model_dump(mode="json"))
        except (given.ArgumentError, RefusedError) as error:
            return _failure(f"{name} was not run: {error}")
        except (FileError, ToolError) as error:
            return _failure(str(error))
        log.info("tool.called", tool=name, failed=answer.failed, seconds=round(time.monotonic() - started, 3))
        images = [ImageContent(data=base64.b64encode(i).decode(), mime_type="image/png") for i in answer.images]
        return CallToolResult(
            content=[TextContent(text=answer.text), *images],
            structured_content=answer.what.model_dump(mode="json", exclude_none=True),
            is_error=answer.failed,
        )

    def _running(self) -> list[Row]:
        box = self._seat.settings

        def traits(word: str) -> Traits:
            return Traits(
                level="execute",
                capabilities=("code.run", word),
                memory_mb=box.memory_bytes // MIB,
                seconds=box.timeout_s,
                destructive=True,
                reaches_out=True,
            )

        return [
            Row("bash", f"Run a bash command. {WHERE}", given.Bash, Outcome, self._bash, traits("shell")),
            Row("python", f"Run a Python 3 program. {WHERE}", given.Code, Outcome, self._python, traits("python")),
            Row("javascript", f"Run a Node.js program. {WHERE}", given.Code, Outcome, self._node, traits("javascript")),
        ]

    def _filing(self) -> list[Row]:
        reads = Traits(level="read", capabilities=("files.read",))
        writes = Traits(level="write", capabilities=("files.write",), destructive=True, idempotent=True)
        edits = Traits(level="write", capabilities=("files.write",), destructive=True)
        finds = Traits(
            level="read",
            capabilities=("files.read", "files.search"),
            memory_mb=64,
            seconds=self._seat.settings.search_s,
        )
        return [
            Row("read_file", "Read lines of a text file.", given.ReadFile, FileText, self._read, reads),
            Row("write_file", "Create or replace a text file.", given.WriteFile, Written, self._write, writes),
            Row("edit_file", "Replace one piece of text in a file.", given.EditFile, Written, self._edit, edits),
            Row("list_files", "List a directory.", given.ListFiles, Listing, self._list, reads),
            Row("search_files", "Find lines in files.", given.SearchFiles, Matches, self._lines, finds),
            Row("glob", "Find files by name.", given.FindFiles, Paths, self._paths, finds),
        ]

    async def _bash(self, told: given.Bash) -> Answer:
        return await self._run(told, "bash", "--noprofile", "--norc", "-c", given.check_command(told.command))

    async def _python(self, told: given.Code) -> Answer:
        return await self._run(told, "python3", "-c", given.check_command(told.code))

    async def _node(self, told: given.Code) -> Answer:
        return await self._run(told, "node", "-e", given.check_command(told.code))

    async def _run(self, told: given.Timed, *argv: str) -> Answer:
        seconds = given.seconds_of(told, self._seat.settings)
        outcome = await self._seat.runner.run(argv, seconds, keep=True)
        return Answer(outcome, readable(outcome), outcome.exit_code != 0 or outcome.timed_out)

    async def _read(self, told: given.ReadFile) -> Answer:
        found = await asyncio.to_thread(self._seat.files.read, told.path, told.offset, told.limit)
        return Answer(found, found.content or "(empty)")

    async def _write(self, told: given.WriteFile) -> Answer:
        done = await asyncio.to_thread(self._seat.files.write, told.path, told.content, told.expected_sha256)
        return Answer(done, f"wrote {done.size} bytes to {done.path}")

    async def _edit(self, told: given.EditFile) -> Answer:
        done = await asyncio.to_thread(self._seat.files.edit, told.path, told.old, told.new, told.expected_sha256)
        return Answer(done, f"edited {done.path}, {done.size} bytes now")

    async def _list(self, told: given.ListFiles) -> Answer:
        found = await asyncio.to_thread(self._seat.files.list, told.path)
        lines = [f"{e.path}{'/' if e.kind == 'directory' else f'  {e.size}'}" for e in found.entries]
        return Answer(found, "\n".join(lines) or "(empty)")

    async def _lines(self, told: given.SearchFiles) -> Answer:
        found = await self._search.lines(told)
        lines = [f"{m.path}:{m.line}: {m.text}" for m in found.matches]
        return Answer(found, _found(lines, found), failed=found.timed_out)

    async def _paths(self, told: given.FindFiles) -> Answer:
        found = await self._search.paths(told)
        return Answer(found, _found(found.paths, found), failed=found.timed_out)


def readable(outcome: Outcome) -> str:
    """Return an outcome as a model reads it best: output first, the rest only where it matters."""
    parts = [outcome.stdout.rstrip("\n")] if outcome.stdout else []
    if outcome.stderr:
        parts.append(f"[stderr]\n{outcome.stderr.rstrip()}")
    if outcome.exit_code:
        parts.append(f"[exit code {outcome.exit_code}]")
    return "\n".join(parts) or "(no output)"


def _found(lines: Sequence[str], found: Matches | Paths) -> str:
    end = [f"[{TOO_LONG}]"] if found.timed_out else ["[there is more]"] if found.truncated else []
    return "\n".join([*lines, *end]) or "(nothing found)"


def _failure(text: str, what: dict[str, Any] | None = None) -> CallToolResult:  # Any: JSON
    return CallToolResult(content=[TextContent(text=text)], structured_content=what, is_error=True)
