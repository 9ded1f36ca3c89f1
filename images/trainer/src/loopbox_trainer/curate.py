"""curate: owns a curation from its sources to its files: all steps in their order, and how it ends.

The same spec over the same files writes the same bytes, so a curation that was interrupted is simply run again.
"""

from __future__ import annotations

import errno
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from pydantic import ValidationError

from loopbox_trainer.chat_forms import tools_of_chat
from loopbox_trainer.counts import Step
from loopbox_trainer.curate_spec import CurateSpec, SourceSpec
from loopbox_trainer.divide import divide, prefer
from loopbox_trainer.dump import read_dump
from loopbox_trainer.errors import ExhaustedError, TrainerError
from loopbox_trainer.events import EventLog, Result
from loopbox_trainer.files import digest_of
from loopbox_trainer.gather import Kept
from loopbox_trainer.manifest import Origin, manifest
from loopbox_trainer.outcome import conclude
from loopbox_trainer.public_sets import READERS
from loopbox_trainer.quality import Bounds
from loopbox_trainer.rows import RowError, Tool
from loopbox_trainer.sources import Record, Room, locate, read_records
from loopbox_trainer.stream import Settings, Stream
from loopbox_trainer.synthetic import APPLIANCE, made_up
from loopbox_trainer.whole_files import Written, fresh_folder, publish_folder, write_lines

MOST_SPEC_BYTES: Final = 1 << 20
MOST_TOOLS_BYTES: Final = 1 << 20
_LOOKED: Final = 256  #: rows between two looks whether to stop


class Tell(Protocol):
    """What hears of the progress."""

    def __call__(self, event: str, **more: Any) -> None:  # Any: JSON
        """Take one event."""


class CancelledError(Exception):
    """It was asked to stop; nothing was written."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a curation reads and writes."""

    job: Path
    data: Path


def run(spec: CurateSpec, places: Places, tell: Tell, stopping: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Curate; return the manifest. Any: JSON.

    Raises TrainerError, CancelledError, OSError; then ``out`` is as it was.
    """
    stream = Stream(Settings(_bounds(spec), spec.outcomes, spec.most_bytes, _tools(places.data, spec.tools)))
    room = Room(spec.most_rows, spec.most_bytes, spec.most_seconds)
    origins: list[Origin] = []
    tell("phase", phase="read")
    for source in spec.sources:
        path = locate(places.data, source.path)
        origins += _origins(source, path)
        for number, record in enumerate(_records(source, path, room)):
            if number >= source.most_rows:
                break
            if number % _LOOKED == 0 and stopping():
                raise CancelledError
            stream.feed(source, record)
    if spec.synthetic is not None:
        _make_up(spec, places, stream, stopping)
    room.check_time()
    tell("phase", phase="divide", rows=len(stream.gathered.items))
    prefer(stream)
    parts, steps = divide(spec, stream.gathered)
    room.check_time()
    _check(spec, stream, parts)
    if stopping():
        raise CancelledError
    tell("phase", phase="write")
    draft = fresh_folder(places.job / ".out.new")
    files = _write(draft, stream, parts)
    told = manifest(spec, origins, [*stream.steps, *steps, stream.pairs], parts, files)
    write_lines(draft / "manifest.json", [json.dumps(told, indent=1).encode()])
    publish_folder(draft, places.job / "out")
    return told


def main(job: Path, data: Path = Path("/data")) -> int:
    """Run the job in a folder; return the exit code: 0 done or cancelled, 3 unfit, 4 out of disk or memory, 1 a bug."""
    stop: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    try:
        return conclude(job, lambda: _work(job, data, lambda: bool(stop)))
    finally:
        signal.signal(signal.SIGTERM, before)


def _work(job: Path, data: Path, stopping: Callable[[], bool]) -> Result:
    started = time.monotonic()
    try:
        made = run(read_spec(job / "spec.json"), Places(job, data), EventLog(job).tell, stopping)
    except CancelledError:
        message = "It was stopped; nothing was written. Run it again for the same result."
        return Result(status="cancelled", message=message)
    except MemoryError as error:
        message = "The rows do not fit into memory; nothing was written. Lower most_bytes or give the job more memory."
        raise ExhaustedError("out_of_memory", message) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = "The disk is full; nothing was written. Free space, then run it again."
        raise ExhaustedError("disk_full", message) from error
    files = {name: one["sha256"] for name, one in made["files"].items()}
    files["manifest.json"] = digest_of(job / "out" / "manifest.json")
    return Result(status="done", figures=_figures(made, time.monotonic() - started), files=files)


def read_spec(path: Path) -> CurateSpec:
    """Return a job's spec. Raises TrainerError: bad_spec."""
    try:
        with path.open("rb") as file:
            return CurateSpec.model_validate_json(file.read(MOST_SPEC_BYTES))
    except OSError as error:
        raise TrainerError("bad_spec", f"The spec cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise TrainerError("bad_spec", f"The spec cannot be used: {where}: {fault['msg']}") from error


def _figures(made: Mapping[str, Any], seconds: float) -> dict[str, float]:  # Any: JSON
    rows = made["steps"][0]["in"]
    return {
        "seconds": round(seconds, 3),
        "rows_read": rows,
        "rows_per_s": round(rows / max(seconds, 1e-9), 1),
        **{name: split["rows"] for name, split in made["splits"].items()},
    }


def _bounds(spec: CurateSpec) -> Bounds:
    return Bounds(most_characters=spec.most_characters, refusals=spec.refusals)


def _tools(data: Path, place: str | None) -> tuple[Tool, ...]:
    """Return the tools in a file: a JSON list, or an object with one as "tools". Raises TrainerError."""
    if place is None:
        return ()
    path = locate(data, place)
    try:
        with path.open("rb") as file:
            told = msgspec.json.decode(file.read(MOST_TOOLS_BYTES))
        return tools_of_chat(told if isinstance(told, dict) else {"tools": told})
    except (OSError, msgspec.DecodeError, UnicodeError, RowError, TypeError, AttributeError) as error:
        raise TrainerError("bad_tools", f"{place} is no list of tools: {error}") from error


def _records(source: SourceSpec, path: Path, room: Room) -> Iterator[Record]:
    if source.form == "dump":
        return read_dump(path, room)
    if source.form in READERS:
        return READERS[source.form](path, room)
    return read_records(path, room)


def _origins(source: SourceSpec, path: Path) -> list[Origin]:
    files = sorted(one for one in path.rglob("*.json*") if one.is_file()) if path.is_dir() else [path]
    if path.is_dir() and source.form not in READERS:
        raise TrainerError("no_source", f"{source.path} is a folder; name a file, or give it the form of a public set.")
    root = path if path.is_dir() else path.parent
    return [Origin(source.name, str(one.relative_to(root)), one.stat().st_size, digest_of(one)) for one in files]


def _make_up(spec: CurateSpec, places: Places, stream: Stream, stopping: Callable[[], bool]) -> None:
    asked = spec.synthetic
    if asked is None:
        return
    tools = _tools(places.data, asked.tools) if asked.tools else APPLIANCE
    source = SourceSpec(name="synthetic", path="synthetic", weight=asked.weight, mask=False, keep_near=True)
    rows = made_up(tools, asked.rows, asked.held_out, spec.seed)
    for number, row in enumerate(rows, 1):
        if number % _LOOKED == 0 and stopping():
            raise CancelledError
        stream.read.taken += 1
        stream.read.given += 1
        stream.take(source, number, row)


def _check(spec: CurateSpec, stream: Stream, parts: Mapping[str, Sequence[Kept]]) -> None:
    """Raise TrainerError where nothing can be learnt."""
    if not stream.read.taken:
        raise TrainerError("empty", "The sources hold no record at all. Nothing was written.")
    rows = parts["train"]
    if len(rows) < spec.least_rows:
        why = "; ".join(_told(step) for step in stream.steps if step.dropped)
        raise TrainerError(
            "too_few_rows",
            f"{len(rows)} of {stream.read.taken} records are left for training, at least {spec.least_rows} are wanted "
            f"(least_rows). {why or 'Nothing was dropped'}. Nothing was written: give more data.",
        )
    kinds = {item.kind for item in rows}
    if len(kinds) < spec.least_kinds:
        raise TrainerError(
            "one_class",
            f"All {len(rows)} rows begin in {len(kinds)} way(s) ({', '.join(sorted(kinds))[:200]}): a model trained on "
            f"them always does that. At least {spec.least_kinds} are wanted (least_kinds). Nothing was written.",
        )
    if spec.test and not parts["test"]:
        raise TrainerError("nothing_to_test", "No row is left for the test split: give more data, or set test to 0.")


def _told(step: Step) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in step.dropped.most_common(5))
    return f"{step.name} dropped {reasons}"


def _write(draft: Path, stream: Stream, parts: Mapping[str, Sequence[Kept]]) -> dict[str, Written]:
    files = {
        f"{name}.jsonl": write_lines(draft / f"{name}.jsonl", (item.line for item in items))
        for name, items in parts.items()
    }
    files["rejected.jsonl"] = write_lines(draft / "rejected.jsonl", stream.rejects.lines())
    return files
