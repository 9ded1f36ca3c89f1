"""slots: owns the values that wordings are filled with: files, words, numbers. Some are for tests only. Pure."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping
from typing import Final

_STEMS: Final = (
    "notes",
    "report",
    "readme",
    "config",
    "main",
    "index",
    "data",
    "todo",
    "summary",
    "log",
    "users",
    "orders",
    "prices",
    "draft",
    "plan",
    "budget",
    "invoice",
    "recipe",
    "letter",
    "journal",
    "results",
    "sales",
    "stock",
    "agenda",
    "contacts",
    "backup",
    "server",
    "client",
    "parser",
    "model",
    "train",
    "test",
    "query",
    "schema",
    "weather",
    "poem",
    "story",
    "grades",
    "tasks",
    "costs",
    "goals",
    "ideas",
    "menu",
)
_EXTENSIONS: Final = ("txt", "md", "csv", "json", "log", "py", "yaml", "html", "ini", "sql", "toml", "sh")
_FOLDERS: Final = (
    "src",
    "docs",
    "data",
    "logs",
    "tests",
    "images",
    "reports",
    "archive",
    "backup",
    "config",
    "scripts",
    "output",
    "projects",
    "notes",
    "build",
    "public",
    "assets",
    "downloads",
    "invoices",
    "photos",
)
_WORDS: Final = (
    "apple",
    "river",
    "error",
    "warning",
    "hello",
    "world",
    "total",
    "python",
    "garden",
    "failed",
    "success",
    "TODO",
    "import",
    "window",
    "silver",
    "orange",
    "paper",
    "bridge",
    "market",
    "coffee",
    "yellow",
    "summer",
    "timeout",
    "music",
    "planet",
    "friend",
    "table",
    "version",
    "address",
    "letter",
    "winter",
    "forest",
)
_TEXTS: Final = (
    "hello world",
    "buy milk and bread",
    "the meeting is at noon",
    "all tests pass",
    "remember the keys",
    "version two is ready",
    "call the office",
    "the train leaves at nine",
    "done for today",
    "first line",
    "water the plants",
    "pay the rent",
    "good work",
    "send the parcel",
    "three apples left",
    "the code is in review",
    "lunch with Ada",
    "clean the desk",
    "read chapter four",
)
_COMMANDS: Final = (
    "ls -la",
    "echo hello",
    "cat /etc/hostname",
    "ls",
    "env",
    "uptime",
    "ps aux",
    "free -m",
    "ls /tmp",
    "git status",
    "echo done",
    "id",
    "hostname",
    "cat notes.txt",
    "ls -R",
    "tree",
    "history",
    "nproc",
    "which python3",
    "grep -r error .",
)
_CODES: Final = (
    "print(1 + 1)",
    "print('hello')",
    "print([x * x for x in range(5)])",
    "import sys; print(sys.version)",
    "print(max(3, 9, 4))",
    "print(sorted([3, 1, 2]))",
    "print(10 // 3)",
    "print(len('hello'))",
    "print(sum([1, 2, 3]))",
    "print(2 ** 10)",
)
_SCRIPTS_JS: Final = (
    "console.log(1 + 1);", "console.log('hello');", "console.log([3, 1, 2].sort());", "console.log(Math.max(3, 9));",
    "console.log('abc'.length);", "console.log(process.version);",
)  # fmt: skip
_NAME: Final = re.compile(r"\{([a-z]+2?)\}")
_NUMBER: Final = re.compile(r"\{(?:n|m|a|b)\}")
_EVERY: Final = 5  #: of five values one is for tests only


@functools.cache
def pool(values: tuple[str, ...], *, held_out: bool) -> tuple[str, ...]:
    """Return the values that are trained with, or those that are tested with."""
    return tuple(value for number, value in enumerate(values) if (number % _EVERY == _EVERY - 1) == held_out)


def draw(pick: random.Random, *, held_out: bool) -> dict[str, str]:
    """Return a value for every name."""

    def one(values: tuple[str, ...]) -> str:
        return pick.choice(pool(values, held_out=held_out))

    stem, extension, folder, word = one(_STEMS), one(_EXTENSIONS), one(_FOLDERS), one(_WORDS)
    first, second = pick.randrange(2, 1000), pick.randrange(2, 100)
    return {
        "stem": stem,
        "ext": extension,
        "dir": folder if pick.random() < 0.7 else f"{folder}/{one(_STEMS)}",  # noqa: PLR2004 how often
        "file": f"{stem}.{extension}" if pick.random() < 0.6 else f"{folder}/{stem}.{extension}",  # noqa: PLR2004
        "other": f"{one(_FOLDERS)}/{one(_STEMS)}.{extension}" if pick.random() < 0.5 else f"{stem}2.{extension}",  # noqa: PLR2004
        "script": f"{stem}.py",
        "word": word,
        "word2": next(other for other in [one(_WORDS), "better", "other"] if other != word),
        "text": one(_TEXTS),
        "command": one(_COMMANDS),
        "code": one(_CODES),
        "js": one(_SCRIPTS_JS),
        "n": str(pick.randrange(2, 50)),
        "m": str(pick.randrange(10, 400)),
        "a": str(first),
        "b": str(second),
        "product": str(first * second),
        "sum": str(first + second),
    }


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return a template with its names replaced; other braces stay."""
    return _NAME.sub(lambda found: values.get(found[1], found[0]), template)


def fill_argument(template: str, values: Mapping[str, str]) -> str | int:
    """Return an argument: a number where the template is nothing but one."""
    filled = fill(template, values)
    return int(filled) if _NUMBER.fullmatch(template) else filled
