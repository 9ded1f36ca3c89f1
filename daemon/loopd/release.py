"""release: owns Release, one immutable unit of everything that makes an answer, and its identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

SHORT = 12  # hex digits: what people read, what containers and servers are called


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Weights, runtime, template and parameters. Two releases with the same id answer alike."""

    name: str  #: for people; not part of the identity
    engine_image: str  #: image digest
    gguf_sha256: str
    size_bytes: int  #: of the GGUF
    architecture: str
    template: str  #: in the engine's own syntax
    stop: tuple[str, ...]
    num_ctx: int  #: tokens
    sampling: tuple[tuple[str, float], ...] = ()  #: engine parameter -> default

    @property
    def id(self) -> str:
        """SHA-256 over what makes an answer, 64 hex digits."""
        identity = [
            self.engine_image,
            self.gguf_sha256,
            self.template,
            self.stop,
            self.num_ctx,
            sorted(self.sampling),
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @property
    def short(self) -> str:
        """The first digits of the id."""
        return self.id[:SHORT]

    @property
    def unit(self) -> str:
        """Name of the engine container that serves it."""
        return engine_unit(self.id)

    def to_json(self) -> str:
        """Return the manifest kept in state.db."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Release:
        """Read a manifest that to_json() wrote."""
        # Any: values of JSON that we wrote ourselves.
        raw: dict[str, Any] = json.loads(text)
        raw["stop"] = tuple(raw["stop"])
        raw["sampling"] = tuple((key, value) for key, value in raw["sampling"])
        return cls(**raw)


def engine_unit(release_id: str) -> str:
    """Return the unit that serves a release."""
    return f"engine-{release_id[:SHORT]}"
