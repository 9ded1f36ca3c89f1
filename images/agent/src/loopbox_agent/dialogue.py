"""dialogue: owns the turns of one agent with its model: asks, passes the answer on while it comes, has tools called.

The loop is our own, over the framework's models and messages: the framework's graph took more than half of a turn's
time (decision 20). A turn may be begun again when the model's answer broke off; what was told of it is then taken
back by ``text.reset``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_ai.messages import (
    InstructionPart,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    RetryFeedbackPart,
    RetryInfo,
    TextPart,
    TextPartDelta,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage

from loopbox_agent.clean import StreamShow, show
from loopbox_agent.context import KeepInContext
from loopbox_agent.forced import ModelOutputInvalidError
from loopbox_agent.mask import EVERYWHERE, MaskRules
from loopbox_agent.turn_calls import TurnCalls

MOST_RESTARTS: Final = 3
MOST_EMPTY: Final = 2  # answers with nothing in them that are asked for again
FAIR_S: Final = 0.005  # of reading at a stretch
SAY_SOMETHING: Final = "Your last answer was empty. Answer in words, or call a tool."

Tell = Callable[[str, Mapping[str, Any]], object]  #: Any: JSON


@dataclass(kw_only=True)
class Dialogue:
    """One agent's turns, from a prompt to its answer."""

    model: Model
    settings: ModelSettings
    most_turns: int
    tell: Tell
    instructions: str | None = None
    tools: TurnCalls = field(default_factory=TurnCalls)
    listen: Callable[[Callable[[str], object] | None], object] = lambda _: None  #: takes who hears messages into it
    keeping: KeepInContext | None = None  #: compresses the history where it would not fit
    broken: tuple[type[Exception], ...] = ()  #: what a turn may be begun again after
    spent: Callable[[int], object] = lambda _: None  #: told the tokens of each turn; may raise
    remind: Callable[[], str] = lambda: ""  #: what the system says before a turn, '' for nothing
    rules: MaskRules = EVERYWHERE
    history: list[ModelMessage] = field(default_factory=list)  #: all of it, as the model sees it
    fresh: list[ModelMessage] = field(default_factory=list)  #: what this dialogue added
    usage: RunUsage = field(default_factory=RunUsage)
    dropped: int = 0  #: messages that compressions replaced by a summary
    compacted: bool = False  #: whether ``history`` begins with a summary that this dialogue made
    _said: list[str] = field(default_factory=list)
    _heard: list[str] = field(default_factory=list)  #: messages into the run that wait for the next turn
    _parameters: ModelRequestParameters = field(default_factory=ModelRequestParameters)
    _restarts: int = 0
    _empty: int = 0

    @property
    def said(self) -> str:
        """What of the answer under way may be shown."""
        return "".join(self._said)

    async def go(self, prompt: str, history: Sequence[ModelMessage] = ()) -> str:
        """Return the answer. Raises AgentError, ModelOutputInvalidError."""
        self.history = list(history)
        self._parameters = ModelRequestParameters(
            function_tools=self.tools.definitions,
            instruction_parts=[InstructionPart(content=self.instructions)] if self.instructions else None,
        )
        asked: list[ModelRequestPart] = [UserPromptPart(prompt)]
        self.listen(self._heard.append)
        try:
            while True:
                response = await self._turn(asked)
                if calls := response.tool_calls:
                    asked = [*await self.tools.make(calls)]
                elif self._heard:
                    asked = []
                elif text := response.text:
                    return show(text, self.rules).text
                else:
                    asked = [self._nothing(response)]
        finally:
            self.listen(None)

    async def _turn(self, asked: list[ModelRequestPart]) -> ModelResponse:
        """Ask, until an answer is whole. What was heard meanwhile, and what the system says, goes with the question."""
        words = [*self._heard, self.remind()]
        self._heard.clear()
        asked.extend(UserPromptPart(text) for text in words if text)
        self._add(ModelRequest(asked, instructions=self.instructions))
        while True:
            await self._make_room()
            if self.usage.requests >= self.most_turns:
                raise ModelOutputInvalidError(
                    f"The run was ended: the model was asked {self.most_turns} times and gave no answer yet. What its "
                    "tools did stays. Ask for less at once, or raise AGENT_MAX_TURNS."
                )
            try:
                response = await self._ask()
            except self.broken:
                self._restarts += 1
                if self._restarts > MOST_RESTARTS:
                    raise
                self._take_back()
                continue
            self._add(response)
            self.spent(response.usage.total_tokens)
            return response

    async def _ask(self) -> ModelResponse:
        masking = StreamShow(self.rules)
        self._said.clear()
        try:
            async with self.model.request_stream(self.history, self.settings, self._parameters) as answer:
                since = time.monotonic()
                async for event in answer:
                    if (text := _text(event)) is not None:
                        self._pass_on(masking.feed(text))
                    if time.monotonic() - since > FAIR_S:
                        await asyncio.sleep(0)  # reading what is there already never waits, and others want their turn
                        since = time.monotonic()
        finally:
            self._pass_on(masking.flush())
        response = answer.get()
        self.usage.requests += 1
        self.usage.incr(response.usage)
        return response

    async def _make_room(self) -> None:
        if self.keeping is None:
            return
        made = await self.keeping.shorten(self.history, self._parameters.function_tools)
        if made is not None:
            self.history = list(made.history)
            self.compacted = True
            self.dropped += made.last - made.first + 1
            told = {"tokens_before": made.tokens_before, "tokens_after": made.tokens_after, "by": made.by}
            self.tell("context.compressed", told)

    def _add(self, message: ModelMessage) -> None:
        self.history.append(message)
        self.fresh.append(message)

    def _nothing(self, response: ModelResponse) -> ModelRequestPart:
        """Return what the model is told after an answer with nothing in it. Raises ModelOutputInvalidError."""
        if response.finish_reason == "length":
            raise ModelOutputInvalidError(
                "The tokens of the answer were used up before the model said anything; ask for more max_output_tokens."
            )
        self._empty += 1
        if self._empty > MOST_EMPTY:
            raise ModelOutputInvalidError(f"The model gave {self._empty} answers with nothing in them; ask again.")
        return RetryFeedbackPart(SAY_SOMETHING, retry=RetryInfo("no_output", attempt=self._empty))

    def _pass_on(self, shown: str) -> None:
        if shown:
            self._said.append(shown)
            self.tell("text.delta", {"text": shown})

    def _take_back(self) -> None:
        """Forget the answer that broke off; the history ends with what the model was asked."""
        if characters := len(self.said):
            self.tell("text.reset", {"characters": characters})
            self._said.clear()


def _text(event: object) -> str | None:
    match event:
        case PartDeltaEvent(delta=TextPartDelta(content_delta=str(content))) if content:
            return content
        case PartStartEvent(part=TextPart(content=str(content))) if content:
            return content
        case _:
            return None
