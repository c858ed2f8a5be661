"""The streams that objects come through: what passes is digested, and copied to the cache where that has room."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import IO

from runner.artifacts.cache_entries import About, CacheFailure, Draft
from runner.artifacts.trees import survey
from runner.errors import ExperimentError, Unavailable
from runner.message.request_artifacts import Artifact
from runner.storage.base import Reader, Stored

log = logging.getLogger(__name__)

# Room for an object of unknown size is made in such steps, in bytes.
_STEP = 64 * 1024 * 1024


class Digested:
    """A stream that knows the SHA-256 of what has passed."""

    def __init__(self, stream: Reader) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        """See Reader."""
        data = self._stream.read(size)
        self._digest.update(data)
        return data

    @property
    def digest(self) -> str:
        """In hexadecimal."""
        return self._digest.hexdigest()

    def verify(self, artifact: Artifact) -> None:
        """Raise ExperimentError when this is not what the message says."""
        if artifact.hash and artifact.hash.lower() != self.digest:
            raise ExperimentError(
                f"it has SHA-256 {self.digest}, but the message says {artifact.hash}: it was changed or damaged"
            )


class Kept:
    """A file of the cache as a Reader."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        """See Reader. Raises Unavailable."""
        try:
            return self._file.read(size)
        except OSError as error:
            raise Unavailable(f"the cache cannot be read: {error.strerror}") from error


class Copied(Digested):
    """A stream of which a copy is written to the cache as it passes, for as long as there is room.

    ``release`` is called when there is to be no copy.
    """

    def __init__(self, stored: Stored, release: Callable[[], None]) -> None:
        super().__init__(stored.stream)
        self._size, self._release = stored.size, release
        self._draft: Draft | None = None
        self._file: IO[bytes] | None = None
        self._written = self._reserved = 0
        self._ended = False

    def begin(self, draft: Draft) -> None:
        """Write the copy there. Raises CacheFailure when it will have no room."""
        draft.reserve(self._size or 0)
        self._reserved = self._size or 0
        self._draft, self._file = draft, draft.content.open("wb", buffering=0)

    def read(self, size: int = -1, /) -> bytes:
        """See Reader."""
        data = super().read(size)
        self._ended = self._ended or not data
        if self._file and self._draft and data:
            try:
                self._written += len(data)
                if self._written > self._reserved:
                    self._reserved = self._written + _STEP
                    self._draft.reserve(self._reserved)
                _write(self._file, data)
            except (CacheFailure, OSError) as error:
                self.give_up(error)
        return data

    def give_up(self, why: Exception) -> None:
        """Go on without a copy."""
        log.info("an artifact is not cached: %s", why)
        self.close()
        self._file = None
        if self._draft:
            self._draft.abandon()
        self._release()

    def close(self) -> None:
        """Write nothing any more."""
        if self._file:
            self._file.close()

    def keep(self, identity: str) -> None:
        """The copy is whole, and right."""
        if self._file and self._draft and self._ended:
            self.close()
            try:
                self._draft.keep(identity, About(self.digest, self._written, survey(self._draft.content).evidence))
            except (CacheFailure, OSError) as error:
                log.warning("an artifact is not cached: %s", error)


def _write(file: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
