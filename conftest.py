"""What holds for every test: hypothesis judges behaviour, never the speed of a machine that does other work, too."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("loopbox", deadline=None)
settings.load_profile("loopbox")
