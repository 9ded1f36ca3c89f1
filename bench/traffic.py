"""traffic: owns the load of all benches: clients that stream, and requests that come at a fixed rate whatever happens.

It runs in a process of its own, so that the bench's waiting does not slow it, and writes each request to a file as it
ends. It ends when its input closes: nothing new is sent, what is in flight may end. Raw asyncio protocols: a token that
arrives costs some microseconds, or the generator would measure itself. For the same reason it goes before other work
where it may (root): real clients do not wait for a core of the server. Its own CPU share and lag are told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TextIO

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.figures import Kind, Record, read_records

Dialect = Literal["ollama", "openai"]
PATIENCE_S = 30.0
MOST_IN_FLIGHT = 2000  # a server that answers nothing must not eat the host
NICE = -15
PROMPT = "Write one short sentence about the sea."


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked, and how often."""

    port: int
    host: str = "127.0.0.1"
    streams: int = 32  #: clients that ask for a stream, wait, ask again
    rate: float = 50.0  #: whole answers asked for each second
    stream_tokens: int = 32
    whole_tokens: int = 8
    pause_s: float = 1.0  #: of a streaming client between two streams
    dialect: Dialect = "ollama"
    model: str = "agent"
    key: str = ""  #: bearer token, where the server wants one
    patience_s: float = PATIENCE_S

    def request(self, kind: Kind) -> bytes:
        """Return the bytes of a request."""
        stream = kind == "stream"
        tokens = self.stream_tokens if stream else self.whole_tokens
        body: dict[str, object] = {"model": self.model, "stream": stream}
        if self.dialect == "ollama":
            path = "/api/generate"
            body |= {"prompt": PROMPT, "options": {"num_predict": tokens}}
        else:
            path = "/v1/chat/completions"
            body |= {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens}
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
        )
        return (head + (f"Authorization: Bearer {self.key}\r\n" if self.key else "") + "\r\n").encode() + raw


RESPONSE = re.compile(rb'"response":"((?:[^"\\]|\\.)*)"')
REPEATS = 30


@dataclass(slots=True)
class Answer:
    """What came back so far."""

    head: bytes = b""
    body: bytearray = field(default_factory=bytearray)
    first: float = 0.0

    @property
    def status(self) -> int:
        """Return the status, 0 when there is none yet."""
        return int(self.head[9:12]) if len(self.head) > 12 else 0

    def header(self, name: bytes) -> str:
        """Return a header by its lower-case name, '' for none."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name:
                return value.strip().decode()
        return ""

    def fault(self, kind: Kind, dialect: Dialect) -> str:
        """Say what is wrong with an answer that came to its end, '' for nothing."""
        if self.status != 200:
            return f"failed: {self.status} {bytes(self.body[:200])!r}"
        if dialect == "ollama":
            whole = b'"done":true' in self.body[-4096:]
        else:
            whole = (b"[DONE]" if kind == "stream" else b'"finish_reason"') in self.body
        if not whole and dialect == "ollama" and self._repeats():
            return "stopped: the engine ends an answer without a last record after 30 times the same token"
        return "" if whole else self.broken(kind, "no last record")

    def _repeats(self) -> bool:
        """Tell whether a stream that the server ended properly said one token for too long; seen in Ollama 0.24."""
        said = RESPONSE.findall(bytes(self.body))
        return self.body.endswith(b"0\r\n\r\n") and len(said) >= REPEATS and len(set(said[-REPEATS:])) == 1

    def broken(self, kind: Kind, how: str) -> str:
        """Name the fault of an answer that did not come to its end."""
        began = kind == "stream" and self.status == 200 and self.first > 0
        return f"{'cut' if began else 'failed'}: {how}, {bytes(self.body[-80:])!r}"


class Connection(asyncio.Protocol):
    """One kept connection; one request at a time."""

    def __init__(self) -> None:
        self.usable = False
        self.answer = Answer()
        self._buffer = bytearray()
        self._length: int | None = None
        self._done: asyncio.Future[str] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 for the type checker
        self._transport = transport
        self.usable = True

    async def ask(self, request: bytes) -> str:
        """Send it; return '' once its answer is whole, else why the connection ended."""
        assert self._transport is not None  # noqa: S101 connected before it is used
        self.answer, self._buffer, self._length = Answer(), bytearray(), None
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done

    def data_received(self, data: bytes) -> None:
        """Take bytes in until the answer is whole."""
        answer = self.answer
        if not answer.head:
            self._buffer += data
            head, found, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not found:
                return
            answer.head, data = head, rest
            length = answer.header(b"content-length")
            self._length = int(length) if length else None
        if data:
            answer.first = answer.first or time.time()
            answer.body += data
        if self._length is None:
            if not answer.body.endswith(b"0\r\n\r\n"):  # the last chunk
                return
        elif len(answer.body) < self._length:
            return
        if answer.header(b"connection").lower() == "close":
            self.close()
        self._end("")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self.usable = False
        self._end(f"the connection ended {exc or ''}".strip())

    def close(self) -> None:
        """Use it no more."""
        self.usable = False
        if self._transport is not None:
            self._transport.close()

    def _end(self, how: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(how)


class Generator:
    """Asks according to a plan until told to stop."""

    def __init__(self, plan: Plan, out: TextIO) -> None:
        self.plan = plan
        self._out = out
        self._idle: list[Connection] = []
        self._stopping = asyncio.Event()
        self._requests = {kind: plan.request(kind) for kind in ("stream", "whole")}
        self._flying: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Send nothing new."""
        self._stopping.set()

    async def run(self) -> None:
        """Ask until stopped and all has ended."""
        streams = [self._stream(number) for number in range(self.plan.streams)]
        await asyncio.gather(self._open_loop(), *streams)
        if self._flying:
            await asyncio.wait(self._flying)
        for connection in self._idle:
            connection.close()

    async def _stream(self, number: int) -> None:
        # Spread over the pause, or they would all ask at once.
        if await self._rest(self.plan.pause_s * number / self.plan.streams):
            return
        while True:
            await self._ask("stream", time.time())
            if await self._rest(self.plan.pause_s):
                return

    async def _open_loop(self) -> None:
        begun = time.time()
        number = 0
        while self.plan.rate and not self._stopping.is_set():
            due = begun + number / self.plan.rate
            if (ahead := due - time.time()) > 0 and await self._rest(ahead):
                return
            number += 1
            if len(self._flying) >= MOST_IN_FLIGHT:
                self._write(Record("whole", due, due, 0.0, time.time(), "", "failed: too many unanswered"))
                continue
            task = asyncio.create_task(self._ask("whole", due))
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)

    async def _rest(self, seconds: float) -> bool:
        """Wait; tell whether it is time to stop."""
        if seconds > 0.05:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)
        else:
            await asyncio.sleep(seconds)
        return self._stopping.is_set()

    async def _ask(self, kind: Kind, due: float) -> None:
        sent = time.time()
        connection: Connection | None = None
        fault = ""
        try:
            async with asyncio.timeout(self.plan.patience_s):
                connection = await self._connection()
                how = await connection.ask(self._requests[kind])
            answer = connection.answer
            fault = answer.broken(kind, how) if how else answer.fault(kind, self.plan.dialect)
        except TimeoutError:
            answer = connection.answer if connection else Answer()
            fault = answer.broken(kind, f"no end within {self.plan.patience_s:g} s")
            if connection:
                connection.close()
        except OSError as error:
            fault = f"failed: {error!r}"
        answer = connection.answer if connection else Answer()
        release = answer.header(b"x-loopbox-release")
        self._write(Record(kind, due, sent, answer.first, time.time(), release, fault))
        if connection and connection.usable:
            self._idle.append(connection)

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, self.plan.host, self.plan.port))[1]

    def _write(self, record: Record) -> None:
        self._out.write(record.to_line() + "\n")


@dataclass(slots=True)
class Traffic:
    """A generator that runs."""

    plan: Plan
    path: Path
    process: subprocess.Popen[bytes]
    own: dict[str, float] = field(default_factory=dict)  #: its own CPU share, once it has ended

    def records(self) -> list[Record]:
        """Return what has ended so far."""
        return read_records(self.path)

    def stop(self) -> list[Record]:
        """End the load; return every request, once all have ended."""
        assert self.process.stdin is not None  # noqa: S101 made with a pipe
        self.process.stdin.close()
        self.process.wait(self.plan.patience_s + 10)
        if self.process.returncode:
            raise SystemExit(f"the load generator ended with {self.process.returncode}")
        self.own = json.loads(self.path.with_suffix(".own").read_text())
        return self.records()


@contextlib.contextmanager
def running(plan: Plan, path: Path) -> Iterator[Traffic]:
    """Run a generator that writes to ``path``; it is gone at the end, stopped or not."""
    arguments = [sys.executable, str(Path(__file__)), "--out", str(path), "--plan", json.dumps(asdict(plan))]
    path.touch()
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE)
    traffic = Traffic(plan, path, process)
    try:
        yield traffic
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


def ask_once(plan: Plan, *, tokens: int = 1, timeout_s: float = 5.0) -> tuple[str, str]:
    """Ask for one whole answer; return (release, fault)."""

    async def ask() -> tuple[str, str]:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                loop = asyncio.get_running_loop()
                connection = (await loop.create_connection(Connection, plan.host, plan.port))[1]
                how = await connection.ask(replace(plan, whole_tokens=tokens).request("whole"))
            answer = connection.answer
            return answer.header(b"x-loopbox-release"), how or answer.fault("whole", plan.dialect)
        except (TimeoutError, OSError) as error:
            return "", f"failed: {error!r}"
        finally:
            if connection:
                connection.close()

    return asyncio.run(ask())


async def generate(plan: Plan, path: Path) -> None:
    """Run until standard input closes."""
    with contextlib.suppress(PermissionError):
        os.nice(NICE)
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    with path.open("a", buffering=1 << 13) as out:
        generator = Generator(plan, out)
        loop.add_reader(sys.stdin.fileno(), generator.stop)
        await generator.run()
    used = resource.getrusage(resource.RUSAGE_SELF)
    wall = time.perf_counter() - begun
    own = {"cpu_share": round((used.ru_utime + used.ru_stime) / wall, 3), "wall_s": round(wall, 1)}
    path.with_suffix(".own").write_text(json.dumps(own))


def main() -> None:
    """Generate load as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", required=True)
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    asyncio.run(generate(Plan(**json.loads(given.plan)), given.out))


if __name__ == "__main__":
    main()
