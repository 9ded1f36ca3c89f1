"""haproxy_runtime: owns the language of HAProxy's runtime sockets: the commands out, the statistics in. Pure."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from loopd.gateway import POOLS, GatewayDownError, Pool, Route, Server, ServerState, route_weights
from loopd.haproxy_config import server_line

SHOW_SERVERS = "show stat -1 4 -1"  # any proxy, type server, any id
SHOW_INFO = "show info"
SHOW_PROCESSES = "show proc"
RELOAD = "reload"

# What HAProxy 2.6 says of a command that worked; it says nothing of most.
_DONE = re.compile(
    r"New server registered\.|Server deleted\."
    r"|(IP changed|port changed|no need to change|nothing changed)\b.* by 'stats socket command'"
)
_WORKER = re.compile(r"([0-9]{1,10})\s+worker\s")
_MASTER = re.compile(r"[0-9]{1,10}\s+master\s+([0-9]{1,10})\s+\[failed: ([0-9]{1,10})\]")
_MOST_DIGITS = 12
_MAP_WORDS = 3  # address, key, value
_MAP_BATCH = 50  # commands of one line, which must fit HAProxy's buffer


class StrangeAnswerError(GatewayDownError):
    """What answers on the gateway's admin socket does not speak as HAProxy does; nothing was changed."""

    code = "gateway_strange"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddServer:
    """A new server, at no weight, with its probe running and its traffic allowed."""

    route: Route

    def __str__(self) -> str:
        name = f"{self.route.pool}/{self.route.server}"
        return (
            f"add server {self.route.pool}/{server_line(self.route, 0)}; "
            f"enable health {name}; set server {name} state ready"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveServer:
    """Another address. In between it is in maintenance, which closes the idle connections to the old one."""

    route: Route

    def __str__(self) -> str:
        name = f"{self.route.pool}/{self.route.server}"
        address, _, port = self.route.address.rpartition(":")
        return (
            f"set server {name} state maint; set server {name} addr {address} port {port}; "
            f"set server {name} state ready"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnServer:
    """Back from maintenance."""

    pool: Pool
    server: str

    def __str__(self) -> str:
        return f"set server {self.pool}/{self.server} state ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetWeight:
    """A weight; at 0 a server takes no new request."""

    pool: Pool
    server: str
    weight: int

    def __str__(self) -> str:
        return f"set server {self.pool}/{self.server} weight {self.weight}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetireServer:
    """Into maintenance: no new request, streams in flight go on."""

    pool: Pool
    server: str

    def __str__(self) -> str:
        return f"set server {self.pool}/{self.server} state maint"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteServer:
    """Gone; HAProxy refuses it while a connection is left."""

    pool: Pool
    server: str

    def __str__(self) -> str:
        return f"del server {self.pool}/{self.server}"


def plan_map(path: str, wanted: Mapping[str, int], shown: str) -> tuple[str, ...]:
    """Return the lines that make a map of the runtime equal to the wanted one; shown: the answer to ``show map``."""
    have = {words[1] for line in shown.splitlines() if len(words := line.split()) == _MAP_WORDS}
    commands = [f"del map {path} {key}" for key in sorted(have - set(wanted))]
    commands += [f"add map {path} {key} {wanted[key]}" for key in sorted(set(wanted) - have)]
    return tuple("; ".join(commands[i : i + _MAP_BATCH]) for i in range(0, len(commands), _MAP_BATCH))


Command = AddServer | MoveServer | ReturnServer | SetWeight | RetireServer | DeleteServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Commands that make the servers equal to the routes, in the order in which they are sent."""

    prepare: tuple[Command, ...]
    flip: tuple[SetWeight, ...]  #: all weights, one write
    retire: tuple[RetireServer, ...]
    delete: tuple[DeleteServer, ...]  #: of what is idle

    @property
    def empty(self) -> bool:
        """Tell whether there is nothing to do."""
        return not (self.prepare or self.flip or self.retire or self.delete)


def plan_commands(routes: Sequence[Route], observed: Sequence[Server]) -> Plan:
    """Return what turns the observed servers into the wanted ones. Raises RouteError."""
    weights = route_weights(routes)
    have = {(server.pool, server.server): server for server in observed}
    wanted = {(route.pool, route.server): route for route in routes}
    prepare: list[Command] = []
    for key, route in sorted(wanted.items()):
        server = have.get(key)
        if server is None:
            prepare.append(AddServer(route=route))
        elif server.address != route.address:
            prepare.append(MoveServer(route=route))
        elif server.state is ServerState.MAINT or (server.state is ServerState.DRAIN and server.weight):
            prepare.append(ReturnServer(pool=route.pool, server=route.server))
    leaving = [server for key, server in sorted(have.items()) if key not in wanted]
    # HAProxy may serve requests between two commands of one line: with falls first there would be a moment with no
    # server at all, seen as 503 under load.
    now = {key: server.weight for key, server in have.items()}
    then = weights | {(server.pool, server.server): 0 for server in leaving}
    changes = sorted((now.get(key, 0) - weight, key) for key, weight in then.items() if now.get(key, 0) != weight)
    return Plan(
        prepare=tuple(prepare),
        flip=tuple(SetWeight(pool=key[0], server=key[1], weight=then[key]) for _, key in changes),
        retire=tuple(RetireServer(pool=s.pool, server=s.server) for s in leaving if s.state is not ServerState.MAINT),
        delete=tuple(DeleteServer(pool=s.pool, server=s.server) for s in leaving if not s.sessions),
    )


def refusals(answer: str) -> tuple[str, ...]:
    """Return the lines of an answer to changing commands that say a command did not work."""
    lines = (line.strip() for line in answer.splitlines())
    return tuple(line for line in lines if line and not _DONE.fullmatch(line))


def parse_stat(text: str) -> tuple[Server, ...]:
    """Parse the CSV of ``show stat``, passing over what is no server of a pool. Raises StrangeAnswerError."""
    if not text.startswith("# pxname,svname,"):
        raise StrangeAnswerError(f"these are no statistics of HAProxy: {text[:80]!r}")
    try:
        rows = list(csv.DictReader(io.StringIO(text[2:], newline=""), strict=True))
        return tuple(
            Server(
                pool=pool,
                server=row["svname"],
                address=row["addr"],
                weight=_number(row["uweight"]),
                sessions=_number(row["scur"]) + _number(row["qcur"]),
                state=_state(row),
                bytes_out=_number(row["bout"]),
            )
            for row in rows
            for pool in POOLS
            if row["pxname"] == pool and row["svname"] not in ("FRONTEND", "BACKEND")
        )
    except (csv.Error, KeyError, ValueError, AttributeError, TypeError) as error:
        raise StrangeAnswerError(f"the statistics of the gateway cannot be read: {error}") from error


def with_old_workers(now: Sequence[Server], old: Iterable[Sequence[Server]]) -> tuple[Server, ...]:
    """Return the servers with what still runs on them in processes that a reload left to finish their streams.

    Without it a server would look idle right after a reload, and be taken away in the middle of an answer.
    """
    servers = {(server.pool, server.server): server for server in now}
    for server in (server for worker in old for server in worker if server.sessions):
        key = (server.pool, server.server)
        gone = replace(server, sessions=0, weight=0, state=ServerState.MAINT)
        known = servers.get(key, gone)
        servers[key] = replace(known, sessions=known.sessions + server.sessions)
    return tuple(servers.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """What the master says of its workers."""

    reloads: int
    failed: int  #: reloads
    old: tuple[int, ...]  #: pids of workers that only finish their streams

    @property
    def attempts(self) -> int:
        """How many reloads there were, failed ones included."""
        return self.reloads + self.failed


def parse_description(text: str) -> str:
    """Return the description in ``show info``, '' for none. Raises StrangeAnswerError."""
    if not text.startswith("Name: HAProxy"):
        raise StrangeAnswerError(f"this is not what HAProxy says of itself: {text[:80]!r}")
    return next((line[13:] for line in text.splitlines() if line.startswith("description: ")), "")


def parse_processes(text: str) -> Processes:
    """Parse ``show proc``. Raises StrangeAnswerError."""
    master = _MASTER.search(text)
    if master is None:
        raise StrangeAnswerError(f"this is no list of HAProxy's processes: {text[:80]!r}")
    _, _, old = text.partition("# old workers")
    return Processes(
        reloads=int(master[1]),
        failed=int(master[2]),
        old=tuple(int(found[1]) for found in _WORKER.finditer(old.partition("# programs")[0])),
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise ValueError(f"{text[:20]!r} is no number")
    return int(text)


def _state(row: dict[str, str]) -> ServerState:
    status = row["status"]
    if status.startswith("MAINT"):
        return ServerState.MAINT
    if not status.startswith(("UP", "DRAIN")):
        return ServerState.DOWN
    if row["check_status"].endswith("INI"):
        return ServerState.STARTING
    # HAProxy calls a server whose weight was set to 0 UP at one time and DRAIN at another.
    return ServerState.DRAIN if status.startswith("DRAIN") or row["uweight"] == "0" else ServerState.UP
