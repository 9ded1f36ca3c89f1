"""chat_forms: owns reading others' lists of messages: OpenAI's and Ollama's chat bodies, and ShareGPT's turns. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from loopbox_trainer.rows import Call, Message, Role, RowError, Tool

Record = Mapping[str, Any]  # Any: JSON of others

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


def messages_of_chat(record: Record) -> tuple[Message, ...]:
    """Return the messages of a chat body, the answer that may stand beside it last. Raises RowError."""
    body = _body(record)
    told: list[Any] = list(body["messages"])  # Any: JSON
    answer = record.get("response")
    if isinstance(answer, Mapping):
        told.append(answer["message"] if "message" in answer else answer["choices"][0]["message"])
    names: dict[str, str] = {}  # of the tool, by the id of its call
    return tuple(_message(one, names) for one in told)


def tools_of_chat(record: Record) -> tuple[Tool, ...]:
    """Return the tools of a chat body, a ShareGPT record or a list of our own. Raises RowError."""
    body = _body(record)
    told = body.get("tools") or body.get("functions") or ()
    if isinstance(told, str):
        told = _json(told, "tools")
    return tuple(_tool(one) for one in told)


def arguments_of(value: object) -> dict[str, Any]:  # Any: JSON
    """Return a call's arguments, which may come as text. Raises RowError: broken_json."""
    if isinstance(value, str):
        value = _json(value, "arguments") if value.strip() else {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowError("broken_json", f"arguments are {type(value).__name__}, not an object")
    return value


def text_of_content(content: object) -> str:
    """Return the text of a content that may be a list of parts. Raises RowError: not_text for pictures and sound."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = [part if isinstance(part, str) else _text_part(part) for part in content]
        return "\n".join(texts)
    raise RowError("not_text", f"content is {type(content).__name__}")


def conversation_of_turns(turns: Sequence[Record], system: str = "") -> tuple[Message, ...]:
    """Return ShareGPT's turns as messages. Raises RowError."""
    made = [Message("system", system)] if system else []
    called: list[str] = []
    for turn in turns:
        speaker, text = str(turn["from"]), turn.get("value") or ""
        if not isinstance(text, str):
            raise RowError("not_text", f"value is {type(text).__name__}")
        role = _role(speaker)
        if speaker == "function_call":
            calls = tuple(_call(one) for one in _listed(_json(text, "a function_call")))
            made.append(Message("assistant", "", calls))
        elif role == "assistant":
            said, found = _cut_calls(text)
            made.append(Message("assistant", said, tuple(_call(_json(one, "a tool call")) for one in found)))
        elif role == "tool":
            made.append(Message("tool", text, name=called.pop(0) if called else ""))
            continue
        else:
            made.append(Message(role, text))
        called = [call.name for call in made[-1].tool_calls]
    return tuple(made)


def _cut_calls(text: str) -> tuple[str, list[str]]:
    """Return a text without the calls that are written in it, and the calls."""
    said, *parts = text.split(_OPEN)
    calls = []
    for part in parts:
        call, closed, rest = part.partition(_CLOSE)
        if not closed:
            raise RowError("broken_json", "a tool call in text has no end")
        calls.append(call)
        said += rest
    return (said.strip() if calls else text), calls


def _body(record: Record) -> Record:
    asked = record.get("request")
    return asked if isinstance(asked, Mapping) else record


def _message(told: Record, names: dict[str, str]) -> Message:
    role = _role(str(told["role"]))
    text = text_of_content(told.get("content"))
    if told.get("images"):
        raise RowError("not_text", "a message holds images")
    if role == "tool":
        name = told.get("name") or told.get("tool_name") or names.get(str(told.get("tool_call_id")), "")
        return Message("tool", text, name=str(name)[:128])
    if role != "assistant":
        return Message(role, text)
    legacy = told.get("function_call")
    calls = []
    for one in told.get("tool_calls") or ([legacy] if legacy else []):
        calls.append(_call(one.get("function") or one))
        names[str(one.get("id"))] = calls[-1].name
    return Message("assistant", text, tuple(calls))


def _call(told: Record) -> Call:
    if not isinstance(told.get("name"), str) or not 1 <= len(told["name"]) <= 128:  # noqa: PLR2004 rows.ToolName
        raise RowError("broken_call", "a call has no name")
    given = told["arguments"] if "arguments" in told else told.get("parameters")
    return Call(told["name"], arguments_of(given))


def _tool(told: Record) -> Tool:
    told = told.get("function") or told
    name = told.get("name")
    if not isinstance(name, str) or not 1 <= len(name) <= 128:  # noqa: PLR2004 rows.ToolName
        raise RowError("broken_tool", "a tool has no name")
    schema = told.get("parameters") or told.get("input_schema") or {}
    if not isinstance(schema, dict):
        raise RowError("broken_tool", f"the schema of {name[:60]} is no object")
    return Tool(name, str(told.get("description") or ""), schema)


def _role(told: str) -> Role:
    role = _ROLES.get(told.lower())
    if role is None:
        raise RowError("unknown_role", told[:60])
    return role


def _text_part(part: object) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") in ("text", "input_text", "output_text"):
        text = part.get("text")
        if isinstance(text, str):
            return text
    raise RowError("not_text", "a part of a message is no text")


def _json(text: str, what: str) -> Any:  # Any: JSON
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RowError("broken_json", f"{what}: {error}") from error


def _listed(value: Any) -> list[Any]:  # Any: JSON
    return value if isinstance(value, list) else [value]
