"""doors: owns that the gateway lets in whom state.db says: it is told of keys and revocations; keys are rotated."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from loopd.gateway import Doors, Gateway, GatewayDownError
from loopd.keys import Keyring
from loopd.ledger import Ledger
from loopd.tokens import Tokens

LOOK_S = 60.0

log = structlog.get_logger("loopd.doors")


@dataclass(kw_only=True)
class DoorKeeper:
    """Keeps the gateway's doors as state.db says."""

    tokens: Tokens
    keyring: Keyring
    gateway: Gateway
    ledger: Ledger
    rotate_s: float  #: 0: only by command
    look_s: float = LOOK_S
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _told: Doors | None = None

    async def wanted(self) -> Doors:
        """Return what the gateway should know."""
        return Doors(keys=self.keyring.public(), revoked=await self.tokens.revoked())

    async def tell(self) -> bool:
        """Tell the gateway; False when it does not answer: it learns it when it starts, or at the next look."""
        wanted = await self.wanted()
        self._told = None
        try:
            await self.gateway.admit(wanted)
        except GatewayDownError as error:
            log.warning("doors.untold", error=str(error))
            return False
        self._told = wanted
        return True

    async def rotate(self, told: str, *, revoke: bool = False) -> str:
        """Let a new key sign, and return its id; with ``revoke`` the old ones verify nothing any more.

        The gateway knows a key before anything is signed with it. Raises GatewayDownError, TooManyKeysError; then the
        old key goes on signing.
        """
        async with self._lock:
            await self.drop_idle()
            key = await asyncio.to_thread(self.keyring.make)
            try:
                known = await self.wanted()
                await self.gateway.admit(Doors(keys=(key.public_pem, *known.keys), revoked=known.revoked))
            except BaseException:
                await asyncio.to_thread(key.path.unlink, missing_ok=True)
                raise
            self.keyring.use(key)
            await self.ledger.append("key.rotated", key.kid, told, revoked=revoke)
            if revoke:
                await self.tokens.revoke(told, all_=True)
                for old in self.keyring.public()[1:]:
                    await asyncio.to_thread(self.keyring.drop, old.kid)
                await self.gateway.admit(await self.wanted())
            return key.kid

    async def run_forever(self) -> None:
        """Prune, rotate when it is time, and tell the gateway."""
        while True:
            await self.tokens.prune()
            age_s = (datetime.now(UTC) - self.keyring.current.created_at).total_seconds()
            if self.rotate_s and age_s > self.rotate_s:
                try:
                    await self.rotate("it was time")
                except GatewayDownError as error:
                    log.warning("doors.not_rotated", error=str(error))
            async with self._lock:
                await self.drop_idle()
            if self._told != await self.wanted():
                await self.tell()
            await asyncio.sleep(self.look_s)

    async def drop_idle(self) -> int:
        """Drop keys whose last token is over."""
        idle = [key.kid for key in self.keyring.public()[1:] if not await self.tokens.signed_by(key.kid)]
        for kid in idle:
            await asyncio.to_thread(self.keyring.drop, kid)
        return len(idle)
