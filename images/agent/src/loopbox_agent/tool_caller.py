"""tool_caller: owns making one agent's tool calls: in order, to the right source, with answers of bounded size.

One Caller for each agent (a sub-agent has its own); the Schedule is shared by all that use the same sandbox.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from loopbox_agent.outputs import Keep, fit
from loopbox_agent.sandbox import Outcome, Sandbox
from loopbox_agent.seen import Seen, conflict_text
from loopbox_agent.tool_access import access_of
from loopbox_agent.tool_schedule import Schedule
from loopbox_agent.tool_spec import ToolSpec

Call = Callable[[ToolSpec, Mapping[str, JsonValue]], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Makes calls for one agent."""

    schedule: Schedule
    sandbox: Sandbox | None = None
    session: str = ""  #: the sandbox's; the same for all agents that share it
    builtins: Mapping[str, Call] = field(default_factory=dict)  #: by the tool's own name
    server: Call | None = None  #: for tools of the user's MCP servers
    keep: Keep | None = None  #: of outputs too long to show; the sandbox keeps its own
    seen: Seen = field(default_factory=Seen)

    async def call(self, tool: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
        """Make a call when its turn comes; a cancel reaches what runs.

        Raises ToolBrokeError when the sandbox breaks off, TooManyCallsError when too many wait.
        """
        access = access_of(tool, arguments, session=self.session)
        given = dict(arguments)
        if tool.source_name == "write_file":  # made from what the model saw before this turn's other calls
            given = self.seen.expect(tool, given)
        async with self.schedule.turn(access):
            if tool.source_name == "edit_file":  # finds its place by text, also after another edit of this turn
                given = self.seen.expect(tool, given)
            outcome = await self._send(tool, given)
            self.seen.note(tool, given, outcome.result, is_error=outcome.is_error)
        refused = conflict_text(tool, given, outcome.result) if outcome.is_error else None
        if refused is not None:
            return Outcome(refused, {**outcome.result, "conflict": True}, is_error=True)
        shown = await fit(tool.name, outcome.text, self.keep)
        return outcome if shown.whole else Outcome(shown.text, outcome.result, outcome.is_error)

    async def _send(self, tool: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
        call: Call | None = None
        if tool.kind == "sandbox" and self.sandbox is not None:
            return await self.sandbox.call(tool.source_name, arguments)
        if tool.kind == "builtin":
            call = self.builtins.get(tool.source_name)
        elif tool.kind == "server":
            call = self.server
        if call is None:
            text = f"The tool {tool.name} is not there in this run; nothing was run."
            return Outcome(text, {"text": text}, is_error=True)
        return await call(tool, arguments)
