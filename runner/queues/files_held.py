"""Messages of a directory that are held: files, locked."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

_DEAD = ".dead"


class Owed(NamedTuple):
    """What is still to be done with a message that is settled, and the number of its file."""

    inode: int
    action: Callable[[], object]


class FileDelivery:
    """A message file, locked."""

    redeliveries: int | None = None
    redelivered = False

    def __init__(self, queue: str, path: Path, file: FileIO, body: bytes, owed: dict[Path, Owed]) -> None:
        self.queue, self.body = queue, body
        self._path, self._file, self._owed = path, file, owed
        self._inode = os.fstat(file.fileno()).st_ino

    @property
    def settled(self) -> bool:
        """True when it is not ours any more."""
        return self._file.closed

    @property
    def lost(self) -> bool:
        """False: a lock is not taken away."""
        return False

    @property
    def window(self) -> None:
        """None: a lock holds for ever."""
        return None

    def ack(self) -> None:
        """Remove the file, while it is locked."""
        self._settle(self._path.unlink)

    def give_back(self) -> None:
        """Unlock the file."""
        self._file.close()

    def refuse(self) -> None:
        """Move the file into the queue's ``.dead`` directory if there is one, or else remove it."""
        self._settle(partial(_bury, self._path))

    def keep_alive(self) -> None:
        """Nothing needs to be told to a lock."""

    def _settle(self, action: Callable[[], object]) -> None:
        if self._file.closed:
            return
        with self._file:
            try:
                with suppress(FileNotFoundError):
                    action()
            except OSError as error:
                self._owed[self._path] = Owed(self._inode, action)
                log.error("%s cannot be taken out of its queue, which is tried again: %s", self._path, error.strerror)


def _bury(path: Path) -> None:
    dead = path.parent / _DEAD
    if is_directory(dead):
        path.replace(dead / path.name)
    else:
        path.unlink()


def is_directory(path: Path) -> bool:
    """Tell whether there is one. Raises OSError when that cannot be learnt."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
