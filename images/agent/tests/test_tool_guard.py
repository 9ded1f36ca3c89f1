"""What stands around a tool call: retries only where nothing changes, a breaker only for what can be down."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import httpx2
import pytest

from loopbox_agent.breaker import Breakers, Policy
from loopbox_agent.deadline import Deadline
from loopbox_agent.errors import DeadlineError
from loopbox_agent.reminders import Told, TurnFacts, plan_reminders
from loopbox_agent.retry import Backoff, Retries
from loopbox_agent.sandbox import Outcome, ToolBrokeError
from loopbox_agent.tool_guard import ToolGuard
from loopbox_agent.tool_spec import Effect, Kind, ToolSpec

OK = Outcome("fine", {"text": "fine"}, is_error=False)
DOWN = Outcome("503 Service Unavailable", {"text": "x"}, is_error=True)
REFUSED = Outcome("curl: connection refused", {"exit_code": 7, "timed_out": False}, is_error=True)
WRONG = Outcome("invalid argument", {"text": "x"}, is_error=True)


def tool(kind: Kind = "server", effect: Effect = "read", name: str = "look") -> ToolSpec:
    level: Effect = "network" if kind == "server" else "execute"
    return ToolSpec(name=name, description="", schema={}, source="far", kind=kind, effect=effect, level=level)


def guard(breakers: Breakers | None = None, scope: str = "ada") -> ToolGuard:
    draw = random.Random(1).random  # noqa: S311 the same draws in every run
    retries = Retries(Deadline.after(20), Backoff(tries=3, base_s=0.001), draw)
    return ToolGuard(breakers or Breakers(), retries, scope=scope)


def giving(*answers: Outcome | Exception) -> tuple[Callable[[], Awaitable[Outcome]], list[int]]:
    """Give the answers one by one, the last for ever."""
    made: list[int] = []

    async def make() -> Outcome:
        answer = answers[min(len(made), len(answers) - 1)]
        made.append(1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return make, made


REACHED_NOT, CUT = httpx2.ConnectError("refused"), httpx2.ReadError("reset")


@pytest.mark.parametrize(
    ("spec", "answers", "times", "text"),
    [
        (tool(), (DOWN, OK), 2, "fine"),
        (tool(), (DOWN,), 3, DOWN.text),  # and the model is told what the server said
        (tool(), (CUT, OK), 2, "fine"),
        (tool(), (WRONG, OK), 1, WRONG.text),
        (tool(effect="write"), (DOWN, OK), 1, DOWN.text),
        (tool(effect="write"), (REACHED_NOT, OK), 2, "fine"),
        (tool("sandbox"), (REFUSED, OK), 1, REFUSED.text),  # what a program says is for the model to judge
        (tool("builtin"), (REFUSED, OK), 1, REFUSED.text),  # and what a sub-agent says
    ],
)
async def test_a_call_is_made_as_often_as_is_safe(
    spec: ToolSpec, answers: tuple[Outcome | Exception, ...], times: int, text: str
) -> None:
    make, made = giving(*answers)
    outcome = await guard().call(spec, {}, make)
    assert (len(made), outcome.text) == (times, text)


@pytest.mark.parametrize(
    ("spec", "error"), [(tool(effect="write"), CUT), (tool("sandbox", "execute"), ToolBrokeError("gone"))]
)
async def test_a_change_that_may_have_been_made_is_not_made_again(spec: ToolSpec, error: Exception) -> None:
    make, made = giving(error)
    with pytest.raises(type(error)):
        await guard().call(spec, {}, make)
    assert len(made) == 1


async def test_what_is_down_is_left_alone_for_its_user_only() -> None:
    breakers = Breakers(Policy(window=4, least=3))
    make, made = giving(DOWN)
    await guard(breakers).call(tool(), {}, make)
    outcome = await guard(breakers).call(tool(), {}, make)
    assert (len(made), outcome.is_error) == (3, True)
    assert "is left alone" in outcome.text
    assert (await guard(breakers, "bob").call(tool(), {}, giving(OK)[0])).text == "fine"
    assert (await guard(breakers).call(tool(name="other"), {}, giving(OK)[0])).text == "fine"


async def test_programs_that_fail_close_no_sandbox() -> None:
    breakers = Breakers(Policy(window=4, least=3))
    for _ in range(8):
        await guard(breakers).call(tool("sandbox", "execute"), {}, giving(REFUSED)[0])
    assert breakers.snapshot(0)[0].state == "closed"


async def test_a_cancel_is_nobodys_fault() -> None:
    breakers, begun = Breakers(Policy(least=1)), asyncio.Event()

    async def hang() -> Outcome:
        begun.set()
        await asyncio.Event().wait()
        return OK

    task = asyncio.create_task(guard(breakers).call(tool(), {}, hang))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert breakers.snapshot(0)[0].calls == 0


async def test_what_was_called_is_kept_for_reminders() -> None:
    guarded = guard()
    for number in range(3):
        await guarded.call(tool(name="write"), {"n": number}, giving(WRONG)[0])
    due, _ = plan_reminders(TurnFacts(turn=4, calls=guarded.seen), Told())
    assert [reminder.kind for reminder in due] == ["errors"]
    assert "write failed 3 times in the same way (validation)" in due[0].text
    with pytest.raises(ToolBrokeError):
        await guarded.call(tool("sandbox", "execute"), {}, giving(ToolBrokeError("gone"))[0])
    assert (guarded.made, guarded.seen[-1].failure) == (4, "service")
    child = guarded.for_child(Deadline.after(0))
    with pytest.raises(DeadlineError):
        await child.call(tool(), {}, giving(OK)[0])
    assert (child.made, guarded.made) == (1, 4)
    for _ in range(100):
        await guarded.call(tool(), {}, giving(OK)[0])
    assert len(guarded.seen) == 24
