"""runs: owns one run of the agent: from the instruction to the answer, tools in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace

from pydantic import JsonValue
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)

from loopbox_agent.audit import Audit, Scalar
from loopbox_agent.breaker import Breakers
from loopbox_agent.builtin_tools import Place
from loopbox_agent.carried_through import carried_through
from loopbox_agent.clean import show
from loopbox_agent.context import KeepInContext
from loopbox_agent.deadline import Deadline
from loopbox_agent.delegation import NAME as DELEGATE
from loopbox_agent.delegation import Delegation
from loopbox_agent.dialogue import Dialogue
from loopbox_agent.engine import Engine
from loopbox_agent.forced import check_arguments, fill
from loopbox_agent.hub import Work
from loopbox_agent.interactions import Seen, offered
from loopbox_agent.live_run import LiveRun
from loopbox_agent.mask import mask_json
from loopbox_agent.metrics import Metrics
from loopbox_agent.model import OllamaSettings
from loopbox_agent.model_pool import BrokeOffError, ModelPool
from loopbox_agent.moderation import Moderation, Verdict
from loopbox_agent.output_watch import OutputWatch
from loopbox_agent.quarantine import MOST_TEXT_BYTES, Finding
from loopbox_agent.records import TooLargeError
from loopbox_agent.reminding import Reminding
from loopbox_agent.retry import Retries
from loopbox_agent.risk import InputBlockedError, Risk
from loopbox_agent.run_records import RunRequest, RunResult, RunStatus, ToolCallView, ToolChoice, Usage
from loopbox_agent.run_tools import RunTools
from loopbox_agent.settings import Settings
from loopbox_agent.shaped import shaped_answer
from loopbox_agent.store import Store
from loopbox_agent.structured import Shape, plan_shape
from loopbox_agent.summarise import summarise_with
from loopbox_agent.threats import Assessment, Band
from loopbox_agent.tokens import Meters
from loopbox_agent.tool_guard import ToolGuard
from loopbox_agent.tool_offer import ToolForbiddenError
from loopbox_agent.tool_results import Isolation, ToolResults
from loopbox_agent.tool_spec import ToolSpec
from loopbox_agent.toolkit import Toolkit, Tools, Wanted
from loopbox_agent.turn_calls import TurnCalls
from loopbox_agent.turn_end import close_turn

RECALL = "recall"
READERS = frozenset({"read_file", "list_files", "search_files", "glob"})  # calls that leave a workspace as it was
LEASE_SLACK_S = 30.0  # for a run that ends at its limit to be saved
LEAST_MESSAGES = 2  # messages: less is no answer, and nothing to learn from
HELD = "The answer waits for a review; it can be read here once somebody has released it."


@dataclass(frozen=True, slots=True)
class Kit:
    """What every run works with."""

    settings: Settings
    engine: Engine
    toolkit: Toolkit
    metrics: Metrics
    store: Store
    audit: Audit
    risk: Risk
    pool: ModelPool
    breakers: Breakers = field(default_factory=Breakers)
    meters: Meters = field(default_factory=Meters)
    results: ToolResults = field(default_factory=ToolResults)
    moderation: Moderation = field(default_factory=Moderation)
    urgent: Moderation = field(init=False)  #: the rules of it that hold an answer by themselves

    def __post_init__(self) -> None:
        object.__setattr__(self, "urgent", self.moderation.holding())


@dataclass
class AgentWork(Work):
    """The work of one run."""

    kit: Kit
    run: LiveRun
    asked: RunRequest
    output: str = ""
    structured: JsonValue = None
    made: list[ToolCallView] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    added: Sequence[ModelMessage] = ()  #: to the conversation, as far as it is complete
    whole: bool = False  #: whether ``added`` is the whole turn
    dialogue: Dialogue | None = None
    deadline: Deadline = field(default_factory=Deadline.never)
    held: bool = False  #: whether the output waits for a review
    offer: Sequence[ToolSpec] = ()  #: the tools it was given
    watch: OutputWatch = field(init=False, repr=False)

    def __post_init__(self) -> None:
        kit = self.kit
        self.watch = OutputWatch(self.run, kit.moderation, kit.urgent, kit.audit, kit.metrics)

    def result(self, status: RunStatus) -> RunResult:
        """Return what there is so far."""
        output = self.dialogue.said if self.dialogue and not self.whole else self.output
        return RunResult(
            run_id=self.run.id,
            status=status,
            output=(HELD if status == "held" else "") if self.held else output,
            structured=None if self.held else self.structured,
            tool_calls=[] if self.held else self.made,
            usage=self.usage,
            model=self.kit.settings.model,
            duration_ms=round((time.monotonic() - self.run.begun) * 1000),
            correlation_id=self.run.correlation_id,
            thread_id=self.run.thread,
        )

    async def carry_out(self) -> RunStatus:
        """Do it. Raises AgentError."""
        asked, settings = self.asked, self.kit.settings
        self.deadline = Deadline.after(min(asked.timeout_s or settings.run_timeout_s, settings.run_timeout_s))
        self._audit("run.started", instruction=len(asked.instruction), tools=",".join(asked.tools)[:500])
        shape = plan_shape(asked.output_schema) if asked.output_schema is not None else None
        async with AsyncExitStack() as stack:
            history = await self._hold_thread(stack) if self.run.thread else []
            risk = await self._assess()
            self.held = self.run.mute = risk.band is Band.REVIEW
            tools = await self._open_tools(stack, risk) if asked.wants_tools else None
            if asked.tool_choice and tools:
                await self._forced(asked.tool_choice, tools)
            else:
                await self._free(tools, history, shape)
                said = await self.watch.judge(self.output)
                if said.verdict is Verdict.HOLD:
                    self.held = True
                    risk = replace(risk, score=max(risk.score, said.score), findings=(*said.found, *risk.findings))
        if self.held:
            await self._hold_back(risk)
            return "held"
        return "completed"

    def ended(self, outcome: str) -> None:
        """Keep what may be learnt from it."""
        learn = self.kit.store.interactions
        messages = self.dialogue.fresh if self.dialogue is not None else self.added
        if learn.learn == "off" or self.held or len(messages) < LEAST_MESSAGES:
            return
        told = mask_json(ModelMessagesTypeAdapter.dump_python(list(messages), mode="json"))
        tools = offered([(tool.name, tool.description, dict(tool.schema)) for tool in self.offer])
        seen = Seen(
            run_id=self.run.id,
            user=self.run.principal.user,
            thread_id=self.run.thread,
            outcome=outcome,
            messages=told,
            tools=tools,
        )
        with suppress(TooLargeError):
            learn.keep(seen)

    def _audit(self, event: str, **detail: Scalar) -> None:
        run = self.run
        self.kit.audit.tell(event, run.principal, run.id, correlation_id=run.correlation_id, **detail)

    async def _assess(self) -> Assessment:
        """Return how dangerous the instruction is. Raises InputBlockedError."""
        text = "\n".join(filter(None, (self.asked.system, self.asked.instruction)))
        risk = await self.kit.risk.assess(text, self.run.thread)
        found = ",".join(finding.id for finding in risk.findings)[:500]
        if risk.band is not Band.ALLOW:
            self.run.tell("input.assessed", {"score": risk.score, "band": risk.band.value})
        if risk.band is Band.ISOLATE:
            self._audit("input.isolated", score=risk.score, findings=found)
        elif risk.band is Band.REVIEW:
            self._audit("input.held", score=risk.score, findings=found)
        elif risk.band is Band.BLOCK:
            self._audit("input.blocked", score=risk.score, findings=found)
            raise InputBlockedError(
                f"The instruction was not run: its risk is {risk.score} of 100 ({found}). If it is harmless, say it in "
                "other words, or ask an operator.",
                details={"score": risk.score, "findings": [finding.id for finding in risk.findings]},
            )
        return risk

    async def _hold_back(self, risk: Assessment) -> None:
        findings: list[JsonValue] = [
            {"id": one.id, "group": one.group, "weight": one.weight, "excerpt": one.excerpt} for one in risk.findings
        ]
        await self.kit.store.quarantine.add(
            Finding(
                run_id=self.run.id,
                user=self.run.principal.user,
                kind="output",
                score=risk.score,
                findings=findings,
                text=self.output.encode()[:MOST_TEXT_BYTES].decode(errors="ignore"),
            )
        )

    async def _open_tools(self, stack: AsyncExitStack, risk: Assessment) -> RunTools:
        asked, kit = self.asked, self.kit
        choice = (asked.tool_choice.name,) if asked.tool_choice else ()
        wanted = Wanted(
            place=Place(self.run.principal.user, self.run.id, self.run.thread),
            principal=self.run.principal,
            names=tuple(dict.fromkeys((*asked.tools, *choice, *(("read_back",) if self.run.thread else ())))),
            capabilities=tuple(asked.capabilities),
            hosts=tuple(asked.hosts),
            band=risk.band.value,
        )
        delegation = Delegation(
            run=self.run,
            pool=kit.pool,
            settings=sampling(asked, kit.settings),
            deadline=self.deadline,
            most_tokens=kit.settings.max_child_tokens,
            most_calls=kit.settings.max_tool_calls,
        )
        tools = await kit.toolkit.open(wanted, stack, {DELEGATE: delegation.call})
        stained = False
        if tools.sandbox is not None and self.run.thread:
            stained = await self._hold_workspace(stack, tools)
        made = RunTools(
            run=self.run,
            tools=tools,
            journal=kit.store.calls,
            audit=kit.audit,
            metrics=kit.metrics,
            guard=ToolGuard(kit.breakers, Retries(self.deadline), scope=self.run.principal.user),
            most=kit.settings.max_tool_calls,
            results=kit.results,
            isolation=Isolation("" if risk.band is Band.ALLOW else "the request's risk is too high"),
            hosts=bool(asked.hosts) and risk.band is Band.ALLOW,
            stained=stained or bool(asked.hosts) or any(_surfs(tool) for tool in tools.offer.tools),
        )
        self.made, delegation.tools, self.offer = made.made, made, tools.offer.tools
        return made

    async def _hold_workspace(self, stack: AsyncExitStack, tools: Tools) -> bool:
        """Fill the sandbox with the conversation's files, and keep what the run leaves; return if there were any."""
        path = self.kit.store.workspace(self.run.thread or "")
        sandbox = tools.sandbox
        if sandbox is None:
            return False
        if there := await asyncio.to_thread(path.is_file):
            await sandbox.workspace.import_(path)
            tools.caller.schedule.distrust(f"sandbox:{self.run.id}")

        async def keep() -> None:
            if not sandbox.broken and any(call.name not in READERS for call in self.made):
                await carried_through(sandbox.workspace.export(path, most=self.kit.settings.max_workspace_bytes))

        stack.push_async_callback(keep)
        return there

    async def _hold_thread(self, stack: AsyncExitStack) -> list[ModelMessage]:
        """Return the conversation so far, which nobody else adds to until this run's part of it is saved."""
        thread = self.run.thread or ""
        threads = self.kit.store.threads

        async def take() -> None:
            await threads.get(self.run.principal.user, thread)
            await threads.acquire(thread, self.run.id, self.kit.settings.run_timeout_s + LEASE_SLACK_S)
            stack.push_async_callback(lambda: carried_through(threads.release(thread, self.run.id)))
            stack.push_async_callback(lambda: carried_through(self._save_turn(thread)))

        await carried_through(take())  # whoever cancels at its first moment finds the turn saved, too
        return await threads.history(thread)

    async def _save_turn(self, thread: str) -> None:
        said = ""
        if self.dialogue is not None:
            self.added, said = self.dialogue.fresh, self.dialogue.said
        added = self.added if self.whole else close_turn(self.added, self.asked.instruction, said)
        if self.held:  # its user may read the conversation
            added = close_turn((), self.asked.instruction, HELD)
        kept = masked(added)
        tokens = self.usage.input_tokens + self.usage.output_tokens
        last = await self.kit.store.threads.append(thread, self.run.id, kept, tokens)
        if self.dialogue is not None and self.dialogue.compacted and self.whole and not self.held:
            # The kept messages, too: in the compressed history their token counts are marked as out of date.
            await self.kit.store.threads.compact(thread, self.run.id, last, masked(self.dialogue.history))

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
        self.output = show((await tools.call(tool, call.tool_call_id, arguments)).text).text
        self.added = (
            ModelRequest.user_text_prompt(self.asked.instruction),
            ModelResponse([call]),
            ModelRequest([ToolReturnPart(tool.name, self.output, call.tool_call_id)]),
            ModelResponse([TextPart(self.output)]),
        )
        self.whole = True

    async def _free(self, tools: RunTools | None, history: Sequence[ModelMessage], shape: Shape | None) -> None:
        asked, settings = self.asked, self.kit.settings
        model = self.kit.pool.for_run(self.deadline)
        wanted = sampling(asked, settings)
        if shape is not None and tools is None:
            answer = await shaped_answer(model, wanted, shape, asked.instruction, system=asked.system, history=history)
            self.output, self.structured = answer.text, mask_json(answer.value)
            self.added, self.whole = answer.added, True
            self.usage = Usage(input_tokens=answer.input_tokens, output_tokens=answer.output_tokens)
            self.run.tell("text.delta", {"text": self.output})
            return
        self.dialogue = dialogue = Dialogue(
            model=model,
            settings=wanted,
            most_turns=settings.max_turns,
            tell=self.watch.tell,
            instructions=asked.system,
            tools=TurnCalls(tools, tools.tools.offer.tools) if tools else TurnCalls(),
            listen=self.run.listen,
            broken=(BrokeOffError,),
            remind=Reminding(
                self.deadline,
                tools,
                settings.max_tool_calls,
                dropped=lambda: dialogue.dropped,
                notes=await self._notes(tools),
            ).words,
            keeping=KeepInContext(
                meter=self.kit.meters.of(settings.model),
                num_ctx=self.kit.pool.least_context(settings.num_ctx),
                reserve=wanted.get("max_tokens", settings.max_output_tokens),
                summarise=summarise_with(self.kit.engine, settings),
            ),
        )
        try:
            self.output = await dialogue.go(asked.instruction, history)
        finally:
            self._count(dialogue)
        self.added = dialogue.fresh
        if shape is not None:
            so_far = [*history, *dialogue.fresh]
            answer = await shaped_answer(model, wanted, shape, AS_JSON, system=asked.system, history=so_far)
            self.output, self.structured = answer.text, mask_json(answer.value)
        self.whole = True

    async def _notes(self, tools: RunTools | None) -> list[str]:
        """Return what is remembered about the task, where the model may recall it."""
        if tools is None or not tools.offers(RECALL):
            return []
        found = await self.kit.store.memories.recall(self.run.principal.user, self.asked.instruction)
        return [memory.text for memory in found]

    def _count(self, dialogue: Dialogue) -> None:
        spent = dialogue.usage
        self.usage = Usage(input_tokens=spent.input_tokens, output_tokens=spent.output_tokens)


AS_JSON = "Now give your answer as one JSON object that fits the schema you are bound to, and nothing else."


def _surfs(tool: ToolSpec) -> bool:
    return tool.kind == "sandbox" and tool.level == "network"


def masked(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """Return messages as they may be stored."""
    told = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
    return ModelMessagesTypeAdapter.validate_python(mask_json(told))


def sampling(asked: RunRequest, settings: Settings) -> OllamaSettings:
    """Return what the client says of the generation."""
    wanted = OllamaSettings(max_tokens=asked.max_output_tokens or settings.max_output_tokens)
    if asked.temperature is not None:
        wanted["temperature"] = asked.temperature
    if asked.top_p is not None:
        wanted["top_p"] = asked.top_p
    if asked.top_k is not None:
        wanted["top_k"] = asked.top_k
    if asked.min_p is not None:
        wanted["ollama_min_p"] = asked.min_p
    if asked.repeat_penalty is not None:
        wanted["ollama_repeat_penalty"] = asked.repeat_penalty
    if asked.seed is not None:
        wanted["seed"] = asked.seed
    if asked.stop:
        wanted["stop_sequences"] = list(asked.stop)
    return wanted
