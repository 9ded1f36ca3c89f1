"""run_socket: owns the WebSocket by which a client starts runs, follows them, steers and cancels them.

Every message is one JSON object. From the client: ``{"type": "run", "request": {…}}`` with the body of run-agent,
``{"type": "resume", "run_id", "last_event_id"}``, ``{"type": "steer", "run_id", "text"}`` and
``{"type": "cancel", "run_id"}``. To the client: ``{"type": "event", "run_id", "id", "event", "data"}``, or
``{"type": "error", "error": {…}}`` in the form of every error here; an error ends no socket and no run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, RootModel
from starlette.websockets import WebSocket, WebSocketDisconnect

from loopbox_agent.bodies import faults_of, parse
from loopbox_agent.correlate import correlation_id
from loopbox_agent.errors import AgentError, ErrorBody, body_of, error_body
from loopbox_agent.live_run import LiveRun
from loopbox_agent.parts import Parts, parts_of
from loopbox_agent.principal import Principal, Role, principal_of
from loopbox_agent.run_records import RunRequest, SteerRequest

MOST_FOLLOWED = 16  # runs of one socket

router = APIRouter(tags=["runs"])


class TooManyFollowedError(AgentError):
    """The socket follows as many runs as it may."""

    code: ClassVar[str] = "too_many_runs"
    status: ClassVar[int] = 429


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Run(_Asked):
    type: Literal["run"]
    request: RunRequest


class _Resume(_Asked):
    type: Literal["resume"]
    run_id: Annotated[str, Field(max_length=64)]
    last_event_id: Annotated[int, Field(ge=0)] = 0


class _Steer(SteerRequest):
    type: Literal["steer"]
    run_id: Annotated[str, Field(max_length=64)]


class _Cancel(_Asked):
    type: Literal["cancel"]
    run_id: Annotated[str, Field(max_length=64)]


class _Message(RootModel[Annotated[_Run | _Resume | _Steer | _Cancel, Field(discriminator="type")]]):
    pass


@router.websocket("/agents/ws")
async def run_socket(socket: WebSocket) -> None:
    """Serve one client until it goes; its runs go on for their grace, so that it may come back."""
    parts = parts_of(socket)
    try:
        principal = principal_of(socket.headers)
        principal.require(Role.USER)
    except AgentError as error:
        await socket.close(1008, str(error)[:120])
        return
    await socket.accept()
    client = _Client(socket, parts, principal)
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                break
            await client.take(message.get("text") or "")  # a frame of bytes is no message of ours
    finally:
        await client.leave()
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it is closed already
            await socket.close()


class _Client:
    """One socket and the runs it follows."""

    def __init__(self, socket: WebSocket, parts: Parts, principal: Principal) -> None:
        self._socket = socket
        self._parts = parts
        self._principal = principal
        self._sending = asyncio.Lock()
        self._following: dict[str, asyncio.Task[None]] = {}

    async def take(self, text: str) -> None:
        """Do what a message asks for."""
        try:
            match parse(_Message, text).root:
                case _Run(request=request):
                    self._has_room()
                    asked = request.model_copy(update={"stream": True})
                    self._follow(self._parts.hub.start(asked, self._principal, correlation_id()), 0)
                case _Resume(run_id=run_id, last_event_id=after):
                    self._has_room()
                    self._follow(self._parts.hub.get(run_id, self._principal), after)
                case _Steer(run_id=run_id, text=said):
                    self._parts.hub.get(run_id, self._principal).steer(said)
                case _Cancel(run_id=run_id):
                    self._parts.hub.get(run_id, self._principal).cancel(f"{self._principal.user} asked for it")
        except RequestValidationError as error:
            await self._refuse(error_body("validation", "; ".join(faults_of(error))))
        except AgentError as error:
            await self._refuse(body_of(error))

    async def leave(self) -> None:
        """Follow nothing any more."""
        for task in self._following.values():
            task.cancel()
        await asyncio.gather(*self._following.values(), return_exceptions=True)

    def _has_room(self) -> None:
        if len(self._following) >= MOST_FOLLOWED:
            raise TooManyFollowedError(f"A socket follows {MOST_FOLLOWED} runs at most; nothing was started.")

    def _follow(self, run: LiveRun, after: int) -> None:
        if run.id in self._following:
            return
        task = asyncio.create_task(self._forward(run, after), name=f"socket-{run.id}")
        self._following[run.id] = task
        task.add_done_callback(lambda _: self._following.pop(run.id, None))

    async def _forward(self, run: LiveRun, after: int) -> None:
        try:
            async with self._parts.hub.attached(run, after=after) as events:
                async for several in events:
                    for event in several:
                        told = {"id": event.number, "event": event.name, "data": event.body}
                        await self._send({"type": "event", "run_id": run.id, **told})
        except (WebSocketDisconnect, RuntimeError, TimeoutError):
            # It went, or takes nothing. Closing has its reader end, and with it all of this.
            with contextlib.suppress(RuntimeError):
                await self._socket.close(1013)

    async def _refuse(self, body: ErrorBody) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._send({"type": "error", **body.model_dump(mode="json")})

    async def _send(self, message: Mapping[str, Any]) -> None:  # Any: JSON
        async with self._sending, asyncio.timeout(self._parts.settings.send_timeout_s):
            await self._socket.send_json(message)
