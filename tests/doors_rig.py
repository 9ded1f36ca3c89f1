"""doors_rig: users, tokens and keys on a real state.db, before the two doors that verify tokens: gateway and loopd."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import jwt
from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from multidict import CIMultiDict
from real_haproxy import RealHaproxy, agent, open_haproxy, route
from stub_engine import Stub, serving

from loopd.api.auth import AuthRoutes
from loopd.api.users import UserRoutes
from loopd.app import build_app, serve_unix
from loopd.attempts import Buckets
from loopd.auth import ensure_token
from loopd.doors import DoorKeeper
from loopd.gateway import Gateway, InMemoryGateway, ServerState
from loopd.haproxy_auth import SOCKET
from loopd.haproxy_limits import RateLimits
from loopd.identity import Identity
from loopd.keys import Keyring
from loopd.ledger import Ledger
from loopd.login import Login
from loopd.metrics import build_metrics
from loopd.passwords import Passwords
from loopd.principal import Role
from loopd.state import Database, open_database
from loopd.tokens import Tokens
from loopd.users import Users

ISSUER = "loopbox"
PASSWORD = "correct horse battery staple"
Headers = Sequence[tuple[str, str]]

_ATTACKER: list[rsa.RSAPrivateKey] = []
_OURS: dict[str, bytes] = {}  # file name -> key: making one takes a tenth of a second


def attacker_key() -> rsa.RSAPrivateKey:
    """Return a key that is not ours; made once, since that takes long."""
    if not _ATTACKER:
        _ATTACKER.append(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    return _ATTACKER[0]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(header: object, claims: object, sign: Callable[[bytes], bytes]) -> str:
    """Return a token of any header and claims; a ``str`` or ``bytes`` is put in as it is."""

    def part(value: object) -> str:
        raw = (
            value
            if isinstance(value, bytes)
            else value.encode()
            if isinstance(value, str)
            else json.dumps(value).encode()
        )
        return b64(raw)

    text = f"{part(header)}.{part(claims)}"
    return f"{text}.{b64(sign(text.encode()))}"


def rs(key: rsa.RSAPrivateKey, digest: hashes.HashAlgorithm | None = None) -> Callable[[bytes], bytes]:
    return lambda data: key.sign(data, padding.PKCS1v15(), digest or hashes.SHA256())


def ps(key: rsa.RSAPrivateKey) -> Callable[[bytes], bytes]:
    return lambda data: key.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def bearer(token: str) -> Headers:
    return [("Authorization", f"Bearer {token}")]


@dataclass
class Desk:
    """loopd's side: where tokens are made and revoked."""

    folder: Path
    database: Database
    ledger: Ledger
    users: Users
    keyring: Keyring
    tokens: Tokens
    doors: DoorKeeper
    login: Login

    async def issue(self, user: str = "ann", role: Role = Role.ADMIN, ttl_s: int = 600) -> str:
        """Return a token that is good."""
        issued = await self.tokens.issue(user, role, ttl_s=ttl_s, name="test", kind="service", told="a test")
        return issued.text

    def claims(self, token: str) -> dict[str, Any]:
        return dict(jwt.decode(token, options={"verify_signature": False}))

    def header(self, token: str) -> dict[str, Any]:
        return dict(jwt.get_unverified_header(token))

    async def events(self) -> list[str]:
        return [entry.event for entry in await self.ledger.read()]


@contextlib.asynccontextmanager
async def open_desk(folder: Path, gateway: Gateway | None = None, *, login_rate: float = 0.0) -> AsyncIterator[Desk]:
    """Open one on a folder; ``login_rate`` 0: logins are not limited."""
    (folder / "keys").mkdir(mode=0o700, exist_ok=True)
    for name, pem in _OURS.items():
        (folder / "keys" / name).write_bytes(pem)
    async with open_database(folder / "state.db") as database:
        ledger = Ledger(database)
        users = Users(database, ledger, Passwords())
        keyring = await asyncio.to_thread(Keyring.open, folder / "keys")
        if not _OURS:
            _OURS[keyring.current.path.name] = keyring.current.path.read_bytes()
        tokens = Tokens(database=database, ledger=ledger, users=users, keyring=keyring, issuer=ISSUER)
        doors = DoorKeeper(
            tokens=tokens, keyring=keyring, gateway=gateway or InMemoryGateway(), ledger=ledger, rotate_s=0
        )
        login = Login(
            users=users,
            tokens=tokens,
            ledger=ledger,
            per_address=Buckets(login_rate, 5),
            tell=doors.tell,
            everybody=Buckets(0, 1),
        )
        yield Desk(folder, database, ledger, users, keyring, tokens, doors, login)


class Door(Protocol):
    """What verifies tokens."""

    async def ask(self, headers: Headers, method: str = "GET") -> tuple[int, tuple[str, str] | None]:
        """Ask for something that every role may read; return the status, and who it was taken to be."""
        ...


@dataclass
class ControlDoor:
    """loopd's own."""

    url: str
    session: aiohttp.ClientSession

    async def ask(self, headers: Headers, method: str = "GET") -> tuple[int, tuple[str, str] | None]:
        async with self.session.request(method, f"{self.url}/auth/whoami", headers=CIMultiDict(headers)) as response:
            body = await response.json()
            if response.status == 401:
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
                assert body["error"]["code"] == "unauthenticated"
            return response.status, (body["user"], body["role"]) if response.status == 200 else None


@dataclass
class GatewayDoor:
    """A real HAProxy before a stub agent that is the engine, too."""

    haproxy: RealHaproxy
    stub: Stub
    session: aiohttp.ClientSession
    websockets: list[aiohttp.ClientWebSocketResponse] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.haproxy.url

    async def ask(self, headers: Headers, method: str = "GET") -> tuple[int, tuple[str, str] | None]:
        before = self.stub.answered
        async with self.session.request(method, f"{self.url}/agents/x", headers=CIMultiDict(headers)) as response:
            body = await response.json()
        if response.status == 401:
            assert response.headers["WWW-Authenticate"].startswith('Bearer realm="loopbox"')
            assert body["error"]["code"] == "unauthenticated"
            assert body["error"]["details"]["correlation_id"]
        if response.status != 200:
            assert self.stub.answered == before, "it was passed on all the same"
            return response.status, None
        return 200, (self.stub.headers["X-Loopbox-User"], self.stub.headers["X-Loopbox-Role"])


@contextlib.asynccontextmanager
async def open_control(desk: Desk) -> AsyncIterator[ControlDoor]:
    """Serve loopd's endpoints about logins and users on TCP."""
    endpoints = (*AuthRoutes(login=desk.login).endpoints(), *UserRoutes(users=desk.users, doors=desk.doors).endpoints())
    identity = Identity(tokens=desk.tokens, control=ensure_token(desk.folder / "control.token"))
    runner = web.AppRunner(build_app(endpoints, build_metrics(), identity=identity, body_bytes=1 << 20))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            yield ControlDoor(f"http://127.0.0.1:{runner.addresses[0][1]}", session)
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def open_gateway(folder: Path, **limits: float) -> AsyncIterator[tuple[Desk, GatewayDoor]]:
    """Run a HAProxy that asks for tokens, with loopd's endpoints about logins behind it."""
    async with contextlib.AsyncExitStack() as stack:
        haproxy = await stack.enter_async_context(open_haproxy())
        haproxy.config = replace(haproxy.config, auth=True, limits=RateLimits(**limits))
        stub = Stub("alpha")
        await stack.enter_async_context(serving(stub))
        desk = await stack.enter_async_context(open_desk(folder, haproxy.gateway))
        assert not await desk.doors.tell(), "a gateway that does not run yet was told"
        identity = Identity(tokens=desk.tokens, control=None)
        app = build_app(
            AuthRoutes(login=desk.login).endpoints(),
            build_metrics(),
            identity=identity,
            body_bytes=8192,
            forwarded=True,
        )
        await stack.enter_async_context(serve_unix(app, str(haproxy.directory / SOCKET), mode=0o600))
        await haproxy.start(route("alpha", 100, stub.address), agent(stub.address))
        for server in ("engine/alpha", "agent/agent"):
            await haproxy.until(server, ServerState.UP)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield desk, GatewayDoor(haproxy, stub, session)
