"""compaction: owns the plan of a compression: when, what is summarised, what stays word for word. Pure.

A conversation that fills its context is cut in two: the earlier part becomes a summary in eight segments, the last
turns stay as they are. A call and its answer are never torn apart. Rules (system parts) and open items stay word for
word. After a compression the next one needs real growth, so that it never loops: docs/decisions/0016.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, NoReturn

from pydantic_ai.messages import (
    CompactionPart,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from loopbox_agent.extract import open_items_of
from loopbox_agent.segments import MAX_OPEN, Segments
from loopbox_agent.tokens import STALE, ContextFullError, Meter
from loopbox_agent.transcript import clip, summary_of, tell_part

TRIGGER: Final = 0.92  #: of the limit
TARGET: Final = 0.25  #: of the history, what is left of it
STRETCHED: Final = 0.30  #: the same, where it keeps more of the turns that are wanted
GROWTH: Final = 0.10  #: of the limit, what must have been added since the last compression
LEAST_GAIN: Final = 0.15  #: of the history; a compression that saves less is not worth its time
SUMMARY: Final = 0.08  #: of the history, for the summary
SUMMARY_TOKENS: Final = (96, 1500)  #: least and most
LONGEST_CARRIED: Final = 0.30  #: of the target, for the question that the kept steps answer
LEAST_CARRIED: Final = 200  #: characters


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionPlan:
    """What becomes a summary and what stays; figures in tokens."""

    head: tuple[ModelMessage, ...]  #: to be summarised
    kept: tuple[ModelMessage, ...]  #: word for word
    rules: tuple[SystemPromptPart, ...]  #: the head's, word for word
    carried: tuple[UserPromptPart, ...]  #: the question that the kept steps work on, when it is in the head
    instructions: str | None
    earlier: Segments | None  #: of the summary that is in the head
    open_items: tuple[str, ...]
    offset: int  #: from a place in the head to the message's number in the thread
    first: int  #: number of the head's first message in the thread
    last: int  #: of its last
    summary_tokens: int  #: for the summary, open items aside
    used_tokens: int
    limit_tokens: int
    fixed_tokens: int  #: of the used ones, what is no history: tools, instructions, template
    scale: float  #: what an estimate is to be multiplied by to meet the engine's own figure
    meter: Meter

    def cost(self, messages: Sequence[ModelMessage]) -> int:
        """Return the tokens of messages of this history."""
        return math.ceil(self.meter.messages(messages) * self.scale)

    def cost_of(self, text: str) -> int:
        """Return the tokens of a text."""
        return math.ceil(self.meter.text(text) * self.scale)


def plan(  # noqa: PLR0913 each is a figure of its own
    history: Sequence[ModelMessage],
    *,
    used_tokens: int,
    limit_tokens: int,
    meter: Meter,
    keep_turns: int = 3,
    fixed_tokens: int = 0,
    open_items: Sequence[str] | None = None,
    trigger: float = TRIGGER,
    target: float = TARGET,
) -> CompactionPlan | None:
    """Return how to compress the history, None while there is no need or nothing to gain.

    used_tokens: of the whole prompt, as counted. limit_tokens: the context less what is kept for the answer.
    fixed_tokens: of the used ones, what no compression changes (tools, instructions).
    open_items: what is owed, where the caller keeps a list; None: they are looked for in the messages.
    Raises ContextFullError when the prompt is over the limit and cannot be made to fit.
    """
    if used_tokens < trigger * limit_tokens or not history:
        return None
    size = max(used_tokens - fixed_tokens, 1)
    scale = min(max(size / max(meter.messages(history), 1), 0.3), 1.2)
    # What is far over the limit, as a thread from a larger model, has to come down to the limit's part.
    draft = _Draft(history, meter, scale, open_items, min(size, max(limit_tokens - fixed_tokens, 1)), target)
    over = used_tokens > limit_tokens

    def refuse(why: str) -> NoReturn:
        raise _full(used_tokens, limit_tokens, why)

    if _grown(history, meter) * scale < GROWTH * limit_tokens:
        return refuse("it was compressed already and nothing new came") if over else None
    cut = draft.choose(keep_turns)
    if cut is None:
        return refuse("its last message alone is that long") if over else None
    left = draft.total(cut)
    if left + fixed_tokens > limit_tokens:
        return refuse("its last messages alone are that long") if over else None
    if left > (1 - LEAST_GAIN) * size and not over:
        return None
    return draft.plan(cut, used_tokens, limit_tokens, fixed_tokens)


def _full(used: int, limit: int, why: str) -> ContextFullError:
    return ContextFullError(
        f"The conversation has about {used} tokens, {limit} fit beside the answer, and it cannot be made shorter: "
        f"{why}. Nothing was generated and nothing is lost; start another thread, ask for a shorter answer or give "
        "less at once."
    )


def _grown(history: Sequence[ModelMessage], meter: Meter) -> float:
    """Return the tokens that came since the last compression, endless when there was none."""
    if (part := summary_of(history[0])) is None:
        return math.inf
    kept = int((part.metadata or {}).get("kept", 0))
    return meter.messages(history[kept + (1 if _alone(history[0], part) else 0) :])


class _Draft:
    """One history with the costs of its messages, from which the cut is chosen."""

    def __init__(  # noqa: PLR0913, PLR0917 the planner's own figures
        self,
        history: Sequence[ModelMessage],
        meter: Meter,
        scale: float,
        open_items: Sequence[str] | None,
        size: int,
        target: float,
    ) -> None:
        self.history = history
        self.meter = meter
        self.scale = scale
        self.target = target * size
        self.stretched = max(STRETCHED, target) * size
        self.summary = round(min(max(SUMMARY * size, SUMMARY_TOKENS[0]), SUMMARY_TOKENS[1]))
        self.given = None if open_items is None else tuple(" ".join(item.split()) for item in open_items)[:MAX_OPEN]
        costs = [meter.messages([message]) * scale for message in history]
        self.tails = [0.0] * (len(history) + 1)
        for place in range(len(history) - 1, -1, -1):
            self.tails[place] = self.tails[place + 1] + costs[place]
        self.turns, self.steps = _cuts(history)
        self.at_turn = frozenset(self.turns)
        #: For each cut the place of the last question before it.
        asks = [any(isinstance(part, UserPromptPart) for part in message.parts) for message in history]
        self.asked = [-1, *accumulate((place if ask else -1 for place, ask in enumerate(asks)), max)]
        self._carried: dict[int, tuple[tuple[UserPromptPart, ...], int]] = {}
        self.part = summary_of(history[0])
        # Rules and open items are taken from all that may be cut, which is at most a little too much.
        self.fixed = (
            self.summary + self._text([part.content for part in _rules(history)]) + self._text(self.owed(history))
        )

    def owed(self, head: Sequence[ModelMessage]) -> tuple[str, ...]:
        """Return the open items, the earlier summary's first."""
        if self.given is not None:
            return self.given
        earlier = _earlier(self.part)
        known = (*(earlier.open_items if earlier else ()),)
        closed = _closed(head, known)
        return tuple(dict.fromkeys(item for item in (*known, *open_items_of(head)) if item not in closed))[-MAX_OPEN:]

    def _text(self, texts: Sequence[str]) -> int:
        return math.ceil(self.meter.text("\n".join(texts)) * self.scale) + 1 if texts else 0

    def total(self, cut: int) -> int:
        """Return the history's tokens after a cut."""
        return math.ceil(self.fixed + self.tails[cut] + (0 if cut in self.at_turn else self.carried(cut)[1]))

    def carried(self, cut: int) -> tuple[tuple[UserPromptPart, ...], int]:
        """Return the question that the kept steps work on, and its tokens; a long one is cut in its middle."""
        place = self.asked[cut]
        if place not in self._carried:
            parts = (
                [part for part in self.history[place].parts if isinstance(part, UserPromptPart)] if place >= 0 else []
            )
            room = max(int(LONGEST_CARRIED * self.target * 4 / max(len(parts), 1)), LEAST_CARRIED)
            made = tuple(replace(part, content=clip(_words(part), room)) for part in parts)
            self._carried[place] = made, self._text([_words(part) for part in made])
        return self._carried[place]

    def choose(self, keep_turns: int) -> int | None:
        """Return where to cut: as early as the target allows, at a turn rather than inside one."""
        wanted = self.turns[-keep_turns:] if keep_turns > 0 else []
        fitting = [cut for cut in self.turns if self.total(cut) <= (self.stretched if cut in wanted else self.target)]
        steps = [cut for cut in self.steps if self.total(cut) <= self.target]
        if fitting and (not steps or 2 * self.tails[fitting[0]] >= self.tails[steps[0]]):
            return fitting[0]
        if steps:
            return steps[0]
        cuts = [*self.turns, *self.steps]
        return min(cuts, key=self.total) if cuts else None

    def plan(self, cut: int, used: int, limit: int, fixed: int) -> CompactionPlan:
        """Return the plan of a cut."""
        head, kept = tuple(self.history[:cut]), tuple(self.history[cut:])
        first, offset = _numbers(self.history[0], self.part)
        return CompactionPlan(
            head=head,
            kept=kept,
            rules=_rules(head),
            carried=() if cut in self.at_turn else self.carried(cut)[0],
            instructions=next(
                (m.instructions for m in reversed(head) if isinstance(m, ModelRequest) and m.instructions), None
            ),
            earlier=_earlier(self.part),
            open_items=self.owed(head),
            offset=offset,
            first=first,
            last=offset + cut - 1,
            summary_tokens=self.summary,
            used_tokens=used,
            limit_tokens=limit,
            fixed_tokens=fixed,
            scale=self.scale,
            meter=self.meter,
        )


def _cuts(history: Sequence[ModelMessage]) -> tuple[list[int], list[int]]:
    """Return where a turn begins and where a step (an answer) begins, with no call torn from its answer."""
    called: dict[str, int] = {}
    torn = [0] * (len(history) + 2)
    for place, message in enumerate(history):
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                called[part.tool_call_id] = place
            elif isinstance(part, ToolReturnPart) and (begun := called.get(part.tool_call_id)) is not None:
                torn[begun + 1] += 1
                torn[place + 1] -= 1
    turns: list[int] = []
    steps: list[int] = []
    across = 0
    for place, message in enumerate(history):
        across += torn[place]
        if place == 0 or across:
            continue
        if isinstance(message, ModelResponse):
            steps.append(place)
        elif any(isinstance(part, UserPromptPart) for part in message.parts) and summary_of(message) is None:
            turns.append(place)
    return turns, steps


def _rules(messages: Sequence[ModelMessage]) -> tuple[SystemPromptPart, ...]:
    """Return the system parts that hold on, each once."""
    found = (part for message in messages for part in message.parts if isinstance(part, SystemPromptPart))
    return tuple({part.content: part for part in found if part.scope != "request"}.values())


def _words(part: UserPromptPart) -> str:
    told = tell_part(part)
    return told[1] if told else ""


def _earlier(part: CompactionPart | None) -> Segments | None:
    if part is None or not isinstance(part.metadata, dict):
        return None
    return Segments.model_validate(part.metadata.get("segments") or {})


def _closed(head: Sequence[ModelMessage], known: Sequence[str]) -> set[str]:
    """Return which of the known items were ticked in the head."""
    texts = "\n".join(f"- [ ] {item}" for item in known)
    before = ModelRequest(parts=[UserPromptPart(texts)])
    return set(known) - set(open_items_of([before, *head])) if known else set()


def _numbers(message: ModelMessage, part: CompactionPart | None) -> tuple[int, int]:
    """Return the number in the thread of the head's first message that is no summary, and what to add to a place.

    A summary stands alone in its message, or with a copy of the question, or was joined with the first kept request
    by the framework; only in the last case its message is one of the thread's own.
    """
    if part is None:
        return 0, 0
    dropped = int((part.metadata or {}).get("dropped", 0))
    return dropped, dropped - 1 if _alone(message, part) else dropped


def _alone(message: ModelMessage, part: CompactionPart) -> bool:
    """Tell whether the summary's message is none of the thread's own."""
    carried = bool((part.metadata or {}).get("carried"))
    return carried or not any(isinstance(other, UserPromptPart) for other in message.parts)


def rebuild(planned: CompactionPlan, segments: Segments) -> list[ModelMessage]:
    """Return the history with the summary in the head's place; its first message is a request."""
    part = CompactionPart(
        content=word_summary(segments, planned.last),
        metadata={
            "loopbox": "compaction",
            "segments": segments.model_dump(mode="json"),
            "dropped": planned.last + 1,
            "carried": bool(planned.carried),
            "kept": len(planned.kept),
        },
    )
    first = ModelRequest(parts=[*planned.rules, part, *planned.carried], instructions=planned.instructions)
    return [first, *_marked(planned.kept)]


def _marked(kept: Sequence[ModelMessage]) -> Iterator[ModelMessage]:
    """Mark the kept answers: their usage tells of a prompt that is gone."""
    for message in kept:
        if isinstance(message, ModelResponse):
            yield replace(message, metadata={**(message.metadata or {}), STALE: True})
        else:
            yield message


def word_summary(segments: Segments, last: int) -> str:
    """Return the summary as the model reads it."""
    return (
        f"Messages 0 to {last} of this conversation are summarised here to save room. The tool `read_back`, where it "
        "is offered, gives them word for word by number. Go on from here and do not repeat what is done.\n\n"
        + segments.render()
    )
