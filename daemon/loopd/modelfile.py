"""modelfile: owns reading an Ollama Modelfile, as far as a release has a place for what it says.

Read: FROM, TEMPLATE, SYSTEM, ADAPTER, PARAMETER. Passed over: LICENSE and MESSAGE. Everything else is refused by its
name and line, because a release that silently lacks half of its file would answer otherwise than its maker tested.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from loopd.gguf_types import GgufError

_LINE: Final = re.compile(r"\s*([A-Za-z_]+)(?:[ \t]+(.*))?$")
_QUOTES: Final = '"""'
_PASSED_OVER: Final = frozenset({"LICENSE", "MESSAGE"})
MOST_COMMANDS: Final = 500


@dataclass(kw_only=True)
class Modelfile:
    """What it says, values still texts."""

    base: str = ""
    template: str | None = None
    system: str | None = None
    adapters: list[str] = field(default_factory=list)
    parameters: list[tuple[int, str, str]] = field(default_factory=list)  #: line, name, value


def parse_modelfile(text: str) -> Modelfile:
    """Read it. Raises GgufError "modelfile_invalid" naming the line."""
    found = Modelfile()
    seen: set[str] = set()
    lines = iter(enumerate(text.splitlines(), start=1))
    count = 0
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        count += 1
        match = _LINE.match(line)
        if match is None or count > MOST_COMMANDS:
            raise invalid(number, f"{line.strip()[:40]!r} is no command" if match is None else "too many commands")
        command = match[1].upper()
        value = _value((match[2] or "").strip(), number, lines)
        if command in ("FROM", "TEMPLATE", "SYSTEM"):
            if command in seen:
                raise invalid(number, f"a second {command}")
            seen.add(command)
        _put(found, command, value, number)
    if not found.base:
        raise invalid(1, "it has no FROM")
    return found


def _value(first: str, number: int, lines: enumerate[str]) -> str:
    """Return a value: the rest of its line, or what stands between quotes, over several lines."""
    if not first.startswith(_QUOTES):
        return first[1:-1] if len(first) > 1 and first[0] == first[-1] == '"' else first
    rest = first[len(_QUOTES) :]
    parts: list[str] = []
    while _QUOTES not in rest:
        parts.append(rest)
        _, rest = next(lines, (0, _QUOTES + "x"))
    last, _, after = rest.partition(_QUOTES)
    if after.strip():
        raise invalid(number, f"its {_QUOTES} are not closed, or something follows them")
    return "\n".join([*parts, last])


def _put(found: Modelfile, command: str, value: str, number: int) -> None:
    if not value and command not in ("SYSTEM", "TEMPLATE"):
        raise invalid(number, f"{command} says nothing")
    if command == "FROM":
        found.base = value
    elif command == "TEMPLATE":
        found.template = value
    elif command == "SYSTEM":
        found.system = value
    elif command == "ADAPTER":
        found.adapters.append(value)
    elif command == "PARAMETER":
        name, _, told = value.partition(" ")
        told = told.strip()
        quoted = len(told) > 1 and told[0] == told[-1] == '"'
        found.parameters.append((number, name.lower(), told[1:-1] if quoted else told))
    elif command not in _PASSED_OVER:
        raise invalid(number, f"{command[:40]} is not served here")


def invalid(number: int, what: str) -> GgufError:
    """The error for a line."""
    return GgufError("modelfile_invalid", f"Modelfile, line {number}: {what}; mend it and drop both files again")
