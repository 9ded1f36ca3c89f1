"""Tokens that must not be let in, at both doors: a real HAProxy, and loopd's control API. One suite, one verdict."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import hashes, serialization
from doors_rig import (
    PASSWORD,
    Desk,
    Door,
    Headers,
    attacker_key,
    b64,
    bearer,
    forge,
    open_control,
    open_desk,
    open_gateway,
    ps,
    rs,
)

from loopd.principal import Role


@dataclass
class Gate:
    """A door, the desk behind it, and a token that is good there."""

    desk: Desk
    door: Door
    token: str

    @property
    def header(self) -> dict[str, Any]:
        return self.desk.header(self.token)

    @property
    def claims(self) -> dict[str, Any]:
        return self.desk.claims(self.token)

    @property
    def sign(self) -> Callable[[bytes], bytes]:
        return rs(self.desk.keyring.current.private)

    @property
    def pem(self) -> bytes:
        return self.desk.keyring.public()[0].pem.encode()

    def with_header(self, **changes: object) -> str:
        """Return the token with another header, signed with OUR key; None takes a field away."""
        return forge(_changed(self.header, changes), self.claims, self.sign)

    def with_claims(self, **changes: object) -> str:
        """Return the token with other claims, signed with our key."""
        return forge(self.header, _changed(self.claims, changes), self.sign)

    def by_attacker(self, **header: object) -> str:
        """Return the token with another header, signed with a key that is not ours."""
        return forge(_changed(self.header, header), self.claims, rs(attacker_key()))


def _changed(old: dict[str, Any], changes: dict[str, object]) -> dict[str, Any]:
    return {key: value for key, value in {**old, **changes}.items() if value is not None}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["gateway", "control"])
async def gate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gate]:
    folder = tmp_path_factory.mktemp("doors")
    if request.param == "gateway":
        async with open_gateway(folder) as (desk, door):
            yield Gate(desk, door, await desk.issue())
    else:
        async with open_desk(folder) as desk, open_control(desk) as control:
            yield Gate(desk, control, await desk.issue())


pytestmark = pytest.mark.asyncio(loop_scope="module")

Attack = Callable[[Gate], Headers]


def hs(gate: Gate, alg: str, digest: str, secret: bytes) -> Headers:
    """Alg confusion: the public key, which everybody may have, as the secret of an HMAC."""
    return bearer(forge({**gate.header, "alg": alg}, gate.claims, lambda data: hmac.new(secret, data, digest).digest()))


def unsigned(gate: Gate, alg: str, signature: str = "") -> Headers:
    head, body = b64(json.dumps({**gate.header, "alg": alg}).encode()), b64(json.dumps(gate.claims).encode())
    return bearer(f"{head}.{body}.{signature}")


def parts(gate: Gate) -> list[str]:
    return gate.token.split(".")


def tampered(gate: Gate) -> Headers:
    head, _, signature = parts(gate)
    return bearer(f"{head}.{b64(json.dumps({**gate.claims, 'role': 'admin', 'sub': 'root'}).encode())}.{signature}")


def jwk_of_attacker() -> dict[str, str]:
    numbers = attacker_key().public_key().public_numbers()
    return {"kty": "RSA", "n": b64(numbers.n.to_bytes(256, "big")), "e": "AQAB"}


def der(gate: Gate) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return gate.desk.keyring.current.public.public_bytes(serialization.Encoding.DER, form)


def now() -> int:
    return int(time.time())


ATTACKS: dict[str, Attack] = {
    # the algorithm is the token's to say
    "hs256-pem": lambda g: hs(g, "HS256", "sha256", g.pem),
    "hs256-pem-stripped": lambda g: hs(g, "HS256", "sha256", g.pem.strip()),
    "hs256-der": lambda g: hs(g, "HS256", "sha256", der(g)),
    "hs256-empty": lambda g: hs(g, "HS256", "sha256", b""),
    "hs384-pem": lambda g: hs(g, "HS384", "sha384", g.pem),
    "hs512-pem": lambda g: hs(g, "HS512", "sha512", g.pem),
    "hs256-said-rs256": lambda g: hs(g, "RS256", "sha256", g.pem),
    **{f"alg-{alg}": functools.partial(unsigned, alg=alg) for alg in ("none", "None", "NONE", "nOnE", "", "null")},
    "none-with-a-signature": lambda g: unsigned(g, "none", parts(g)[2]),
    "rs256-without-signature": lambda g: unsigned(g, "RS256"),
    "rs512-our-key": lambda g: bearer(
        forge({**g.header, "alg": "RS512"}, g.claims, rs(g.desk.keyring.current.private, hashes.SHA512()))
    ),
    "rs384-our-key": lambda g: bearer(
        forge({**g.header, "alg": "RS384"}, g.claims, rs(g.desk.keyring.current.private, hashes.SHA384()))
    ),
    "ps256-our-key": lambda g: bearer(
        forge({**g.header, "alg": "PS256"}, g.claims, ps(g.desk.keyring.current.private))
    ),
    "ps256-said-rs256": lambda g: bearer(forge(g.header, g.claims, ps(g.desk.keyring.current.private))),
    "rs512-said-rs256": lambda g: bearer(
        forge(g.header, g.claims, rs(g.desk.keyring.current.private, hashes.SHA512()))
    ),
    "alg-lower-case": lambda g: bearer(g.with_header(alg="rs256")),
    "alg-padded": lambda g: bearer(g.with_header(alg="RS256 ")),
    "alg-missing": lambda g: bearer(g.with_header(alg=None)),
    "alg-list": lambda g: bearer(g.with_header(alg=["RS256"])),
    "alg-es256": lambda g: bearer(g.with_header(alg="ES256")),
    # the key is the token's to bring
    "another-key": lambda g: bearer(g.by_attacker()),
    "jwk": lambda g: bearer(g.by_attacker(jwk=jwk_of_attacker())),
    "jwk-without-kid": lambda g: bearer(g.by_attacker(kid=None, jwk=jwk_of_attacker())),
    "jku": lambda g: bearer(g.by_attacker(jku="http://127.0.0.1:1/jwks.json")),
    "x5u": lambda g: bearer(g.by_attacker(x5u="http://127.0.0.1:1/cert.pem")),
    "x5c": lambda g: bearer(g.by_attacker(x5c=[base64.b64encode(b"cert").decode()])),
    # which key it is
    "kid-unknown": lambda g: bearer(g.with_header(kid="A" * 43)),
    "kid-missing": lambda g: bearer(g.with_header(kid=None)),
    "kid-empty": lambda g: bearer(g.with_header(kid="")),
    "kid-number": lambda g: bearer(g.with_header(kid=0)),
    "kid-list": lambda g: bearer(g.with_header(kid=[g.header["kid"]])),
    "kid-path": lambda g: bearer(g.with_header(kid="../../../../dev/null")),
    "kid-absolute-path": lambda g: bearer(g.with_header(kid="/etc/passwd")),
    "kid-pem-path": lambda g: bearer(g.with_header(kid=f"jwt-{g.header['kid']}.pem")),
    "kid-sql": lambda g: bearer(g.with_header(kid="x' OR '1'='1")),
    "kid-sql-union": lambda g: bearer(g.with_header(kid="x' UNION SELECT 'key' --")),
    "kid-shell": lambda g: bearer(g.with_header(kid="$(id)|id;`id`")),
    "kid-newline": lambda g: bearer(g.with_header(kid=g.header["kid"] + "\n")),
    "kid-nul": lambda g: bearer(g.with_header(kid=g.header["kid"] + "\0")),
    "kid-prefix": lambda g: bearer(g.with_header(kid=g.header["kid"][:-1])),
    "kid-longer": lambda g: bearer(g.with_header(kid=g.header["kid"] + "A")),
    "kid-format": lambda g: bearer(g.with_header(kid="%[src]")),
    "kid-nul-hmac": lambda g: bearer(
        forge(
            {**g.header, "alg": "HS256", "kid": "/dev/null"},
            g.claims,
            lambda data: hmac.new(b"", data, hashlib.sha256).digest(),
        )
    ),
    # time
    "expired": lambda g: bearer(g.with_claims(exp=now() - 3600)),
    "expired-beyond-leeway": lambda g: bearer(g.with_claims(exp=now() - 31)),
    "not-yet": lambda g: bearer(g.with_claims(nbf=now() + 3600)),
    "not-yet-beyond-leeway": lambda g: bearer(g.with_claims(nbf=now() + 40)),
    "exp-missing": lambda g: bearer(g.with_claims(exp=None)),
    "exp-text": lambda g: bearer(g.with_claims(exp=str(now() + 600))),
    "exp-zero": lambda g: bearer(g.with_claims(exp=0)),
    "exp-negative": lambda g: bearer(g.with_claims(exp=-1)),
    "exp-list": lambda g: bearer(g.with_claims(exp=[now() + 600])),
    "nbf-missing": lambda g: bearer(g.with_claims(nbf=None)),
    "nbf-text": lambda g: bearer(g.with_claims(nbf="0")),
    # claims
    "aud-wrong": lambda g: bearer(g.with_claims(aud="another")),
    "aud-missing": lambda g: bearer(g.with_claims(aud=None)),
    "aud-list": lambda g: bearer(g.with_claims(aud=["loopbox", "another"])),
    "aud-prefix": lambda g: bearer(g.with_claims(aud="loopbox2")),
    "iss-wrong": lambda g: bearer(g.with_claims(iss="evil")),
    "iss-missing": lambda g: bearer(g.with_claims(iss=None)),
    "iss-longer": lambda g: bearer(g.with_claims(iss="loopbox.evil")),
    "role-missing": lambda g: bearer(g.with_claims(role=None)),
    "role-unknown": lambda g: bearer(g.with_claims(role="root")),
    "role-upper": lambda g: bearer(g.with_claims(role="ADMIN")),
    "role-list": lambda g: bearer(g.with_claims(role=["admin"])),
    "sub-missing": lambda g: bearer(g.with_claims(sub=None)),
    "sub-empty": lambda g: bearer(g.with_claims(sub="")),
    "sub-header": lambda g: bearer(g.with_claims(sub="ann\r\nX-Loopbox-Role: admin")),
    "sub-newline": lambda g: bearer(g.with_claims(sub="ann\n")),
    "sub-long": lambda g: bearer(g.with_claims(sub="a" * 65)),
    "sub-space": lambda g: bearer(g.with_claims(sub="ann admin")),
    "jti-missing": lambda g: bearer(g.with_claims(jti=None)),
    "jti-text": lambda g: bearer(g.with_claims(jti="x")),
    "jti-newline": lambda g: bearer(g.with_claims(jti=g.claims["jti"] + "\n")),
    # form
    "tampered-claims": tampered,
    "tampered-header": lambda g: bearer(
        f"{b64(json.dumps({**g.header, 'typ': 'at+jwt'}).encode())}.{parts(g)[1]}.{parts(g)[2]}"
    ),
    "signature-cut": lambda g: bearer(g.token[:-20]),
    "signature-flipped": lambda g: bearer(f"{parts(g)[0]}.{parts(g)[1]}.{'A' * 342}"),
    "two-parts": lambda g: bearer(".".join(parts(g)[:2])),
    "four-parts": lambda g: bearer(g.token + ".AAAA"),
    "five-parts": lambda g: bearer(g.token + ".AAAA.BBBB"),
    "empty-parts": lambda _: bearer(".."),
    "no-token": lambda _: [("Authorization", "Bearer ")],
    "one-word": lambda g: [("Authorization", g.token)],
    "not-base64": lambda g: bearer("".join(f"{p}!!." for p in parts(g)).rstrip(".")),
    "padded": lambda g: bearer("=.".join(parts(g)) + "="),
    "standard-base64": lambda g: bearer(".".join("+/" + p[2:] for p in parts(g))),
    "space-inside": lambda g: bearer(g.token[:40] + " " + g.token[40:]),
    "header-no-json": lambda g: bearer(forge("{", g.claims, g.sign)),
    "header-list": lambda g: bearer(forge([g.header], g.claims, g.sign)),
    "claims-no-json": lambda g: bearer(forge(g.header, "not json", g.sign)),
    "claims-list": lambda g: bearer(forge(g.header, [g.claims], g.sign)),
    "claims-deep": lambda g: bearer(forge(g.header, "[" * 1500, g.sign)),
    "header-not-utf8": lambda g: bearer(forge(b"\xff\xfe" * 20, g.claims, g.sign)),
    "oversize-claims": lambda g: bearer(g.with_claims(pad="x" * 4000)),
    "oversize-header": lambda g: bearer(g.with_header(pad="x" * 4000)),
    "oversize-signature": lambda g: bearer(g.token + "A" * 6000),
    # around it
    "none-at-all": lambda _: [],
    "basic": lambda _: [("Authorization", "Basic " + base64.b64encode(b"ann:x").decode())],
    "token-scheme": lambda g: [("Authorization", f"Token {g.token}")],
    "two-headers-same": lambda g: [*bearer(g.token), *bearer(g.token)],
    "two-headers-first-good": lambda g: [*bearer(g.token), *bearer(g.by_attacker())],
    "two-headers-last-good": lambda g: [*bearer(g.by_attacker()), *bearer(g.token)],
    "two-headers-one-empty": lambda g: [*bearer(g.token), ("Authorization", "")],
    "comma-joined": lambda g: bearer(f"{g.token}, Bearer {g.token}"),
    "cookie": lambda g: [("Cookie", f"Authorization=Bearer {g.token}; token={g.token}")],
    "other-header": lambda g: [("Proxy-Authorization", f"Bearer {g.token}"), ("X-Access-Token", g.token)],
    "forged-identity": lambda _: [("X-Loopbox-User", "root"), ("X-Loopbox-Role", "admin")],
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_nobody_is_let_in_with(gate: Gate, name: str) -> None:
    status, who = await gate.door.ask(ATTACKS[name](gate))
    assert (status, who) in ((401, None), (400, None)), "400: a header that is no HTTP"


async def test_the_tokens_that_attacks_are_made_of_are_good(gate: Gate) -> None:
    """Else every attack would be refused for another reason than the one it stands for."""
    for token in (gate.token, gate.with_claims(), gate.with_header(), gate.with_claims(sub="bob", role="viewer")):
        claims = gate.desk.claims(token)
        assert await gate.door.ask(bearer(token)) == (200, (claims["sub"], claims["role"]))


@pytest.mark.parametrize(
    "claims",
    [{"exp": -25}, {"nbf": 28}, {"exp": 5, "nbf": -5}],
    ids=["just-expired", "just-too-early", "short"],
)
async def test_clocks_may_differ_by_half_a_minute(gate: Gate, claims: dict[str, int]) -> None:
    token = gate.with_claims(**{name: now() + s for name, s in claims.items()})
    assert (await gate.door.ask(bearer(token)))[0] == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_schemes_case_does_not_matter(gate: Gate, scheme: str) -> None:
    assert (await gate.door.ask([("Authorization", f"{scheme} {gate.token}")]))[0] == 200


async def test_what_a_client_says_about_itself_changes_nothing(gate: Gate) -> None:
    token = await gate.desk.issue("vic", Role.VIEWER)
    for user, role in (("X-Loopbox-User", "X-Loopbox-Role"), ("x_loopbox_user", "x_loopbox_role")):
        forged = [(user, "root"), (role, "admin"), (role, "admin"), *bearer(token)]
        assert await gate.door.ask(forged) == (200, ("vic", "viewer"))


async def test_a_revoked_token_is_worth_nothing_at_once(gate: Gate) -> None:
    token, other = await gate.desk.issue(), await gate.desk.issue()
    assert (await gate.door.ask(bearer(token)))[0] == 200
    await gate.desk.tokens.revoke("stolen", jti=gate.desk.claims(token)["jti"])
    assert await gate.desk.doors.tell()
    assert (await gate.door.ask(bearer(token)))[0] == 401
    assert (await gate.door.ask(bearer(other)))[0] == 200


async def test_a_stolen_refresh_token_ends_its_login(gate: Gate) -> None:
    """Thief and owner both used it: whoever is second shows it, and both must log in again."""
    await gate.desk.users.add(f"eve{now()}", Role.USER, PASSWORD)
    user = (await gate.desk.users.newest())[-1].name
    first = await gate.desk.login.log_in(user, PASSWORD, "127.0.0.1")
    second = await gate.desk.login.refresh(first.refresh, "127.0.0.1")
    for pair in (first, second):
        assert (await gate.door.ask(bearer(pair.access.text)))[0] == 200
        assert (await gate.door.ask(bearer(pair.refresh)))[0] == 401, "a refresh token opens no door"
    with pytest.raises(Exception, match="used before"):
        await gate.desk.login.refresh(first.refresh, "127.0.0.1")
    with pytest.raises(Exception, match="not valid"):
        await gate.desk.login.refresh(second.refresh, "127.0.0.1")
    for pair in (first, second):
        assert (await gate.door.ask(bearer(pair.access.text)))[0] == 401


async def test_rotated_keys_overlap_and_a_revoking_rotation_ends_all(gate: Gate) -> None:
    """Last in this file: afterwards the gate's token is worth nothing."""
    old = gate.token
    kid = await gate.desk.doors.rotate("a test")
    new = await gate.desk.issue()
    assert gate.desk.header(new)["kid"] == kid != gate.desk.header(old)["kid"]
    for token in (old, new):
        assert (await gate.door.ask(bearer(token)))[0] == 200
    await gate.desk.doors.rotate("stolen", revoke=True)
    for token in (old, new):
        assert (await gate.door.ask(bearer(token)))[0] == 401
    gate.token = await gate.desk.issue()
    assert (await gate.door.ask(bearer(gate.token)))[0] == 200
