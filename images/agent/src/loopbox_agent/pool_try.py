"""pool_try: owns one try of one member: what comes of it is told to breaker and health, after the first token, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final

from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import Model, StreamedResponse

from loopbox_agent.breaker import Breaker, Permit
from loopbox_agent.classify import classify
from loopbox_agent.deadline import Clock
from loopbox_agent.errors import AgentError
from loopbox_agent.failure import Category, Failure
from loopbox_agent.pool_health import Health
from loopbox_agent.pool_member import PoolMember

LONGEST_HOLD_S: Final = 60.0  # a member is left alone for, whatever it asks


class BrokeOffError(AgentError):
    """A model's answer broke off after its first token; no tool of this turn was called yet."""

    code: ClassVar[str] = "model_broke_off"
    status: ClassVar[int] = 502

    def __init__(self, member: str, failure: Failure, cause: BaseException) -> None:
        super().__init__(
            f"The answer of the model {member} broke off ({cause}); no tool of this turn was called. Ask again.",
            details={"member": member, "category": failure.category},
        )
        self.member = member
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Tried:
    """One try of one member, for logs and metrics."""

    member: str
    category: Category | None  #: of its failure; None: it answered
    seconds: float  #: to the first token, or to the failure
    streaming: bool = False  #: it failed after its first token


@dataclass(slots=True)
class Place:
    """A member with what is known of it."""

    member: PoolMember
    model: Model
    breaker: Breaker
    health: Health = field(default_factory=Health)


class Try:
    """One try of one member."""

    def __init__(self, place: Place, permit: Permit, *, clock: Clock, tell: Callable[[Tried], None]) -> None:
        self._place = place
        self._permit = permit
        self._clock = clock
        self._tell = tell
        self._begun = clock()
        self.model = place.model
        self.member = place.member

    def answered(self, *, more: bool) -> None:
        """Take note of the first token. more: the answer goes on, and its end decides; but a probe has succeeded."""
        now = self._clock()
        self._place.health.answered(now - self._begun)
        self._tell(Tried(self.member.name, None, now - self._begun))
        if not more or self._permit.probes:
            self._permit.succeeded(now)
            self._permit = self._place.breaker.enter(now) or self._permit

    def gave_up(self) -> None:
        """Take note that it was cancelled before it said anything."""
        self._permit.gave_up()

    def ended(self) -> None:
        """Take note that an answer came to its end, or to where nobody wanted more of it."""
        self._permit.succeeded(self._clock())

    def failed(self, error: BaseException, *, streaming: bool = False) -> Failure:
        """Take note of a failure and return what it is."""
        failure = classify(error)
        now = self._clock()
        self._tell(Tried(self.member.name, failure.category, now - self._begun, streaming))
        if failure.category == "validation":  # ours, not the member's
            self._permit.gave_up()
            return failure
        if failure.category == "rate_limit":  # alive, and says when it takes more
            self._permit.gave_up()
            if failure.wait_s is not None:
                self._place.health.hold(now + min(failure.wait_s, LONGEST_HOLD_S))
            return failure
        self._place.health.failed()
        self._permit.failed(now)
        return failure


class Watched:
    """The events of an answer, the first one read ahead; what breaks after it becomes BrokeOffError."""

    def __init__(self, response: StreamedResponse, trying: Try) -> None:
        self._events = aiter(response)
        self._first: ModelResponseStreamEvent | None = None
        self._trying = trying
        self._over = False

    async def begin(self) -> None:
        """Wait for the first event. Raises what the model raises."""
        self._first = await anext(self._events, None)
        self._trying.answered(more=True)

    def __aiter__(self) -> Watched:
        return self

    async def __anext__(self) -> ModelResponseStreamEvent:
        if (first := self._first) is not None:
            self._first = None
            return first
        try:
            return await anext(self._events)
        except StopAsyncIteration:
            self.leave()
            raise
        except Exception as error:
            raise self._broken(error) from error

    def leave(self) -> None:
        """Take note that nobody reads on."""
        if not self._over:
            self._over = True
            self._trying.ended()

    def _broken(self, error: Exception) -> BrokeOffError:
        self._over = True
        failure = self._trying.failed(error, streaming=True)
        return BrokeOffError(self._trying.member.name, failure, error)
