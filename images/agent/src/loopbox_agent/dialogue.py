"""dialogue: owns the turns of one agent with its model: asks, passes the answer on while it comes, has tools called.

A dialogue may begin a turn again: when the model's answer broke off, and when its history was compressed because it
would not have fitted. What was told of the turn before is then taken back by ``text.reset``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai import Agent, RunContext, UsageLimits
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.run import AgentRun
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import Tool
from pydantic_ai.usage import RunUsage

from loopbox_agent.arguments import FitArguments
from loopbox_agent.context import KeepInContext
from loopbox_agent.forced import ModelOutputInvalidError
from loopbox_agent.mask import EVERYWHERE, MaskRules, StreamMask, mask
from loopbox_agent.summarise import Compacted

MOST_RESTARTS = 3

Tell = Callable[[str, Mapping[str, Any]], object]  #: Any: JSON


@dataclass
class _Watch(AbstractCapability[Any]):  # Any: it needs nothing of a run's dependencies
    """Sees what the model is about to be asked, before a compression makes something else of it."""

    seen: Callable[[Sequence[ModelMessage]], object]

    async def before_model_request(
        self,
        ctx: RunContext[Any],  # noqa: ARG002 the framework passes it. Any: as above
        request_context: ModelRequestContext,
    ) -> ModelRequestContext:
        """Look, and change nothing."""
        self.seen(tuple(request_context.messages))
        return request_context


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
    keeping: KeepInContext | None = None  #: compresses the history where it would not fit
    broken: tuple[type[Exception], ...] = ()  #: what a turn may be begun again after
    rules: MaskRules = EVERYWHERE
    said: str = ""  #: of the answer under way, as it may be shown
    history: list[ModelMessage] = field(default_factory=list)  #: all of it, as the model sees it
    fresh: list[ModelMessage] = field(default_factory=list)  #: what this dialogue added
    usage: RunUsage = field(default_factory=RunUsage)
    compacted: bool = False  #: whether ``history`` begins with a summary that this dialogue made
    _asked: tuple[ModelMessage, ...] = ()  #: what the model was asked last, whole
    _begin: int = 0  #: where in the framework's messages ``fresh`` goes on
    _known: int = 0  #: how many of ``fresh`` are from before that

    async def go(self, prompt: str, history: Sequence[ModelMessage] = ()) -> str:
        """Return the answer. Raises AgentError, ModelOutputInvalidError."""
        capabilities: list[AbstractCapability[Any]] = [FitArguments(), _Watch(self._see)]  # Any: as above
        if self.keeping is not None:
            self.keeping.on_compacted = self._shortened
            capabilities.append(self.keeping)
        agent: Agent[None, str] = Agent(
            self.model,
            instructions=self.instructions,
            tools=self.tools,
            output_type=str,
            retries=2,
            capabilities=capabilities,
        )
        self.history, asked = list(history), prompt or None
        restarts = 0
        while True:
            self._begin, self._known = len(self.history), len(self.fresh)
            try:
                async with agent.iter(
                    asked,
                    message_history=self.history,
                    model_settings=self.settings,
                    usage_limits=self.limits,
                    usage=self.usage,
                ) as run:
                    return mask(await self._turns(run), self.rules).text
            except self.broken:
                restarts += 1
                if restarts > MOST_RESTARTS:
                    raise
                self._take_back()
                asked = None if self.fresh else asked
                continue
            except (UsageLimitExceeded, UnexpectedModelBehavior) as error:
                raise ModelOutputInvalidError(f"The run was ended: {error}") from error

    async def _turns(self, run: AgentRun[None, str]) -> str:
        self.listen(run.enqueue)
        try:
            async for node in run:
                if Agent.is_model_request_node(node):
                    await self._ask(node, run)
                self._keep(run)
        finally:
            self.listen(None)
            self._keep(run)
        return run.result.output if run.result else ""

    def _keep(self, run: AgentRun[None, str]) -> None:
        self.history = run.all_messages()
        self.fresh[self._known :] = self.history[self._begin :]

    def _see(self, messages: Sequence[ModelMessage]) -> None:
        self._asked = tuple(messages)

    async def _shortened(self, made: Compacted) -> None:
        """Keep what was said so far, which the framework forgets now."""
        self.fresh[self._known :] = self._asked[self._begin :]
        self._begin, self._known = len(made.history), len(self.fresh)
        self.compacted = True
        self.tell(
            "context.compressed",
            {"tokens_before": made.tokens_before, "tokens_after": made.tokens_after, "by": made.by},
        )

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
