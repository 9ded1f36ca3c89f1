"""worker: owns the browser itself: Playwright and Chromium, doing one thing at a time as the server asks.

Standard input is a socket to the server. Its end ends this process at once, and the keeper then ends the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from loopbox_browser.page import OneBrowser
from loopbox_browser.protocol import LINE_BYTES, READY, WORKSPACE, clean, pack, parse

HOME = "loopbox-browser"  # below the temporary folder; not the workspace, which a profile would litter


async def serve(asked: socket.socket) -> None:
    """Start, say so, and answer until the server hangs up."""
    from playwright.async_api import Error, async_playwright  # type: ignore[import-not-found]  # noqa: PLC0415 the image's

    reader, writer = await asyncio.open_connection(sock=asked, limit=LINE_BYTES)
    proxy = os.environ.get("HTTP_PROXY")
    async with async_playwright() as playwright:
        browser = OneBrowser(Path(os.environ[WORKSPACE]), granted=proxy is not None)
        await browser.start(playwright, proxy, at_end=lambda: os._exit(1))
        writer.write(pack(READY))
        while line := await reader.readline():
            doing = asyncio.create_task(_answer(browser, parse(line), Error))
            hung_up = asyncio.create_task(reader.read(1))  # nothing is said while something is done
            await asyncio.wait({doing, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                break
            hung_up.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hung_up
            writer.write(pack(clean(doing.result())))
            await writer.drain()
        os._exit(0)  # nothing orderly: the keeper leaves no process


async def _answer(
    browser: OneBrowser, told: dict[str, Any], error_type: type[Exception]
) -> dict[str, Any]:  # Any: JSON
    try:
        return await browser.do(told.pop("do"), told)
    except error_type as error:
        return {"error": browser.explain(error), "stuck": not await browser.answers()}
    except (LookupError, OSError, ValueError) as error:
        return {"error": str(error)[:500]}


def main() -> None:
    """Take the socket from standard input, and keep it from whatever is started."""
    asked = socket.socket(fileno=os.dup(0))  # a dup is not inherited
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    home = Path(tempfile.gettempdir()) / HOME
    shutil.rmtree(home, ignore_errors=True)  # of one that was killed
    home.mkdir(mode=0o700)
    os.environ |= {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PLAYWRIGHT_DISABLE_FORCED_CHROMIUM_PROXIED_LOOPBACK": "1",  # localhost is this sandbox, never the proxy's
    }
    tempfile.tempdir = None
    asyncio.run(serve(asked))


if __name__ == "__main__":
    main()
