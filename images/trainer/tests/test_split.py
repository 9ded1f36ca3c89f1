from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loopbox_trainer.mix import plan_mix, rank
from loopbox_trainer.split import Components, Item, plan_split

shares = st.sampled_from([0.0, 0.1, 0.3, 0.5])
placed = st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.booleans()), max_size=40)


def plan(some: list[tuple[int, bool, bool]], valid: float, test: float, seed: int = 0) -> list[str | None]:
    items = [Item(f"{n}", counted, held_out) for n, (_, counted, held_out) in enumerate(some)]
    return list(plan_split(items, [root for root, _, _ in some], valid=valid, test=test, seed=seed))


@given(placed, shares, shares, st.integers(0, 3))
def test_no_component_is_divided_and_nothing_held_out_is_trained(
    some: list[tuple[int, bool, bool]], valid: float, test: float, seed: int
) -> None:
    parts = plan(some, valid, test, seed)
    for root in range(9):
        assert len({part for part, one in zip(parts, some, strict=True) if one[0] == root and part}) <= 1
    for part, (_, _, held_out) in zip(parts, some, strict=True):
        assert part in ({"test", None} if held_out else {"train", "valid", "test"})


@given(placed, shares, shares)
def test_no_split_is_larger_than_its_share(some: list[tuple[int, bool, bool]], valid: float, test: float) -> None:
    parts = plan(some, valid, test)
    free = [part for part, one in zip(parts, some, strict=True) if one[1] and not one[2]]
    assert free.count("valid") <= round(len(free) * valid)
    assert free.count("test") <= round(len(free) * test)


def test_single_rows_fill_the_shares() -> None:
    parts = plan([(n, True, False) for n in range(1000)], 0.1, 0.2)
    assert (parts.count("valid"), parts.count("test")) == (100, 200)


def test_another_seed_takes_others() -> None:
    some = [(n, True, False) for n in range(100)]
    assert plan(some, 0.1, 0.1, 1) != plan(some, 0.1, 0.1, 2)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20), st.randoms())
def test_components_do_not_depend_on_the_order_of_the_joins(joins: list[tuple[int, int]], pick: object) -> None:
    one, other = Components(10), Components(10)
    for pair in joins:
        one.join(*pair)
    for pair in reversed(joins):
        other.join(*pair)
    assert [one.root(n) for n in range(10)] == [other.root(n) for n in range(10)]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 50), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 5)),
    st.none() | st.integers(1, 120),
)
def test_a_mix_takes_what_is_there_and_no_more(
    available: dict[str, int], weights: dict[str, float], total: int | None
) -> None:
    taken = plan_mix(available, weights, total)
    assert set(taken) == set(available)
    assert all(0 <= taken[name] <= count for name, count in available.items())
    usable = sum(count for name, count in available.items() if weights.get(name, 1.0) > 0)
    assert sum(taken.values()) == (usable if total is None else min(total, usable))


def test_shares_follow_the_weights_and_what_is_short_is_made_up_by_others() -> None:
    assert plan_mix({"a": 100, "b": 100}, {"a": 3, "b": 1}, 40) == {"a": 30, "b": 10}
    assert plan_mix({"a": 5, "b": 100, "c": 100}, {"a": 2, "b": 1, "c": 1}, 45) == {"a": 5, "b": 20, "c": 20}
    assert plan_mix({"a": 9, "b": 9}, {"a": 0}, None) == {"a": 0, "b": 9}


def test_the_order_depends_on_seed_and_name_alone() -> None:
    assert rank(1, "x") == rank(1, "x") != rank(2, "x")
