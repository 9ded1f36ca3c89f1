"""Alerts reach a real webhook and a real mail server, later if need be, and survive a restart until they do."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web

from loopd.alert_channels import Mail, Webhook, channels_of
from loopd.alerts import MOST_SPOOLED, Alert, Alerts, NotDeliveredError
from loopd.config import AlertSettings
from loopd.ledger import Ledger
from loopd.state import open_database

ALERT = Alert(event="input.held", subject="anna", text="An input waits for a review.", detail={"score": 80})


@dataclass
class Hook:
    """Takes alerts, after refusing some."""

    refusals: list[int] = field(default_factory=list)
    taken: list[tuple[dict[str, object], str]] = field(default_factory=list)
    url: str = ""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.refusals:
            return web.Response(status=self.refusals.pop(0))
        self.taken.append((json.loads(body), request.headers.get("X-Loopbox-Signature", "")))
        return web.Response(status=204)


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    stub = Hook()
    app = web.Application()
    app.router.add_post("/hook", stub.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield stub
    await runner.cleanup()


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with open_database(tmp_path / "state.db") as database:
        yield Ledger(database)


async def until_spool_is_empty(alerts: Alerts) -> None:
    async with asyncio.timeout(10):
        while any(alerts.folder.iterdir()):
            await asyncio.sleep(0.01)


async def test_a_webhook_gets_the_alert_signed(hook: Hook, ledger: Ledger, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    alerts = Alerts(folder=tmp_path / "alerts", channels=(Webhook(hook.url, secret),), ledger=ledger)
    assert await alerts.raise_alert(ALERT)
    await alerts.deliver()
    [(body, signature)] = hook.taken
    assert body == json.loads(ALERT.model_dump_json())
    expected = hmac.new(b"s3cret", ALERT.model_dump_json().encode(), hashlib.sha256).hexdigest()
    assert signature == f"sha256={expected}"
    assert (await ledger.last("anna", "alert.")) is not None


async def test_a_refused_alert_is_tried_again_also_by_the_next_loopd(
    hook: Hook, ledger: Ledger, tmp_path: Path
) -> None:
    hook.refusals = [500, 302, 429]
    channels = (Webhook(hook.url, None),)
    alerts = Alerts(folder=tmp_path / "alerts", channels=channels, ledger=ledger, first_retry_s=0.01)
    await alerts.raise_alert(ALERT)
    assert await alerts.deliver() == 0.01
    after = Alerts(folder=tmp_path / "alerts", channels=channels, ledger=ledger, first_retry_s=0.01)
    task = asyncio.create_task(after.run_forever())
    await until_spool_is_empty(after)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert len(hook.taken) == 1


async def test_a_channel_that_took_it_is_not_told_again(hook: Hook, ledger: Ledger, tmp_path: Path) -> None:
    dead = AlertSettings(smtp_host="127.0.0.1", smtp_port=1, smtp_tls="none", mail_from="a@b", mail_to=("c@d",))
    channels = (Webhook(hook.url, None), Mail(dead))
    alerts = Alerts(folder=tmp_path / "alerts", channels=channels, ledger=ledger, first_retry_s=0.0)
    await alerts.raise_alert(ALERT)
    await alerts.deliver()
    await alerts.deliver()
    assert len(hook.taken) == 1
    [left] = alerts.folder.iterdir()
    assert json.loads(left.read_text())["left"] == ["mail"]


async def test_after_a_day_it_is_given_up_and_the_ledger_says_so(ledger: Ledger, tmp_path: Path) -> None:
    alerts = Alerts(folder=tmp_path / "alerts", channels=(Webhook("http://127.0.0.1:1/", None),), ledger=ledger)
    await alerts.raise_alert(ALERT.model_copy(update={"at": (datetime.now(UTC) - timedelta(hours=25)).isoformat()}))
    await alerts.deliver()
    assert not any(alerts.folder.iterdir())
    entry = await ledger.last("anna", "alert.given_up")
    assert entry is not None
    assert "ClientConnectorError" in entry.cause


async def test_without_a_channel_or_with_a_full_spool_nothing_piles_up(ledger: Ledger, tmp_path: Path) -> None:
    assert not await Alerts(folder=tmp_path / "none", channels=(), ledger=ledger).raise_alert(ALERT)
    assert not (tmp_path / "none").exists()
    alerts = Alerts(folder=tmp_path / "alerts", channels=(Webhook("http://127.0.0.1:1/", None),), ledger=ledger)
    alerts.folder.mkdir()
    for n in range(MOST_SPOOLED):
        (alerts.folder / f"{n}.json").touch()
    assert not await alerts.raise_alert(ALERT)


async def test_a_spooled_file_that_is_none_is_thrown_away(hook: Hook, ledger: Ledger, tmp_path: Path) -> None:
    alerts = Alerts(folder=tmp_path / "alerts", channels=(Webhook(hook.url, None),), ledger=ledger)
    alerts.folder.mkdir()
    (alerts.folder / "0.json").write_text("{")
    await alerts.raise_alert(ALERT)
    await alerts.deliver()
    assert len(hook.taken) == 1
    assert not any(alerts.folder.iterdir())


class MailServer:
    """As much of SMTP as one message needs."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := (await reader.readline()).decode().strip():
            verb = line.split()[0].upper()
            if verb == "DATA":
                writer.write(b"354 go on\r\n")
                text = (await reader.readuntil(b"\r\n.\r\n")).decode()
                self.messages.append(text)
                writer.write(b"250 taken\r\n")
            elif verb == "QUIT":
                writer.write(b"221 bye\r\n")
                break
            else:
                writer.write(b"250 fine\r\n")
        writer.close()
        await writer.wait_closed()


async def test_mail_reaches_a_server_and_a_subject_cannot_add_headers() -> None:
    mail = MailServer()
    async with await asyncio.start_server(mail.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        told = AlertSettings(
            smtp_host="127.0.0.1",
            smtp_port=port,
            smtp_tls="none",
            mail_from="box@example.org",
            mail_to=("op@example.org",),
        )
        [channel] = channels_of(told)
        await channel.send(ALERT.model_copy(update={"subject": "x\r\nBcc: evil@example.org"}))
    [text] = mail.messages
    assert "Subject: [loopbox] input.held: x" in text
    assert "\nBcc:" not in text
    assert "score: 80" in text


async def test_a_mail_server_that_wants_no_tls_or_a_lost_password_is_told_of(tmp_path: Path) -> None:
    mail = MailServer()
    async with await asyncio.start_server(mail.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        base = {"smtp_host": "127.0.0.1", "smtp_port": port, "mail_from": "a@b", "mail_to": ("c@d",)}
        with pytest.raises(NotDeliveredError, match="STARTTLS"):
            await Mail(AlertSettings.model_validate({**base, "smtp_tls": "starttls"})).send(ALERT)
        lost = {"smtp_tls": "none", "smtp_user": "u", "smtp_password_file": tmp_path / "gone"}
        with pytest.raises(NotDeliveredError, match="gone"):
            await Mail(AlertSettings.model_validate({**base, **lost})).send(ALERT)


def test_mail_needs_a_sender_and_a_reader() -> None:
    with pytest.raises(ValueError, match="mail_from and mail_to"):
        AlertSettings(smtp_host="mail.example.org")
