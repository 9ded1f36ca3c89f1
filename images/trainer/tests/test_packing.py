from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from loopbox_trainer.chat_format import IGNORED
from loopbox_trainer.examples import Example
from loopbox_trainer.packing import pack

LONGEST = 24
TOKENS = st.integers(0, 99)
PREFIXES = st.sampled_from([(), (1,), (1, 2, 3), (9,) * 8])


@st.composite
def examples(draw: st.DrawFn) -> Example:
    body = draw(st.lists(TOKENS, min_size=1, max_size=16))
    return Example(draw(PREFIXES), tuple(body), (IGNORED, *body[1:]))


@given(st.lists(examples(), max_size=20), st.integers(0, 5))
def test_each_conversation_is_once_in_a_sequence_as_it_was_alone(given_ones: list[Example], seed: int) -> None:
    found: Counter[Example] = Counter()
    for one in pack(given_ones, longest=LONGEST, seed=seed):
        assert len(one.tokens) == len(one.labels) == len(one.positions) == len(one.owners) <= LONGEST
        shared = [place for place, owner in enumerate(one.owners) if owner == 0]
        prefix = tuple(one.tokens[place] for place in shared)
        assert [one.positions[place] for place in shared] == shared
        assert all(one.labels[place] == IGNORED for place in shared)
        for owner in range(1, max(one.owners) + 1):
            places = [place for place, other in enumerate(one.owners) if other == owner]
            assert [one.positions[place] for place in places] == list(range(len(prefix), len(prefix) + len(places)))
            body = tuple(one.tokens[place] for place in places)
            found[Example(prefix, body, tuple(one.labels[place] for place in places))] += 1
    assert found == Counter(given_ones)


@given(st.lists(examples(), max_size=20), st.integers(0, 5))
def test_the_seed_alone_decides_the_order(given_ones: list[Example], seed: int) -> None:
    assert pack(given_ones, longest=LONGEST, seed=seed) == pack(given_ones, longest=LONGEST, seed=seed)
