"""segments: owns the eight segments that a long conversation is summarised in: as data, as text, and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue

MAX_ITEMS: Final = 24  #: of one segment
MAX_CHARS: Final = 600  #: of one item
MAX_OPEN: Final = 64  #: open items
MAX_OPEN_CHARS: Final = 1000
LEAST_CHARS: Final = 40  #: an item is cut to this before it is dropped

#: Field and heading, in the order in which they are told.
TITLES: Final = (
    ("task_overview", "Task overview"),
    ("key_decisions", "Key decisions"),
    ("progress", "Progress"),
    ("blockers", "Blockers"),
    ("open_items", "Open items"),
    ("context", "Context"),
    ("next_steps", "Next steps"),
    ("metadata", "Metadata"),
)
_WORD: Final = re.compile(r"[a-z0-9_]{4,}")
#: What is given up first when there is no room: what can best be found again. Open items are never given up.
_DROPPED_FIRST: Final = ("metadata", "progress", "context", "next_steps", "blockers", "key_decisions", "task_overview")


def _one_line(text: str, longest: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1].rstrip()}…"


def _items(most: int, longest: int) -> BeforeValidator:
    def read(value: object) -> tuple[str, ...]:
        """Take a list, a text or nothing; small models give each."""
        listed = value if isinstance(value, list | tuple) else [value] if isinstance(value, str) else []
        told = (_one_line(item, longest) for item in listed if isinstance(item, str))
        return tuple(dict.fromkeys(line for line in told if line))[:most]

    return BeforeValidator(read)


Items = Annotated[tuple[str, ...], _items(MAX_ITEMS, MAX_CHARS)]
OpenItems = Annotated[tuple[str, ...], _items(MAX_OPEN, MAX_OPEN_CHARS)]


class Segments(BaseModel):
    """What is left of the earlier part of a conversation; each item is one line."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task_overview: Items = ()  #: what the user wants, in the user's own terms
    key_decisions: Items = ()  #: what was chosen, and why
    progress: Items = ()  #: what was done
    blockers: Items = ()  #: what stands in the way
    open_items: OpenItems = ()  #: what is still owed, word for word
    context: Items = ()  #: facts, names, places, limits that later steps need
    next_steps: Items = ()  #: what comes next
    metadata: Items = ()  #: files, tools, counts

    def items(self, name: str) -> tuple[str, ...]:
        """Return one segment by its field."""
        found: tuple[str, ...] = getattr(self, name)
        return found

    def __len__(self) -> int:
        """Return how many lines there are."""
        return sum(len(self.items(name)) for name, _ in TITLES)

    def render(self) -> str:
        """Return the text that the model reads; `parse_segments` reads it back."""
        blocks = (
            f"## {title}\n" + "\n".join(f"- {item}" for item in self.items(name))
            for name, title in TITLES
            if self.items(name)
        )
        return "\n\n".join(blocks)


def segments_schema(items: int, chars: int) -> dict[str, JsonValue]:
    """Return the JSON schema that a model fills the segments under; small bounds keep small models from running on.

    Open items are left out: they are carried over word for word, never told again by a model.
    """
    line: JsonValue = {"type": "string", "maxLength": chars}
    named: dict[str, JsonValue] = {
        name: {"type": "array", "items": line, "maxItems": items}
        for name, _ in TITLES
        if name not in {"open_items", "metadata"}
    }
    return {"type": "object", "properties": named, "required": [*named], "additionalProperties": False}


def parse_segments(text: str) -> Segments:
    """Return the segments in a text; what stands under no heading of ours is left out."""
    fields = {title.casefold(): name for name, title in TITLES}
    found: dict[str, list[str]] = {}
    name: str | None = None
    for line in text.splitlines():
        if line.startswith("## "):
            name = fields.get(line[3:].strip().casefold())
        elif name and line.startswith("- "):
            found.setdefault(name, []).append(line[2:])
    return Segments.model_validate(found)


def merge_segments(earlier: Segments, newer: Segments) -> Segments:
    """Return both, the newer last; where there are too many, the oldest go, but the first task stays."""
    made: dict[str, tuple[str, ...]] = {}
    for name, _ in TITLES:
        most = MAX_OPEN if name == "open_items" else MAX_ITEMS
        both = _unlike((*earlier.items(name), *newer.items(name)))
        if len(both) > most:
            both = [*both[:1], *both[len(both) - most + 1 :]] if name == "task_overview" else both[len(both) - most :]
        made[name] = tuple(both)
    return Segments.model_validate(made)


def ground(segments: Segments, source: str) -> Segments:
    """Return only the lines that tell of the source: a small model also fills a schema with what it made up.

    A line needs two words, and a third of its longer ones in the source; lines in scripts without spaces pass.
    """
    known = set(_WORD.findall(source.casefold()))

    def told(line: str) -> bool:
        if not line.isascii():
            return True
        words = _WORD.findall(line.casefold())
        return len(line.split()) > 1 and 3 * sum(word in known for word in words) >= max(len(words), 1)

    return segments.model_copy(
        update={name: tuple(line for line in segments.items(name) if told(line)) for name, _ in TITLES}
    )


def _unlike(items: Iterable[str]) -> list[str]:
    """Leave out what was said before in other letters."""
    return list({" ".join(item.casefold().split()).rstrip("."): item for item in items}.values())


def shorten(segments: Segments, tokens: int, measure: Callable[[str], int]) -> Segments:
    """Return the segments in so many tokens, as near as open items allow: few whole lines rather than many halves."""
    made = segments
    for longest, least in ((300, MAX_ITEMS), (160, 3), (120, 1), (LEAST_CHARS, 0)):
        made = _cut(made, longest)
        for name in _DROPPED_FIRST:
            # The task's first words are the last to go: they stay.
            kept = max(least, 1) if name == "task_overview" else least
            while len(items := made.items(name)) > kept and measure(made.render()) > tokens:
                # Half at a time: measuring is what costs.
                left = max(len(items) // 2, kept)
                made = made.model_copy(update={name: items[:left] if name == "task_overview" else items[-left:][:left]})
        if measure(made.render()) <= tokens:
            break
    return made


def _cut(segments: Segments, longest: int) -> Segments:
    cut = {
        name: tuple(_one_line(item, longest) for item in segments.items(name))
        for name, _ in TITLES
        if name != "open_items"
    }
    return segments.model_copy(update=cut)
