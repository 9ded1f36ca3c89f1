"""runs: owns one run of the agent: from the instruction to the answer, tools in between."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog
from pydantic_ai import Agent, ModelRetry, RunContext, UsageLimits
from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import Tool as OfferedTool

from loopbox_agent.audit import Audit, Scalar
from loopbox_agent.builtin_tools import Place
from loopbox_agent.engine import Engine
from loopbox_agent.forced import ArgumentsInvalidError, ModelOutputInvalidError, check_arguments, fill
from loopbox_agent.hub import Work
from loopbox_agent.live_run import LiveRun
from loopbox_agent.metrics import Metrics
from loopbox_agent.model import OllamaModel
from loopbox_agent.run_records import RunRequest, RunResult, RunStatus, ToolCallView, ToolChoice, Usage
from loopbox_agent.run_tools import RunTools
from loopbox_agent.settings import Settings
from loopbox_agent.store import Store
from loopbox_agent.tool_offer import ToolForbiddenError
from loopbox_agent.tool_spec import ToolSpec
from loopbox_agent.toolkit import Toolkit, Tools, Wanted
from loopbox_agent.turn_end import close_turn

READERS = frozenset({"read_file", "list_files", "search_files", "glob"})  # calls that leave a workspace as it was
LEASE_SLACK_S = 30.0  # for a run that ends at its limit to be saved

log = structlog.get_logger("agent.runs")


@dataclass(frozen=True, slots=True)
class Kit:
    """What every run works with."""

    settings: Settings
    engine: Engine
    toolkit: Toolkit
    metrics: Metrics
    store: Store
    audit: Audit


@dataclass
class AgentWork(Work):
    """The work of one run."""

    kit: Kit
    run: LiveRun
    asked: RunRequest
    output: str = ""
    made: list[ToolCallView] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    added: Sequence[ModelMessage] = ()  #: to the conversation, as far as it is complete
    whole: bool = False  #: whether ``added`` is the whole turn

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
        self._audit("run.started", instruction=len(self.asked.instruction), tools=",".join(self.asked.tools)[:500])
        async with AsyncExitStack() as stack:
            history = await self._hold_thread(stack) if self.run.thread else []
            tools = await self._open_tools(stack) if self.asked.wants_tools else None
            if self.asked.tool_choice and tools:
                await self._forced(self.asked.tool_choice, tools)
            else:
                await self._free(tools, history)
        return "completed"

    def _audit(self, event: str, **detail: Scalar) -> None:
        run = self.run
        self.kit.audit.tell(event, run.principal, run.id, correlation_id=run.correlation_id, **detail)

    async def _open_tools(self, stack: AsyncExitStack) -> RunTools:
        asked, kit = self.asked, self.kit
        choice = (asked.tool_choice.name,) if asked.tool_choice else ()
        wanted = Wanted(
            place=Place(self.run.principal.user, self.run.id, self.run.thread),
            principal=self.run.principal,
            names=tuple(dict.fromkeys((*asked.tools, *choice))),
            capabilities=tuple(asked.capabilities),
            hosts=tuple(asked.hosts),
        )
        tools = await kit.toolkit.open(wanted, stack)
        if tools.sandbox is not None and self.run.thread:
            await self._hold_workspace(stack, tools)
        made = RunTools(self.run, tools, kit.store.calls, kit.audit, kit.metrics, kit.settings.max_tool_calls)
        self.made = made.made
        return made

    async def _hold_workspace(self, stack: AsyncExitStack, tools: Tools) -> None:
        """Fill the sandbox with the conversation's files, and keep what the run leaves of them."""
        path = self.kit.store.workspace(self.run.thread or "")
        sandbox = tools.sandbox
        if sandbox is None:
            return
        if await asyncio.to_thread(path.is_file):
            await sandbox.workspace.import_(path)
            tools.caller.schedule.distrust(f"sandbox:{self.run.id}")

        async def keep() -> None:
            if not sandbox.broken and any(call.name not in READERS for call in self.made):
                with anyio.CancelScope(shield=True):
                    await sandbox.workspace.export(path, most=self.kit.settings.max_workspace_bytes)

        stack.push_async_callback(keep)

    async def _hold_thread(self, stack: AsyncExitStack) -> list[ModelMessage]:
        """Return the conversation so far, which nobody else adds to until this run's part of it is saved."""
        thread = self.run.thread or ""
        threads = self.kit.store.threads
        await threads.get(self.run.principal.user, thread)
        await stack.enter_async_context(
            threads.lease(thread, self.run.id, self.kit.settings.run_timeout_s + LEASE_SLACK_S)
        )
        stack.push_async_callback(self._save_turn, thread)
        return await threads.history(thread)

    async def _save_turn(self, thread: str) -> None:
        added = self.added if self.whole else close_turn(self.added, self.asked.instruction, self.output)
        with anyio.CancelScope(shield=True):
            tokens = self.usage.input_tokens + self.usage.output_tokens
            await self.kit.store.threads.append(thread, self.run.id, added, tokens)

    async def _forced(self, choice: ToolChoice, tools: RunTools) -> None:
        tool = next((tool for tool in tools.tools.offer.tools if tool.name == choice.name), None)
        if tool is None:
            left = next((left.reason for left in tools.tools.offer.left_out if left.name == choice.name), "")
            raise ToolForbiddenError(f"The tool {choice.name} may not be used: {left}; nothing was run.")
        if choice.arguments is None:
            arguments, read, generated = await fill(
                self.kit.engine, self.kit.settings, tool, self.asked.instruction, seed=self.asked.seed
            )
            self.usage = Usage(input_tokens=read, output_tokens=generated)
        else:
            arguments = choice.arguments
            check_arguments(tool, arguments)
        call = ToolCallPart(tool.name, arguments, f"call_{self.run.id[4:]}")
        self.output = (await tools.call(tool, call.tool_call_id, arguments)).text
        self.added = (
            ModelRequest.user_text_prompt(self.asked.instruction),
            ModelResponse([call]),
            ModelRequest([ToolReturnPart(tool.name, self.output, call.tool_call_id)]),
            ModelResponse([TextPart(self.output)]),
        )
        self.whole = True

    async def _free(self, tools: RunTools | None, history: Sequence[ModelMessage]) -> None:
        asked, settings = self.asked, self.kit.settings
        agent = Agent(
            OllamaModel(self.kit.engine, settings),
            instructions=asked.system,
            tools=[self._offer(tools, tool) for tool in tools.tools.offer.tools] if tools else [],
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
            async with agent.iter(
                asked.instruction, message_history=history, model_settings=wanted, usage_limits=limits
            ) as run:
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
                        self.added = run.new_messages()
                        spent = run.usage
                        self.usage = Usage(input_tokens=spent.input_tokens, output_tokens=spent.output_tokens)
                finally:
                    self.added = run.new_messages()
                    self.run.listen(None)
        except (UsageLimitExceeded, UnexpectedModelBehavior) as error:
            raise ModelOutputInvalidError(f"The run was ended: {error}") from error
        self.output = run.result.output if run.result else ""
        self.whole = True

    @staticmethod
    def _offer(tools: RunTools, tool: ToolSpec) -> OfferedTool[None]:
        async def call(context: RunContext[None], **arguments: Any) -> str:  # Any: JSON by the tool's own schema
            try:
                check_arguments(tool, arguments)
            except ArgumentsInvalidError as error:
                raise ModelRetry(str(error)) from error  # told to the model, which may try again
            return (await tools.call(tool, context.tool_call_id or secrets.token_hex(8), arguments)).text

        return OfferedTool.from_schema(
            call, name=tool.name, description=tool.description, json_schema=dict(tool.schema), takes_ctx=True
        )


def _text(event: object) -> str | None:
    match event:
        case PartStartEvent(part=TextPart(content=str(content))) if content:
            return content
        case PartDeltaEvent(delta=TextPartDelta(content_delta=str(content))) if content:
            return content
        case _:
            return None
