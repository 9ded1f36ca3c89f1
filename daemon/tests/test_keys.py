"""Signing keys: made once, in files that only loopd reads, refused when they are not what their name says."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from loopd.keys import MOST_KEYS, Keyring, SigningKeyError, TooManyKeysError, thumbprint


@pytest.fixture(scope="module")
def small() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 to be refused


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert ring.current.kid in path.name
    assert ring.current.private.key_size == 2048
    assert "PRIVATE" not in repr(ring.current)
    path.chmod(0o644)
    assert Keyring.open(tmp_path).current.kid == ring.current.kid
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_key_id_is_the_thumbprint_of_rfc_7638(tmp_path: Path) -> None:
    """Computed here from the JWK as a client would."""
    ring = Keyring.open(tmp_path)
    (jwk,) = ring.jwks()["keys"]
    canonical = json.dumps({name: jwk[name] for name in ("e", "kty", "n")}, separators=(",", ":"))
    digest = base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).rstrip(b"=").decode()
    assert digest == jwk["kid"] == ring.current.kid == thumbprint(ring.current.public)


def test_the_jwk_verifies_what_the_key_signs(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    token = jwt.encode({"sub": "x"}, ring.current.private, "RS256")
    (jwk,) = ring.jwks()["keys"]
    assert set(jwk) == {"kty", "n", "e", "use", "alg", "kid"}, "nothing of the private half"
    assert jwt.decode(token, jwt.PyJWK(jwk).key, ["RS256"]) == {"sub": "x"}


def test_the_newest_signs_also_when_the_clock_was_set_back(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    old = ring.current
    future = tmp_path / old.path.name.replace("20", "29", 1)
    old.path.rename(future)
    ring = Keyring.open(tmp_path)
    ring.use(new := ring.make())
    assert ring.current.kid == new.kid
    assert Keyring.open(tmp_path).current.kid == new.kid
    assert [key.kid for key in ring.public()] == [new.kid, old.kid]


def test_a_made_key_neither_signs_nor_verifies_before_it_is_used(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    made = ring.make()
    assert ring.find(made.kid) is None
    assert ring.current.kid != made.kid


def test_the_key_that_signs_cannot_be_dropped_and_others_are_gone(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    old = ring.current.kid
    ring.use(ring.make())
    with pytest.raises(SigningKeyError):
        ring.drop(ring.current.kid)
    ring.drop(old)
    assert ring.find(old) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_the_number_of_keys_is_bounded(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    ring._keys = ring._keys * MOST_KEYS
    with pytest.raises(TooManyKeysError, match="--revoke"):
        ring.make()


def test_a_key_under_another_ones_name_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    mine, other = Keyring.open(first).current, Keyring.open(second).current
    mine.path.write_bytes(other.path.read_bytes())
    with pytest.raises(SigningKeyError, match="another key"):
        Keyring.open(first)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "elliptic", "small", "link"])
def test_what_is_no_fit_key_stops_the_start_and_is_named(tmp_path: Path, damage: str, small: rsa.RSAPrivateKey) -> None:
    path = Keyring.open(tmp_path).current.path
    whole = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_bytes(b"not a key")
        case "cut":
            path.write_bytes(whole[:800])
        case "elliptic":
            path.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
        case "small":
            path.write_bytes(pem(small))
        case _:
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SigningKeyError):
        Keyring.open(tmp_path)
    assert path.is_symlink() or path.exists(), "left for the operator to see"


def test_a_draft_that_a_crash_left_is_swept_and_foreign_files_are_not_read(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    draft = tmp_path / f".{ring.current.path.name}.new"
    draft.write_bytes(b"half")
    (tmp_path / "README").write_text("mine")
    assert Keyring.open(tmp_path).current.kid == ring.current.kid
    assert not draft.exists()
