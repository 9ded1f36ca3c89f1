"""agent_stub: owns what an agent is measured against: an engine, a lease broker and a tool runner that answer at once.

One process, raw asyncio: it shares two cores with what is measured. The engine speaks Ollama's chat and, for the peer,
OpenAI's; it says as many pieces as the request allows. With tools on offer it first calls one, then talks.
``Behaviour`` is what a bench changes meanwhile, by ``POST /stub`` or on the object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import io
import json
import signal
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop

PIECES = 16  # where the request says nothing
WORDS = [
    "the",
    "sea",
    "is",
    "calm",
    "and",
    "grey",
    "today",
    "while",
    "small",
    "boats",
    "come",
    "home",
    "before",
    "the",
    "evening",
    "rain",
]
TEXT = {"type": "string", "maxLength": 100_000}
TOOLS = [
    {
        "name": name,
        "description": f"{name}: does one thing in the sandbox, at once.",
        "inputSchema": {"type": "object", "properties": {needs: TEXT}, "required": [needs]},
        "annotations": {"readOnlyHint": name.startswith("read")},
    }
    for name, needs in (("python", "code"), ("bash", "command"), ("read_file", "path"), ("write_file", "path"))
]
Json = dict[str, Any]  # Any: JSON of either side


@dataclass
class Behaviour:
    """How the engine answers."""

    rate: float = 0.0  #: pieces a second of one answer; 0: all at once
    tool: str = "python"  #: what it calls where it is offered
    arguments: Json = field(default_factory=lambda: {"code": "print(6 * 7)"})


@dataclass
class Seen:
    """What happened to the engine."""

    answers: int = 0
    under_way: int = 0  #: streams that are being written now
    left_at: float = 0.0  #: perf_counter of the last client that went away in the middle of a stream
    leases: int = 0  #: that are lent now


class Http(asyncio.Protocol):
    """One connection of a server; a request is answered by ``handler`` before the next one is read."""

    def __init__(self, handler: Callable[[Http, str, str, bytes], None]) -> None:
        self._handler = handler
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.task: asyncio.Task[None] | None = None  #: writes the answer that takes long

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._buffer += data
        head, found, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            if not rest.endswith(b"0\r\n\r\n"):
                return
        elif (at := lower.find(b"content-length:")) >= 0 and len(rest) < int(lower[at + 15 :].split(b"\r\n")[0]):
            return
        self._buffer.clear()
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self._handler(self, method, path, rest)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 asyncio passes it
        """End what is being written."""
        if self.task is not None:
            self.task.cancel()

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def reply(self, body: bytes = b"", status: str = "200 OK", kind: str = "application/json") -> None:
        """Send a whole answer."""
        length = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        self.write(f"HTTP/1.1 {status}\r\n{'' if status.startswith('204') else length}\r\n".encode() + body)

    def begin(self, kind: str) -> None:
        """Send the head of an answer that comes in pieces."""
        self.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())


def chunk(body: bytes) -> bytes:
    """Return a piece as HTTP/1.1 frames it."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def ollama(message: Json, **more: object) -> bytes:
    """Return one line of Ollama's answer, framed."""
    line = {"model": "agent", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": False} | more
    return chunk(json.dumps(line).encode() + b"\n")


def openai(delta: Json, reason: str | None = None) -> bytes:
    """Return one event of OpenAI's answer, framed."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "agent", "choices": [choice]}
    return chunk(b"data: " + json.dumps(event).encode() + b"\n\n")


@functools.lru_cache(maxsize=64)
def pieces(dialect: str, number: int) -> tuple[bytes, ...]:
    """Return the pieces of a text of so many, the ending last."""
    words = [f"{WORDS[n % len(WORDS)]} " for n in range(number)]
    if dialect == "ollama":
        counts = {"done_reason": "stop", "prompt_eval_count": 32, "eval_count": number}
        last = ollama({"role": "assistant", "content": ""}, done=True, **counts)
        return (*(ollama({"role": "assistant", "content": word}) for word in words), last)
    usage = {"prompt_tokens": 32, "completion_tokens": number, "total_tokens": 32 + number}
    counted = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "agent", "choices": []}
    told = chunk(b"data: " + json.dumps(counted | {"usage": usage}).encode() + b"\n\n")
    return (*(openai({"content": word}) for word in words), openai({}, "stop"), told + chunk(b"data: [DONE]\n\n"))


def _whole(number: int) -> bytes:
    """Return OpenAI's answer that comes at once."""
    text = "".join(f"{WORDS[n % len(WORDS)]} " for n in range(number))
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 32, "completion_tokens": number, "total_tokens": 32 + number}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "agent", "choices": [choice], "usage": usage}
    return json.dumps(body).encode()


@dataclass
class Engine:
    """The engine's routes."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    seen: Seen = field(default_factory=Seen)

    def __call__(self, http: Http, method: str, path: str, body: bytes) -> None:
        """Answer one request."""
        match method, path:
            case "POST", "/api/chat":
                self._chat(http, json.loads(body))
            case "POST", "/v1/chat/completions":
                asked = json.loads(body)
                number = asked.get("max_completion_tokens") or asked.get("max_tokens") or PIECES
                if asked.get("stream"):
                    self._say(http, "text/event-stream", pieces("openai", number))
                else:
                    self.seen.answers += 1
                    http.reply(_whole(number))
            case "GET", "/api/tags":
                http.reply(b'{"models":[{"name":"agent:latest"}]}')
            case "GET", "/stub":
                http.reply(json.dumps(vars(self.seen) | {"cpu_s": time.process_time()}).encode())
            case "POST", "/stub":
                for name, value in json.loads(body).items():
                    setattr(self.behaviour, name, value)
                http.reply(b"{}")
            case _:
                http.reply(b'{"error":"no such route"}', "404 Not Found")

    def _chat(self, http: Http, asked: Json) -> None:
        if asked.get("tools") and asked["messages"][-1]["role"] != "tool":
            function = {"name": self.behaviour.tool, "arguments": self.behaviour.arguments}
            message = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
            self._say(http, "application/x-ndjson", (ollama(message), pieces("ollama", 1)[-1]))
            return
        number = (asked.get("options") or {}).get("num_predict") or PIECES
        self._say(http, "application/x-ndjson", pieces("ollama", number))

    def _say(self, http: Http, kind: str, said: tuple[bytes, ...]) -> None:
        http.begin(kind)
        if self.behaviour.rate:
            http.task = asyncio.create_task(self._say_slowly(http, said, 1 / self.behaviour.rate))
            return
        for piece in said:  # a write each, as of an engine that has a token at a time
            http.write(piece)
        http.write(b"0\r\n\r\n")
        self.seen.answers += 1

    async def _say_slowly(self, http: Http, said: tuple[bytes, ...], every_s: float) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self.seen.under_way += 1
        try:
            for number, piece in enumerate(said):
                await asyncio.sleep(begun + number * every_s - loop.time())
                http.write(piece)
            http.write(b"0\r\n\r\n")
            self.seen.answers += 1
        except asyncio.CancelledError:
            self.seen.left_at = time.perf_counter()
            raise
        finally:
            self.seen.under_way -= 1
            http.task = None


def broker(seen: Seen, http: Http, method: str, path: str, _: bytes) -> None:
    """Lend the one tool runner to everybody; take the audit's entries."""
    lease = {"lease": f"lease{seen.leases}", "socket": "box/tools.sock", "expires_at": "2040-01-01T00:00:00Z"}
    match method, path:
        case "POST", "/v1/leases":
            seen.leases += 1
            http.reply(json.dumps(lease).encode(), "201 Created")
        case "DELETE", _:
            seen.leases -= 1
            http.reply(status="204 No Content")
        case "POST", "/v1/audit":
            http.reply(status="204 No Content")
        case _:  # a renewal
            http.reply(json.dumps(lease).encode())


@functools.cache
def _workspace() -> bytes:
    """Return a workspace with one small file."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        info = tarfile.TarInfo("notes.txt")
        info.size = 6
        archive.addfile(info, io.BytesIO(b"notes\n"))
    return made.getvalue()


def tool_runner(http: Http, method: str, path: str, body: bytes) -> None:
    """List tools, run none, give and take a workspace."""
    if path == "/workspace":
        if method == "GET":
            http.reply(_workspace(), kind="application/x-tar")
        else:
            http.reply(status="204 No Content")
        return
    asked: Mapping[str, Any] = json.loads(body)  # Any: JSON-RPC
    result: Json = {"tools": TOOLS}
    if asked["method"] == "tools/call":
        structured = {"stdout": "42\n", "stderr": "", "exit_code": 0}
        result = {"content": [{"type": "text", "text": "42\n"}], "structuredContent": structured, "isError": False}
    http.reply(json.dumps({"jsonrpc": "2.0", "id": asked.get("id"), "result": result}).encode())


@dataclass
class Stub:
    """All three, listening."""

    engine: Engine
    url: str
    servers: list[asyncio.Server]

    async def close(self) -> None:
        """Take no more connections."""
        for server in self.servers:
            server.close()


async def serve_engine(engine: Engine) -> tuple[asyncio.Server, str]:
    """Listen on a free port; return the server and its URL."""
    server = await asyncio.get_running_loop().create_server(lambda: Http(engine), "127.0.0.1", 0, backlog=1024)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def serve(folder: Path) -> Stub:
    """Listen: the engine on TCP, the others on ``folder``/broker.sock and ``folder``/leases/box/tools.sock."""
    loop = asyncio.get_running_loop()
    engine = Engine()
    (folder / "leases" / "box").mkdir(parents=True)
    server, url = await serve_engine(engine)
    lending = functools.partial(broker, engine.seen)
    servers = [
        server,
        await loop.create_unix_server(lambda: Http(lending), str(folder / "broker.sock"), backlog=1024),
        await loop.create_unix_server(
            lambda: Http(tool_runner), str(folder / "leases" / "box" / "tools.sock"), backlog=1024
        ),
    ]
    return Stub(engine, url, servers)


async def _serve_until_stopped(folder: Path) -> None:
    stub = await serve(folder)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(json.dumps({"url": stub.url}), flush=True)
    await stopped.wait()
    await stub.close()


def main() -> None:
    """Serve; the first line on stdout says where."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True, type=Path)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve_until_stopped(parser.parse_args().folder))


if __name__ == "__main__":
    main()
