"""passwords: owns hashing passwords with Argon2id, one at a time and off the event loop."""

from __future__ import annotations

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

from loopd.errors import LoopdError

LEAST = 12  # characters
MOST_BYTES = 1024
AT_ONCE = 1  # each takes 19 MiB and 30 ms
# Parameters of OWASP's password storage cheat sheet for Argon2id; measured 30 ms.
HASHER = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1, hash_len=32, salt_len=16, type=Type.ID)
# Hash of a random password that nobody kept: who is unknown takes as long as who is known.
NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$X3CtreAQn4kbGy7p4dCbxw$+PZfVBTJY/5/ceMxyobIhAelLC1G0+pENw7qpUuWW0A"


class PasswordError(LoopdError, ValueError):
    """The password cannot be used; nothing was changed."""

    code = "password_unfit"
    status = 422


class Passwords:
    """Hashes and checks."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._turns = asyncio.Semaphore(at_once)

    async def hash(self, password: str) -> str:
        """Return the hash to keep. Raises PasswordError for one that is too short or too long."""
        if len(password) < LEAST or len(password.encode()) > MOST_BYTES:
            raise PasswordError(f"a password has {LEAST} characters or more, and at most {MOST_BYTES} bytes")
        async with self._turns:
            return await asyncio.to_thread(HASHER.hash, password)

    async def fits(self, password: str, kept: str | None) -> bool:
        """Tell whether it is the password of this hash; None or '' takes as long and never fits."""
        if len(password.encode()) > MOST_BYTES:
            return False  # whoever it is for
        async with self._turns:
            fits = await asyncio.to_thread(_fits, password, kept or NOBODY)
        return fits and bool(kept)


def _fits(password: str, kept: str) -> bool:
    try:
        return HASHER.verify(kept, password)
    except (VerificationError, InvalidHashError):
        return False
