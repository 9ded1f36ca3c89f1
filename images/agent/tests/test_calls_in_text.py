"""Tool calls that a model wrote as text: each dialect, what stays text, and that no cut of the stream matters."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loopbox_agent.calls_in_text import (
    LONGEST,
    MAX_CALLS,
    MAX_THOUGHT_TAG,
    CallFilter,
    FoundCall,
    Piece,
    Text,
    Thought,
    parse_calls,
)

OFFERED = ("python", "read_file", "get.weather")
ARGS = {"code": 'print("a}b")\n# </tool_call> ```', "n": [1, {"x": None}]}
CALL = FoundCall("python", ARGS)  # type: ignore[arg-type]  # JSON, which the checker takes for too narrow
BODY = json.dumps({"name": "python", "arguments": ARGS})


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{BODY}\n</tool_call>",
        f"<tool_call>{BODY}",
        f"<tool_call>[{BODY}]</tool_call>",
        f"<tool_call>\n{BODY}}}\n</tool_call>",
        f"```json\n{BODY}\n```",
        f"```\n{BODY}\n```",
        f"```tool_call\n[{BODY}]\n```",
        BODY,
        f"[{BODY}]",
        f"\n  {BODY}\n",
        json.dumps({"name": "python", "parameters": ARGS}),
        json.dumps({"parameters": ARGS, "name": "python"}),
        json.dumps({"type": "function", "function": {"name": "python", "arguments": json.dumps(ARGS)}}),
        f"<|python_tag|>{BODY}<|eom_id|>",
        f"<|python_tag|>{BODY}",
        f"[TOOL_CALLS][{BODY}]",
        f"[TOOL_CALLS] [{BODY}]",
        f"[TOOL_CALLS]python[ARGS]{json.dumps(ARGS)}",
        f"[TOOL_CALLS]python{json.dumps(ARGS)}",
        f"<function=python>{json.dumps(ARGS)}</function>",
        f"<function=python>{json.dumps(ARGS)}",
    ],
)
def test_each_dialect_is_read(text: str) -> None:
    assert parse_calls(text, OFFERED) == [CALL]
    assert parse_calls(f"I look.\n{text}\nDone.", OFFERED) in (
        [Text("I look."), CALL, Text("Done.")],
        [Text("I look.\n"), CALL, Text("\nDone.")],
    )
    assert parse_calls(text, ("other",))[0] == Text(text)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<tool_call>{BODY}</tool_call>\n<tool_call>{BODY}</tool_call>", 2),
        (f"<tool_call>{BODY}\n{BODY}</tool_call>", 2),
        (f"<|python_tag|>{BODY}; {BODY}", 2),
        (f"[TOOL_CALLS][{BODY}, {BODY}]", 2),
        (f"{BODY}\n{BODY}\n{BODY}", 3),
        (f"```json\n{BODY}\n```\n\n```json\n{BODY}\n```", 2),
        ('<tool_call>{"name": "python"}</tool_call>', 1),
        ('<tool_call>{"name": "get.weather", "arguments": null}</tool_call>', 1),
    ],
)
def test_several_calls_and_calls_without_arguments(text: str, calls: int) -> None:
    found = parse_calls(text, OFFERED)
    assert len(found) == calls
    assert all(isinstance(piece, FoundCall) for piece in found)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<tool_call>{'name': 'python', 'arguments': {'code': 'x'}}</tool_call>", {"code": "x"}),
        ('<tool_call>{"name": "python", "arguments": {"code": "x",}}</tool_call>', {"code": "x"}),
        ('<tool_call>{"name": "python", "arguments": {"code": "x"}</tool_call>', {"code": "x"}),
        ('<tool_call>{"name": "python", "arguments": {"code": "x}}</tool_call>', {"code": "x"}),
        ('<function=python>{"code": "x"</function>', {"code": "x"}),
    ],
)
def test_broken_json_is_mended_once(text: str, arguments: dict[str, str]) -> None:
    """Guards the slips that small models make most: quotes, commas, a brace too few."""
    assert parse_calls(text, OFFERED) == [FoundCall("python", dict(arguments))]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "Hello {name}, [1] and `code` <b>",
        '{"name": "Ada", "arguments": {}}',
        '{"name": "python", "age": 30}',
        '{"name": "python"}',
        '{"city": "Paris"}',
        '[{"city": "Paris"}]',
        f"Write {BODY} to call it.",
        f"{BODY} is what I would call.",
        f"```json\n{BODY[:-3]}",
        f"<tool_call>{BODY[:-3]}",
        f"[TOOL_CALLS][{BODY}",
        "<tool_call>soon</tool_call>",
        "<|python_tag|>print(1)",
        "<function=rm>{}</function>",
        "```python\nprint({})\n```",
        "<tool_call",
        "`",
        "[TOOL",
        '{"',
    ],
)
def test_all_else_stays_text(text: str) -> None:
    """Guards against running a call that was cut off, an example in a sentence, or a tool that was not offered."""
    assert parse_calls(text, OFFERED) == ([Text(text)] if text else [])


def test_a_thought_is_no_answer_and_holds_no_call() -> None:
    text = f"\n<think>I could {BODY}\n{BODY}\n</think>\n\nNo."
    assert parse_calls(text, OFFERED) == [Thought(f"I could {BODY}\n{BODY}\n"), Text("No.")]
    assert parse_calls("<think>and then", OFFERED) == [Thought("and then")]
    assert parse_calls("Say <think> twice", ()) == [Text("Say <think> twice")]


MARKS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<|python_tag|>", "<|eom_id|>", "[TOOL_CALLS]", "[ARGS]", "<function=python>",
        "</function>", "```json\n", "```", "\n", " ", "{", "}", "[", "]", '"', "\\", ",", ";", "<think>", "</think>",
        "python", "name", '{"name": "python", "arguments": {', '{"name": "python", "arguments": {}}', BODY, "é", "word",
        '{"name": "', '"arguments": ', ": ",
    ]
)  # fmt: skip
TEXTS = st.lists(MARKS | st.text(max_size=3), max_size=14).map("".join)


def merged(pieces: list[Piece]) -> list[Piece]:
    told: list[Piece] = []
    for piece in pieces:
        last = told[-1] if told else None
        if isinstance(piece, Text) and isinstance(last, Text):
            told[-1] = Text(last.text + piece.text)
        elif isinstance(piece, Thought) and isinstance(last, Thought):
            told[-1] = Thought(last.text + piece.text)
        else:
            told.append(piece)
    return told


# What stands right after the longest that a call may be, and a thought's tag that comes after as much space as may be.
@example(text='<function=python>{"a": "] </function> >', cuts=[], longest=38)
@example(text='<function=python>{"a": "] </function> <tool_call>', cuts=[], longest=40)
@example(text=" " * MAX_THOUGHT_TAG + "<think>Hm</think>", cuts=[], longest=LONGEST)
@example(text=" " * (MAX_THOUGHT_TAG + 1) + "<think>Hm</think>", cuts=[], longest=LONGEST)
@example(text='{"name": "python", "arguments": {"```json```{"}}', cuts=[], longest=LONGEST)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=12), longest=st.sampled_from([40, 200, LONGEST]))
@settings(max_examples=1500)
def test_any_cut_of_the_stream_gives_the_same(text: str, cuts: list[int], longest: int) -> None:
    def run(parts: list[str]) -> list[Piece]:
        filtered = CallFilter(OFFERED, longest=longest)
        return merged([piece for part in parts for piece in filtered.feed(part)] + filtered.close())

    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    whole = run([text])
    assert run([text[a:b] for a, b in itertools.pairwise(bounds)]) == whole
    assert run(list(text)) == whole


@given(text=TEXTS)
@settings(max_examples=400, deadline=None)
def test_text_without_a_call_is_kept_letter_by_letter(text: str) -> None:
    pieces = parse_calls(text, ("nothing",))
    if not any(isinstance(piece, Thought) for piece in pieces) and not text.lstrip().startswith("<think>"):
        assert "".join(piece.text for piece in pieces if isinstance(piece, Text)) == text


def test_words_come_at_once() -> None:
    """Guards the stream: only what may become a call waits."""
    filtered = CallFilter(OFFERED)
    assert filtered.feed("Hello") == [Text("Hello")]
    assert filtered.feed(" {x") == [Text(" {x")]
    assert filtered.feed('\n{"city') == []
    assert filtered.feed('": "Paris", ') == [Text('\n{"city": "Paris",')]
    assert filtered.close() == [Text(" ")]


@pytest.mark.parametrize(
    "seed", ["<tool_call>{", '{"arguments":\n', "[TOOL_CALLS][", "```json\n{", "{\n", '<tool_call>{"a', "```\n"]
)
def test_a_flood_of_openings_costs_little(seed: str) -> None:
    """Guards against an answer that makes the parser look at the same text over and over."""
    text = seed * (100_000 // len(seed))
    filtered = CallFilter(OFFERED)
    begun = time.perf_counter()
    pieces = [p for at in range(0, len(text), 4) for p in filtered.feed(text[at : at + 4])] + filtered.close()
    assert time.perf_counter() - begun < 5
    assert "".join(p.text for p in pieces if isinstance(p, Text)) == text


def test_no_answer_has_more_calls_than_may_be() -> None:
    pieces = parse_calls("\n".join([BODY] * (MAX_CALLS + 5)), OFFERED)
    assert sum(isinstance(piece, FoundCall) for piece in pieces) == MAX_CALLS
