"""backup: owns what one backup file is: how it is written whole, and what makes one good.

A tar with a manifest first, then a consistent copy of state.db, the registry's manifests, the settings, the images'
names and a copy of the audit trail, as it is: whether somebody changed the trail is for `loopctl audit verify` to say,
and no reason to refuse a good state. Never weights, which are larger than everything else and still where they were;
never the token, which a restored loopd makes anew.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loopd import version
from loopd.errors import LoopdError
from loopd.ledger import GENESIS, Entry
from loopd.state import StateError, check_file, sync_folder

Reason = Literal["scheduled", "command", "upgrade"]
Name = Literal["state.db", "releases.json", "loopbox.toml", "images.json", "audit.db"]

MANIFEST = "manifest.json"
STATE: Name = "state.db"
RELEASES: Name = "releases.json"
AUDIT: Name = "audit.db"
MAX_MANIFEST_BYTES = 64 << 10
MAX_MEMBER_BYTES = 8 << 30  # what a plain tar header can say
CHUNK = 1 << 20

log = structlog.get_logger("loopd.backup")


class BackupError(LoopdError):
    """A backup could not be made or used; state and settings are as they were."""

    code = "backup_failed"
    status = 503


class BackupFullError(BackupError):
    """The disk is full; nothing half done was left."""

    code = "backup_no_space"
    status = 507


class BackupDamagedError(BackupError):
    """The file is no good backup; it was left as it is."""

    code = "backup_damaged"


class BackupMissingError(BackupError):
    """There is no such backup."""

    code = "not_found"
    status = 404


class Member(BaseModel):
    """One file in a backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    size: Annotated[int, Field(ge=0, le=MAX_MEMBER_BYTES)]  #: bytes
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What a backup says of itself; the members in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    created_at: datetime
    reason: Reason
    version: Annotated[str, Field(max_length=200)]  #: of the loopd that made it
    state_schema: Annotated[int, Field(ge=1, le=9999)]
    ledger_length: Annotated[int, Field(ge=0)]
    ledger_head: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    releases: Annotated[int, Field(ge=0)]
    champion: Annotated[str, Field(max_length=64)] | None
    members: Annotated[tuple[Member, ...], Field(min_length=2, max_length=5)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a backup is made of; all but the state may be absent."""

    state: Path
    settings: Path
    images: Path
    audit: Path


@dataclass(frozen=True, slots=True)
class Told:
    """What a copy of state.db says."""

    schema: int
    length: int
    head: str
    champion: str | None
    releases: list[dict[str, str]]
    newest_at: str  #: of the ledger's last entry, '' for none


def write_backup(sources: Sources, path: Path, draft: Path, *, reason: Reason, at: datetime) -> Manifest:
    """Write a backup that appears at ``path`` only when it is whole; ``draft`` is an empty folder beside it. Blocks.

    Raises BackupFullError, BackupError.
    """
    with _explained(path):
        copy_state(sources.state, draft / STATE)
        told = tell_state(draft / STATE)
        (draft / RELEASES).write_text(json.dumps(told.releases, indent=1, sort_keys=True) + "\n")
        for name, source in (("loopbox.toml", sources.settings), ("images.json", sources.images)):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(source, draft / name)
        if reason != "upgrade":  # which leaves the trail as it is, and is for a loopd that may not know of this file
            _copy_trail(sources.audit, draft / AUDIT)
        names: tuple[Name, ...] = (STATE, RELEASES, "loopbox.toml", "images.json", AUDIT)
        manifest = Manifest(
            created_at=at,
            reason=reason,
            version=version(),
            state_schema=told.schema,
            ledger_length=told.length,
            ledger_head=told.head,
            releases=len(told.releases),
            champion=told.champion,
            members=tuple(_member(draft / name, name) for name in names if (draft / name).exists()),
        )
        _pack(manifest, draft, draft / "backup.tar")
        (draft / "backup.tar").replace(path)
        sync_folder(path.parent)
    return manifest


def copy_state(source: Path, target: Path) -> None:
    """Copy a database that others may be writing to, as it was at one moment, into one file without a WAL."""
    with (
        contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as reader,
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as writer,
    ):
        target.chmod(0o600)
        reader.backup(writer)
        writer.execute("PRAGMA journal_mode = DELETE")


def _copy_trail(source: Path, target: Path) -> None:
    """Copy the audit trail, after the state: of entries whose hashes the ledger has, none is missing then."""
    try:
        if source.exists():
            copy_state(source, target)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        target.unlink(missing_ok=True)
        log.warning("backup.without_audit", error=str(error))  # the state is worth a backup by itself


def read_manifest(path: Path) -> Manifest:
    """Return what a backup says of itself, unverified. Blocks. Raises BackupError."""
    with _explained(path), _opened(path) as (_, manifest):
        return manifest


def verify_backup(path: Path, into: Path) -> Manifest:
    """Unpack a backup into an empty folder and check everything about it. Blocks.

    Digests, SQLite's own integrity, the schema, the ledger's chain and the registry. Raises BackupDamagedError, and
    BackupFullError when it cannot be unpacked.
    """
    with _explained(path), _opened(path) as (tar, manifest):
        for member in manifest.members:
            _unpack(path, tar, member, into / member.name)
    try:
        check_file(into / STATE)
        told = tell_state(into / STATE)
    except (sqlite3.Error, StateError, ValueError) as error:
        raise BackupDamagedError(f"{path}: its state.db cannot be used: {error}") from error
    if (told.schema, told.length, told.head, told.champion, len(told.releases)) != (
        manifest.state_schema,
        manifest.ledger_length,
        manifest.ledger_head,
        manifest.champion,
        manifest.releases,
    ):
        raise BackupDamagedError(f"{path}: its manifest tells another state than its state.db")
    if json.loads((into / RELEASES).read_bytes()) != told.releases:
        raise BackupDamagedError(f"{path}: its list of releases is not the one of its state.db")
    return manifest


def tell_state(state: Path) -> Told:
    """Read what a state.db of any known schema says, and check it in depth. Blocks.

    Raises BackupDamagedError, sqlite3.Error.
    """
    with contextlib.closing(sqlite3.connect(f"{state.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        if (fault := connection.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise BackupDamagedError(f"state.db is damaged ({fault})")
        length, head, newest_at = 0, GENESIS, ""
        # The columns of every schema, so that a backup of an older one is read as it was written.
        chain = "SELECT seq, at, event, subject, cause, correlation_id, detail, hash FROM ledger ORDER BY seq"
        for row in connection.execute(chain):
            entry = Entry(**{**dict(row), "detail": json.loads(row["detail"])})
            if entry.digest(head) != entry.hash:
                raise BackupDamagedError(f"entry {entry.seq} of the ledger does not fit the chain")
            length, head, newest_at = length + 1, entry.hash, entry.at
        kept = "SELECT id, manifest, source, created_at FROM releases ORDER BY created_at, id"
        serving = connection.execute("SELECT champion FROM serving").fetchone()
        return Told(
            schema=int(connection.execute("PRAGMA user_version").fetchone()[0]),
            length=length,
            head=head,
            champion=serving["champion"] if serving else None,
            releases=[dict(row) for row in connection.execute(kept)],
            newest_at=newest_at,
        )


def _member(path: Path, name: Name) -> Member:
    with path.open("rb") as file:
        return Member(name=name, size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _pack(manifest: Manifest, draft: Path, target: Path) -> None:
    body = manifest.model_dump_json(indent=1).encode()
    with (
        os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        mtime = int(manifest.created_at.timestamp())
        tar.addfile(_header(MANIFEST, len(body), mtime), io.BytesIO(body))
        for member in manifest.members:
            with (draft / member.name).open("rb") as source:
                tar.addfile(_header(member.name, member.size, mtime), source)
        tar.close()  # writes the end, which must be on the disk, too
        file.flush()
        os.fsync(file.fileno())


def _header(name: str, size: int, mtime: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = size, mtime, 0o600
    return header


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[tarfile.TarFile, Manifest]]:
    """Open a backup after its manifest. Raises BackupDamagedError."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            body = _next(path, tar, MANIFEST, None).read(MAX_MANIFEST_BYTES)
            yield tar, Manifest.model_validate_json(body)
    except (tarfile.TarError, EOFError, ValidationError, ValueError, OverflowError) as error:
        raise BackupDamagedError(f"{path} is no backup of loopbox, or a damaged one: {_first_line(error)}") from error
    except FileNotFoundError as error:
        raise BackupMissingError(f"there is no backup {path}; `loopctl backup list` shows them") from error


def _next(path: Path, tar: tarfile.TarFile, name: str, size: int | None) -> IO[bytes]:
    """Return the next member's content, which must be this one. Raises BackupDamagedError."""
    member = tar.next()
    if member is None or member.name != name or not member.isreg() or member.pax_headers or member.issparse():
        raise BackupDamagedError(f"{path} is damaged: {name} is not where it should be")
    if member.size > (MAX_MANIFEST_BYTES if size is None else size) or (size is not None and member.size != size):
        raise BackupDamagedError(f"{path} is damaged: {name} has {member.size} bytes")
    content = tar.extractfile(member)
    if content is None:
        raise BackupDamagedError(f"{path} is damaged: {name} cannot be read")
    return content


def _unpack(path: Path, tar: tarfile.TarFile, member: Member, target: Path) -> None:
    source = _next(path, tar, member.name, member.size)
    digest = hashlib.sha256()
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != member.sha256:
        raise BackupDamagedError(f"{path} is damaged: {member.name} has another digest than when it was written")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        name = getattr(error, "sqlite_errorname", "")
        # The copy is in WAL mode for a moment; shared memory that cannot grow is an error of its size.
        full = name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")
        if full or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
            raise BackupFullError(
                f"the disk has no room for {path}. Nothing half done was left; free some space (`df -h`) and try again"
            ) from error
        raise BackupError(f"{path}: {error}. Nothing was changed") from error
    except sqlite3.DatabaseError as error:
        raise BackupDamagedError(f"{path}: state.db cannot be read: {error}. It was left as it is") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
