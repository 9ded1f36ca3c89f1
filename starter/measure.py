"""measure: owns asking a real engine the starter's prompts and counting what it calls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine_alone import EngineAlone


@dataclass(slots=True)
class Count:
    """What came of prompts."""

    asked: int = 0
    exact: int = 0  #: the very tool with the very arguments, and no other call
    valid: int = 0  #: one call at least, each of an offered tool with an object of its own arguments, all required ones
    misses: list[str] = field(default_factory=list)

    def share(self, number: int) -> float:
        """Return a part of what was asked."""
        return round(number / max(self.asked, 1), 4)


def measure(engine: EngineAlone, prompts: Iterable[Mapping[str, Any]]) -> Count:
    """Ask each prompt with its tools, greedily. Any: JSON."""
    count = Count()
    for prompt in prompts:
        tools = [{"type": "function", "function": tool} for tool in prompt["tools"]]
        options = {"temperature": 0, "seed": 1, "num_ctx": 2048, "num_predict": 200}
        answer = engine.chat({"messages": prompt["messages"], "tools": tools, "options": options})
        message = answer["message"]
        calls = [one["function"] for one in message.get("tool_calls") or ()]
        schemas = {tool["name"]: tool["parameters"] for tool in prompt["tools"]}
        wanted = prompt["call"]
        count.asked += 1
        count.valid += bool(calls) and all(_fits(schemas.get(call["name"]), call["arguments"]) for call in calls)
        if [(call["name"], call["arguments"]) for call in calls] == [(wanted["name"], wanted["arguments"])]:
            count.exact += 1
        else:
            said = prompt["messages"][-1]["content"]
            got = [(call["name"], call["arguments"]) for call in calls] or message["content"][:200]
            count.misses.append(f"{said!r}: wanted {json.dumps(wanted)}, got {json.dumps(got)}")
    return count


def _fits(schema: Mapping[str, Any] | None, arguments: Any) -> bool:  # Any: JSON
    if schema is None or not isinstance(arguments, dict):
        return False
    properties = schema.get("properties", {})
    return set(schema.get("required", ())) <= set(arguments) <= set(properties)
