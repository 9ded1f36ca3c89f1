"""alert_channels: owns the ways by which alerts reach people: a webhook and e-mail."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import aiohttp

from loopd.alerts import Alert, Channel, NotDeliveredError
from loopd.config import AlertSettings

SEND_S = 15.0
SIGNATURE = "X-Loopbox-Signature"


def read_secret(path: Path | None) -> str:
    """Return a secret from its file, '' for no file. Raises NotDeliveredError."""
    if path is None:
        return ""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise NotDeliveredError(f"{path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Webhook:
    """POSTs the alert as JSON; with a secret, signed by HMAC-SHA256 over the body (``sha256=<hex>``)."""

    url: str
    secret_file: Path | None
    name: str = "webhook"

    async def send(self, alert: Alert) -> None:
        """Tell. Raises NotDeliveredError."""
        body = alert.model_dump_json().encode()
        headers = {"Content-Type": "application/json"}
        if secret := await asyncio.to_thread(read_secret, self.secret_file):
            headers[SIGNATURE] = f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"
        try:
            async with (
                asyncio.timeout(SEND_S),
                aiohttp.ClientSession(trust_env=False) as session,
                session.post(self.url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                if not 200 <= response.status < 300:  # noqa: PLR2004 what HTTP calls success
                    raise NotDeliveredError(f"it answered {response.status}")
        except TimeoutError as error:
            raise NotDeliveredError(f"no answer within {SEND_S:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NotDeliveredError(f"{type(error).__name__}: {error}"[:200]) from error


@dataclass(frozen=True, slots=True)
class Mail:
    """Sends e-mail by SMTP."""

    settings: AlertSettings
    name: str = "mail"

    async def send(self, alert: Alert) -> None:
        """Tell. Raises NotDeliveredError."""
        await asyncio.to_thread(self._send, alert)

    def _send(self, alert: Alert) -> None:
        told = self.settings
        message = EmailMessage()
        message["Subject"] = f"[loopbox] {alert.event}: {alert.subject}"[:200].replace("\n", " ").replace("\r", " ")
        message["From"], message["To"] = told.mail_from, ", ".join(told.mail_to)
        detail = "".join(f"{key}: {value}\n" for key, value in alert.detail.items())
        message.set_content(f"{alert.text}\n\n{detail}at: {alert.at}\nalert: {alert.id}\n")
        try:
            with self._connect() as server:
                if told.smtp_user:
                    server.login(told.smtp_user, read_secret(told.smtp_password_file))
                server.send_message(message)
        except (smtplib.SMTPException, OSError) as error:
            raise NotDeliveredError(f"{type(error).__name__}: {error}"[:200]) from error

    def _connect(self) -> smtplib.SMTP:
        told = self.settings
        if told.smtp_tls == "tls":
            return smtplib.SMTP_SSL(
                told.smtp_host, told.smtp_port, timeout=SEND_S, context=ssl.create_default_context()
            )
        server = smtplib.SMTP(told.smtp_host, told.smtp_port, timeout=SEND_S)
        if told.smtp_tls == "starttls":
            try:
                server.starttls(context=ssl.create_default_context())
            except BaseException:
                server.close()
                raise
        return server


def channels_of(settings: AlertSettings) -> tuple[Channel, ...]:
    """Return the channels that the settings name."""
    found: list[Channel] = []
    if settings.webhook_url:
        found.append(Webhook(settings.webhook_url, settings.webhook_secret_file))
    if settings.smtp_host:
        found.append(Mail(settings))
    return tuple(found)
