"""agent_load: owns the load on an agent: raw HTTP clients that keep to a rate, and the processes of the bench.

A latency runs from the moment a request was due. The generator's own lag and CPU are told with the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.figures import Record
from bench.traffic import Answer, Connection

ROOT = Path(__file__).parents[1]
PATIENCE_S = 30.0
READY_S = 60.0
MOST_IN_FLIGHT = 2000  # a server that answers nothing must not eat the host
TICKS = os.sysconf("SC_CLK_TCK")

Check = Callable[[Answer], str]  #: what is wrong with an answer, '' for nothing


def request(method: str, path: str, body: object = None) -> bytes:
    """Return the bytes of a request."""
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
    return head.encode() + b"\r\n\r\n" + raw


def is_200(answer: Answer) -> str:
    """Check the status alone."""
    return "" if answer.status == 200 else f"failed: {answer.status} {bytes(answer.body[:200])!r}"


@dataclass
class Client:
    """Kept connections to one server."""

    port: int
    idle: list[Connection] = field(default_factory=list)

    async def ask(self, what: bytes, due: float, check: Check = is_200) -> tuple[Record, Answer]:
        """Ask once, now."""
        sent = time.time()
        connection: Connection | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                connection = await self._connection()
                how = await connection.ask(what)
            fault = f"failed: {how}" if how else check(connection.answer)
        except (TimeoutError, OSError) as error:
            fault = f"failed: {error!r}"
            if connection:
                connection.close()
        answer = connection.answer if connection else Answer()
        if connection and connection.usable:
            self.idle.append(connection)
        return Record("whole", due, sent, answer.first, time.time(), "", fault), answer

    async def json(self, method: str, path: str, body: object = None) -> object:
        """Return the body of an answer that must be good; None for an empty one."""
        record, answer = await self.ask(request(method, path, body), time.time(), lambda _: "")
        if record.fault or not 200 <= answer.status < 300:
            raise SystemExit(f"{method} {path}: {record.fault or answer.status} {bytes(answer.body[:500])!r}")
        return json.loads(answer.body) if answer.body else None

    async def open_loop(
        self, rate: float, seconds: float, what: Callable[[int], bytes], check: Check = is_200
    ) -> list[Record]:
        """Ask at a rate, whether or not the last ones were answered; return all once they have ended."""
        records: list[Record] = []

        async def one(number: int, due: float) -> None:
            records.append((await self.ask(what(number), due, check))[0])

        begun = time.time()
        flying: set[asyncio.Task[None]] = set()
        for number in range(round(rate * seconds)):
            due = begun + number / rate
            await asyncio.sleep(due - time.time())
            if len(flying) >= MOST_IN_FLIGHT:
                records.append(Record("whole", due, due, 0.0, time.time(), "", "failed: too many unanswered"))
                continue
            task = asyncio.create_task(one(number, due))
            flying.add(task)
            task.add_done_callback(flying.discard)
        await asyncio.gather(*flying)
        return records

    def close(self) -> None:
        """Close what is kept."""
        for connection in self.idle:
            connection.close()

    async def _connection(self) -> Connection:
        while self.idle:
            connection = self.idle.pop()
            if connection.usable:
                return connection
        return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self.port))[1]


def unchunked(body: bytes) -> bytes:
    """Return a chunked body without its framing, as far as it came."""
    whole = bytearray()
    while match := re.match(rb"([0-9a-fA-F]+)\r\n", body):
        length, begins = int(match[1], 16), match.end()
        whole += body[begins : begins + length]
        body = body[begins + length + 2 :]
    return bytes(whole)


@dataclass(frozen=True, slots=True)
class Told:
    """What one stream of events held."""

    events: int
    gaps: int  #: numbers that do not follow the one before
    text: str  #: the pieces, joined
    ended: str  #: the last event's name


def read_events(body: bytes) -> Told:
    """Read server-sent events of a run."""
    numbers: list[int] = []
    texts: list[str] = []
    name = ""
    for frame in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.splitlines() if ": " in line and line[0] != ":")
        if "event" not in fields:
            continue
        numbers.append(int(fields["id"]))
        name = fields["event"]
        if name == "text.delta":
            texts.append(json.loads(fields["data"])["text"])
    gaps = sum(number != place for place, number in enumerate(numbers, 1))
    return Told(len(numbers), gaps, "".join(texts), name)


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is measured, with all of its threads."""

    pid: int

    def cpu_s(self) -> float:
        """Return the CPU seconds so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory_mb(self, name: str = "VmRSS") -> float:
        """Return resident memory now, or at its most (VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        return round(int(found[1]) * 1024 / 1e6, 1) if found else 0.0


@contextlib.contextmanager
def child(
    arguments: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None, stop: int = 15, pipes: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python process of this bench; it is gone at the end.

    stop: the signal that ends it. pipes: whether its stdin and stdout are for the bench; its stderr is ``log``.
    """
    paths = os.pathsep.join([str(ROOT / "images" / "agent" / "src"), os.environ.get("PYTHONPATH", "")]).strip(":")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"} | dict(environment or {}),
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else out,
            stderr=out,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(stop)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def read_line(process: subprocess.Popen[bytes], log: Path) -> dict[str, object]:
    """Return the next JSON line of a process."""
    assert process.stdout is not None  # noqa: S101 made with pipes
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"it ended with {process.wait(5)}: {log.read_text(errors='replace')[-2000:]}")
    return dict(json.loads(line))


def agent_environment(engine_url: str, port: int, folder: Path, **more: str) -> dict[str, str]:
    """Return what the agent's process is told; its broker and leases are in ``folder``."""
    state = folder / "state"
    state.mkdir(exist_ok=True)
    return {
        "AGENT_HOST": "127.0.0.1",
        "AGENT_PORT": str(port),
        "AGENT_ENGINE_URL": engine_url,
        "AGENT_BROKER_SOCKET": str(folder / "broker.sock"),
        "AGENT_LEASES_DIR": str(folder / "leases"),
        "AGENT_STATE_DIR": str(state),
        **more,
    }


def agent_command(profile: str = "") -> list[str]:
    """Return the agent's arguments; profile: a file that cProfile writes, which doubles the CPU that a run takes."""
    return [*(("-m", "cProfile", "-o", profile) if profile else ()), "-m", "loopbox_agent.app"]


async def wait_ready(client: Client, process: subprocess.Popen[bytes], log: Path) -> float:
    """Wait until the agent says that it is ready; return the seconds."""
    begun = time.monotonic()
    while True:
        record, _ = await client.ask(request("GET", "/health/ready"), time.time())
        if not record.fault:
            return time.monotonic() - begun
        if process.poll() is not None or time.monotonic() - begun > READY_S:
            raise SystemExit(f"the agent is not ready: {record.fault}\n{log.read_text(errors='replace')[-3000:]}")
        await asyncio.sleep(0.05)
