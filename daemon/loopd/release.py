"""release: owns Release, one immutable unit of everything that makes an answer, and its identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

SHORT = 12  # hex digits: what people read, what containers and servers are called


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter put on the weights."""

    sha256: str
    size_bytes: int


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
    adapters: tuple[Adapter, ...] = ()  #: in the order in which they are applied
    system: str = ""  #: said before each chat that brings no system message of its own

    @property
    def id(self) -> str:
        """SHA-256 over what makes an answer, 64 hex digits."""
        identity: list[object] = [
            self.engine_image,
            self.gguf_sha256,
            self.template,
            self.stop,
            self.num_ctx,
            sorted(self.sampling),
        ]
        # Only where there are any: a release that was recorded before these fields were has kept its id.
        if self.adapters or self.system:
            identity += [[adapter.sha256 for adapter in self.adapters], self.system]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @property
    def short(self) -> str:
        """The first digits of the id."""
        return self.id[:SHORT]

    @property
    def unit(self) -> str:
        """Name of the engine container that serves it."""
        return engine_unit(self.id)

    @property
    def blobs(self) -> tuple[tuple[str, int], ...]:
        """Digest and size of each file it needs: the weights first, then the adapters."""
        return ((self.gguf_sha256, self.size_bytes), *((one.sha256, one.size_bytes) for one in self.adapters))

    def to_json(self) -> str:
        """Return the manifest kept in state.db."""
        raw = asdict(self)
        for name in ("adapters", "system"):
            if not raw[name]:
                del raw[name]  # so a loopd from before these fields reads what it can serve
        return json.dumps(raw, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Release:
        """Read a manifest that to_json() wrote, now or before it had adapters and a system text."""
        # Any: values of JSON that we wrote ourselves.
        raw: dict[str, Any] = json.loads(text)
        raw["stop"] = tuple(raw["stop"])
        raw["sampling"] = tuple((key, value) for key, value in raw["sampling"])
        raw["adapters"] = tuple(Adapter(**one) for one in raw.get("adapters", ()))
        return cls(**raw)


def engine_unit(release_id: str) -> str:
    """Return the unit that serves a release."""
    return f"engine-{release_id[:SHORT]}"
