"""addresses: owns which addresses the browser may load. It keeps mistakes in; the container is the boundary."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

NOT_GRANTED = (
    "network is not granted to this session: only files of the workspace (file:///workspace/…) and localhost work. "
    "The user can ask for a session with hosts"
)
_INERT = frozenset({"about", "data", "blob"})
_NETWORK = frozenset({"http", "https", "ws", "wss"})


def find_fault(url: str, *, workspace: Path, granted: bool) -> str:
    """Return why an address may not be loaded, "" when it may. Looks at links in the workspace."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        return f"it is no address ({error})"
    scheme = parts.scheme.lower()
    if scheme in _INERT:
        return ""
    if scheme in _NETWORK:
        return "" if granted or is_local(host) else NOT_GRANTED
    if scheme == "file":
        if host not in {"", "localhost"}:
            return "a file's address begins with file:///"
        real = os.path.realpath(unquote(parts.path, errors="surrogateescape").replace("\0", ""))
        inside = real == str(workspace) or real.startswith(f"{workspace}/")
        return "" if inside else f"only files inside {workspace} are shown"
    return f"addresses of the kind {scheme[:20] or 'none'!r} are not opened; http, https and file are"


def is_local(host: str) -> bool:
    """Tell whether a host is this sandbox itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def complete(url: str, workspace: Path) -> str:
    """Return what was meant by an address as people write it: a path in the workspace, or a host without https."""
    text = url.strip()
    if "://" in text or text.split(":", 1)[0].lower() in _INERT | {"chrome", "javascript", "view-source", "file"}:
        return text
    place = workspace / text.split("?", 1)[0].split("#", 1)[0]
    if text.startswith("/") or os.path.lexists(place):
        return f"file://{quote(str(workspace / text), safe='/?#%=&')}"
    return f"http://{text}" if is_local(text.split("/", 1)[0].split(":", 1)[0]) else f"https://{text}"
