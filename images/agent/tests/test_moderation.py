"""What moderation finds in answers and what it leaves, with figures; and what follows: a flag, or a review."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images.agent.tests.conftest import Agent, Launch, StubEngine, says

from loopbox_agent.moderation import HOLD_NONE, Moderation, Verdict
from loopbox_agent.moderation_rules import RULES, Category

MODERATION = Moderation()
ROWS = [json.loads(line) for line in Path(__file__).with_name("moderation.jsonl").read_text().splitlines()]
BAD = [row for row in ROWS if row["y"]]
GOOD = [row for row in ROWS if not row["y"]]
HELD_TEXT = "This is an erotic story about a minor. " + "It goes on like that. " * 20
ANNA = {"X-Loopbox-User": "anna", "X-Loopbox-Role": "user"}
OPERATOR = {"X-Loopbox-User": "olga", "X-Loopbox-Role": "operator"}


def test_the_set_is_large_enough_and_split() -> None:
    assert len(GOOD) >= 120
    assert len(BAD) >= 80
    assert {row["y"] for row in BAD} == {category.value for category in Category}
    assert len({row["t"] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("held_out", [0, 1])
def test_figures(held_out: int) -> None:
    """The rules were mended by the half that is not held out."""
    good = [row["t"] for row in GOOD if row["held"] == held_out]
    bad = [row for row in BAD if row["held"] == held_out]
    wrong = [text for text in good if MODERATION.assess(text).found]
    missed = [row["t"] for row in bad if row["y"] not in MODERATION.assess(row["t"]).categories]
    assert len(wrong) / len(good) <= 0.05, wrong
    assert len(missed) / len(bad) <= 0.10, missed


@pytest.mark.parametrize("row", [row for row in BAD if row["y"] == "minors"], ids=lambda row: row["t"][:30])
def test_only_what_is_about_minors_is_held_by_default(row: dict[str, str]) -> None:
    assert MODERATION.assess(row["t"]).verdict is Verdict.HOLD
    assert Moderation(hold_from=HOLD_NONE).assess(row["t"]).verdict is Verdict.FLAG


def test_everything_else_is_flagged() -> None:
    everything = " ".join(row["t"] for row in BAD if row["y"] != "minors")
    assert MODERATION.assess(everything).verdict is Verdict.FLAG
    assert MODERATION.assess("A quiet day.").verdict is Verdict.ALLOW
    assert Moderation(hold_from=40).assess("Immigrants are vermin.").verdict is Verdict.HOLD


@pytest.mark.parametrize(
    "text", ["Immi\u200bgrants are ver\u200bmin.", "Immigrants are v\u0435rmin.", "\uff29mmigrants are vermin."]
)
def test_disguises_are_taken_off(text: str) -> None:
    assert MODERATION.assess(text).categories == ("hate",)


def test_each_rule_has_a_text_that_it_alone_finds() -> None:
    seen = {one.id for row in BAD for one in MODERATION.assess(row["t"]).found}
    assert seen == {rule.id for rule in RULES}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([row["t"] for row in ROWS]), max_size=6), st.integers(0, 400))
def test_a_look_at_the_beginning_finds_nothing_that_the_whole_would_excuse(texts: list[str], cut: int) -> None:
    whole = " ".join(texts)
    early = MODERATION.assess(whole[:cut], growing=True)
    assert {one.id for one in early.found} <= {one.id for one in MODERATION.assess(whole).found}


def test_the_time_grows_with_the_length_alone() -> None:
    for text in ("a " * 4000, "you are a " * 800, "how to make " * 700, "women " * 1300, "x" * 8000):
        spent = []
        for size in (len(text) // 2, len(text)):
            began = time.process_time()
            MODERATION.assess(text[:size])
            spent.append(time.process_time() - began)
        assert all(later < 8 * earlier + 0.05 for earlier, later in pairwise(spent)), text[:20]


async def test_a_flagged_answer_is_told_of_and_counted(agent: Agent, engine: StubEngine) -> None:
    engine.scripts = [says("Immigrants ", "are vermin.")]
    events = await agent.events()
    flagged = next(body for _, name, body in events if name == "output.flagged")
    assert (flagged["categories"], flagged["findings"]) == ("hate", "group-is-low")
    assert (events[-1][1], events[-1][2]["output"]) == ("run.completed", "Immigrants are vermin.")
    metrics = (await agent.http.get("/metrics")).text
    assert 'loopbox_agent_outputs_flagged_total{category="hate",verdict="flag"} 1.0' in metrics


@pytest.mark.parametrize("size", [5, 5000])
async def test_a_held_answer_is_taken_back_and_waits_for_a_review(agent: Agent, engine: StubEngine, size: int) -> None:
    engine.scripts = [says(*(HELD_TEXT[at : at + size] for at in range(0, len(HELD_TEXT), size)))]
    thread = (await agent.http.post("/agents/threads", json={}, headers=ANNA)).json()["thread_id"]
    asked = {"instruction": "x", "stream": True, "thread_id": thread}
    response = await agent.http.post("/agents/run-agent", json=asked, headers=ANNA)
    run_id = response.headers["X-Run-Id"]
    assert response.text.count("It goes on like that") < 20
    again = await agent.http.get(f"/agents/runs/{run_id}/events", headers=ANNA)
    messages = await agent.http.get(f"/agents/threads/{thread}/messages", headers=ANNA)
    assert again.status_code == messages.status_code == 200
    assert "erotic" not in again.text + messages.text
    [held] = (await agent.http.get("/agents/quarantine", headers=OPERATOR)).json()["held"]
    assert (held["kind"], held["text"], held["findings"][0]["id"]) == ("output", HELD_TEXT, "minors")
    await agent.http.post(f"/agents/quarantine/{held['id']}/release", headers=OPERATOR)
    shown = (await agent.http.get("/agents/runs", headers=ANNA)).json()["runs"][0]
    assert shown["result"]["output"] == HELD_TEXT


async def test_holding_can_be_switched_off(launch: Launch, engine: StubEngine) -> None:
    agent = await launch(hold_output_from=HOLD_NONE)
    engine.scripts = [says(HELD_TEXT)]
    assert (await agent.run()).json()["status"] == "completed"
