"""read_back: owns reading a conversation back word for word, by the numbers that its summaries name.

A compaction stores the history that the model then sees as new messages: a summary, and copies of what it kept. These
are no messages of the conversation and have no number in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
from sqlalchemy import Connection, select

from loopbox_agent.database import Database
from loopbox_agent.tables import messages
from loopbox_agent.threads import holding
from loopbox_agent.transcript import LONGEST_PART, clip, summary_of, tell

LONGEST: Final = 8000  #: characters that are read back at once
MOST: Final = 50  #: messages that are read back at once
_SUMMARY: Final = '"part_kind":"compaction"'  # as messages are stored; text would have its quotes escaped


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be read back."""

    first: int | None = None  #: number of a message, from 0; None with ``last``: the newest that fit
    last: int | None = None  #: inclusive
    query: str = ""  #: words that all must occur in a message
    most: int = MOST


@dataclass(frozen=True, slots=True)
class Back:
    """What was found."""

    found: Sequence[tuple[int, ModelMessage]]  #: messages under their numbers, in order
    there: int  #: how many messages are stored
    goes_on: int | None = None  #: number of the first that fits and was left out, None for none


async def read_back(database: Database, thread_id: str, asked: Asked) -> Back:
    """Return messages of a thread, whether a compaction dropped them or not."""

    def unit(connection: Connection) -> Back:
        mine = messages.c.thread_id == thread_id
        marked = select(messages.c.seq, messages.c.run_id, messages.c.body.contains(_SUMMARY).label("suspect"))
        rows = connection.execute(marked.where(mine).order_by(messages.c.seq)).all()
        summaries = {
            seq for seq, message in _bodies(connection, thread_id, [r.seq for r in rows if r.suspect])
            if summary_of(message)
        }  # fmt: skip
        seqs = originals((row.seq, row.run_id, row.seq in summaries) for row in rows)
        if asked.query:
            fit = set(connection.execute(select(messages.c.seq).where(mine, *holding(asked.query))).scalars())
        else:
            fit = set(seqs)
        first, last = asked.first or 0, len(seqs) if asked.last is None else asked.last
        numbers = [n for n in range(first, min(last + 1, len(seqs))) if seqs[n] in fit]
        newest = asked.first is None and asked.last is None
        chosen = numbers[-asked.most :] if newest else numbers[: asked.most]
        goes_on = numbers[asked.most] if not newest and len(numbers) > asked.most else None
        bodies = _bodies(connection, thread_id, [seqs[n] for n in chosen])
        return Back([(n, message) for n, (_, message) in zip(chosen, bodies, strict=True)], len(seqs), goes_on)

    return await database.read(unit)


def originals(rows: Iterable[tuple[int, str, bool]]) -> list[int]:
    """Return the seq of each message of a thread, by its number. Pure.

    rows: of all that is stored, in order: seq, run, whether it is a summary. After one, a run stores only copies.
    """
    copying: set[str] = set()
    seqs = []
    for seq, run, summary in rows:
        if summary:
            copying.add(run)
        if run not in copying:
            seqs.append(seq)
    return seqs


def tell_back(back: Back, *, longest: int = LONGEST) -> str:
    """Return what was found as text of about ``longest`` characters that says where to go on. Pure."""
    told: list[str] = []
    room = longest
    goes_on = back.goes_on
    for number, message in back.found:
        words = tell(message, number, longest=LONGEST_PART)
        if told and len(words) > room:
            goes_on = number
            break
        if words:
            told.append(clip(words, room))
            room -= len(words)
    if not told:
        return f"nothing fits; {back.there} messages of this conversation can be read back, numbered from 0"
    return "\n".join([*told, f"[… go on with first={goes_on}]"] if goes_on is not None else told)


def _bodies(connection: Connection, thread_id: str, seqs: Sequence[int]) -> list[tuple[int, ModelMessage]]:
    wanted = select(messages.c.seq, messages.c.body).where(messages.c.thread_id == thread_id, messages.c.seq.in_(seqs))
    rows = connection.execute(wanted.order_by(messages.c.seq)).all()
    read = ModelMessagesTypeAdapter.validate_json(f"[{','.join(row.body for row in rows)}]")
    return [(row.seq, message) for row, message in zip(rows, read, strict=True)]
