"""arguments: owns the tools' arguments: their types, limits and the JSON Schemas shown to models.

The schemas steer a small model's decoding through a grammar, so they are flat: strings and integers with bounds,
no alternatives, no null. Optional arguments have defaults.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from loopbox_toolrunner.files import MAX_LINES
from loopbox_toolrunner.jail import MAX_PATH

MAX_COMMAND = 32_000  # characters
MAX_COMMAND_BYTES = 128_000  # the kernel takes 131071 in one argument
MAX_CONTENT = 1 << 20
#: Longest maxLength to show. Engines turn it into a grammar rule of that many repeats, and the Ollama we ship ends its
#: model process, with all it was answering, on 2001. Longer text is still taken, up to the limits above.
GRAMMAR_LENGTH = 2000


class ArgumentError(Exception):
    """The arguments cannot be used; nothing was run. The text names each and what is wrong with it."""


def _as_text(value: object) -> object:
    """Refuse text that cannot be given to a process or a file, before it gets there."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half a character (surrogate)") from error
    return value


def _as_command(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character")
    if len(value.encode()) > MAX_COMMAND_BYTES:
        raise ValueError(f"has more than {MAX_COMMAND_BYTES} bytes; write it to a file first")
    return value


Text = Annotated[str, BeforeValidator(_as_text)]
PathText = Annotated[Text, Field(min_length=1, max_length=MAX_PATH)]
WHERE = "File path, relative to /workspace."
HOW_LONG = "Seconds before it is stopped."


class Arguments(BaseModel):
    """Of any tool."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Timed(Arguments):
    """Of a tool that runs something."""

    timeout_s: int = Field(default=30, ge=1, le=3600, description=HOW_LONG)


class Bash(Timed):
    """Of bash."""

    command: Text = Field(min_length=1, max_length=MAX_COMMAND, description="Shell command to run.")


class Code(Timed):
    """Of python and javascript."""

    code: Text = Field(min_length=1, max_length=MAX_COMMAND, description="Program to run; print what you want to see.")


class ReadFile(Arguments):
    """Of read_file."""

    path: PathText = Field(description=WHERE)
    offset: int = Field(default=0, ge=0, le=10_000_000, description="First line, counted from 0.")
    limit: int = Field(default=400, ge=1, le=MAX_LINES, description="Most lines to return.")


class WriteFile(Arguments):
    """Of write_file."""

    path: PathText = Field(description=WHERE)
    content: Text = Field(max_length=MAX_CONTENT, description="The whole new text of the file.")


class EditFile(Arguments):
    """Of edit_file."""

    path: PathText = Field(description=WHERE)
    old: Text = Field(min_length=1, max_length=MAX_COMMAND, description="Text to replace; must be in the file once.")
    new: Text = Field(max_length=MAX_COMMAND, description="Text to put in its place.")


class ListFiles(Arguments):
    """Of list_files."""

    path: PathText = Field(default=".", description="Directory path, relative to /workspace.")


def check_command(text: str) -> str:
    """Return a command that fits in one argument. Raises ArgumentError."""
    try:
        return _as_command(text)
    except ValueError as error:
        raise ArgumentError(f"the text {error}") from error


def schema_of(model: type[BaseModel], *, timeout_s: int = 0, max_timeout_s: int = 0) -> dict[str, Any]:
    """Return a model's JSON Schema without what only Python needs. Any: JSON.

    timeout_s, max_timeout_s: shown as default and bound of the argument of that name, where there is one.
    """
    schema: dict[str, Any] = _plain(model.model_json_schema())
    properties = schema.get("properties", {})
    if "timeout_s" in properties:
        properties["timeout_s"] |= {"default": timeout_s, "maximum": max_timeout_s}
    for told in properties.values():
        if told.get("maxLength", 0) > GRAMMAR_LENGTH:
            told["maxLength"] = GRAMMAR_LENGTH
    # The asked-for argument first: small models fill in what comes first.
    required = schema.get("required", [])
    schema["properties"] = {key: properties[key] for key in sorted(properties, key=lambda k: k not in required)}
    return schema


def explain(error: ValidationError) -> str:
    """Return what is wrong with which argument, in one line."""
    faults = [f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}" for fault in error.errors()[:5]]
    return "; ".join(faults)


def _plain(schema: Any, *, names: bool = False) -> Any:
    """Drop titles and class descriptions. names: the keys here are names of properties, not keywords. Any: JSON."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = set() if names else {"title"} | ({"description"} if "properties" in schema else set())
    return {
        k: _plain(v, names=k in {"properties", "$defs"} and not names) for k, v in schema.items() if k not in dropped
    }
