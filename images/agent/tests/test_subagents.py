"""Whatever becomes of a child run, its parent gets an answer and goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox_agent.budget import Budget, BudgetSpentError, Spending, Spent
from loopbox_agent.deadline import Deadline
from loopbox_agent.errors import DeadlineError
from loopbox_agent.subagents import Child, ChildAnswer, ChildLimits, ChildOrder, Children, Status

PLENTY = Budget(tokens=1000, tool_calls=50, seconds=30)
SOME = Budget(tokens=100, tool_calls=5, seconds=10)
LIMITS = ChildLimits(grace_s=0.1)
TOOLS = ("bash", "read_file")


def parent(budget: Budget = PLENTY, limits: ChildLimits = LIMITS) -> tuple[Children, Spending]:
    spending = Spending(budget)
    return Children("run_1", TOOLS, spending, limits=limits), spending


def order(*tools: str, budget: Budget = SOME, task: str = "Count.") -> ChildOrder:
    return ChildOrder(task=task, tools=frozenset(tools), budget=budget)


async def fine(child: Child) -> str:
    child.spending.charge_tokens(30)
    return f"done: {child.task}"


async def test_a_child_answers_in_its_own_budget_and_the_rest_comes_back() -> None:
    children, spending = parent()
    answer = await children.supervise(order("bash"), fine)
    assert (answer.child, answer.status, answer.text) == ("run_1.1", "ok", "done: Count.")
    assert answer.spent == Spent(30, 0)
    assert (spending.spent, spending.left.tokens, spending.left.tool_calls) == (Spent(30, 0), 970, 50)


async def crash(_: Child) -> str:
    raise httpx2.ReadError("reset by peer")


async def crash_in_a_group(_: Child) -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0, ValueError))
        raise KeyError("x")


async def crash_with_the_worst(_: Child) -> str:
    raise BaseExceptionGroup("all of it", [GeneratorExit(), asyncio.CancelledError()])


async def exit_(_: Child) -> str:
    raise SystemExit(3)


async def cancel_itself(_: Child) -> str:
    raise asyncio.CancelledError


async def answer_nothing(_: Child) -> str:
    return None  # type: ignore[return-value]  # what a careless child does


async def recurse(child: Child) -> str:
    return await recurse(child)


async def hang(_: Child) -> str:
    await asyncio.Event().wait()
    return ""


async def loop(child: Child) -> str:
    while True:
        child.about_to_call("bash", {"code": "true"})
        await asyncio.sleep(0)


async def call_on_and_on(child: Child) -> str:
    for number in range(1000):
        child.about_to_call("bash", {"code": number})
    return ""


async def talk_on_and_on(child: Child) -> str:
    while True:
        child.spending.charge_tokens(40)
        await asyncio.sleep(0)


async def escalate(child: Child) -> str:
    child.about_to_call("python", {})
    return ""


@pytest.mark.parametrize(
    ("run_child", "status", "words"),
    [
        (crash, "failed", "network; ReadError: reset by peer"),
        (crash_in_a_group, "failed", "ExceptionGroup"),
        (crash_with_the_worst, "failed", "BaseExceptionGroup"),
        (exit_, "failed", "tried to exit with 3"),
        (cancel_itself, "failed", "cancelled itself"),
        (answer_nothing, "failed", "not a text"),
        (recurse, "failed", "RecursionError"),
        (loop, "looping", "5 times with the same arguments"),
        (call_on_and_on, "budget", "All 5 tool calls"),
        (talk_on_and_on, "budget", "All 100 tokens"),
        (escalate, "failed", "may not use 'python'"),
    ],
)
async def test_what_becomes_of_a_child_is_an_answer(
    run_child: Callable[[Child], Awaitable[str]], status: Status, words: str
) -> None:
    children, spending = parent()
    answer = await children.supervise(order("bash"), run_child)
    assert (answer.status, answer.left_behind) == (status, False)
    assert words in answer.text
    assert len(answer.text) < 1500
    assert (await children.supervise(order(), fine)).status == "ok"  # the parent goes on
    assert spending.left.tokens == 1000 - spending.spent.tokens


async def test_a_child_that_hangs_is_ended_by_its_time() -> None:
    children, _ = parent()
    answer = await children.supervise(order(budget=Budget(tokens=1, tool_calls=1, seconds=0.05)), hang)
    assert (answer.status, answer.left_behind, children.left_behind) == ("timeout", False, 0)
    assert answer.seconds < 2


def stubborn(release: asyncio.Event, tried: list[BaseException]) -> Callable[[Child], Awaitable[str]]:
    """A child that takes no cancel, and goes on to do things."""

    async def run(child: Child) -> str:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        with pytest.raises(BudgetSpentError) as call:
            child.about_to_call("bash", {})
        with pytest.raises(BudgetSpentError) as tokens:
            child.spending.charge_tokens(1)
        tried.extend((call.value, tokens.value))
        raise OSError("nobody hears this")

    return run


async def test_a_child_that_will_not_end_is_left_behind_and_can_do_nothing() -> None:
    children, spending = parent()
    release, tried = asyncio.Event(), list[BaseException]()
    short = order("bash", budget=Budget(tokens=10, tool_calls=1, seconds=0.05))
    answer = await children.supervise(short, stubborn(release, tried))
    assert (answer.status, answer.left_behind, children.left_behind) == ("timeout", True, 1)
    assert "did not end when it was told to" in answer.text
    assert spending.left.tokens == 1000
    release.set()
    while children.left_behind:
        await asyncio.sleep(0)
    assert len(tried) == 2


async def test_after_some_were_left_behind_no_more_are_started() -> None:
    children, _ = parent(limits=ChildLimits(grace_s=0.01, left_behind=2))
    release = asyncio.Event()
    short = order(budget=Budget(tokens=1, tool_calls=1, seconds=0.01))
    answers = [await children.supervise(short, stubborn(release, [])) for _ in range(3)]
    assert [answer.status for answer in answers] == ["timeout", "timeout", "refused"]
    release.set()
    while children.left_behind:
        await asyncio.sleep(0)


@pytest.mark.parametrize("ignores", [False, True])
async def test_cancelling_the_parent_ends_its_children_in_bounded_time(*, ignores: bool) -> None:
    children, _ = parent(limits=ChildLimits(grace_s=0.2))
    release, begun, ended = asyncio.Event(), asyncio.Event(), list[str]()

    async def deep(child: Child) -> str:
        async def below(grandchild: Child) -> str:
            begun.set()
            try:
                if ignores:
                    return await stubborn(release, [])(grandchild)
                return await hang(grandchild)
            finally:
                ended.append(grandchild.id)

        return (await child.children.supervise(order(budget=Budget(tokens=1, tool_calls=1, seconds=5)), below)).text

    task = asyncio.create_task(children.supervise(order(), deep))
    await begun.wait()
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 1.0
    assert ended == ([] if ignores else ["run_1.1.1"])
    release.set()
    await asyncio.sleep(0.01)


async def test_a_cancelled_child_can_begin_nothing_while_it_tidies_up() -> None:
    children, _ = parent()
    begun, refused = asyncio.Event(), list[str]()

    async def late(child: Child) -> str:
        begun.set()
        try:
            return await hang(child)
        finally:
            with pytest.raises(BudgetSpentError) as caught:
                child.about_to_call("bash", {})
            refused.append(str(caught.value))

    task = asyncio.create_task(children.supervise(order("bash"), late))
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert refused == ["The parent of run_1.1 was cancelled; nothing more may be spent."]


async def test_a_second_cancel_while_a_child_is_being_ended_is_not_lost() -> None:
    children, _ = parent(limits=ChildLimits(grace_s=0.2))
    release, ending = asyncio.Event(), asyncio.Event()

    async def slow_to_end(_: Child) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.sleep(0.05)
        return ""

    short = order(budget=Budget(tokens=1, tool_calls=1, seconds=0.02))
    task = asyncio.create_task(children.supervise(short, slow_to_end))
    await ending.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (order("bash", "python"), "tools that you do not have (python)"),
        (order(budget=Budget(tokens=1001, tool_calls=1, seconds=1)), "1000 tokens and 50 tool calls are left"),
        (order(budget=Budget(tokens=1, tool_calls=51, seconds=1)), "are left"),
        (order(task=" "), "characters"),
        (order(task="x" * 40_000), "characters"),
    ],
)
async def test_what_may_not_be_is_refused_before_anything_runs(asked: ChildOrder, words: str) -> None:
    children, spending = parent()
    ran = []

    async def run(child: Child) -> str:
        ran.append(child)
        return ""

    answer = await children.supervise(asked, run)
    assert (answer.status, ran, spending.spent) == ("refused", [], Spent())
    assert words in answer.text


async def test_generations_and_their_number_are_limited() -> None:
    children, _ = parent(limits=ChildLimits(depth=2, children=3))

    async def run(child: Child) -> str:
        left = child.spending.left
        half = Budget(tokens=left.tokens // 2, tool_calls=left.tool_calls // 2, seconds=5)
        answer = await child.children.supervise(order(budget=half), run)
        return f"{child.id} {answer.status} [{answer.text}]"

    answer = await children.supervise(order(), run)
    assert answer.text.startswith("run_1.1 ok [run_1.1.1 refused [")
    assert "2 generations deep" in answer.text
    statuses = [(await children.supervise(order(), fine)).status for _ in range(4)]
    assert statuses == ["ok", "ok", "refused", "refused"]


async def test_a_grandchild_can_not_get_what_its_parent_has_not() -> None:
    children, _ = parent()

    async def run(child: Child) -> str:
        return (
            await child.children.supervise(order("bash", budget=Budget(tokens=1, tool_calls=1, seconds=1)), fine)
        ).text

    assert "do not have (bash)" in (await children.supervise(order("read_file"), run)).text


async def test_children_run_side_by_side_but_not_too_many() -> None:
    children, _ = parent(Budget(tokens=10_000, tool_calls=100, seconds=30), ChildLimits(at_once=3, children=20))
    running, most, gate = 0, 0, asyncio.Barrier(3)

    async def run(child: Child) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        if int(child.id.split(".")[1]) % 3 == 0:
            raise ValueError("every third")
        return child.id

    answers = await children.supervise_all([order()] * 9, run)
    assert most == 3
    assert [answer.status for answer in answers] == ["ok", "ok", "failed"] * 3
    assert [answer.child for answer in answers] == [f"run_1.{number}" for number in range(1, 10)]


async def test_a_flood_of_words_is_cut_in_the_middle() -> None:
    children, _ = parent(limits=ChildLimits(answer=100))

    async def flood(_: Child) -> str:
        return "a" * 500_000 + "b" * 500_000

    answer: ChildAnswer = await children.supervise(order(), flood)
    assert answer.status == "ok"
    assert answer.text == "a" * 50 + "\n[999900 characters left out]\n" + "b" * 50


async def test_no_child_outlives_its_parents_deadline() -> None:
    spending = Spending(Budget(tokens=100, tool_calls=5, seconds=0.05))
    children = Children("run_1", TOOLS, spending, limits=LIMITS)
    begun = time.monotonic()
    answer = await children.supervise(order(budget=Budget(tokens=1, tool_calls=1, seconds=60)), hang)
    assert (answer.status, time.monotonic() - begun < 2) == ("timeout", True)


# the meter

AMOUNT = st.integers(0, 60)


@given(st.lists(st.tuples(st.sampled_from(["tokens", "call", "carve", "close"]), AMOUNT, AMOUNT), max_size=40))
def test_children_never_spend_more_than_their_parent_was_given(steps: list[tuple[str, int, int]]) -> None:
    root = Spending(Budget(tokens=100, tool_calls=30, seconds=60))
    alive = [root]
    calls = 0
    for what, first, second in steps:
        meter = alive[first % len(alive)]
        try:
            if what == "carve":
                alive.append(meter.carve(Budget(tokens=first, tool_calls=second, seconds=5)))
            elif what == "close" and meter is not root:
                meter.close()
            elif what == "call":
                meter.charge_call()
                calls += 1
            elif what == "tokens":
                meter.charge_tokens(min(first, meter.left.tokens))
        except BudgetSpentError:
            pass
        for one in alive:
            assert one.spent.tokens <= one.budget.tokens
            assert one.spent.tool_calls <= one.budget.tool_calls
    for meter in reversed(alive[1:]):
        meter.close()
    assert root.spent.tool_calls == calls <= 30
    assert root.left.tokens == 100 - root.spent.tokens


def test_spending_stops_with_an_ancestor() -> None:
    root = Spending(PLENTY)
    child = root.carve(SOME)
    grandchild = child.carve(Budget(tokens=10, tool_calls=1, seconds=1))
    child.close("It was ended")
    with pytest.raises(BudgetSpentError, match="It was ended"):
        grandchild.charge_call()
    assert root.left.tokens == 1000


def test_what_a_grandchild_spent_is_counted_when_its_parent_ends() -> None:
    root = Spending(PLENTY)
    child = root.carve(SOME)
    grandchild = child.carve(Budget(tokens=10, tool_calls=2, seconds=1))
    grandchild.charge_call()
    grandchild.charge_tokens(7)
    child.close()
    assert (root.spent, root.left.tokens) == (Spent(7, 1), 993)


def test_time_is_part_of_the_budget() -> None:
    now = [0.0]
    spending = Spending(SOME, Deadline.after(100, lambda: now[0]))
    child = spending.carve(Budget(tokens=1, tool_calls=1, seconds=99))
    assert child.left.seconds == 10
    now[0] = 11
    for meter in (spending, child):
        with pytest.raises(DeadlineError):
            meter.charge_call()


@pytest.mark.parametrize("wrong", [{"tokens": -1}, {"tool_calls": -1}, {"seconds": -0.1}, {"seconds": float("nan")}])
def test_less_than_nothing_is_no_budget(wrong: dict[str, Any]) -> None:  # Any: the budget's own fields
    with pytest.raises(ValueError, match="less than nothing"):
        Budget(**{"tokens": 1, "tool_calls": 1, "seconds": 1.0, **wrong})
