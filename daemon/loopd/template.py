"""template: owns how chats are written for a model: from the model's own chat template to the engine's.

Pure. The Jinja text in a model file is never run: it is only searched for the markers of a family, and the engine's
template for that family is written here. Every family can offer tools, because the engine answers 400 to a request
with tools when the template names none, and a model that never learnt tools is still held to the tool's schema by
constrained decoding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """How one family writes a chat: the engine's (Go) template, and the texts at which an answer ends."""

    name: str
    template: str
    stop: tuple[str, ...]


#: Set for each message: is it the last one? An answer that comes last is left open, so that the model continues it.
_LAST: Final = "{{- $last := eq (len (slice $.Messages $i)) 1 }}"
_EACH: Final = "{{- range $i, $_ := .Messages }}" + _LAST

#: The Hermes manner, which Qwen and the trained default model use. A tool printed without `json` is a Go struct.
_TOOLS_IN_TAGS: Final = """# Tools

Some requests are best met by calling a function. Each line between <tools> and </tools> describes one as JSON:
<tools>
{{- range .Tools }}
{{ json . }}
{{- end }}
</tools>

To call a function, write a JSON object with its name and arguments between <tool_call> and </tool_call>:
<tool_call>
{"name": <function-name>, "arguments": <arguments-object>}
</tool_call>"""

#: For families without a form of their own. The engine takes an answer that begins with "{" for a call.
_TOOLS_AS_JSON: Final = """You can call these functions:
{{- range .Tools }}
{{ json . }}
{{- end }}

To call one, answer with only a JSON object {"name": <function-name>, "parameters": <arguments-object>}."""

_CALL_AS_JSON: Final = (
    '{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}{{ end }}'
)

#: The engine takes the first text below `if .ToolCalls` for the mark of a call in an answer, and gives up at an `if`
#: before it; so what parts the calls comes after each.
_CHATML: Final = (
    """{{- if or .System .Tools }}<|im_start|>system
{{ if .System }}{{ .System }}{{ end }}
{{- if and .System .Tools }}

{{ end }}
{{- if .Tools }}"""
    + _TOOLS_IN_TAGS
    + """{{ end }}<|im_end|>
{{ end }}"""
    + _EACH
    + """
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
%(thought)s{{ .Content }}
{{- if .Content }}{{ with .ToolCalls }}
{{ end }}{{ end }}
{{- $calls := .ToolCalls }}
{{- if .ToolCalls }}{{ range $n, $call := $calls }}<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
</tool_call>{{ if gt (len (slice $calls $n)) 1 }}
{{ end }}{{ end }}
{{- end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- else if eq .Role "tool" }}<|im_start|>user
<tool_response>
{{ .Content }}
</tool_response><|im_end|>
{{ end }}
{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant
%(begin)s{{ end }}
{{- end }}"""
)

_LLAMA3: Final = (
    """{{- if or .System .Tools }}<|start_header_id|>system<|end_header_id|>

{{ if .System }}{{ .System }}{{ end }}
{{- if and .System .Tools }}

{{ end }}
{{- if .Tools }}"""
    + _TOOLS_AS_JSON
    + """{{ end }}<|eot_id|>{{ end }}"""
    + _EACH
    + """
{{- if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>

{{ if .ToolCalls }}"""
    + _CALL_AS_JSON
    + """{{ else }}{{ .Content }}{{ end }}{{ if not $last }}<|eot_id|>{{ end }}
{{- else if eq .Role "tool" }}<|start_header_id|>ipython<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- end }}
{{- if and $last (ne .Role "assistant") }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- end }}"""
)

#: Families that have no system role: system text and tools go before the first user message.
_PREFACE: Final = (
    """{{ if and (or $.System $.Tools) (eq $i $first) }}
{{- if $.System }}{{ $.System }}

{{ end }}
{{- if $.Tools }}{{ with $ }}"""
    + _TOOLS_AS_JSON
    + """{{ end }}

{{ end }}
{{- end }}"""
)
#: The place of the first user message: 0, or after one system message.
_FIRST: Final = (
    "{{- $first := 0 }}{{- $found := false }}"
    '{{- range $i, $_ := .Messages }}{{- if and (eq .Role "user") (not $found) }}'
    "{{- $first = $i }}{{- $found = true }}{{- end }}{{- end }}"
)

_GEMMA: Final = (
    _FIRST
    + _EACH
    + """
{{- if eq .Role "user" }}<start_of_turn>user
"""
    + _PREFACE
    + """{{ .Content }}<end_of_turn>
{{ else if eq .Role "assistant" }}<start_of_turn>model
{{ if .ToolCalls }}"""
    + _CALL_AS_JSON
    + """{{ else }}{{ .Content }}{{ end }}{{ if not $last }}<end_of_turn>
{{ end }}
{{- else if eq .Role "tool" }}<start_of_turn>user
The function answered: {{ .Content }}<end_of_turn>
{{ end }}
{{- if and $last (ne .Role "assistant") }}<start_of_turn>model
{{ end }}
{{- end }}"""
)

_MISTRAL: Final = (
    _FIRST
    + _EACH
    + """
{{- if eq .Role "user" }}
{{- if and $last $.Tools }}[AVAILABLE_TOOLS] {{ $.Tools }}[/AVAILABLE_TOOLS]{{ end }}[INST] {{ if and $.System \
(eq $i $first) }}{{ $.System }}

{{ end }}{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }}
{{- if .ToolCalls }}[TOOL_CALLS] [
{{- range $n, $call := .ToolCalls }}{{ if $n }}, {{ end }}{"name": "{{ .Function.Name }}", \
"arguments": {{ .Function.Arguments }}}{{ end }}]
{{- else }} {{ .Content }}{{ end }}{{ if not $last }}</s>{{ end }}
{{- else if eq .Role "tool" }}[TOOL_RESULTS] {"content": {{ json .Content }}}[/TOOL_RESULTS]
{{- end }}
{{- end }}"""
)

_LLAMA2: Final = (
    _FIRST
    + _EACH
    + """
{{- if eq .Role "user" }}[INST] {{ if and (or $.System $.Tools) (eq $i $first) }}<<SYS>>
{{ if $.System }}{{ $.System }}
{{ end }}
{{- if $.Tools }}{{ with $ }}"""
    + _TOOLS_AS_JSON
    + """{{ end }}
{{ end }}<</SYS>>

{{ end }}{{ .Content }} [/INST]
{{- else if eq .Role "assistant" }} {{ if .ToolCalls }}"""
    + _CALL_AS_JSON
    + """{{ else }}{{ .Content }}{{ end }}{{ if not $last }} </s><s>{{ end }}
{{- else if eq .Role "tool" }}[INST] The function answered: {{ .Content }} [/INST]
{{- end }}
{{- end }}"""
)

#: Turns of the form <|role|> text end, each piece set by the family.
_TAGGED: Final = (
    """{{- if or .System .Tools }}%(system)s{{ if .System }}{{ .System }}{{ end }}
{{- if and .System .Tools }}

{{ end }}
{{- if .Tools }}"""
    + _TOOLS_AS_JSON
    + """{{ end }}%(end)s{{ end }}"""
    + _EACH
    + """
{{- if eq .Role "user" }}%(user)s{{ .Content }}%(end)s
{{- else if eq .Role "assistant" }}%(assistant)s{{ if .ToolCalls }}"""
    + _CALL_AS_JSON
    + """{{ else }}{{ .Content }}{{ end }}{{ if not $last }}%(end)s{{ end }}
{{- else if eq .Role "tool" }}%(user)sThe function answered: {{ .Content }}%(end)s
{{- end }}
{{- if and $last (ne .Role "assistant") }}%(assistant)s{{ end }}
{{- end }}"""
)


def _said(text: str) -> str:
    """Write a text as a Go string action: what a model file names must not become template code, nor be trimmed."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"


def _tagged(turn: str, end: str) -> str:
    pieces = {role: _said(turn.format(role)) for role in ("system", "user", "assistant")}
    return _TAGGED % {**pieces, "end": _said(end)}


def _chatml(_: str) -> ChatFormat:
    template = _CHATML % {"thought": "", "begin": ""}
    return ChatFormat(name="chatml", template=template, stop=("<|im_end|>", "<|im_start|>"))


def _chatml_thinking(_: str) -> ChatFormat:
    # The engine finds the tags around .Thinking and splits thoughts from the answer by them.
    thought = "{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}"
    begin = "{{ if and $.IsThinkSet (not $.Think) }}<think>\n\n</think>\n\n{{ end }}"
    template = _CHATML % {"thought": thought, "begin": begin}
    return ChatFormat(name="chatml-thinking", template=template, stop=("<|im_end|>", "<|im_start|>"))


def _llama3(_: str) -> ChatFormat:
    return ChatFormat(name="llama3", template=_LLAMA3, stop=("<|eot_id|>", "<|eom_id|>", "<|start_header_id|>"))


def _gemma(_: str) -> ChatFormat:
    return ChatFormat(name="gemma", template=_GEMMA, stop=("<end_of_turn>", "<start_of_turn>"))


def _mistral(_: str) -> ChatFormat:
    return ChatFormat(name="mistral", template=_MISTRAL, stop=("[INST]", "</s>"))


def _llama2(_: str) -> ChatFormat:
    return ChatFormat(name="llama2", template=_LLAMA2, stop=("[INST]", "</s>"))


def _phi4(_: str) -> ChatFormat:
    template = _tagged("<|im_start|>{}<|im_sep|>", "<|im_end|>")
    return ChatFormat(name="phi4", template=template, stop=("<|im_end|>", "<|im_start|>"))


def _phi3(_: str) -> ChatFormat:
    return ChatFormat(name="phi3", template=_tagged("<|{}|>\n", "<|end|>\n"), stop=("<|end|>", "<|user|>"))


def _zephyr(end: str) -> ChatFormat:
    return ChatFormat(name="zephyr", template=_tagged("<|{}|>\n", f"{end}\n"), stop=(end, "<|user|>"))


def _plain(_: str) -> ChatFormat:
    return ChatFormat(name="plain", template=_tagged("{}: ", "\n\n"), stop=("\nuser:", "\nassistant:"))


#: In this order: the first family all of whose markers are in the model's template is taken.
_FAMILIES: Final[tuple[tuple[tuple[str, ...], Callable[[str], ChatFormat]], ...]] = (
    (("<|im_start|>", "<|im_sep|>"), _phi4),
    (("<|im_start|>", "enable_thinking"), _chatml_thinking),
    (("<|im_start|>",), _chatml),
    (("<|start_header_id|>",), _llama3),
    (("<start_of_turn>",), _gemma),
    (("[INST]", "<<SYS>>"), _llama2),
    (("[INST]",), _mistral),
    (("<|assistant|>", "<|end|>"), _phi3),
    (("<|assistant|>",), _zephyr),
)
#: For a file without a template, what its end token gives away.
_BY_END: Final[dict[str, Callable[[str], ChatFormat]]] = {
    "<|im_end|>": _chatml,
    "<|eot_id|>": _llama3,
    "<end_of_turn>": _gemma,
    "<|end|>": _phi3,
}
_DEFAULT_END: Final = "</s>"


def chat_format(chat_template: str | None, *, eos_text: str | None = None, eot_text: str | None = None) -> ChatFormat:
    """Return how to write chats for a model, by its Jinja template and its end tokens' texts; never fails.

    A template of no known family, or none, gives the "plain" format. The end tokens are always among the stop texts.
    """
    ends = [text for text in (eot_text, eos_text) if text]
    family: Callable[[str], ChatFormat] | None = None
    if chat_template:
        family = next((make for marks, make in _FAMILIES if all(mark in chat_template for mark in marks)), None)
    else:
        family = next((_BY_END[end] for end in ends if end in _BY_END), None)
    chat = (family or _plain)(eos_text or _DEFAULT_END)
    return ChatFormat(name=chat.name, template=chat.template, stop=tuple(dict.fromkeys([*chat.stop, *ends])))
