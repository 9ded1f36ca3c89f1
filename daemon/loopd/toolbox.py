"""toolbox: owns loopd's talk with a sandbox's tool runner: MCP (Streamable HTTP, stateless) over its unix socket.

One POST a call; the official SDK would triple the daemon's memory for what is one request here.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from loopd.errors import UnavailableError

PROTOCOL = "2025-11-25"
ANSWER_BYTES = 8 << 20
PROBE_S = 2.0
GRACE_S = 10.0  # beyond a tool's own time limit


class ToolCallError(UnavailableError):
    """The sandbox did not run the tool; the text says why."""

    code = "tool_failed"


class Toolbox:
    """Calls tools in sandboxes."""

    async def answers(self, socket: Path) -> bool:
        """Tell whether a tool runner answers on this socket."""
        if not socket.exists():
            return False
        try:
            async with (
                asyncio.timeout(PROBE_S),
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket))) as session,
                session.get("http://toolrunner/health") as response,
            ):
                return response.status == 200  # noqa: PLR2004
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def call(self, socket: Path, tool: str, arguments: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Run a tool; return its structured result. Any: JSON of the tool's own schema. Raises ToolCallError."""
        body = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": tool, "arguments": arguments},
        }
        headers = {
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": PROTOCOL,
        }
        try:
            async with (
                asyncio.timeout(timeout_s + GRACE_S),
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket))) as session,
                session.post("http://toolrunner/mcp", json=body, headers=headers) as response,
            ):
                text = bytearray()
                async for chunk in response.content.iter_chunked(64 << 10):
                    text += chunk
                    if len(text) > ANSWER_BYTES:
                        raise ToolCallError(f"{tool} answered with more than {ANSWER_BYTES} bytes")
        except TimeoutError as error:
            raise ToolCallError(f"{tool} did not answer within {timeout_s + GRACE_S:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ToolCallError(f"the sandbox broke off: {error}") from error
        return _result(tool, bytes(text))


def _result(tool: str, text: bytes) -> dict[str, Any]:
    """Take the structured result out of a JSON-RPC answer. Any: JSON."""
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise ToolCallError(f"{tool} answered with no JSON: {text[:200]!r}") from error
    if not isinstance(answer, dict) or "error" in answer:
        raise ToolCallError(f"{tool} was refused: {str(answer)[:300]}")
    result = answer.get("result")
    structured = result.get("structuredContent") if isinstance(result, dict) else None
    if not isinstance(structured, dict):
        raise ToolCallError(f"{tool} gave no structured result: {str(result)[:300]}")
    return structured
