"""segments: owns the eight segments that a long conversation is summarised in: as data, as text, and back. Pure."""

from __future__ import annotations

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

    def empty(self) -> bool:
        """Tell whether nothing at all is said."""
        return not any(self.items(name) for name, _ in TITLES)

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


def _unlike(items: Iterable[str]) -> list[str]:
    """Leave out what was said before in other letters."""
    return list({" ".join(item.casefold().split()).rstrip("."): item for item in items}.values())


def shorten(segments: Segments, tokens: int, measure: Callable[[str], int]) -> Segments:
    """Return the segments in so many tokens, as near as open items allow: long items are cut, then old ones go."""
    made = segments
    for longest in (300, 160, 80, LEAST_CHARS):
        if measure(made.render()) <= tokens:
            return made
        made = _cut(made, longest)
    for name in _DROPPED_FIRST:
        while (items := made.items(name)) and measure(made.render()) > tokens:
            # Half at a time: measuring is what costs. The task's first words are the last to go.
            gone = max(1, len(items) // 2)
            left = items[: len(items) - gone] if name == "task_overview" else items[gone:]
            if name == "task_overview" and not left:
                break
            made = made.model_copy(update={name: left})
    return made


def _cut(segments: Segments, longest: int) -> Segments:
    cut = {
        name: tuple(_one_line(item, longest) for item in segments.items(name))
        for name, _ in TITLES
        if name != "open_items"
    }
    return segments.model_copy(update=cut)
