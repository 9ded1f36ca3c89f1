"""bodies: owns the reading of request bodies, within limits of size, time and depth."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request

from loopbox_agent.errors import AgentError

Record = TypeVar("Record", bound=BaseModel)


class TooLargeError(AgentError):
    """The request's body is larger than it may be."""

    code: ClassVar[str] = "too_large"
    status: ClassVar[int] = 413


async def read_bytes(request: Request, *, most: int, within_s: float) -> bytes:
    """Return the body. Raises TooLargeError, and HTTPException 408 when it does not arrive in time."""
    body = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise TooLargeError(f"A request may have {most} bytes here; nothing was done.")
    except TimeoutError as error:
        raise HTTPException(408, "the body did not arrive in time") from error
    return bytes(body)


def parse(record: type[Record], body: bytes | str) -> Record:
    """Return the record, of the very types that the document says. Raises RequestValidationError naming each fault."""
    try:
        return record.model_validate_json(body, strict=True)
    except ValueError as error:
        faults: list[Any] = getattr(error, "errors", list)()  # Any: pydantic's dicts
        raise RequestValidationError([{**f, "loc": ("body", *f["loc"])} for f in faults]) from error


def faults_of(error: RequestValidationError) -> list[str]:
    """Return what is wrong, one sentence for each fault, the first ten."""
    return [f"{'.'.join(str(s) for s in f['loc'][1:]) or 'body'}: {f['msg']}" for f in error.errors()[:10]]


def schema_of(record: type[BaseModel], *, required: bool = True) -> dict[str, Any]:  # Any: JSON schema
    """Return what the OpenAPI document says of a body that we parse ourselves; `lift` makes it whole."""
    schema = record.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": required}}


def bytes_of(kind: str, *, required: bool = True) -> dict[str, Any]:  # Any: JSON schema
    """Return what the OpenAPI document says of a body that is taken as it is."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"content": content, "required": required}}


def lift(document: dict[str, Any]) -> dict[str, Any]:  # Any: JSON schema
    """Return an OpenAPI document with the parts of our own bodies' schemas where the references to them point."""
    shared = document.setdefault("components", {}).setdefault("schemas", {})
    for operations in document["paths"].values():
        for operation in operations.values():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                shared.update(body["schema"].pop("$defs", {}))
    return document
