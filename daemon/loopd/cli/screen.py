"""screen: owns what a terminal or a pipe gets: tables, lines and JSON on stdout, remarks on stderr.

On a terminal there are colours and live pictures; on a pipe, with NO_COLOR or a dumb terminal there are plain lines
of the same words, cut nowhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loopd.cli.words import plain

Mood = Literal["good", "busy", "bad", "off", ""]

_MARKS: dict[Mood, tuple[str, str]] = {
    "good": ("✔ ", "green"),
    "busy": ("● ", "yellow"),
    "bad": ("✖ ", "red"),
    "off": ("○ ", "dim"),
    "": ("", ""),
}
_GAP = "  "
_FRAMES_PER_S = 8


@dataclass(frozen=True, slots=True)
class Cell:
    """Words with a mood: the mood gives the icon and the colour, the words alone say everything."""

    text: str
    mood: Mood = ""

    def plain(self) -> str:
        """Return it without colour."""
        return f"{_MARKS[self.mood][0]}{plain(self.text)}"

    def rich(self) -> Text:
        """Return it with colour."""
        return Text(self.plain(), style=_MARKS[self.mood][1])


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def lines(self) -> list[str]:
        """Return aligned lines without colour."""
        table = [list(self.columns), *([cell.plain() for cell in row] for row in self.rows)]
        widths = [max(len(row[at]) for row in table) for at in range(len(self.columns))]
        padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in table]
        return [_GAP.join(row).rstrip() for row in padded]

    def rich(self) -> Table:
        """Return a table that fits itself into the terminal."""
        table = Table(*self.columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for row in self.rows:
            table.add_row(*(cell.rich() for cell in row))
        return table


Block = Cell | Sheet


def lines(blocks: Iterable[Block]) -> list[str]:
    """Return blocks as plain lines."""
    found: list[str] = []
    for block in blocks:
        found += block.lines() if isinstance(block, Sheet) else [block.plain()]
    return found


def picture(blocks: Iterable[Block]) -> RenderableType:
    """Return blocks as one picture in colour."""
    return Group(*(block.rich() for block in blocks))


@dataclass(frozen=True, slots=True)
class Screen:
    """Where a command writes."""

    fancy: bool  #: colours and live pictures
    terminal: bool  #: a person's terminal reads it, which foreign text must not steer

    def show(self, blocks: Sequence[Block]) -> None:
        """Write blocks to stdout."""
        if self.fancy:
            Console(highlight=False).print(picture(blocks))
        else:
            self.write("".join(f"{line}\n" for line in lines(blocks)))

    def line(self, text: str, mood: Mood = "") -> None:
        """Write one line to stdout."""
        self.show([Cell(text, mood)])

    def write(self, text: str) -> None:
        """Write text as it is to stdout, at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def json(self, body: BaseModel, *, indent: int | None = 2) -> None:
        """Write a body as JSON; ``indent`` None: on one line."""
        self.write(body.model_dump_json(indent=indent) + "\n")

    def remark(self, text: str) -> None:
        """Write one line to stderr: what is no part of the answer."""
        sys.stderr.write(plain(text, keep="\n") + "\n")
        sys.stderr.flush()

    def live(self, draw: Callable[[], Sequence[Block]]) -> Live:
        """Return a context in which a picture is drawn again and again; for fancy screens only."""
        return Live(
            console=Console(highlight=False),
            get_renderable=lambda: picture(draw()),
            refresh_per_second=_FRAMES_PER_S,
        )


def is_fancy(stream: Any) -> bool:  # Any: sys.stdout, or what a test put in its place
    """Tell whether colours and live pictures suit this stream."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def open_screen() -> Screen:
    """Return the screen of this process."""
    return Screen(fancy=is_fancy(sys.stdout), terminal=sys.stdout.isatty())
