"""boxes: owns sandbox containers and their folders on the host: made, watched until they answer, lent, taken away."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from loopd.config import Settings
from loopd.engine import Engine, Instance, InstanceState, Unit
from loopd.errors import UnavailableError
from loopd.lease import Lease
from loopd.loading import own
from loopd.toolbox import Toolbox
from loopd.units import SANDBOX_PREFIX, SANDBOX_WEIGHT, TOOL_SOCKET, TOOLRUNNER_UID, Layout, SandboxKind, sandbox_unit

READY_S = 20.0  # container start to tool runner answering
READY, LENT = 0o711, 0o1711  # modes of a sandbox's folder: never lent, lent once
GVISOR = "runsc"


@dataclass(kw_only=True)
class Boxes:
    """Makes and removes sandboxes of each kind."""

    settings: Settings
    layout: Layout
    engine: Engine
    toolbox: Toolbox
    images: Mapping[SandboxKind, str]  #: of each kind that this host has
    runtime: str = ""  #: that sandboxes run in; '' before open(), and for the engine's own

    async def open(self) -> dict[str, Instance]:
        """Connect, choose the runtime, and return the sandboxes there are."""
        await self.engine.open()
        self.runtime = await self._choose_runtime()
        found = {i.unit: i for i in await self.engine.observe() if i.unit.startswith(SANDBOX_PREFIX)}
        return {unit.removeprefix(SANDBOX_PREFIX): instance for unit, instance in found.items()}

    async def start(self, kind: SandboxKind) -> str:
        """Make one; return its name when it answers. What fails leaves nothing behind."""
        sandbox = secrets.token_hex(6)
        try:
            await asyncio.to_thread(self._make_folder, sandbox)
            await self.engine.apply(self._unit(sandbox, kind))
            await self._wait_answering(sandbox)
            await self._make_ready(sandbox)
        except BaseException:
            await asyncio.shield(self.discard(sandbox))
            raise
        return sandbox

    async def find_fresh(self, sandbox: str, instance: Instance) -> SandboxKind | None:
        """Return the kind of one that runs, answers, is as it would be made today, and was never lent; else None."""
        if self._was_lent(sandbox) or instance.state is not InstanceState.RUNNING:
            return None
        kinds = (kind for kind in self.images if self._unit(sandbox, kind).fingerprint == instance.fingerprint)
        if (kind := next(kinds, None)) is None or not await self._answers(sandbox):
            return None
        await self._make_ready(sandbox)
        return kind

    async def alive(self) -> frozenset[str]:
        """Return which sandboxes run."""
        seen = await self.engine.observe()
        return frozenset(i.unit.removeprefix(SANDBOX_PREFIX) for i in seen if i.state is InstanceState.RUNNING)

    async def discard(self, sandbox: str) -> None:
        """Remove one with all that was in it; absent is fine."""
        await self.engine.remove(f"{SANDBOX_PREFIX}{sandbox}", grace_s=0)
        await asyncio.to_thread(shutil.rmtree, self.layout.sandboxes / sandbox, ignore_errors=True)

    def link(self, lease: Lease) -> None:
        """Give the agent its way to the sandbox, which is from now on known to be lent, whatever state.db says.

        The row there is written meanwhile: that takes as long as the disk, which a session need not wait for.
        """
        (self.layout.sandboxes / lease.sandbox).chmod(LENT)
        folder = self.layout.leases / lease.id
        folder.mkdir(mode=0o755)
        os.link(self.layout.sandboxes / lease.sandbox / TOOL_SOCKET, folder / TOOL_SOCKET)

    def sweep(self, running: AbstractSet[str], held: AbstractSet[str]) -> None:
        """Remove the folders of containers and leases that are gone."""
        for folder, known in ((self.layout.sandboxes, running), (self.layout.leases, held)):
            for entry in folder.iterdir():
                if entry.name not in known:
                    shutil.rmtree(entry, ignore_errors=True)

    async def _choose_runtime(self) -> str:
        """Return the runtime to name to the engine; '' for its own. A named one that is missing fails the starts."""
        asked = self.settings.sandbox.runtime
        if asked != "auto":
            return asked
        return GVISOR if GVISOR in await self.engine.runtimes() else ""

    def _unit(self, sandbox: str, kind: SandboxKind) -> Unit:
        return sandbox_unit(self.settings, self.images[kind], sandbox, kind=kind, runtime=self.runtime)

    async def _wait_answering(self, sandbox: str) -> None:
        try:
            async with asyncio.timeout(READY_S):
                while not await self._answers(sandbox):  # noqa: ASYNC110 a socket file's birth is no event here
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            words = (await self.engine.logs(f"{SANDBOX_PREFIX}{sandbox}", tail=5)).strip()[-400:]
            raise UnavailableError(f"a sandbox did not answer within {READY_S:g} s: {words}") from error

    async def _answers(self, sandbox: str) -> bool:
        return await self.toolbox.answers(self.layout.sandboxes / sandbox / TOOL_SOCKET)

    async def _make_ready(self, sandbox: str) -> None:
        await self.engine.weigh(f"{SANDBOX_PREFIX}{sandbox}", SANDBOX_WEIGHT)
        await asyncio.to_thread(self._take_back, sandbox)

    def _make_folder(self, sandbox: str) -> None:
        folder = self.layout.sandboxes / sandbox
        folder.mkdir(mode=0o700)
        own(folder, TOOLRUNNER_UID)

    def _take_back(self, sandbox: str) -> None:
        """Make the sockets' folder root's, before any code of a session runs in the sandbox.

        It lies on the host, without a quota, and what is in it is trusted: code inside could fill the disk, or put a
        link in the socket's place. The socket itself goes on working.
        """
        folder = self.layout.sandboxes / sandbox
        own(folder, 0)
        folder.chmod(READY)

    def _was_lent(self, sandbox: str) -> bool:
        """Tell whether a session ever had it, even one whose lease was not written down before loopd was killed."""
        try:
            return (self.layout.sandboxes / sandbox).stat().st_mode & 0o7777 == LENT
        except OSError:
            return True  # without its folder nobody knows
