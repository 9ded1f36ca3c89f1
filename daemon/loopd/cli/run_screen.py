"""run_screen: owns how a run of the agent is shown: its text as it comes, what it does in between, and its end."""

from __future__ import annotations

import json as jsonlib

from pydantic import BaseModel, ConfigDict, JsonValue

from loopd.cli.exits import AnswerError
from loopd.cli.run_follow import Run, Stream
from loopd.cli.screen import Screen
from loopd.cli.words import plain


class AnswerView(BaseModel):
    """The whole answer, for --json."""

    model_config = ConfigDict(defer_build=True)  # `--help` need not wait for it

    text: str
    tools: list[dict[str, JsonValue]]  #: what tool.finished said, in order
    run: dict[str, JsonValue]  #: what the last event said


def show(run: Run, messages: Stream, screen: Screen, *, text: bool) -> None:
    """Write what a run tells as it comes."""
    for kind, piece in run.read(messages):
        if kind == "tool":
            screen.remark(f"[tool: {piece}]")
        elif kind == "steer":
            screen.remark(f"[told meanwhile: {piece}]")
        elif text:
            # On a terminal a model must not be able to move the cursor; a file gets what it wrote.
            screen.write(plain(piece, keep="\n\t") if screen.terminal else piece)


def structured(run: Run, *, terminal: bool) -> str:
    """Return the answer under a schema as JSON on one line. Raises AnswerError."""
    ended = run.ended or {}
    value = ended.get("structured")
    if value is None:
        try:
            value = jsonlib.loads(str(ended.get("output", "")))
        except (ValueError, RecursionError) as error:
            raise AnswerError(
                "the answer is no JSON although a schema was given: does this agent know output_schema? "
                "`loopctl ask` without --schema shows the text"
            ) from error
    shown = jsonlib.dumps(value, ensure_ascii=False)
    return (plain(shown) if terminal else shown) + "\n"


def ending(run: Run, *, terminal: bool) -> str:
    """Return what is still to be written: the output of a run that streamed no text, and the last line's end."""
    text = "".join(run.text)
    if text:
        return "" if text.endswith("\n") else "\n"
    output = (run.ended or {}).get("output")
    if output is None and run.tools:
        output = run.tools[-1].get("output", run.tools[-1].get("result"))
    if output is None:
        return "\n"
    shown = output if isinstance(output, str) else jsonlib.dumps(output, ensure_ascii=False)
    return (plain(shown, keep="\n\t") if terminal else shown).removesuffix("\n") + "\n"
