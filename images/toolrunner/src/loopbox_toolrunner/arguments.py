"""arguments: owns the tools' arguments: their types, limits and the JSON Schemas shown to models.

The schemas steer a small model's decoding through a grammar, so they are flat: strings and integers with bounds,
no alternatives, no null. Optional arguments have defaults.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from loopbox_toolrunner.files import MAX_LINES
from loopbox_toolrunner.jail import MAX_PATH
from loopbox_toolrunner.settings import Settings

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
EXPECTED = "SHA-256 that read_file gave; refused when the file is another by now."
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
    expected_sha256: Text = Field(
        default="", max_length=64, pattern=r"^([0-9a-f]{64}|absent)?$", description=f'{EXPECTED} "absent": must be new.'
    )


class EditFile(Arguments):
    """Of edit_file."""

    path: PathText = Field(description=WHERE)
    old: Text = Field(min_length=1, max_length=MAX_COMMAND, description="Text to replace; must be in the file once.")
    new: Text = Field(max_length=MAX_COMMAND, description="Text to put in its place.")
    expected_sha256: Text = Field(default="", max_length=64, pattern=r"^([0-9a-f]{64})?$", description=EXPECTED)


class ListFiles(Arguments):
    """Of list_files."""

    path: PathText = Field(default=".", description="Directory path, relative to /workspace.")


class SearchFiles(Arguments):
    """Of search_files."""

    pattern: Text = Field(min_length=1, max_length=1000, description="Regular expression to look for in each line.")
    path: PathText = Field(default=".", description="Directory or file to look in, relative to /workspace.")
    files: Text = Field(default="*", min_length=1, max_length=300, description="Which files, as *.py or src/**/*.ts.")
    literal: bool = Field(default=False, description="Take the pattern as plain text.")
    ignore_case: bool = Field(default=False, description="Take capitals and small letters as the same.")
    max_results: int = Field(default=100, ge=1, le=1000, description="Most lines to return.")


class FindFiles(Arguments):
    """Of glob."""

    pattern: Text = Field(min_length=1, max_length=300, description="Which files, as *.py or src/**/*.ts.")
    path: PathText = Field(default=".", description="Directory to look in, relative to /workspace.")
    max_results: int = Field(default=200, ge=1, le=1000, description="Most paths to return.")


def check_command(text: str) -> str:
    """Return a command that fits in one argument. Raises ArgumentError."""
    try:
        return _as_command(text)
    except ValueError as error:
        raise ArgumentError(f"the text {error}") from error


def seconds_of(told: Timed, settings: Settings) -> int:
    """Return how long a call may take. Raises ArgumentError."""
    if "timeout_s" not in told.model_fields_set:
        return min(settings.timeout_s, settings.max_timeout_s)
    if told.timeout_s > settings.max_timeout_s:
        raise ArgumentError(f"timeout_s: must be {settings.max_timeout_s} at most")
    return told.timeout_s


def schema_of(model: type[BaseModel], *, timeout_s: int = 0, max_timeout_s: int = 0) -> dict[str, Any]:
    """Return a model's JSON Schema without what only Python needs. Any: JSON.

    timeout_s, max_timeout_s: shown as default and bound of the argument of that name, where there is one.
    """
    schema: dict[str, Any] = _plain(model.model_json_schema())
    properties = schema.get("properties", {})
    if "timeout_s" in properties:
        properties["timeout_s"] |= {"default": timeout_s, "maximum": max_timeout_s}
    for told in properties.values():
        told.pop("pattern", None)  # checked here; as a grammar, one more way for an engine to stumble
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
