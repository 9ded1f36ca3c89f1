"""search: owns search_files and glob: one killable process for each, and what it found."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from loopbox_toolrunner.arguments import FindFiles, SearchFiles
from loopbox_toolrunner.files import printable
from loopbox_toolrunner.jail import FileError, Jail
from loopbox_toolrunner.runner import Runner

CHILD = Path(__file__).with_name("search_child.py")
ANSWER_BYTES = 96 << 10  # more than the child ever writes


class Match(BaseModel):
    """One line that matches."""

    model_config = ConfigDict(frozen=True)

    path: str
    line: int = Field(description="counted from 0, as read_file's offset")
    text: str


class Matches(BaseModel):
    """The lines that match."""

    model_config = ConfigDict(frozen=True)

    matches: list[Match]
    searched: int = Field(description="files looked into")
    skipped: int = Field(description="files too big or not text")
    truncated: bool = Field(description="there are more, or the time was over")
    timed_out: bool


class Paths(BaseModel):
    """The files whose names match."""

    model_config = ConfigDict(frozen=True)

    paths: list[str]
    truncated: bool = Field(description="there are more, or the time was over")
    timed_out: bool


class Search:
    """Looks through the workspace."""

    def __init__(self, jail: Jail, runner: Runner, seconds: int) -> None:
        self._jail = jail
        self._runner = runner
        self._seconds = seconds

    async def lines(self, told: SearchFiles) -> Matches:
        """Return lines that match. Raises FileError, RefusedError."""
        hits, end, timed_out = await self._find(
            told.path, told.files, told.max_results, told.pattern, literal=told.literal, ignore_case=told.ignore_case
        )
        return Matches(
            matches=[
                Match(path=printable(str(h["path"])), line=int(str(h["line"])), text=str(h["text"])) for h in hits
            ],
            searched=int(str(end.get("searched", 0))),
            skipped=int(str(end.get("skipped", 0))),
            truncated=bool(end.get("more", True)),
            timed_out=timed_out,
        )

    async def paths(self, told: FindFiles) -> Paths:
        """Return files whose path matches. Raises FileError, RefusedError."""
        hits, end, timed_out = await self._find(told.path, told.pattern, told.max_results)
        found = [printable(str(h["path"])) for h in hits]
        return Paths(paths=found, truncated=bool(end.get("more", True)), timed_out=timed_out)

    async def _find(  # noqa: PLR0913 the child's arguments
        self, path: str, names: str, most: int, pattern: str = "", *, literal: bool = False, ignore_case: bool = False
    ) -> tuple[list[dict[str, object]], dict[str, object], bool]:
        """Return hits, the count (empty when the child did not get that far) and whether the time was over."""
        start = await asyncio.to_thread(self._jail.resolve, path)
        if not await asyncio.to_thread(start.exists):
            raise FileError(f"{path!r} is not there; list_files shows what is")
        asked = {
            "root": str(self._jail.root),
            "start": str(start),
            "pattern": pattern,
            "names": names,
            "literal": literal,
            "ignore_case": ignore_case,
            "most": most,
        }
        argv = [sys.executable, "-I", "-S", str(CHILD), json.dumps(asked)]
        outcome = await self._runner.run(argv, self._seconds, shown=ANSWER_BYTES)
        said: list[dict[str, object]] = []
        for line in outcome.stdout.splitlines():
            with contextlib.suppress(ValueError):  # the last one of a killed child may be half
                said.append(json.loads(line))
        if outcome.exit_code and not outcome.timed_out:
            raise FileError(outcome.stderr.strip()[-300:] or "the search was ended")
        hits = [one for one in said if "path" in one]
        return hits, next((one for one in said if "more" in one), {}), outcome.timed_out
