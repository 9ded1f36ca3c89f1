"""tools: owns the table of tools: what each is called and says of itself, and what a call of it returns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from mcp_types import CallToolResult, TextContent, Tool, ToolAnnotations
from pydantic import BaseModel, ValidationError

from loopbox_toolrunner import arguments as given
from loopbox_toolrunner.files import Files, FileText, Listing, Written
from loopbox_toolrunner.jail import FileError, Jail
from loopbox_toolrunner.runner import Outcome, RefusedError, Runner
from loopbox_toolrunner.settings import Settings

A = TypeVar("A", bound=given.Arguments)
Answer = tuple[BaseModel, str, bool]  #: what it is, how a model reads it, whether it is an error

log = structlog.get_logger("toolrunner.tools")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tool."""

    tool: Tool
    call: Callable[[dict[str, Any]], Awaitable[Answer]]  # Any: JSON, parsed inside


class Toolbox:
    """The tools, by name."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self._settings = settings
        self._runner = runner
        self._files = Files(
            Jail(settings.workspace),
            max_read_bytes=settings.max_read_bytes,
            max_write_bytes=settings.max_read_bytes,
            output_bytes=settings.output_bytes,
        )
        self._entries: dict[str, Entry] = {}
        run = "Runs in /workspace without network; files stay between calls, processes do not."
        self._add("bash", f"Run a bash command. {run}", given.Bash, Outcome, self._bash)
        self._add("python", f"Run a Python 3 program. {run}", given.Code, Outcome, self._python)
        self._add("javascript", f"Run a Node.js program. {run}", given.Code, Outcome, self._javascript)
        self._add("read_file", "Read lines of a text file.", given.ReadFile, FileText, self._read, changes=False)
        self._add("write_file", "Create or replace a text file.", given.WriteFile, Written, self._write)
        self._add("edit_file", "Replace one piece of text in a file.", given.EditFile, Written, self._edit)
        self._add("list_files", "List a directory.", given.ListFiles, Listing, self._list, changes=False)

    def tools(self) -> list[Tool]:
        """Return what the tools say of themselves."""
        return [entry.tool for entry in self._entries.values()]

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call a tool. Whatever goes wrong with it is a result marked as error. Any: JSON."""
        started = time.monotonic()
        entry = self._entries.get(name)
        if entry is None:
            return _failure(f"there is no tool {name[:100]!r}; there are {', '.join(self._entries)}")
        try:
            what, text, failed = await entry.call(arguments)
        except ValidationError as error:
            return _failure(f"{name} was not run. {given.explain(error)}")
        except (given.ArgumentError, RefusedError, FileError) as error:
            return _failure(f"{name} was not run: {error}" if not isinstance(error, FileError) else str(error))
        log.info("tool.called", tool=name, failed=failed, seconds=round(time.monotonic() - started, 3))
        return CallToolResult(
            content=[TextContent(text=text)], structured_content=what.model_dump(mode="json"), is_error=failed
        )

    def _add(  # noqa: PLR0913 a row of the table
        self,
        name: str,
        description: str,
        accepts: type[A],
        returns: type[BaseModel],
        call: Callable[[A], Awaitable[Answer]],
        *,
        changes: bool = True,
    ) -> None:
        async def parsed(arguments: dict[str, Any]) -> Answer:  # Any: JSON
            return await call(accepts.model_validate(arguments))

        times = {"timeout_s": self._settings.timeout_s, "max_timeout_s": self._settings.max_timeout_s}
        tool = Tool(
            name=name,
            description=description,
            input_schema=given.schema_of(accepts, **times),
            output_schema=given.schema_of(returns),
            annotations=ToolAnnotations(read_only_hint=not changes, open_world_hint=False),
        )
        self._entries[name] = Entry(tool, parsed)

    async def _bash(self, told: given.Bash) -> Answer:
        return await self._run(told, "bash", "--noprofile", "--norc", "-c", given.check_command(told.command))

    async def _python(self, told: given.Code) -> Answer:
        return await self._run(told, "python3", "-c", given.check_command(told.code))

    async def _javascript(self, told: given.Code) -> Answer:
        return await self._run(told, "node", "-e", given.check_command(told.code))

    async def _run(self, told: given.Timed, *argv: str) -> Answer:
        box = self._settings
        seconds = told.timeout_s if "timeout_s" in told.model_fields_set else min(box.timeout_s, box.max_timeout_s)
        if seconds > box.max_timeout_s:
            raise given.ArgumentError(f"timeout_s: must be {box.max_timeout_s} at most")
        outcome = await self._runner.run(argv, seconds)
        return outcome, readable(outcome), outcome.exit_code != 0 or outcome.timed_out

    async def _read(self, told: given.ReadFile) -> Answer:
        found = await asyncio.to_thread(self._files.read, told.path, told.offset, told.limit)
        return found, found.content or "(empty)", False

    async def _write(self, told: given.WriteFile) -> Answer:
        done = await asyncio.to_thread(self._files.write, told.path, told.content)
        return done, f"wrote {done.size} bytes to {done.path}", False

    async def _edit(self, told: given.EditFile) -> Answer:
        done = await asyncio.to_thread(self._files.edit, told.path, told.old, told.new)
        return done, f"edited {done.path}, {done.size} bytes now", False

    async def _list(self, told: given.ListFiles) -> Answer:
        found = await asyncio.to_thread(self._files.list, told.path)
        lines = [f"{e.path}{'/' if e.kind == 'directory' else f'  {e.size}'}" for e in found.entries]
        return found, "\n".join(lines) or "(empty)", False


def readable(outcome: Outcome) -> str:
    """Return an outcome as a model reads it best: output first, the rest only where it matters."""
    parts = [outcome.stdout.rstrip("\n")] if outcome.stdout else []
    if outcome.stderr:
        parts.append(f"[stderr]\n{outcome.stderr.rstrip()}")
    if outcome.exit_code:
        parts.append(f"[exit code {outcome.exit_code}]")
    return "\n".join(parts) or "(no output)"


def _failure(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text)], is_error=True)
