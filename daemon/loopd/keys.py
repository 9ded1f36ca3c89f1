"""keys: owns the RSA keys that sign tokens: made, kept in files that only loopd reads, rotated, shown as JWKS.

A file is named after its time and its key id, which is the key's RFC 7638 thumbprint. The newest one signs; the others
still verify, until nothing lives that they signed. No backup holds them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key

from loopd.errors import ConflictError, LoopdError
from loopd.state import sync_folder

BITS = 2048  # what RS256 asks for; each request is verified, and a longer one costs each
EXPONENT = 65537
MOST_KEYS = 8
KEY_BYTES = 16 << 10  # of a file

_FILE = re.compile(r"([0-9]{8}T[0-9]{12}Z)-([A-Za-z0-9_-]{43})\.pem")


class SigningKeyError(LoopdError):
    """A signing key cannot be used; nothing was signed."""

    code = "signing_key"


class TooManyKeysError(ConflictError):
    """Too many keys still have living tokens."""

    code = "too_many_keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """What verifies."""

    kid: str
    pem: str

    @property
    def file(self) -> str:
        """The name it has in the gateway's directory."""
        return f"jwt-{self.kid}.pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A key pair; the private half shows itself to nobody."""

    kid: str
    created_at: datetime
    private: RSAPrivateKey = field(repr=False)
    path: Path

    @property
    def public(self) -> RSAPublicKey:
        """What verifies, as an object."""
        return self.private.public_key()

    @property
    def public_pem(self) -> PublicKey:
        """What verifies, as text."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        pem = self.public.public_bytes(serialization.Encoding.PEM, form)
        return PublicKey(kid=self.kid, pem=pem.decode())


class Keyring:
    """The keys. Calls that make or drop one block."""

    def __init__(self, folder: Path, keys: list[SigningKey]) -> None:
        self._folder = folder
        self._keys = keys  # oldest first

    @classmethod
    def open(cls, folder: Path) -> Keyring:
        """Read the keys, making the first if there is none. Blocks. Raises SigningKeyError."""
        try:
            for draft in folder.glob(".*.new"):
                draft.unlink()
            names = sorted(path.name for path in folder.iterdir() if _FILE.fullmatch(path.name))
            ring = cls(folder, [_read(folder / name) for name in names])
        except OSError as error:
            raise SigningKeyError(f"{folder} cannot be read: {error.strerror}. Nothing was started") from error
        if not ring._keys:
            ring.use(ring.make())
        return ring

    @property
    def current(self) -> SigningKey:
        """The key that signs."""
        return self._keys[-1]

    def find(self, kid: str) -> SigningKey | None:
        """Return the key with this id."""
        return next((key for key in self._keys if key.kid == kid), None)

    def public(self) -> tuple[PublicKey, ...]:
        """Return what verifies, newest first."""
        return tuple(key.public_pem for key in reversed(self._keys))

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the JWK set (RFC 7517), newest first."""
        return {
            "keys": [{**_jwk(key.public), "use": "sig", "alg": "RS256", "kid": key.kid} for key in reversed(self._keys)]
        }

    def make(self) -> SigningKey:
        """Make a key in its file; it neither signs nor verifies before use().

        Raises TooManyKeysError, SigningKeyError.
        """
        if len(self._keys) >= MOST_KEYS:
            raise TooManyKeysError(
                f"{MOST_KEYS} keys still have living tokens, so no other was made. Revoke those tokens, or rotate with "
                "--revoke, which ends all tokens at once"
            )
        private = generate_private_key(public_exponent=EXPONENT, key_size=BITS)
        kid = thumbprint(private.public_key())
        created = datetime.now(UTC)
        if self._keys:  # the clock may have been set back; names give the order
            created = max(created, self._keys[-1].created_at.replace(microsecond=0) + timedelta(seconds=1))
        path = self._folder / f"{created:%Y%m%dT%H%M%S%f}Z-{kid}.pem"
        text = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            _write(path, text)
        except OSError as error:
            raise SigningKeyError(f"{path.parent} takes no new key: {error.strerror}. The old keys go on") from error
        return SigningKey(kid=kid, created_at=created, private=private, path=path)

    def use(self, key: SigningKey) -> None:
        """Let a made key sign from now on."""
        self._keys.append(key)

    def drop(self, kid: str) -> None:
        """Remove a key that does not sign; its tokens are worth nothing from now on. Raises SigningKeyError."""
        key = self.find(kid)
        if key is None or key is self.current:
            raise SigningKeyError(f"{kid} is the key that signs, or none; nothing was removed")
        key.path.unlink(missing_ok=True)
        sync_folder(self._folder)
        self._keys.remove(key)


def thumbprint(key: RSAPublicKey) -> str:
    """Return the key's RFC 7638 thumbprint."""
    text = json.dumps(_jwk(key), sort_keys=True, separators=(",", ":"))
    return _base64url(hashlib.sha256(text.encode()).digest())


def _jwk(key: RSAPublicKey) -> dict[str, str]:
    numbers = key.public_numbers()
    return {"e": _number(numbers.e), "kty": "RSA", "n": _number(numbers.n)}


def _number(value: int) -> str:
    return _base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _read(path: Path) -> SigningKey:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as file:
        os.fchmod(handle, 0o600)
        text = file.read(KEY_BYTES)
    match = _FILE.fullmatch(path.name)
    advice = f"Move it away; tokens that it signed end then. The folder is {path.parent}"
    try:
        private = serialization.load_pem_private_key(text, None)
    except (ValueError, TypeError) as error:
        raise SigningKeyError(f"{path.name} is no private key. {advice}") from error
    if not isinstance(private, RSAPrivateKey) or private.key_size < BITS:
        raise SigningKeyError(f"{path.name} is no RSA key of {BITS} bits or more. {advice}")
    if match is None or thumbprint(private.public_key()) != match[2]:
        raise SigningKeyError(f"{path.name} holds another key than its name says. {advice}")
    created = datetime.strptime(match[1], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
    return SigningKey(kid=match[2], created_at=created, private=private, path=path)


def _write(path: Path, text: bytes) -> None:
    """Write a file that has its name only when it is whole, and never another mode than 0600."""
    draft = path.with_name(f".{path.name}.new")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(handle)
    draft.rename(path)
    sync_folder(path.parent)
