"""forced: owns the filling of one tool's arguments by the model, bound by the tool's own schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import ClassVar

import jsonschema  # type: ignore[import-untyped]  # it ships no types
from pydantic import JsonValue, TypeAdapter
from referencing import Registry

from loopbox_agent.engine import Engine
from loopbox_agent.errors import AgentError
from loopbox_agent.sandbox import Tool
from loopbox_agent.settings import Settings
from loopbox_agent.wire import ChatOrder, Message, Options

MAX_STRING = 400  # characters, where the schema sets no bound: a small model would else never close the quote
TRIES = 2
TOKENS = 384

_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


class ArgumentsInvalidError(AgentError):
    """The arguments given for a tool do not fit its schema."""

    code: ClassVar[str] = "arguments_invalid"
    status: ClassVar[int] = 422


class ModelOutputInvalidError(AgentError):
    """The model did not fill in the tool's arguments."""

    code: ClassVar[str] = "model_output_invalid"
    status: ClassVar[int] = 502


def check_arguments(tool: Tool, arguments: Mapping[str, JsonValue]) -> None:
    """Check arguments against the tool's schema. Raises ArgumentsInvalidError saying where they do not fit."""
    try:
        # An empty registry: a $ref to another place is refused, never fetched.
        jsonschema.Draft202012Validator(dict(tool.schema), registry=Registry()).validate(dict(arguments))
    except jsonschema.ValidationError as error:
        where = ".".join(str(step) for step in error.absolute_path) or "arguments"
        raise ArgumentsInvalidError(f"{tool.name}: {where}: {error.message[:300]}; nothing was run.") from error


def bound(schema: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the schema for generation: only what is required, every string with an end."""
    made: dict[str, JsonValue] = copy.deepcopy(dict(schema))
    properties = made.get("properties")
    required = made.get("required")
    if isinstance(properties, dict):
        if isinstance(required, list) and required:
            properties = {name: value for name, value in properties.items() if name in required}
        for value in properties.values():
            if isinstance(value, dict) and value.get("type") == "string":
                longest = value.get("maxLength")
                value["maxLength"] = min(longest, MAX_STRING) if isinstance(longest, int) else MAX_STRING
        made["properties"] = properties
    made["additionalProperties"] = False
    return made


async def fill(
    engine: Engine, settings: Settings, tool: Tool, instruction: str, *, seed: int | None
) -> tuple[dict[str, JsonValue], int, int]:
    """Return the arguments, and the tokens read and generated. Raises ModelOutputInvalidError."""
    told = (
        f"You call the tool `{tool.name}`: {tool.description.splitlines()[0] if tool.description else ''}\n"
        f"Its arguments follow this JSON schema: {json.dumps(tool.schema.get('properties', {}))[:2000]}\n"
        "Answer with the JSON object of the arguments for the user's request and nothing else."
    )
    read = generated = 0
    reason = ""
    for attempt in range(TRIES):
        order = ChatOrder(
            model=settings.model,
            messages=(Message(role="system", content=told), Message(role="user", content=instruction)),
            options=Options(
                num_ctx=settings.num_ctx,
                num_predict=TOKENS,
                temperature=0.0 if attempt == 0 else 0.7,
                seed=(seed or 1) + attempt,
            ),
            format=bound(tool.schema),
        )
        text = ""
        async with engine.chat(order) as chunks:
            async for chunk in chunks:
                text += chunk.message.content
                if chunk.done:
                    read += chunk.prompt_eval_count
                    generated += chunk.eval_count
        try:
            # Any JSON but an object is refused here, and nesting without end, too.
            arguments = _OBJECT.validate_json(text)
            check_arguments(tool, arguments)
        except (ValueError, ArgumentsInvalidError) as error:
            reason = str(error)
            continue
        return arguments, read, generated
    raise ModelOutputInvalidError(
        f"The model did not fill in the arguments of {tool.name} in {TRIES} tries ({reason[:200]}); nothing was run. "
        "Say more in the instruction, or give the arguments in tool_choice."
    )
