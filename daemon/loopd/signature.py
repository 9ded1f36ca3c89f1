"""signature: owns proving who made a model file: Ed25519 over its digest and its sidecar's.

Signed is the ASCII text ``loopbox-gguf-v1:<sha256 of the GGUF>``, and where there is a sidecar ``:<sha256 of the
sidecar>`` after it, so that template and parameters are proven, too. A signature file is the 64 bytes in base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Final

from loopd.errors import LoopdError
from loopd.gguf_types import GgufError

PREFIX: Final = "loopbox-gguf-v1"


class KeyFileError(LoopdError):
    """The file holds no Ed25519 private key in PEM; nothing was signed."""

    code = "key_unusable"


def message(sha256: str, sidecar: bytes | None) -> bytes:
    """Return what is signed."""
    parts = [PREFIX, sha256]
    if sidecar is not None:
        parts.append(hashlib.sha256(sidecar).hexdigest())
    return ":".join(parts).encode("ascii")


def check_signature(key: str, sha256: str, sidecar: bytes | None, signature: bytes | None, *, name: str) -> None:
    """Hold a signature file's bytes against a public key (base64).

    Raises GgufError: signature_missing, signature_wrong.
    """
    if signature is None:
        raise GgufError(
            "signature_missing",
            f"{name} has no signature beside it, and this host takes signed files only (registry.public_key): sign it "
            f"with `loopctl releases sign`, and drop {name}.sig before the model",
        )
    # Imported here: a host without a key does not pay the memory for it.
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True))
        public.verify(base64.b64decode(signature.strip(), validate=True), message(sha256, sidecar))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise GgufError(
            "signature_wrong",
            f"the signature of {name} does not fit its bytes{' and sidecar' if sidecar is not None else ''} under "
            "registry.public_key: another key, or a file that changed after it was signed; sign it again",
        ) from error


def sign(pem: Path, sha256: str, sidecar: bytes | None) -> tuple[bytes, str]:
    """Return the signature file's content, and the public key as registry.public_key wants it. Raises KeyFileError."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        private = load_pem_private_key(pem.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            f"{pem} holds no private key that can be read without a password ({error}); nothing was signed. "
            "Make one: `openssl genpkey -algorithm ed25519 -out key.pem`"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyFileError(f"{pem} holds another kind of key than Ed25519; nothing was signed")
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    return base64.b64encode(private.sign(message(sha256, sidecar))) + b"\n", public
