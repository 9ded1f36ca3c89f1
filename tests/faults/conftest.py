"""The appliance that faults share while it comes out of them whole, and what each fault took."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from _pytest.terminal import TerminalReporter

from faults.rig import Rig, open_rig

TOOK: dict[str, float] = {}

# What dies here dies more often than any part of a real appliance: that must not look like a crash loop.
PATIENT = {"LOOPBOX_SUPERVISE__CRASHES": "30", "LOOPBOX_SUPERVISE__CRASH_WINDOW_S": "10"}
WHOLE_S = 30.0


@pytest.fixture
def took() -> dict[str, float]:
    """Take the seconds from each fault to serving; written at the end of the run."""
    return TOOK


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Write what each fault took."""
    if TOOK:
        terminalreporter.section("seconds from fault to serving")
        for fault, seconds in sorted(TOOK.items()):
            terminalreporter.write_line(f"{seconds:7.2f}  {fault}")


@dataclass
class Shared:
    """One appliance with two known models; a fresh one when a test has left it broken."""

    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    rig: Rig | None = None

    def give(self) -> Rig:
        if self.rig is not None:
            try:
                self._mend(self.rig)
            except AssertionError:
                self.stack.close()
                self.rig = None
        if self.rig is None:
            self.rig = self.stack.enter_context(open_rig(PATIENT))
            self.rig.start()
            self.rig.ensure_model("a", seed=1)
            self.rig.ensure_model("b", seed=2)
        return self.rig

    @staticmethod
    def _mend(rig: Rig) -> None:
        """See that it serves, with loopd running. Raises AssertionError."""
        if rig.process is None or rig.process.poll() is not None:
            rig.process = None
            rig.start()
        rig.settle(WHOLE_S)
        assert set(rig.containers()) == rig.units()
        assert len(rig.listed()) == len(rig.units())


@pytest.fixture(scope="session")
def shared() -> Iterator[Shared]:
    """Bring nothing up yet; take away what was."""
    shared = Shared()
    with shared.stack:
        yield shared


@pytest.fixture
def rig(shared: Shared) -> Rig:
    """Give the shared appliance, serving, whatever the last test left."""
    return shared.give()
