"""haproxy_auth: owns who the gateway lets in: the rules that verify a token and hold its role against the path. Pure.

HAProxy verifies each request itself, with the keys that loopd gave it, so requests need no loopd. What it lets in
carries X-Loopbox-User and X-Loopbox-Role to the agent; what a client sends under these names never passes.
"""

from __future__ import annotations

from collections.abc import Sequence

from loopd.keys import PublicKey
from loopd.principal import USER_PATTERN
from loopd.tokens import ALGORITHM, AUDIENCE, LEEWAY_S

REVOKED_FILE = "revoked.map"
SOCKET = "auth.sock"  # loopd's, in the gateway's directory
CONTROL_BODY_BYTES = 8192

OPEN_PATHS = ("/health", "/auth/login", "/auth/refresh", "/.well-known/jwks.json")
CONTROL_POSTS = ("/auth/login", "/auth/refresh", "/auth/logout")
CONTROL_GETS = ("/auth/whoami", "/.well-known/jwks.json")
OPERATOR_PATHS = ("/metrics", "/health/detailed")
VIEWER_PATHS = ("/health/ready", "/auth/whoami", "/auth/logout")

# Browsers cannot set headers of a WebSocket: they offer these two protocols, and get the first.
WS_PROTOCOL = "loopbox"
WS_BEARER = "loopbox.bearer."

_SHAPE = r"^[A-Za-z0-9_-]{8,1024}\.[A-Za-z0-9_-]{8,2048}\.[A-Za-z0-9_-]{300,1024}\z"
_PLAIN = r"^[\x20-\x5b\x5d-\x7e]+\z"  # ASCII without escapes
_NUMBER = r'"NAME": ?[0-9]{1,12}[,}]'


def identity_headers() -> str:
    """Return the rule that takes away what only the gateway may say, however it is spelt."""
    return "    http-request del-header '(?i)^x[-_]loopbox[-_]' -m reg"


def control_paths() -> list[str]:
    """Return ACLs of the paths that loopd answers."""
    return [
        f"acl control path {' '.join(sorted({*CONTROL_POSTS, *CONTROL_GETS}))}",
        f"acl control_get path {' '.join(CONTROL_GETS)}",
        f"acl control_post path {' '.join(CONTROL_POSTS)}",
    ]


def verify_rules(keys: Sequence[PublicKey], run_dir: str, issuer: str, refusal: tuple[str, str]) -> str:
    """Return the rules that verify a token; refusal: the answers' text without a token, and with a wrong one.

    A process that only finishes its streams passes each further request to the new one, which verifies it.
    """
    bearer = "var(txn.bearer)"
    missing, wrong = refusal
    lines = [
        f"acl open path {' '.join(OPEN_PATHS)}",
        "acl leaving stopping",
        "acl upgrade req.hdr(upgrade) -m found",
        (
            "http-request set-var(txn.bearer) http_auth_bearer "
            "if { req.fhdr_cnt(authorization) eq 1 } { req.hdr_cnt(authorization) eq 1 }"
        ),
        (
            f"http-request set-var(txn.bearer) req.hdr(sec-websocket-protocol,2),field(3,.,0) "
            f"if upgrade !{{ req.hdr(authorization) -m found }} {{ req.fhdr_cnt(sec-websocket-protocol) eq 1 }} "
            "{ req.hdr_cnt(sec-websocket-protocol) eq 2 } "
            f"{{ req.hdr(sec-websocket-protocol,1) -m str {WS_PROTOCOL} }} "
            f"{{ req.hdr(sec-websocket-protocol,2) -m beg {WS_BEARER} }}"
        ),
        f"http-request set-var(txn.ws) bool(true) if {{ {bearer} -m found }} !{{ req.hdr(authorization) -m found }}",
        "acl ws var(txn.ws) -m bool true",
        f"acl shaped {bearer} -m reg '{_SHAPE}'",
        f"http-request set-var(txn.kid) {bearer},jwt_header_query('$.kid') if !open !leaving shaped",
        f"http-request set-var(txn.alg) {bearer},jwt_header_query('$.alg') if !open !leaving shaped",
    ]
    # The algorithm is ours to say, never the token's; the key is one of ours, by its id.
    lines += [
        f"http-request set-var(txn.signed) {bearer},jwt_verify({ALGORITHM},{run_dir}/{key.file}) "
        f"if {{ var(txn.alg) -m str {ALGORITHM} }} {{ var(txn.kid) -m str {key.kid} }}"
        for key in keys
    ]
    claims = (("exp", ",'int'"), ("nbf", ",'int'"), ("jti", ""), ("iss", ""), ("aud", ""), ("role", ""), ("sub", ""))
    lines += ["acl signed var(txn.signed) -m int 1"]
    lines += [
        f"http-request set-var(txn.{name}) {bearer},jwt_payload_query('$.{name}'{kind}) if signed"
        for name, kind in claims
    ]
    # HAProxy reads a time that is text as a number, and text up to a NUL: what is not written plainly is not read.
    lines += [
        f"http-request set-var(txn.head) {bearer},field(1,.),ub64dec if signed",
        f"http-request set-var(txn.claims) {bearer},field(2,.),ub64dec if signed",
        f"acl plain_head var(txn.head) -m reg '{_PLAIN}'",
        f"acl plain_claims var(txn.claims) -m reg '{_PLAIN}'",
        f"acl exp_is_number var(txn.claims) -m reg '{_NUMBER.replace('NAME', 'exp')}'",
        f"acl nbf_is_number var(txn.claims) -m reg '{_NUMBER.replace('NAME', 'nbf')}'",
        f"acl unexpired date(-{LEEWAY_S}),sub(txn.exp) lt 0",
        f"acl begun date({LEEWAY_S}),sub(txn.nbf) ge 0",
        "acl one_of_ours var(txn.jti) -m reg '^[0-9a-f]{32}\\z'",
        f"acl revoked var(txn.jti),map({run_dir}/{REVOKED_FILE}) -m found",
        f"acl issuer var(txn.iss) -m str {issuer}",
        f"acl audience var(txn.aud) -m str {AUDIENCE}",
        f"acl named var(txn.sub) -m reg '^{USER_PATTERN}\\z'",
        "acl with_role var(txn.role) -m str viewer user operator admin",
        (
            "http-request set-var(txn.user) var(txn.sub) "
            "if signed plain_head plain_claims exp_is_number nbf_is_number unexpired begun one_of_ours !revoked "
            "issuer audience named with_role"
        ),
        "acl let_in var(txn.user) -m found",
        (
            f"http-request return status 401 {missing} hdr WWW-Authenticate 'Bearer realm=\"loopbox\"' "
            "if !open !leaving !{ req.hdr(authorization) -m found } !ws"
        ),
        (
            f"http-request return status 401 {wrong} "
            'hdr WWW-Authenticate \'Bearer realm="loopbox", error="invalid_token"\' if !open !leaving !let_in'
        ),
    ]
    return "".join(f"    {line}\n" for line in lines)


def role_rules(refusal: str) -> str:
    """Return the rules that hold the role against the path; whoever reads them is a viewer at least."""
    lines = [
        f"acl for_operators path {' '.join(OPERATOR_PATHS)}",
        f"acl for_viewers path {' '.join(VIEWER_PATHS)}",
        "acl operator var(txn.role) -m str operator admin",
        "acl user var(txn.role) -m str user operator admin",
        # An upgraded GET runs the agent as a POST does.
        "acl reading method GET HEAD",
        f"http-request return status 403 {refusal} if let_in for_operators !operator",
        (
            f"http-request return status 403 {refusal} "
            "if let_in !for_operators !for_viewers !open !user !{ path_beg /agents/ }"
        ),
        (
            f"http-request return status 403 {refusal} "
            "if let_in !user { path_beg /agents/ } !reading or let_in !user { path_beg /agents/ } upgrade"
        ),
    ]
    return "".join(f"    {line}\n" for line in lines)


def pass_on_rules(*, required: bool) -> str:
    """Return the rules that say to the agent who asks, and keep the token from it and from the engine."""
    who, role = ("%[var(txn.user)]", "%[var(txn.role)]") if required else ("local", "admin")
    let_in = " let_in" if required else ""
    lines = [
        f"http-request set-header X-Loopbox-User {who} if agent !{{ stopping }}{let_in}",
        f"http-request set-header X-Loopbox-Role {role} if agent !{{ stopping }}{let_in}",
        "http-request del-header Authorization if !control !{ stopping }",
    ]
    if required:
        lines += [
            "http-request del-header Sec-WebSocket-Protocol if ws !{ stopping }",
            f"http-response set-header Sec-WebSocket-Protocol {WS_PROTOCOL} if ws {{ status 101 }}",
        ]
    return "".join(f"    {line}\n" for line in lines)


def control_backend(run_dir: str, missing: str) -> str:
    """Return the backend that reaches the few paths of loopd that clients may ask, and nothing else of it."""
    return f"""backend control
    option http-server-close
    retries 1
    timeout server 30s
    http-error status 503 content-type application/json lf-string {missing} hdr Retry-After 2
    server loopd unix@{run_dir}/{SOCKET}
"""
