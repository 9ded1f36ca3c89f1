# ruff: noqa: E501, PLR2004 - shares and tables, each used once
"""dataset: owns drawing rows from the intents: training rows, and prompts in wordings that no training row has.

Deterministic for a seed, on any machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from intents import INTENTS, OTHERS, UNSEEN

Tool = dict[str, Any]  # Any: JSON schemas
_TOOLS: Final = Path(__file__).parents[1] / "images/trainer/src/loopbox_trainer/appliance_tools.json"
OWN: Final[dict[str, Tool]] = {t["name"]: t for t in json.loads(_TOOLS.read_text())}
ALL: Final = tuple(OWN)
#: Systems that a conversation may begin with; none most of the time, as the agent sends none by itself.
SYSTEMS: Final = ("", "", "", "You are a helpful assistant.", "Be brief.", "Use the tools when they help.")

_WORDS: Final = [
    "apple",
    "river",
    "stone",
    "cloud",
    "green",
    "letter",
    "music",
    "paper",
    "summer",
    "winter",
    "garden",
    "bridge",
    "engine",
    "planet",
    "silver",
    "orange",
    "candle",
    "forest",
    "mirror",
    "pencil",
    "rocket",
    "saddle",
    "ticket",
    "velvet",
    "window",
    "yellow",
    "anchor",
    "basket",
    "copper",
    "dragon",
    "falcon",
    "harbor",
    "island",
    "jungle",
    "kitten",
    "lemon",
    "magnet",
    "needle",
    "oyster",
    "parrot",
    "quartz",
    "ribbon",
    "salmon",
    "tunnel",
    "turtle",
    "violin",
    "walnut",
    "zipper",
    "alpha",
    "beta",
    "total",
    "error",
    "status",
    "config",
    "token",
    "server",
    "client",
    "budget",
    "report",
    "invoice",
    "header",
    "footer",
    "value",
    "index",
    "label",
]
_STEMS: Final = [
    "notes",
    "report",
    "data",
    "main",
    "index",
    "readme",
    "todo",
    "config",
    "server",
    "utils",
    "app",
    "log",
    "results",
    "summary",
    "plan",
    "draft",
    "letter",
    "budget",
    "list",
    "input",
    "output",
    "test",
    "users",
    "orders",
    "prices",
    "model",
    "train",
    "page",
    "style",
    "query",
    "archive",
    "backup",
    "diary",
    "recipe",
    "schedule",
    "poem",
]
_FOLDERS: Final = [
    "src",
    "docs",
    "tests",
    "data",
    "logs",
    "build",
    "images",
    "config",
    "scripts",
    "reports",
    "archive",
    "backup",
    "assets",
    "lib",
    "tmp",
    "notes",
    "models",
    "drafts",
    "exports",
    "invoices",
    "photos",
    "letters",
    "projects",
    "results",
    "public",
    "private",
    "old",
    "new",
]
_ENDS: Final = "txt md py csv json log yaml html js toml ini sh".split()  # noqa: SIM905 - shorter to read
_NOUNS: Final = [
    "milk",
    "bread",
    "the",
    "meeting",
    "a",
    "holiday",
    "new",
    "shoes",
    "good",
    "news",
    "our",
    "plan",
    "the",
    "party",
    "long",
    "walks",
    "warm",
    "soup",
]
_COMMANDS: Final = (
    "ls -la", "ls {dir}", "cat {file}", "head -n {d} {file}", "tail -n {d} {file}", "grep -n {word} {file}", "uname -a",
    "whoami", "echo {word}", "df -h", "env", "touch {file}", "wc -c {file}", "stat {file}", "chmod +x {file}", "ls -R {dir}",
    "git status", "tar czf {word}.tar.gz {dir}", "sha256sum {file}", "echo {word} > {file}", "cat {file} | sort | uniq -c",
)  # fmt: skip
_CODES: Final = (
    "print({a} + {b})", 'print("{word}")', "print(max({a}, {b}))", "for i in range({d}): print(i)", 'print("{word}".upper())',
    "print([x * x for x in range({d})])", "print(sorted([{a}, {b}, {d}]))", "import sys; print(sys.version)",
    'print(len("{word}") * {d})', "print({a} > {b})",
)  # fmt: skip
_SCRIPTS: Final = (
    "console.log({a} + {b})", 'console.log("{word}")', "console.log(Math.max({a}, {b}))", "console.log([{a}, {b}].length)",
    'console.log("{word}".toUpperCase())', "console.log({a} % {d})",
)  # fmt: skip


def training_rows(count: int, seed: int) -> list[dict[str, Any]]:  # Any: JSON, a training row
    """Return so many conversations."""
    drawn = random.Random(seed)
    # A row's system turn is one of few, so that many conversations share one (see packing).
    offers = [(drawn.choice(SYSTEMS), _some_own(drawn, size)) for size in (1, 2, 2, 3, 3, 4, 4, 5, 9) for _ in range(2)]
    strangers = [(drawn.choice(SYSTEMS), _strangers(drawn, OTHERS)) for _ in range(12)]
    rows = []
    for number in range(count):
        system, tools = drawn.choice(offers if drawn.random() < 0.7 else strangers)
        messages = [{"role": "system", "content": system}] if system else []
        for _ in range(1 if drawn.random() < 0.8 else 2):
            messages += _exchange(drawn, tools)
        rows.append(_row(number, messages, tools))
    return rows


def held_out_prompts(count: int, seed: int) -> list[dict[str, Any]]:  # Any: JSON
    """Return prompts over the appliance's own tools, in held-out wordings: messages, tools and the wanted call."""
    drawn = random.Random(seed)
    prompts = []
    for number in range(count):
        tools = _some_own(drawn, len(ALL) if number % 4 == 0 else drawn.randint(1, 6))
        intent = drawn.choice([one for one in INTENTS if one.tool in {tool["name"] for tool in tools}])
        slots = _Slots(drawn)
        prompts.append(
            _prompt(slots.fill(drawn.choice(intent.held_out)), tools, intent.tool, slots.json(intent.arguments))
        )
    return prompts


def unseen_prompts(count: int, seed: int) -> list[dict[str, Any]]:  # Any: JSON
    """Return prompts over tools and arguments that no training row has."""
    drawn = random.Random(seed)
    prompts = []
    for _ in range(count):
        told, tools = drawn.choice(UNSEEN), _strangers(drawn, UNSEEN, least=1, most=3)
        if told[0] not in {tool["name"] for tool in tools}:
            tools[drawn.randrange(len(tools))] = _stranger(told)
        slots = _Slots(drawn)
        said = slots.fill(drawn.choice(told[3].split("|")).strip())
        prompts.append(_prompt(said, tools, told[0], slots.of_stranger(told)))
    return prompts


def _exchange(drawn: random.Random, tools: Sequence[Tool]) -> list[dict[str, Any]]:  # Any: JSON
    names = {tool["name"] for tool in tools}
    slots = _Slots(drawn)
    told = next((one for one in OTHERS if one[0] in names), None)
    if told is not None and drawn.random() < 0.95:
        told = drawn.choice([one for one in OTHERS if one[0] in names])
        said = slots.fill(drawn.choice(told[3].split("|")).strip())
        return [_said("user", said), _called(told[0], slots.of_stranger(told))]
    fit = [one for one in INTENTS if one.tool in names and one.tool]
    idle = [one for one in INTENTS if not one.tool]
    intent = drawn.choice(fit) if fit and drawn.random() < 0.94 else drawn.choice(idle)
    wording = drawn.choice(intent.wordings)
    messages = [_said("user", _varied(drawn, slots.fill(wording)))]
    if not intent.tool:
        return [*messages, _said("assistant", intent.answer)]
    messages.append(_called(intent.tool, slots.json(intent.arguments)))
    if intent.answer and drawn.random() < 0.4:
        result = {"role": "tool", "name": intent.tool, "content": slots.fill(intent.result)}
        messages += [result, _said("assistant", slots.fill(intent.answer))]
    return messages


def _varied(drawn: random.Random, text: str) -> str:
    """Return a wording as people type it: some lower case, some full stops."""
    chance = drawn.random()
    if chance < 0.08:
        return text[0].lower() + text[1:]
    return f"{text}." if chance < 0.16 and text[-1].isalnum() else text


class _Slots:
    """One conversation's values."""

    def __init__(self, drawn: random.Random) -> None:
        self._drawn = drawn
        self._values: dict[str, Any] = {}  # Any: texts and numbers

    def fill(self, text: str) -> str:
        """Put values in place of the words in braces."""
        out, rest = "", text
        while "{" in rest:
            before, _, after = rest.partition("{")
            name, closed, behind = after.partition("}")
            if not closed or not name.isalnum():
                out, rest = out + before + "{", after
                continue
            out, rest = out + before + str(self.value(name)), behind
        return out + rest

    def json(self, arguments: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON
        """Fill arguments; one that is nothing but a number's word is a number."""
        return {
            key: self.value(text[1:-1]) if text in {"{d}", "{n}"} else self.fill(text)
            for key, text in arguments.items()
        }

    def of_stranger(self, told: tuple[str, str, str, str]) -> dict[str, Any]:  # Any: JSON
        """Return the arguments of a stranger's tool, from the values that its wording drew."""
        made: dict[str, Any] = {}
        left = dict(self._values)
        for argument in sorted(told[2].split(";")):
            name, kind, _ = argument.split(":")
            number = kind in {"integer", "number"}
            wanted = _ARGUMENTS.get(name)
            key = wanted if wanted in left else next(k for k, v in left.items() if isinstance(v, int) == number)
            made[name] = left.pop(key)
        return made

    def value(self, name: str) -> Any:  # Any: a text or a number
        """Return the value of a word, drawn when it is first asked for."""
        if name not in self._values:
            self._values[name] = self._draw(name)
        return self._values[name]

    def _draw(self, name: str) -> Any:  # noqa: C901, PLR0911, PLR0912 - a table; Any: a text or a number
        drawn = self._drawn
        match name:
            case "file" | "file2":
                stem = drawn.choice(_STEMS) + drawn.choice(
                    ["", "", "", f"_{drawn.choice(_WORDS)}", str(drawn.randint(1, 99))]
                )
                folder = f"{drawn.choice(_FOLDERS)}/" if drawn.random() < 0.2 else ""
                return f"{folder}{stem}.{drawn.choice(_ENDS)}"
            case "dir":
                return drawn.choice(_FOLDERS) + drawn.choice(
                    ["", "", f"/{drawn.choice(_WORDS)}", f"_{drawn.randint(1, 99)}"]
                )
            case "word" | "word2":
                return drawn.choice(_WORDS) + drawn.choice(
                    ["", "", "", drawn.choice(_WORDS), str(drawn.randint(1, 99))]
                )
            case "text":
                return " ".join(drawn.choice([*_WORDS, *_NOUNS]) for _ in range(drawn.randint(1, 4)))
            case "ext":
                return drawn.choice(_ENDS)
            case "op":
                return drawn.choice("+-*/")
            case "a" | "b" | "n":
                return drawn.randint(2, drawn.choice([20, 100, 1000, 10000]))
            case "c":
                a, b, op = self.value("a"), self.value("b"), self.value("op")
                return {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[op]
            case "d" | "s":
                return drawn.randint(2, 30)
            case "cmd":
                return self.fill(drawn.choice(_COMMANDS))
            case "code":
                return self.fill(drawn.choice(_CODES))
            case "js":
                return self.fill(drawn.choice(_SCRIPTS))
            case "city":
                return drawn.choice(
                    [
                        "Paris",
                        "London",
                        "Berlin",
                        "Madrid",
                        "Rome",
                        "Vienna",
                        "Oslo",
                        "Dublin",
                        "Lisbon",
                        "Prague",
                        "Athens",
                        "Warsaw",
                    ]
                )
            case "name":
                return drawn.choice(
                    ["Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo"]
                )
            case "mail":
                return f"{drawn.choice(_WORDS)}@{drawn.choice(_WORDS)}.example"
            case "cur" | "cur2":
                return drawn.choice(["EUR", "USD", "GBP", "CHF", "JPY", "SEK", "NOK", "CAD", "AUD"])
            case "lang":
                return drawn.choice(["French", "German", "Spanish", "Italian", "Dutch", "Polish", "Greek"])
            case "room":
                return drawn.choice(["kitchen", "bedroom", "hall", "office", "garage", "bathroom", "cellar"])
            case "sym":
                return "".join(drawn.choice("ABCDEFGHKLMNPRST") for _ in range(drawn.randint(3, 4)))
            case "day":
                return drawn.choice(["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"])
            case "code8":
                return "".join(drawn.choice("0123456789ABCDEF") for _ in range(8))
        raise KeyError(name)


#: Which word of the wording fills a stranger's argument, where its kind alone does not tell.
_ARGUMENTS: Final = {
    "subject": "text", "to": "mail", "title": "text", "email": "mail", "name": "name", "amount": "n", "source": "cur",
    "target": "cur2", "guests": "d", "restaurant": "text", "language": "lang", "text": "text", "day": "day",
    "table": "word", "limit": "d", "file": "file", "width": "n", "number": "code8", "query": "text", "city": "city",
    "room": "room", "symbol": "sym", "minutes": "d", "dish": "text", "door": "room", "channel": "word",
    "message": "text", "folder": "dir", "hour": "d", "currency": "cur", "days": "d", "device": "word",
}  # fmt: skip


def _some_own(drawn: random.Random, size: int) -> list[Tool]:
    return [OWN[name] for name in drawn.sample(ALL, size)]


def _strangers(
    drawn: random.Random, table: Sequence[tuple[str, str, str, str]], *, least: int = 1, most: int = 4
) -> list[Tool]:
    return [_stranger(told) for told in drawn.sample(list(table), drawn.randint(least, most))]


def _stranger(told: tuple[str, str, str, str]) -> Tool:
    name, description, arguments, _ = told
    cut = [argument.split(":") for argument in arguments.split(";")]
    properties = {key: {"type": kind, "description": words} for key, kind, words in cut}
    parameters = {"type": "object", "properties": properties, "required": [key for key, _, _ in cut]}
    return {"name": name, "description": description, "parameters": parameters}


def _said(role: str, text: str) -> dict[str, Any]:  # Any: JSON
    return {"role": role, "content": text}


def _called(name: str, arguments: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    return {"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": arguments}]}


def _prompt(said: str, tools: Sequence[Tool], name: str, arguments: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    return {"messages": [_said("user", said)], "tools": list(tools), "call": {"name": name, "arguments": arguments}}


def _row(number: int, messages: list[dict[str, Any]], tools: Sequence[Tool]) -> dict[str, Any]:  # Any: JSON
    return {
        "id": f"{number:016x}",
        "source": "synthetic",
        "conversation": f"starter-{number}",
        "messages": messages,
        "tools": list(tools),
        "outcome": "good",
        "weight": 1.0,
        "meta": {},
    }
