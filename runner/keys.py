"""Directories of public keys, each for the queues whose names begin with its file's name (protocol section 2)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

# How old what is known may be, in seconds. Keys are so small that reading them costs no more than looking for changes.
_PACE = 5.0
# No key is larger, in bytes.
_LARGEST = 64 * 1024
# What stands in a Secret that has no key yet.
_PLACEHOLDER = "info"


class KeyDirectory:
    """The key files of a directory, as they are now: they come and go while we run.

    A directory that is not there has no keys. ``clock`` gives monotonic seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._path, self._clock = path, clock
        self._texts: dict[str, str | None] = {}
        self._troubles: set[str] = set()
        self._due = float("-inf")

    def text_for(self, queue: str) -> str | None:
        """Return the content of the file whose name is the longest beginning of the queue's, None where there is none.

        It is None too when that very file cannot be read: another's key must not take its place.
        """
        if self._clock() >= self._due:
            self._due = self._clock() + _PACE
            self._read()
        prefixes = [name for name in self._texts if queue.startswith(name)]
        return self._texts[max(prefixes, key=len)] if prefixes else None

    def _read(self) -> None:
        known, self._troubles = self._troubles, set()
        self._texts = {name: self._content(self._path / name) for name in self._names()}
        for trouble in sorted(self._troubles - known):
            log.error("%s", trouble)

    def _names(self) -> list[str]:
        """Name the key files; Kubernetes makes each a link into a hidden directory, which it replaces as a whole."""
        try:
            names = os.listdir(self._path)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._troubles.add(f"the keys in {self._path} cannot be read: {error.strerror}")
            return []
        return [name for name in names if name != _PLACEHOLDER and not name.startswith(".")]

    def _content(self, path: Path) -> str | None:
        try:
            with path.open("rb") as file:
                return file.read(_LARGEST).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            self._troubles.add(f"{path} cannot be read, so there is no key for its queues: {reason}")
            return None
