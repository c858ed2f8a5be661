"""``studio-runner submit``: pack a workspace, store it, publish a message, and follow it to its result."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from runner import request
from runner.archive import Budget
from runner.errors import ConfigError, Unavailable
from runner.packing import pack
from runner.record import Record
from runner.request import Artifact, Request
from runner.retry import Patience
from runner.settings import boolean, count, option, read
from runner.storage.base import CHUNK, Location, NotFound, StoreOptions, locate
from runner.storage.stores import Stores
from runner.units import format_duration, parse_duration
from runner.unpacking import unpack

_USAGE = """studio-runner submit [option ...] DIRECTORY FILE [ARGUMENT ...]

Stores DIRECTORY as the workspace of a new experiment that runs the Python FILE in it, and publishes its message.
The keys of an S3 store come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_DEFAULT_REGION;
without them access is anonymous. Every option is an environment variable too: --queue-root, --amqp-url and --s3-ca are
QUEUE_ROOT, AMQP_URL and S3_CA, as for the runner; all others begin with STUDIO_: --store is STUDIO_STORE."""

_METADATA = "_metadata"
_MUTABLE = ("output", "modeldir", "retval", "tb", "_metrics", _METADATA)
"""What an experiment may leave behind: the labels that StudioML's own client gives."""

# In seconds: how often the record is looked at, and how long the store may fail.
_POLL = 0.5
_PATIENCE = 60.0


def _requirement(value: str) -> tuple[str, ...]:
    return (value,)


def _assignments(value: str) -> tuple[tuple[str, str], ...]:
    name, equals, rest = value.partition("=")
    if not name or not equals:
        raise ValueError(f"is {value!r}, but must be NAME=VALUE")
    return ((name, rest),)


_own = partial(option, prefix="STUDIO_")


@dataclass(frozen=True)
class SubmitSettings:
    """The options of ``submit``."""

    queue: str = _own("", "queue to publish to, for example local_demo or rmq_mine", metavar="NAME")
    queue_root: str = option("", "directory of directory queues", metavar="DIR")
    amqp_url: str = option("", "RabbitMQ server, amqp[s]://USER:PASSWORD@HOST:PORT/VHOST", metavar="URL")
    store: str = _own("", "where artifacts go: s3://HOST[:PORT]/BUCKET or file:///DIRECTORY", metavar="URL")
    store_tls: bool = _own(False, "speak TLS to an S3 store that is not Amazon's", boolean, metavar="BOOL")
    s3_ca: str = option("", "CA certificates of the S3 store (PEM); implies TLS", metavar="FILE")

    key: str = _own("", "the experiment's name [made up]", metavar="NAME")
    project: str = _own("", "project that it belongs to", metavar="NAME")
    pythonver: str = _own("3", "Python that it wants, for example 3.11", metavar="VERSION")
    requirement: tuple[str, ...] = _own((), "what pip is to install", _requirement, metavar="REQUIREMENT", many=True)
    artifact: tuple[tuple[str, str], ...] = _own(
        (), "further directory or file that it reads as ../LABEL", _assignments, metavar="LABEL=PATH", many=True
    )
    env: tuple[tuple[str, str], ...] = _own((), "variable to set", _assignments, metavar="NAME=VALUE", many=True)
    cpus: int = _own(1, "cores that it needs", count, metavar="N")
    ram: str = _own("512mb", "memory that it needs", metavar="SIZE")
    hdd: str = _own("1gb", "disk that it needs", metavar="SIZE")
    gpus: int = _own(0, "GPU slots that it needs", count, metavar="N")
    max_duration: str = _own("", "longest attempt", metavar="DURATION")
    lifetime: str = _own("", "give up when it is not done by then", metavar="DURATION")
    save_frequency: str = _own("1m", "how often results are stored while it runs", metavar="DURATION")

    wait: bool = _own(False, "wait for the end, and fetch the results", boolean, metavar="BOOL")
    timeout: float = _own(86400.0, "how long to wait", parse_duration, metavar="DURATION")
    output: str = _own("", "directory for the results [./KEY]", metavar="DIR")

    def faults(self) -> list[str]:
        """What is wrong with the options taken together."""
        found = []
        if not self.queue:
            found.append("there is no queue to publish to: give --queue")
        if bool(self.queue_root) == bool(self.amqp_url):
            found.append("give either --queue-root or --amqp-url: where the queue is")
        if not self.store:
            found.append("there is no place for the artifacts: give --store")
        return found


def main(arguments: Sequence[str]) -> int:
    """Submit one experiment; return 0, or with ``--wait`` 1 when it did not complete.

    Raises ConfigError, RequestError, and what stores and queues raise.
    """
    settings, rest = read(SubmitSettings, arguments, os.environ, usage=_USAGE, words=True)
    if len(rest) < 2:
        raise ConfigError("name the workspace directory and the Python file in it: see studio-runner submit --help")
    directory, filename, *script_arguments = rest
    if filename != "-m" and not (Path(directory) / filename).is_file():
        raise ConfigError(f"{directory!r} has no file {filename!r}: name a Python file relative to the workspace")
    shelf = _shelf(settings)
    with ExitStack() as stack:
        packed = {
            label: stack.enter_context(_packed(Path(path)))
            for label, path in (("workspace", directory), *settings.artifact)
        }
        document = _document(settings, shelf, filename, script_arguments)
        artifacts = document["experiment"]["artifacts"]
        for label, (_, digest) in packed.items():
            artifacts[label] = shelf.artifact(f"blobstore/{digest}.tar", mutable=False)
        wanted = request.from_document(document)
        for label, (file, _) in packed.items():
            _store(file, wanted.artifacts[label], shelf.stores)
    if wanted.record:
        Record(wanted.record, shelf.stores).write(request.redacted(document)["experiment"])
    _publish(settings, json.dumps(document).encode())
    print(f"submitted {wanted.key} to {settings.queue}")  # noqa: T201 -- talking to the user
    return _follow(settings, wanted, shelf.stores) if settings.wait else 0


# Storing


@dataclass(frozen=True)
class _Shelf:
    """The store that the artifacts lie in, and how messages describe it."""

    base: Location
    credentials: dict[str, str]
    stores: Stores

    def config(self) -> dict[str, Any]:
        """Return what ``config.storage`` and ``config.database`` say of it."""
        if self.base.scheme == "file":
            # Apart from the artifacts: no directory has both a file experiments/KEY and a directory of that name.
            return {"type": "local", "endpoint": self.base.bucket, "bucket": "database"}
        endpoint = f"{'https' if self.base.tls else 'http'}://{self.base.host}"
        credentials = {"aws": self.credentials}
        return {"type": "s3", "endpoint": endpoint, "bucket": self.base.bucket, "credentials": credentials}

    def artifact(self, key: str, *, mutable: bool) -> dict[str, Any]:
        """Describe one artifact."""
        described = {"qualified": str(self.base.sibling(key)), "key": key, "mutable": mutable, "unpack": True}
        if self.base.scheme == "s3":
            described |= {"bucket": self.base.bucket, "credentials": {"aws": self.credentials}}
        return described


def _shelf(settings: SubmitSettings) -> _Shelf:
    try:
        base = locate(settings.store.rstrip("/") + "/x", key="x")
    except ValueError as error:
        raise ConfigError(f"--store {error}") from error
    if base.scheme not in ("s3", "file"):
        raise ConfigError(f"--store is {settings.store!r}, but must be s3://HOST[:PORT]/BUCKET or file:///DIRECTORY")
    if base.scheme == "file":
        Path(base.bucket).mkdir(parents=True, exist_ok=True)
    names = {
        "access_key": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
        "region": "AWS_DEFAULT_REGION",
    }
    given = {member: os.environ.get(name, "") for member, name in names.items()}
    credentials = {member: value for member, value in given.items() if value or member.endswith("access_key")}
    options = StoreOptions(s3_ca=settings.s3_ca, file_roots=(base.bucket,), patience=Patience(_PATIENCE))
    tls = base.tls or settings.store_tls or bool(settings.s3_ca)
    return _Shelf(replace(base, tls=tls), credentials, Stores(options, sleep=time.sleep))


@contextmanager
def _packed(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Pack a directory, or a single file as StudioML clients do, as ``./name``; yield the archive and its SHA-256."""
    with tempfile.TemporaryFile() as file, tempfile.TemporaryDirectory() as alone:
        directory = path
        if path.is_file():
            directory = Path(alone)
            shutil.copy2(path, directory)
        if not directory.is_dir():
            raise ConfigError(f"{str(path)!r} is neither a directory nor a file: there is nothing to submit")
        pack(directory, file, "x.tar")
        file.seek(0)
        digest = hashlib.sha256()
        while data := file.read(CHUNK):
            digest.update(data)
        yield file, digest.hexdigest()


def _store(file: BinaryIO, artifact: Artifact, stores: Stores) -> None:
    """Store an archive, unless it is there: its name is its content."""
    store = stores.reach(artifact.location, artifact.credentials)
    if store.etag(artifact.location.key) is None:
        file.seek(0)
        with store.create(artifact.location.key) as out:
            shutil.copyfileobj(file, out, CHUNK)


# Publishing


def _document(settings: SubmitSettings, shelf: _Shelf, filename: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Write the message, all but its own blobs, as StudioML clients do."""
    key = settings.key or f"{Path(filename).stem.strip('-') or 'module'}_{secrets.token_hex(6)}"
    mutable = {label: shelf.artifact(f"experiments/{key}/{label}.tar", mutable=True) for label in _MUTABLE}
    return {
        "experiment": {
            "key": key,
            "filename": filename,
            "args": [shlex.quote(each) for each in arguments],
            "pythonver": settings.pythonver,
            "pythonenv": list(settings.requirement),
            "project": settings.project or None,
            "artifacts": mutable,
            "resources_needed": {name: getattr(settings, name) for name in ("cpus", "gpus", "ram", "hdd")},
            "max_duration": settings.max_duration or None,
            "time_added": time.time(),
            "status": "waiting",
        },
        "config": {
            "storage": shelf.config(),
            "database": shelf.config(),
            "saveWorkspaceFrequency": settings.save_frequency,
            "experimentLifetime": settings.lifetime or None,
            "env": dict(settings.env),
            "verbose": "info",
        },
    }


def _publish(settings: SubmitSettings, body: bytes) -> None:
    if settings.queue_root:
        from runner.queues import files  # noqa: PLC0415 -- only who uses a technology pays for it

        files.publish(Path(settings.queue_root), settings.queue, body)
    else:
        from runner.queues import amqp  # noqa: PLC0415

        amqp.publish(settings.amqp_url, settings.queue, body)


# Following


def _follow(settings: SubmitSettings, wanted: Request, stores: Stores) -> int:
    """Wait for the experiment's end and fetch what it left; return the exit status."""
    outcome = _outcome(settings, wanted, stores)
    directory = Path(settings.output or wanted.key)
    print(outcome.get("sentence") or "it is over, but no runner said how")  # noqa: T201
    for label in _MUTABLE:
        if (artifact := wanted.artifacts[label]).label != _METADATA and _fetched(artifact, stores, directory / label):
            print(f"  {label:10} {directory / label}")  # noqa: T201
    metadata = wanted.artifacts[_METADATA]
    name = f"scrape-host-{outcome.get('accession')}.json"
    if _fetched_file(metadata, f"metadata/{name}", stores, directory / name):
        print(f"  {'metadata':10} {directory / name}")  # noqa: T201
    return 0 if outcome.get("verdict") == "completed" else 1


def _outcome(settings: SubmitSettings, wanted: Request, stores: Stores) -> dict[str, Any]:
    """Follow the record until it says that the experiment is over; tell each change. Raises Unavailable in the end."""
    assert wanted.record is not None  # noqa: S101 -- the message names a database
    record, told = Record(wanted.record, stores), ""
    end = time.monotonic() + settings.timeout
    while time.monotonic() < end:
        found = record.read()
        status = str(found.get("status"))
        if status in ("finished", "stopped"):
            return found.get("outcome") or {}
        if status != told:
            print(f"{wanted.key} is {status}", flush=True)  # noqa: T201
            told = status
        time.sleep(_POLL)
    raise Unavailable(f"{wanted.key} is not over after {format_duration(settings.timeout)}: it goes on without us")


def _fetched(artifact: Artifact, stores: Stores, directory: Path) -> bool:
    """Unpack a result if there is one."""
    try:
        with stores.reach(artifact.location, artifact.credentials).open(artifact.location.key) as stored:
            directory.mkdir(parents=True, exist_ok=True)
            unpack(stored.stream, directory, Budget(None))
    except NotFound:
        return False
    return True


def _fetched_file(artifact: Artifact, key: str, stores: Stores, path: Path) -> bool:
    try:
        with stores.reach(artifact.location, artifact.credentials).open(key) as stored:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while data := stored.stream.read(CHUNK):
                    file.write(data)
    except NotFound:
        return False
    return True
