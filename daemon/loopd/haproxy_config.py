"""haproxy_config: owns the gateway's configuration file, rendered from settings and routes. Pure.

Two frontends: the public one for clients, and one on the internal network for the agent's way to the model. Of an
engine's API only what answers questions is let through: what makes, fetches or deletes models never is. Limits and
what they do not cover: images/gateway/README.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from loopd import haproxy_auth, haproxy_limits
from loopd.errors import LoopdError
from loopd.gateway import POOLS, Pool, Route, route_weights
from loopd.haproxy_limits import RateLimits, limit_rules, limits_script
from loopd.keys import PublicKey
from loopd.tap import LINE_BYTES
from loopd.tap import SOCKET as TAP_FILE

PROBES: dict[Pool, str] = {"engine": "/api/version", "agent": "/health"}
# A crash refuses the connection at once, so a dead server is out after one probe and one quick second look: 0.6 s.
PROBE = "check inter 500ms fastinter 100ms fall 2 rise 1"

ENGINE_GETS = ("/", "/api/tags", "/api/ps", "/api/version", "/v1/models")
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

BUFFER_BYTES = 16384  # HAProxy's own default: a request's headers, and what of the body is looked at before routing
# A body without Content-Length is only counted while it fits the buffer together with its headers; both bounds
# together are so much below BUFFER_BYTES that a full buffer can never look like a whole body.
UNSIZED_BODY_BYTES = 8192
UNSIZED_HEADER_BYTES = 4096

HOLD_FILE = "hold.lua"
HOLD_LOOK_MS = 25

SERVER_INDENT = "    server "

NO_LIMITS = RateLimits()

ERRORS = {
    400: ("bad_request", "this is not HTTP as the gateway understands it; nothing was passed on"),
    403: ("forbidden", "models come in by the model directory, never by the API of the engine"),
    404: ("not_found", "there is no such path here; nothing was passed on"),
    408: ("request_timeout", "the request did not arrive whole in time; send it again"),
    413: ("too_large", "the request body is larger than the limit; nothing was passed on"),
    429: ("too_many_requests", "too many requests; wait, then send it again"),
    500: ("internal", "the gateway failed on this request; send it again"),
    502: ("bad_gateway", "what should answer broke off or answered no HTTP; the request may be sent again"),
    503: ("unavailable", "nothing is ready to answer; loopctl status says what is missing, then try again"),
    504: ("timeout", "no answer came in time; the request may be sent again"),
}


class AuthOffError(LoopdError, ValueError):
    """Without authentication nothing but this host may reach the gateway; nothing was changed."""

    code = "auth_off"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What the operator's settings say about the gateway. Times in whole seconds. Raises AuthOffError."""

    public_port: int
    internal_address: str  #: '' for no internal frontend
    internal_port: int
    max_body_bytes: int
    run_dir: str = "/run/gateway"  #: as the gateway's own process sees it
    public_address: str = "127.0.0.1"
    stream_s: int = 600  #: longest silence of an answer
    client_s: int = 60  #: longest silence of a client that owes bytes of its request, or takes none of its answer
    request_s: int = 10  #: for a client to send headers, and as long again for a body that fits the buffer
    queue_s: int = 30
    hold_s: int = 30  #: how long requests wait while no engine is ready; 0: they get a 503 at once
    tunnel_s: int = 3600  #: longest silence of a WebSocket
    drain_s: int = 3600  #: how long streams outlive a reload
    max_connections: int = 2048  #: of clients; a quarter as many come on top for the agent. Worst case 100 KB each
    auth: bool = False  #: every request of a client needs a token
    issuer: str = "loopbox"  #: of tokens
    keys: tuple[PublicKey, ...] = ()  #: that verify tokens
    limits: RateLimits = NO_LIMITS

    def __post_init__(self) -> None:
        if not self.auth and not ip_address(self.public_address).is_loopback:
            raise AuthOffError(
                f"auth.mode is off, but the gateway is to listen on {self.public_address}, where others reach it; "
                'nothing was changed. Set auth.mode to "required"'
            )


def render(config: GatewayConfig, routes: Sequence[Route]) -> str:
    """Return the whole haproxy.cfg. Raises RouteError."""
    return _render(config, routes, description_of(config))


def description_of(config: GatewayConfig) -> str:
    """Return what a HAProxy that runs with these settings says it is; another answer calls for a reload."""
    text = _render(config, (), "") + hold_script(config) + limits_script(config.limits)
    return f"loopbox-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _render(config: GatewayConfig, routes: Sequence[Route], description: str) -> str:
    frontends = [_frontend("public", config.public_address, config.public_port, config)]
    if config.internal_address:
        frontends.append(_frontend("internal", config.internal_address, config.internal_port, config))
    weights = route_weights(routes)
    servers = {
        pool: [server_line(r, weights[r.pool, r.server]) for r in _sorted(routes) if r.pool == pool] for pool in POOLS
    }
    missing = error_body("unavailable", "loopd does not answer, so nobody can log in now; tokens in use go on")
    backends = [_backend(pool, servers[pool]) for pool in POOLS]
    backends.append(haproxy_auth.control_backend(config.run_dir, missing))
    return "\n".join([_global(config, description), _defaults(config), *frontends, *backends])


def hold_script(config: GatewayConfig) -> str:
    """Return the script by which requests wait for an engine: while one is swapped in place, or comes back."""
    return f"""-- Written by loopd; changes are overwritten.
core.register_action("hold", {{"http-req"}}, function(txn)
    local last = core.now().sec + {config.hold_s}
    while txn.f:nbsrv("engine") == 0 and core.now().sec < last do
        core.msleep({HOLD_LOOK_MS})
    end
end, 0)
"""


def frame_of(text: str) -> str:
    """Return a configuration without its servers: the part that only settings change, and HAProxy must check."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(SERVER_INDENT))


def server_line(route: Route, weight: int) -> str:
    """Return what follows ``server`` in the file and ``add server POOL/`` at run time.

    Everything is said here, since a dynamic server inherits no defaults.
    """
    return f"{route.server} {route.address} weight {weight} {PROBE}"


def error_body(code: str, message: str) -> str:
    """Return an error in the appliance's format as a HAProxy log-format string, quoted for the file."""
    text = json.dumps(
        {"error": {"code": code, "message": message, "details": {"correlation_id": "@cid"}, "timestamp": "@now"}}
    )
    stamped = text.replace("%", "%%").replace("@cid", "%[var(txn.cid)]")
    stamped = stamped.replace("@now", "%[date,utime(%Y-%m-%dT%H:%M:%SZ)]")
    if "'" in stamped:
        raise ValueError(f"HAProxy cannot quote an apostrophe: {message!r}")
    return f"'{stamped}'"


def _sorted(routes: Sequence[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: route.server)


def _global(config: GatewayConfig, description: str) -> str:
    return f"""# Written by loopd; changes are overwritten.
global
    description {description}
    maxconn {config.max_connections + config.max_connections // 4}
    nbthread 1
    tune.bufsize {BUFFER_BYTES}
    tune.http.maxhdr 64
    stats socket {config.run_dir}/admin.sock mode 600 level admin expose-fd listeners
    stats timeout 10s
    stats maxconn 32
    lua-load {config.run_dir}/{HOLD_FILE}
    lua-load {config.run_dir}/{haproxy_limits.FILE}
    close-spread-time infinite
    hard-stop-after {config.drain_s}s
"""


def _defaults(config: GatewayConfig) -> str:
    errors = "\n".join(
        f"    http-error status {status} content-type application/json lf-string {error_body(code, message)}"
        + (" hdr Retry-After 2" if status in (429, 503) else "")
        for status, (code, message) in ERRORS.items()
    )
    return f"""defaults
    mode http
    balance roundrobin
    option dontlognull
    option redispatch 1
    option abortonclose
    option http-no-delay
    option contstats
    retries 3
    retry-on conn-failure
    timeout connect 2s
    timeout http-request {config.request_s}s
    timeout http-keep-alive 60s
    timeout client {config.client_s}s
    timeout server {config.stream_s}s
    timeout queue {config.queue_s}s
    timeout tunnel {config.tunnel_s}s
    timeout check 5s
{errors}
"""


_LOG = (
    '{"timestamp":"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]","level":"info","event":"gateway.request",'
    '"correlation_id":"%[var(txn.cid)]","frontend":"%f","client":"%ci","method":"%[var(txn.method),json(utf8s)]",'
    '"path":"%[var(txn.path),json(utf8s)]","user":"%[var(txn.user)]","status":%ST,"pool":"%b","server":"%s","retries":"%rc",'
    '"queue_ms":%Tw,"connect_ms":%Tc,"first_byte_ms":%Tr,"total_ms":%Ta,"bytes":%B,"end":"%ts"}'
)

_JSON = "content-type application/json lf-string"


def _frontend(name: str, address: str, port: int, config: GatewayConfig) -> str:
    """Return a frontend. ``proto h1``: one dialect, whose bodies are measured by the rules below.

    After a reload the old process closes no kept connection at once, since busy clients lose the requests that cross
    the closing (seen in tests). It says ``Connection: close`` with its next answer, and has that request answered by
    the new process, whose port this is by then: a flip holds for all clients from its first moment.
    """
    public = name == "public"
    most = config.max_connections if public else config.max_connections // 4
    unsized = error_body("length_required", "send a body of this size with a Content-Length")
    busy = f"{_JSON} {error_body('too_many_requests', ERRORS[429][1])}"
    doors = _doors(config, busy) if public else ""
    by_address = limit_rules(config.limits, "address", "!{ stopping }", busy) if public else ""
    return f"""frontend {name}
    bind {address}:{port} proto h1
    maxconn {most}
    log stdout len {LINE_BYTES} format raw local0 info
    log {config.run_dir}/{TAP_FILE} len {LINE_BYTES} format raw local0 info
    log-format '{_LOG}'
    unique-id-format %[uuid()]
    http-request set-var(txn.cid) unique-id
    http-request set-var(txn.cid) req.hdr(x-correlation-id) if {{ req.hdr_cnt(x-correlation-id) eq 1 }} \
{{ req.hdr(x-correlation-id) -m reg ^[A-Za-z0-9._-]{{8,64}}$ }}
    http-request set-header X-Correlation-Id %[var(txn.cid)]
    http-after-response set-header X-Correlation-Id %[var(txn.cid)] if {{ var(txn.cid) -m found }}
    http-after-response set-header Connection close if {{ stopping }} !{{ status 101 }}
    http-request set-var(txn.path) path
    http-request set-var(txn.method) method
    http-request del-header X-Forwarded-For
    http-request del-header Forwarded
    http-request set-header X-Forwarded-For %[src]
{haproxy_auth.identity_headers()}
    acl own path /gateway/health
    http-request set-log-level silent if own
    http-request return status 200 {_JSON} \
'{{"status":"ok","engines":%[nbsrv(engine)],"agents":%[nbsrv(agent)]}}' if own
{by_address}{_paths(public=public)}
{doors}    http-request deny deny_status 413 if !bulk {{ req.body_size gt {config.max_body_bytes} }}
    http-request wait-for-body time {config.request_s}s if !bulk
    http-request deny deny_status 413 if !bulk {{ req.body_size gt {config.max_body_bytes} }}
    acl sized req.hdr(content-length) -m found
    acl long_body req.body_size ge {UNSIZED_BODY_BYTES}
    acl long_body req.hdrs,length gt {UNSIZED_HEADER_BYTES}
    http-request return status 411 {_JSON} {unsized} if !sized long_body {{ req.body_size gt 0 }}
    http-request lua.hold if{" !agent !control" if public else ""} !{{ stopping }} {{ nbsrv(engine) eq 0 }}
    use_backend handover_{name} if {{ stopping }}
{"    use_backend agent if agent" if public else ""}
{"    use_backend control if control" if public else ""}
    default_backend engine

backend handover_{name}
    option http-server-close
    server new {address}:{port}
"""


def _doors(config: GatewayConfig, busy: str) -> str:
    """Return the rules on who may ask, how often, and what is passed on about it."""
    rules = [limit_rules(config.limits, "login", "!{ stopping } { path /auth/login /auth/refresh }", busy)]
    if config.auth:
        missing = error_body("unauthenticated", "this needs `Authorization: Bearer <token>`; nothing was passed on")
        wrong = error_body(
            "unauthenticated", "the token is not valid here: expired, revoked or not ours; get a new one"
        )
        low = error_body("forbidden", "the role of this token does not allow it; nothing was passed on")
        refusal = (f"{_JSON} {missing}", f"{_JSON} {wrong}")
        rules += [
            haproxy_auth.verify_rules(config.keys, config.run_dir, config.issuer, refusal),
            limit_rules(config.limits, "user", "let_in", busy),
            haproxy_auth.role_rules(f"{_JSON} {low}"),
        ]
    rules += [
        f"    http-request deny deny_status 413 if control {{ req.body_size gt {haproxy_auth.CONTROL_BODY_BYTES} }}\n",
        haproxy_auth.pass_on_rules(required=config.auth),
    ]
    return "".join(rules)


def _paths(*, public: bool) -> str:
    """Return the rules that refuse what is not listed, before a byte of the body is waited for."""
    wrong = error_body("method_not_allowed", "not with this method; the Allow header says which")
    lines = [
        f"acl engine_admin path -i {' '.join(ENGINE_ADMIN)}",
        "acl engine_admin path_beg -i /api/blobs/",
        f"acl engine_get path {' '.join(ENGINE_GETS)}",
        "acl engine_get path_reg ^/v1/models/[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
        f"acl engine_post path {' '.join(ENGINE_POSTS)}",
        # A conversation's files pass as they come; the agent counts them.
        "acl bulk path_reg ^/agents/threads/[a-z0-9_]{1,64}/workspace$",
        "http-request deny deny_status 403 if engine_admin",
        f"http-request deny deny_status 404 if !engine_get !engine_post{' !agent !control' if public else ''}",
        f"http-request return status 405 {_JSON} {wrong} hdr Allow 'GET, HEAD' if engine_get !{{ method GET HEAD }}",
        f"http-request return status 405 {_JSON} {wrong} hdr Allow POST if engine_post !{{ method POST }}",
    ]
    if public:
        lines[:0] = ["acl agent path /health /metrics", "acl agent path_beg /agents/ /health/"]
        lines[:0] = haproxy_auth.control_paths()
        lines += [
            (f"http-request return status 405 {_JSON} {wrong} hdr Allow GET if control_get !{{ method GET }}"),
            f"http-request return status 405 {_JSON} {wrong} hdr Allow POST if control_post !{{ method POST }}",
        ]
    return "\n".join(f"    {line}" for line in lines)


def _backend(pool: Pool, servers: Sequence[str]) -> str:
    what = "engine" if pool == "engine" else "agent"
    missing = error_body("unavailable", f"no {what} is ready; loopctl status says why and what to do, then try again")
    # An agent closes connections that were idle for some seconds, at times just when a request is put on them; its
    # answers take so long that a new connection for each costs nothing. An engine never closes an idle one, and a
    # generation changes nothing, so what a dying engine left unanswered is asked again.
    own = (
        "    http-reuse safe\n    retry-on conn-failure empty-response\n"
        "    http-response set-header X-Loopbox-Release %s"
        if pool == "engine"
        else "    option http-server-close"
    )
    return f"""backend {pool}
    option httpchk
    http-check send meth GET uri {PROBES[pool]} hdr Host {pool}
    http-check expect status 200
    http-error status 503 content-type application/json lf-string {missing} hdr Retry-After 2
{own}
""" + "".join(f"{SERVER_INDENT}{server}\n" for server in servers)
