"""Long outputs: what is shown, what is told of the rest, where the whole is."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from loopbox_agent.outputs import cut, fit

texts = st.text(alphabet=st.sampled_from("ab\né☃\U0001f600"), max_size=400)


@given(texts, st.integers(8, 200), st.integers(2, 20))
@example("\n\n", 8, 2)  # head and tail meet
def test_a_cut_is_the_start_and_the_end_and_nothing_is_unaccounted_for(text: str, most: int, lines: int) -> None:
    made = cut(text, max_bytes=most, max_lines=lines)
    if made.whole:
        assert made.head == text
        assert len(text.encode()) <= most
        return
    assert text.startswith(made.head)
    assert text.endswith(made.tail)
    shown = len(made.head.encode()) + len(made.tail.encode())
    assert shown <= most
    assert made.head.count("\n") + made.tail.count("\n") <= lines + 1
    # What is between is told, but for halves of characters at the two cuts.
    assert 0 <= len(text.encode()) - shown - made.left_bytes <= 6


def test_cuts_fall_on_line_ends_where_there_are_some() -> None:
    text = "".join(f"line {n}\n" for n in range(1000))
    made = cut(text, max_bytes=200, max_lines=100)
    assert made.head.endswith("\n")
    assert made.tail.startswith("line ")
    assert made.tail.endswith("line 999\n")


async def test_a_long_output_is_kept_and_the_model_told_where() -> None:
    kept: dict[str, str] = {}

    async def keep(name: str, text: str) -> str:
        kept[name] = text
        return "outputs/1.txt; read it with read_file"

    text = "start\n" + "x" * 100_000 + "\nend"
    shown = await fit("bash", text, keep)
    assert kept == {"bash": text}
    assert not shown.whole
    assert shown.reference == "outputs/1.txt; read it with read_file"
    assert shown.text.startswith("start\n")
    assert shown.text.endswith("end")
    assert "bytes in" in shown.text
    assert "outputs/1.txt" in shown.text
    assert len(shown.text) < 17_000


async def test_a_short_output_is_shown_as_it_is_and_not_kept() -> None:
    async def keep(name: str, text: str) -> str:
        raise AssertionError("not to be kept")

    assert (await fit("bash", "short\n", keep)).text == "short\n"


async def test_an_output_that_cannot_be_kept_is_shown_in_part_and_told_so() -> None:
    async def keep(name: str, text: str) -> str:
        raise OSError("disk full")

    for how in (keep, None):
        shown = await fit("bash", "y" * 100_000, how)
        assert "was not kept" in shown.text
        assert shown.reference == ""


async def test_half_a_character_of_a_stranger_breaks_nothing() -> None:
    shown = await fit("x", "a\ud800b", None)
    assert shown.text.encode() == b"a?b"
