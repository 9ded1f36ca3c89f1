"""mining: owns what is learnt from mistakes: calls that failed, paired with the later ones that worked. Pure.

A row is taken apart by requests: within the answer to one, a failed call is corrected when a later call of the same
tool worked (or any tool's, where it named one that is not there). The corrected row reads as if the mistake had not
been made; the pair prefers what it says to what was said first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from loopbox_trainer.failures import is_failure
from loopbox_trainer.rows import Call, Message, Pair, Row, canonical

MOST_PAIRS: Final = 8  #: of one row


@dataclass(eq=False)  # found again by identity: two calls may say the same
class _Made:
    """One call and what came of it."""

    call: Call
    result: Message
    failed: bool


@dataclass(eq=False)
class _Step:
    """One turn of the assistant."""

    turn: Message
    made: list[_Made]
    spoilt: bool = False  #: a call of it failed
    corrects: bool = False  #: it holds a correction, so its words are about the mistake

    def told(self) -> Iterator[Message]:
        """Yield the turn and the results."""
        yield self.answer()
        for one in self.made:
            yield one.result

    def answer(self) -> Message:
        """Return the turn with the calls that it has by now."""
        content = "" if self.corrects and self.made else self.turn.content
        return Message("assistant", content, tuple(one.call for one in self.made))


@dataclass(frozen=True, slots=True)
class Mined:
    """What a row gave."""

    row: Row | None  #: corrected; None: a failure was left uncorrected
    pairs: tuple[Pair, ...] = ()


@dataclass
class _Taken:
    """What a row's messages are by now."""

    messages: list[Message] = field(default_factory=list)
    pairs: list[tuple[tuple[Message, ...], Message, Message]] = field(default_factory=list)


def failed_results(row: Row) -> tuple[int, ...]:
    """Return the places of results that tell of a failure: as recorded, else by their words."""
    told = row.meta.get("failed")
    if isinstance(told, list):
        return tuple(place for place in told if isinstance(place, int))
    return tuple(
        place for place, message in enumerate(row.messages) if message.role == "tool" and is_failure(message.content)
    )


def mine(row: Row, failed: tuple[int, ...]) -> Mined:
    """Return a row with failures as a corrected one, and what is preferred to what. failed: not empty."""
    taken = _Taken()
    names = frozenset(tool.name for tool in row.tools)
    place = 0
    while place < len(row.messages):
        if row.messages[place].role != "assistant":
            taken.messages.append(row.messages[place])
            place += 1
            continue
        end = place
        while end < len(row.messages) and row.messages[end].role in ("assistant", "tool"):
            end += 1
        steps = _steps(row.messages, place, end, frozenset(failed))
        if steps is None or not _correct(steps, names, taken):
            return Mined(None)
        place = end
    meta = {key: value for key, value in row.meta.items() if key != "failed"}
    corrected = msgspec.structs.replace(row, messages=tuple(taken.messages), meta={**meta, "corrected": len(failed)})
    return Mined(corrected, tuple(_pairs(row, taken)))


def bettered(row: Row, better: str) -> Mined:
    """Return a row with the answer that a person wrote in the place of the last one, and the preference for it.

    Calls that failed go with the answer, back to the request: what was written answers that.
    """
    end = len(row.messages)
    last = row.messages[-1] if end else None
    if row.meta.get("failed") or last is None or last.role != "assistant" or last.tool_calls:
        last = None
        end = max((place for place, message in enumerate(row.messages) if message.role == "user"), default=-1) + 1
        if end < len(row.messages) and row.messages[end].role == "assistant":
            last = row.messages[end]
    else:
        end -= 1
    prompt, right = row.messages[:end], Message("assistant", better)
    meta = {key: value for key, value in row.meta.items() if key not in ("failed", "better")} | {"bettered": True}
    made = msgspec.structs.replace(row, messages=(*prompt, right), outcome="good", meta=meta)
    if last is None or last == right or not prompt:
        return Mined(made)
    return Mined(made, (pair_of(row, prompt, (right,), (last,), {"mined": "bettered"}),))


def _steps(messages: tuple[Message, ...], start: int, end: int, failed: frozenset[int]) -> list[_Step] | None:
    """Return the turns with their results; None where calls and results do not match."""
    steps: list[_Step] = []
    place = start
    while place < end:
        turn = messages[place]
        results = messages[place + 1 : place + 1 + len(turn.tool_calls)]
        if turn.role != "assistant" or len(results) != len(turn.tool_calls):
            return None
        if any(result.role != "tool" for result in results):
            return None
        steps.append(
            _Step(
                turn,
                [
                    _Made(call, result, place + 1 + number in failed)
                    for number, (call, result) in enumerate(zip(turn.tool_calls, results, strict=True))
                ],
            )
        )
        place += 1 + len(turn.tool_calls)
    return steps


def _correct(steps: list[_Step], names: frozenset[str], taken: _Taken) -> bool:
    """Take the mistakes out of one answer; tell whether all of them were corrected."""
    before: list[Message] = [step.turn for step in steps]
    for number, step in enumerate(steps):
        for made in [one for one in step.made if one.failed]:
            step.spoilt = True
            found = _correction(steps, number, made, names)
            if found is None:
                return False
            later, right = found
            later.corrects = True
            between = steps[number + 1 : steps.index(later)]
            alone = not any(not one.failed for other in between for one in other.made)
            if alone and len(step.made) > 1:  # calls side by side: the right one stands where the wrong one stood
                later.made.remove(right)
                step.made[step.made.index(made)] = right
            else:
                step.made.remove(made)
    left: list[Message] = []
    spoilt: list[tuple[int, Message]] = []  # where in what is left, and what was said there at first
    for step, first in zip(steps, before, strict=True):
        if step.spoilt:
            spoilt.append((len(left), first))
        if step.made or (not step.turn.tool_calls and step.turn.content):
            left += step.told()
    for place, first in spoilt[:MOST_PAIRS]:
        if place < len(left) and left[place].role == "assistant":
            taken.pairs.append(((*taken.messages, *left[:place]), left[place], first))
    taken.messages += left
    return True


def _correction(steps: list[_Step], number: int, wrong: _Made, names: frozenset[str]) -> tuple[_Step, _Made] | None:
    for later in steps[number + 1 :]:
        for made in later.made:
            if made.failed or made.call == wrong.call:
                continue
            if made.call.name == wrong.call.name or (names and wrong.call.name not in names):
                return later, made
    return None


def _pairs(row: Row, taken: _Taken) -> Iterator[Pair]:
    for prompt, chosen, rejected in taken.pairs[:MOST_PAIRS]:
        if chosen != rejected:
            yield pair_of(row, prompt, (chosen,), (rejected,), {"mined": "corrected"})


def pair_of(
    row: Row,
    prompt: tuple[Message, ...],
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
    meta: dict[str, Any],  # Any: JSON
) -> Pair:
    """Return a preference of a row's conversation."""
    name = hashlib.sha256(canonical((prompt, chosen, rejected))).hexdigest()[:16]
    return Pair(name, row.source, row.conversation, prompt, row.tools, chosen, rejected, meta)
