"""draft: owns putting a release together from what a file says of itself and what its sidecar says. Pure."""

from __future__ import annotations

from dataclasses import replace

from loopd.gguf import Summary
from loopd.gguf_adapter import AdapterSummary
from loopd.gguf_types import GgufError
from loopd.release import Adapter, Release
from loopd.sidecar import Sidecar
from loopd.template import chat_format

LEAST_CTX = 256
# An agent that calls tools wants the likely word; small models drift off at the engine's own default of 0.8.
SAMPLING = (("temperature", 0.2), ("top_p", 0.9))
_MOST_NAME = 80


def draft_model(  # noqa: PLR0913 - each is one source of the release
    name: str, summary: Summary, sidecar: Sidecar, *, sha256: str, engine_image: str, num_ctx: int
) -> Release:
    """Return a model's release; ``num_ctx`` is the host's own, tokens. Raises GgufError "num_ctx_invalid"."""
    chat = chat_format(summary.chat_template, eos_text=summary.eos_text, eot_text=summary.eot_text)
    asked = sidecar.num_ctx
    if asked is not None and asked > summary.context_length:
        raise GgufError(
            "num_ctx_invalid", f"num_ctx {asked} is more than the {summary.context_length} tokens the model knows"
        )
    ends = [text for text in (summary.eot_text, summary.eos_text) if text]
    return Release(
        name=name[:_MOST_NAME],
        engine_image=engine_image,
        gguf_sha256=sha256,
        size_bytes=summary.size_bytes,
        architecture=summary.architecture,
        template=chat.template if sidecar.template is None else sidecar.template,
        # The model's own end tokens end an answer whatever a sidecar says.
        stop=chat.stop if sidecar.stop is None else tuple(dict.fromkeys([*sidecar.stop, *ends])),
        sampling=_sampling(SAMPLING, sidecar),
        num_ctx=asked or max(LEAST_CTX, min(num_ctx, summary.context_length)),
        system=sidecar.system,
    )


def draft_adapter(name: str, base: Release, sidecar: Sidecar, *, engine_image: str) -> Release:
    """Return the release of an adapter that is still to be put on: its base, but for what the sidecar says."""
    return replace(
        base,
        name=name[:_MOST_NAME],
        engine_image=engine_image,
        template=base.template if sidecar.template is None else sidecar.template,
        stop=base.stop if sidecar.stop is None else sidecar.stop,
        sampling=_sampling(base.sampling, sidecar),
        num_ctx=sidecar.num_ctx or base.num_ctx,
        system=sidecar.system or base.system,
        adapters=(),
    )


def put_on(release: Release, summary: AdapterSummary, *, sha256: str) -> Release:
    """Return the release with an adapter. Raises GgufError "adapter_architecture"."""
    if summary.architecture != release.architecture:
        raise GgufError(
            "adapter_architecture",
            f"the adapter is for {summary.architecture}, the base is {release.architecture}; name its own base",
        )
    return replace(release, adapters=(Adapter(sha256=sha256, size_bytes=summary.size_bytes),))


def _sampling(defaults: tuple[tuple[str, float], ...], sidecar: Sidecar) -> tuple[tuple[str, float], ...]:
    return tuple(sorted({**dict(defaults), **sidecar.parameters}.items())) if sidecar.parameters else defaults
