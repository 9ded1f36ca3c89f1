"""composed: owns tools that nobody has: verbs, things and fields put together, and how one would ask for each. Pure.

A model that has seen hundreds of them learns to read the tool's description instead of learning the tool. Verbs,
things and fields of tools for tests are others than those that are trained, so no name of a tested tool was ever seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from loopbox_trainer.rows import Call, Tool

_VERBS: Final = (
    ("create", "Create"), ("get", "Get"), ("update", "Update"), ("cancel", "Cancel"), ("find", "Find"),
    ("send", "Send"),
    ("book", "Book"), ("schedule", "Schedule"), ("convert", "Convert"), ("estimate", "Estimate"), ("rate", "Rate"),
    ("archive", "Archive"),
)  # fmt: skip
_VERBS_HELD_OUT: Final = (("register", "Register"), ("check", "Check"), ("order", "Order"), ("compare", "Compare"))
_THINGS: Final = (
    "invoice",
    "meeting",
    "flight",
    "ticket",
    "recipe",
    "song",
    "customer",
    "parcel",
    "reminder",
    "room",
    "contract",
    "lesson",
    "payment",
    "review",
    "alarm",
    "playlist",
    "article",
    "route",
    "dinner",
    "forecast",
    "account",
    "vehicle",
    "print_job",
    "survey",
)
_THINGS_HELD_OUT: Final = ("shipment", "appointment", "hotel", "complaint", "podcast", "medicine", "exam", "donation")


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    type: str
    text: str
    values: tuple[Any, ...]  #: Any: JSON
    said: str = ""  #: how it is named in a request


def _field(name: str, text: str, *values: Any, enum: bool = False) -> _Field:  # Any: JSON
    kind = "enum" if enum else {int: "integer", float: "number", bool: "boolean"}.get(type(values[0]), "string")
    return _Field(name, kind, text, values, name.replace("_", " "))


_FIELDS: Final = (
    _field("customer", "Name of the customer.", "Alice", "Bob Miller", "Carla", "Deniz", "Emma Stone"),
    _field("city", "Name of the city.", "Berlin", "Oslo", "Madrid", "New York", "Lagos"),
    _field("date", "Day as YYYY-MM-DD.", "2026-03-01", "2026-11-24", "2027-01-15"),
    _field("amount", "Amount in euros.", 12.5, 99.0, 250.75, 40.0),
    _field("count", "How many.", 2, 3, 5, 12),
    _field("priority", "How urgent it is.", "low", "normal", "high", enum=True),
    _field("title", "Short title.", "Spring party", "Team lunch", "Blue moon", "Quarterly plan"),
    _field("minutes", "Length in minutes.", 15, 30, 45, 90),
    _field("urgent", "Whether it is urgent.", True, False),
    _field("note", "Free text.", "ring twice", "no sugar", "leave at the door"),
    _field("currency", "Currency code.", "EUR", "USD", "CHF", enum=True),
    _field("order_id", "Number of the order.", "A-1044", "B-2071", "C-3305"),
    _field("colour", "Colour by name.", "red", "green", "dark blue"),
    _field("weight", "Weight in kilograms.", 1.5, 20.0, 3.25),
)
_FIELDS_HELD_OUT: Final = (
    _field("guest", "Name of the guest.", "Farid", "Grete Olsen", "Hiro"),
    _field("country", "Name of the country.", "Kenya", "Peru", "Norway"),
    _field("quantity", "How many pieces.", 4, 7, 20),
    _field("level", "How hard it is.", "easy", "medium", "hard", enum=True),
    _field("deadline", "Day as YYYY-MM-DD.", "2026-05-20", "2026-09-09"),
    _field("subject", "What it is about.", "broken lamp", "late train", "green energy"),
    _field("price", "Price in euros.", 19.5, 7.25, 105.0),
)
_WORDINGS: Final = (
    "{verb} {one} with {fields}",
    "{verb} the {thing}: {fields}",
    "I need to {small} {one}, {fields}",
    "{verb} {thing} ({fields})",
    "Use {name} with {fields}",
    "Help me {small} {one} with {fields}",
    "{thing}, {fields}: {small} it",
    "Let us {small} {one}. Details: {fields}",
)
_WORDINGS_HELD_OUT: Final = (
    "{verb} one {thing} having {fields}",
    "My {thing} has {fields}, now {small} it",
    "It is time to {small} the {thing} with {fields}",
)
_JOINTS: Final = ((" ", ", "), (" ", " and "), (": ", ", "), (" is ", ", "), (" = ", "; "))


@dataclass(frozen=True, slots=True)
class Composed:
    """A tool, what it is called for and how it is asked for."""

    tool: Tool
    verb: tuple[str, str]
    thing: str
    fields: tuple[_Field, ...]

    def ask(self, pick: random.Random, *, held_out: bool) -> tuple[str, Call]:
        """Return a request and its call; optional fields are given now and then."""
        given = [one for place, one in enumerate(self.fields) if place == 0 or pick.random() < 0.8]  # noqa: PLR2004
        required = set(self.tool.parameters.get("required", ()))
        given = [one for one in self.fields if one in given or one.name in required]
        arguments = {one.name: pick.choice(one.values) for one in given}
        is_, and_ = pick.choice(_JOINTS)
        fields = and_.join(f"{one.said}{is_}{_spoken(arguments[one.name])}" for one in given)
        wording = pick.choice(_WORDINGS_HELD_OUT if held_out else _WORDINGS)
        thing = self.thing.replace("_", " ")
        words = {"verb": self.verb[1], "small": self.verb[0], "thing": thing, "one": _one(thing)}
        return wording.format(**words, name=self.tool.name, fields=fields), Call(self.tool.name, arguments)


def compose(pick: random.Random, *, held_out: bool) -> Composed:
    """Return a tool."""
    verb = pick.choice(_VERBS_HELD_OUT if held_out else _VERBS)
    thing = pick.choice(_THINGS_HELD_OUT if held_out else _THINGS)
    known = _FIELDS_HELD_OUT if held_out else _FIELDS
    fields = tuple(pick.sample(known, k=pick.randrange(1, 5)))
    name = pick.choice((f"{verb[0]}_{thing}", f"{thing}_{verb[0]}", f"{verb[0]}{thing.title().replace('_', '')}"))
    return Composed(_tool(name, f"{verb[1]} {_one(thing.replace('_', ' '))}.", fields), verb, thing, fields)


def compose_some(pick: random.Random, count: int, taken: Sequence[str], *, held_out: bool) -> list[Composed]:
    """Return tools of different names, none of them taken."""
    made: dict[str, Composed] = {}
    for _ in range(count * 4):
        if len(made) == count:
            break
        one = compose(pick, held_out=held_out)
        if one.tool.name not in taken:
            made.setdefault(one.tool.name, one)
    return list(made.values())


def _tool(name: str, text: str, fields: Sequence[_Field]) -> Tool:
    properties: dict[str, Any] = {}  # Any: a JSON schema
    for one in fields:
        kind = {"type": "string", "enum": list(one.values)} if one.type == "enum" else {"type": one.type}
        properties[one.name] = {**kind, "description": one.text}
    required = [one.name for place, one in enumerate(fields) if place < max(1, len(fields) - 1)]
    return Tool(name, text, {"type": "object", "properties": properties, "required": required})


def _one(thing: str) -> str:
    return f"an {thing}" if thing[0] in "aeio" else f"a {thing}"


def _spoken(value: Any) -> str:  # Any: JSON
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
