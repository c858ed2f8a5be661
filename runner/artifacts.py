"""Label directories and the stored objects they come from and go to: what to fetch, what changed, what to upload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from runner import cache
from runner.archive import Budget
from runner.cache import Cache
from runner.errors import ExperimentError, MachineError, RunnerError, Unavailable, is_machines_own
from runner.packing import copy_file, fingerprint, pack
from runner.place import Place, remove
from runner.request import Artifact
from runner.storage.base import CHUNK, NotFound, Reader
from runner.storage.stores import Stores
from runner.unpacking import unpack

METADATA = "_metadata"
LOG_LABEL = "output"
LOG_NAME = "output"
FINAL_ONLY = "retval"
"""The completion service's client takes the first one it sees, so there must never be an unfinished one."""


class Artifacts:
    """The artifacts of one attempt.

    A mutable artifact is uploaded only when it was fetched, or was found not to exist: what came halfway must never
    replace what is stored.
    """

    def __init__(self, artifacts: list[Artifact], place: Place, budget: Budget, cached: Cache | None = None) -> None:
        self._artifacts = artifacts
        self._place = place
        self._budget = budget
        self._cache = cached
        self._stored: dict[str, str] = {}

    def fetch(self, artifact: Artifact, stores: Stores, check: Callable[[], None]) -> bool:
        """Bring an artifact into its directory; False when there is none yet. ``check`` is called as bytes come.

        Raises ExperimentError (missing, refused, too large, not an archive), Unavailable, or what ``check`` raises.
        """
        directory = self._place.label(artifact.label)
        spent = self._budget.spent

        def whole() -> bool:
            remove(directory)
            directory.mkdir(parents=True)
            self._budget.spent = spent
            return self._fetch_once(artifact, directory, stores, check)

        there = stores.again(whole)
        if artifact.mutable:
            self._stored[artifact.label] = _state(artifact, directory)
        return there

    def _fetch_once(self, artifact: Artifact, directory: Path, stores: Stores, check: Callable[[], None]) -> bool:
        def receive(stream: Reader) -> None:
            if artifact.unpack:
                unpack(_Checked(stream, check), directory, self._budget)
            else:
                self._save(_Checked(stream, check), directory / _base_name(artifact))

        store = stores.reach(artifact.location, artifact.credentials)
        try:
            if self._cache and not artifact.mutable:
                self._cache.fetch(artifact, directory, store, budget=self._budget, receive=receive)
            else:
                cache.fetch(artifact, store, receive)
        except NotFound as error:
            if artifact.mutable and artifact.label != "workspace":
                return False
            raise ExperimentError(f"artifact {artifact.label!r} is missing: {error}") from error
        except ExperimentError as error:
            raise ExperimentError(f"artifact {artifact.label!r} from {artifact.location}: {error}") from error
        return True

    def _save(self, stream: Reader, path: Path) -> None:
        try:
            with path.open("wb") as file:
                while data := stream.read(CHUNK):
                    self._budget.spend(len(data))
                    file.write(data)
        except OSError as error:
            kind = MachineError if is_machines_own(error) else ExperimentError
            raise kind(f"{path.name!r} cannot be written: {error.strerror}") from error

    def upload(self, stores: Stores, *, final: bool) -> int:
        """Store every mutable artifact that has files and has changed since it was last stored; return how many.

        All are tried, the metadata last. Then the first Unavailable, or else the first other error, is raised.
        """
        count, errors = 0, []
        for artifact in sorted(self._artifacts, key=lambda each: (each.label == METADATA, each.label == LOG_LABEL)):
            if not artifact.mutable or (artifact.label == FINAL_ONLY and not final):
                continue
            try:
                count += self._upload(artifact, stores)
            except RunnerError as error:
                errors.append(error)
        if errors:
            raise next((error for error in errors if isinstance(error, Unavailable)), errors[0])
        return count

    def _upload(self, artifact: Artifact, stores: Stores) -> bool:
        directory = self._place.label(artifact.label)
        state = _state(artifact, directory)
        if not state or state == self._stored.get(artifact.label, state):
            return False
        if artifact.label == METADATA:
            self._put_each(artifact, directory, stores)
        else:
            self._put(artifact, directory, stores)
        self._stored[artifact.label] = state
        return True

    def _put(self, artifact: Artifact, directory: Path, stores: Stores) -> None:
        def whole() -> None:
            with stores.reach(artifact.location, artifact.credentials).create(artifact.location.key) as out:
                if artifact.unpack:
                    pack(directory, out, artifact.location.key, first=LOG_NAME if artifact.label == LOG_LABEL else "")
                else:
                    copy_file(directory / _base_name(artifact), out)

        stores.again(whole)

    def _put_each(self, artifact: Artifact, directory: Path, stores: Stores) -> None:
        """The metadata's files become objects of their own in its bucket (protocol section 4)."""
        for path in sorted(directory.iterdir()):
            if path.is_file() and not path.is_symlink():
                location = artifact.location.sibling(f"metadata/{path.name}")
                with stores.reach(location, artifact.credentials).create(location.key) as out:
                    copy_file(path, out)


class _Checked:
    """A stream that looks at each chunk whether the attempt may go on."""

    def __init__(self, stream: Reader, check: Callable[[], None]) -> None:
        self._stream, self._check = stream, check

    def read(self, size: int = -1, /) -> bytes:
        self._check()
        return self._stream.read(size)


def _base_name(artifact: Artifact) -> str:
    key = artifact.location.key
    if artifact.location.scheme in ("http", "https"):  # whose keys alone have a query, and are encoded
        key = unquote(key.partition("?")[0])
    name = PurePosixPath(key).name
    if name in ("", "..", ".") or "\0" in name:
        raise ExperimentError(f"artifact {artifact.label!r} has a key without a file name: {artifact.location}")
    return name


def _state(artifact: Artifact, directory: Path) -> str:
    """What ``fingerprint`` says of the part of the directory that is uploaded."""
    if artifact.unpack or artifact.label == METADATA:
        return fingerprint(directory)
    path = directory / _base_name(artifact)
    if not path.is_file() or path.is_symlink():
        return ""
    status = path.lstat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
