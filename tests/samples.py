"""samples: small values that many tests need."""

from __future__ import annotations

from loopd.release import Release


def make_release(name: str = "alpha") -> Release:
    """Return a release that differs from others by its name's digest."""
    return Release(
        name=name,
        engine_image="sha256:engine",
        gguf_sha256=name.encode().hex().ljust(64, "0"),
        size_bytes=1000,
        architecture="llama",
        template="{{ .Prompt }}",
        stop=("</s>",),
        num_ctx=2048,
    )
