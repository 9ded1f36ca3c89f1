"""public_sets: owns reading public sets from the folders of their packages: BFCL and grade-school-math."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from loopbox_trainer.errors import TrainerError
from loopbox_trainer.rows import RowError
from loopbox_trainer.sources import Record, Room, read_records

#: BFCL's slices of one turn in languages with JSON types; several turns need its own simulated tools.
BFCL_SLICES: Final = (
    "simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance",
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance",
)  # fmt: skip
#: Its names of types that JSON schemas do not know.
_TYPES: Final[Mapping[str, str]] = {
    "dict": "object",
    "hashmap": "object",
    "float": "number",
    "double": "number",
    "long": "integer",
    "tuple": "array",
    "list": "array",
    "bool": "boolean",
}
_NO_TOOL: Final = (
    "None of the tools that I have can do this.",
    "I have no tool that fits this request.",
    "The tools at hand are for something else, so I cannot do this with them.",
    "There is no fitting tool for this here. Tell me if I should answer without one.",
)
_NOTHING: Final = object()


def read_bfcl(folder: Path, room: Room) -> Iterator[Record]:
    """Yield BFCL's rows with the first answer that it accepts. folder: bfcl_eval/data. Raises TrainerError."""
    found = 0
    number = 0
    for name in BFCL_SLICES:
        files = sorted(folder.glob(f"BFCL_v*_{name}.json"))
        if not files:
            continue
        found += 1
        answers = _answers(folder / "possible_answer" / files[0].name, room)
        for record in read_records(files[0], room):
            number += 1
            if record.fault is not None:
                yield Record(number, fault=record.fault)
                continue
            try:
                made = _bfcl_row(_value(record), name, answers)
            except (KeyError, TypeError, IndexError, AttributeError, StopIteration, RecursionError) as error:
                yield Record(number, fault=RowError("not_a_row", f"{name}: {type(error).__name__}: {error}"))
                continue
            if made is not None:
                yield Record(number, value=made)
    if not found:
        raise TrainerError("no_source", f"{folder.name} holds no file of BFCL. Give the folder bfcl_eval/data.")


def read_grade_school_math(folder: Path, room: Room) -> Iterator[Record]:
    """Yield grade-school-math's rows; those of its test file are held out. Raises TrainerError."""
    places = [path for part in ("train", "test") for path in sorted(folder.rglob(f"{part}.jsonl"))[:1]]
    if not places:
        raise TrainerError("no_source", f"{folder.name} holds neither train.jsonl nor test.jsonl.")
    number = 0
    for path in places:
        for record in read_records(path, room):
            number += 1
            if record.fault is not None:
                yield Record(number, fault=record.fault)
                continue
            value = _value(record)
            if isinstance(value, dict):
                value = {**value, "id": f"{path.stem}-{record.number}", "held_out": path.stem == "test"}
            yield Record(number, value=value)


READERS: Final[Mapping[str, Callable[[Path, Room], Iterator[Record]]]] = {
    "bfcl": read_bfcl,
    "grade_school_math": read_grade_school_math,
}


def json_schema(told: Any) -> Any:  # Any: a schema in BFCL's dialect, or JSON Schema
    """Return a schema with BFCL's own type names replaced by JSON's."""
    if isinstance(told, list):
        return [json_schema(one) for one in told]
    if not isinstance(told, dict):
        return told
    made: dict[str, Any] = {}
    for key, value in told.items():
        if key == "properties" and isinstance(value, dict):
            made[key] = {name: json_schema(one) for name, one in value.items()}
        elif key == "type" and isinstance(value, str):
            if value.lower() != "any":
                made[key] = _TYPES.get(value.lower(), value.lower())
        elif key in ("default", "enum", "required", "description"):
            made[key] = value
        elif key != "optional":
            made[key] = json_schema(value)
    return made


def _answers(path: Path, room: Room) -> dict[str, Any]:  # Any: JSON
    """Return what is accepted, by the row's id; nothing where no call is."""
    if not path.exists():
        return {}
    told = (_value(record) for record in read_records(path, room) if record.fault is None)
    return {one["id"]: one.get("ground_truth") for one in told if isinstance(one, dict) and "id" in one}


def _bfcl_row(told: Any, name: str, answers: Mapping[str, Any]) -> Any:  # Any: JSON
    """Return one row as a chat body; None where no answer is known."""
    asked = told["question"][0]
    if "irrelevance" in name:
        pick = hashlib.sha256(told["id"].encode()).digest()[0] % len(_NO_TOOL)
        answer: dict[str, Any] = {"role": "assistant", "content": _NO_TOOL[pick]}
    elif told["id"] in answers:
        calls = [_call(one) for one in answers[told["id"]]]
        answer = {"role": "assistant", "content": "", "tool_calls": calls}
    else:
        return None
    tools = [{**one, "parameters": json_schema(one.get("parameters") or {})} for one in told["function"]]
    # The id stays in the row's meta as its origin: what the gate scores is told by it.
    return {"id": told["id"], "messages": [*asked, answer], "tools": tools}


def _call(accepted: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Any]:  # Any: JSON
    name, arguments = next(iter(accepted.items()))
    chosen = {key: value for key, values in arguments.items() if (value := _chosen(values)) is not _NOTHING}
    return {"name": name, "arguments": chosen}


def _chosen(values: Sequence[Any]) -> Any:  # Any: JSON
    """Return the first accepted value; nothing where leaving it out is accepted first, or only that."""
    for value in values:
        return _NOTHING if value == "" else _plain(value)
    return _NOTHING


def _plain(value: Any) -> Any:  # Any: JSON
    """Return an accepted value: within an object each member lists what is accepted for it."""
    if isinstance(value, dict):
        members = {key: _chosen(one) if isinstance(one, list) else one for key, one in value.items()}
        return {key: one for key, one in members.items() if one is not _NOTHING}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def _value(record: Record) -> Any:  # Any: JSON
    if record.line:
        try:
            return msgspec.json.decode(record.line)
        except (msgspec.DecodeError, UnicodeError):
            return None
    return record.value
