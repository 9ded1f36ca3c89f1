"""client: owns how loopctl speaks with loopd: which way it is reached and what each call asks and answers.

The unix socket is preferred when this user may open it (its file mode is the lock), else 127.0.0.1 and the token.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, SecretStr, ValidationError

from loopd.api.schema import (
    AddUserRequest,
    AuditList,
    AuditVerdict,
    BackupList,
    BackupView,
    ChangeUserRequest,
    CollectRequest,
    CollectView,
    CurateRequest,
    DataList,
    EventList,
    EventView,
    ExecRequest,
    ExecResult,
    HealthView,
    IssuedView,
    IssueRequest,
    JobEventList,
    JobList,
    JobView,
    KeyView,
    ReleaseList,
    ReleaseView,
    RevokedView,
    RevokeRequest,
    RolloutList,
    RolloutView,
    RotateRequest,
    StatusView,
    TokenList,
    TrainRequest,
    UserList,
    UserView,
)
from loopd.cli.exits import AnswerError, ApiError
from loopd.cli.wire import CONNECT_S, Request, Wire
from loopd.config import Settings
from loopd.units import layout_of

ANSWER_S = 30.0
SILENCE_S = 45.0  # loopd sends a comment every 15 s
EXEC_SLACK_S = 90.0  # a cold sandbox, beside the command's own time
HEALTH_S = 2.0
VERIFY_S = 600.0  # of millions of entries
BACKUP_S = 600.0  # a large ledger on a slow disk
COLLECT_S = 600.0  # it waits for a model that is being taken in
MAX_TOKEN_BYTES = 4096
ADVICE = "Containers that serve go on serving without it. Start it: `make up`"

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Way:
    """How loopd is reached."""

    base: str
    socket: Path | None
    token: str | None
    no_token: str  #: why there is no token, '' when there is one or none is needed


class Client:
    """Calls of the control API. A context. Each raises UnreachableError, ApiError or AnswerError."""

    def __init__(self, way: Way) -> None:
        self._way = way
        headers = {"Authorization": f"Bearer {way.token}"} if way.token else {}
        self._wire = Wire("loopd", way.base, way.socket, headers, ADVICE)

    def __enter__(self) -> Self:
        self._wire.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wire.__exit__(kind, error, trace)

    def health(self) -> HealthView:
        """Ask whether loopd runs; needs no token."""
        return self._call("GET", "/healthz", HealthView, timeout_s=HEALTH_S)

    def status(self) -> StatusView:
        """Ask how everything is."""
        return self._call("GET", "/v1/status", StatusView)

    def releases(self) -> list[ReleaseView]:
        """List releases, newest first."""
        return self._call("GET", "/v1/releases", ReleaseList).releases

    def release(self, reference: str) -> ReleaseView:
        """Find one by its name or the start of its id."""
        return self._call("GET", f"/v1/releases/{quote(reference, safe='')}", ReleaseView)

    def promote(self, reference: str) -> RolloutView:
        """Ask for its rollout."""
        return self._call("POST", f"/v1/releases/{quote(reference, safe='')}/promote", RolloutView)

    def rollback(self) -> RolloutView:
        """Ask for the return to the release that served before."""
        return self._call("POST", "/v1/releases/rollback", RolloutView)

    def pin(self, reference: str, *, pinned: bool) -> ReleaseView:
        """Keep a release from being collected, or no longer."""
        return self._call("PUT" if pinned else "DELETE", f"/v1/releases/{quote(reference, safe='')}/pin", ReleaseView)

    def collect(self, request: CollectRequest) -> CollectView:
        """Remove the weights of releases beyond the disk budget."""
        body = request.model_dump_json().encode()
        return self._call("POST", "/v1/releases/gc", CollectView, body=body, timeout_s=COLLECT_S)

    def rollouts(self) -> list[RolloutView]:
        """List rollouts, newest first, without their steps."""
        return self._call("GET", "/v1/rollouts", RolloutList).rollouts

    def rollout(self, number: int) -> RolloutView:
        """Show one with its steps."""
        return self._call("GET", f"/v1/rollouts/{number}", RolloutView)

    def abort(self, number: int) -> RolloutView:
        """Turn a rollout back."""
        return self._call("POST", f"/v1/rollouts/{number}/abort", RolloutView)

    def train(self, asked: TrainRequest) -> JobView:
        """Queue a job."""
        return self._call("POST", "/v1/finetune/jobs", JobView, body=asked.model_dump_json().encode())

    def data(self) -> DataList:
        """List the files that the trainer can read."""
        return self._call("GET", "/v1/data", DataList)

    def curate(self, asked: CurateRequest) -> JobView:
        """Queue the making of a data set."""
        return self._call("POST", "/v1/data/curations", JobView, body=asked.model_dump_json().encode())

    def jobs(self) -> list[JobView]:
        """List jobs, newest first."""
        return self._call("GET", "/v1/finetune/jobs", JobList).jobs

    def job(self, job_id: str, *, after: int = 0) -> JobEventList:
        """Show one and what it told after a number."""
        return self._call("GET", f"{_job(job_id)}/events?after={after}", JobEventList)

    def cancel_job(self, job_id: str) -> JobView:
        """End one."""
        return self._call("POST", f"{_job(job_id)}/cancel", JobView)

    def resume_job(self, job_id: str) -> JobView:
        """Have one go on."""
        return self._call("POST", f"{_job(job_id)}/resume", JobView)

    def events(self, *, after: int = 0, limit: int) -> list[EventView]:
        """Read a page of the ledger, oldest first."""
        return self._call("GET", f"/v1/events?after={after}&limit={limit}", EventList).events

    def audit(self, *, limit: int) -> AuditList:
        """Return the newest entries of the audit trail."""
        return self._call("GET", f"/v1/audit/last?limit={limit}", AuditList)

    def audit_of(self, user: str, *, after: int, limit: int) -> AuditList:
        """Return a page of what one user did."""
        return self._call("GET", f"/v1/audit/users/{quote(user, safe='')}?after={after}&limit={limit}", AuditList)

    def verify_audit(self) -> AuditVerdict:
        """Have the audit trail and the ledger looked through."""
        return self._call("POST", "/v1/audit/verify", AuditVerdict, timeout_s=VERIFY_S)

    def backups(self) -> BackupList:
        """List backups, newest first."""
        return self._call("GET", "/v1/backups", BackupList)

    def backup(self) -> BackupView:
        """Make a backup."""
        return self._call("POST", "/v1/backups", BackupView, timeout_s=BACKUP_S)

    def users(self) -> UserList:
        """List users."""
        return self._call("GET", "/v1/users", UserList)

    def add_user(self, request: AddUserRequest) -> UserView:
        """Add a user."""
        return self._call("POST", "/v1/users", UserView, body=_told(request))

    def change_user(self, name: str, request: ChangeUserRequest) -> UserView:
        """Change a user; it ends the user's tokens."""
        return self._call("PATCH", f"/v1/users/{quote(name, safe='')}", UserView, body=_told(request))

    def remove_user(self, name: str) -> None:
        """Remove a user with all tokens."""
        self._wire.fetch(Request("DELETE", f"/v1/users/{quote(name, safe='')}"), timeout_s=ANSWER_S)

    def tokens(self) -> TokenList:
        """List tokens that live."""
        return self._call("GET", "/v1/tokens", TokenList)

    def issue(self, request: IssueRequest) -> IssuedView:
        """Make a token."""
        return self._call("POST", "/v1/tokens", IssuedView, body=_told(request))

    def revoke(self, request: RevokeRequest) -> RevokedView:
        """Revoke tokens."""
        return self._call("POST", "/v1/tokens/revoke", RevokedView, body=_told(request))

    def rotate(self, request: RotateRequest) -> KeyView:
        """Sign with a new key."""
        return self._call("POST", "/v1/keys/rotate", KeyView, body=_told(request))

    def execute(self, request: ExecRequest) -> ExecResult:
        """Run a command in a fresh sandbox."""
        body = request.model_dump_json().encode()
        return self._call("POST", "/v1/exec", ExecResult, body=body, timeout_s=request.timeout_s + EXEC_SLACK_S)

    def stream(self, after: int, *, tick_s: float) -> Generator[EventView | None]:
        """Yield entries after a sequence number as they are written, and None after ``tick_s`` without one."""
        request = Request("GET", f"/v1/events/stream?after={after}", headers={"Last-Event-ID": str(after)})
        messages = self._wire.stream(request, silence_s=SILENCE_S, tick_s=tick_s)
        with closing(messages):
            for message in messages:
                yield parse(EventView, message.data.encode(), str(request)) if message else None

    def _call(
        self, method: str, path: str, model: type[M], *, body: bytes | None = None, timeout_s: float = ANSWER_S
    ) -> M:
        request = Request(method, path, body)
        try:
            answer = self._wire.fetch(request, timeout_s=timeout_s)
        except ApiError as error:
            if error.http_status == HTTPStatus.UNAUTHORIZED and self._way.no_token:
                raise ApiError(
                    f"loopd asks for its token, and {self._way.no_token}. Nothing was done; "
                    "run this as the user loopd runs as (`sudo loopctl …`), or set LOOPBOX_HOME to its home",
                    answered_code=error.answered_code,
                    http_status=error.http_status,
                ) from error
            raise
        return parse(model, answer.body, str(request))


def _told(request: BaseModel) -> bytes:
    """Return a body with its passwords, which a model shows to nobody by itself."""
    body = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in request.model_dump().items()
        if value is not None
    }
    return json.dumps(body).encode()


def parse(model: type[M], body: bytes, what: str, *, who: str = "loopd") -> M:
    """Read an answer; fields that only a newer side knows are passed over. Raises AnswerError."""
    try:
        return model.model_validate_json(body, extra="ignore")
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the body"
        raise AnswerError(
            f"the answer to {what} cannot be read ({where}: {fault['msg']}). Nothing was changed by reading it; "
            f"is it {who} that listens there, and of this version? `loopctl version` compares"
        ) from error


def find_way(settings: Settings) -> Way:
    """Choose the socket when something listens there and lets us in, else TCP with the token."""
    layout = layout_of(settings)
    if _opens(layout.control_socket):
        return Way("http://loopd", layout.control_socket, None, "")
    base = f"http://127.0.0.1:{settings.control_port}"
    try:
        with layout.token.open("rb") as file:
            token = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
    except OSError as error:
        return Way(base, None, None, f"{layout.token} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return Way(base, None, None, f"{layout.token} holds no token")
    if not token.isprintable() or not token:
        return Way(base, None, None, f"{layout.token} holds no token")
    return Way(base, None, token, "")


def _opens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _job(job_id: str) -> str:
    return f"/v1/finetune/jobs/{quote(job_id, safe='')}"
