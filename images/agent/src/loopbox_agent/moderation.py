"""moderation: owns what an answer says that it should not: found by rules, scored, flagged or held. Pure.

A coarse net and telemetry, in English: it knows forms, not meaning. docs/security.md has what it finds and misses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from loopbox_agent.moderation_rules import EXCUSES, RULES, Rule
from loopbox_agent.threat_text import plain
from loopbox_agent.threats import Finding

HOLD_FROM = 90  #: score; only what is about minors has so much
HOLD_NONE = 101
_MOST_PLACES = 32  # of one topic that are looked at
_MOST_EXCERPT = 80
_MORE = 3  # points for each further category


class Verdict(StrEnum):
    """What is done about an answer."""

    ALLOW = "allow"
    FLAG = "flag"  #: it is told of, counted and in the audit trail
    HOLD = "hold"  #: a person sees it before its user


@dataclass(frozen=True, slots=True)
class Moderated:
    """What an answer looks like."""

    verdict: Verdict
    score: int  #: 0 to 100
    found: tuple[Finding, ...]  #: the heaviest first, one a rule; their group is the category

    @property
    def categories(self) -> tuple[str, ...]:
        """What was found, without repeats."""
        return tuple(dict.fromkeys(one.group for one in self.found))


@dataclass(frozen=True, slots=True)
class _Form:
    rule: Rule
    topic: re.Pattern[str]
    acts: tuple[re.Pattern[str], ...]
    excuse: re.Pattern[str]


class Moderation:
    """The rules, compiled once. Stateless and safe to share."""

    def __init__(self, *, hold_from: int = HOLD_FROM, rules: Iterable[Rule] = RULES) -> None:
        """hold_from: score from which an answer is held for a review; 101: none is."""
        self.hold_from = hold_from
        self._forms = [
            _Form(
                rule,
                re.compile(rule.topic),
                tuple(map(re.compile, rule.acts)),
                re.compile(f"(?:{EXCUSES})" + (f"|(?:{rule.excuses})" if rule.excuses else "")),
            )
            for rule in rules
        ]

    def holding(self) -> Moderation:
        """Return the same with only the rules that hold an answer by themselves."""
        return Moderation(
            hold_from=self.hold_from, rules=[one.rule for one in self._forms if one.rule.weight >= self.hold_from]
        )

    def assess(self, text: str, *, growing: bool = False) -> Moderated:
        """Return what an answer says. Of more than 65,536 characters, the beginning and the end are read.

        growing: more may follow; what that could still excuse is left for later.
        """
        seen = plain(text)
        texts = [one.lower().replace("\u2019", "'") for one in (seen.text, *seen.decoded)]  # a curly apostrophe is one
        found = sorted(
            (one for form in self._forms if (one := _first(form, texts, growing=growing)) is not None),
            key=lambda one: -one.weight,
        )
        if not found:
            return Moderated(Verdict.ALLOW, 0, ())
        categories = {one.group for one in found}
        # Several categories make a thing worse, but only what holds by itself holds.
        ceiling = 100 if found[0].weight >= self.hold_from else min(100, self.hold_from - 1)
        score = min(ceiling, found[0].weight + _MORE * (len(categories) - 1))
        return Moderated(Verdict.HOLD if score >= self.hold_from else Verdict.FLAG, score, tuple(found))


def _first(form: _Form, texts: Iterable[str], *, growing: bool) -> Finding | None:
    rule = form.rule
    for text in texts:
        for place, topic in enumerate(form.topic.finditer(text)):
            if place == _MOST_PLACES or (growing and topic.end() + rule.reach > len(text)):
                break
            near = text[max(0, topic.start() - rule.reach) : topic.end() + rule.reach]
            if all(act.search(near) for act in form.acts) and not form.excuse.search(near):
                return Finding(rule.id, rule.category.value, rule.weight, " ".join(topic[0].split())[:_MOST_EXCERPT])
    return None
