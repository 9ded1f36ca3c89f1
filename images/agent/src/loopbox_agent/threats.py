"""threats: owns how dangerous a text is: a score from 0 to 100, and what follows from it. Pure.

The score is telemetry with consequences, not the boundary: that is the sandbox (docs/security.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from loopbox_agent.threat_model import ThreatModel
from loopbox_agent.threat_patterns import PATTERNS, Group, Pattern
from loopbox_agent.threat_text import Plain, plain

ALLOW_UP_TO = 30
ISOLATE_UP_TO = 70
REVIEW_UP_TO = 90
#: Probability from which the classifier alone isolates a run: the least, in steps of 0.01, at which at most 5 % of the
#: project's own look-alikes are flagged in cross-validation with whole templates held out. No test set was asked.
SUSPICIOUS = 0.73
_MODEL_MOST = 70  # the classifier alone never blocks: it can't say why
_DISGUISED_MORE = 12  # what was hidden weighs more than what was said openly
_MOST_EXCERPT = 80
_REACH = 1200  #: characters; more than any form has before or behind its cue

_DECAY = 0.7  # of earlier scores, a turn
_BACKGROUND = 10  # what an ordinary turn scores at most
_SHARE = 0.75  # of the pressure that counts as a score
_MOST_PRESSURE = 100.0


class Band(StrEnum):
    """What is done about a score."""

    ALLOW = "allow"  #: 0-30
    ISOLATE = "isolate"  #: 31-70: no network, no writes outside the workspace
    REVIEW = "review"  #: 71-90: as isolate, and a person sees the answer before the user
    BLOCK = "block"  #: 91-100: not run


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that speaks against a text."""

    id: str  #: of the pattern; "model" for the classifier
    group: str
    weight: int
    excerpt: str  #: what matched, at most 80 characters, as it stands in the plain text; "" for the classifier
    hidden: bool = False  #: it was in an encoded span


@dataclass(frozen=True, slots=True)
class SessionRisk:
    """What the earlier turns of a thread add. Begin with ``SessionRisk()``; keep the one that each assessment gives."""

    pressure: float = 0.0  #: earlier scores above the ordinary, fading by a third a turn
    turns: int = 0


@dataclass(frozen=True, slots=True)
class Assessment:
    """How dangerous a text is, in its thread."""

    score: int  #: 0 to 100, with what earlier turns add
    band: Band
    findings: tuple[Finding, ...]  #: the heaviest first
    text_score: int  #: of this text alone
    probability: float  #: the classifier's
    session: SessionRisk  #: for the thread's next text


def band_of(score: int) -> Band:
    """Return what is done about a score."""
    if score <= ALLOW_UP_TO:
        return Band.ALLOW
    if score <= ISOLATE_UP_TO:
        return Band.ISOLATE
    return Band.REVIEW if score <= REVIEW_UP_TO else Band.BLOCK


class Forms:
    """Some patterns, compiled once. Stateless and safe to share."""

    def __init__(self, patterns: Iterable[Pattern] = PATTERNS, *, reach: int = _REACH) -> None:
        """patterns: disguises among them are left out. reach: characters; more than a form has beside its cue."""
        self._reach = reach
        self._forms = [(one, one.compiled()) for one in patterns if not one.is_disguise]
        self._cues = sorted({cue for one, _ in self._forms for cue in one.cues})

    def found(self, text: str, *, hidden: bool = False) -> list[Finding]:
        """Return what of them is in a text; hidden: it was in an encoded span."""
        lowered = text.lower()
        there = {cue for cue in self._cues if cue in lowered}
        findings: list[Finding] = []
        for pattern, form in self._forms:
            cues = there.intersection(pattern.cues)
            if cues and (match := self._search(form, lowered, cues)):
                weight = min(100, pattern.weight + (_DISGUISED_MORE if hidden else 0))
                excerpt = " ".join(match[0].split())[:_MOST_EXCERPT]
                findings.append(Finding(pattern.id, pattern.group, weight, excerpt, hidden))
        return findings

    def _search(self, form: re.Pattern[str], lowered: str, cues: Iterable[str]) -> re.Match[str] | None:
        """Search where one of the cues is near: a form holds one, so most of a long text need not be searched."""
        start, end = 0, -1
        for at in sorted(at for cue in cues for at in _places(lowered, cue, self._reach)):
            if at - self._reach > end:
                if end >= 0 and (match := form.search(lowered, start, end)):
                    return match
                start = max(0, at - self._reach)
            end = at + self._reach
        return form.search(lowered, start, end)


class Threats:
    """The patterns and the classifier, read once. Stateless and safe to share."""

    def __init__(self, model: ThreatModel | None = None) -> None:
        """model: another one than the package's. Raises ValueError if its file is no model."""
        self._model = model or ThreatModel.read()
        self._forms = Forms()
        self._disguises = [(one, frozenset(one.form.split("|"))) for one in PATTERNS if one.is_disguise]

    def assess(self, text: str, session: SessionRisk = SessionRisk()) -> Assessment:
        """Return how dangerous a text is. Of more than 65,536 characters, the beginning and the end are read."""
        seen = plain(text)
        findings = [*self._forms.found(seen.text), *self._disguised(seen)]
        for span in seen.decoded:
            findings += self._forms.found(span, hidden=True)
        findings = once(findings)
        probability = max(map(self._model.probability, (seen.text, *seen.decoded)))
        by_model = model_score(probability)
        if by_model > ALLOW_UP_TO:
            findings.append(Finding("model", "Classifier", by_model, ""))
        findings.sort(key=lambda one: -one.weight)
        text_score = combine(findings, by_model)
        pressure = min(_MOST_PRESSURE, session.pressure * _DECAY + max(0, text_score - _BACKGROUND))
        score = max(text_score, min(REVIEW_UP_TO, round(pressure * _SHARE)) if session.turns else 0)
        return Assessment(
            score, band_of(score), tuple(findings), text_score, probability, SessionRisk(pressure, session.turns + 1)
        )

    def _disguised(self, seen: Plain) -> list[Finding]:
        return [
            Finding(pattern.id, pattern.group, pattern.weight, "")
            for pattern, names in self._disguises
            if names & seen.disguises
        ]


def model_score(probability: float) -> int:
    """Return what the classifier's probability is worth: up to 30 below SUSPICIOUS, 31 to 70 from there."""
    if probability < SUSPICIOUS:
        return int(probability / SUSPICIOUS * ALLOW_UP_TO)
    share = (probability - SUSPICIOUS) / (1 - SUSPICIOUS)
    return ALLOW_UP_TO + 1 + int(share * (_MODEL_MOST - ALLOW_UP_TO - 1))


def combine(findings: list[Finding], by_model: int) -> int:
    """Return one score: each finding is a chance to be right, the second of one group half a chance."""
    innocent = 1.0
    groups: set[str] = set()
    weak = 0
    for one in findings:
        if one.weight <= ALLOW_UP_TO:  # a hint: counts only beside something
            weak += 1
            continue
        innocent *= 1 - one.weight / 100 * (0.5 if one.group in groups else 1.0)
        groups.add(one.group)
    if innocent == 1.0:
        return max(by_model, max((one.weight for one in findings), default=0))
    return min(100, round(100 * (1 - innocent)) + 4 * weak)


def _places(text: str, cue: str, apart: int) -> Iterator[int]:
    """Yield where a cue is: of several within a reach, the first and the last."""
    at = text.find(cue)
    while at >= 0:
        yield at
        if (last := text.rfind(cue, at + 1, at + apart + len(cue))) >= 0:
            yield last
            at = last
        at = text.find(cue, at + 1)


def once(findings: list[Finding]) -> list[Finding]:
    """Return each pattern's heaviest finding."""
    best: dict[str, Finding] = {}
    for one in findings:
        if one.id not in best or best[one.id].weight < one.weight:
            best[one.id] = one
    return list(best.values())


def pattern_by_id(identity: str) -> Pattern | None:
    """Return the pattern that a finding names; None for the classifier's."""
    return next((one for one in PATTERNS if one.id == identity), None)


__all__ = [
    "Assessment",
    "Band",
    "Finding",
    "Forms",
    "Group",
    "SessionRisk",
    "Threats",
    "band_of",
    "combine",
    "once",
    "pattern_by_id",
]
