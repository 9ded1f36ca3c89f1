"""feedback: owns `loopctl feedback` and `loopctl consent`: what people say of runs, and whether these may be kept."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from loopd.cli import complete
from loopd.cli.inputs import check_id
from loopd.cli.screen import open_screen
from loopd.cli.session import open_agent
from loopd.cli.words import count

Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


class Rating(StrEnum):
    """What a run was."""

    GOOD = "good"
    BAD = "bad"


class Word(StrEnum):
    """Whether one agrees."""

    YES = "yes"
    NO = "no"


def feedback(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The run's id: `loopctl runs list` shows it.",
            callback=check_id,
            autocompletion=complete.runs,
        ),
    ],
    rating: Annotated[Rating, typer.Argument(metavar="good|bad", help="What it was.")],
    *,
    comment: Annotated[str, typer.Option("--comment", help="Why.")] = "",
    better: Annotated[str, typer.Option("--better", help="What the answer should have been.")] = "",
    json: Json = False,
) -> None:
    """Say of a run of yours whether it was good: the model learns from it."""
    screen = open_screen()
    with open_agent() as agent:
        kept = agent.rate(run, rating.value, comment=comment, better=better)
    if json:
        screen.json(kept)
    else:
        screen.line(f"{kept.run_id} is {kept.rating}{', and what is better is kept' if kept.better else ''}", "good")


def consent(
    word: Annotated[Word | None, typer.Argument(metavar="[yes|no]", help="Shown if left out.")] = None,
    *,
    json: Json = False,
) -> None:
    """Show or say whether your runs may be kept to learn from; a no deletes those that were kept."""
    screen = open_screen()
    with open_agent() as agent:
        stands = agent.consent() if word is None else agent.decide_consent(agree=word is Word.YES)
    if json:
        screen.json(stands)
        return
    if stands.learn == "off":
        screen.line("nothing of anybody is kept to learn from: the operator's setting agent.learn is off", "off")
    elif stands.agree:
        screen.line("your runs are kept, masked, for the model to learn from; `loopctl consent no` ends it", "good")
    else:
        gone = f"; {count(stands.deleted, 'run', 'runs')} of before deleted" if stands.deleted else ""
        screen.line(f"your runs are not kept to learn from{gone}; `loopctl consent yes` changes it", "off")
