"""session: owns what every command begins with: the settings, and a client of the loopd they name.

The imports are made on the call: together they take longer than `--help` may.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from loopd.errors import LoopdError

if TYPE_CHECKING:
    from loopd.cli.agent_client import AgentClient
    from loopd.cli.client import Client
    from loopd.cli.sse import Message
    from loopd.cli.wire import Wire
    from loopd.config import Settings

HEALTH_S = 2.0
TOKEN_S = 900.0  # it is looked at when a request begins


def read_settings() -> Settings:
    """Return the settings. Raises ConfigError."""
    from loopd.config import load_settings  # noqa: PLC0415 see the module's docstring

    return load_settings()


@contextlib.contextmanager
def open_client(settings: Settings | None = None) -> Iterator[Client]:
    """Open a client. Raises ConfigError."""
    from loopd.cli.client import Client, find_way  # noqa: PLC0415 see the module's docstring

    with Client(find_way(settings or read_settings())) as client:
        yield client


def gateway_url(settings: Settings) -> str:
    """Return where clients of the appliance send requests."""
    return f"http://127.0.0.1:{settings.public_port}"


@contextlib.contextmanager
def open_gateway(settings: Settings, headers: Mapping[str, str] | None = None) -> Iterator[Wire]:
    """Open connections to the gateway."""
    from loopd.cli.wire import Wire  # noqa: PLC0415 see the module's docstring

    advice = "`loopctl status` says what is missing; `make up` starts everything"
    with Wire("the gateway", gateway_url(settings), headers=headers or {}, advice=advice) as wire:
        yield wire


def own_token(settings: Settings) -> dict[str, str]:
    """Return the header that lets this command through the gateway: a token of minutes, kept in memory alone.

    Whoever may speak with loopd as an admin gets one; none is needed where auth.mode is off.
    """
    from loopd.api.schema import IssueRequest  # noqa: PLC0415 see the module's docstring
    from loopd.principal import LOCAL, Role  # noqa: PLC0415 see the module's docstring

    if settings.auth.mode == "off":
        return {}
    wanted = IssueRequest(user=LOCAL, role=Role.ADMIN, ttl_s=TOKEN_S, name="loopctl", short=True)
    with open_client(settings) as client:
        return {"Authorization": f"Bearer {client.issue(wanted).token}"}


@contextlib.contextmanager
def open_agent(settings: Settings | None = None) -> Iterator[AgentClient]:
    """Open connections to the agent through the gateway, with a token of their own. Raises ConfigError."""
    from loopd.cli.agent_client import AgentClient  # noqa: PLC0415 see the module's docstring

    settings = settings or read_settings()
    with open_gateway(settings, own_token(settings)) as wire:
        yield AgentClient(wire)


def start_run(settings: Settings, body: bytes) -> Generator[Message | None]:
    """Start a run of the agent and yield its events."""
    with open_agent(settings) as agent:
        yield from agent.run(body)


def resume_run(settings: Settings, run_id: str, after: int) -> Generator[Message | None]:
    """Yield the events of a run after a number."""
    with open_agent(settings) as agent:
        yield from agent.follow(run_id, after)


def gateway_answers(settings: Settings) -> bool:
    """Tell whether the gateway says that requests are answered; needs no loopd and no token."""
    from loopd.cli.wire import Request  # noqa: PLC0415 see the module's docstring

    with open_gateway(settings) as wire:
        try:
            body = json.loads(wire.fetch(Request("GET", "/gateway/health"), timeout_s=HEALTH_S).body)
        except (LoopdError, ValueError):
            return False
    return isinstance(body, dict) and bool(body.get("engines")) and bool(body.get("agents"))


def own_version() -> str:
    """Return this loopctl's version."""
    try:
        return version("loopbox")
    except PackageNotFoundError:
        return "unknown: not installed as a package"
