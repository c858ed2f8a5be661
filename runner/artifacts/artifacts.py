"""Label directories and the stored objects they come from and go to: what to fetch, what changed, what to upload."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from runner.artifacts import cache
from runner.artifacts.budget import Budget
from runner.artifacts.cache import Cache
from runner.artifacts.manifest import Manifest
from runner.artifacts.packing import Note, copy, pack
from runner.artifacts.progress import Progress
from runner.artifacts.unpacking import unpack
from runner.artifacts.walking import Entry, members, only
from runner.errors import ExperimentError, MachineError, RunnerError, Unavailable, is_machines_own
from runner.message.request import Artifact
from runner.place import Place, remove
from runner.secrets.masking import NONE, Secrets
from runner.storage.base import CHUNK, NotFound, Reader, Store
from runner.storage.stores import Stores

METADATA = "_metadata"
LOG_LABEL = "output"
LOG_NAME = "output"
FINAL_ONLY = "retval"
"""The completion service's client takes the first one it sees, so there must never be an unfinished one."""


class Artifacts:
    """The artifacts of one attempt.

    A mutable artifact is uploaded only when it was fetched, or was found not to exist: what came halfway must never
    replace what is stored. What has one of the ``barred`` secrets in it is not uploaded.
    """

    def __init__(
        self,
        artifacts: list[Artifact],
        place: Place,
        budget: Budget,
        cached: Cache | None = None,
        progress: Progress | None = None,
        *,
        barred: Secrets = NONE,
    ) -> None:
        self._artifacts = artifacts
        self._place = place
        self._budget = budget
        self._cache, self._progress, self._barred = cached, progress, barred
        self._manifests: dict[str, Manifest] = {}

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
            name = hashlib.sha256(artifact.label.encode()).hexdigest()[:32]  # a label may be as long as names can be
            kept = self._place.scratch / f"{name}.stored"
            self._manifests[artifact.label] = Manifest(kept, partial(_entries, artifact, directory))
            self._manifests[artifact.label].take()
        return there

    def _fetch_once(self, artifact: Artifact, directory: Path, stores: Stores, check: Callable[[], None]) -> bool:
        def receive(stream: Reader) -> None:
            if artifact.unpack:
                unpack(_Checked(stream, check), directory, self._budget)
            else:
                self._save(_Checked(stream, check), directory / _base_name(artifact))

        store = self._reach(stores, artifact, f"fetching artifact {artifact.label!r}")
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
            raise ExperimentError(
                f"artifact {artifact.label!r} from {artifact.location}: {error}", verdict=error.verdict
            ) from error
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

    def upload(self, stores: Stores, labels: Collection[str] | None = None) -> int:
        """Store every mutable artifact that has files and has changed since it was last stored; return how many.

        ``labels`` says which ones, None for all. All are tried, the metadata last. Then the first Unavailable, or else
        the first other error, is raised.
        """
        count, errors = 0, []
        for artifact in sorted(self._artifacts, key=lambda each: (each.label == METADATA, each.label == LOG_LABEL)):
            if artifact.label not in self._manifests or (labels is not None and artifact.label not in labels):
                continue
            try:
                count += self._upload(artifact, self._manifests[artifact.label], stores)
            except RunnerError as error:
                errors.append(error)
        if errors:
            raise next((error for error in errors if isinstance(error, Unavailable)), errors[0])
        return count

    def _upload(self, artifact: Artifact, manifest: Manifest, stores: Stores) -> bool:
        if not manifest.differs():
            return False
        put = self._put_each if artifact.label == METADATA else self._put_archive if artifact.unpack else self._put_file

        def whole() -> None:
            with manifest.renewed() as note:
                put(artifact, stores, note)

        stores.again(whole)
        return True

    def _put_archive(self, artifact: Artifact, stores: Stores, note: Note) -> None:
        key, first = artifact.location.key, LOG_NAME if artifact.label == LOG_LABEL else ""
        with self._storing(stores, artifact).create(key) as out:
            pack(self._place.label(artifact.label), out, key, first=first, note=note, barred=self._barred)

    def _put_file(self, artifact: Artifact, stores: Stores, note: Note) -> None:
        for entry in only(self._place.label(artifact.label), _base_name(artifact)):
            with self._storing(stores, artifact).create(artifact.location.key) as out:
                copy(entry, out, note=note, barred=self._barred)

    def _storing(self, stores: Stores, artifact: Artifact) -> Store:
        return self._reach(stores, artifact, f"storing artifact {artifact.label!r}")

    def _reach(self, stores: Stores, artifact: Artifact, what: str) -> Store:
        """Return the store of an artifact; how far transfers are is told while they last."""
        store = stores.reach(artifact.location, artifact.credentials)
        return self._progress.watched(store, what) if self._progress else store

    def _put_each(self, artifact: Artifact, stores: Stores, note: Note) -> None:
        """The metadata's files become objects of their own in its bucket (protocol section 4)."""
        for entry in members(self._place.label(artifact.label)):
            if "/" in entry.name or not stat.S_ISREG(entry.status.st_mode):
                note(entry, "")
                continue
            location = artifact.location.sibling(f"metadata/{entry.name}")
            with stores.reach(location, artifact.credentials).create(location.key) as out:
                copy(entry, out, note=note, barred=self._barred)


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


def _entries(artifact: Artifact, directory: Path) -> Iterator[Entry]:
    """What of the directory is uploaded, in the order in which it is."""
    if artifact.unpack or artifact.label == METADATA:
        return members(directory, LOG_NAME if artifact.label == LOG_LABEL else "")
    return only(directory, _base_name(artifact))
