"""chat_format: owns how a conversation is written for the model, byte for byte as by the engine, and what is learnt.

The serving engine renders its Go template; this module writes the same text in Python, so that nothing is trained
that is not served. The engine's habits are part of that text: a tool's schema keeps only the keywords it knows,
properties and arguments are sorted, JSON is compact with ``<``, ``>`` and ``&`` escaped, neighbours of one role are
merged. Text of the template's own marks in a message is a control token here as there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Protocol

END: Final = "<|im_end|>"
START: Final = "<|im_start|>"
STOP: Final = (END, START)
IGNORED: Final = -100  #: the label of a token that is not learnt
MOST_DEPTH: Final = 64

_INTRODUCTION: Final = """# Tools

Some requests are best met by calling a function. Each line between <tools> and </tools> describes one as JSON:
<tools>
"""
_HOW_TO_CALL: Final = """
</tools>

To call a function, write a JSON object with its name and arguments between <tool_call> and </tool_call>:
<tool_call>
{"name": <function-name>, "arguments": <arguments-object>}
</tool_call>"""

#: The engine's template of the same text; loopd takes the same one for every ChatML model (a test compares them).
TEMPLATE: Final = (
    """{{- if or .System .Tools }}<|im_start|>system
{{ if .System }}{{ .System }}{{ end }}
{{- if and .System .Tools }}

{{ end }}
{{- if .Tools }}"""
    + _INTRODUCTION.removesuffix("\n")
    + """
{{- range .Tools }}
{{ json . }}
{{- end }}"""
    + _HOW_TO_CALL
    + """{{ end }}<|im_end|>
{{ end }}{{- range $i, $_ := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ .Content }}
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
{{ end }}
{{- end }}"""
)


class UnfitError(ValueError):
    """A conversation that the engine would refuse, or would write without a part of it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call."""

    name: str
    arguments: Mapping[str, Any]  #: Any: JSON


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the text, and whether the model learns to write it."""

    text: str
    learnt: bool = False


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the tokens of a text, in which the marks of turns are single ones."""


def message_of(told: Mapping[str, Any]) -> Message:
    """Return a row's message. Any: JSON of the rows' form. Raises UnfitError."""
    try:
        calls = tuple(Call(str(one["name"]), dict(one["arguments"])) for one in told.get("tool_calls") or ())
        return Message(str(told["role"]), str(told.get("content") or ""), calls)
    except (KeyError, TypeError, ValueError) as error:
        raise UnfitError(f"a message lacks its role, or a call its name or arguments: {error}") from error


def preface(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
    """Return the system turn, with the tools in it; empty for none of both. Any: JSON schemas. Raises UnfitError."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    if not system and not tools:
        return ""
    told = _INTRODUCTION + "\n".join(map(tool_json, tools)) + _HOW_TO_CALL if tools else ""
    return f"{START}system\n{system}{chr(10) * 2 if system and tools else ''}{told}{END}\n"


def turns(messages: Sequence[Message]) -> Iterator[Span]:
    """Yield what follows the system turn, every turn closed; what an assistant writes is learnt, its end too.

    Raises UnfitError for an assistant's calls that merging with its message before would lose.
    """
    for message in _merged(messages):
        match message.role:
            case "user":
                yield Span(f"{START}user\n{message.content}{END}\n")
            case "tool":
                yield Span(f"{START}user\n<tool_response>\n{message.content}\n</tool_response>{END}\n")
            case "assistant":
                yield Span(f"{START}assistant\n")
                yield Span(answer_text(message) + END, learnt=True)
                yield Span("\n")


def prompt(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the text that the engine gives to the model when it is asked. Any: JSON schemas. Raises UnfitError."""
    text = preface(messages, tools) + "".join(span.text for span in turns(messages))
    if messages and messages[-1].role == "assistant":
        return text.removesuffix(f"{END}\n")  # left open: the model continues it
    return text + f"{START}assistant\n"


def answer_text(message: Message) -> str:
    """Return what the model writes for a message: words, then calls."""
    calls = "\n".join(call_text(call) for call in message.calls)
    return message.content + ("\n" if message.content and calls else "") + calls


def call_text(call: Call) -> str:
    """Return one call as the model writes it."""
    return f'<tool_call>\n{{"name": "{call.name}", "arguments": {go_json(dict(call.arguments))}}}\n</tool_call>'


def encode(spans: Sequence[Span], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the tokens and their labels. Learnt spans are cut off from what stands before, as in generation."""
    tokens: list[int] = []
    labels: list[int] = []
    waiting = ""
    for span in spans:
        if not span.learnt:
            waiting += span.text
            continue
        for text, learnt in ((waiting, False), (span.text, True)):
            new = tokenizer.encode(text, add_special_tokens=False) if text else []
            tokens += new
            labels += new if learnt else [IGNORED] * len(new)
        waiting = ""
    # What follows the last learnt token teaches nothing.
    return tokens, labels


def tool_json(tool: Mapping[str, Any]) -> str:
    """Return a tool as the engine tells it to the model. Any: JSON schemas. Raises UnfitError."""
    schema = tool.get("parameters") or {}
    if not isinstance(schema, Mapping):
        raise UnfitError(f"the parameters of {tool.get('name')!r} are no JSON schema")
    properties = schema.get("properties")
    parameters: dict[str, Any] = {"type": schema.get("type", "")}
    parameters |= {"$defs": _sorted(schema["$defs"])} if schema.get("$defs") is not None else {}
    parameters |= {"items": _sorted(schema["items"])} if schema.get("items") is not None else {}
    parameters |= {"required": list(schema["required"])} if schema.get("required") else {}
    parameters["properties"] = None if properties is None else {k: _property(properties[k]) for k in sorted(properties)}
    function = {"name": tool["name"], "description": tool.get("description") or "", "parameters": parameters}
    return go_json({"type": "function", "function": function}, ordered=True)


def _property(told: Any, depth: int = 0) -> dict[str, Any]:  # Any: JSON
    """Return the keywords that the engine keeps of a property, in its order."""
    if not isinstance(told, Mapping) or depth > MOST_DEPTH:
        raise UnfitError("a property of a tool's schema is no object, or nested too deep")
    kept: dict[str, Any] = {}
    if told.get("anyOf"):
        kept["anyOf"] = [_property(one, depth + 1) for one in told["anyOf"]]
    if kind := told.get("type"):
        kept["type"] = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
    if told.get("items") is not None:
        kept["items"] = _sorted(told["items"])
    if told.get("description"):
        kept["description"] = told["description"]
    if told.get("enum"):
        kept["enum"] = [_sorted(one) for one in told["enum"]]
    if told.get("properties") is not None:
        kept["properties"] = {key: _property(one, depth + 1) for key, one in told["properties"].items()}
    if told.get("required"):
        kept["required"] = list(told["required"])
    return kept


def _sorted(value: Any) -> Any:  # Any: JSON
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(one) for one in value] if isinstance(value, list) else value


_ESCAPED: Final = re.compile("[<>&\u2028\u2029]")


def go_json(value: Any, *, ordered: bool = False) -> str:
    """Return JSON as Go writes it: compact, keys sorted unless ``ordered``, every number a float64. Any: JSON.

    Raises UnfitError.
    """
    try:
        text = _write(value if ordered else _sorted(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise UnfitError(f"a value is no JSON: {error}") from error
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _write(value: Any) -> str:  # Any: JSON
    match value:
        case None | bool() | str():
            return json.dumps(value, ensure_ascii=False)
        case int() | float():
            return _number(float(value))
        case Mapping():
            return "{" + ",".join(f"{_write(str(key))}:{_write(one)}" for key, one in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_write, value)) + "]"
    raise TypeError(type(value).__name__)


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError("a number is not finite")
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    if 1e-6 <= abs(value) < 1e21:  # noqa: PLR2004 - where Go changes to exponents
        text = format(Decimal(repr(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa.removesuffix('.0')}e{exponent[0]}{exponent[1:].lstrip('0')}"


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Return the messages as the engine puts them together: neighbours of one role are one, but for tools' results."""
    merged: list[Message] = []
    for message in messages:
        before = merged[-1] if merged else None
        if before is None or before.role != message.role or message.role == "tool":
            merged.append(message)
        elif message.calls:
            raise UnfitError("an assistant's message with calls follows another one; the engine would lose the calls")
        else:
            merged[-1] = Message(before.role, f"{before.content}\n\n{message.content}", before.calls)
    return merged
