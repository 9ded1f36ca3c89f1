"""wordings: owns the making of many sentences out of few templates. Pure, and the same on every run."""

# ruff: noqa: INP001 — a script beside its data, for the person who runs it

from __future__ import annotations

import random
import re
from pathlib import Path

_CHOICE = re.compile(r"\{([^{}]*)\}")
_BAR = re.compile(r"(?<!\\)\|")
PER_TEMPLATE = 24


def read_slots(path: Path) -> dict[str, list[str]]:
    """Return what NAME=a|b lines say."""
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: _split(values) for name, _, values in (line.partition("=") for line in lines)}


def expand(path: Path, slots: dict[str, list[str]]) -> list[tuple[int, str]]:
    """Return up to 24 different sentences of each template in a file, each with its template's number."""
    choose = random.Random(path.name)  # noqa: S311 — the same sentences every time
    sentences: dict[str, int] = {}
    for line, template in enumerate(path.read_text().splitlines(), 1):
        if not template or template.startswith("#"):
            continue

        def fill(found: re.Match[str]) -> str:
            return choose.choice(slots.get(found[1]) or _split(found[1]))

        for _ in range(PER_TEMPLATE):
            sentences[re.sub(r"\s+", " ", _CHOICE.sub(fill, template)).strip()] = line
    return [(line, text) for text, line in sentences.items()]


def _split(choices: str) -> list[str]:
    return [one.replace("\\|", "|") for one in _BAR.split(choices)]
