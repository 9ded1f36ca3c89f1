"""web: owns the routes' declaration, the error middleware and the OpenAPI document.

The document is made from the declarations that the routes are made from, so the two cannot drift.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar

import structlog
from aiohttp import web
from pydantic import BaseModel, ValidationError

from loopd.api.schema import ErrorBody, ErrorDetail
from loopd.attempts import SlowDownError
from loopd.errors import LoopdError
from loopd.identity import SOCKET, Identity
from loopd.metrics import Metrics
from loopd.principal import Principal, Role

CORRELATION_HEADER = "X-Correlation-Id"
_CORRELATION = re.compile(r"^[A-Za-z0-9._-]{8,64}$")
_PARAMETER = re.compile(r"\{(\w+)(?::((?:[^{}]|\{[^{}]*\})*))?\}")  # a pattern may hold a {m,n} of its own

RULES = """Every answer from 400 on has the form of ErrorBody; its `code` is stable, its `message` is for people.

- 400: what came is no HTTP (answered by the server itself, in plain text).
- 401: no token, or a wrong one; asked before anything else but the route.
- 403: the role of the token is too low; `x-role` of the operation says which is needed. The control token is an admin.
- 404: nothing by that name. A path parameter that does not fit its pattern names nothing, so it is 404, too.
- 405: the path is known, the method is not one of `Allow`.
- 409: it contradicts what is under way, or fits several things; nothing was changed.
- 413: the body is larger than `max_body_bytes`.
- 422: the body or a query parameter is not as this document says; nothing was done. Types are not converted: `"1"` and
  `0` are no number and no boolean. Unknown fields of a body are refused, unknown query parameters are passed over.
- 429: too many requests, or too many failed logins; `Retry-After` says how many seconds to wait.
- 503: a part that is needed does not answer, or the state cannot be read or written; traffic goes on.
- 507: the disk is full, so nothing was changed; traffic goes on.
"""

METRICS: web.AppKey[Metrics] = web.AppKey("METRICS", Metrics)
IDENTITY: web.AppKey[Identity | None] = web.AppKey("IDENTITY")  # None: the socket's file mode is the lock
FORWARDED: web.AppKey[bool] = web.AppKey("FORWARDED", bool)  # the gateway says where requests come from
PRINCIPAL = web.RequestKey("PRINCIPAL", Principal)

log = structlog.get_logger("loopd.api")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
M = TypeVar("M", bound=BaseModel)


class InvalidError(LoopdError):
    """The request's body or query is not as the OpenAPI document says; nothing was done."""

    code = "validation"
    status = 422


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query parameter: a whole number."""

    name: str
    description: str
    least: int = 0
    most: int = 2**53
    default: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One route as code and document both need it."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: type[BaseModel] | None = None
    status: int = 200
    body: type[BaseModel] | None = None
    query: tuple[Query, ...] = ()
    media: str = "application/json"
    public: bool = False  #: needs no token
    role: Role | None = None  #: that it needs; None: to look, viewer; to change something, operator
    errors: tuple[int, ...] = field(default=())

    @property
    def needed(self) -> Role:
        """The least role that may use it."""
        return self.role or (Role.VIEWER if self.method == "GET" else Role.OPERATOR)

    @property
    def operation(self) -> str:
        """The operation id: the handler's name."""
        return getattr(self.handler, "__name__", self.path).strip("_")


def json_response(model: BaseModel, status: int = 200) -> web.Response:
    """Answer with a body of the schema."""
    return web.Response(text=model.model_dump_json(), status=status, content_type="application/json")


async def read_body(request: web.Request, model: type[M], *, most: int | None = None) -> M:
    """Parse the body, of at most so many bytes beside the application's own limit. Raises InvalidError."""
    if most is not None:
        request = request.clone(client_max_size=most)
    try:
        return model.model_validate_json(await request.read(), strict=True)  # as the document says, nothing converted
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'body'}: {f['msg']}" for f in error.errors()[:10])
        raise InvalidError(f"the body cannot be used: {faults}") from error


def read_query(request: web.Request, query: Query) -> int:
    """Parse one query parameter. Raises InvalidError."""
    text = request.query.get(query.name)
    if text is None:
        return query.default
    if not re.fullmatch(r"[0-9]{1,16}", text) or not query.least <= int(text) <= query.most:
        raise InvalidError(f"{query.name} must be a whole number from {query.least} to {query.most}")
    return int(text)


def error_response(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """Answer in the error format."""
    body = ErrorBody(error=ErrorDetail(code=code, message=message, timestamp=datetime.now(UTC)))
    return web.Response(text=body.model_dump_json(), status=status, content_type="application/json", headers=headers)


@web.middleware
async def correlate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Bind the caller's correlation id, or a new one, to every log line and ledger entry this request makes."""
    given = request.headers.get(CORRELATION_HEADER, "")
    correlation_id = given if _CORRELATION.match(given) else secrets.token_hex(8)
    with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
        response = await handler(request)
    if not response.prepared:
        response.headers[CORRELATION_HEADER] = correlation_id
    return response


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what is raised into the error format, with the right status."""
    try:
        response = await handler(request)
    except LoopdError as error:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else None
        if isinstance(error, SlowDownError):
            headers = {"Retry-After": str(error.wait_s)}
        response = error_response(error.status, error.code, str(error), headers)
    except web.HTTPException as error:
        code = HTTPStatus(error.status).name.lower()
        kept = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        response = error_response(error.status, code, f"{request.method} {request.path}: {error.reason}", kept)
    except Exception:
        log.exception("request.failed", method=request.method, path=request.path)
        response = error_response(
            500, "internal", "a fault in loopd; its log has the trace. What serves was not touched"
        )
    route = request.match_info.route.resource.canonical if request.match_info.route.resource else "none"
    request.app[METRICS].requests.labels(route=route, status=str(response.status)).inc()
    return response


def guard(endpoint: Endpoint) -> Handler:
    """Return the handler behind the check of who asks, unless the endpoint is public."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        if not endpoint.public:
            identity = request.app[IDENTITY]
            who = await identity.of(request.headers.getall("Authorization", ())) if identity else SOCKET
            who.require(endpoint.needed)
            request[PRINCIPAL] = who
        return await endpoint.handler(request)

    return guarded


def address_of(request: web.Request) -> str:
    """Return where a request comes from: what the gateway says on its own socket, else the peer."""
    given = request.headers.getall("X-Forwarded-For", ())
    if request.app[FORWARDED] and len(given) == 1:
        return given[0][:64]
    return request.remote or "socket"


def openapi(endpoints: Sequence[Endpoint], *, version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document. Any: it is JSON."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        operation: dict[str, Any] = {
            "operationId": endpoint.operation,
            "summary": endpoint.summary,
            "responses": {str(endpoint.status): _answer(endpoint, schemas)},
        }
        parameters = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", **({"pattern": f"^{pattern}$"} if pattern else {})},
            }
            for name, pattern in _PARAMETER.findall(endpoint.path)
        ] + [_query(query) for query in endpoint.query]
        if parameters:
            operation["parameters"] = parameters
        if endpoint.body:
            content = {"application/json": {"schema": _reference(endpoint.body, schemas)}}
            operation["requestBody"] = {"required": True, "content": content}
        if endpoint.public:
            operation["security"] = []
        else:
            operation["x-role"] = endpoint.needed.value
        refusals = (
            {*endpoint.errors} | (set() if endpoint.public else {401, 403}) | ({422, 413} if endpoint.body else set())
        )
        refusals |= {422} if endpoint.query else set()
        # Whatever changes something writes it down, and whatever tells of something reads the state.
        refusals |= set() if endpoint.public else {503} if endpoint.method == "GET" else {503, 507}
        for status in sorted(refusals):
            operation["responses"][str(status)] = {
                "description": HTTPStatus(status).phrase,
                "content": {"application/json": {"schema": _reference(ErrorBody, schemas)}},
            }
        paths.setdefault(_PARAMETER.sub(r"{\1}", endpoint.path), {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "loopd control API",
            "description": RULES,
            "version": version,
            "license": {"name": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _query(query: Query) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": query.least, "maximum": query.most, "default": query.default}
    return {"name": query.name, "in": "query", "description": query.description, "schema": schema}


def _answer(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(endpoint.status).phrase}
    if endpoint.answer:
        answer["content"] = {endpoint.media: {"schema": _reference(endpoint.answer, schemas)}}
    elif endpoint.status != HTTPStatus.NO_CONTENT:
        answer["content"] = {endpoint.media: {"schema": {}}}
    return answer


def _reference(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, str]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    schemas |= schema.pop("$defs", {})
    schemas[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def dumps(document: dict[str, Any]) -> str:
    """Return a document as stable JSON."""
    return json.dumps(document, indent=2, sort_keys=True) + "\n"
