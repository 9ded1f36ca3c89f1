"""mask_span: owns the Span, one piece of text that must not be shown, and how spans become replacements. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """One secret or piece of personal data."""

    start: int
    end: int  #: exclusive
    kind: str  #: ``secret:…`` or ``pii:…``, as it stands in the replacement


def replace_spans(text: str, spans: Iterable[Span]) -> tuple[str, tuple[str, ...]]:
    """Return the text with each span replaced by its kind in brackets, and the kinds in order.

    Of spans that overlap, the one that begins first wins, then the longer one; what the loser has beyond it goes too,
    because half of a secret is still a secret.
    """
    pieces: list[str] = []
    kinds: list[str] = []
    shown = 0  # everything before this is in pieces, or replaced
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        if span.start < shown:
            shown = max(shown, span.end)
            continue
        pieces += (text[shown : span.start], "[", span.kind, "]")
        kinds.append(span.kind)
        shown = span.end
    return "".join((*pieces, text[shown:])), tuple(kinds)
