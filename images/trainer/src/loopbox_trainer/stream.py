"""stream: owns the steps that look at one row after the other: read, mask, mine, judge, and keep each content once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from loopbox_trainer.counts import Step
from loopbox_trainer.curate_spec import SourceSpec
from loopbox_trainer.fit import Toolset, Toolsets
from loopbox_trainer.gather import Gathered, Kept, Role
from loopbox_trainer.hints import hinted, kind_of
from loopbox_trainer.masking import Masker
from loopbox_trainer.mining import bettered, failed_results, mine, pair_of
from loopbox_trainer.normalise import normalise
from loopbox_trainer.quality import Bounds, unworthy
from loopbox_trainer.rejects import Rejects
from loopbox_trainer.rows import (
    Message,
    Pair,
    Row,
    RowError,
    Tool,
    canonical,
    content_id,
    encode,
    parse_json,
    parse_row,
    row_of,
)
from loopbox_trainer.sources import Record

#: How the records are said that a reader of its own made.
_FORMS: Mapping[str, str] = {"dump": "interaction", "bfcl": "chat", "grade_school_math": "question"}
#: Fields that only rows of our own have together.
_OWN = frozenset({"messages", "outcome", "meta"})
#: Names of conversations that are the same in every source: the agent's own.
_GLOBAL = ("thread_", "run_")
#: Faults that spoil an example of what not to do, too.
_SPOILS = frozenset({"empty", "control_tokens", "too_long", "result_without_call", "unanswered"})


@dataclass(frozen=True, slots=True)
class Settings:
    """What the steps are told."""

    bounds: Bounds
    outcomes: frozenset[str]
    most_bytes: int  #: kept
    tools: tuple[Tool, ...] = ()  #: on offer for records that do not say


@dataclass
class Stream:
    """The steps, and their counts."""

    settings: Settings
    masker: Masker = field(default_factory=Masker)
    gathered: Gathered = field(init=False)
    read: Step = field(default_factory=lambda: Step("read"))
    mask: Step = field(default_factory=lambda: Step("mask"))
    mine: Step = field(default_factory=lambda: Step("mine"))
    judge: Step = field(default_factory=lambda: Step("quality"))
    exact: Step = field(default_factory=lambda: Step("exact_dedup"))
    pairs: Step = field(default_factory=lambda: Step("pairs"))
    rejects: Rejects = field(init=False)
    _toolsets: Toolsets = field(default_factory=Toolsets)

    def __post_init__(self) -> None:
        self.rejects = Rejects(self.masker.text)
        self.gathered = Gathered(self.settings.most_bytes)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in their order."""
        return (self.read, self.mask, self.mine, self.judge, self.exact)

    def feed(self, source: SourceSpec, record: Record) -> None:
        """Take one record through the steps."""
        self.read.taken += 1
        try:
            if record.fault is not None:
                raise record.fault
            row = self._row(source, record)
        except RowError as error:
            self.read.drop(error.reason)
            self.rejects.add(source.name, record.number, "read", error, record.line or record.value)
            return
        self.read.given += 1
        self.take(source, record.number, row)

    def take(self, source: SourceSpec, number: int, row: Row) -> None:
        """Take a row that was read through the steps behind that."""
        step = self.mask
        try:
            step.taken += 1
            if source.mask:
                masked = self.masker.row(row)
                step.noted["masked"] += masked is not row
                row = masked
            step.given += 1
            step = self.mine
            step.taken += 1
            row, pairs = self._mined(row)
            step.given += 1
            for pair in pairs:
                self.keep_pair(pair)
            step = self.judge
            step.taken += 1
            self._judged(source, number, row)
        except RowError as error:
            step.drop(error.reason)
            self.rejects.add(source.name, number, step.name, error, row.messages)

    def _row(self, source: SourceSpec, record: Record) -> Row:
        if source.form == "row" and record.line:
            row = parse_row(record.line)
        else:
            value = parse_json(record.line) if record.line else record.value
            own = source.form == "row" or (source.form == "auto" and isinstance(value, dict) and value.keys() >= _OWN)
            form = _FORMS.get(source.form, source.form)
            row = row_of(value) if own else normalise(value, form, tools=self.settings.tools)
        conversation = row.conversation or str(record.number)
        if not conversation.startswith(_GLOBAL):
            conversation = f"{source.name}/{conversation}"
        return msgspec.structs.replace(row, source=source.name, conversation=conversation)

    def _mined(self, row: Row) -> tuple[Row, tuple[Pair, ...]]:
        failed = failed_results(row)
        pairs: tuple[Pair, ...] = ()
        if failed:
            mined = mine(row, failed)
            pairs = mined.pairs
            self.mine.noted["uncorrected" if mined.row is None else "corrected"] += 1
            row = mined.row or msgspec.structs.replace(row, meta={**row.meta, "failed": list(failed)})
        better = row.meta.get("better")
        if isinstance(better, str):
            self.mine.noted["bettered"] += 1
            mined = bettered(row, better)
            return mined.row or row, (*pairs, *mined.pairs)
        return row, pairs

    def _judged(self, source: SourceSpec, number: int, row: Row) -> None:
        toolset = self._toolsets.of(row.tools)
        reason = unworthy(row, toolset, self.settings.bounds)
        is_bad = row.outcome == "bad" or reason == "failed_call"
        if is_bad and reason not in _SPOILS:
            self.judge.drop("bad_outcome" if row.outcome == "bad" else "failed_call")
            self._keep_bad(source, row)
            return
        if reason is None and row.outcome not in self.settings.outcomes:
            reason = f"{row.outcome}_outcome"
        if reason is not None:
            self.judge.drop(reason)
            self.rejects.add(source.name, number, "quality", RowError(reason), row.messages)
            return
        self.judge.given += 1
        self.exact.taken += 1
        row = hinted(msgspec.structs.replace(row, id=content_id(row.messages, toolset.digest)))
        if self.gathered.has("row", row.id):
            self.exact.drop("copy")
            return
        self.exact.given += 1
        self.gathered.add(_kept(row, "row", source, toolset), row.messages)

    def _keep_bad(self, source: SourceSpec, row: Row) -> None:
        toolset = self._toolsets.of(row.tools)
        name = content_id(row.messages, toolset.digest)
        if not self.gathered.has("bad", name):
            row = msgspec.structs.replace(hinted(row), id=name, outcome="bad")
            self.gathered.add(_kept(row, "bad", source, toolset), row.messages)

    def keep_pair(self, pair: Pair) -> None:
        """Keep a preference whose better side is worth learning."""
        self.pairs.added += 1
        both = (*pair.prompt, *pair.chosen, *pair.rejected)
        toolset = self._toolsets.of(pair.tools)
        calls = [call for message in pair.chosen for call in message.tool_calls]
        fault = next((fault for call in calls if (fault := toolset.fault(call))), None)
        if fault is None and self.gathered.has("pair", pair.id):
            fault = "copy"
        if fault is not None:
            self.pairs.drop(fault)
            return
        self.pairs.given += 1
        kept = Kept(
            "pair", pair.id, pair.source, pair.conversation, encode(pair), prompt=_prompt(pair.prompt + pair.chosen)
        )
        self.gathered.add(kept, both)


def preferred(good: Row, bad: Row) -> Pair | None:
    """Return the preference of two rows that answer one request differently; None where they do not differ."""
    place = _first_answer(good.messages)
    if good.messages[place] == bad.messages[place]:
        return None
    answers = (good.messages[place],), (bad.messages[place],)
    return pair_of(good, good.messages[:place], *answers, {"mined": "outcome"})


def _kept(row: Row, role: Role, source: SourceSpec, toolset: Toolset) -> Kept:
    return Kept(
        role,
        row.id,
        source.name,
        row.conversation,
        encode(row, toolset.line),
        row.outcome,
        kind_of(row),
        _prompt(row.messages),
        source.held_out or row.meta.get("held_out") is True,
        source.keep_near,
    )


def _first_answer(messages: tuple[Message, ...]) -> int:
    return next((place for place, message in enumerate(messages) if message.role == "assistant"), len(messages) - 1)


def _prompt(messages: tuple[Message, ...]) -> bytes:
    return hashlib.sha256(canonical(messages[: _first_answer(messages)])).digest()[:16]
