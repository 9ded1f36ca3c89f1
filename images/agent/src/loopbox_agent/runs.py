"""runs: owns one run of the agent, as a stream of events: from the instruction to the answer, tools in between."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import anyio
import structlog
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator
from pydantic_ai import Agent, ModelRetry, RunContext, UsageLimits
from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import Tool as OfferedTool

from loopbox_agent.engine import Engine
from loopbox_agent.errors import AgentError, DeadlineError, body_of
from loopbox_agent.forced import ArgumentsInvalidError, ModelOutputInvalidError, check_arguments, fill
from loopbox_agent.metrics import Metrics
from loopbox_agent.model import OllamaModel
from loopbox_agent.sandbox import Broker, Sandbox
from loopbox_agent.settings import Settings

log = structlog.get_logger("agent.runs")

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ToolChoice(BaseModel):
    """One tool that must be called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ToolName
    arguments: dict[str, JsonValue] | None = None  #: None: the model fills them in


class RunRequest(BaseModel):
    """The body of POST /agents/run-agent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instruction: Annotated[str, Field(min_length=1, max_length=32_000)]
    stream: bool = False
    tools: Annotated[list[ToolName], Field(max_length=32)] = []
    tool_choice: ToolChoice | None = None
    system: Annotated[str, Field(max_length=16_000)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=1 << 17)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class ToolCallView(BaseModel):
    """One tool call that was made."""

    name: str
    arguments: dict[str, JsonValue]
    result: dict[str, JsonValue]
    is_error: bool
    duration_ms: int


class Usage(BaseModel):
    """Tokens, as the engine counts them."""

    input_tokens: int = 0
    output_tokens: int = 0


class RunResult(BaseModel):
    """A run that was completed."""

    run_id: str
    status: Literal["completed"] = "completed"
    output: str
    tool_calls: list[ToolCallView] = []
    usage: Usage
    model: str
    duration_ms: int
    correlation_id: str


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a run's stream."""

    name: Literal["run.started", "text.delta", "tool.started", "tool.finished", "run.completed"]
    body: Mapping[str, Any]  #: Any: JSON


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs instructions."""

    settings: Settings
    engine: Engine
    broker: Broker
    metrics: Metrics

    async def run(self, asked: RunRequest, *, correlation_id: str) -> AsyncIterator[Event]:
        """Yield the run's events; the last one is run.completed. Raises AgentError; leaving early cancels the run."""
        run_id = f"run_{secrets.token_hex(8)}"
        begun = time.monotonic()
        outcome = "cancelled"
        queue: asyncio.Queue[Event | None] = asyncio.Queue(256)
        work = asyncio.create_task(self._work(asked, run_id, queue), name=run_id)
        try:
            yield Event("run.started", {"run_id": run_id, "model": self.settings.model})
            while (event := await queue.get()) is not None:
                yield event
            output, calls, usage = await work
            outcome = "completed"
            result = RunResult(
                run_id=run_id,
                output=output,
                tool_calls=calls,
                usage=usage,
                model=self.settings.model,
                duration_ms=round((time.monotonic() - begun) * 1000),
                correlation_id=correlation_id,
            )
            yield Event("run.completed", result.model_dump(mode="json"))
        except AgentError as error:
            outcome = error.code
            raise
        finally:
            work.cancel()
            with anyio.CancelScope(shield=True):  # the server's own scope cancels again at every wait
                await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # looked at, so that it is not told of as forgotten
            self.metrics.run_seconds.labels(outcome=outcome).observe(time.monotonic() - begun)
            log.info("run.ended", run_id=run_id, outcome=outcome, seconds=round(time.monotonic() - begun, 3))

    async def _work(
        self, asked: RunRequest, run_id: str, queue: asyncio.Queue[Event | None]
    ) -> tuple[str, list[ToolCallView], Usage]:
        try:
            async with asyncio.timeout(self.settings.run_timeout_s), AsyncExitStack() as stack:
                sandbox = None
                if asked.tools or asked.tool_choice:
                    sandbox = await stack.enter_async_context(self.broker.borrow(run_id))
                calls = _Calls(sandbox, queue, self.metrics, self.settings.max_tool_calls)
                if asked.tool_choice and sandbox:
                    return await self._forced(asked, asked.tool_choice, sandbox, calls)
                return await self._free(asked, sandbox, calls)
        except TimeoutError as error:
            raise DeadlineError(
                f"The run took longer than {self.settings.run_timeout_s:g} s and was ended; its sandbox was given back."
            ) from error
        finally:
            # Cancelled, nobody reads the queue any more, and a full one would hold this task for ever.
            if not ((task := asyncio.current_task()) and task.cancelling()):
                await queue.put(None)

    async def _forced(
        self, asked: RunRequest, choice: ToolChoice, sandbox: Sandbox, calls: _Calls
    ) -> tuple[str, list[ToolCallView], Usage]:
        tool = sandbox.require(choice.name)
        usage = Usage()
        if choice.arguments is None:
            arguments, read, generated = await fill(
                self.engine, self.settings, tool, asked.instruction, seed=asked.seed
            )
            usage = Usage(input_tokens=read, output_tokens=generated)
        else:
            arguments = choice.arguments
            check_arguments(tool, arguments)
        text = await calls.make(tool.name, arguments)
        return text, calls.made, usage

    async def _free(
        self, asked: RunRequest, sandbox: Sandbox | None, calls: _Calls
    ) -> tuple[str, list[ToolCallView], Usage]:
        tools = [_offer(sandbox, name, calls) for name in dict.fromkeys(asked.tools)] if sandbox else []
        agent = Agent(
            OllamaModel(self.engine, self.settings), instructions=asked.system, tools=tools, output_type=str, retries=2
        )
        wanted = ModelSettings(max_tokens=asked.max_output_tokens or self.settings.max_output_tokens)
        if asked.temperature is not None:
            wanted["temperature"] = asked.temperature
        if asked.seed is not None:
            wanted["seed"] = asked.seed
        limits = UsageLimits(request_limit=self.settings.max_turns, tool_calls_limit=self.settings.max_tool_calls)
        try:
            async with agent.iter(asked.instruction, model_settings=wanted, usage_limits=limits) as run:
                async for node in run:
                    if Agent.is_model_request_node(node):
                        async with node.stream(run.ctx) as stream:
                            async for event in stream:
                                if (text := _text(event)) is not None:
                                    await calls.queue.put(Event("text.delta", {"text": text}))
        except (UsageLimitExceeded, UnexpectedModelBehavior) as error:
            raise ModelOutputInvalidError(f"The run was ended: {error}") from error
        spent = run.usage
        usage = Usage(input_tokens=spent.input_tokens, output_tokens=spent.output_tokens)
        return (run.result.output if run.result else ""), calls.made, usage


def _text(event: object) -> str | None:
    match event:
        case PartStartEvent(part=TextPart(content=str(content))) if content:
            return content
        case PartDeltaEvent(delta=TextPartDelta(content_delta=str(content))) if content:
            return content
        case _:
            return None


def _offer(sandbox: Sandbox, name: str, calls: _Calls) -> OfferedTool[None]:
    tool = sandbox.require(name)

    async def call(_: RunContext[None], **arguments: Any) -> str:  # Any: JSON by the tool's own schema
        try:
            check_arguments(tool, arguments)
        except ArgumentsInvalidError as error:
            raise ModelRetry(str(error)) from error  # told to the model, which may try again
        return await calls.make(name, arguments)

    return OfferedTool.from_schema(
        call, name=name, description=tool.description, json_schema=dict(tool.schema), takes_ctx=True
    )


class _Calls:
    """Makes a run's tool calls, tells of them, and keeps what they gave."""

    def __init__(
        self, sandbox: Sandbox | None, queue: asyncio.Queue[Event | None], metrics: Metrics, most: int
    ) -> None:
        self.sandbox = sandbox
        self.queue = queue
        self.made: list[ToolCallView] = []
        self._metrics = metrics
        self._most = most

    async def make(self, name: str, arguments: Mapping[str, JsonValue]) -> str:
        """Call a tool; return its text for the model."""
        if self.sandbox is None or len(self.made) >= self._most:
            return "No further tool call is allowed in this run; answer with what you have."
        await self.queue.put(Event("tool.started", {"name": name, "arguments": dict(arguments)}))
        begun = time.monotonic()
        outcome = await self.sandbox.call(name, arguments)
        view = ToolCallView(
            name=name,
            arguments=dict(arguments),
            result=dict(outcome.result),
            is_error=outcome.is_error,
            duration_ms=round((time.monotonic() - begun) * 1000),
        )
        self.made.append(view)
        self._metrics.tool_calls.labels(tool=name, outcome="error" if outcome.is_error else "ok").inc()
        await self.queue.put(Event("tool.finished", view.model_dump(mode="json")))
        return outcome.text


def failed(error: BaseException) -> dict[str, Any]:
    """Return the body of run.failed. Any: JSON."""
    return body_of(error).model_dump(mode="json")
