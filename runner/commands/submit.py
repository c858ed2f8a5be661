"""``studio-runner submit``: pack a workspace, store it, publish a message, and follow it to its result."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runner.attempt.record import Record
from runner.commands.follow import METADATA, RESULTS, follow
from runner.commands.shelf import Shelf, packed, shelf_at, store
from runner.errors import ConfigError
from runner.message import request
from runner.options.reading import option, read
from runner.options.settings import ServerSettings, Settings
from runner.options.values import boolean, count
from runner.queues import carries_reports, matcher
from runner.queues.servers import sqs_options
from runner.units import parse_duration

_USAGE = """studio-runner submit [option ...] DIRECTORY FILE [ARGUMENT ...]

Stores DIRECTORY as the workspace of a new experiment that runs the Python FILE in it, and publishes its message.
Virtual environments in DIRECTORY are left out: --requirement says what the experiment needs.
The keys of an S3 store come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_DEFAULT_REGION;
without them access is anonymous. Every option is an environment variable too: where the queue is, and --s3-ca, as for
the runner (--amqp-url is AMQP_URL); all others begin with STUDIO_: --store is STUDIO_STORE."""


def _requirement(value: str) -> tuple[str, ...]:
    return (value,)


def _assignments(value: str, form: str = "NAME=VALUE") -> tuple[tuple[str, str], ...]:
    name, equals, rest = value.partition("=")
    if not name or not equals:
        raise ValueError(f"is {value!r}, but must be {form}")
    return ((name, rest),)


_labelled = partial(_assignments, form="LABEL=PATH")


_own = partial(option, prefix="STUDIO_")


@dataclass(frozen=True)
class SubmitSettings(ServerSettings):
    """The options of ``submit``."""

    queue: str = _own("", "queue to publish to, for example local_demo or rmq_mine", metavar="NAME")
    store: str = _own("", "where artifacts go: s3://HOST[:PORT]/BUCKET or file:///DIRECTORY", metavar="URL")
    store_tls: bool = _own(False, "speak TLS to an S3 store that is not Amazon's", boolean, metavar="BOOL")
    s3_ca: str = option("", "CA certificates of the S3 store (PEM); implies TLS", metavar="FILE")

    encrypt: str = _own("", "encrypt the message for the owner of this public key, the runners' (PEM)", metavar="FILE")
    sign: str = _own("", "and sign it with this private key, of Ed25519 (OpenSSH's form or PEM)", metavar="FILE")
    passphrase_file: str = _own("", "the passphrase of that key", metavar="FILE")

    key: str = _own("", "the experiment's name [made up]", metavar="NAME")
    project: str = _own("", "project that it belongs to", metavar="NAME")
    pythonver: str = _own("3", "Python that it wants, for example 3.11", metavar="VERSION")
    requirement: tuple[str, ...] = _own((), "what pip is to install", _requirement, metavar="REQUIREMENT", many=True)
    artifact: tuple[tuple[str, str], ...] = _own(
        (), "further directory or file that it reads as ../LABEL", _labelled, metavar="LABEL=PATH", many=True
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
        found = super().faults()
        if not self.queue:
            found.append("there is no queue to publish to: give --queue")
        if carries_reports(self.queue):
            found.append(f"--queue is {self.queue!r}, but queues of that name carry reports, and no runner reads them")
        if self.queue_root and not _is_directory_name(self.queue):
            found.append(f"--queue is {self.queue!r}, which cannot be the name of a directory that is a queue")
        if sum(map(bool, (self.queue_root, self.amqp_url, self.sqs_certs or self.sqs_region))) > 1:
            found.append("give one place where the queue is, not several: --queue-root, --amqp-url or SQS's options")
        if not self.store:
            found.append("there is no place for the artifacts: give --store")
        if bool(self.encrypt) != bool(self.sign):
            found.append("--encrypt and --sign belong together: runners open no message that is not signed")
        return found


def _is_directory_name(queue: str) -> bool:
    """Tell whether runners would find a queue of that name in --queue-root."""
    return "/" not in queue and "\0" not in queue and not queue.startswith(".")


def main(arguments: Sequence[str]) -> int:
    """Submit one experiment; return 0, or with ``--wait`` 1 when it did not complete.

    Raises ConfigError, RequestError, and what stores and queues raise.
    """
    settings, rest = read(SubmitSettings, arguments, os.environ, usage=_USAGE, words=True)
    if len(rest) < 2:
        raise ConfigError("name the workspace directory and the Python file in it: see studio-runner submit --help")
    workspace, filename, *script_arguments = rest
    if filename != "-m" and not (Path(workspace) / filename).is_file():
        raise ConfigError(f"{workspace!r} has no file {filename!r}: name a Python file relative to the workspace")
    wrap = _wrapper(settings)
    shelf = shelf_at(settings.store, tls=settings.store_tls, s3_ca=settings.s3_ca)
    with ExitStack() as stack:
        archives = {
            label: stack.enter_context(packed(Path(path)))
            for label, path in (("workspace", workspace), *settings.artifact)
        }
        document = _document(settings, shelf, filename, script_arguments)
        artifacts = document["experiment"]["artifacts"]
        for label, (_, digest) in archives.items():
            artifacts[label] = shelf.artifact(f"blobstore/{digest}.tar", mutable=False)
        wanted = request.from_document(document)
        print(f"storing {workspace} in {settings.store}", file=sys.stderr)  # noqa: T201 -- it may take, or wait
        for label, (file, _) in archives.items():
            store(file, wanted.artifacts[label], shelf.stores)
    if wanted.record:
        Record(wanted.record, shelf.stores).write(request.redacted(document)["experiment"])
    _publish(settings, json.dumps(wrap(document)).encode())
    print(f"submitted {wanted.key} to {settings.queue}", flush=True)  # noqa: T201 -- talking to the user
    if not matcher(Settings.queue_match, "")(settings.queue):
        told = f"only runners with --queue {settings.queue}, or a --queue-match of their own, read this queue"
        print(f"studio-runner: {told}", file=sys.stderr)  # noqa: T201
    if not settings.wait:
        return 0
    return follow(wanted, shelf.stores, directory=Path(settings.output or wanted.key), timeout=settings.timeout)


def _document(settings: SubmitSettings, shelf: Shelf, filename: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Write the message, all but its own blobs, as StudioML clients do."""
    key = settings.key or f"{Path(filename).stem.strip('-') or 'module'}_{secrets.token_hex(6)}"
    mutable = {label: shelf.artifact(f"experiments/{key}/{label}.tar", mutable=True) for label in (*RESULTS, METADATA)}
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


def _wrapper(settings: SubmitSettings) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what makes the message of a request: an envelope, if the options name keys. Raises ConfigError."""
    if not settings.encrypt:
        return lambda document: document
    from runner.crypto import sealing, signing  # noqa: PLC0415 -- only who has keys pays for it
    from runner.crypto.key_files import content, of_file, passphrase_of  # noqa: PLC0415
    from runner.message import envelope  # noqa: PLC0415 -- only who has keys pays for it

    passphrase = passphrase_of(content(settings.passphrase_file)) if settings.passphrase_file else None
    recipient = of_file(settings.encrypt, lambda data: sealing.read_public_key(data.decode(errors="replace")))
    signer = of_file(settings.sign, lambda data: signing.read_signer(data, passphrase))
    return lambda document: envelope.made(document, recipient, signer)


def _publish(settings: SubmitSettings, body: bytes) -> None:
    if settings.queue_root:
        from runner.queues import files  # noqa: PLC0415 -- only who uses a technology pays for it

        files.publish(Path(settings.queue_root), settings.queue, body)
    elif settings.amqp_url:
        from runner.queues import amqp  # noqa: PLC0415

        amqp.publish(settings.amqp_url, settings.queue, body, ca=settings.amqp_ca)
    else:
        from runner.queues import sqs_sending  # noqa: PLC0415

        sqs_sending.publish(sqs_options(settings), settings.queue, body)
