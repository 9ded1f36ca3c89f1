"""run_follow: owns following a run of the agent to its end, over broken connections, and reading what it tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from loopd.cli.exits import AnswerError, ApiError, UnreachableError
from loopd.cli.sse import Message
from loopd.errors import LoopdError

#: Together less than the agent lets a run go on without its client (`resume_grace_s`, 10 s).
WAITS_S = (0.25, 0.5, 1.0, 2.0, 4.0)
ENDINGS = frozenset({"run.completed", "run.failed", "run.cancelled", "run.held"})
PASSING = frozenset({429, 502, 503, 504})  #: refusals of a gateway whose agent is just being restarted
MAX_ANSWER_CHARACTERS = 16 << 20

_LATE = ConfigDict(defer_build=True)  # `--help` need not wait for it
_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue], config=_LATE)

Stream = Generator[Message | None]
Say = Callable[[str], None]


class RunLostError(UnreachableError):
    """A run could not be followed to its end."""

    code = "run_lost"


class RunHeldError(LoopdError):
    """The answer is not given out before somebody has looked at it."""

    code: ClassVar[str] = "run_held"


class RunCancelledError(LoopdError):
    """Somebody ended the run."""

    code: ClassVar[str] = "run_cancelled"


@dataclass(slots=True)
class Place:
    """How far a run's stream was read."""

    run_id: str = ""
    last: int = 0  #: number of the last event

    def note(self, message: Message) -> None:
        """Go on to this event."""
        if message.event == "run.started":
            run_id = parse_event(message).get("run_id")
            self.run_id = run_id if isinstance(run_id, str) else self.run_id
        if message.id.isascii() and message.id.isdigit():
            self.last = int(message.id)


def follow(begin: Callable[[], Stream], resume: Callable[[str, int], Stream], place: Place, say: Say) -> Stream:
    """Yield a run's events to the one that ends it, each once; a broken connection is taken up where it broke.

    begin: opens the first stream. resume: opens one of a run, after an event's number. place: kept up to date, for
    the one who leaves early. say: is told of each break. Raises RunLostError after the last try, ApiError, AnswerError.
    """
    opening, tries = begin, 0
    while True:
        known = place.last
        cause = yield from _read(opening, place)
        if cause is None:
            return
        if known != place.last:
            tries = 0
        elif not cause and opening is not begin:
            raise RunLostError(
                f"{place.run_id} has no end: the agent was stopped while it ran. What it had said is kept; "
                f"`loopctl runs show {place.run_id}` tells its state"
            )
        cause = cause or "the stream ended before the run"
        if tries == len(WAITS_S):
            raise RunLostError(
                f"{place.run_id} was lost after {len(WAITS_S)} tries: {cause}. If it still goes on, "
                f"`loopctl runs watch {place.run_id}` takes it up; the agent ends a run that nobody follows"
            )
        say(f"[{cause}; going on after event {place.last} in {WAITS_S[tries]:g} s]")
        time.sleep(WAITS_S[tries])
        tries += 1
        opening = partial(resume, place.run_id, place.last)


def _read(opening: Callable[[], Stream], place: Place) -> Generator[Message, None, str | None]:
    """Yield the events of one connection; return why it broke off, '' for an early end, None at the run's end."""
    try:
        with closing(opening()) as messages:
            for message in messages:
                if message is not None:
                    place.note(message)
                    yield message
                    if message.event in ENDINGS:
                        return None
    except UnreachableError as error:
        if not place.run_id:
            raise
        return str(error)
    except ApiError as error:
        if not place.run_id or error.http_status not in PASSING:
            raise
        return str(error)
    if not place.run_id:
        raise AnswerError("the answer broke off before its end; `loopctl status` says how the agent is. Ask again")
    return ""


@dataclass(slots=True)
class Run:
    """A run of the agent, read from its stream."""

    tools: list[dict[str, JsonValue]] = field(default_factory=list)
    ended: dict[str, JsonValue] | None = None  #: what its last event said
    text: list[str] = field(default_factory=list)
    status: str = ""  #: completed, cancelled or held, once it ended

    def read(self, messages: Iterable[Message | None]) -> Iterator[tuple[str, str]]:
        """Yield ("text", piece), ("tool", name) and ("steer", text) as they come. Raises ApiError on run.failed."""
        length = 0
        for message in messages:
            if message is None:
                continue
            body = parse_event(message)
            match message.event:
                case "text.delta":
                    piece = str(body.get("text", ""))
                    length += len(piece)
                    if length > MAX_ANSWER_CHARACTERS:
                        raise AnswerError(f"the answer is longer than {MAX_ANSWER_CHARACTERS} characters; it was left")
                    self.text.append(piece)
                    yield "text", piece
                case "tool.started":
                    yield "tool", str(body.get("tool") or body.get("name") or "a tool")
                case "tool.finished":
                    self.tools.append(body)
                case "run.steered":
                    yield "steer", str(body.get("text", ""))
                case "run.completed" | "run.cancelled" | "run.held":
                    self.ended, self.status = body, message.event.removeprefix("run.")
                    return
                case "run.failed":
                    raise failure(body)
                case _:
                    pass  # run.started, or an event of a newer agent

    def check(self) -> None:
        """Raise RunHeldError or RunCancelledError for a run that ended so."""
        run_id = str((self.ended or {}).get("run_id") or "the run")
        if self.status == "held":
            raise RunHeldError(
                f"the answer of {run_id} is held back until an operator has looked at it: `loopctl quarantine list`, "
                f"then `release` or `reject`. `loopctl runs show {run_id}` shows it after that"
            )
        if self.status == "cancelled":
            raise RunCancelledError(f"{run_id} was cancelled; what is above is all that it said. Nothing of it runs on")


def parse_event(message: Message) -> dict[str, JsonValue]:
    """Return an event's body. Raises AnswerError."""
    try:
        return _OBJECT.validate_json(message.data)
    except ValidationError as error:
        raise AnswerError(f"the agent's event {message.event!r} is no JSON object; is it of this version?") from error


def failure(body: dict[str, JsonValue]) -> ApiError:
    """Return the error that run.failed tells of."""
    told = body.get("error")
    told = told if isinstance(told, dict) else {}
    return ApiError(
        str(told.get("message") or "the run failed and the agent gave no reason; its log may"),
        answered_code=str(told.get("code") or "run_failed"),
        http_status=0,
    )
