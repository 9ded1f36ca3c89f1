"""page: makes docs/threats.md out of the table of patterns. ``python images/agent/guard/page.py`` writes it."""

# ruff: noqa: INP001, E402, PLR2004 — a script beside its data, for the person who runs it

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "images/agent/src"))
from loopbox_agent.threat_patterns import PATTERNS, Group

PAGE = ROOT / "docs/threats.md"
HEAD = Path(__file__).with_name("threats-head.md")


def cell(text: str) -> str:
    """Return text that may stand in a table, with what can't be seen written out."""
    shown = "".join(char if char.isprintable() and ord(char) < 0xE000 else f"\\u{{{ord(char):x}}}" for char in text)
    return (
        shown.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "&#96;").replace("*", "\\*")
    )


def page() -> str:
    """Return the whole page."""
    lines = [HEAD.read_text().rstrip().replace("{count}", str(len(PATTERNS)))]
    for group in Group:
        lines += [
            "",
            f"## {group}",
            "",
            "| id | what | why | weight | example | not this |",
            "|---|---|---|---|---|---|",
        ]
        for one in PATTERNS:
            if one.group is group:
                cells = (one.id, one.what, one.why, str(one.weight), one.example, one.look_alike)
                lines.append("| " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
