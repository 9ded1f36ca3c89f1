"""`loopctl user`, `loopctl token` and how `loopctl ask` lets itself in: the real program, a whole loopd behind it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import jwt
import pytest
from aiohttp import web
from typer.testing import CliRunner

from loopd.cli.main import app
from loopd.config import Settings
from running_loopd import running, settings_at

DAEMON = Path(__file__).parents[1]
PASSWORD = "correct horse battery staple"


@dataclass
class Program:
    """loopctl, and the loopd it speaks with."""

    settings: Settings
    seen: list[str] = field(default_factory=list)  #: Authorization headers that reached the gateway

    async def run(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> str:
        """Run the real program; return what it said on both streams."""
        program = "import sys; from loopd.cli.main import main; sys.argv[0] = 'loopctl'; main()"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, *arguments),
            env={
                **os.environ,
                "LOOPBOX_HOME": str(self.settings.home),
                "LOOPBOX_RUN_DIR": str(self.settings.run_dir),
                "LOOPBOX_CONTROL_PORT": str(self.settings.control_port),
                "LOOPBOX_PUBLIC_PORT": str(self.settings.public_port),
                "PYTHONPATH": str(DAEMON),
                "COLUMNS": "300",
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(60):
            out, _ = await process.communicate(stdin)
        assert process.returncode == code, out.decode()
        return out.decode()

    async def role_of(self, token: str) -> tuple[int, str]:
        """Ask loopd who a token is."""
        url = f"http://127.0.0.1:{self.settings.control_port}/auth/whoami"
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, headers={"Authorization": f"Bearer {token}"}) as got,
        ):
            return got.status, (await got.json()).get("role", "")


@pytest.fixture
async def loopctl() -> AsyncIterator[Program]:
    base = Path(tempfile.mkdtemp(prefix="lb"))
    settings = settings_at(base)
    program = Program(settings)

    async def answer(request: web.Request) -> web.StreamResponse:
        program.seen.append(request.headers.get("Authorization", ""))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'event: run.completed\ndata: {"output": "Paris"}\n\n')
        return response

    gateway = web.Application()
    gateway.router.add_post("/agents/run-agent", answer)
    runner = web.AppRunner(gateway)
    async with running(settings):
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", settings.public_port).start()
        yield program
        await runner.cleanup()
    shutil.rmtree(base)


async def test_the_life_of_a_user(loopctl: Program) -> None:
    said = await loopctl.run("user", "add", "ann", "--role", "operator", "--password-stdin", stdin=PASSWORD.encode())
    assert "ann has the role operator" in said
    assert PASSWORD not in said
    assert json.loads(await loopctl.run("user", "role", "ann", "viewer", "--json"))["role"] == "viewer"
    await loopctl.run("user", "password", "ann", "--password-stdin", stdin=b"another long password\n")
    assert json.loads(await loopctl.run("user", "disable", "ann", "--json"))["disabled"] is True
    assert "disabled" in await loopctl.run("user", "list")
    await loopctl.run("user", "disable", "ann", "--undo")
    url = f"http://127.0.0.1:{loopctl.settings.control_port}/auth/login"
    async with aiohttp.ClientSession() as session:
        for password, status in (("another long password", 200), (PASSWORD, 401)):
            async with session.post(url, json={"username": "ann", "password": password}) as got:
                assert got.status == status
    assert json.loads(await loopctl.run("user", "remove", "ann", "--json")) == {"removed": "ann"}
    assert json.loads(await loopctl.run("user", "list", "--json")) == {"users": []}
    assert "[not_found]" in await loopctl.run("user", "remove", "ann", code=4)


async def test_the_life_of_a_token(loopctl: Program) -> None:
    issued = await loopctl.run("token", "issue", "--user", "ci", "--role", "viewer", "--ttl", "90d", "--name", "build")
    token = issued.splitlines()[0]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["role"], claims["exp"] - claims["iat"]) == ("ci", "viewer", 90 * 86400)
    assert await loopctl.role_of(token) == (200, "viewer")
    (row,) = json.loads(await loopctl.run("token", "list", "--json"))["tokens"]
    assert (row["user"], row["name"], row["kind"]) == ("ci", "build", "service")
    assert "build" in await loopctl.run("token", "list")
    assert json.loads(await loopctl.run("token", "revoke", row["jti"], "--json")) == {"tokens": 1, "in_force": True}
    assert await loopctl.role_of(token) == (401, "")
    assert "[not_found]" in await loopctl.run("token", "revoke", "f" * 32, code=4)
    assert "0 tokens" in await loopctl.run("token", "revoke", "--user", "nobody")


async def test_keys_rotate_with_overlap_or_without(loopctl: Program) -> None:
    token = (await loopctl.run("token", "issue")).splitlines()[0]
    assert json.loads(await loopctl.run("token", "rotate", "--json"))["verifying"] == 2
    assert (await loopctl.role_of(token))[0] == 200
    assert "1 key verifies" in await loopctl.run("token", "rotate", "--revoke")
    assert (await loopctl.role_of(token))[0] == 401


@pytest.mark.parametrize(
    "arguments",
    [
        ["token", "issue", "--ttl", "1s"],
        ["token", "issue", "--ttl", "400d"],
        ["token", "issue", "--ttl", "x"],
        ["token", "issue", "--user", "a b"],
        ["token", "issue", "--user", ".."],
        ["token", "issue", "--role", "root"],
        ["token", "issue", "--name", "a\nb"],
        ["token", "revoke"],
        ["token", "revoke", "x", "--user", "y"],
        ["user", "add", "ann"],
        ["user", "add", "../x", "--password-stdin"],
        ["user", "role", "ann", "root"],
        ["user", "add", "ann", "--password", "in-the-arguments"],
    ],
)
def test_what_makes_no_sense_is_refused_before_loopd_is_asked(tmp_path: Path, arguments: list[str]) -> None:
    elsewhere = {"LOOPBOX_HOME": str(tmp_path), "LOOPBOX_RUN_DIR": "/nonexistent"}
    assert CliRunner().invoke(app, arguments, env=elsewhere).exit_code == 2


@pytest.mark.parametrize("password", [b"", b"short", b"x" * 300])
def test_an_unfit_password_is_refused(tmp_path: Path, password: bytes) -> None:
    elsewhere = {"LOOPBOX_HOME": str(tmp_path), "LOOPBOX_RUN_DIR": "/nonexistent"}
    result = CliRunner().invoke(app, ["user", "add", "ann", "--password-stdin"], env=elsewhere, input=password)
    assert result.exit_code == 2
    assert "12 to 256" in result.stderr


async def test_on_a_terminal_the_password_is_asked_for_twice_and_not_shown(loopctl: Program) -> None:
    master, slave = pty.openpty()
    program = "import sys; from loopd.cli.main import main; sys.argv[0] = 'loopctl'; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, "user", "add", "tty"),
        env={
            **os.environ,
            "LOOPBOX_HOME": str(loopctl.settings.home),
            "LOOPBOX_RUN_DIR": str(loopctl.settings.run_dir),
            "PYTHONPATH": str(DAEMON),
        },
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    said = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        for prompt in (b"Password: ", b"confirmation: "):
            while prompt not in said:
                said += await loop.run_in_executor(None, os.read, master, 4096)
            os.write(master, f"{PASSWORD}\n".encode())
        assert await process.wait() == 0, said
    os.close(master)
    assert PASSWORD.encode() not in said
    assert "tty" in await loopctl.run("user", "list")


async def test_ask_lets_itself_in_with_a_token_of_minutes(loopctl: Program) -> None:
    assert "Paris" in await loopctl.run("ask", "Capital?")
    scheme, _, token = loopctl.seen[0].partition(" ")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert scheme == "Bearer"
    assert (claims["sub"], claims["role"]) == ("local", "admin")
    assert claims["exp"] - claims["iat"] <= 1800
    kept = [path for path in loopctl.settings.home.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert kept == []


async def test_audit_verify_says_whether_an_entry_was_changed_and_which(loopctl: Program) -> None:
    good = await loopctl.run("audit", "verify")
    assert (good[0], good.count("✔")) == ("✔", 1), good
    with closing(sqlite3.connect(loopctl.settings.home / "audit.db")) as trail:
        trail.execute("UPDATE entries SET user = 'somebody' WHERE seq = 1")
        trail.commit()
    bad = await loopctl.run("audit", "verify", code=1)
    assert bad.startswith("✖ entry 1 of the audit trail: "), bad
