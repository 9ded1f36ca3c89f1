"""docker_engine: owns the Docker side of the engine seam; the only module that imports ``docker``.

The SDK blocks, so each call runs in a small thread pool of our own. Every container gets least privilege here and
nowhere else: no capability, no new privileges, read-only root, bounded logs, no restart policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, ParamSpec, TypeVar, cast

import docker
import docker.errors
import requests.exceptions
import structlog
import urllib3.exceptions
from docker.models.containers import Container
from docker.types import CancellableStream, DeviceRequest, LogConfig, Ulimit

from loopd.cpu_group import prepare_group
from loopd.engine import (
    EVENT_QUEUE,
    EngineDownError,
    Event,
    ImageMissingError,
    Instance,
    InstanceState,
    JobResult,
    Relist,
    StartFailedError,
    Unit,
    Usage,
)
from loopd.errors import NotFoundError

LABEL_INSTANCE = "loopbox.instance"
LABEL_UNIT = "loopbox.unit"
LABEL_FINGERPRINT = "loopbox.fingerprint"
LABEL_JOB = "loopbox.job"

CALL_TIMEOUT_S = 60  # of one request to the engine
EVENT_SILENCE_S = 20.0  # the stream is asked anew after this much silence, since it can end without a word
REMOVAL = "marked for removal"  # Docker's words when a container that is being removed is to be started
REMOVAL_S = 30
JOB_OUTPUT_BYTES = 64 << 10
RELIST_BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)

P = ParamSpec("P")
T = TypeVar("T")

_ACTIONS: dict[str, str] = {"start": "started", "die": "died", "oom": "oom", "destroy": "removed"} | {
    "kill": "killed",
    "rename": "renamed",
}
_STATES = {
    "created": InstanceState.CREATED,
    "running": InstanceState.RUNNING,
    "paused": InstanceState.RUNNING,
    "restarting": InstanceState.RUNNING,
}

log = structlog.get_logger("loopd.docker")


@dataclass(frozen=True, slots=True)
class Connection:
    """How the engine is reached and whose containers are ours."""

    url: str | None  #: unix:// URL, None for the environment's default
    instance: str

    def client(self, timeout: float = CALL_TIMEOUT_S) -> docker.DockerClient:
        """Open a client. Raises EngineDownError."""
        with _translated("connect"):
            if self.url:
                return docker.DockerClient(base_url=self.url, timeout=int(timeout))
            return docker.from_env(timeout=int(timeout))


class DockerEngine:
    """The Engine over the Docker API."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="docker")
        self._client: docker.DockerClient | None = None
        self._gateway = ""
        self._opening = asyncio.Lock()
        self._networks: dict[str, str] = {}
        self._group: str | None = None

    @property
    def internal_address(self) -> str:
        """The host's address on the internal network; known after open()."""
        return self._gateway

    async def open(self) -> None:
        """Connect and ensure the internal network."""
        async with self._opening:  # Docker would make two networks of one name
            if self._client is None:
                self._client = await self._call(self._connection.client)
            if not self._gateway:
                self._group = await self._call(self._ensure_group)
                self._gateway = await self._call(self._ensure_network, "internal")

    async def close(self) -> None:
        """Close the client and its threads."""
        if self._client:
            self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def runtimes(self) -> frozenset[str]:
        """Return what Docker lists."""
        return await self._call(lambda: frozenset(map(str, self._docker.info().get("Runtimes") or ())))

    async def image_id(self, reference: str) -> str:
        """Return the image's digest."""
        return await self._call(self._image_id, reference)

    async def apply(self, unit: Unit) -> Instance:
        """Bring the unit to running."""
        return await self._call(self._apply, unit)

    async def remove(self, unit: str, *, grace_s: int = 10) -> None:
        """Stop and remove."""
        await self._call(self._remove, unit, grace_s)

    async def observe(self) -> tuple[Instance, ...]:
        """Return all our instances."""
        return await self._call(self._observe)

    async def usage(self, unit: str) -> Usage:
        """Return what the container uses."""
        return await self._call(self._usage, unit)

    async def pids(self, unit: str) -> frozenset[int]:
        """Return the container's processes."""
        return await self._call(self._pids, unit)

    async def weigh(self, unit: str, weight: int) -> None:
        """Change the container's CPU shares."""
        await self._call(self._weigh, unit, weight)

    async def signal(self, unit: str, name: str) -> None:
        """Send a signal."""
        await self._call(self._signal, unit, name)

    async def logs(self, unit: str, *, tail: int = 50) -> str:
        """Return the last lines."""
        return await self._call(self._logs, unit, tail)

    async def run(self, unit: Unit, *, timeout_s: float) -> JobResult:
        """Run a unit once."""
        return await self._call(self._run, unit, timeout_s)

    async def watch(self) -> AsyncIterator[Event | Relist]:
        """Yield events; a thread reads the stream and this side never blocks on it."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event | Relist] = asyncio.Queue(EVENT_QUEUE)

        def put(item: Event | Relist) -> None:
            if queue.full():  # the reader is slow: one Relist tells it as much as all of these
                while not queue.empty():
                    queue.get_nowait()
                item = Relist(back=isinstance(item, Relist) and item.back)
            queue.put_nowait(item)

        reader = _EventReader(self._connection, lambda item: loop.call_soon_threadsafe(put, item))
        reader.start()
        try:
            while True:
                yield await queue.get()
        finally:
            reader.stop()

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def guarded() -> T:
            with _translated(function.__name__):
                return function(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._threads, guarded)

    @property
    def _docker(self) -> docker.DockerClient:
        if self._client is None:
            raise EngineDownError("the container engine has not answered since loopd's start; `loopctl status` tells")
        return self._client

    def _name(self, unit: str) -> str:
        return f"{self._connection.instance}-{unit}"

    def _ensure_group(self) -> str | None:
        return prepare_group(str(self._docker.info().get("CgroupDriver", "")))

    def _ensure_network(self, kind: Literal["internal", "egress"]) -> str:
        """Return the host side address of one of our networks, made if absent; only "egress" has a way out."""
        name = f"{self._connection.instance}-{kind}"
        try:
            network = self._docker.networks.get(name)
        except docker.errors.NotFound:
            network = self._docker.networks.create(
                name,
                driver="bridge",
                internal=kind == "internal",
                options={} if kind == "internal" else {"com.docker.network.bridge.enable_icc": "false"},
                labels={LABEL_INSTANCE: self._connection.instance},
            )
            network.reload()
        self._networks[kind] = name
        # Any: the SDK's attrs is the API's JSON.
        config: list[dict[str, Any]] = network.attrs["IPAM"]["Config"]
        gateway: str = config[0].get("Gateway") or config[0]["Subnet"].rsplit(".", 1)[0] + ".1"
        return gateway.split("/", maxsplit=1)[0]

    def _image_id(self, reference: str) -> str:
        try:
            return str(self._docker.images.get(reference).id)
        except docker.errors.ImageNotFound as error:
            raise ImageMissingError(f"image {reference} is not on this host: run `make images`") from error

    def _find(self, unit: str) -> Container | None:
        """Return the unit's container, also one that somebody gave another name."""
        try:
            return self._docker.containers.get(self._name(unit))
        except docker.errors.NotFound:
            labels = [f"{LABEL_INSTANCE}={self._connection.instance}", f"{LABEL_UNIT}={unit}"]
            listed = self._docker.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
            return next((found for found in listed if LABEL_JOB not in found.labels), None)

    def _apply(self, unit: Unit) -> Instance:
        container = self._find(unit.name)
        if container is None or container.labels.get(LABEL_FINGERPRINT) != unit.fingerprint:
            self._image_id(unit.image)  # before anything is removed for it
        if container is not None and container.labels.get(LABEL_INSTANCE) != self._connection.instance:
            raise StartFailedError(
                f"a container named {container.name} exists and is not ours; rename or remove it, it was not touched"
            )
        if container is not None and container.labels.get(LABEL_FINGERPRINT) != unit.fingerprint:
            self._remove(unit.name, unit.stop_grace_s)
            container = None
        if container is None:
            container = self._create(unit)
        elif container.name != self._name(unit.name):
            container.rename(self._name(unit.name))
        if container.status == "paused":
            container.unpause()
        elif container.status != "running":
            container = self._start(container, unit)
        container.reload()
        return self._instance(container)

    def _start(self, container: Container, unit: Unit) -> Container:
        """Start a container; one that somebody is removing at this moment is made anew."""
        try:
            container.start()
        except docker.errors.APIError as error:
            try:
                container.reload()
                if container.status == "running":  # a start may be done and answered with 500 all the same
                    return container
                if container.attrs["State"]["Status"] != "removing" and REMOVAL not in str(error.explanation):
                    raise StartFailedError(f"{unit.name} could not be started: {error.explanation}") from error
                container.wait(condition="removed", timeout=REMOVAL_S)
            except docker.errors.NotFound:
                pass
            container = self._create(unit)
            container.start()
        return container

    def _create(self, unit: Unit, *, job: bool = False) -> Container:
        if unit.network == "egress":
            self._ensure_network("egress")  # when it is needed first: few appliances ever need it
        labels = {
            LABEL_INSTANCE: self._connection.instance,
            LABEL_UNIT: unit.name,
            LABEL_FINGERPRINT: unit.fingerprint,
        }
        # The low-level call, since the other one cannot mask paths.
        made = self._docker.api.create_container(
            unit.image,
            list(unit.command) or None,
            name=self._name(unit.name),
            labels=labels | ({LABEL_JOB: "1"} if job else {}),
            environment=dict(unit.environment),
            user=unit.user,
            host_config=self._host_config(unit),
            use_config_proxy=False,
        )
        return self._docker.containers.get(made["Id"])

    def _host_config(self, unit: Unit) -> dict[str, Any]:  # Any: the API's JSON
        held = unit.confinement
        config: dict[str, Any] = self._docker.api.create_host_config(
            network_mode=self._networks.get(unit.network, unit.network),
            binds=[f"{m.source}:{m.target}:{'ro' if m.read_only else 'rw'}" for m in unit.mounts],
            tmpfs=dict(unit.tmpfs),
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", *([f"seccomp={held.seccomp}"] if held.seccomp else [])],
            init=True,
            pids_limit=unit.limits.pids,
            mem_limit=unit.limits.memory_bytes,
            cpu_shares=unit.limits.weight,
            memswap_limit=unit.limits.memory_bytes,
            nano_cpus=int(unit.limits.cpus * 1e9) if unit.limits.cpus else None,
            log_config=LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"}),
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if unit.gpus else None,
            cgroup_parent=self._group,
            runtime=held.runtime or None,
            oom_score_adj=held.oom_score_adj,
            ulimits=[Ulimit(name="nofile", soft=held.open_files, hard=held.open_files)] if held.open_files else None,
        )
        if held.masked_paths:
            config["MaskedPaths"] = list(held.masked_paths)
        return config

    def _remove(self, unit: str, grace_s: int) -> None:
        container = self._find(unit)
        if container is None or container.labels.get(LABEL_INSTANCE) != self._connection.instance:
            return
        with contextlib.suppress(docker.errors.NotFound):
            if container.status == "running" and grace_s > 0:
                container.stop(timeout=grace_s)
            container.remove(force=True, v=False)

    def _observe(self) -> tuple[Instance, ...]:
        listed = self._docker.containers.list(
            all=True, filters={"label": f"{LABEL_INSTANCE}={self._connection.instance}"}, ignore_removed=True
        )
        return tuple(self._instance(c) for c in listed if LABEL_UNIT in c.labels and LABEL_JOB not in c.labels)

    def _instance(self, container: Container) -> Instance:
        # Any: the SDK's attrs is the API's JSON.
        attrs: dict[str, Any] = container.attrs
        state: dict[str, Any] = attrs["State"]
        networks: dict[str, Any] = attrs["NetworkSettings"]["Networks"]
        running = state["Status"] in ("running", "paused", "restarting")
        address = None
        if running:
            address = (
                "127.0.0.1" if "host" in networks else next((n["IPAddress"] for n in networks.values()), "") or None
            )
        return Instance(
            unit=container.labels[LABEL_UNIT],
            id=str(container.id),
            image_id=str(attrs["Image"]),
            fingerprint=container.labels.get(LABEL_FINGERPRINT, ""),
            state=_STATES.get(state["Status"], InstanceState.STOPPED),
            address=address,
            started_at=_when(state.get("StartedAt")),
            finished_at=None if running else _when(state.get("FinishedAt")),
            exit_code=None if running else state.get("ExitCode"),
            oom_killed=bool(state.get("OOMKilled")),
            error=str(state.get("Error") or ""),
        )

    def _usage(self, unit: str) -> Usage:
        container = self._find(unit)
        if container is None:
            raise NotFoundError(f"unit {unit} does not run")
        told = cast("dict[str, Any]", container.stats(stream=False, one_shot=True))  # Any: the API's JSON
        cpu = told.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0)
        return Usage(cpu_s=int(cpu) / 1e9, memory_bytes=int(told.get("memory_stats", {}).get("usage", 0)))

    def _pids(self, unit: str) -> frozenset[int]:
        container = self._find(unit)
        if container is None or container.status != "running":
            return frozenset()
        told = container.top(ps_args="-o pid")
        return frozenset(int(row[0]) for row in told["Processes"] or () if row and row[0].isdigit())

    def _weigh(self, unit: str, weight: int) -> None:
        if (container := self._find(unit)) is not None:
            container.update(cpu_shares=weight)

    def _signal(self, unit: str, name: str) -> None:
        container = self._find(unit)
        if container is None or container.status != "running":
            raise NotFoundError(f"unit {unit} does not run, so no {name} was sent")
        container.kill(signal=name)

    def _logs(self, unit: str, tail: int) -> str:
        container = self._find(unit)
        if container is None:
            return ""
        return bytes(container.logs(tail=tail)).decode(errors="replace")

    def _run(self, unit: Unit, timeout_s: float) -> JobResult:
        self._image_id(unit.image)
        self._remove(unit.name, 0)
        container = self._create(unit, job=True)
        try:
            container.start()
            try:
                exit_code = int(container.wait(timeout=timeout_s)["StatusCode"])
            except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError) as error:
                raise TimeoutError(f"job {unit.name} did not end in {timeout_s:g} s; it was removed") from error
            output = bytes(container.logs(tail=500))[-JOB_OUTPUT_BYTES:].decode(errors="replace")
            return JobResult(exit_code=exit_code, output=output)
        except docker.errors.APIError as error:
            raise StartFailedError(f"job {unit.name} could not be run: {error.explanation}") from error
        finally:
            with contextlib.suppress(docker.errors.APIError):
                container.remove(force=True, v=False)


class _EventReader:
    """Reads the engine's events in a thread of its own until stopped; after each gap it asks for a relist."""

    def __init__(self, connection: Connection, put: Callable[[Event | Relist], object]) -> None:
        self._connection = connection
        self._put = put
        self._stopped = threading.Event()
        self._stream: CancellableStream[dict[str, Any]] | None = None  # Any: the API's JSON

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="docker-events", daemon=True).start()

    def stop(self) -> None:
        """End, also in the middle of a wait for the next event."""
        self._stopped.set()
        if self._stream is not None:
            self._stream.close()

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            try:
                self._read(back=failures > 0)
                failures = 0
            except RuntimeError:  # the loop is closed: nobody listens any more
                return
            except (
                EngineDownError,
                docker.errors.DockerException,
                requests.exceptions.RequestException,
                urllib3.exceptions.HTTPError,
                OSError,
            ) as error:
                if self._stopped.is_set() or "timed out" in str(error):  # mere silence is no fault
                    continue
                failures += 1
                log.warning("engine.events_lost", error=str(error))
            if failures:
                self._stopped.wait(RELIST_BACKOFF_S[min(failures, len(RELIST_BACKOFF_S)) - 1])

    def _read(self, *, back: bool) -> None:
        """Read one stream to its end. ``back``: the engine did not answer before."""
        client = self._connection.client(timeout=EVENT_SILENCE_S)
        try:
            ours = {"type": "container", "label": f"{LABEL_INSTANCE}={self._connection.instance}"}
            self._stream = client.events(decode=True, filters=ours)
            self._put(Relist(back=back))
            for raw in self._stream:
                if (event := parse_event(raw)) is not None:
                    self._put(event)
        finally:
            if self._stream is not None:
                self._stream.close()
            client.close()


def parse_event(raw: dict[str, Any]) -> Event | None:  # Any: the API's JSON
    """Return our event for one of Docker's, None for kinds that do not matter here."""
    action = _ACTIONS.get(str(raw.get("Action", "")))
    attributes = raw.get("Actor", {}).get("Attributes", {})
    unit = attributes.get(LABEL_UNIT)
    if action is None or not unit or LABEL_JOB in attributes:
        return None
    exit_code, signal = attributes.get("exitCode"), attributes.get("signal")
    return Event(
        unit=str(unit),
        action=action,  # type: ignore[arg-type]  # the table holds only the four literals
        at=datetime.fromtimestamp(raw.get("timeNano", 0) / 1e9, UTC),
        container=str(raw.get("Actor", {}).get("ID", "")),
        exit_code=int(exit_code) if exit_code is not None and str(exit_code).isdigit() else None,
        signal=int(signal) if signal is not None and str(signal).isdigit() else None,
    )


def _when(text: str | None) -> datetime | None:
    """Parse Docker's RFC 3339 time with nanoseconds; its zero time means never."""
    if not text or text.startswith("0001-"):
        return None
    return datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)


@contextlib.contextmanager
def _translated(call: str) -> Iterator[None]:
    """Turn the SDK's connection errors into ours; API errors that nobody foresaw as well, with their text."""
    try:
        yield
    except docker.errors.NotFound as error:
        raise NotFoundError(
            f"{call.strip('_')}: the container engine knows no such thing: {error.explanation}"
        ) from error
    except docker.errors.APIError as error:
        raise EngineDownError(f"{call.strip('_')}: the container engine refused: {error.explanation}") from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        cause = str(error)
        hint = "start it: `systemctl start docker`, or run `make up`"
        if "PermissionError" in cause or "Permission denied" in cause:
            hint = "this user may not use it: run as root or join the group docker"
        raise EngineDownError(f"the container engine does not answer ({cause[:200]}); {hint}") from error
