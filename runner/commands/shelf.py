"""The submitter's end of a store: where artifacts go, and how messages describe them."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from runner.artifacts.packing import pack
from runner.artifacts.walking import Entry, kept_target
from runner.errors import ConfigError
from runner.message.request import Artifact
from runner.retry import Patience
from runner.storage.base import CHUNK, Location, StoreOptions, locate
from runner.storage.stores import Stores

# How long the store may fail, in seconds.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Shelf:
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


def shelf_at(url: str, *, tls: bool, s3_ca: str) -> Shelf:
    """Return the store at a URL, with the credentials of this process's environment. Raises ConfigError."""
    try:
        base = locate(url.rstrip("/") + "/x", key="x")
    except ValueError as error:
        raise ConfigError(f"--store is {url!r}: {error}") from error
    if base.scheme not in ("s3", "file"):
        raise ConfigError(f"--store is {url!r}, but must be s3://HOST[:PORT]/BUCKET or file:///DIRECTORY")
    if base.scheme == "file":
        made(Path(base.bucket), "--store")
    names = {
        "access_key": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
        "region": "AWS_DEFAULT_REGION",
    }
    given = {member: os.environ.get(name, "") for member, name in names.items()}
    credentials = {member: value for member, value in given.items() if value or member.endswith("access_key")}
    options = StoreOptions(s3_ca=s3_ca, file_roots=(base.bucket,), patience=Patience(_PATIENCE))
    return Shelf(replace(base, tls=base.tls or tls or bool(s3_ca)), credentials, Stores(options, sleep=time.sleep))


def made(directory: Path, option: str) -> None:
    """Make a directory that an option names, unless it is there. Raises ConfigError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option}: {directory} cannot be made: {error.strerror}") from error


class _Useful:
    """Leaves out what is of use only where it is: virtual environments, and links to elsewhere, which it tells of."""

    def __init__(self) -> None:
        self._left_out = "\0"

    def __call__(self, entry: Entry) -> bool:
        if entry.name.startswith(self._left_out):
            return False
        if stat.S_ISDIR(entry.status.st_mode) and Path(entry.path, "pyvenv.cfg").is_file():
            self._left_out = f"{entry.name}/"
            return False
        if entry.target and not kept_target(entry):
            told = f"{entry.path} is a link out of what is submitted, to {entry.target}: it is left out"
            print(told, file=sys.stderr)  # noqa: T201 -- talking to the user
            return False
        return True


@contextmanager
def packed(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Pack a directory, or a single file as StudioML clients do, as ``./name``; yield the archive and its SHA-256.

    Virtual environments in it are left out, and links out of it. Raises ConfigError for what is not there.
    """
    with tempfile.TemporaryFile() as file, tempfile.TemporaryDirectory() as alone:
        directory = path
        if path.is_file():
            directory = Path(alone)
            shutil.copy2(path, directory)
        if not directory.is_dir():
            raise ConfigError(f"{str(path)!r} is neither a directory nor a file: there is nothing to submit")
        pack(directory, file, "x.tar", wanted=_Useful())
        file.seek(0)
        digest = hashlib.sha256()
        while data := file.read(CHUNK):
            digest.update(data)
        yield file, digest.hexdigest()


def store(file: BinaryIO, artifact: Artifact, stores: Stores) -> None:
    """Store an archive, unless it is there: its name is its content."""
    place = stores.reach(artifact.location, artifact.credentials)
    if place.etag(artifact.location.key) is None:
        file.seek(0)
        with place.create(artifact.location.key) as out:
            shutil.copyfileobj(file, out, CHUNK)
