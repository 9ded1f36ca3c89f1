"""complete: owns what a shell offers for an id or a name being typed: asked for a moment, silent on any failure.

Each function takes what is typed so far and returns pairs of a word and what it stands for, as typer wants them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import suppress

from loopd.cli.session import open_agent, open_client

WAIT_S = 1.5  # longer, and a person thinks that the shell hangs
MOST = 100
MOST_SAID = 60  # characters beside a word

# A shell puts a word on the line as it is, and may evaluate what stands beside it; users and models write both.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]*")
_UNSAFE = re.compile(r"[^\w .,@-]+")

Words = list[tuple[str, str]]


def releases(incomplete: str) -> Words:
    """Offer releases by name and by id."""

    def ask() -> Words:
        with open_client() as client:
            views = client.releases()
        return [(view.name, view.short) for view in views] + [(view.short, view.name) for view in views]

    return _offer(incomplete, ask)


def rollouts(incomplete: str) -> Words:
    """Offer rollouts by number, newest first."""

    def ask() -> Words:
        with open_client() as client:
            return [(str(view.id), f"{view.phase} {view.candidate_name}") for view in client.rollouts()]

    return _offer(incomplete, ask)


def jobs(incomplete: str) -> Words:
    """Offer jobs of the trainer, newest first."""

    def ask() -> Words:
        with open_client() as client:
            return [(view.id, f"{view.status} {view.name}") for view in client.jobs()]

    return _offer(incomplete, ask)


def tokens(incomplete: str) -> Words:
    """Offer tokens by id."""

    def ask() -> Words:
        with open_client() as client:
            return [(view.jti, f"{view.kind} of {view.user} {view.name}") for view in client.tokens().tokens]

    return _offer(incomplete, ask)


def users(incomplete: str) -> Words:
    """Offer users by name."""

    def ask() -> Words:
        with open_client() as client:
            return [(view.name, view.role.name.lower()) for view in client.users().users]

    return _offer(incomplete, ask)


def backups(incomplete: str) -> Words:
    """Offer backups by name."""

    def ask() -> Words:
        with open_client() as client:
            return [(view.name, view.reason) for view in client.backups().backups]

    return _offer(incomplete, ask)


def runs(incomplete: str) -> Words:
    """Offer runs: those under way, of everybody, then one's own."""

    def ask() -> Words:
        with open_agent() as agent:
            views = [*agent.runs(live=True, limit=MOST).runs, *agent.runs(live=False, limit=MOST).runs]
        return [(view.run_id, f"{view.status} {view.user}") for view in views]

    return _offer(incomplete, ask)


def threads(incomplete: str) -> Words:
    """Offer one's own conversations, the last used first."""

    def ask() -> Words:
        with open_agent() as agent:
            return [(view.thread_id, view.title or "") for view in agent.threads(before=None, limit=MOST).threads]

    return _offer(incomplete, ask)


def held(incomplete: str) -> Words:
    """Offer what waits for a review."""

    def ask() -> Words:
        with open_agent() as agent:
            return [(view.id, f"{view.kind} of {view.user}, score {view.score}") for view in agent.held("waiting").held]

    return _offer(incomplete, ask)


def memories(incomplete: str) -> Words:
    """Offer what is remembered, by number."""

    def ask() -> Words:
        with open_agent() as agent:
            return [(str(view.id), view.text) for view in agent.memories(limit=MOST).memories]

    return _offer(incomplete, ask)


def documents(incomplete: str) -> Words:
    """Offer one's own documents and the shared ones."""

    def ask() -> Words:
        with open_agent() as agent:
            views = [*agent.documents(shared=False).documents, *agent.documents(shared=True).documents]
        return [(view.name, "") for view in views]

    return _offer(incomplete, ask)


def servers(incomplete: str) -> Words:
    """Offer one's own MCP servers."""

    def ask() -> Words:
        with open_agent() as agent:
            return [(view.name, view.url) for view in agent.servers().servers]

    return _offer(incomplete, ask)


def _offer(incomplete: str, ask: Callable[[], Words]) -> Words:
    """Return the words that begin as typed, each once; [] for any failure, and when no answer comes in time."""
    found: Words = []

    def work() -> None:
        with suppress(Exception):  # whatever is wrong, a shell in the middle of a line must not be told of it
            found.extend(ask())

    # A thread, since the clients wait as long as their own calls may take; it ends with the process.
    asking = threading.Thread(target=work, daemon=True)
    asking.start()
    asking.join(WAIT_S)
    if asking.is_alive():
        return []
    offered: dict[str, str] = {}
    for word, said in found:
        if word.startswith(incomplete) and _WORD.fullmatch(word):
            offered.setdefault(word, " ".join(_UNSAFE.sub(" ", said[:MOST_SAID]).split()))
    return list(offered.items())[:MOST]
