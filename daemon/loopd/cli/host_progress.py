"""host_progress: owns showing numbered steps with their times: live on a terminal, a line each on a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

from loopd.cli.host_commands import Say
from loopd.cli.screen import Cell, Mood, Screen
from loopd.cli.words import span

QUIET_S = 15.0  # on a pipe a step that takes long says this often what it is at
DETAIL_CHARACTERS = 70


class Aside(Screen):
    """A screen whose lines are remarks, where stdout is for the answer alone."""

    def line(self, text: str, mood: Mood = "") -> None:
        """Write one line to stderr."""
        del mood
        self.remark(text)


@dataclass
class Progress:
    """Runs steps one after the other; the first that fails ends it."""

    screen: Screen
    total: int
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    _began_at: float = field(default=0.0)

    def __post_init__(self) -> None:
        self._began_at = self.clock()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self._began_at

    def step(self, name: str, work: Callable[[Say], str]) -> None:
        """Run one step; ``work`` is given something to tell its details, and returns what came of it."""
        self.done += 1
        line = _Line(f"[{self.done:2}/{self.total}] {name}", self.screen, self.clock)
        with self.screen.live(line.draw) if self.screen.fancy else nullcontext():
            try:
                line.end(work(line.tell), "good")
            except BaseException:
                line.end("failed", "bad")
                raise
            finally:
                if not self.screen.fancy:
                    self.screen.line(line.text())


class _Line:
    """One step's line."""

    def __init__(self, title: str, screen: Screen, clock: Callable[[], float]) -> None:
        self._title = title
        self._screen = screen
        self._clock = clock
        self._began_at = self._told_at = clock()
        self._took_s: float | None = None
        self._detail = ""
        self._mood: Mood = "busy"

    def tell(self, detail: str) -> None:
        """Show what is being done."""
        self._detail = detail
        if not self._screen.fancy and self._clock() - self._told_at >= QUIET_S:
            self._told_at = self._clock()
            self._screen.line(f"        {span(self._told_at - self._began_at)}: {detail}")

    def end(self, result: str, mood: Mood) -> None:
        """Fix the line as it stays."""
        self._detail, self._mood, self._took_s = result, mood, self._clock() - self._began_at

    def text(self) -> str:
        """Return the line."""
        took = self._clock() - self._began_at if self._took_s is None else self._took_s
        # A detail under way is somebody's output and may be long; a result is ours.
        detail = self._detail[:DETAIL_CHARACTERS] if self._took_s is None else self._detail
        return f"{self._title} … {span(took)}  {detail}".rstrip()

    def draw(self) -> list[Cell]:
        """Return the picture of the line."""
        return [Cell(self.text(), self._mood)]
