from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loopbox_trainer.dedup import MOST_COMPARED, MinHash, join_near
from loopbox_trainer.split import Components

LONG = "今日は天気がいいですね散歩に行きましょう朝から雨が降って風も強いので家の中で本を読む"
WORDS = [f"w{n}" for n in range(400)]
texts = st.lists(st.lists(st.sampled_from(WORDS[:30]), max_size=30).map(" ".join), min_size=1, max_size=40)


def components(some: list[str], threshold: float = 0.8) -> Components:
    made = Components(len(some))
    join_near(made, MinHash().signatures(some), threshold)
    return made


def survivors(some: list[str], threshold: float = 0.8) -> list[str]:
    made = components(some, threshold)
    return [text for place, text in enumerate(some) if made.root(place) == place]


def triples(text: str) -> set[tuple[str, ...]]:
    words = [*text.split(), "", ""]
    return {tuple(words[n : n + 3]) for n in range(len(words) - 2)}


@given(texts, st.sampled_from([0.5, 0.7, 0.8, 0.95]))
def test_a_second_pass_finds_nothing(some: list[str], threshold: float) -> None:
    once = survivors(some, threshold)
    assert survivors(once, threshold) == once


@given(texts)
def test_equal_texts_are_one_and_every_row_has_a_survivor(some: list[str]) -> None:
    made = components(some)
    assert {made.root(place) for place in range(len(some))} == {p for p in range(len(some)) if made.root(p) == p}
    for place, text in enumerate(some):
        assert made.root(place) == made.root(some.index(text))


@given(texts)
def test_what_one_batch_holds_changes_no_signature(some: list[str]) -> None:
    together = MinHash().signatures(some)
    alone = np.concatenate([MinHash().signatures([text]) for text in some])
    assert (together == alone).all()


def test_minima_tell_how_alike_two_texts_are() -> None:
    pick = random.Random(1)  # noqa: S311 made-up words
    for changed in (0, 2, 5, 12, 25):
        one = pick.choices(WORDS, k=100)
        other = list(one)
        for place in pick.sample(range(100), changed):
            other[place] = "other"
        first, second = triples(" ".join(one)), triples(" ".join(other))
        jaccard = len(first & second) / len(first | second)
        told = MinHash().signatures([" ".join(one), " ".join(other)])
        assert abs((told[0] == told[1]).mean() - jaccard) < 0.15


def test_few_near_copies_are_missed_and_few_others_taken() -> None:
    pick = random.Random(2)  # noqa: S311 made-up words
    originals = [" ".join(pick.choices(WORDS, k=60)) for _ in range(400)]
    copies = [f"{text} again" for text in originals]
    assert len(survivors(originals)) == 400
    assert len(survivors(originals + copies)) < 405


def test_a_bucket_with_more_than_can_be_compared_is_one() -> None:
    many = ["the very same words here " + " ".join(["x"] * 3)] * (MOST_COMPARED + 1)
    assert len(survivors(many)) == 1


def test_scripts_without_spaces_are_compared_by_character() -> None:
    assert (
        len(
            survivors(
                [
                    LONG,
                    LONG + "か",
                    "全く別の話です",
                ]
            )
        )
        == 2
    )


def test_signatures_do_not_depend_on_the_process() -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from loopbox_trainer.dedup import MinHash\n"
        "print(MinHash().signatures(['some words of a text'])[0, :5].tolist())"
    )
    paths = [path for path in sys.path if path]
    told = {
        subprocess.run(
            [sys.executable, "-c", program, *paths],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {f"{MinHash().signatures(['some words of a text'])[0, :5].tolist()}\n"}
