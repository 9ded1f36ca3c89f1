"""auth: owns the control API's bearer token: made once, kept in a file that only its owner reads."""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from loopd.errors import LoopdError

TOKEN_BYTES = 32


class UnauthenticatedError(LoopdError):
    """No token, or a wrong one; nothing was done."""

    code = "unauthenticated"
    status = 401


@dataclass(frozen=True, slots=True)
class Token:
    """The token; it shows itself to nobody."""

    secret: SecretStr

    def require(self, header: str | None) -> None:
        """Check an Authorization header. Raises UnauthenticatedError."""
        scheme, _, given = (header or "").partition(" ")
        expected = self.secret.get_secret_value()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), expected.encode()):
            raise UnauthenticatedError(
                "the control API needs `Authorization: Bearer <token>`; `loopctl token path` says where it is"
            )


def ensure_token(path: Path) -> Token:
    """Read the token, making it first if there is none; it gets its name only when it is whole."""
    if path.is_symlink():
        raise LoopdError(f"{path} is a link, which the token's file must not be: delete it and start loopd again")
    if path.exists():
        path.chmod(0o600)
        text = path.read_text().strip()
        if len(text) < TOKEN_BYTES:
            raise LoopdError(f"{path} holds no usable token: delete it and start loopd again")
        return Token(SecretStr(text))
    text = secrets.token_urlsafe(TOKEN_BYTES)
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except OSError as error:
        raise LoopdError(f"{path} cannot be written: {error.strerror}. Nothing was started; see to it first") from error
    return Token(SecretStr(text))
