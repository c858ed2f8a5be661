"""Directories of key files that come and go while we run, and of those for queues with some beginning (section 2)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

# How old what is known may be, in seconds. Keys are so small that reading them costs no more than looking for changes.
_PACE = 5.0
# How old it must be to be read again for a message that lacks a key, in seconds: strangers can send many.
_SHORTEST_PACE = 1.0
# No key is larger, in bytes.
_LARGEST = 64 * 1024
# What stands in a Secret that has no key yet.
_PLACEHOLDER = "info"


class Troubles:
    """Logs each trouble once, as long as it lasts."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def tell(self, troubles: Collection[str]) -> None:
        """These are all that there are now."""
        for trouble in sorted(set(troubles) - self._known):
            log.error("%s", trouble)
        self._known = set(troubles)


class KeyFiles:
    """The key files of a directory, as they are now. One that is not there has none.

    ``clock`` gives monotonic seconds. ``readable`` is false when the directory is not there or cannot be read.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self.path, self._clock = path, clock
        self.readable = False
        self._contents: dict[str, bytes | None] = {}
        self._troubles = Troubles()
        self._read_at = float("-inf")

    def contents(self) -> dict[str, bytes | None]:
        """Return the files' contents by their names, None for a file that is there and cannot be read."""
        self._renew(_PACE)
        return self._contents

    def renew(self) -> bool:
        """Look for changes now, unless that was done a moment ago; tell whether it was done."""
        return self._renew(_SHORTEST_PACE)

    def _renew(self, pace: float) -> bool:
        due = self._clock() >= self._read_at + pace
        if due:
            self._read_at = self._clock()
            self._read()
        return due

    def _read(self) -> None:
        troubles: list[str] = []
        self._contents = {}
        for name in self._names(troubles):
            path = self.path / name
            try:
                with path.open("rb") as file:
                    self._contents[name] = file.read(_LARGEST)
            except OSError as error:
                if path.is_symlink() or path.exists():
                    self._contents[name] = None
                    troubles.append(f"{path} cannot be read, so its key is not used: {error.strerror}")
        self._troubles.tell(troubles)

    def _names(self, troubles: list[str]) -> list[str]:
        """Name the key files; Kubernetes makes each a link into a hidden directory, which it replaces as a whole."""
        self.readable = False
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            troubles.append(f"the keys in {self.path} cannot be read: {error.strerror}")
            return []
        self.readable = True
        return [name for name in names if name != _PLACEHOLDER and not name.startswith(".")]


@dataclass(frozen=True)
class QueueKey:
    """A key file for queues; ``text`` is None when it cannot be read."""

    path: Path
    text: str | None


class KeyDirectory:
    """A directory of public keys, each for the queues whose names begin with its file's name."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._files = KeyFiles(path, clock=clock)
        self._texts: dict[str, str | None] = {}
        self._decoded: dict[str, bytes | None] | None = None

    @property
    def path(self) -> Path:
        """The directory."""
        return self._files.path

    @property
    def readable(self) -> bool:
        """False when the directory was not there, or could not be read."""
        return self._files.readable

    def renew(self) -> bool:
        """Look for changes now, unless that was done a moment ago; tell whether it was done."""
        return self._files.renew()

    def names(self) -> list[str]:
        """Return the beginnings of queues' names that there are files for."""
        return sorted(self._files.contents())

    def find(self, queue: str) -> QueueKey | None:
        """Return the file whose name is the longest beginning of the queue's, None where there is none.

        It is returned too when it cannot be read: another's key must not take its place.
        """
        self._decode(self._files.contents())
        prefixes = [name for name in self._texts if queue.startswith(name)]
        if not prefixes:
            return None
        name = max(prefixes, key=len)
        return QueueKey(self.path / name, self._texts[name])

    def text_for(self, queue: str) -> str | None:
        """Return the content of that file, None where there is none, or where it cannot be read."""
        found = self.find(queue)
        return found.text if found else None

    def _decode(self, contents: dict[str, bytes | None]) -> None:
        if contents is not self._decoded:
            self._decoded = contents
            # Keys are ASCII; their comments, mostly people's names, are in any encoding.
            self._texts = {
                name: content.decode(errors="replace") if content is not None else None
                for name, content in contents.items()
            }
