"""delegation: owns sub-agents as the model sees them: a tool that gives a task, some tools and a budget to a child.

A child has a context of its own and of the parent's tools those that it is given. Whatever becomes of it is an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_ai.models import Model

from loopbox_agent.budget import Budget, Spending
from loopbox_agent.deadline import Deadline
from loopbox_agent.dialogue import Dialogue
from loopbox_agent.live_run import LiveRun
from loopbox_agent.model import OllamaSettings
from loopbox_agent.model_pool import BrokeOffError, ModelPool
from loopbox_agent.reminding import Reminding
from loopbox_agent.run_tools import RunTools
from loopbox_agent.sandbox import Outcome
from loopbox_agent.subagents import Child, ChildOrder, Children
from loopbox_agent.tool_spec import ToolSpec
from loopbox_agent.turn_calls import TurnCalls

NAME: Final = "delegate"
TOKENS: Final = 20_000  # of one child, where the model names none
CALLS: Final = 16
SECONDS: Final = 120.0
TURNS: Final = 12

RULES = (
    "You work on one task for another agent, who sees nothing but your last answer. Do the task with your tools, then "
    "answer with what was found or done, in short."
)


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    task: Annotated[str, Field(min_length=1, max_length=2000)] = Field(
        description="What is to be done, with all that is needed to know for it."
    )
    tools: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=16)] = Field(
        default=[], description="Names of your own tools that it may use."
    )
    tokens: Annotated[int, Field(ge=256, le=1_000_000)] = TOKENS
    tool_calls: Annotated[int, Field(ge=0, le=200)] = CALLS
    seconds: Annotated[float, Field(gt=0, le=3600)] = SECONDS


def spec() -> ToolSpec:
    """Return the tool. Its calls run side by side: what a child does to files is ordered where it is done."""
    schema = _Order.model_json_schema()
    schema.pop("title", None)
    return ToolSpec(
        NAME,
        "Give a task to a sub-agent with a context of its own, and get its answer.",
        schema,
        source="builtin",
        kind="builtin",
        effect="read",
        level="execute",
        capabilities=("delegate", "subagent", "parallel"),
    )


@dataclass
class Delegation:
    """The sub-agents of one run."""

    run: LiveRun
    pool: ModelPool
    settings: OllamaSettings
    deadline: Deadline
    most_tokens: int
    most_calls: int
    tools: RunTools | None = None  #: set once they are known
    _children: Children | None = field(default=None, repr=False)

    async def call(self, _: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
        """Run a child to its end, whatever that is."""
        try:
            order = _Order.model_validate(dict(arguments))
        except ValidationError as error:
            fault = error.errors()[0]
            text = f"{NAME} was not run. {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            return Outcome(text, {"text": text}, is_error=True)
        budget = Budget(tokens=order.tokens, tool_calls=order.tool_calls, seconds=order.seconds)
        asked = ChildOrder(task=order.task, tools=frozenset(order.tools), budget=budget)
        answer = await self._family().supervise(asked, self._work)
        result: dict[str, JsonValue] = {
            "child": answer.child,
            "status": answer.status,
            "text": answer.text,
            "tokens": answer.spent.tokens,
            "tool_calls": answer.spent.tool_calls,
            "seconds": round(answer.seconds, 3),
        }
        return Outcome(answer.text, result, is_error=answer.status != "ok")

    def _family(self) -> Children:
        if self._children is None:
            names = [tool.name for tool in self.tools.tools.offer.tools] if self.tools else []
            budget = Budget(tokens=self.most_tokens, tool_calls=self.most_calls, seconds=self.deadline.left())
            self._children = Children(self.run.id, (n for n in names if n != NAME), Spending(budget, self.deadline))
        return self._children

    async def _work(self, child: Child) -> str:
        """Be the child."""
        model: Model = self.pool.for_run(child.spending.deadline)
        known = self.tools.tools.offer.tools if self.tools else ()
        tools = self.tools.for_child(child) if self.tools else None
        budget = child.spending.budget
        dialogue = Dialogue(
            model=model,
            settings=self.settings,
            most_turns=TURNS,
            tell=lambda name, body: None if name == "text.delta" else self._tell(child, name, body),
            instructions=RULES,
            tools=TurnCalls(tools, [tool for tool in known if tool.name in child.tools]),
            broken=(BrokeOffError,),
            spent=child.spending.charge_tokens,
            remind=Reminding(
                child.spending.deadline,
                tools,
                budget.tool_calls,
                most_tokens=budget.tokens,
                tokens=lambda: child.spending.spent.tokens,
            ).words,
        )
        self._tell(child, "started", {"task": child.task[:500]})
        return await dialogue.go(child.task)

    def _tell(self, child: Child, name: str, body: Mapping[str, object]) -> None:
        self.run.tell(f"child.{name}", {"child": child.id, **body})
