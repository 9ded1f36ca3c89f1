"""page: owns the one page that is open: what is done with it, and what happens on it meanwhile.

Any throughout: Playwright's objects, which are in the image alone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopbox_browser.addresses import find_fault
from loopbox_browser.downloads import Downloads
from loopbox_browser.reading import ELEMENTS, READ, TEXT_CHARS, fit

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--disable-dev-shm-usage",  # /dev/shm is small
    "--disable-gpu",
    "--renderer-process-limit=3",
    "--js-flags=--max-old-space-size=256",
    f"--disk-cache-size={8 << 20}",
    "--no-pings",
)
WINDOW = {"width": 1280, "height": 800}
MOST_HEIGHT = 8000  # pixels of a picture
PICTURE_BYTES = 8 << 20
MOST_NOTES = 20
NOTE_CHARS = 300
SETTLE_S = 0.15  # after a click, for what it starts
LOAD_S = 5.0
ANSWER_S = 0.8
DIALOG_WORDS = {"alert": "said", "confirm": "asked", "prompt": "asked for text", "beforeunload": "asked to stay"}


class OneBrowser:
    """Chromium with one page."""

    def __init__(self, workspace: Path, *, granted: bool) -> None:
        self._workspace = workspace
        self._granted = granted
        self._downloads = Downloads(workspace / "downloads")
        self._notes: list[str] = []
        self._refused: dict[str, int] = {}  #: addresses not loaded, by where they lead
        self._tasks: set[asyncio.Task[None]] = set()
        self._until = 0.0  #: when the call should be over; the loop's clock
        self._context: Any = None
        self._page: Any = None

    async def start(self, playwright: Any, proxy: str | None, at_end: Callable[[], object]) -> None:
        """Start Chromium; ``at_end`` is called when it is gone."""
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            headless=True,
            chromium_sandbox=False,  # the container is the boundary
            args=list(ARGUMENTS),
            proxy={"server": proxy} if proxy else None,
        )
        browser.on("disconnected", lambda _: at_end())
        self._context = await browser.new_context(viewport=WINDOW, service_workers="block", accept_downloads=True)
        await self._context.route("**/*", self._judge)
        self._context.on("page", lambda page: self._spawn(self._dismiss(page)) if page is not self._page else None)
        await self._open()

    async def do(self, what: str, told: dict[str, Any]) -> dict[str, Any]:
        """Do one thing; return how things are then. Raises Playwright's Error, LookupError, ValueError."""
        if self._page.is_closed():
            await self._open()
        ms = told["seconds"] * 900.0  # the rest is for an answer
        self._until = asyncio.get_running_loop().time() + ms / 1000
        self._page.set_default_timeout(ms)
        made: dict[str, Any] = {}
        if what == "navigate":
            made = await self._navigate(told["url"], ms)
        elif what == "read":
            made = await self._read(told["offset"])
        elif what == "click":
            await self._find(told["element"]).click()
            await self._settle()
        elif what == "fill":
            await self._fill(self._find(told["element"]), told["text"], submit=told["submit"])
        elif what == "screenshot":
            made = await self._picture(full=told["full_page"])
        return {"url": self._page.url, "title": (await self._page.title())[:300], **made, "notes": self._told()}

    async def answers(self) -> bool:
        """Tell whether the page does anything any more; one whose script loops does not."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._page.evaluate("1")
        except TimeoutError:
            return False
        except Exception:  # noqa: BLE001 a page that crashed or went elsewhere says so
            return True
        return True

    def explain(self, error: Exception) -> str:
        """Return what went wrong, as a model can use it."""
        text = str(error).split("\nCall log", 1)[0].removeprefix("Page.").strip()
        return "\n".join([text[:600], *self._told()])

    async def _open(self) -> None:
        page = self._page = await self._context.new_page()
        page.on("dialog", lambda dialog: self._spawn(self._dialog(dialog)))
        page.on("download", lambda download: self._spawn(self._download(download)))
        page.on("crash", lambda _: self._spawn(self._crashed(page)))

    async def _navigate(self, url: str, ms: float) -> dict[str, Any]:
        try:
            answer = await self._page.goto(url, wait_until="domcontentloaded", timeout=ms)
        except Exception as error:
            if "Download is starting" not in str(error):
                raise
            answer = None
        await self._settle()
        return {"status": answer.status if answer and answer.status else None}

    async def _read(self, offset: int) -> dict[str, Any]:
        given = {"offset": offset, "chars": TEXT_CHARS, "elements": ELEMENTS}
        return fit(await self._page.evaluate(READ, given))

    async def _fill(self, field: Any, text: str, *, submit: bool) -> None:
        kind = await field.evaluate("e => e.tagName === 'INPUT' ? e.type : e.tagName.toLowerCase()")
        if kind in {"checkbox", "radio"}:
            await field.set_checked(text.strip().lower() in {"true", "1", "yes", "on"})
        elif kind == "select":
            await field.select_option(label=text)
        else:
            await field.fill(text)
        if submit:
            await field.press("Enter")
        await self._settle()

    async def _picture(self, *, full: bool) -> dict[str, Any]:
        clip = None
        if full:
            height = await self._page.evaluate("document.documentElement.scrollHeight")
            if height > MOST_HEIGHT:
                self._note(f"the page is {height} pixels high; the first {MOST_HEIGHT} are in the picture")
                clip = {"x": 0, "y": 0, "width": WINDOW["width"], "height": MOST_HEIGHT}
        png = await self._page.screenshot(full_page=full, clip=clip, type="png", animations="disabled")
        if len(png) > PICTURE_BYTES:
            raise ValueError(f"the picture has {len(png)} bytes, {PICTURE_BYTES} are kept at most; full_page=false")
        width, height = struct.unpack(">II", png[16:24])
        return {"png": base64.b64encode(png).decode(), "width": width, "height": height}

    def _find(self, element: str) -> Any:
        if element.strip("[] ").isdecimal():
            return self._page.locator(f'[data-loopbox-ref="{element.strip("[] ")}"]')
        return self._page.locator(element).first

    async def _settle(self) -> None:
        """Wait for what was started: a page, a window, a download."""
        await asyncio.sleep(SETTLE_S)
        with contextlib.suppress(Exception):  # one that goes on loading can be read all the same
            await self._page.wait_for_load_state("load", timeout=self._left() * 1000)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._left())

    def _left(self) -> float:
        return max(0.01, min(LOAD_S, self._until - asyncio.get_running_loop().time()))

    async def _judge(self, route: Any) -> None:
        """Let a request go, or not."""
        url = route.request.url
        fault = await asyncio.to_thread(find_fault, url, workspace=self._workspace, granted=self._granted)
        with contextlib.suppress(Exception):  # the page may be gone by now
            if not fault:
                await route.continue_()
                return
            if len(self._refused) < MOST_NOTES:
                key = f"{url[:150]} was not loaded: {fault}"
                self._refused[key] = self._refused.get(key, 0) + 1
            await route.abort("blockedbyclient")

    async def _dialog(self, dialog: Any) -> None:
        self._note(f"the page {DIALOG_WORDS.get(dialog.type, 'said')}: {dialog.message} (dismissed)")
        with contextlib.suppress(Exception):  # the page may be gone by now
            await (dialog.accept() if dialog.type == "beforeunload" else dialog.dismiss())

    async def _dismiss(self, popup: Any) -> None:
        await asyncio.sleep(SETTLE_S)  # its address comes a moment later
        if popup is self._page:  # made by us, told of before it was returned
            return
        self._note(f"a new window was opened and closed: {popup.url}; browser_navigate goes there")
        with contextlib.suppress(Exception):
            await popup.close()

    async def _download(self, download: Any) -> None:
        self._note(await self._downloads.keep(download))

    async def _crashed(self, page: Any) -> None:
        self._note("the page crashed; it was closed")
        with contextlib.suppress(Exception):
            await page.close()

    def _spawn(self, doing: Any) -> None:
        task = asyncio.ensure_future(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note(self, text: str) -> None:
        if len(self._notes) < MOST_NOTES:
            self._notes.append(text[:NOTE_CHARS])

    def _told(self) -> list[str]:
        """Return what happened since this was last asked; what comes too late for one call is told by the next."""
        refused = [f"{text} ({count} times)" if count > 1 else text for text, count in self._refused.items()]
        told = [*self._notes, *refused][:MOST_NOTES]
        self._notes.clear()
        self._refused.clear()
        return told
