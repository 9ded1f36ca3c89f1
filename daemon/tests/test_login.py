"""Users, logins and tokens on a real state.db: who gets in, what is written down, what ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest
from doors_rig import PASSWORD, Desk, open_desk
from hypothesis import given
from hypothesis import strategies as st

from loopd import login, tokens
from loopd.attempts import Buckets, SlowDownError
from loopd.auth import UnauthenticatedError
from loopd.errors import ConflictError, NotFoundError
from loopd.gateway import Doors, GatewayDownError, InMemoryGateway
from loopd.haproxy_runtime import plan_map
from loopd.passwords import HASHER, NOBODY, PasswordError, Passwords
from loopd.principal import ForbiddenError, Principal, Role, UserNameError
from loopd.tokens import FAMILY_S, ReusedError
from loopd.users import UserExistsError

HERE = "127.0.0.1"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path) as opened:
        yield opened


async def everything_kept(desk: Desk) -> str:
    """Return all that state.db holds, as text."""
    return "\n".join([line async for line in desk.database._connection.iterdump()])


# --- passwords and users


async def test_a_password_is_kept_as_argon2id_and_told_to_nobody(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    await desk.users.add("ann", Role.USER, PASSWORD)
    pair = await desk.login.log_in("ann", PASSWORD, HERE)
    await desk.login.refresh(pair.refresh, HERE)
    with pytest.raises(UnauthenticatedError):
        await desk.login.log_in("ann", "the wrong secret word", HERE)
    kept = await everything_kept(desk) + capsys.readouterr().out + repr(pair)
    for secret in (PASSWORD, "the wrong secret word", pair.refresh, pair.access.text):
        assert secret not in kept
    assert "$argon2id$" in kept


async def test_events_name_who_did_what(desk: Desk) -> None:
    await desk.users.add("ann", Role.USER, PASSWORD)
    pair = await desk.login.log_in("ann", PASSWORD, HERE)
    await desk.login.refresh(pair.refresh, HERE)
    for name in ("ann", "hunter2-typed-here"):
        with pytest.raises(UnauthenticatedError):
            await desk.login.log_in(name, "wrong", HERE)
    await desk.login.log_out(await desk.tokens.verify(await desk.issue("bob", Role.USER)))
    await desk.users.change("ann", disabled=True)
    await desk.users.remove("ann")
    assert await desk.events() == [
        "user.added",
        "login.accepted",
        "token.refreshed",
        "login.refused",
        "login.refused",
        "token.issued",
        "token.revoked",
        "user.changed",
        "user.removed",
    ]
    assert "hunter2" not in await everything_kept(desk), "a name nobody has may be a password in the wrong field"
    assert await desk.ledger.verify() is None


@pytest.mark.parametrize("password", ["", "short", "x" * 11, "x" * 1025, "é" * 600])
async def test_an_unfit_password_is_refused(desk: Desk, password: str) -> None:
    with pytest.raises(PasswordError):
        await desk.users.add("ann", Role.USER, password)
    assert await desk.users.newest() == []


@pytest.mark.parametrize("name", ["", "a b", "a\n", "é", "a" * 65, ".", "..", ".hidden", "a/b", "a:b", "a\0"])
async def test_a_name_that_could_be_more_than_a_name_is_refused(desk: Desk, name: str) -> None:
    with pytest.raises(UserNameError):
        await desk.users.add(name, Role.USER, PASSWORD)
    with pytest.raises(UserNameError):
        await desk.issue(name)


async def test_a_name_is_taken_once_and_local_never(desk: Desk) -> None:
    await desk.users.add("ann", Role.USER, PASSWORD)
    for name in ("ann", "local"):
        with pytest.raises(UserExistsError):
            await desk.users.add(name, Role.USER, PASSWORD)


async def test_who_is_unknown_takes_as_long_as_who_is_known() -> None:
    """The hash of nobody has the parameters of everybody's."""
    assert not HASHER.check_needs_rehash(NOBODY)
    passwords = Passwords()
    kept = await passwords.hash(PASSWORD)
    assert await passwords.fits(PASSWORD, kept)
    for nobody in (None, ""):
        assert not await passwords.fits(PASSWORD, nobody)
    spent = []
    for stored in (kept, None):
        began = time.perf_counter()
        for _ in range(5):
            await passwords.fits("wrong", stored)
        spent.append(time.perf_counter() - began)
    assert 0.2 < spent[0] / spent[1] < 5


async def test_hashing_leaves_the_loop_free_and_one_runs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    def slow(_: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return "hash"

    monkeypatch.setattr("loopd.passwords.HASHER", type("Slow", (), {"hash": staticmethod(slow)}))
    passwords = Passwords()
    await asyncio.gather(*(passwords.hash(PASSWORD) for _ in range(10)))
    assert most == 1


# --- logins


async def test_a_user_that_may_not_log_in_hears_the_same_as_one_that_is_unknown(desk: Desk) -> None:
    await desk.users.add("ann", Role.USER, PASSWORD)
    await desk.users.change("ann", disabled=True)
    said = set()
    for name, password in (("ann", PASSWORD), ("ann", "wrong"), ("nobody", PASSWORD), ("a\nb", "x" * 5000)):
        with pytest.raises(UnauthenticatedError) as caught:
            await desk.login.log_in(name, password, HERE)
        said.add(str(caught.value))
    assert len(said) == 1


async def test_guessing_gets_slow_by_user_and_by_address_and_nothing_is_hashed_meanwhile(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.users.add("ann", Role.USER, PASSWORD)
    for number in range(login.USER_FREE):
        with pytest.raises(UnauthenticatedError):
            await desk.login.log_in("ann", "wrong", f"10.0.0.{number}")
    refused = len(await desk.events())
    monkeypatch.setattr("loopd.passwords.HASHER", None)
    with pytest.raises(SlowDownError):
        await desk.login.log_in("ann", PASSWORD, "10.0.0.99")
    monkeypatch.undo()
    assert len(await desk.events()) == refused, "what was not looked at is not written down"
    for number in range(login.ADDRESS_FREE):
        with pytest.raises(UnauthenticatedError):
            await desk.login.log_in(f"user{number}", "wrong", "10.9.9.9")
    with pytest.raises(SlowDownError):
        await desk.login.log_in("bob", "wrong", "10.9.9.9")


async def test_logins_and_exchanges_of_an_address_are_limited(tmp_path: Path) -> None:
    async with open_desk(tmp_path, login_rate=0.001) as desk:
        for _ in range(5):
            with pytest.raises(UnauthenticatedError):
                await desk.login.refresh("x", HERE)
        with pytest.raises(SlowDownError):
            await desk.login.refresh("x", HERE)
        with pytest.raises(UnauthenticatedError):
            await desk.login.refresh("x", "10.0.0.1")


async def test_everybody_together_is_limited(desk: Desk) -> None:
    desk.login.everybody = Buckets(0.001, 1)
    with pytest.raises(UnauthenticatedError):
        await desk.login.log_in("a", "wrong", "10.0.0.1")
    with pytest.raises(SlowDownError):
        await desk.login.log_in("b", "wrong", "10.0.0.2")


async def test_one_user_has_so_many_logins_and_the_oldest_ends(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST_FAMILIES", 2)
    await desk.users.add("ann", Role.USER, PASSWORD)
    pairs = []
    for second in range(3):
        desk.tokens.clock = lambda second=second: time.time() + second  # type: ignore[misc]  # a default binds it
        pairs.append(await desk.login.log_in("ann", PASSWORD, HERE))
    with pytest.raises(UnauthenticatedError):
        await desk.tokens.verify(pairs[0].access.text)
    for pair in pairs[1:]:
        await desk.tokens.verify(pair.access.text)


# --- tokens


async def test_what_a_token_says(desk: Desk) -> None:
    token = await desk.issue("ann", Role.OPERATOR, ttl_s=1800)
    claims, header = desk.claims(token), jwt.get_unverified_header(token)
    assert header == {"alg": "RS256", "typ": "JWT", "kid": desk.keyring.current.kid}
    assert {name: claims[name] for name in ("iss", "aud", "sub", "role")} == {
        "iss": "loopbox",
        "aud": "loopbox",
        "sub": "ann",
        "role": "operator",
    }
    assert claims["exp"] - claims["iat"] == 1800
    assert claims["nbf"] == claims["iat"]
    who = await desk.tokens.verify(token)
    assert (who.user, who.role, who.kind, who.jti) == ("ann", Role.OPERATOR, "service", claims["jti"])


async def test_a_refresh_token_is_good_once_also_when_it_comes_twice_at_the_same_time(desk: Desk) -> None:
    await desk.users.add("ann", Role.USER, PASSWORD)
    pair = await desk.login.log_in("ann", PASSWORD, HERE)
    told = await asyncio.gather(*(desk.login.refresh(pair.refresh, HERE) for _ in range(5)), return_exceptions=True)
    assert len([one for one in told if not isinstance(one, BaseException)]) <= 1
    assert [one for one in told if isinstance(one, ReusedError)]
    assert await desk.tokens.living() == []


async def test_a_refresh_token_ends_with_its_time_its_login_its_user(desk: Desk) -> None:
    await desk.users.add("ann", Role.USER, PASSWORD)
    for end in ("time", "logout", "disabled", "removed"):
        desk.tokens.clock = time.time
        pair = await desk.login.log_in("ann", PASSWORD, HERE)
        match end:
            case "time":
                desk.tokens.clock = lambda: time.time() + 86401
            case "logout":
                await desk.login.log_out(await desk.tokens.verify(pair.access.text))
            case "disabled":
                await desk.users.change("ann", disabled=True)
            case _:
                await desk.users.remove("ann")
        with pytest.raises(UnauthenticatedError):
            await desk.login.refresh(pair.refresh, HERE)
        if end == "disabled":
            await desk.users.change("ann", disabled=False)


async def test_an_exchange_gives_the_role_of_now_and_ends_after_a_month(desk: Desk) -> None:
    await desk.users.add("ann", Role.ADMIN, PASSWORD)
    pair = await desk.login.log_in("ann", PASSWORD, HERE)
    await desk.users.change("ann", role=Role.VIEWER)
    began = time.time()
    pair = await desk.login.refresh(pair.refresh, HERE)
    assert pair.access.role is Role.VIEWER
    days = 0
    with pytest.raises(UnauthenticatedError):
        while days < 60:
            days += 1
            desk.tokens.clock = lambda days=days: began + days * 86000  # type: ignore[misc]  # a default binds it
            pair = await desk.login.refresh(pair.refresh, HERE)
    assert FAMILY_S // 86000 <= days <= FAMILY_S // 86000 + 2


async def test_a_token_never_says_more_than_its_user_may(desk: Desk) -> None:
    await desk.users.add("ann", Role.USER, PASSWORD)
    await desk.issue("ann", Role.VIEWER)
    with pytest.raises(ConflictError, match="less than admin"):
        await desk.issue("ann", Role.ADMIN)
    await desk.users.change("ann", disabled=True)
    with pytest.raises(ConflictError, match="disabled"):
        await desk.issue("ann", Role.VIEWER)


async def test_service_tokens_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST_SERVICE", 2)
    await desk.issue()
    await desk.issue()
    with pytest.raises(ConflictError, match="service tokens"):
        await desk.issue()


async def test_what_is_revoked_is_listed_for_the_gateway_until_it_would_have_expired(desk: Desk) -> None:
    token = await desk.issue("ann", ttl_s=60)
    claims = desk.claims(token)
    assert await desk.tokens.revoked() == {}
    assert await desk.tokens.revoke("stolen", jti=claims["jti"]) == 1
    assert await desk.tokens.revoke("stolen", jti=claims["jti"]) == 0
    assert await desk.tokens.revoked() == {claims["jti"]: claims["exp"]}
    desk.tokens.clock = lambda: time.time() + 89
    assert await desk.tokens.revoked() == {claims["jti"]: claims["exp"]}, "the gateway's leeway is not over"
    desk.tokens.clock = lambda: time.time() + 91
    assert await desk.tokens.revoked() == {}
    assert await desk.tokens.prune() == 1
    with pytest.raises(NotFoundError):
        await desk.tokens.revoke("stolen", jti=claims["jti"])


async def test_the_list_shows_what_lives_and_no_text(desk: Desk) -> None:
    await desk.users.add("ann", Role.USER, PASSWORD)
    pair = await desk.login.log_in("ann", PASSWORD, HERE)
    await desk.login.refresh(pair.refresh, HERE)
    service = await desk.issue("ci", Role.USER)
    rows = await desk.tokens.living()
    assert sorted(row.kind for row in rows) == ["access", "access", "refresh", "service"]
    assert service not in json.dumps([repr(row) for row in rows])


async def test_the_token_of_a_login_revokes_all_of_the_login(desk: Desk) -> None:
    await desk.users.add("ann", Role.USER, PASSWORD)
    first = await desk.login.log_in("ann", PASSWORD, HERE)
    other = await desk.login.log_in("ann", PASSWORD, HERE)
    second = await desk.login.refresh(first.refresh, HERE)
    await desk.tokens.revoke("stolen", jti=first.access.jti)
    for dead in (first, second):
        with pytest.raises(UnauthenticatedError):
            await desk.tokens.verify(dead.access.text)
    await desk.tokens.verify(other.access.text)
    assert await desk.tokens.revoke("stolen", user="ann") == 2


# --- keys and the gateway


async def test_a_gateway_that_does_not_answer_gets_no_new_key_and_nothing_is_signed_with_it(tmp_path: Path) -> None:
    gateway = InMemoryGateway()
    async with open_desk(tmp_path, gateway) as desk:
        kid = desk.keyring.current.kid
        gateway.down = True
        with pytest.raises(GatewayDownError):
            await desk.doors.rotate("a test")
        assert desk.keyring.current.kid == kid
        assert len(list((tmp_path / "keys").iterdir())) == 1
        gateway.down = False
        new = await desk.doors.rotate("a test")
        await desk.doors.drop_idle()
        await desk.doors.tell()
        assert gateway.doors is not None
        assert [key.kid for key in gateway.doors.keys] == [new], "the old one had signed nothing"


async def test_an_old_key_verifies_until_its_last_token_is_over(desk: Desk) -> None:
    token = await desk.issue("ann", ttl_s=600)
    await desk.doors.rotate("a test")
    await desk.doors.rotate("another")
    await desk.doors.drop_idle()
    assert len(desk.keyring.public()) == 2, "the one between has signed nothing"
    await desk.tokens.verify(token)
    await desk.doors.rotate("a third")
    assert len(desk.keyring.public()) == 3
    desk.tokens.clock = lambda: time.time() + 631
    await desk.doors.drop_idle()
    assert len(desk.keyring.public()) == 1


async def test_keys_rotate_by_themselves_when_it_is_time(desk: Desk) -> None:
    kid = desk.keyring.current.kid
    desk.doors.rotate_s, desk.doors.look_s = 1e-9, 1000
    task = asyncio.create_task(desk.doors.run_forever())
    async with asyncio.timeout(10):
        while "key.rotated" not in await desk.events():
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert desk.keyring.current.kid != kid


async def test_what_the_gateway_was_not_told_it_is_told_at_the_next_look(tmp_path: Path) -> None:
    gateway = InMemoryGateway(down=True)
    async with open_desk(tmp_path, gateway) as desk:
        desk.doors.look_s = 0.01
        token = desk.claims(await desk.issue())
        await desk.tokens.revoke("stolen", jti=token["jti"])
        assert not await desk.doors.tell()
        gateway.doors = nothing = Doors(keys=(), revoked={})
        gateway.down = False
        task = asyncio.create_task(desk.doors.run_forever())
        async with asyncio.timeout(10):
            while gateway.doors is nothing:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert token["jti"] in gateway.doors.revoked


@given(
    st.dictionaries(st.text("0123456789abcdef", min_size=32, max_size=32), st.integers(0, 2**32), max_size=120),
    st.dictionaries(st.text("0123456789abcdef", min_size=32, max_size=32), st.integers(0, 2**32), max_size=120),
)
def test_the_plan_turns_the_map_there_is_into_the_wanted_one(have: dict[str, int], wanted: dict[str, int]) -> None:
    found = dict(have)
    shown = "".join(f"0x55{number:04x} {key} {value}\n" for number, (key, value) in enumerate(have.items()))
    for line in plan_map("/run/gateway/revoked.map", wanted, shown + "\n"):
        assert len(line) < 16384, "HAProxy reads no longer line"
        for command in line.split("; "):
            match command.split():
                case ["add", "map", _, key, value]:
                    assert key not in found, "HAProxy would keep both"
                    found[key] = int(value)
                case ["del", "map", _, key]:
                    del found[key]
                case other:
                    pytest.fail(str(other))
    assert set(found) == set(wanted)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("needed", Role)
def test_a_role_may_what_those_before_it_may(role: Role, needed: Role) -> None:
    who = Principal(user="x", role=role, kind="access")
    if list(Role).index(role) >= list(Role).index(needed):
        who.require(needed)
    else:
        with pytest.raises(ForbiddenError, match=needed):
            who.require(needed)
