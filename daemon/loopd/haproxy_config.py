"""haproxy_config: owns the gateway's configuration file, rendered from settings and routes. Pure.

Two frontends: the public one for clients, and one on the internal network for the agent's way to the model. Of an
engine's API only what answers questions is let through: what makes, fetches or deletes models never is.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from loopd.gateway import MOST_WEIGHT, Pool, Route, route_weights

POOLS: tuple[Pool, ...] = ("engine", "agent")
CHECKS: dict[Pool, str] = {"engine": "/api/version", "agent": "/health"}
CHECK = "check inter 500ms fall 2 rise 1"

ENGINE_GETS = ("/api/tags", "/api/ps", "/api/version", "/v1/models")
ENGINE_POSTS = (
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
)
ENGINE_ADMIN = ("/api/create", "/api/pull", "/api/push", "/api/delete", "/api/copy", "/api/blobs")

_SERVER = re.compile(r"^[a-z0-9][a-z0-9-]{0,63}$")
_ADDRESS = re.compile(r"^([0-9.]{7,15}):([0-9]{1,5})$")

NEXT = {
    503: ("unavailable", "nothing is ready to answer; `loopctl status` says what is missing, then try again"),
    502: ("bad_gateway", "the part that should answer broke off; the request may be sent again"),
    504: ("timeout", "no answer came in time; the request may be sent again"),
    408: ("request_timeout", "the request did not arrive whole in time"),
    400: ("bad_request", "this is not HTTP as the gateway understands it"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What the operator's settings say about the gateway."""

    public_port: int
    internal_address: str
    internal_port: int
    max_body_bytes: int
    run_dir: str = "/run/gateway"  #: as the gateway's own process sees it
    public_address: str = "127.0.0.1"
    stream_s: int = 600  #: longest silence of an answer
    request_s: int = 10  #: for a client to send its request's headers
    max_connections: int = 4096


def render(config: GatewayConfig, routes: Sequence[Route]) -> str:
    """Return the whole haproxy.cfg. Raises ValueError for a server name or address that is none."""
    frontends = [_frontend("public", config.public_address, config.public_port, config, _rules(agent=True))]
    if config.internal_address:
        internal = _frontend("internal", config.internal_address, config.internal_port, config, _rules(agent=False))
        frontends.append(internal)
    backends = [_backend(pool, [route for route in routes if route.pool == pool]) for pool in POOLS]
    return "\n".join([_head(config), *frontends, *backends])


def server_line(route: Route, weight: int) -> str:
    """Return what follows ``server`` in the file and ``add server POOL/`` at run time.

    Raises ValueError, so that nothing but a name and an address ever reaches HAProxy.
    """
    match = _ADDRESS.match(route.address)
    if not _SERVER.match(route.server) or match is None:
        raise ValueError(f"not a server: {route.server!r} at {route.address!r}")
    ipaddress.IPv4Address(match[1])
    if not 0 < int(match[2]) <= 65535 or not 0 <= weight <= MOST_WEIGHT:  # noqa: PLR2004 ports
        raise ValueError(f"port or weight out of range: {route.address} {weight}")
    return f"{route.server} {route.address} weight {weight} {CHECK}"


def error_body(code: str, message: str) -> str:
    """Return an error in the appliance's format as a HAProxy log-format string, quoted for the file."""
    text = json.dumps({"error": {"code": code, "message": message, "details": {}, "timestamp": "@"}})
    stamped = text.replace("%", "%%").replace('"@"', '"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]"')
    if "'" in stamped:
        raise ValueError(f"HAProxy cannot quote an apostrophe: {message!r}")
    return f"'{stamped}'"


def _head(config: GatewayConfig) -> str:
    errors = "\n".join(
        f"    http-error status {status} content-type application/json lf-string {error_body(code, message)}"
        for status, (code, message) in NEXT.items()
    )
    return f"""# Written by loopd; changes are overwritten.
global
    log stdout format raw local0 info
    maxconn {config.max_connections}
    nbthread 1
    tune.bufsize 32768
    tune.http.maxhdr 64
    stats socket {config.run_dir}/admin.sock mode 600 level admin expose-fd listeners
    stats timeout 10s
    hard-stop-after {config.stream_s}s

defaults
    mode http
    log global
    option httplog
    option dontlognull
    option http-keep-alive
    option redispatch
    retries 2
    retry-on conn-failure
    http-reuse safe
    timeout connect 2s
    timeout http-request {config.request_s}s
    timeout http-keep-alive 60s
    timeout client {config.stream_s}s
    timeout server {config.stream_s}s
    timeout queue 30s
    timeout tunnel 1h
    timeout check 2s
{errors}
"""


def _frontend(name: str, address: str, port: int, config: GatewayConfig, rules: str) -> str:
    too_large = error_body("too_large", f"a request body may have {config.max_body_bytes} bytes at most")
    no_length = error_body("length_required", "send the body with a Content-Length, not chunked")
    log = (
        '{"timestamp":"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]","event":"request","service":"gateway",'
        '"method":"%HM","path":"%[var(txn.path),json(utf8s)]","status":%ST,"pool":"%b","server":"%s",'
        '"wait_ms":%Tw,"first_byte_ms":%Tr,"total_ms":%Ta,"bytes":%B,"end":"%ts",'
        '"correlation_id":"%[var(txn.cid)]"}'
    )
    return f"""frontend {name}
    bind {address}:{port}
    unique-id-format %[uuid()]
    log-format '{log}'
    acl cid_ok req.hdr(x-correlation-id) -m reg ^[A-Za-z0-9._-]{{8,64}}$
    http-request set-header X-Correlation-Id %[unique-id] unless cid_ok
    http-request set-var(txn.cid) req.hdr(x-correlation-id)
    http-request set-var(txn.path) path
    http-after-response set-header X-Correlation-Id %[var(txn.cid)]
    monitor-uri /gateway/health
    http-request return status 413 content-type application/json lf-string {too_large} if {{ req.hdr_val(content-length) gt {config.max_body_bytes} }}
    http-request return status 411 content-type application/json lf-string {no_length} if {{ req.hdr(transfer-encoding) -m found }}
{rules}"""  # noqa: E501 HAProxy's rules are one line each


def _rules(*, agent: bool) -> str:
    """Return what decides where a request goes. HAProxy runs all ``http-request`` rules before any ``use_backend``."""
    forbidden = error_body("forbidden", "models come in by the model directory, never by the API of the engine")
    nothing = error_body("not_found", "there is no such path here")
    method = error_body("method_not_allowed", "not with this method")
    json_type = "content-type application/json lf-string"
    agent_acl = "/agents/ /health /metrics" if agent else "/-none-"
    return f"""    acl agent path_beg {agent_acl}
    acl engine_admin path_beg {" ".join(ENGINE_ADMIN)}
    acl engine_get path / {" ".join(ENGINE_GETS)}
    acl engine_get path_reg ^/v1/models/[A-Za-z0-9._:-]{{1,128}}$
    acl engine_post path {" ".join(ENGINE_POSTS)}
    acl reads method GET HEAD
    acl posts method POST
    http-request return status 403 {json_type} {forbidden} if engine_admin
    http-request return status 404 {json_type} {nothing} if !agent !engine_get !engine_post
    http-request return status 405 {json_type} {method} if engine_get !reads
    http-request return status 405 {json_type} {method} if engine_post !posts
    use_backend agent if agent
    default_backend engine
"""


def _backend(pool: Pool, routes: Sequence[Route]) -> str:
    by_weight = route_weights(routes)
    servers = "".join(
        f"    server {server_line(route, by_weight[route.pool, route.server])}\n"
        for route in sorted(routes, key=lambda route: route.server)
    )
    header = "    http-response set-header X-Loopbox-Release %s\n" if pool == "engine" else ""
    return f"""backend {pool}
    balance roundrobin
    option httpchk GET {CHECKS[pool]}
    http-check expect status 200
{header}{servers}"""
