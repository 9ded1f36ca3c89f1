"""request: owns the strict reading of a request's head: whatever could be understood in two ways is refused.

One request a connection: what follows it is its body, counted, or nothing. So there is nothing to smuggle into.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MOST_FIELDS = 100

_LINE = re.compile(r"([A-Z]{1,16}) ([\x21-\x7e]+) HTTP/1\.[01]")
_FIELD = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*"
    r"([\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?[ \t]*"
)
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_DIGITS = re.compile(r"[0-9]{1,15}")
# Of one hop, so not passed on. Credentials for this proxy are nobody else's either.
_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "upgrade",
    }
)


class BadRequestError(Exception):
    """What came is no request that is taken; the text is told to the client."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    method: str
    host: str  #: lower case, no final dot; an address in its shortest form, without brackets
    port: int
    head: bytes  #: to be sent to the host; b"" for CONNECT
    length: int = 0  #: bytes of the body

    @property
    def tunnel(self) -> bool:
        """Whether this is CONNECT."""
        return self.method == "CONNECT"


def parse_request(head: bytes) -> Request:
    """Read a head, up to and with its empty line. Raises BadRequestError."""
    if not head.endswith(b"\r\n\r\n") or b"\0" in head:
        raise BadRequestError("the head of the request does not end")
    line, *lines = head[:-4].decode("latin-1").split("\r\n")
    if (match := _LINE.fullmatch(line)) is None:
        raise BadRequestError("the first line is no request line")
    method, target = match.groups()
    fields = _fields(lines)
    hosts = [value for name, value in fields if name == "host"]
    if method == "CONNECT":
        host, port = _authority(target, None)
        if len(hosts) > 1 or (hosts and _authority(hosts[0], port) != (host, port)):
            raise BadRequestError("Host is not what CONNECT names")
        if any(name in ("content-length", "transfer-encoding") for name, _ in fields):
            raise BadRequestError("CONNECT has no body")
        return Request(method, host, port, b"")
    if method not in METHODS:
        raise BadRequestError(f"{method} is not passed on", 501)
    scheme, slashes, rest = target.partition("://")
    if not slashes or scheme.lower() != "http":
        raise BadRequestError("a proxy is asked for http://host/path, or by CONNECT")
    authority, path = re.match(r"^([^/?#]*)(.*)$", rest).groups()  # type: ignore[union-attr]  # it matches all
    host, port = _authority(authority, 80)
    if len(hosts) != 1 or _authority(hosts[0], 80) != (host, port):
        raise BadRequestError("there must be one Host, and it must be the one asked for")
    if "#" in path:
        raise BadRequestError("a fragment is not sent")
    return Request(method, host, port, _head(method, path, authority, fields), _length(fields))


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    if len(lines) > MOST_FIELDS:
        raise BadRequestError(f"more than {MOST_FIELDS} header fields", 431)
    found = []
    for line in lines:
        if (match := _FIELD.fullmatch(line)) is None:  # a folded line, a space before the colon, a bare CR or LF
            raise BadRequestError("a header field is malformed")
        found.append((match[1].lower(), match[2] or ""))
    return found


def _length(fields: list[tuple[str, str]]) -> int:
    if any(name == "transfer-encoding" for name, _ in fields):
        raise BadRequestError("send a body with Content-Length; Transfer-Encoding is not taken", 411)
    lengths = [value for name, value in fields if name == "content-length"]
    if len(lengths) > 1 or (lengths and not _DIGITS.fullmatch(lengths[0])):
        raise BadRequestError("Content-Length must be one number")
    return int(lengths[0]) if lengths else 0


def _head(method: str, path: str, authority: str, fields: list[tuple[str, str]]) -> bytes:
    named = {word.strip().lower() for name, value in fields if name == "connection" for word in value.split(",")}
    if named & {"host", "content-length", "transfer-encoding"}:
        raise BadRequestError("Connection names a field that frames the request")
    path = path if path.startswith("/") else f"/{path}"
    kept = [f"{name}: {value}" for name, value in fields if name not in _HOP | named | {"host"}]
    lines = [f"{method} {path} HTTP/1.1", f"host: {authority}", *kept, "connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _authority(text: str, default: int | None) -> tuple[str, int]:
    """Return host and port. Raises BadRequestError: no name, no user, no port where one is needed, an odd number."""
    host, colon, digits = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, digits = text, ""
    if digits and not (_DIGITS.fullmatch(digits) and 0 < int(digits) <= 65535):  # noqa: PLR2004 a port
        raise BadRequestError("the port is no port")
    if (not digits and default is None) or (colon and host != text and not digits):
        raise BadRequestError("a port is needed: host:port")
    return _host(host.lower()), int(digits) if digits else int(default or 0)


def _host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        if "%" in host:
            raise BadRequestError("an address with a zone is nobody else's")
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError as error:
            raise BadRequestError("no IPv6 address in the brackets") from error
    host = host.removesuffix(".")
    if not _NAME.fullmatch(host) or len(host) > 253:  # noqa: PLR2004 RFC 1035
        raise BadRequestError("the host is no name")
    last = host.rpartition(".")[2]
    if last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last):  # written as a number: exactly a dotted quad or nothing
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise BadRequestError("the host is an oddly written address") from error
    return host
