"""What a client finds at a gateway that asks for tokens: roles, limits, logins, revocations. A real HAProxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from doors_rig import PASSWORD, Desk, GatewayDoor, bearer, open_desk, open_gateway
from multidict import CIMultiDict
from real_haproxy import agent, open_haproxy, route
from stub_engine import Stub, serving

from loopd import haproxy_limits
from loopd.gateway import GatewayDownError
from loopd.haproxy_auth import SOCKET
from loopd.haproxy_config import AuthOffError, GatewayConfig
from loopd.haproxy_limits import RateLimits, limits_script
from loopd.principal import Role

Opened = tuple[Desk, GatewayDoor]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Opened]:
    async with open_gateway(tmp_path_factory.mktemp("doors")) as found:
        yield found


async def status(door: GatewayDoor, method: str, path: str, token: str = "", **headers: str) -> int:
    given = CIMultiDict([*(bearer(token) if token else ()), *((k.replace("_", "-"), v) for k, v in headers.items())])
    async with door.session.request(method, door.url + path, headers=given, data=b"{}" * (method == "POST")) as got:
        body = await got.read()
        if got.status == 401:
            assert b'"unauthenticated"' in body or method == "HEAD"
            assert got.headers["WWW-Authenticate"].startswith('Bearer realm="loopbox"')
        if got.status == 403:
            assert b'"forbidden"' in body or method == "HEAD"
        return got.status


REFUSED, LOW, OK = 401, 403, 200
# path -> what nobody, viewer, user, operator and admin get
PATHS = {
    ("GET", "/gateway/health"): (OK, OK, OK, OK, OK),
    ("GET", "/health"): (OK, OK, OK, OK, OK),
    ("GET", "/.well-known/jwks.json"): (OK, OK, OK, OK, OK),
    ("GET", "/health/ready"): (REFUSED, OK, OK, OK, OK),
    ("GET", "/auth/whoami"): (REFUSED, OK, OK, OK, OK),
    ("GET", "/agents/runs"): (REFUSED, OK, OK, OK, OK),
    ("HEAD", "/agents/runs"): (REFUSED, OK, OK, OK, OK),
    ("POST", "/agents/run-agent"): (REFUSED, LOW, OK, OK, OK),
    ("DELETE", "/agents/runs/1"): (REFUSED, LOW, OK, OK, OK),
    ("POST", "/api/generate"): (REFUSED, LOW, OK, OK, OK),
    ("POST", "/v1/chat/completions"): (REFUSED, LOW, OK, OK, OK),
    ("GET", "/api/tags"): (REFUSED, LOW, OK, OK, OK),
    ("GET", "/"): (REFUSED, LOW, OK, OK, OK),
    ("GET", "/metrics"): (REFUSED, LOW, LOW, OK, OK),
    ("GET", "/health/detailed"): (REFUSED, LOW, LOW, OK, OK),
    ("GET", "/api/create"): (403, 403, 403, 403, 403),
    ("GET", "/v1/users"): (404, 404, 404, 404, 404),
    ("GET", "/v1/status"): (404, 404, 404, 404, 404),
    ("GET", "/auth/login"): (405, 405, 405, 405, 405),
    ("POST", "/auth/whoami"): (405, 405, 405, 405, 405),
    ("HEAD", "/auth/whoami"): (405, 405, 405, 405, 405),
    ("GET", "/auth/"): (404, 404, 404, 404, 404),
    ("GET", "/AUTH/whoami"): (404, 404, 404, 404, 404),
    ("GET", "/auth/whoami/../../v1/users"): (404, 404, 404, 404, 404),
}


@pytest.mark.parametrize(("request_", "wanted"), PATHS.items(), ids=[" ".join(key) for key in PATHS])
async def test_each_role_gets_what_is_its_own(
    opened: Opened, request_: tuple[str, str], wanted: tuple[int, ...]
) -> None:
    desk, door = opened
    tokens = ["", *[await desk.issue("ann", role) for role in Role]]
    assert tuple([await status(door, *request_, token) for token in tokens]) == wanted


async def test_a_viewer_runs_nothing_by_an_upgraded_get(opened: Opened) -> None:
    desk, door = opened
    viewer = await desk.issue("vic", Role.VIEWER)
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await door.session.ws_connect(f"{door.url}/agents/ws", headers=CIMultiDict(bearer(viewer)))


async def test_neither_engine_nor_agent_gets_the_token(opened: Opened) -> None:
    desk, door = opened
    token = await desk.issue("ann", Role.USER)
    for path in ("/api/generate", "/agents/run-agent"):
        assert await status(door, "POST", path, token, X_Loopbox_User="root", X_LOOPBOX_SECRET="1") == 200
        assert "Authorization" not in door.stub.headers
        assert "X-Loopbox-Secret" not in door.stub.headers
    assert door.stub.headers.getall("X-Loopbox-User") == ["ann"]  # type: ignore[attr-defined]  # a multidict


async def test_a_websocket_needs_a_token_in_its_header(opened: Opened) -> None:
    desk, door = opened
    token = await desk.issue("ann", Role.USER)
    async with door.session.ws_connect(f"{door.url}/agents/ws", headers=CIMultiDict(bearer(token))) as ws:
        await ws.send_str("hello")
        assert await ws.receive_str() == "hello"
    assert door.stub.headers["X-Loopbox-User"] == "ann"
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await door.session.ws_connect(f"{door.url}/agents/ws")


async def test_a_browsers_websocket_brings_it_as_a_protocol(opened: Opened) -> None:
    desk, door = opened
    token, url = await desk.issue("ann", Role.USER), f"{door.url}/agents/ws"
    async with door.session.ws_connect(url, protocols=("loopbox", f"loopbox.bearer.{token}")) as ws:
        assert ws.protocol == "loopbox"
        await ws.send_str("hello")
        assert await ws.receive_str() == "hello"
    assert door.stub.headers["X-Loopbox-User"] == "ann"
    assert not [name for name in door.stub.headers if "protocol" in name.lower()], "the agent saw the token"
    for protocols in (("loopbox", f"loopbox.bearer.{token[:-30]}"), (f"loopbox.bearer.{token}",), ("loopbox", "x")):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await door.session.ws_connect(url, protocols=protocols)
    # Only an upgrade may: any other request has a header for it.
    assert await status(door, "POST", "/agents/x", Sec_WebSocket_Protocol=f"loopbox, loopbox.bearer.{token}") == 401


async def test_a_user_logs_in_works_exchanges_and_logs_out_through_the_gateway(opened: Opened) -> None:
    desk, door = opened
    await desk.users.add("lea", Role.USER, PASSWORD)

    async def post(path: str, **body: str) -> dict[str, Any]:  # Any: JSON
        async with door.session.post(door.url + path, json=body) as got:
            assert got.status == 200, await got.text()
            assert got.headers["Cache-Control"] == "no-store"
            return dict(await got.json())

    pair = await post("/auth/login", username="lea", password=PASSWORD)
    assert (pair["token_type"], pair["expires_in"], pair["refresh_expires_in"]) == ("Bearer", 1800, 86400)
    assert await status(door, "POST", "/agents/run-agent", pair["access_token"]) == 200
    pair = await post("/auth/refresh", refresh_token=pair["refresh_token"])
    async with door.session.get(f"{door.url}/auth/whoami", headers=CIMultiDict(bearer(pair["access_token"]))) as got:
        who = await got.json()
    assert (who["user"], who["role"], who["kind"]) == ("lea", "user", "access")
    assert await status(door, "POST", "/auth/logout", pair["access_token"]) == 204
    assert await status(door, "GET", "/health/ready", pair["access_token"]) == 401
    async with door.session.post(f"{door.url}/auth/refresh", json={"refresh_token": pair["refresh_token"]}) as got:
        assert got.status == 401
    accepted = [entry for entry in await desk.ledger.read() if entry.event == "login.accepted"]
    assert accepted[-1].detail["address"] == "127.0.0.1"


async def test_the_address_of_a_login_is_the_gateways_word(opened: Opened) -> None:
    """A client that could say where it comes from would never have to wait."""
    desk, door = opened
    body = {"username": "nobody", "password": "wrong"}
    headers = {"X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
    async with door.session.post(f"{door.url}/auth/login", json=body, headers=headers) as got:
        assert got.status == 401
    refused = [entry for entry in await desk.ledger.read() if entry.event == "login.refused"][-1]
    assert (refused.subject, refused.detail["address"]) == ("unknown", "127.0.0.1")


async def test_a_large_login_is_refused_before_loopd_sees_it(opened: Opened) -> None:
    _, door = opened
    async with door.session.post(f"{door.url}/auth/login", data=b"x" * 8193) as got:
        assert got.status == 413


async def test_without_loopd_nobody_logs_in_and_tokens_go_on(opened: Opened) -> None:
    desk, door = opened
    token = await desk.issue("ann", Role.USER)
    path = door.haproxy.directory / SOCKET
    path.rename(path.with_suffix(".away"))
    try:
        async with door.session.post(f"{door.url}/auth/login", json={}) as got:
            assert (got.status, (await got.json())["error"]["code"]) == (503, "unavailable")
        assert await status(door, "POST", "/api/generate", token) == 200
    finally:
        path.with_suffix(".away").rename(path)


async def test_a_revocation_needs_no_reload_and_survives_a_crash_of_the_gateway(opened: Opened) -> None:
    desk, door = opened
    token, other = await desk.issue("ann", Role.USER), await desk.issue("bob", Role.USER)
    processes = await door.haproxy.gateway._processes()
    await desk.tokens.revoke("stolen", user="ann")
    assert await desk.doors.tell()
    assert (await door.haproxy.gateway._processes()).attempts == processes.attempts
    assert await status(door, "GET", "/health/ready", token) == 401
    await door.haproxy.kill()
    late = await desk.issue("ann", Role.USER)
    await desk.tokens.revoke("stolen", user="ann")
    assert not await desk.doors.tell(), "told while it was down"
    await door.haproxy.resume()
    for dead in (token, late):
        assert await status(door, "GET", "/health/ready", dead) == 401
    assert await status(door, "GET", "/health/ready", other) == 200


async def test_expired_revocations_leave_the_gateway(opened: Opened) -> None:
    desk, door = opened
    token = await desk.issue("ann", Role.USER, ttl_s=60)
    jti = desk.claims(token)["jti"]
    await desk.tokens.revoke("stolen", jti=jti)
    assert await desk.doors.tell()
    path = door.haproxy.directory / "revoked.map"
    assert jti in path.read_text()
    assert jti in await door.haproxy.gateway._ask(f"show map {path}")
    real, desk.tokens.clock = desk.tokens.clock, lambda: time.time() + 91
    try:
        assert await desk.doors.tell()
    finally:
        desk.tokens.clock = real
    assert jti not in path.read_text()
    assert jti not in await door.haproxy.gateway._ask(f"show map {path}")


async def test_a_request_on_a_connection_kept_over_a_reload_is_verified_too(opened: Opened) -> None:
    desk, door = opened
    token = await desk.issue("ann", Role.USER)
    async with aiohttp.ClientSession() as session:
        for headers, wanted in ((bearer(token), 200), ((), 401)):
            async with session.get(f"{door.url}/gateway/health") as got:
                assert got.status == 200
            await door.haproxy.gateway.reload()
            async with session.post(f"{door.url}/agents/x", headers=CIMultiDict(headers), json={}) as got:
                assert (got.status, got.headers.get("Connection")) == (wanted, "close")
    assert door.stub.headers["X-Loopbox-User"] == "ann"


async def test_the_access_log_names_the_user_and_never_the_token(opened: Opened) -> None:
    desk, door = opened
    token = await desk.issue("logged.user", Role.USER)
    await status(door, "POST", "/api/generate", token)
    async with asyncio.timeout(10):
        while '"user":"logged.user"' not in (text := (door.haproxy.directory / "log").read_text()):
            await asyncio.sleep(0.01)
    assert token[-40:] not in text


async def test_before_it_has_its_first_servers_the_gateway_is_told_nothing(tmp_path: Path) -> None:
    async with open_haproxy() as haproxy, open_desk(tmp_path) as desk:
        with pytest.raises(GatewayDownError, match="first servers"):
            await haproxy.gateway.admit(await desk.doors.wanted())


async def test_without_authentication_everybody_is_local_admin(tmp_path: Path) -> None:
    async with open_haproxy() as haproxy, serving(stub := Stub("a")), aiohttp.ClientSession() as session:
        await haproxy.start(route("a", 100, stub.address), agent(stub.address))
        headers = {"X-Loopbox-User": "root", "Authorization": "Bearer ollama"}
        async with session.post(f"{haproxy.url}/agents/x", headers=headers) as got:
            assert got.status == 200
        assert (stub.headers["X-Loopbox-User"], stub.headers["X-Loopbox-Role"]) == ("local", "admin")
        assert "Authorization" not in stub.headers


async def test_without_authentication_only_this_host_may_reach_it() -> None:
    config = GatewayConfig(public_port=1, internal_address="", internal_port=2, max_body_bytes=1)
    for address in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(AuthOffError, match=r"auth\.mode"):
            replace(config, public_address=address)
    assert replace(config, public_address="0.0.0.0", auth=True).auth


# --- how often


async def burst(door: GatewayDoor, number: int, token: str = "", path: str = "/api/tags") -> list[tuple[int, str]]:
    """Return status and Retry-After of requests one after the other."""
    answers = []
    for _ in range(number):
        async with door.session.get(door.url + path, headers=CIMultiDict(bearer(token) if token else ())) as got:
            answers.append((got.status, got.headers.get("Retry-After", "")))
            if got.status == 429:
                assert (await got.json())["error"]["code"] == "too_many_requests"
    return answers


async def test_a_users_bucket_is_its_own_and_says_when_there_is_more(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, user_rate=0.25, user_burst=3) as (desk, door):
        ann, bob = await desk.issue("ann", Role.USER), await desk.issue("bob", Role.USER)
        answers = await burst(door, 5, ann)
        assert [code for code, _ in answers] == [200, 200, 200, 429, 429]
        assert {wait for _, wait in answers[3:]} <= {"4", "3"}, "one token in four seconds"
        assert await burst(door, 1, bob) == [(200, "")]
        other = await desk.issue("ann", Role.USER)
        assert (await burst(door, 1, other))[0][0] == 429, "another token of the same user is no new bucket"
        assert (await burst(door, 1))[0][0] == 401, "who is refused takes nothing of anybody's"


async def test_a_bucket_fills_at_its_rate(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, user_rate=20, user_burst=1) as (desk, door):
        token = await desk.issue("ann", Role.USER)
        await asyncio.sleep(0.06)
        began, served = time.monotonic(), 0
        while time.monotonic() - began < 1.0:
            served += (await burst(door, 1, token))[0][0] == 200
        assert 15 <= served <= 22


async def test_an_addresss_bucket_comes_before_its_token_is_looked_at(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, address_rate=0.1, address_burst=4) as (_, door):
        assert [code for code, _ in await burst(door, 6)] == [401] * 4 + [429] * 2
        assert [code for code, _ in await burst(door, 3, path="/gateway/health")] == [200] * 3, "the gateway's own"


async def test_logins_have_a_stricter_bucket(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, login_rate=0.1, login_burst=2) as (desk, door):
        codes = []
        for _ in range(4):
            async with door.session.post(f"{door.url}/auth/login", json={"username": "x", "password": "y"}) as got:
                codes.append(got.status)
        assert codes == [401, 401, 429, 429]
        assert (await burst(door, 1, await desk.issue("ann", Role.USER)))[0][0] == 200


async def test_after_a_minute_of_silence_a_bucket_is_forgotten_and_full(tmp_path: Path) -> None:
    """Generations turn once a bucket had time to fill: what is forgotten would be full."""
    async with open_gateway(tmp_path, user_rate=10, user_burst=2) as (desk, door):
        token = await desk.issue("ann", Role.USER)
        for _ in range(3):
            assert [code for code, _ in await burst(door, 4, token)][:2] == [200, 200]
            await asyncio.sleep(0.3)


async def test_while_there_are_too_many_users_the_new_ones_share_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is remembered is bounded, and whoever brings ever new names gets no more for it."""
    monkeypatch.setattr(haproxy_limits, "MOST_KEYS", 2)
    async with open_gateway(tmp_path, user_rate=0.01, user_burst=1) as (desk, door):
        codes = []
        for user in ("ann", "bob", "cy", "dan", "eve", "ann"):
            codes += [code for code, _ in await burst(door, 1, await desk.issue(user, Role.USER))]
        assert codes == [200, 200, 200, 429, 429, 429]


async def test_limits_that_are_off_are_not_in_the_script() -> None:
    assert "register_action" not in limits_script(RateLimits())
    assert limits_script(RateLimits(user_rate=1)).count("register_action") == 1
