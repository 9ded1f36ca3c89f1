"""Signatures: only what the key's owner signed comes in, parameters included, once a key is set."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from intake_bench import Bench, make_bench

from loopd.config import RegistrySettings
from loopd.signature import KeyFileError, message, sign
from loopd.state import Database
from tiny_gguf import make_tiny_gguf

SIDECAR = 'system = "signed"'


@pytest.fixture
def private() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def pem(private: Ed25519PrivateKey, tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@pytest.fixture
def bench(tmp_path: Path, database: Database, private: Ed25519PrivateKey) -> Bench:
    made = make_bench(tmp_path / "home", database)
    made.changed(public_key=base64.b64encode(private.public_key().public_bytes_raw()).decode())
    return made


def signed(private: Ed25519PrivateKey, model: Path, sidecar: str | None = None) -> bytes:
    """As another program would write it, by the documented form alone."""
    text = "loopbox-gguf-v1:" + hashlib.sha256(model.read_bytes()).hexdigest()
    if sidecar is not None:
        text += ":" + hashlib.sha256(sidecar.encode()).hexdigest()
    return base64.b64encode(private.sign(text.encode()))


async def test_a_signed_model_comes_in_and_its_signer_is_recorded(bench: Bench, private: Ed25519PrivateKey) -> None:
    model = make_tiny_gguf(bench.incoming / "one.gguf")
    (bench.incoming / "one.toml").write_text(SIDECAR)
    (bench.incoming / "one.gguf.sig").write_bytes(signed(private, model, SIDECAR) + b"\n")
    await bench.settle()
    (listed,) = await bench.registry.releases()
    assert (listed.release.system, listed.signer) == ("signed", bench.intake.public_key)
    assert list(bench.incoming.iterdir()) == []


@pytest.mark.parametrize("fault", ["other key", "other bytes", "other sidecar", "sidecar added", "junk", "short"])
async def test_a_signature_that_does_not_fit_is_refused(
    bench: Bench, private: Ed25519PrivateKey, tmp_path: Path, fault: str
) -> None:
    model = make_tiny_gguf(bench.incoming / "one.gguf", seed=1)
    sidecar = SIDECAR
    signature = signed(private, model, SIDECAR)
    if fault == "other key":
        signature = signed(Ed25519PrivateKey.generate(), model, SIDECAR)
    elif fault == "other bytes":
        make_tiny_gguf(model, seed=2)
    elif fault == "other sidecar":
        sidecar = 'system = "not signed"'
    elif fault == "sidecar added":
        signature = signed(private, model)
    else:
        signature = b"!!" if fault == "junk" else base64.b64encode(b"x" * 10)
    (bench.incoming / "one.toml").write_text(sidecar)
    (bench.incoming / "one.gguf.sig").write_bytes(signature)
    await bench.settle()
    assert bench.rejected() == {"one.gguf": "signature_wrong"}
    assert bench.blobs() == set()
    assert await bench.names() == set()


async def test_an_unsigned_model_is_refused_and_told_how_to_sign(bench: Bench) -> None:
    make_tiny_gguf(bench.incoming / "one.gguf")
    await bench.settle()
    assert bench.rejected() == {"one.gguf": "signature_missing"}
    entry = await bench.ledger.last("one.gguf", "candidate.rejected")
    assert entry is not None
    assert "loopctl releases sign" in entry.cause


async def test_without_a_key_a_signature_is_neither_asked_for_nor_believed(bench: Bench) -> None:
    bench.changed(public_key="")
    make_tiny_gguf(bench.incoming / "one.gguf")
    (bench.incoming / "one.gguf.sig").write_text("junk")
    await bench.settle()
    (listed,) = await bench.registry.releases()
    assert listed.signer == ""
    assert list(bench.incoming.iterdir()) == []


def test_what_sign_writes_is_what_is_checked(private: Ed25519PrivateKey, pem: Path) -> None:
    signature, public = sign(pem, "a" * 64, b"sidecar")
    private.public_key().verify(base64.b64decode(signature), message("a" * 64, b"sidecar"))
    assert RegistrySettings(public_key=public).public_key == public


def test_other_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyFileError, match="another kind"):
        sign(path, "a" * 64, None)
    path.write_text("nothing")
    with pytest.raises(KeyFileError, match="openssl genpkey"):
        sign(path, "a" * 64, None)


def test_loopctl_does_not_load_the_cryptography() -> None:
    """Guards the time that a command takes to begin; loopd needs it for the tokens."""
    code = "import sys, loopd.cli.main; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
