"""dialogue: owns the turns of one agent with its model: asks, passes the answer on while it comes, has tools called.

A dialogue may begin a turn again: when the model's answer broke off, and when its history was compressed because it
would not have fitted. What was told of the turn before is then taken back by ``text.reset``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai import Agent, UsageLimits
from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)
from pydantic_ai.models import Model
from pydantic_ai.run import AgentRun
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import Tool
from pydantic_ai.usage import RunUsage

from loopbox_agent.arguments import FitArguments
from loopbox_agent.forced import ModelOutputInvalidError
from loopbox_agent.mask import EVERYWHERE, MaskRules, StreamMask, mask

MOST_RESTARTS = 3

Tell = Callable[[str, Mapping[str, Any]], object]  #: Any: JSON
Compress = Callable[[Sequence[ModelMessage]], Awaitable[list[ModelMessage] | None]]


async def _fits(_: Sequence[ModelMessage]) -> list[ModelMessage] | None:
    return None


@dataclass(kw_only=True)
class Dialogue:
    """One agent's turns, from a prompt to its answer."""

    model: Model
    settings: ModelSettings
    limits: UsageLimits
    tell: Tell
    instructions: str | None = None
    tools: Sequence[Tool[None]] = ()
    listen: Callable[[Callable[[str], object] | None], object] = lambda _: None  #: takes who hears messages into it
    compress: Compress = _fits  #: returns a shorter history, None where it fits
    broken: tuple[type[Exception], ...] = ()  #: what a turn may be begun again after
    rules: MaskRules = EVERYWHERE
    said: str = ""  #: of the answer under way, as it may be shown
    history: list[ModelMessage] = field(default_factory=list)  #: all of it, as the model sees it
    fresh: list[ModelMessage] = field(default_factory=list)  #: what this dialogue added
    usage: RunUsage = field(default_factory=RunUsage)

    async def go(self, prompt: str, history: Sequence[ModelMessage] = ()) -> str:
        """Return the answer. Raises AgentError, ModelOutputInvalidError."""
        agent: Agent[None, str] = Agent(
            self.model,
            instructions=self.instructions,
            tools=self.tools,
            output_type=str,
            retries=2,
            capabilities=[FitArguments()],
        )
        self.history, asked = list(history), prompt or None
        restarts = 0
        while True:
            before = len(self.history)
            try:
                async with agent.iter(
                    asked,
                    message_history=self.history,
                    model_settings=self.settings,
                    usage_limits=self.limits,
                    usage=self.usage,
                ) as run:
                    answer = await self._turns(run, before)
            except self.broken:
                restarts += 1
                if restarts > MOST_RESTARTS:
                    raise
                self._take_back()
                asked = None if self.fresh else asked
                continue
            except (UsageLimitExceeded, UnexpectedModelBehavior) as error:
                raise ModelOutputInvalidError(f"The run was ended: {error}") from error
            if answer is not None:
                return mask(answer, self.rules).text
            asked = None

    async def _turns(self, run: AgentRun[None, str], before: int) -> str | None:
        """Return the answer; None when the history was compressed, and the turn is to begin again."""
        self.listen(run.enqueue)
        known = len(self.fresh)
        try:
            async for node in run:
                if Agent.is_model_request_node(node):
                    so_far = [*run.all_messages(), node.request]
                    if (shorter := await self.compress(so_far)) is not None:
                        self._keep([*run.all_messages()[before:], node.request], known)
                        self.history = shorter
                        return None
                    await self._ask(node, run)
                self._keep(run.all_messages()[before:], known)
        finally:
            self.listen(None)
            self._keep(run.all_messages()[before:], known)
            self.history = run.all_messages() if run.result is None else self.history
        return run.result.output if run.result else ""

    def _keep(self, added: Sequence[ModelMessage], known: int) -> None:
        self.fresh[known:] = added

    async def _ask(self, node: Any, run: AgentRun[None, str]) -> None:  # Any: the framework's node
        masking = StreamMask(self.rules)
        self.said = ""
        try:
            async with node.stream(run.ctx) as stream:
                async for event in stream:
                    if (text := _text(event)) is not None:
                        self._pass_on(masking.feed(text))
        finally:
            self._pass_on(masking.flush())

    def _pass_on(self, shown: str) -> None:
        if shown:
            self.said += shown
            self.tell("text.delta", {"text": shown})

    def _take_back(self) -> None:
        """Forget the answer that broke off; the history then ends with what the model was asked."""
        while self.history and isinstance(self.history[-1], ModelResponse):
            self.history.pop()
        while self.fresh and isinstance(self.fresh[-1], ModelResponse):
            self.fresh.pop()
        if self.said:
            self.tell("text.reset", {"characters": len(self.said)})
            self.said = ""


def _text(event: object) -> str | None:
    match event:
        case PartStartEvent(part=TextPart(content=str(content))) if content:
            return content
        case PartDeltaEvent(delta=TextPartDelta(content_delta=str(content))) if content:
            return content
        case _:
            return None
