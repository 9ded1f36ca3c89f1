"""What may leave: no control characters, no marks of chat templates, valid Unicode, the same however it was cut."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopbox_agent.clean import _LONGEST, StreamShow, _Clean, defuse, show

TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>",
    "<|python_tag|>", "<|reserved_special_token_12|>", "<start_of_turn>", "<end_of_turn>", "<unused7>", "<tool_call>",
    "</tool_call>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "<<SYS>>", "<</SYS>>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cUser\uff5c>",
)  # fmt: skip
LEFT = (
    "Two lines\nand a\ttab.",
    "a < b | c > d, <b>bold</b>, <s>struck</s>, List<int> x = a[i] << 2;",
    "[link](https://example.com) [1] [x] [INSTALL] <|> <||> f <| x |> g",
    "family \U0001f468\u200d\U0001f469\u200d\U0001f467, \u0645\u0631\u062d\u0628\u0627, 機械学習, Größe",
    "<|this name has spaces|>",
)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\ufdd0]")


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_named_but_none_any_more(token: str) -> None:
    shown = show(f"before {token} after").text
    assert token not in shown
    assert shown.startswith("before [control:")
    assert shown.endswith("] after")


@pytest.mark.parametrize("text", LEFT)
def test_what_is_no_token_stays(text: str) -> None:
    assert show(text).text == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31mc\x7f\x85d\r\ne", "ab[31mcd\ne"),
        ("\ud83d\ude00", "\U0001f600"),
        ("x\ud83dy\ude00", "x\ufffdy\ufffd"),
        ("\ud83d\x00\ude00 \ufffe\ufdd0.", "\U0001f600 ."),
        ("<|im\x07_end|>", "[control:im_end]"),
        ("<|im_<|im_end|>end|>", "<|im_[control:im_end]end|>"),
    ],
)
def test_what_can_not_be_shown_goes(text: str, shown: str) -> None:
    assert show(text).text == shown
    assert defuse(text) == shown


FRAGMENTS = st.one_of(
    st.sampled_from([*TOKENS, *LEFT]),
    st.sampled_from(["<", "|", "<|", "|>", "<<", "[", "]", "/", "im_end", "SYS", "INST", ">", "\x00", "\r", " "]),
    st.sampled_from(["\ud83d", "\ude00", "\ufffe", "password=", "hunter22", "\uff5c", "x" * 50]),
    st.text(max_size=8),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(FRAGMENTS, max_size=10), st.randoms(use_true_random=False))
def test_a_stream_shows_what_the_whole_would(fragments: list[str], choose: random.Random) -> None:
    text = "".join(fragments)
    whole = show(text)
    stream = StreamShow()
    shown, at = "", 0
    while at < len(text):
        size = choose.choice((1, 2, 5, 17))
        shown += stream.feed(text[at : at + size])
        at += size
        assert whole.text.startswith(shown)  # what has been sent can't be taken back
    shown += stream.flush()
    assert (shown, tuple(stream.found)) == (whole.text, whole.found)
    assert not CONTROL.search(shown)
    assert not any(token in shown for token in TOKENS)
    assert shown.encode().decode() == shown
    assert defuse(shown) == shown


@given(st.text(alphabet="<|>im_[/]SY\r\x00", max_size=200))
def test_only_a_tokens_length_is_held_back(text: str) -> None:
    cleaning = _Clean()
    for char in text:
        cleaning.feed(char)
        assert cleaning.held <= _LONGEST + 1  # and half of a surrogate pair
    assert defuse(defuse(text)) == defuse(text)
