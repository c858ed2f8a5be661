"""``studio-runner keys QUEUE ...``: make the keys of messages and reports (protocol sections 2, 7 and 12)."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from runner.crypto.private_keys import KEY, KEYS, PASSPHRASE, PASSPHRASES
from runner.errors import ConfigError
from runner.options.reading import option, read
from runner.options.settings import KeySettings
from runner.options.values import boolean

if TYPE_CHECKING:
    from runner.crypto import sealing, signing

T = TypeVar("T")

_USAGE = """studio-runner keys [option ...] QUEUE ...

Makes the keys of encrypted and signed messages, and of reports: those of the runner where it looks for them, those of
experimenters in a directory for each QUEUE, which is the name of their queue, or the beginning of several such names.
Keys that are there already are kept, so that this may be run again for one more QUEUE."""

_PUBLIC = "ssh-publickey"
# What is the name of a file, of an item of a Kubernetes Secret, and of a queue.
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"


@dataclass(frozen=True)
class KeygenSettings(KeySettings):
    """The options of ``keys``."""

    client_dir: str = option("./client-keys", "where the keys of experimenters go", metavar="DIR", prefix="STUDIO_")
    rotate: bool = option(
        False,
        "make a new key for messages; the one that is there stays beside it, and opens older messages",
        boolean,
        metavar="BOOL",
        prefix="STUDIO_",
    )


def main(arguments: Sequence[str]) -> int:
    """Make the keys, and say what to do with them; return 0. Raises ConfigError."""
    settings, queues = read(KeygenSettings, arguments, os.environ, usage=_USAGE, words=True)
    if not queues:
        raise ConfigError("name a queue, or the beginning of the names of some: studio-runner keys QUEUE ...")
    if bad := [name for name in queues if not re.fullmatch(_NAME, name) or name == "info"]:
        raise ConfigError(f"{bad[0]!r} cannot be the name of a key: name queues, or beginnings of their names")
    try:
        public = _runner_key(settings.private_keys, rotate=settings.rotate)
        for former in Path(settings.client_dir).glob("*/runner_key.pem"):
            _write(former, public, anew=True)
        for queue in queues:
            _signing_key(settings, queue)
            _report_key(settings, queue)
            _write(Path(settings.client_dir) / queue / "runner_key.pem", public, anew=True)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from error
    _say(_for_kubernetes(settings))
    for queue in queues:
        _say(_for_experimenters(Path(settings.client_dir) / queue, queue))
    return 0


def _runner_key(directory: Path, *, rotate: bool) -> bytes:
    """Have a key that opens messages; return its public half."""
    from runner.crypto.key_files import content, passphrase_of, pkcs1, pkcs1_public  # noqa: PLC0415 -- these take a while
    from runner.crypto.sealing import new_private_key, read_private_key  # noqa: PLC0415

    private, secret = directory / KEYS / KEY, directory / PASSPHRASES / PASSPHRASE
    is_there = private.exists()
    if is_there and rotate:
        _set_aside(private, secret)
    if is_there and not rotate:
        passphrase = passphrase_of(content(str(secret))) if secret.exists() else None
        key = _read(private, lambda data: read_private_key(data, passphrase))
    else:
        key, passphrase = new_private_key(), secrets.token_urlsafe(32).encode()
        # Who reads the passphrase before the key is there cannot open the former key, and takes its copy.
        _write(secret, passphrase, anew=True)
        _write(private, pkcs1(key, passphrase), anew=True)
    public = pkcs1_public(key)
    _write(private.with_name(_PUBLIC), public, anew=rotate)
    _tell("messages are opened with", private, key, made=rotate or not is_there)
    return public


def _set_aside(private: Path, secret: Path) -> None:
    """Give the key, and its passphrase, another name: first a further one, so that it is always there."""
    suffix = time.strftime("-%Y%m%d-%H%M%S")
    for path in (secret, private):
        if path.exists():
            path.with_name(path.name + suffix).hardlink_to(path)
    _say(f"the former key is now {private}{suffix}: remove it when no message for it is under way any more")


def _signing_key(settings: KeygenSettings, queue: str) -> None:
    from runner.crypto.key_files import openssh, openssh_public  # noqa: PLC0415
    from runner.crypto.signing import new_private_key, read_private_key  # noqa: PLC0415

    own = Path(settings.client_dir) / queue / "signing_key"
    found = _kept_or_made(
        own, settings.signers / queue, lambda data: read_private_key(data, None), new_private_key, openssh
    )
    if found:
        key, made = found
        public = openssh_public(key, queue)
        _write(own.with_name(f"{own.name}.pub"), public)
        _write(settings.signers / queue, public)
        _tell(f"messages for {queue} are signed with", own, key, made=made)


def _report_key(settings: KeygenSettings, queue: str) -> None:
    from runner.crypto.key_files import pkcs1, pkcs1_public  # noqa: PLC0415
    from runner.crypto.sealing import new_private_key, read_private_key  # noqa: PLC0415

    own = Path(settings.client_dir) / queue / "report_key.pem"
    found = _kept_or_made(
        own,
        settings.report_readers / queue,
        lambda data: read_private_key(data, None),
        new_private_key,
        partial(pkcs1, passphrase=None),
    )
    if found:
        key, made = found
        _write(settings.report_readers / queue, pkcs1_public(key))
        _tell(f"reports of {queue} are opened with", own, key, made=made)


def _kept_or_made(
    own: Path, public: Path, read_key: Callable[[bytes], T], new: Callable[[], T], text: Callable[[T], bytes]
) -> tuple[T, bool] | None:
    """Return an experimenter's key, and whether it is new. None: somebody else has it."""
    if own.exists():
        return _read(own, read_key), False
    if public.exists():
        _say(f"{public} is there, and its private key is not in {own.parent}: it is kept")
        return None
    key = new()
    _write(own, text(key))
    return key, True


def _read(path: Path, read_key: Callable[[bytes], T]) -> T:
    from runner.crypto.key_files import of_file  # noqa: PLC0415

    return of_file(str(path), read_key)


def _write(path: Path, data: bytes, *, anew: bool = False) -> None:
    """Make a file appear whole; one that is there stays as it is unless it is made ``anew``."""
    if path.exists() and not anew:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.touch(mode=0o600)
    draft.write_bytes(data)
    draft.replace(path)


def _tell(purpose: str, path: Path, key: sealing.PrivateKey | signing.PrivateKey, *, made: bool) -> None:
    from runner.crypto.signing import fingerprint_of  # noqa: PLC0415

    _say(f"{purpose} {path} ({fingerprint_of(key.public_key())}), {'which is new' if made else 'which was there'}")


def _for_kubernetes(settings: KeygenSettings) -> str:
    parts = {
        "studioml-runner-key-secret": ["", settings.private_keys / KEYS],
        "studioml-runner-passphrase-secret": ["", settings.private_keys / PASSPHRASES],
        "studioml-signing": ["--from-literal=info=placeholder ", settings.signers],
        "studioml-report-keys": ["--from-literal=info=placeholder ", settings.report_readers],
    }
    lines = [
        f"kubectl create secret generic {name} {literal}--from-file={shlex.quote(str(path))} "
        "--dry-run=client -o yaml | kubectl apply -f -"
        for name, (literal, path) in parts.items()
    ]
    return "\n".join(["", "In Kubernetes, make or change the runners' Secrets:", "", *lines])


def _for_experimenters(directory: Path, queue: str) -> str:
    encrypt, sign, report = (
        shlex.quote(str(directory / name)) for name in ("runner_key.pem", "signing_key", "report_key.pem")
    )
    return f"""
Who submits to {queue} gets {directory}, which is secret:

studio-runner submit --encrypt {encrypt} --sign {sign} ...
studio-runner listen --private-key {report} ...

or, in the configuration of StudioML's client:

public_key_path: {directory / "runner_key.pem"}
signing_key_path: {directory / "signing_key"}"""


def _say(text: str) -> None:
    print(text)  # noqa: T201 -- talking to the user
