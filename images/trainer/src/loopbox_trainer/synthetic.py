"""synthetic: owns examples that are made up over tools: requests in many words, and the calls that answer them.

Everything is drawn from one seed. Rows that are held out have wordings, openings, values and composed tools that no
other row has: they are disjoint because they are drawn from other lists.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from loopbox_trainer.composed import compose_some
from loopbox_trainer.rows import Call, Message, Row, Tool
from loopbox_trainer.slots import draw, fill, fill_argument
from loopbox_trainer.wordings import (
    ENDINGS,
    NO_TOOL,
    OPENINGS,
    OPENINGS_HELD_OUT,
    TALK,
    TALK_HELD_OUT,
    TASKS,
    Task,
)

#: The appliance's own tools, as its agent tells a model of them (a test compares them with the tools' code).
APPLIANCE: Final = msgspec.json.decode(
    (Path(__file__).parent / "appliance_tools.json").read_bytes(), type=tuple[Tool, ...]
)

_FINISHED: Final = 0.35  #: how often a row goes on to the result and the answer, where there are some
_MOST_COMPOSED: Final = 3  #: composed tools beside others on offer


@dataclass(frozen=True, slots=True)
class _Maker:
    """What a row is made with."""

    pick: random.Random
    tools: tuple[Tool, ...]
    tasks: tuple[Task, ...]
    held_out: bool

    def task(self) -> Row:
        """One request for one of the tools."""
        task = self.pick.choice(self.tasks)
        values = draw(self.pick, held_out=self.held_out)
        asked, call = self._asked(task, values)
        messages = [Message("user", self._wrapped(asked)), Message("assistant", "", (call,))]
        if task.result and not self.held_out and self.pick.random() < _FINISHED:
            messages += [
                Message("tool", fill(task.result, values), name=task.tool),
                Message("assistant", fill(task.answer, values)),
            ]
        return self._row("task", messages, self._offer((task.tool,)))

    def parallel(self) -> Row:
        """Two requests at once, for the same or for two tools."""
        tasks = [self.pick.choice(self.tasks) for _ in range(2)]
        both = [self._asked(task, draw(self.pick, held_out=self.held_out)) for task in tasks]
        if both[0][1] == both[1][1]:
            return self.task()
        joint = self.pick.choice(
            (" and ", ", and also ", " Then ") if not self.held_out else (" as well as ", ". Next, ")
        )
        first, second = (asked.rstrip("?.") for asked, _ in both)
        text = f"{first}{joint}{_small(second)}" if joint != " Then " else f"{first}. Then {_small(second)}"
        messages = [Message("user", self._wrapped(text)), Message("assistant", "", tuple(call for _, call in both))]
        return self._row("parallel", messages, self._offer([task.tool for task in tasks]))

    def composed(self) -> Row:
        """A request for a tool that nobody has."""
        made = compose_some(
            self.pick, self.pick.randrange(1, 5), [tool.name for tool in self.tools], held_out=self.held_out
        )
        wanted = made[0]
        text, call = wanted.ask(self.pick, held_out=self.held_out)
        tools = [one.tool for one in made]
        if self.pick.random() < 0.3:  # noqa: PLR2004 how often the own ones are beside them
            tools += self.pick.sample(self.tools, k=min(len(self.tools), self.pick.randrange(1, 4)))
        self.pick.shuffle(tools)
        messages = [Message("user", self._wrapped(text)), Message("assistant", "", (call,))]
        return self._row("composed", messages, tuple(tools))

    def irrelevant(self) -> Row:
        """A request that none of the tools on offer is for."""
        made = compose_some(self.pick, 4, [tool.name for tool in self.tools], held_out=self.held_out)
        wanted, *others = made
        if not others:
            return self.talk()
        text, _ = wanted.ask(self.pick, held_out=self.held_out)
        text = text.replace(wanted.tool.name, wanted.thing)
        tools = [one.tool for one in others if one.thing != wanted.thing]
        if not tools:
            return self.talk()
        messages = [Message("user", self._wrapped(text)), Message("assistant", self.pick.choice(NO_TOOL))]
        return self._row("irrelevant", messages, tuple(tools))

    def talk(self) -> Row:
        """Words that want no tool."""
        asked, answered = self.pick.choice(TALK_HELD_OUT if self.held_out else TALK)
        tools = self._offer(()) if self.pick.random() < 0.8 else ()  # noqa: PLR2004 how often tools are on offer
        return self._row("talk", [Message("user", asked), Message("assistant", answered)], tools)

    def _asked(self, task: Task, values: dict[str, str]) -> tuple[str, Call]:
        wording = self.pick.choice(task.held_out if self.held_out else task.wordings)
        arguments: dict[str, Any] = {name: fill_argument(one, values) for name, one in task.arguments.items()}
        return fill(wording, values), Call(task.tool, arguments)

    def _wrapped(self, text: str) -> str:
        opening = self.pick.choice(OPENINGS_HELD_OUT if self.held_out else OPENINGS)
        if text.endswith("?"):  # a question takes neither "could you" nor "please"
            return text
        return f"{opening}{_small(text) if opening else text}{self.pick.choice(ENDINGS)}"

    def _offer(self, wanted: Sequence[str]) -> tuple[Tool, ...]:
        """Return tools on offer, the wanted ones among them, in any order."""
        if self.pick.random() < 0.5:  # noqa: PLR2004 half of the time all, as the appliance has them
            return self.tools
        others = [tool for tool in self.tools if tool.name not in wanted]
        some = self.pick.sample(others, k=self.pick.randrange(len(others) + 1))
        offered = [tool for tool in self.tools if tool.name in wanted or tool in some]
        composed = compose_some(self.pick, self.pick.randrange(_MOST_COMPOSED), [], held_out=self.held_out)
        offered += [one.tool for one in composed if one.tool.name not in {tool.name for tool in offered}]
        self.pick.shuffle(offered)
        return tuple(offered)

    def _row(self, kind: str, messages: list[Message], tools: tuple[Tool, ...]) -> Row:
        meta: dict[str, Any] = {"made_up": kind}  # Any: JSON
        if self.held_out:
            meta["held_out"] = True
        return Row(messages=tuple(messages), source="synthetic", tools=tools, outcome="good", meta=meta)


def made_up(tools: tuple[Tool, ...], rows: int, held_out: int, seed: int) -> Iterator[Row]:
    """Yield rows over tools, then held-out ones. The same for the same arguments; some may be equal."""
    tasks = (*(task for task in TASKS if _takes(tools, task)), *(task for tool in tools for task in _generic(tool)))
    for count, out in ((rows, False), (held_out, True)):
        maker = _Maker(random.Random(f"{seed}/{out}"), tools, tasks, out)  # noqa: S311 examples, no secrets
        kinds: list[Callable[[], Row]] = [maker.composed] * 6 + [maker.irrelevant] * 2 + [maker.talk] * 2
        kinds += [maker.task] * 8 + [maker.parallel] * 2 if tasks else []
        for number in range(count):
            row = maker.pick.choice(kinds)()
            yield msgspec.structs.replace(row, conversation=f"synthetic/{'test' if out else 'train'}-{number}")


def _takes(tools: Sequence[Tool], task: Task) -> bool:
    return any(tool.name == task.tool and task.arguments.keys() <= _properties(tool).keys() for tool in tools)


def _generic(tool: Tool) -> Iterator[Task]:
    """Yield how one asks for a tool of which nothing but its schema is known: strings and whole numbers are given."""
    if any(task.tool == tool.name for task in TASKS):
        return
    slots = iter(("word", "text", "stem", "word2"))
    numbers = iter(("n", "m", "a", "b"))
    arguments: dict[str, str] = {}
    for name in tool.parameters.get("required", ()):
        schema = _properties(tool).get(name, {})
        slot = next(numbers if schema.get("type") == "integer" else slots, None)
        if (
            slot is None
            or schema.get("type") not in ("string", "integer")
            or schema.keys() & {"enum", "pattern", "format"}
        ):
            return
        arguments[name] = f"{{{slot}}}"
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in arguments.items())
    purpose = tool.description.split(". ")[0].rstrip(".") or tool.name
    wordings = (f"{purpose}: {said}", f"Use {tool.name} with {said}", f"Call {tool.name}, {said}")
    yield Task(tool.name, arguments, wordings, (f"With {tool.name}: {said}", f"{purpose}, with {said}"))


def _properties(tool: Tool) -> dict[str, Any]:  # Any: JSON schemas
    properties = tool.parameters.get("properties", {})
    return properties if isinstance(properties, dict) else {}


def _small(text: str) -> str:
    """Return a text with a small first letter, unless its first word is a name or code."""
    return text[0].lower() + text[1:] if text[:1].isalpha() and text[1:2].islower() else text
