"""The comparison of a candidate with the champion."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loopd.analysis import MOST_LATENCIES, Answer, Figures, Tally, judge, quantile
from loopd.config import AnalysisSettings

LIMITS = AnalysisSettings(samples=20, error_rate=0.02, errors=2, latency_factor=2.0, latency_floor_ms=250)


def figures(answers: int = 100, errors: int = 0, p95_ms: int | None = 100) -> Figures:
    return Figures(answers=answers, errors=errors, p50_ms=p95_ms, p95_ms=p95_ms)


def test_as_good_as_the_champion_is_good_enough() -> None:
    assert judge(figures(), figures(), LIMITS) == ""
    assert judge(figures(answers=0, p95_ms=None), figures(answers=0, p95_ms=None), LIMITS) == ""


def test_errors_beyond_the_champions_are_too_many() -> None:
    assert "failed" in judge(figures(errors=5), figures(errors=2), LIMITS)
    assert judge(figures(errors=5), figures(errors=4), LIMITS) == ""


def test_one_error_alone_is_no_verdict() -> None:
    assert judge(figures(answers=2, errors=1), figures(), LIMITS) == ""


def test_slower_than_twice_the_champion_is_too_slow_if_it_is_slow_at_all() -> None:
    assert "p95" in judge(figures(p95_ms=900), figures(p95_ms=400), LIMITS)
    assert judge(figures(p95_ms=800), figures(p95_ms=400), LIMITS) == ""
    assert judge(figures(p95_ms=240), figures(p95_ms=10), LIMITS) == "", "below the floor"


def test_a_handful_of_answers_says_nothing_about_speed() -> None:
    assert judge(figures(answers=19, p95_ms=9000), figures(), LIMITS) == ""
    assert judge(figures(p95_ms=9000), figures(answers=19), LIMITS) == ""


@given(st.lists(st.integers(0, 10_000), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_enough_do_not_exceed(values: list[int], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert found is not None
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


def test_no_values_have_no_quantile() -> None:
    assert quantile([], 0.5) is None


def test_a_tally_keeps_a_bounded_number_of_times() -> None:
    tally = Tally()
    for number in range(MOST_LATENCIES + 10):
        tally.add(Answer(server="a", failed=False, first_byte_ms=number))
    tally.add(Answer(server="a", failed=True, first_byte_ms=999_999))
    assert (tally.answers, tally.errors) == (MOST_LATENCIES + 11, 1)
    assert len(tally.latencies) == MOST_LATENCIES
    assert max(tally.latencies) < 999_999, "how long a failure took says nothing about speed"
