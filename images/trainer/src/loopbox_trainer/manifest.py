"""manifest: owns the lineage of a curation: what went in, what each step did, what came out. The same each time."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from loopbox_trainer.counts import Step
from loopbox_trainer.curate_spec import CurateSpec
from loopbox_trainer.gather import Kept
from loopbox_trainer.whole_files import Written

FORMAT: Final = "loopbox-curation-1"
_PACKAGES: Final = ("jsonschema-rs", "msgspec", "numpy", "pyarrow", "pydantic")
_MOST_KINDS: Final = 50


@dataclass(frozen=True, slots=True)
class Origin:
    """One file that was read."""

    source: str
    path: str
    size: int  #: bytes
    sha256: str


def manifest(
    spec: CurateSpec,
    origins: Iterable[Origin],
    steps: Iterable[Step],
    splits: Mapping[str, list[Kept]],
    files: Mapping[str, Written],
) -> dict[str, Any]:  # Any: JSON
    """Return the manifest. Nothing in it depends on the time or the machine but the versions."""
    return {
        "format": FORMAT,
        "seed": spec.seed,
        "spec": spec.model_dump(mode="json") | {"outcomes": sorted(spec.outcomes)},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "sources": [asdict(origin) for origin in origins],
        "steps": [step.told() for step in steps],
        "splits": {name: _told(items) for name, items in splits.items()},
        "files": {name: asdict(written) for name, written in sorted(files.items())},
    }


def _told(items: list[Kept]) -> dict[str, Any]:  # Any: JSON
    kinds = Counter(item.kind for item in items)
    return {
        "rows": len(items),
        "by_source": dict(sorted(Counter(item.source for item in items).items())),
        "by_outcome": dict(sorted(Counter(item.outcome for item in items).items())),
        "by_kind": dict(sorted(kinds.items(), key=lambda one: (-one[1], one[0]))[:_MOST_KINDS]),
        "kinds": len(kinds),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
