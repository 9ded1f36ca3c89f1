"""budget: owns what a run may spend, and the meter of it; a child's budget is carved out of its parent's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loopbox_agent.deadline import Deadline
from loopbox_agent.errors import AgentError


class BudgetSpentError(AgentError):
    """A run has used up what it was given."""

    code: ClassVar[str] = "budget_spent"
    status: ClassVar[int] = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may spend."""

    tokens: int  #: read and generated
    tool_calls: int
    seconds: float

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.tool_calls < 0 or not self.seconds >= 0:
            raise ValueError("a budget can't be less than nothing")


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent."""

    tokens: int = 0
    tool_calls: int = 0


class Spending:
    """The meter of one budget. What children were given counts as spent until they give the rest back."""

    def __init__(self, budget: Budget, deadline: Deadline | None = None, *, parent: Spending | None = None) -> None:
        self.budget = budget
        self.deadline = (deadline or Deadline.never()).within(budget.seconds)
        self._tokens = 0
        self._calls = 0
        self._lent_tokens = 0
        self._lent_calls = 0
        self._parent = parent
        self._stopped = ""

    @property
    def spent(self) -> Spent:
        """What was spent, by children that ended, too."""
        return Spent(self._tokens, self._calls)

    @property
    def left(self) -> Budget:
        """What may still be spent."""
        return Budget(
            tokens=max(0, self.budget.tokens - self._tokens - self._lent_tokens),
            tool_calls=max(0, self.budget.tool_calls - self._calls - self._lent_calls),
            seconds=self.deadline.left(),
        )

    def charge_tokens(self, tokens: int) -> None:
        """Take note of tokens that were spent, then raise BudgetSpentError if that was more than there were."""
        self.check()
        self._tokens += max(0, tokens)
        if self._tokens + self._lent_tokens > self.budget.tokens:
            raise BudgetSpentError(f"All {self.budget.tokens} tokens of this run are spent; it ends here.")

    def charge_call(self) -> None:
        """Take a tool call out of the budget before it is made. Raises BudgetSpentError; then it must not be made."""
        self.check()
        if self._calls + self._lent_calls >= self.budget.tool_calls:
            raise BudgetSpentError(
                f"All {self.budget.tool_calls} tool calls of this run are used up; nothing was run. "
                "Answer with what is there."
            )
        self._calls += 1

    def check(self) -> None:
        """Raise BudgetSpentError once the run is stopped, DeadlineError when its time is over."""
        if self._stopped:
            raise BudgetSpentError(f"{self._stopped}; nothing more may be spent.")
        if self._parent is not None:
            self._parent.check()
        self.deadline.check()

    def carve(self, wanted: Budget) -> Spending:
        """Return the meter of a child: of tokens and calls no more than are left, of time no later than this.

        Raises BudgetSpentError when there are not as many tokens and calls left as are wanted.
        """
        self.check()
        left = self.left
        if wanted.tokens > left.tokens or wanted.tool_calls > left.tool_calls:
            raise BudgetSpentError(
                f"{left.tokens} tokens and {left.tool_calls} tool calls are left, not {wanted.tokens} and "
                f"{wanted.tool_calls}; nothing was started. Ask for less."
            )
        child = Spending(wanted, self.deadline, parent=self)
        self._lent_tokens += wanted.tokens
        self._lent_calls += wanted.tool_calls
        return child

    def close(self, why: str = "It has ended") -> None:
        """End the run's spending for good; the rest goes back to the parent. May be called twice."""
        if self._stopped:
            return
        self._stopped = why
        if self._parent is not None:
            self._parent.take_back(self)

    def take_back(self, child: Spending) -> None:
        """Book what a child has spent; the rest of what it was given may be spent again."""
        self._lent_tokens -= child.budget.tokens
        self._lent_calls -= child.budget.tool_calls
        # A request is counted when it has ended, so a child can be over its tokens by its last one.
        self._tokens += child.spent.tokens
        self._calls += child.spent.tool_calls
