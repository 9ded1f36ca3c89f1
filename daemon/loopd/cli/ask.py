"""ask: owns `loopctl ask`: one question to the agent through the gateway, the answer as it is written."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from loopd.cli.exits import AnswerError, ApiError
from loopd.cli.screen import open_screen
from loopd.cli.session import read_settings, stream_run
from loopd.cli.sse import Message
from loopd.cli.words import plain

PATH = "/agents/run-agent"
SILENCE_S = 300.0  # a long prompt on a slow processor: time to the first token
MAX_INSTRUCTION_BYTES = 1 << 20
MAX_ANSWER_CHARACTERS = 16 << 20

_LATE = ConfigDict(defer_build=True)  # `--help` need not wait for it
_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue], config=_LATE)


class AnswerView(BaseModel):
    """The whole answer, for --json."""

    model_config = _LATE

    text: str
    tools: list[dict[str, JsonValue]]  #: what tool.finished said, in order
    run: dict[str, JsonValue]  #: what run.completed said


@dataclass(slots=True)
class Run:
    """A run of the agent, read from its stream."""

    tools: list[dict[str, JsonValue]] = field(default_factory=list)
    completed: dict[str, JsonValue] | None = None
    text: list[str] = field(default_factory=list)

    def read(self, messages: Iterable[Message | None]) -> Iterator[tuple[str, str]]:
        """Yield ("text", piece) and ("tool", name) as they come. Raises ApiError on run.failed, AnswerError."""
        length = 0
        for message in messages:
            if message is None:
                continue
            body = _parse(message)
            match message.event:
                case "text.delta":
                    piece = str(body.get("text", ""))
                    length += len(piece)
                    if length > MAX_ANSWER_CHARACTERS:
                        raise AnswerError(f"the answer is longer than {MAX_ANSWER_CHARACTERS} characters; it was left")
                    self.text.append(piece)
                    yield "text", piece
                case "tool.started":
                    yield "tool", str(body.get("tool") or body.get("name") or "a tool")
                case "tool.finished":
                    self.tools.append(body)
                case "run.completed":
                    self.completed = body
                    return
                case "run.failed":
                    raise _failure(body)
                case _:
                    pass  # run.started, or an event of a newer agent
        raise AnswerError("the answer broke off before its end; `loopctl status` says how the agent is. Ask again")


def ask(
    instruction: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    *,
    system: Annotated[str | None, typer.Option("--system", help="Instructions that stand above the question.")] = None,
    tool: Annotated[str | None, typer.Option("--tool", metavar="NAME", help="Make the model call this tool.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Write the whole answer as JSON, at its end.")] = False,
) -> None:
    """Ask the agent; the answer streams to standard output as it is written."""
    screen = open_screen()
    body = request(read_instruction(instruction), system=system, tool=tool, max_tokens=max_tokens)
    run = Run()
    with closing(stream_run(read_settings(), PATH, body, silence_s=SILENCE_S)) as messages:
        for kind, piece in run.read(messages):
            if kind == "tool":
                screen.remark(f"[tool: {piece}]")
            elif not json:
                # On a terminal a model must not be able to move the cursor; a file gets what it wrote.
                screen.write(plain(piece, keep="\n\t") if screen.terminal else piece)
    if json:
        screen.json(AnswerView(text="".join(run.text), tools=run.tools, run=run.completed or {}))
    else:
        screen.write(ending(run, terminal=screen.terminal))


def read_instruction(text: str) -> str:
    """Return the argument, or standard input for ``-``. Raises BadParameter when there is nothing or too much."""
    if text == "-":
        raw = sys.stdin.buffer.read(MAX_INSTRUCTION_BYTES + 1)
        if len(raw) > MAX_INSTRUCTION_BYTES:
            raise typer.BadParameter(f"standard input has more than {MAX_INSTRUCTION_BYTES} bytes")
        text = raw.decode("utf-8", "replace")
    if not text.strip():
        raise typer.BadParameter("there is no question")
    return text


def request(instruction: str, *, system: str | None, tool: str | None, max_tokens: int | None) -> bytes:
    """Return the body for the agent."""
    asked = {
        "instruction": instruction,
        "stream": True,
        "system": system,
        "tool_choice": tool,
        "max_output_tokens": max_tokens,
    }
    return jsonlib.dumps({key: value for key, value in asked.items() if value is not None}).encode()


def ending(run: Run, *, terminal: bool) -> str:
    """Return what is still to be written: the output of a run that streamed no text, and the last line's end."""
    text = "".join(run.text)
    if text:
        return "" if text.endswith("\n") else "\n"
    output = (run.completed or {}).get("output")
    if output is None and run.tools:
        output = run.tools[-1].get("output", run.tools[-1].get("result"))
    if output is None:
        return "\n"
    shown = output if isinstance(output, str) else jsonlib.dumps(output, ensure_ascii=False)
    return (plain(shown, keep="\n\t") if terminal else shown).removesuffix("\n") + "\n"


def _parse(message: Message) -> dict[str, JsonValue]:
    try:
        return _OBJECT.validate_json(message.data)
    except ValidationError as error:
        raise AnswerError(f"the agent's event {message.event!r} is no JSON object; is it of this version?") from error


def _failure(body: dict[str, JsonValue]) -> ApiError:
    told = body.get("error")
    told = told if isinstance(told, dict) else {}
    return ApiError(
        str(told.get("message") or "the run failed and the agent gave no reason; its log may"),
        answered_code=str(told.get("code") or "run_failed"),
        http_status=0,
    )
