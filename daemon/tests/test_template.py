"""Which family a model's template belongs to, and what is always true of the result."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.template import _BY_END, _FAMILIES, ChatFormat, chat_format

SMOLLM2 = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
)
KNOWN = [
    (SMOLLM2, "chatml", "<|im_end|>"),
    ("{{'<|im_start|>'}}{% if enable_thinking %}<think>{% endif %}", "chatml-thinking", "<|im_end|>"),
    ("{{'<|im_start|>user<|im_sep|>'}}", "phi4", "<|im_end|>"),
    ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>", "llama3", "<|eot_id|>"),
    ("<start_of_turn>model", "gemma", "<end_of_turn>"),
    ("[INST] <<SYS>>", "llama2", "</s>"),
    ("[AVAILABLE_TOOLS][INST]", "mistral", "</s>"),
    ("<|user|>{{x}}<|end|><|assistant|>", "phi3", "<|end|>"),
    ("<|user|>{{x}}{{ eos_token }}<|assistant|>", "zephyr", "</s>"),
    ("### Instruction: {{x}}", "plain", "\nuser:"),
    (None, "plain", "\nuser:"),
]


@pytest.mark.parametrize(("jinja", "name", "stop"), KNOWN)
def test_a_family_is_known_by_its_markers(jinja: str | None, name: str, stop: str) -> None:
    """Guards the order of the table: the marks of one family contain those of another."""
    chat = chat_format(jinja)
    assert chat.name == name
    assert stop in chat.stop


def test_every_family_has_a_row_above() -> None:
    """Guards this test file against a family added without a test."""
    made = {make("</s>").name for _, make in _FAMILIES} | {make("</s>").name for make in _BY_END.values()}
    assert made <= {name for _, name, _ in KNOWN}


@pytest.mark.parametrize(
    ("end", "name"),
    [("<|im_end|>", "chatml"), ("<|eot_id|>", "llama3"), ("<end_of_turn>", "gemma"), ("<|end|>", "phi3")],
)
def test_without_a_template_the_end_token_tells(end: str, name: str) -> None:
    """Converted fine-tunes often lose their template but keep their tokens."""
    assert chat_format(None, eos_text=end).name == name
    assert chat_format(None, eos_text="</s>", eot_text=end).name == name


def test_the_end_tokens_are_stop_texts_once() -> None:
    """Guards against answers that run on, and against the same word twice."""
    chat = chat_format(SMOLLM2, eos_text="<|im_end|>", eot_text="<|over|>")
    assert chat.stop.count("<|im_end|>") == 1
    assert "<|over|>" in chat.stop


def all_formats() -> list[ChatFormat]:
    return [chat_format(jinja) for jinja, _, _ in KNOWN]


@pytest.mark.parametrize("chat", all_formats(), ids=lambda chat: chat.name)
def test_every_template_takes_messages_and_tools(chat: ChatFormat) -> None:
    """Without .Tools the engine answers 400 to a request with tools; without .Messages it forgets all but one turn."""
    for field in (".Messages", ".Tools", ".ToolCalls", ".System", ".Content"):
        assert field in chat.template
    opened = len(re.findall(r"{{-? ?(?:if|range|with) ", chat.template))
    closed = len(re.findall(r"{{-? ?end ?-?}}", chat.template))
    assert opened == closed
    assert "%(" not in chat.template


def test_an_end_token_cannot_become_template_code() -> None:
    """An end token's text comes from the model file, which anyone may have written."""
    chat = chat_format("<|user|><|assistant|>", eos_text='{{ .Evil }}"\n')
    assert chat.name == "zephyr"
    assert r'{{ "{{ .Evil }}\"\n\n" }}' in chat.template


@given(jinja=st.none() | st.text(), eos=st.none() | st.text(max_size=20), eot=st.none() | st.text(max_size=20))
def test_any_text_gives_a_format(jinja: str | None, eos: str | None, eot: str | None) -> None:
    """Guards against a model file whose template makes loopd raise."""
    chat = chat_format(jinja, eos_text=eos, eot_text=eot)
    assert chat.template
    assert all(chat.stop)
