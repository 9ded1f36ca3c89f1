"""load: owns clients that ask through the gateway without a pause, whole answers and streams, and when each failed."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import Self

TOKENS = 4
PAUSE_S = 0.02  # two cores have more to do than to answer
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and how it ended. Times are monotonic."""

    begun: float
    ended: float
    release: str  #: that answered, '' when none did
    fault: str  #: '' for a whole answer


class Load:
    """One client that asks for whole answers and one that asks for streams, from the start of the block to its end."""

    def __init__(self, port: int, *, clients: int = 1, streams: int = 1) -> None:
        self.port = port
        self.asked: list[Asked] = []
        self._stop = threading.Event()
        kinds = [False] * clients + [True] * streams
        self._threads = [threading.Thread(target=self._ask, args=(kind,), daemon=True) for kind in kinds]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def faults(self, since: float = 0.0) -> list[Asked]:
        """Return what failed of what began after a time."""
        return [one for one in list(self.asked) if one.fault and one.begun >= since]

    def answered(self, since: float = 0.0) -> int:
        """Return how many were answered of those that began after a time."""
        return sum(not one.fault for one in list(self.asked) if one.begun >= since)

    def wait_answers(self, count: int, *, since: float | None = None, seconds: float = 60.0) -> None:
        """Wait until so many that begin from now on (or since then) are answered."""
        begin = time.monotonic()
        while self.answered(begin if since is None else since) < count:
            assert time.monotonic() - begin < seconds, f"not {count} answers in {seconds:g} s: {self.asked[-3:]}"
            time.sleep(0.01)

    def outage(self) -> float:
        """Return the seconds from the first request that failed to the first that was answered after the last."""
        failed = self.faults()
        if not failed:
            return 0.0
        first = min(one.begun for one in failed)
        last = max(one.begun for one in failed)
        return min((one.ended for one in self.asked if not one.fault and one.begun > last), default=1e9) - first

    def _ask(self, stream: bool) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            release, fault = "", ""
            try:
                release = ask(self.port, stream=stream)
            except (OSError, ValueError, http.client.HTTPException) as error:
                fault = repr(error)
            self.asked.append(Asked(begun, time.monotonic(), release, fault))
            self._stop.wait(PAUSE_S)


def ask(port: int, *, stream: bool = False, tokens: int = TOKENS, timeout: float = PATIENCE_S) -> str:
    """Ask once; return the release that answered. Raises OSError, ValueError, HTTPException for all but an answer."""
    body = {"model": "agent", "prompt": "Hi", "stream": stream, "options": {"num_predict": tokens}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", "/api/generate", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        whole = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise ValueError(f"{response.status} {whole[:200]!r}")
    if not json.loads(whole.splitlines()[-1]).get("done"):
        raise ValueError(f"cut: {whole[-200:]!r}")
    return response.headers.get("X-Loopbox-Release") or "unnamed"


def all_answer(port: int) -> bool:
    """Tell whether engine and agent answer through the gateway at this moment."""
    try:
        ask(port, timeout=5)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        return False
