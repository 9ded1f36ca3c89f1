"""run_tools: owns the making of one run's tool calls: told of, journaled, tried again where that is safe, audited."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from loopbox_agent.audit import Audit
from loopbox_agent.call_journal import CallJournal, Repeat, Unknown
from loopbox_agent.live_run import LiveRun
from loopbox_agent.mask import mask_json
from loopbox_agent.metrics import Metrics
from loopbox_agent.run_records import ToolCallView
from loopbox_agent.sandbox import Outcome
from loopbox_agent.seen import Seen
from loopbox_agent.subagents import Child
from loopbox_agent.threats import ALLOW_UP_TO
from loopbox_agent.tool_guard import ToolGuard
from loopbox_agent.tool_results import Isolation, ToolResults, from_outside, refusal, shown
from loopbox_agent.tool_spec import ToolSpec
from loopbox_agent.toolkit import Tools

ENOUGH = "No further tool call is allowed in this run; answer with what you have."
UNSURE = (
    "This call was begun before and nobody saw its end: it may have been done. It was not run again. "
    "Look what is there, then decide."
)


@dataclass
class RunTools:
    """Calls tools for one run, or for one of its sub-agents."""

    run: LiveRun
    tools: Tools
    journal: CallJournal
    audit: Audit
    metrics: Metrics
    guard: ToolGuard
    most: int
    results: ToolResults
    isolation: Isolation = field(default_factory=Isolation)
    hosts: bool = False  #: the sandbox reaches hosts that were granted
    stained: bool = False  #: the sandbox holds or reaches what others wrote
    made: list[ToolCallView] = field(default_factory=list)
    child: Child | None = None

    def for_child(self, child: Child) -> RunTools:
        """Return the same tools as a sub-agent calls them: in its budget, knowing only the files it saw itself."""
        caller = replace(self.tools.caller, seen=Seen())
        guard = self.guard.for_child(child.spending.deadline)
        return replace(self, tools=replace(self.tools, caller=caller), guard=guard, child=child)

    def offers(self, name: str) -> bool:
        """Tell whether the model was offered a tool of this name."""
        return any(tool.name == name for tool in self.tools.offer.tools)

    async def call(self, tool: ToolSpec, call_id: str, arguments: Mapping[str, JsonValue]) -> Outcome:
        """Make a call; what it does to the world is journaled before and after. Raises ToolBrokeError."""
        if self.child is not None:
            self.child.about_to_call(tool.name, arguments)
            call_id = f"{self.child.id.rpartition('_')[2]}:{call_id}"[:64]
        if len(self.made) >= self.most:
            return Outcome(ENOUGH, {"text": ENOUGH}, is_error=True)
        shown = mask_json(dict(arguments))
        told = {"name": tool.name, "call_id": call_id, **({"child": self.child.id} if self.child else {})}
        self.run.tell("tool.started", {**told, "arguments": shown})
        begun = time.monotonic()
        if why := refusal(tool, self.isolation, hosts=self.hosts):
            outcome = Outcome(why, {"text": why}, is_error=True)
        else:
            outcome = await self._journaled(tool, call_id, arguments)
        view = ToolCallView(
            name=tool.name,
            arguments=shown,
            result=mask_json(dict(outcome.result)),
            is_error=outcome.is_error,
            duration_ms=round((time.monotonic() - begun) * 1000),
        )
        self.made.append(view)
        self.metrics.tool_calls.labels(tool=tool.name, outcome="error" if outcome.is_error else "ok").inc()
        self.audit.tell(
            "tool.called",
            self.run.principal,
            tool.name,
            correlation_id=self.run.correlation_id,
            run=self.run.id,
            source=tool.source,
            failed=outcome.is_error,
            ms=view.duration_ms,
        )
        self.run.tell("tool.finished", {**view.model_dump(mode="json"), **told})
        if why or not from_outside(tool, stained=self.stained):
            return outcome
        return await self._looked_at(tool, outcome, told)

    async def _looked_at(self, tool: ToolSpec, outcome: Outcome, told: Mapping[str, JsonValue]) -> Outcome:
        """Return an outcome as the model is to see it; one that gives orders isolates the rest of the run."""
        text, assessed = await self.results.look(outcome.text)
        self.metrics.tool_results.labels(band=assessed.band.value).inc()
        if assessed.score > ALLOW_UP_TO:
            self.isolation.why = self.isolation.why or f"a result of {tool.name} holds text that gives orders"
            found: dict[str, str | int] = {
                "score": assessed.score,
                "band": assessed.band.value,
                "findings": assessed.names,
            }
            self.run.tell("tool.assessed", {**told, **found})
            self.audit.tell(
                "tool.assessed",
                self.run.principal,
                tool.name,
                correlation_id=self.run.correlation_id,
                run=self.run.id,
                source=tool.source,
                **found,
            )
        kept = f"People find it in the tool calls of run {self.run.id}."
        return replace(outcome, text=shown(tool.name, text, assessed, kept=kept, nonce=lambda: secrets.token_hex(8)))

    async def _journaled(self, tool: ToolSpec, call_id: str, arguments: Mapping[str, JsonValue]) -> Outcome:
        async def make() -> Outcome:
            return await self.tools.caller.call(tool, arguments)

        if tool.effect == "read":  # it may simply run again
            return await self.guard.call(tool, arguments, make)
        match await self.journal.begin(self.run.id, call_id, tool.name, dict(arguments), "write"):
            case Repeat(result=result, is_error=is_error):
                known = result if isinstance(result, dict) else {"text": result}
                return Outcome(str(known.get("text", known)), known, is_error=is_error)
            case Unknown():
                return Outcome(UNSURE, {"text": UNSURE}, is_error=True)
        outcome = await self.guard.call(tool, arguments, make)
        await self.journal.finish(self.run.id, call_id, {"text": outcome.text}, is_error=outcome.is_error)
        return outcome
