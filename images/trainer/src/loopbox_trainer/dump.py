"""dump: owns reading a dump of the agent's store: the messages of each thread, with how its runs ended.

The dump is read twice, once for the runs and calls, once for the messages, which lie in it thread by thread. What was
compacted away is read too: it is what was really said. Runs of one thread that follow each other with one outcome are
one record, so that what a person disliked does not spoil what came before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from loopbox_trainer.errors import TrainerError
from loopbox_trainer.rows import MOST_MESSAGES, RowError
from loopbox_trainer.sources import Record, Room, read_packed_lines

FORMAT: Final = "loopbox-agent-dump-1"
MOST_RUNS: Final = 1_000_000

_ENDED: Final = frozenset({"failed", "cancelled", "interrupted", "held"})


@dataclass
class _Told:
    """What the tables beside the messages tell."""

    statuses: dict[str, str] = field(default_factory=dict)  #: of runs, by id
    failed: dict[str, list[str]] = field(default_factory=dict)  #: ids of calls that failed, by run


def read_dump(path: Path, room: Room) -> Iterator[Record]:
    """Yield interactions. Raises TrainerError: unreadable, and when a limit is passed."""
    try:
        told = _runs(path, room)
        number = 0
        for thread, rows in itertools.groupby(_rows(path, room, "messages"), key=lambda row: row["thread_id"]):
            for run_ids, messages in _stretches(rows, told):
                number += 1
                room.take(0)
                if len(messages) > MOST_MESSAGES:
                    fault = RowError("too_many_messages", f"{len(messages)} messages of {thread}")
                    yield Record(number, fault=fault)
                    continue
                value = {
                    "messages": messages,
                    "thread_id": thread,
                    "run_id": run_ids[0],
                    "status": told.statuses.get(run_ids[-1], ""),
                    "failed_calls": [call for run in run_ids for call in told.failed.get(run, ())],
                }
                yield Record(number, value=value)
    except (KeyError, TypeError, ValueError, msgspec.DecodeError) as error:
        raise TrainerError(
            "unreadable", f"{path.name} is no dump of the agent: {error}. Nothing was written."
        ) from error


def _runs(path: Path, room: Room) -> _Told:
    told = _Told()
    for row in _rows(path, room, "runs"):
        told.statuses[row["id"]] = row["status"]
        if len(told.statuses) > MOST_RUNS:
            raise TrainerError("too_many_rows", f"{path.name} has more than {MOST_RUNS:,} runs. Nothing was written.")
    for row in _rows(path, room, "tool_calls"):
        if row["is_error"]:
            told.failed.setdefault(row["run_id"], []).append(row["call_id"])
    return told


def _rows(path: Path, room: Room, table: str) -> Iterator[Mapping[str, Any]]:  # Any: JSON
    wanted = f'{{"table": "{table}", '.encode()
    for number, line in enumerate(read_packed_lines(path, room)):
        if number == 0:
            if msgspec.json.decode(line).get("format") != FORMAT:
                raise ValueError("it does not begin as one")
        elif line.startswith(wanted):
            yield msgspec.json.decode(line)["row"]


def _stretches(
    rows: Iterator[Mapping[str, Any]], told: _Told
) -> Iterator[tuple[list[str], list[Any]]]:  # Any: messages of the agent's framework
    """Yield runs of one outcome that follow each other in one thread, with their messages, as many as a row takes."""
    runs: list[str] = []
    messages: list[Any] = []
    for run_id, of_run in itertools.groupby(rows, key=lambda row: row["run_id"]):
        said = [msgspec.json.decode(row["body"]) for row in of_run]
        same = runs and (told.statuses.get(runs[-1]) in _ENDED) == (told.statuses.get(run_id) in _ENDED)
        # A message with several parts becomes several; half of the room is left for that.
        if runs and not (same and len(messages) + len(said) <= MOST_MESSAGES // 2):
            yield runs, messages
            runs, messages = [], []
        runs.append(run_id)
        messages += said
    if runs:
        yield runs, messages
