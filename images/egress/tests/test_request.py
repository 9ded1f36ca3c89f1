"""Reading a request's head: what is taken, and all that two readers could take in two ways."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox_egress.request import BadRequestError, Request, parse_request


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def test_connect_names_a_host_and_a_port() -> None:
    assert parse_request(head("CONNECT Example.ORG.:443 HTTP/1.1")) == Request("CONNECT", "example.org", 443, b"")
    assert (
        parse_request(head("CONNECT [2001:DB8::0:1]:8443 HTTP/1.1", "Host: [2001:db8::1]:8443")).host == "2001:db8::1"
    )
    assert parse_request(head("CONNECT 192.0.2.7:80 HTTP/1.0", "host: 192.0.2.7:80")).host == "192.0.2.7"


def test_what_is_passed_on_has_one_host_and_no_field_of_the_hop() -> None:
    request = parse_request(
        head(
            "POST http://example.org:8080/a?b=c HTTP/1.1",
            "Host: example.org:8080",
            "Proxy-Authorization: Basic eA==",
            "Connection: keep-alive, X-Mine",
            "X-Mine: 1",
            "Content-Length: 3",
            "X-Kept: ä b",
        )
    )
    assert (request.host, request.port, request.length) == ("example.org", 8080, 3)
    assert request.head.decode("latin-1").split("\r\n") == [
        "POST /a?b=c HTTP/1.1",
        "host: example.org:8080",
        "content-length: 3",
        "x-kept: ä b",
        "connection: close",
        "",
        "",
    ]


BAD = {
    "no request line": head("hello"),
    "two spaces": head("GET  http://a.org/ HTTP/1.1", "Host: a.org"),
    "a line feed in the line": b"GET http://a.org/ HTTP/1.1\n\r\nHost: a.org\r\n\r\n",
    "bare line feeds": b"GET http://a.org/ HTTP/1.1\nHost: a.org\n\n",
    "origin form": head("GET / HTTP/1.1", "Host: a.org"),
    "another scheme": head("GET ftp://a.org/ HTTP/1.1", "Host: a.org"),
    "https in the open": head("GET https://a.org/ HTTP/1.1", "Host: a.org"),
    "another Host": head("GET http://a.org/ HTTP/1.1", "Host: b.org"),
    "another Host's port": head("GET http://a.org/ HTTP/1.1", "Host: a.org:8080"),
    "no Host": head("GET http://a.org/ HTTP/1.1"),
    "two Hosts": head("GET http://a.org/ HTTP/1.1", "Host: a.org", "Host: a.org"),
    "another Host in CONNECT": head("CONNECT a.org:443 HTTP/1.1", "Host: b.org:443"),
    "a user": head("GET http://a.org@b.org/ HTTP/1.1", "Host: b.org"),
    "a user in CONNECT": head("CONNECT a@b.org:443 HTTP/1.1"),
    "a backslash": head("GET http://a.org\\@b.org/ HTTP/1.1", "Host: a.org"),
    "CONNECT without a port": head("CONNECT a.org HTTP/1.1"),
    "CONNECT with an empty port": head("CONNECT a.org: HTTP/1.1"),
    "port 0": head("CONNECT a.org:0 HTTP/1.1"),
    "port 70000": head("CONNECT a.org:70000 HTTP/1.1"),
    "a signed port": head("CONNECT a.org:+443 HTTP/1.1"),
    "CONNECT with a body": head("CONNECT a.org:443 HTTP/1.1", "Content-Length: 5"),
    "a chunked body": head("POST http://a.org/ HTTP/1.1", "Host: a.org", "Transfer-Encoding: chunked"),
    "both framings": head(
        "POST http://a.org/ HTTP/1.1", "Host: a.org", "Content-Length: 5", "Transfer-Encoding: chunked"
    ),
    "two lengths": head("POST http://a.org/ HTTP/1.1", "Host: a.org", "Content-Length: 5", "Content-Length: 5"),
    "a list of lengths": head("POST http://a.org/ HTTP/1.1", "Host: a.org", "Content-Length: 5, 5"),
    "a signed length": head("POST http://a.org/ HTTP/1.1", "Host: a.org", "Content-Length: +5"),
    "Connection takes the length away": head(
        "POST http://a.org/ HTTP/1.1", "Host: a.org", "Content-Length: 5", "Connection: content-length"
    ),
    "a folded line": head("GET http://a.org/ HTTP/1.1", "Host: a.org", " folded"),
    "a space before the colon": head("GET http://a.org/ HTTP/1.1", "Host : a.org"),
    "a carriage return in a value": head("GET http://a.org/ HTTP/1.1", "Host: a.org", "X: a\rY: b"),
    "a line feed in a value": head("GET http://a.org/ HTTP/1.1", "Host: a.org", "X: a\nY: b"),
    "a zero": head("GET http://a.org/ HTTP/1.1", "Host: a.org", "X: a\0"),
    "a fragment": head("GET http://a.org/#x HTTP/1.1", "Host: a.org"),
    "TRACE": head("TRACE http://a.org/ HTTP/1.1", "Host: a.org"),
    "too many fields": head("GET http://a.org/ HTTP/1.1", "Host: a.org", *["X: y"] * 101),
    "a number for an address": head("CONNECT 2130706433:80 HTTP/1.1"),
    "a hexadecimal address": head("CONNECT 0x7f000001:80 HTTP/1.1"),
    "a short address": head("CONNECT 127.1:80 HTTP/1.1"),
    "an octal address": head("CONNECT 0177.0.0.1:80 HTTP/1.1"),
    "an address with a zone": head("CONNECT [fe80::1%25eth0]:80 HTTP/1.1"),
    "a bare IPv6 address": head("CONNECT ::1:80 HTTP/1.1"),
    "unicode": "CONNECT ex\u00e4mple.org:443 HTTP/1.1\r\n\r\n".encode(),
    "an empty label": head("CONNECT a..org:443 HTTP/1.1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    with pytest.raises(BadRequestError):
        parse_request(BAD[name])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(noise: bytes) -> None:
    with contextlib.suppress(BadRequestError):
        parse_request(noise + b"\r\n\r\n")


@given(
    st.lists(
        st.sampled_from(
            ["Host: a.org", "Host: b.org", "Content-Length: 4", "Transfer-Encoding: chunked", "X: y", "Connection: x"]
        ),
        max_size=6,
    )
)
def test_what_is_passed_on_is_framed_once_and_for_the_host_asked_for(fields: list[str]) -> None:
    try:
        request = parse_request(head("POST http://a.org/x HTTP/1.1", *fields))
    except BadRequestError:
        return
    lines = request.head.decode().lower().split("\r\n")
    assert [line for line in lines if line.startswith("host:")] == ["host: a.org"]
    assert sum(line.startswith("content-length:") for line in lines) <= 1
    assert not any(line.startswith("transfer-encoding:") for line in lines)
    assert request.length == (4 if "content-length: 4" in lines else 0)
