"""runs: owns one run of the agent: from the instruction to the answer, tools in between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import JsonValue
from pydantic_ai import Agent, ModelRetry, RunContext, UsageLimits
from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import Tool as OfferedTool

from loopbox_agent.engine import Engine
from loopbox_agent.forced import ArgumentsInvalidError, ModelOutputInvalidError, check_arguments, fill
from loopbox_agent.hub import Work
from loopbox_agent.live_run import LiveRun
from loopbox_agent.metrics import Metrics
from loopbox_agent.model import OllamaModel
from loopbox_agent.run_records import RunRequest, RunResult, RunStatus, ToolCallView, ToolChoice, Usage
from loopbox_agent.sandbox import Broker, Sandbox
from loopbox_agent.settings import Settings

log = structlog.get_logger("agent.runs")


@dataclass(frozen=True, slots=True)
class Kit:
    """What every run works with."""

    settings: Settings
    engine: Engine
    broker: Broker
    metrics: Metrics


@dataclass
class AgentWork(Work):
    """The work of one run."""

    kit: Kit
    run: LiveRun
    asked: RunRequest
    output: str = ""
    made: list[ToolCallView] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def result(self, status: RunStatus) -> RunResult:
        """Return what there is so far."""
        return RunResult(
            run_id=self.run.id,
            status=status,
            output=self.output,
            tool_calls=self.made,
            usage=self.usage,
            model=self.kit.settings.model,
            duration_ms=round((time.monotonic() - self.run.begun) * 1000),
            correlation_id=self.run.correlation_id,
            thread_id=self.run.thread,
        )

    async def carry_out(self) -> RunStatus:
        """Do it. Raises AgentError."""
        async with AsyncExitStack() as stack:
            sandbox = None
            if self.asked.wants_tools:
                sandbox = await stack.enter_async_context(self.kit.broker.borrow(self.run.id))
            if self.asked.tool_choice and sandbox:
                await self._forced(self.asked.tool_choice, sandbox)
            else:
                await self._free(sandbox)
        return "completed"

    async def _forced(self, choice: ToolChoice, sandbox: Sandbox) -> None:
        tool = sandbox.require(choice.name)
        if choice.arguments is None:
            arguments, read, generated = await fill(
                self.kit.engine, self.kit.settings, tool, self.asked.instruction, seed=self.asked.seed
            )
            self.usage = Usage(input_tokens=read, output_tokens=generated)
        else:
            arguments = choice.arguments
            check_arguments(tool, arguments)
        self.output = await self._call(sandbox, tool.name, arguments)

    async def _free(self, sandbox: Sandbox | None) -> None:
        asked, settings = self.asked, self.kit.settings
        tools = [self._offer(sandbox, name) for name in dict.fromkeys(asked.tools)] if sandbox else []
        agent = Agent(
            OllamaModel(self.kit.engine, settings),
            instructions=asked.system,
            tools=tools,
            output_type=str,
            retries=2,
        )
        wanted = ModelSettings(max_tokens=asked.max_output_tokens or settings.max_output_tokens)
        if asked.temperature is not None:
            wanted["temperature"] = asked.temperature
        if asked.seed is not None:
            wanted["seed"] = asked.seed
        limits = UsageLimits(request_limit=settings.max_turns, tool_calls_limit=settings.max_tool_calls)
        try:
            async with agent.iter(asked.instruction, model_settings=wanted, usage_limits=limits) as run:
                self.run.listen(run.enqueue)
                try:
                    async for node in run:
                        if Agent.is_model_request_node(node):
                            self.output = ""
                            async with node.stream(run.ctx) as stream:
                                async for event in stream:
                                    if (text := _text(event)) is not None:
                                        self.output += text
                                        self.run.tell("text.delta", {"text": text})
                        spent = run.usage
                        self.usage = Usage(input_tokens=spent.input_tokens, output_tokens=spent.output_tokens)
                finally:
                    self.run.listen(None)
        except (UsageLimitExceeded, UnexpectedModelBehavior) as error:
            raise ModelOutputInvalidError(f"The run was ended: {error}") from error
        self.output = run.result.output if run.result else ""

    def _offer(self, sandbox: Sandbox, name: str) -> OfferedTool[None]:
        tool = sandbox.require(name)

        async def call(_: RunContext[None], **arguments: Any) -> str:  # Any: JSON by the tool's own schema
            try:
                check_arguments(tool, arguments)
            except ArgumentsInvalidError as error:
                raise ModelRetry(str(error)) from error  # told to the model, which may try again
            return await self._call(sandbox, name, arguments)

        return OfferedTool.from_schema(
            call, name=name, description=tool.description, json_schema=dict(tool.schema), takes_ctx=True
        )

    async def _call(self, sandbox: Sandbox, name: str, arguments: Mapping[str, JsonValue]) -> str:
        """Call a tool; return its text for the model."""
        if len(self.made) >= self.kit.settings.max_tool_calls:
            return "No further tool call is allowed in this run; answer with what you have."
        self.run.tell("tool.started", {"name": name, "arguments": dict(arguments)})
        begun = time.monotonic()
        outcome = await sandbox.call(name, arguments)
        view = ToolCallView(
            name=name,
            arguments=dict(arguments),
            result=dict(outcome.result),
            is_error=outcome.is_error,
            duration_ms=round((time.monotonic() - begun) * 1000),
        )
        self.made.append(view)
        self.kit.metrics.tool_calls.labels(tool=name, outcome="error" if outcome.is_error else "ok").inc()
        self.run.tell("tool.finished", view.model_dump(mode="json"))
        return outcome.text


def _text(event: object) -> str | None:
    match event:
        case PartStartEvent(part=TextPart(content=str(content))) if content:
            return content
        case PartDeltaEvent(delta=TextPartDelta(content_delta=str(content))) if content:
            return content
        case _:
            return None
