"""curate: measures the whole pipeline of curation on one core, on made-up rows like the appliance's own.

Of every 20 records 12 are the agent's (with its framework's messages), 4 chat bodies with their tools, 4 rows of our
own; one in ten is a copy, one in ten nearly one, one in twenty holds a failed call with its correction, one in fifty
is broken. `python bench/curate.py` makes ROWS of them (20,000), curates them RUNS times (3) and prints the best run as
one JSON object: the work is the same each time, other work on the machine is not.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "images" / name / "src") for name in ("agent", "trainer")]

from loopbox_trainer.curate import Places, run  # noqa: E402 the paths come first
from loopbox_trainer.curate_spec import CurateSpec, SourceSpec  # noqa: E402 the paths come first

ROWS = int(os.environ.get("ROWS", "20000"))
RUNS = int(os.environ.get("RUNS", "3"))
NAMES = ("bash", "python", "javascript", "read_file", "write_file", "edit_file", "list_files", "search_files", "glob")
WORDS = (Path(__file__).parents[1] / "docs" / "developing.md").read_text().split()


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        places = Places(Path(folder) / "job", Path(folder) / "data")
        places.job.mkdir()
        size = fill(places.data)
        spec = CurateSpec(
            sources=(
                SourceSpec(name="interactions", path="interactions.jsonl", mask=False),
                SourceSpec(name="chat", path="chat.jsonl"),
                SourceSpec(name="rows", path="rows.jsonl"),
            ),
            tools="tools.json",
        )
        seconds = []
        for _ in range(RUNS):
            began = time.process_time()
            made = run(spec, places, quiet)
            seconds.append(time.process_time() - began)
    print(
        json.dumps(
            {
                "rows": ROWS,
                "megabytes": round(size / 1e6, 1),
                "rows_per_s": round(ROWS / min(seconds)),
                "megabytes_per_s": round(size / 1e6 / min(seconds), 1),
                "seconds": [round(one, 2) for one in seconds],
                "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "written": {name: part["rows"] for name, part in made["splits"].items()},
                "dropped": {step["name"]: step["dropped"] for step in made["steps"] if step["dropped"]},
            }
        )
    )


def quiet(event: str, **more: Any) -> None:  # Any: JSON
    """Hear of the progress."""


def fill(data: Path) -> int:
    """Write the sources; return their size in bytes."""
    data.mkdir()
    (data / "tools.json").write_text(json.dumps([tool(name) for name in NAMES]))
    pick = random.Random(7)  # noqa: S311 made-up rows
    size = 0
    with (
        (data / "interactions.jsonl").open("w") as interactions,
        (data / "chat.jsonl").open("w") as chats,
        (data / "rows.jsonl").open("w") as rows,
    ):
        files = [interactions] * 12 + [chats] * 4 + [rows] * 4
        for number, told in enumerate(conversations(pick)):
            file = files[number % 20]
            write = interaction if file is interactions else chat if file is chats else row
            line = json.dumps(write(number, told))
            line = line[: len(line) // 2] if number % 50 == 0 else line
            size += file.write(line + "\n")
    return size


def conversations(pick: random.Random) -> Iterator[list[Any]]:  # Any: (role, text or calls)
    """Yield what was said: tuples of who, what, and whether it failed."""
    last: list[Any] = []
    for number in range(ROWS):
        if number % 10 == 3:
            yield last
            continue
        if number % 10 == 6:
            yield [*last[:-1], ("assistant", f"{last[-1][1]} {pick.choice(WORDS)}", False)]
            continue
        name = pick.choice(NAMES)
        path = f"{pick.choice(WORDS)[:12]}/{pick.randrange(9999)}.txt"
        last = [("user", text(pick, 30), False)]
        if number % 20 == 9:
            last += [("call", (name, f"{path}.wrong"), False), ("result", f"{path}: No such file", True)]
        last += [("call", (name, path), False), ("result", text(pick, 60), False)]
        last += [("assistant", text(pick, 50), False)]
        yield last


def text(pick: random.Random, many: int) -> str:
    """Return some words."""
    return " ".join(pick.choices(WORDS, k=many))


def tool(name: str) -> dict[str, Any]:
    """Return a tool like the appliance's."""
    properties = {
        "path": {"type": "string", "minLength": 1, "maxLength": 4096, "description": "File path in /workspace."},
        "limit": {"type": "integer", "minimum": 1, "maximum": 2000, "default": 400, "description": "Most lines."},
    }
    schema = {"type": "object", "properties": properties, "required": ["path"], "additionalProperties": False}
    return {"name": name, "description": f"{name}: runs in /workspace, files stay between calls.", "parameters": schema}


def interaction(number: int, told: list[Any]) -> dict[str, Any]:
    """Return it as the agent keeps it."""
    messages: list[Any] = []
    failed = []
    for place, (who, what, bad) in enumerate(told):
        if who == "user":
            part = {"part_kind": "user-prompt", "content": what, "timestamp": "2026-01-01T00:00:00Z"}
            messages.append({"kind": "request", "instructions": "You are a helpful agent.", "parts": [part]})
        elif who == "result":
            part = {
                "part_kind": "tool-return",
                "content": what,
                "tool_name": told[place - 1][1][0],
                "tool_call_id": f"c{place}",
            }
            messages.append({"kind": "request", "instructions": "You are a helpful agent.", "parts": [part]})
            failed += [f"c{place}"] if bad else []
        else:
            part = {"part_kind": "text", "content": what}
            if who == "call":
                part = {
                    "part_kind": "tool-call",
                    "tool_name": what[0],
                    "args": {"path": what[1]},
                    "tool_call_id": f"c{place + 1}",
                }
            usage = {"input_tokens": 400, "output_tokens": 60, "details": {}}
            messages.append({"kind": "response", "parts": [part], "usage": usage, "model_name": "m"})
    ids = {"thread_id": f"thread_{number:016x}", "run_id": f"run_{number:016x}"}
    return {**ids, "outcome": "completed", "rating": None, "better": "", "messages": messages, "failed_calls": failed}


def chat(number: int, told: list[Any]) -> dict[str, Any]:
    """Return it as a body of OpenAI's API."""
    messages: list[Any] = []
    for place, (who, what, _) in enumerate(told):
        if who == "call":
            call = {"name": what[0], "arguments": json.dumps({"path": what[1]})}
            calls = [{"id": f"c{place + 1}", "type": "function", "function": call}]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif who == "result":
            messages.append({"role": "tool", "tool_call_id": f"c{place}", "content": what})
        else:
            messages.append({"role": who, "content": what})
    tools = [{"type": "function", "function": tool(name)} for name in NAMES]
    return {"id": number, "model": "m", "messages": messages, "tools": tools}


def row(number: int, told: list[Any]) -> dict[str, Any]:
    """Return it as a row of our own."""
    messages: list[Any] = []
    for place, (who, what, _) in enumerate(told):
        if who == "call":
            calls = [{"name": what[0], "arguments": {"path": what[1]}}]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        elif who == "result":
            messages.append({"role": "tool", "content": what, "name": told[place - 1][1][0]})
        else:
            messages.append({"role": who, "content": what})
    tools = [tool(name) for name in NAMES]
    return {"conversation": f"c{number}", "messages": messages, "tools": tools, "outcome": "good", "meta": {}}


if __name__ == "__main__":
    main()
