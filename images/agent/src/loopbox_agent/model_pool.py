"""model_pool: owns the models that may answer: who is asked, who is asked instead, and when a turn broke off.

Another member is asked only before the first token. After it a client may have seen text and a tool may be about to
run, so a break is told as BrokeOffError, and the run's loop begins the turn anew or ends.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings

from loopbox_agent.breaker import Breaker, Policy, Snapshot
from loopbox_agent.classify import classify
from loopbox_agent.deadline import Clock, Deadline
from loopbox_agent.errors import AgentError
from loopbox_agent.pool_health import Standing, plan_order
from loopbox_agent.pool_member import PoolMember, check_members, least_context
from loopbox_agent.pool_try import BrokeOffError, Place, Tried, Try, Watched
from loopbox_agent.retry import Backoff, Draw, Retries, Sleep

__all__ = ["BrokeOffError", "MemberSnapshot", "ModelPool", "ModelsUnavailableError", "PooledModel", "Tried"]

T = TypeVar("T")


class ModelsUnavailableError(AgentError):
    """No model may be asked right now; nothing was generated."""

    code: ClassVar[str] = "models_unavailable"
    status: ClassVar[int] = 503


@dataclass(frozen=True, slots=True)
class MemberSnapshot:
    """A member as it stands, for people and metrics."""

    name: str
    kind: str
    priority: int
    failing: float  #: share of failures, 0..1, the newest count most
    first_token_s: float | None
    held_s: float  #: it asked to be left alone for so long
    breaker: Snapshot


class ModelPool:
    """Models with health. Hand each run a model of its own by ``for_run``.

    build: makes the model of a member. told: hears of every try; it must not raise or wait.
    """

    def __init__(
        self,
        members: Sequence[PoolMember],
        build: Callable[[PoolMember], Model],
        *,
        policy: Policy | None = None,
        clock: Clock = time.monotonic,
        told: Callable[[Tried], None] | None = None,
    ) -> None:
        rules = policy or Policy()
        self._places = [Place(member, build(member), Breaker(member.name, rules)) for member in check_members(members)]
        self.clock = clock
        self._told = told

    def least_context(self, own: int) -> int:
        """Return the tokens that every member's context has; own: of those that say nothing of it."""
        return least_context([place.member for place in self._places], own)

    @property
    def first(self) -> Model:
        """The model of the highest priority, whose name and profile stand for the pool."""
        return min(self._places, key=lambda place: place.member.priority).model

    def for_run(
        self,
        deadline: Deadline | None = None,
        *,
        backoff: Backoff | None = None,
        draw: Draw = random.random,
        sleep: Sleep = asyncio.sleep,
    ) -> PooledModel:
        """Return a model for one run: it tries until it is answered, within the run's deadline."""
        retries = Retries(deadline or Deadline.never(), backoff or Backoff(), draw, sleep)
        return PooledModel(self, retries)

    def snapshot(self) -> tuple[MemberSnapshot, ...]:
        """Return how each member stands."""
        now = self.clock()
        return tuple(
            MemberSnapshot(
                place.member.name,
                place.member.kind,
                place.member.priority,
                round(place.health.failing, 3),
                None if place.health.first_token_s is None else round(place.health.first_token_s, 4),
                round(max(0.0, place.health.held_until - now), 3),
                place.breaker.snapshot(now),
            )
            for place in self._places
        )

    async def ask_each(self, ask: Callable[[Try], Awaitable[T]], draw: Draw) -> T:
        """Return the first answer; each member that may be asked is asked once.

        One that asked for rest is asked only when nobody else is there: what it told one request it need not tell the
        next. Raises the error that gives the most hope, or at once the one that is the request's own fault;
        ModelsUnavailableError when no member may be asked.
        """
        errors: list[Exception] = []
        order = [self._places[place] for place in plan_order([_standing(place) for place in self._places], draw)]
        now = self.clock()
        order.sort(key=lambda place: place.health.held_until > now)  # stable: the order stays otherwise
        for chosen in order:
            now = self.clock()
            held = now < chosen.health.held_until and bool(errors)
            permit = None if held else chosen.breaker.enter(now)
            if permit is None:
                continue
            trying = Try(chosen, permit, clock=self.clock, tell=self._tell)
            try:
                # No limit but the member's own: the run's deadline stands around all of this.
                async with asyncio.timeout(chosen.member.first_token_s):
                    return await ask(trying)
            except Exception as error:
                failure = trying.failed(error)
                if failure.category == "validation":
                    raise
                errors.append(error)
            except BaseException:
                trying.gave_up()
                raise
        if errors:
            raise max(errors, key=_hope)
        raise self._nobody()

    def _nobody(self) -> ModelsUnavailableError:
        now = self.clock()
        wait = max(1, math.ceil(min(place.breaker.wait_s(now) for place in self._places)))
        names = ", ".join(place.member.name for place in self._places)
        return ModelsUnavailableError(
            f"No model may be asked for {wait} s ({names}): they failed too often just now. Nothing was generated. "
            "Try again then; /health/detailed shows how each stands.",
            retry_after_s=wait,
        )

    def _tell(self, tried: Tried) -> None:
        if self._told is not None:
            self._told(tried)


def _standing(place: Place) -> Standing:
    return Standing(place.member.priority, place.member.weight, place.health.failing, place.health.first_token_s)


def _hope(error: Exception) -> tuple[bool, float]:
    failure = classify(error)
    return failure.retryable, -(failure.wait_s or 0.0)


class PooledModel(Model):
    """The pool as one run sees it."""

    _answers_requests_itself: ClassVar[bool] = False  # the members restore and map for themselves

    def __init__(self, pool: ModelPool, retries: Retries) -> None:
        super().__init__()
        self._pool = pool
        self._retries = retries

    @property
    def model_name(self) -> str:
        """The first member's name for its model."""
        return self._pool.first.model_name

    @property
    def system(self) -> str:
        """The first member's provider."""
        return self._pool.first.system

    @property
    def profile(self) -> ModelProfile:
        """The first member's; each member applies its own when it is asked."""
        return self._pool.first.profile

    def prepare_request(
        self, model_settings: ModelSettings | None, model_request_parameters: ModelRequestParameters
    ) -> tuple[ModelSettings | None, ModelRequestParameters]:
        """Leave it as it is: the member that is asked prepares it."""
        return model_settings, model_request_parameters

    def prepare_messages(
        self, messages: list[ModelMessage], model_request_parameters: ModelRequestParameters | None = None
    ) -> list[ModelMessage]:
        """Leave them as they are: the member that is asked prepares them."""
        del model_request_parameters
        return messages

    async def _answer(self, ask: Callable[[Try], Awaitable[T]]) -> T:
        return await self._retries.run(lambda: self._ask(ask), "model")

    async def _ask(self, ask: Callable[[Try], Awaitable[T]]) -> T:
        """Ask the members; wait while none may be asked, which is no try: the breakers let nobody waste one."""
        rules, waited = self._retries.backoff, 0.0
        while True:
            try:
                return await self._pool.ask_each(ask, self._retries.draw)
            except ModelsUnavailableError as error:
                wait = (error.retry_after_s or 0) + self._retries.draw() * rules.base_s
                waited += wait
                if waited > rules.longest_wait_s or wait + rules.least_left_s > self._retries.deadline.left():
                    raise
            await self._retries.sleep(wait)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Return the whole answer. Nobody sees a part of it, so a break, too, is tried again."""

        async def ask(trying: Try) -> ModelResponse:
            told = trying.model.prepare_messages(messages, model_request_parameters)
            answer = await trying.model.request(told, model_settings, model_request_parameters)
            trying.answered(more=False)
            return answer

        return await self._answer(ask)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,  # Any: the framework's own signature
    ) -> AsyncGenerator[StreamedResponse]:
        """Yield an answer that has begun. Reading it raises BrokeOffError when it breaks off."""

        async def ask(trying: Try) -> tuple[AsyncExitStack, StreamedResponse, Watched]:
            told = trying.model.prepare_messages(messages, model_request_parameters)
            async with AsyncExitStack() as stack:
                opening = trying.model.request_stream(told, model_settings, model_request_parameters, run_context)
                response = await stack.enter_async_context(opening)
                watched = Watched(response, trying)
                await watched.begin()
                return stack.pop_all(), response, watched
            raise AssertionError("the context manager swallows nothing")

        stack, response, watched = await self._answer(ask)
        async with stack:
            # The iterator is the response's own, watched: parts, usage and the final answer stay the member's work.
            response._event_iterator = watched  # noqa: SLF001 the framework's fallback model does the same; a test holds it
            try:
                yield response
            finally:
                watched.leave()
